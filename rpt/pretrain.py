"""Next-token pre-training: stage 0, and the controls that continue it.

    python -m rpt.pretrain --config=configs/mini.py --workdir=runs/stage0

One iteration: batch -> next-token loss and gradient -> optimiser step -> log -> gate -> save.
A run that was stopped goes on when the same command is given again. With a gate, the learning
rate decays once shallow with-thought accuracy is reached, or at the bound; summary.json says which.
"""

import dataclasses
import pathlib
import time
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from data import pipeline, tokenizers
from rpt import (
    checkpoint,
    cli,
    files,
    gate,
    goodput,
    ledger,
    loading,
    optimizers,
    profiling,
    runs,
    sharding,
    stepmetrics,
    update,
)
from rpt import config as config_lib
from rpt import watch as watch_lib
from rpt.model import config as model_config
from rpt.model import transformer


def pretrain(
    config: config_lib.Config,
    workdir: pathlib.Path,
    *,
    init: pathlib.Path | None = None,
    overrides: dict[str, Any] | None = None,
    stop: cli.StopSignal | None = None,
) -> dict[str, Any]:
    """Runs (or continues) to the end or to a stop signal; returns the summary.

    Args:
      config: sections data, model, pretrain, mesh, logging.
      workdir: run directory.
      init: a run whose parameters and tokenizer to start from.
      overrides: command line overrides, for the record.
      stop: asks the loop to save and end.
    """
    mesh = sharding.make_mesh(config.mesh, config.pretrain.batch_size)
    with jax.set_mesh(mesh):
        return _pretrain(config, workdir, mesh, init, overrides or {}, stop)


def _pretrain(
    config: config_lib.Config,
    workdir: pathlib.Path,
    mesh: Mesh,
    init: pathlib.Path | None,
    overrides: dict[str, Any],
    stop: cli.StopSignal | None,
) -> dict[str, Any]:
    settings = config.pretrain
    loaded = loading.load_run(init) if init else loading.start(config)
    model, tokenizer = loaded.model, loaded.tokenizer
    streams = _Streams(config, tokenizer)
    measure = gate.Gate(config, model, tokenizer) if settings.gate.labels else None
    optimizer = optimizers.make(settings.optimizer)
    # Documents that are all too short are found before anything is written.
    beginning = streams.get_state()
    streams.next(step=0)
    streams.set_state(beginning)
    runs.open_run(workdir, config, model, tokenizer, overrides, "pretrain", str(init or ""))

    began = time.monotonic()

    # ---- state: fresh or restored ---------------------------------------------------------------
    params = loading.place(mesh, model, loaded.params)
    opt_state = optimizers.init_state(optimizer, params)
    book, gated, seconds_before = ledger.Ledger(), _GateState(), 0.0
    watch = watch_lib.Watch()
    notes: list[str] = []
    store = checkpoint.Checkpoints(workdir, config.logging.keep_last)
    step = 0
    restored, damaged = store.restore(checkpoint.TrainState(0, params, opt_state, {}))
    if restored is not None:
        step, params, opt_state = restored.step, restored.params, restored.opt_state
        book = ledger.Ledger(**restored.host["ledger"])
        seconds_before = restored.host["wall_seconds"]
        watch = watch_lib.Watch(**restored.host["watch"])
        gated = _GateState(**restored.host["gate"])
        notes = damaged + streams.set_state(restored.host["streams"])
    rows, spent_per_step = settings.batch_size * settings.seq_len, step_flops(model, settings)
    total_steps = _total_steps(settings, gated)
    meter = goodput.Goodput(workdir, began, restored and restored.host["goodput"])
    tracer = profiling.Tracer(config.profile, workdir)
    log = runs.Log(workdir, "pretrain", step, total_steps, config.logging.log_every_steps)
    metrics = log.last
    for line in notes:
        log.say(line)

    def host_state() -> dict[str, Any]:
        return {
            "ledger": dataclasses.asdict(book),
            "gate": dataclasses.asdict(gated),
            "streams": streams.get_state(),
            "watch": dataclasses.asdict(watch),
            "goodput": meter.state(),
            "wall_seconds": seconds_before + time.monotonic() - began,
        }

    def decay_start() -> int | None:
        if measure is not None:
            return gated.decay_start
        return total_steps - settings.optimizer.decay_steps

    def finished() -> bool:
        start = decay_start()
        return start is not None and step >= start + settings.optimizer.decay_steps

    # ---- the loop ------------------------------------------------------------------------------
    while not finished() and not (stop is not None and stop.received):
        store.check()
        tracer.begin(step + 1)
        clock = stepmetrics.Clock()
        batch = sharding.shard_rows(mesh, streams.next(step))
        clock.lap("data")
        nll, grads = update.ntp_gradients(model, params, batch)
        factor = optimizers.factor(settings.optimizer, step, decay_start())
        params, opt_state, norm = update.apply(optimizer, params, opt_state, grads, factor, nll)
        del grads
        watch = watch.after_update(float(nll), float(norm))
        clock.lap("update")
        step += 1
        tracer.end(step)
        before, book = book, book.add("update", rows, spent_per_step)
        book = book.add_rows(spent_per_step)
        book = book.add_documents(int((batch.ntp_weight_BS > 0).sum()))
        metrics = {
            "ntp_nats": float(nll),
            "grad_norm": float(norm),
            "learning_rate_factor": factor,
            "skipped_updates": float(watch.skipped),
            **stepmetrics.of_data(streams.of_step(step - 1).counts()),
            "training_flops": float(book.training_flops),
        }
        if measure is not None and gated.is_due(settings.gate, step):
            by_part, spent = measure.accuracy(params)
            book = book.add("eval", 0, spent)
            gated = gated.after(settings.gate, step, min(by_part.values()))
            log.expect(_total_steps(settings, gated))
            metrics["gate_accuracy"] = min(by_part.values())
            shares = ", ".join(f"{name} {share:.3f}" for name, share in by_part.items())
            log.say(f"gate at step {step}: shallow with-thought accuracy {shares}")
        log.write(step, metrics, f"nll {metrics['ntp_nats']:.3f}")
        meter.add_laps(clock.seconds())
        saving = time.monotonic()
        per_decade = config.logging.scaling_checkpoints_per_decade
        if checkpoint.crosses_scaling_point(before, book, per_decade):
            store.save_scaling(step, params)
        if step % config.logging.checkpoint_every_steps == 0:
            log.flush()
            store.save(checkpoint.TrainState(step, params, opt_state, host_state()))
        meter.add("save", time.monotonic() - saving)
        meter.beat(step)
        if watch.must_stop(config.watch):
            store.save(checkpoint.TrainState(step, params, opt_state, host_state()))
            store.close()
            log.close()
            meter.beat(step, "skipped too many updates")
            raise watch.stopped(step)

    # ---- the end -------------------------------------------------------------------------------
    done = finished()
    if measure is not None and done and gated.final_accuracy is None:
        by_part, spent = measure.accuracy(params)
        book = book.add("eval", 0, spent)
        gated = dataclasses.replace(gated, final_accuracy=min(by_part.values()))
    saving = time.monotonic()
    store.save(checkpoint.TrainState(step, params, opt_state, host_state()))
    store.close()
    meter.add("save", time.monotonic() - saving)
    meter.beat(step, "finished" if done else "stopped")
    tracer.close()
    log.close()
    summary = {
        "command": "pretrain",
        "finished": done,
        "step": step,
        "wall_seconds": seconds_before + time.monotonic() - began,
        "metrics": metrics,
        "data": streams.counts(),
        "mixture_events": streams.events(),
        "gate": {
            **dataclasses.asdict(gated),
            "passed": (gated.final_accuracy or 0.0) >= settings.gate.threshold,
        },
        "ledger": {**dataclasses.asdict(book), "training_flops": book.training_flops},
        "watch": dataclasses.asdict(watch),
        "goodput": meter.summary(),
        "parameters": transformer.num_parameters(model),
        "params_sha256": checkpoint.params_sha256(params),
    }
    runs.write_json(workdir / "summary.json", summary)
    return summary


@dataclasses.dataclass(frozen=True)
class _GateState:
    """When the decay began, whether the bound came first, and the accuracy after the decay."""

    decay_start: int | None = None
    bound_reached: bool = False
    final_accuracy: float | None = None

    def is_due(self, config: config_lib.GateConfig, step: int) -> bool:
        if self.decay_start is not None or step < config.first_step:
            return False
        return (step - config.first_step) % config.every_steps == 0 or step >= config.max_steps

    def after(self, config: config_lib.GateConfig, step: int, accuracy: float) -> "_GateState":
        if accuracy >= config.threshold:
            return dataclasses.replace(self, decay_start=step)
        if step >= config.max_steps:
            return dataclasses.replace(self, decay_start=step, bound_reached=True)
        return self


def step_flops(model: model_config.ModelConfig, settings: config_lib.PretrainConfig) -> int:
    """Training FLOPs of one step."""
    return ledger.trunk_flops(model, settings.batch_size, settings.seq_len, passes=3)


def _total_steps(settings: config_lib.PretrainConfig, gated: _GateState) -> int:
    """All steps; the most that there can be while a gate is closed."""
    if settings.gate.labels:
        start = settings.gate.max_steps if gated.decay_start is None else gated.decay_start
        return start + settings.optimizer.decay_steps
    return settings.steps


class _Streams:
    """The opening mixture for the first steps, then the main one."""

    def __init__(self, config: config_lib.Config, tokenizer: tokenizers.Tokenizer):
        settings = config.pretrain

        def open_stream(mixture: config_lib.Mixture):
            return pipeline.packed_batches(
                loading.open_mixture(mixture),
                tokenizer,
                batch_size=settings.batch_size,
                seq_len=settings.seq_len,
                seed=config.seed,
                add_bos=config.data.add_bos and tokenizer.bos_id is not None,
                add_eos=tokenizer.eos_id is not None,
            )

        self._opening_steps = settings.opening_steps
        self._main = open_stream(settings.mixture)
        self._opening = open_stream(settings.opening_mixture) if self._opening_steps else None

    def of_step(self, step: int) -> pipeline.Stream[pipeline.PackedBatch]:
        if self._opening is not None and step < self._opening_steps:
            return self._opening
        return self._main

    def next(self, step: int) -> update.TrunkInputs:
        batch = next(self.of_step(step))
        counted_BS = np.zeros(batch.tokens_BS.shape, bool)
        # loss_mask says that position s predicts s + 1; weights belong to the target.
        counted_BS[:, 1:] = batch.loss_mask_BS[:, :-1]
        weight_BS = (counted_BS / max(int(counted_BS.sum()), 1)).astype(np.float32)
        return update.TrunkInputs(batch.tokens_BS, batch.segments_BS, batch.positions_BS, weight_BS)

    def counts(self) -> dict[str, Any]:
        """Of the main stream and the opening one: dropped documents, epochs and so on."""
        opening = None if self._opening is None else self._opening.counts()
        return {"main": self._main.counts(), "opening": opening}

    def events(self) -> dict[str, Any]:
        """Of the main stream and the opening one: their mixtures' weights over time."""
        opening = None if self._opening is None else self._opening.events
        return {"main": self._main.events, "opening": opening}

    def get_state(self) -> dict[str, Any]:
        opening = None if self._opening is None else self._opening.get_state()
        return {"main": self._main.get_state(), "opening": opening}

    def set_state(self, state: dict[str, Any]) -> list[str]:
        """Goes on from there; returns lines for the log."""
        notes = loading.restore_stream(self._main, state["main"])
        if self._opening is not None:
            notes += loading.restore_stream(self._opening, state["opening"])
        return notes


def main(argv: list[str]) -> None:
    del argv
    config = config_lib.from_config_dict(_CONFIG.value)
    init = pathlib.Path(_INIT.value) if _INIT.value else None
    summary = pretrain(
        config,
        files.folder(_WORKDIR.value),
        init=init,
        overrides=cli.overrides(),
        stop=cli.StopSignal(),
    )
    state = "finished" if summary["finished"] else "stopped; the same command goes on"
    print(f"{state} at step {summary['step']}; summary in {_WORKDIR.value}/summary.json")


if __name__ == "__main__":
    _CONFIG = cli.define_config()
    _WORKDIR = flags.DEFINE_string(
        "workdir", None, "Run directory, made if missing.", required=True
    )
    _INIT = flags.DEFINE_string("init", "", "Run directory to start from (continued training).")
    flags.mark_flag_as_required("config")
    cli.run(main)
