"""Next-token pre-training: stage 0, and the controls that continue it.

    python -m rpt.pretrain --config=configs/mini.py --workdir=runs/stage0

One iteration: batch -> next-token loss and gradient -> optimiser step -> log -> gate -> save.
A run that was stopped goes on when the same command is given again. With a gate, the learning
rate decays once shallow with-thought accuracy is reached, or at the bound; summary.json says which.
"""

import dataclasses
import functools
import itertools
import pathlib
from typing import Any

import jax
import numpy as np
import optax
from absl import flags
from jax.sharding import Mesh

from data import joined, pipeline, tokenizers
from rpt import (
    checkpoint,
    cli,
    files,
    gate,
    hosts,
    ledger,
    loading,
    optimizers,
    runs,
    sharding,
    stepmetrics,
    update,
)
from rpt import config as config_lib
from rpt import session as session_lib
from rpt.model import config as model_config
from rpt.model import transformer


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays the same over a run, but for the streams' positions."""

    config: config_lib.Config
    model: model_config.ModelConfig
    tokenizer: tokenizers.Tokenizer
    mesh: Mesh
    streams: "_Streams"
    measure: gate.Gate | None

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        return optimizers.make(self.config.pretrain.optimizer)


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


@dataclasses.dataclass(frozen=True)
class _State(session_lib.LoopState):
    """And where the gate stands."""

    gated: _GateState = _GateState()

    def decay_start(self, config: config_lib.PretrainConfig) -> int | None:
        """The step at which the rate begins to fall; None as long as a gate has not said so."""
        if config.gate.labels:
            return self.gated.decay_start
        return config.steps - config.optimizer.decay_steps

    def is_finished(self, config: config_lib.PretrainConfig) -> bool:
        start = self.decay_start(config)
        return start is not None and self.step >= start + config.optimizer.decay_steps


def pretrain(
    config: config_lib.Config,
    workdir: pathlib.Path,
    *,
    init: pathlib.Path | None = None,
    overrides: dict[str, Any] | None = None,
    stop: cli.StopSignal | None = None,
    team: hosts.Hosts = hosts.ALONE,
) -> dict[str, Any]:
    """Runs (or continues) to the end or to a stop signal; returns the summary.

    Args:
      config: sections data, model, pretrain, mesh, logging.
      workdir: run directory.
      init: a run whose parameters and tokenizer to start from.
      overrides: command line overrides, for the record.
      stop: asks the loop to save and end.
      team: the hosts.
    """
    mesh = sharding.make_mesh(config.mesh, config.pretrain.batch_size)
    with jax.set_mesh(mesh):
        run, params = _open(config, mesh, init, team)
        digest = checkpoint.params_sha256(params) if init else ""
        if team.is_first:
            given = (overrides or {}, "pretrain", str(init or ""), digest)
            runs.open_run(workdir, config, run.model, run.tokenizer, *given)
        team.barrier()
        with session_lib.Session(workdir, config, team, stop) as session:
            state = _begin(run, session, params)
            del params
            while not state.is_finished(config.pretrain) and not session.must_stop():
                state = _step(run, session, state)
            return _end(run, session, state)


def _open(
    config: config_lib.Config, mesh: Mesh, init: pathlib.Path | None, team: hosts.Hosts
) -> tuple[_Run, Any]:
    """Everything but a place to write to, and the parameters to begin with.

    Documents that are all too short are found here.
    """
    loaded = loading.load_run(init) if init else loading.start(config)
    model, tokenizer = loaded.model, loaded.tokenizer
    streams = _Streams(config, tokenizer, team)
    gated = bool(config.pretrain.gate.labels)
    measure = gate.Gate(config, model, tokenizer, team) if gated else None
    beginning = streams.get_state()
    streams.next(step=0)
    streams.set_state(beginning)
    return _Run(config, model, tokenizer, mesh, streams, measure), loaded.params


def _begin(run: _Run, session: session_lib.Session, params: Any) -> _State:
    """The state, fresh or restored; and the log."""
    params = loading.place(run.mesh, run.model, params)
    fresh = _State(0, params, optimizers.init_state(run.optimizer, params))
    state, saved, notes = session.restore(fresh)
    if saved is not None:
        state = dataclasses.replace(state, gated=_GateState(**saved["gate"]))
        notes += run.streams.set_state(saved["streams"])
    total = _total_steps(run.config.pretrain, state.gated)
    session.start("pretrain", state.step, total, saved, notes)
    return state


def _saved(run: _Run, session: session_lib.Session, state: _State) -> checkpoint.TrainState:
    own = {"gate": dataclasses.asdict(state.gated), "streams": run.streams.get_state()}
    return session.checkpoint(state, own)


def _step(run: _Run, session: session_lib.Session, state: _State) -> _State:
    """One iteration."""
    settings = run.config.pretrain
    clock = session.begin_step(state.step + 1)
    inputs, documents = run.streams.next(state.step)
    inputs = sharding.shard_rows(run.mesh, inputs)
    clock.lap("data")
    nll, grads = update.ntp_gradients(run.model, state.params, inputs)
    factor = optimizers.factor(settings.optimizer, state.step, state.decay_start(settings))
    params, opt_state, norm = update.apply(
        run.optimizer, state.params, state.opt_state, grads, factor, nll
    )
    del grads
    watch = state.watch.after_update(float(nll), float(norm))
    clock.lap("update")
    step, before, spent = state.step + 1, state.book, step_flops(run.model, settings)
    book = before.add("update", settings.batch_size * settings.seq_len, spent)
    book = book.add_rows(spent).add_documents(documents)
    metrics = {
        "ntp_nats": float(nll),
        "grad_norm": float(norm),
        "learning_rate_factor": factor,
        "skipped_updates": float(watch.skipped),
        **stepmetrics.of_data(run.streams.counts_of(state.step)),
        "training_flops": float(book.training_flops),
    }
    gated = state.gated
    if run.measure is not None and gated.is_due(settings.gate, step):
        by_part, spent = run.measure.accuracy(params)
        book = book.add("eval", 0, spent)
        gated = gated.after(settings.gate, step, min(by_part.values()))
        session.log.expect(_total_steps(settings, gated))
        metrics["gate_accuracy"] = min(by_part.values())
        shares = ", ".join(f"{name} {share:.3f}" for name, share in by_part.items())
        session.log.say(f"gate at step {step}: shallow with-thought accuracy {shares}")
    session.end_step(step, metrics, f"nll {metrics['ntp_nats']:.3f}", clock)
    state = _State(step, params, opt_state, book, watch, gated)
    session.keep(before, state, lambda: _saved(run, session, state))
    return state


def _end(run: _Run, session: session_lib.Session, state: _State) -> dict[str, Any]:
    """The accuracy after the decay, the last checkpoint and summary.json."""
    settings = run.config.pretrain
    finished = state.is_finished(settings)
    if run.measure is not None and finished and state.gated.final_accuracy is None:
        by_part, spent = run.measure.accuracy(state.params)
        gated = dataclasses.replace(state.gated, final_accuracy=min(by_part.values()))
        state = dataclasses.replace(state, book=state.book.add("eval", 0, spent), gated=gated)
    own = {
        "command": "pretrain",
        "data": run.streams.counts(),
        "mixture_events": run.streams.events(),
        "gate": {
            **dataclasses.asdict(state.gated),
            "passed": (state.gated.final_accuracy or 0.0) >= settings.gate.threshold,
        },
        "parameters": transformer.num_parameters(run.model),
    }
    return session.finish(state, lambda: _saved(run, session, state), finished, own)


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
    """The opening mixture for the first steps, then the main one; this host's rows of both."""

    def __init__(
        self, config: config_lib.Config, tokenizer: tokenizers.Tokenizer, team: hosts.Hosts
    ):
        settings = config.pretrain
        shards = loading.own_shards(config.data, settings.batch_size, team.count)

        def open_stream(mixture: config_lib.Mixture) -> joined.Joined[pipeline.PackedBatch]:
            first = pipeline.packed_batches(
                loading.open_mixture(mixture),
                tokenizer,
                batch_size=settings.batch_size // config.data.shards,
                seq_len=settings.seq_len,
                seed=config.seed,
                shard_index=shards[0],
                shard_count=config.data.shards,
                add_bos=config.data.add_bos and tokenizer.bos_id is not None,
                add_eos=tokenizer.eos_id is not None,
            )
            return joined.Joined(first, shards, config.data.shards)

        self._team, self._opening_steps = team, settings.opening_steps
        self._main = open_stream(settings.mixture)
        self._opening = open_stream(settings.opening_mixture) if self._opening_steps else None

    def _of_step(self, step: int) -> joined.Joined[pipeline.PackedBatch]:
        if self._opening is not None and step < self._opening_steps:
            return self._opening
        return self._main

    def next(self, step: int) -> tuple[update.TrunkInputs, int]:
        """This host's rows, and the number of tokens to be predicted in those of all."""
        batch = next(self._of_step(step))
        counted_BS = np.zeros(batch.tokens_BS.shape, bool)
        # loss_mask says that position s predicts s + 1; weights belong to the target.
        counted_BS[:, 1:] = batch.loss_mask_BS[:, :-1]
        tokens = self._team.total({"tokens": int(counted_BS.sum())})["tokens"]
        weight_BS = (counted_BS / max(tokens, 1)).astype(np.float32)
        rows = (batch.tokens_BS, batch.segments_BS, batch.positions_BS, weight_BS)
        return update.TrunkInputs(*rows), tokens

    def _merged(self, stream: joined.Joined[pipeline.PackedBatch]) -> dict[str, float]:
        return stream.merged(itertools.chain.from_iterable(self._team.gather(stream.counts())))

    def counts_of(self, step: int) -> dict[str, float]:
        """Of the stream of a step, over all hosts."""
        return self._merged(self._of_step(step))

    def counts(self) -> dict[str, Any]:
        """Of the main stream and the opening one: dropped documents, epochs and so on."""
        opening = None if self._opening is None else self._merged(self._opening)
        return {"main": self._merged(self._main), "opening": opening}

    def events(self) -> dict[str, Any]:
        """Of the main stream and the opening one: their mixtures' weights over time."""
        opening = None if self._opening is None else self._opening.events
        return {"main": self._main.events, "opening": opening}

    def get_state(self) -> dict[str, Any]:
        """Of all hosts' shards, in their order."""

        def states(stream: joined.Joined[pipeline.PackedBatch]) -> list[dict[str, Any]]:
            gathered = self._team.gather(stream.get_states())
            return list(itertools.chain.from_iterable(gathered))

        opening = None if self._opening is None else states(self._opening)
        return {"main": states(self._main), "opening": opening}

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
    with hosts.joined(_HOSTS.value) as team:
        summary = pretrain(
            config,
            files.folder(_WORKDIR.value),
            init=init,
            overrides=cli.overrides(),
            stop=cli.StopSignal(),
            team=team,
        )
        state = "finished" if summary["finished"] else "stopped; the same command goes on"
        if team.is_first:
            print(f"{state} at step {summary['step']}; summary in {_WORKDIR.value}/summary.json")


if __name__ == "__main__":
    _CONFIG = cli.define_config()
    _WORKDIR = flags.DEFINE_string(
        "workdir", None, "Run directory, made if missing.", required=True
    )
    _INIT = flags.DEFINE_string("init", "", "Run directory to start from (continued training).")
    _HOSTS = cli.define_hosts()
    flags.mark_flag_as_required("config")
    cli.run(main)
