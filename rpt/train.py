"""Reinforcement pre-training.

    python -m rpt.train --config=configs/mini.py --config.train.init=runs/stage0 --workdir=runs/rpt

One iteration, top to bottom:

    batch      documents, one per trunk row
    trunk      keys, values and entropies of every position, once
    experience cuts -> thoughts -> predictions -> rewards -> advantages
    update     trunk and branch micro-batches, NTP on the trunk, one optimiser step
    log, save  metrics of step 0 on; one atomic checkpoint of everything
"""

import dataclasses
import pathlib
import time
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from data import pipeline
from rpt import (
    checkpoint,
    cli,
    experience,
    files,
    filtering,
    formats,
    goodput,
    ledger,
    loading,
    objectives,
    optimizers,
    profiling,
    runs,
    scoring,
    sharding,
    stepmetrics,
    update,
    warmup,
)
from rpt import config as config_lib
from rpt import watch as watch_lib
from rpt.model import transformer


def train(
    config: config_lib.Config,
    workdir: pathlib.Path,
    *,
    overrides: dict[str, Any] | None = None,
    stop: cli.StopSignal | None = None,
) -> dict[str, Any]:
    """Runs (or continues) to the last step or to a stop signal; returns the summary."""
    mesh = sharding.make_mesh(config.mesh, config.train.batch_size)
    with jax.set_mesh(mesh):
        return _train(config, workdir, mesh, overrides or {}, stop)


def _train(
    config: config_lib.Config,
    workdir: pathlib.Path,
    mesh: Mesh,
    overrides: dict[str, Any],
    stop: cli.StopSignal | None,
) -> dict[str, Any]:
    settings = config.train
    init = pathlib.Path(settings.init) if settings.init else None
    loaded = loading.load_run(init) if init else loading.start(config)
    model, tokenizer = loaded.model, loaded.tokenizer
    template = formats.load_template(config.data.template)
    task = experience.Task(model, config, tokenizer, template)
    header = loading.header_ids(tokenizer, template.header, config.data.add_bos)
    stream = pipeline.trunk_batches(
        loading.open_mixture(settings.mixture),
        tokenizer,
        batch_size=settings.batch_size,
        seq_len=settings.seq_len,
        header_ids=header,
        min_context=config.positions.min_context,
        seed=config.seed,
    )
    chosen = filtering.open_filter(config.positions, tokenizer)
    optimizer = optimizers.make(settings.optimizer)
    # What cannot work is found before anything is written: documents that are all too short, a
    # template or a budget that allows no branch.
    beginning = stream.get_state()
    filtering.check(chosen, next(stream))
    stream.set_state(beginning)
    _ = task.tables
    if settings.warmup_steps:
        warmup.make_form(task)
    runs.open_run(workdir, config, model, tokenizer, overrides, "train")

    began = time.monotonic()

    # ---- state: fresh (after the warm-up, if there is one) or restored -------------------------
    params = loading.place(mesh, model, loaded.params)
    opt_state = optimizers.init_state(optimizer, params)
    book = filtering.account(chosen, ledger.Ledger())
    rewardless, seconds_before = 0, 0.0
    watch = watch_lib.Watch()
    notes: list[str] = []
    store = checkpoint.Checkpoints(workdir, config.logging.keep_last)
    step = 0
    restored, damaged = store.restore(checkpoint.TrainState(0, params, opt_state, {}))
    if restored is not None:
        step, params, opt_state = restored.step, restored.params, restored.opt_state
        book = ledger.Ledger(**restored.host["ledger"])
        rewardless = restored.host["rewardless_steps"]
        seconds_before = restored.host["wall_seconds"]
        watch = watch_lib.Watch(**restored.host["watch"])
        notes = damaged + loading.restore_stream(stream, restored.host["stream"])
    elif settings.warmup_steps:
        params, book = warmup.warm_up(task, mesh, params, stream, book, stop)
    meter = goodput.Goodput(workdir, began, restored and restored.host["goodput"])
    tracer = profiling.Tracer(config.profile, workdir)
    log = runs.Log(workdir, "rpt", step, settings.steps, config.logging.log_every_steps)
    metrics = log.last
    if (note := filtering.context_note(chosen, header, config)) is not None:
        notes.append(note)
    for line in notes:
        log.say(line)

    def state() -> checkpoint.TrainState:
        host = {
            "ledger": dataclasses.asdict(book),
            "rewardless_steps": rewardless,
            "stream": stream.get_state(),
            "watch": dataclasses.asdict(watch),
            "goodput": meter.state(),
            "wall_seconds": seconds_before + time.monotonic() - began,
        }
        return checkpoint.TrainState(step, params, opt_state, host)

    reference = None
    if config.objective.kl_weight:
        # The policy as it was before the first step, the warm-up behind it; on disk before any
        # checkpoint of this run, so that a continued run has the same.
        if step == 0:
            store.save_scaling(0, params)
            store.wait()
        reference = params if step == 0 else checkpoint.load_params(workdir, params, step=0)
    if step == 0:
        store.save(state())

    # ---- the loop ------------------------------------------------------------------------------
    while step < settings.steps and not (stop is not None and stop.received):
        store.check()
        tracer.begin(step + 1)
        clock = stepmetrics.Clock()

        # batch: documents, one per trunk row
        batch = next(stream)
        B, S = batch.tokens_BS.shape
        tokens, segments, places = sharding.shard_rows(
            mesh, (batch.tokens_BS, batch.segments_BS, batch.positions_BS)
        )
        clock.lap("data")

        # trunk: keys, values and entropies, once
        scores, kv = scoring.score_trunk(model, params, tokens, segments, places)
        inputs = (tokens, segments, places)
        entropy_BS, indexed = filtering.entropies(chosen, batch, scores, inputs)
        clock.lap("trunk")

        # experience: cuts -> thoughts -> predictions -> rewards -> advantages
        lived, extra_flops = experience.collect(task, params, batch, kv, entropy_BS, step)
        if step % config.logging.samples_every_steps == 0:
            shown, spent = stepmetrics.samples(task, params, batch, scores, kv, lived, step + 1)
            log.sample(shown)
            book = book.add("eval", *spent)
        del kv
        clock.lap("rollout")

        # update: trunk and branch micro-batches, then one optimiser step
        trunk = update.TrunkInputs(
            tokens,
            segments,
            places,
            objectives.ntp_weights(
                config.objective,
                batch.segments_BS,
                batch.header_length,
                lived.cut_BC,
                lived.valid_BC,
            ),
        )
        batches = training_batches(task, lived)
        weight = float(sum(micro.weight_BRT.sum() for micro in batches))
        temperature = config.rollout.temperature or 1.0
        if reference is not None:
            batches = update.with_reference(model, temperature, reference, trunk, batches)
        batches = [sharding.shard_rows(mesh, micro) for micro in batches]
        grads, terms = update.gradients(
            model, config.objective, temperature, params, trunk, batches
        )
        decay_start = settings.steps - settings.optimizer.decay_steps
        factor = optimizers.factor(settings.optimizer, step, decay_start)
        loss = terms["loss"] + config.objective.ntp_weight * terms["ntp"]
        params, opt_state, norm = update.apply(optimizer, params, opt_state, grads, factor, loss)
        del grads
        jax.block_until_ready(params)
        clock.lap("update")
        step += 1
        tracer.end(step)
        watch = watch.after_update(float(loss), float(norm))

        # log: everything that says whether thinking pays and whether the numbers can be trusted
        before = book
        book = _account(
            book, task, chosen.proxy, (B, S), batch, lived, batches, reference is not None
        )
        book = book.add("score", 0, extra_flops)
        metrics = {
            **stepmetrics.of_experience(task, batch, scores, lived),
            **stepmetrics.of_update(lived, terms, weight),
            "grad_norm": float(norm),
            "learning_rate_factor": factor,
            "skipped_updates": float(watch.skipped),
            **stepmetrics.of_data(stream.counts()),
            **clock.seconds(),
            "training_flops": float(book.training_flops),
        }
        if indexed is not None:
            metrics["indexed_documents"] = indexed
        note = (
            f"reward {metrics['reward']:.3f}  no-think {metrics['no_think_accuracy']:.3f}  "
            f"mixed {metrics['groups_mixed']:.2f}"
        )
        log.write(step, metrics, note)
        watch, alarms = watch.after_step(config.watch, step, metrics)
        for line in alarms:
            log.say(line)
        rewardless = 0 if metrics["accuracy"] > 0 else rewardless + 1
        if rewardless and rewardless % 20 == 0:
            log.say(stepmetrics.diagnosis(task, lived, rewardless))

        # save; the end of a run that learns nothing
        meter.add_laps(metrics)
        saving = time.monotonic()
        per_decade = config.logging.scaling_checkpoints_per_decade
        if checkpoint.crosses_scaling_point(before, book, per_decade):
            store.save_scaling(step, params)
        if step % config.logging.checkpoint_every_steps == 0:
            log.flush()
            store.save(state())
        meter.add("save", time.monotonic() - saving)
        meter.beat(step)
        if watch.must_stop(config.watch):
            store.save(state())
            store.close()
            log.close()
            meter.beat(step, "skipped too many updates")
            raise watch.stopped(step)

    # ---- the end -------------------------------------------------------------------------------
    saving = time.monotonic()
    store.save(state())
    store.close()
    meter.add("save", time.monotonic() - saving)
    meter.beat(step, "finished" if step >= settings.steps else "stopped")
    tracer.close()
    log.close()
    summary = {
        "command": "train",
        "finished": step >= settings.steps,
        "step": step,
        "wall_seconds": seconds_before + time.monotonic() - began,
        "metrics": metrics,
        "data": stream.counts(),
        "mixture_events": stream.events,
        "ledger": {**dataclasses.asdict(book), "training_flops": book.training_flops},
        "watch": dataclasses.asdict(watch),
        "goodput": meter.summary(),
        "parameters": transformer.num_parameters(model),
        "params_sha256": checkpoint.params_sha256(params),
    }
    runs.write_json(workdir / "summary.json", summary)
    return summary


def training_batches(
    task: experience.Task, lived: experience.Experience
) -> list[update.MicroBatch]:
    """The branches of the trained groups as micro-batches, with their weights in the loss."""
    config, result = task.config, lived.result
    G = config.rollout.group_size
    trained_BR = np.repeat(lived.trained_BC, G, axis=1)
    counted_BR = trained_BR
    if config.objective.count_zero_variance:
        counted_BR = np.repeat(lived.valid_BC, G, axis=1)
    weight_BRT = objectives.token_weights(config.objective, result.sampled_BRT, counted_BR)
    weight_BRT = weight_BRT * trained_BR[..., None]
    truncated = config.rollout.top_k > 0 or config.rollout.top_p < 1
    arrays = update.MicroBatch(
        tokens_BRT=result.tokens_BRT,
        weight_BRT=weight_BRT,
        behaviour_BRT=result.log_prob_BRT,
        threshold_BRT=result.threshold_BRT if truncated else None,
        reference_BRT=None,
        advantage_BR=lived.advantage_BCG.reshape(trained_BR.shape),
        hi_BR=np.repeat(lived.cut_BC, G, axis=1).astype(np.int32),
    )
    # Only trained branches travel; the fullest document sets R.
    order_BR = np.argsort(~trained_BR, axis=1, kind="stable")[:, : trained_BR.sum(axis=1).max()]
    arrays = jax.tree.map(lambda x: _take(x, order_BR), arrays)
    length_BR = _take(np.where(trained_BR, result.length_BR, 0), order_BR)
    return update.micro_batches(
        arrays, length_BR, config.train.micro_branches, config.train.t_multiple
    )


def _take(x: np.ndarray, order_BR: np.ndarray) -> np.ndarray:
    return np.take_along_axis(x, order_BR.reshape(*order_BR.shape, *[1] * (x.ndim - 2)), axis=1)


def _account(book, task, proxy, shape, batch, lived, batches, referenced) -> ledger.Ledger:
    """Everything the step executed, by kind, and the same as separate rows."""
    model, (B, S) = task.model, shape
    scored = ledger.trunk_flops(model, B, S, passes=1)
    if proxy is not None:
        scored += ledger.trunk_flops(proxy.model, B, S, passes=1)
    book = book.add("score", B * S * (1 if proxy is None else 2), scored)
    book = book.add("rollout", *ledger.decode_flops(model, B, S, lived.result.decode_steps))
    shapes = [micro.tokens_BRT.shape for micro in batches]
    tokens, flops = ledger.branch_update_flops(model, S, shapes)
    if referenced:  # forward passes only
        book = book.add("score", tokens + B * S, flops // 3)
        book = book.add("score", 0, ledger.trunk_flops(model, B, S, passes=1))
    flops += ledger.trunk_flops(model, B, S, passes=3)
    book = book.add("update", tokens + B * S, flops)
    book = book.add_documents(int((batch.lengths_B - batch.header_length).clip(0).sum()))
    G = task.config.rollout.group_size
    cut_BR, length_BR = np.repeat(lived.cut_BC, G, axis=1), lived.result.length_BR
    trained_BR = np.repeat(lived.trained_BC, G, axis=1)
    rows = sum(
        ledger.row_flops(model, int(cut), int(length), bool(trained))
        for cut, length, trained in zip(cut_BR.flat, length_BR.flat, trained_BR.flat, strict=True)
        if length
    )
    # Scoring is the same either way, and next-token prediction a row of its own.
    ntp = ledger.trunk_flops(model, B, S, passes=3) if task.config.objective.ntp_weight else 0
    return book.add_rows(rows + scored + ntp)


def main(argv: list[str]) -> None:
    del argv
    config = config_lib.from_config_dict(_CONFIG.value)
    summary = train(
        config,
        files.folder(_WORKDIR.value),
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
    flags.mark_flag_as_required("config")
    cli.run(main)
