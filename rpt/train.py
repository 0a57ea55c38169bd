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
import functools
import itertools
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from absl import flags
from jax.sharding import Mesh

from data import joined, pipeline
from rpt import (
    checkpoint,
    cli,
    experience,
    files,
    filtering,
    formats,
    hosts,
    ledger,
    loading,
    objectives,
    optimizers,
    runs,
    scoring,
    sharding,
    stepmetrics,
    update,
    warmup,
)
from rpt import config as config_lib
from rpt import session as session_lib
from rpt import watch as watch_lib
from rpt.model import transformer


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays the same over a run, but for the stream's position."""

    task: experience.Task
    mesh: Mesh
    stream: joined.Joined[pipeline.TrunkBatch]
    chosen: filtering.Filter
    header: np.ndarray

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        return optimizers.make(self.task.config.train.optimizer)

    def counts(self) -> dict[str, float]:
        """What the data pipeline counted, over all hosts."""
        gathered = self.task.hosts.gather(self.stream.counts())
        return self.stream.merged(itertools.chain.from_iterable(gathered))


@dataclasses.dataclass(frozen=True)
class _State(session_lib.LoopState):
    """And for how many steps there was no reward."""

    rewardless: int = 0


def train(
    config: config_lib.Config,
    workdir: pathlib.Path,
    *,
    overrides: dict[str, Any] | None = None,
    stop: cli.StopSignal | None = None,
    team: hosts.Hosts = hosts.ALONE,
) -> dict[str, Any]:
    """Runs (or continues) to the last step or to a stop signal; returns the summary."""
    mesh = sharding.make_mesh(config.mesh, config.train.batch_size)
    with jax.set_mesh(mesh):
        run, begun = _open(config, workdir, mesh, team)
        if team.is_first:
            of_run = (run.task.model, run.task.tokenizer, overrides or {}, "train")
            runs.open_run(workdir, config, *of_run, init_params_sha256=begun.init_params_sha256)
        team.barrier()
        with session_lib.Session(workdir, config, team, stop) as session:
            state = _begin(run, session, begun.params)
            del begun
            began = _as_it_began(run, session, state, workdir)
            if config.positions.proxy == filtering.INIT:
                run = dataclasses.replace(run, chosen=filtering.frozen(run.task.model, began))
            reference = began if config.objective.kl_weight else None
            if state.step == 0:
                session.store.save(_saved(run, session, state))
            while state.step < config.train.steps and not session.must_stop():
                state = _step(run, session, state, reference)
            return _end(run, session, state)


def _open(
    config: config_lib.Config, workdir: pathlib.Path, mesh: Mesh, team: hosts.Hosts
) -> tuple[_Run, loading.Begun]:
    """Everything but a place to write to, and what it begins with.

    What cannot work is found here: documents that are all too short, a template or a budget that
    allows no branch.
    """
    settings = config.train
    init = files.folder(settings.init) if settings.init else None
    begun = loading.begin(config, workdir, init, team)
    template = formats.load_template(config.data.template)
    task = experience.Task(begun.model, config, begun.tokenizer, template, team)
    header = loading.header_ids(begun.tokenizer, template.header, config.data.add_bos)
    shards = loading.own_shards(config.data, settings.batch_size, team.count)
    first = pipeline.trunk_batches(
        loading.open_mixture(settings.mixture),
        begun.tokenizer,
        batch_size=settings.batch_size // config.data.shards,
        seq_len=settings.seq_len,
        header_ids=header,
        min_context=config.positions.min_context,
        seed=config.seed,
        shard_index=shards[0],
        shard_count=config.data.shards,
    )
    chosen = filtering.open_filter(config.positions, begun.tokenizer, mesh)
    stream = joined.Joined(first, shards, config.data.shards)
    beginning = first.get_state()
    filtering.check(chosen, next(first))
    first.set_state(beginning)
    _ = task.tables
    if settings.warmup_steps:
        warmup.make_form(task)
    return _Run(task, mesh, stream, chosen, header), begun


def _begin(run: _Run, session: session_lib.Session, params: Any) -> _State:
    """The state: fresh (after the warm-up, if there is one) or restored; and the log."""
    settings = run.task.config.train
    params = loading.place(run.mesh, run.task.model, params)
    state = _State(
        step=0,
        params=params,
        opt_state=optimizers.init_state(run.optimizer, params),
        book=filtering.account(run.chosen, ledger.Ledger()),
    )
    state, saved, notes = session.restore(state)
    if saved is not None:
        state = dataclasses.replace(state, rewardless=saved["rewardless_steps"])
        notes += loading.restore_stream(run.stream, saved["stream"])
    elif settings.warmup_steps:
        params, book = warmup.warm_up(
            run.task, run.mesh, params, run.stream, state.book, session.stop
        )
        state = dataclasses.replace(state, params=params, book=book)
    if (note := filtering.context_note(run.chosen, run.header, run.task.config)) is not None:
        notes.append(note)
    session.start("rpt", state.step, settings.steps, saved, notes)
    return state


def _saved(run: _Run, session: session_lib.Session, state: _State) -> checkpoint.TrainState:
    """With the states of all hosts' shards, in their order."""
    shards = itertools.chain.from_iterable(session.team.gather(run.stream.get_states()))
    own = {"rewardless_steps": state.rewardless, "stream": list(shards)}
    return session.checkpoint(state, own)


def _as_it_began(
    run: _Run, session: session_lib.Session, state: _State, workdir: pathlib.Path
) -> Any | None:
    """The policy before the first step, the warm-up behind it, if the KL or the filter wants it.

    On disk before any checkpoint of this run, so that a continued run has the same.
    """
    config = run.task.config
    if not config.objective.kl_weight and config.positions.proxy != filtering.INIT:
        return None
    if state.step == 0:
        session.store.save_scaling(0, state.params)
        session.store.wait()
        return state.params
    return checkpoint.load_params(workdir, state.params, step=0)


def _step(run: _Run, session: session_lib.Session, state: _State, reference: Any | None) -> _State:
    """One iteration; this host's rows of the batch, and what they are worth to all."""
    task = run.task
    clock = session.begin_step(state.step + 1)

    # batch: documents, one per trunk row
    batch = next(run.stream)
    inputs = sharding.shard_rows(run.mesh, (batch.tokens_BS, batch.segments_BS, batch.positions_BS))
    clock.lap("data")

    # trunk: keys, values and entropies, once
    scores, kv = scoring.score_trunk(task.model, state.params, *inputs)
    entropy_BS, indexed = filtering.entropies(run.chosen, batch, scores, inputs)
    clock.lap("trunk")

    # experience: cuts -> thoughts -> predictions -> rewards -> advantages
    lived, extra_flops = experience.collect(task, state.params, batch, kv, entropy_BS, state.step)
    before = state.book
    if state.step % task.config.logging.samples_every_steps == 0:
        shown, spent = stepmetrics.samples(
            task, state.params, batch, scores, kv, lived, state.step + 1
        )
        session.log.sample(shown)
        before = before.add("eval", *spent)
    del kv
    clock.lap("rollout")

    # update: trunk and branch micro-batches, then one optimiser step
    learned = _learn(run, state, reference, inputs, batch, lived)
    clock.lap("update")

    # log: everything that says whether thinking pays and whether the numbers can be trusted
    step = state.step + 1
    book = _account(before, run, batch, lived, learned.shapes, reference is not None)
    book = book.add("score", 0, extra_flops)
    watch = state.watch.after_update(learned.loss, learned.norm)
    metrics = {
        **stepmetrics.of_experience(task, batch, scores, lived),
        **stepmetrics.of_update(task, lived, learned.terms, learned.weight),
        "grad_norm": learned.norm,
        "learning_rate_factor": learned.factor,
        "skipped_updates": float(watch.skipped),
        **stepmetrics.of_data(run.counts()),
        **clock.seconds(),
        "training_flops": float(book.training_flops),
    }
    if indexed is not None:
        shares = task.hosts.gather(indexed)
        metrics["indexed_documents"] = sum(shares) / len(shares)
    session.end_step(step, metrics, _note(metrics), clock)
    watch, rewardless = _look(task, session, step, metrics, watch, state.rewardless)

    # save; the end of a run that learns nothing
    state = _State(step, learned.params, learned.opt_state, book, watch, rewardless)
    session.keep(before, state, lambda: _saved(run, session, state))
    return state


class _Learned(NamedTuple):
    """The outcome of an update; `weight` is the sum of this host's token weights, `shapes` are
    the micro-batches'."""

    params: Any
    opt_state: Any
    loss: float
    norm: float
    factor: float
    terms: dict[str, jax.Array]
    weight: float
    shapes: list[tuple[int, int, int]]


def _learn(
    run: _Run,
    state: _State,
    reference: Any | None,
    inputs: tuple[jax.Array, jax.Array, jax.Array],
    batch: pipeline.TrunkBatch,
    lived: experience.Experience,
) -> _Learned:
    """The gradient of all branches over one trunk, and one optimiser step."""
    task, config = run.task, run.task.config
    ntp_weight_BS = objectives.ntp_weights(
        config.objective,
        batch.segments_BS,
        batch.header_length,
        lived.cut_BC,
        lived.valid_BC,
        task.hosts.total,
    )
    trunk = update.TrunkInputs(*inputs, sharding.shard_rows(run.mesh, ntp_weight_BS))
    batches = experience.training_batches(task, lived)
    weight = float(sum(micro.weight_BRT.sum() for micro in batches))
    batches = [sharding.shard_rows(run.mesh, micro) for micro in batches]
    temperature = config.rollout.temperature or 1.0
    if reference is not None:
        batches = update.with_reference(task.model, temperature, reference, trunk, batches)
    grads, terms = update.gradients(
        task.model, config.objective, temperature, state.params, trunk, batches
    )
    settings = config.train.optimizer
    factor = optimizers.factor(settings, state.step, config.train.steps - settings.decay_steps)
    loss = terms["loss"] + config.objective.ntp_weight * terms["ntp"]
    params, opt_state, norm = update.apply(
        run.optimizer, state.params, state.opt_state, grads, factor, loss
    )
    jax.block_until_ready(params)
    shapes = [micro.tokens_BRT.shape for micro in batches]
    return _Learned(params, opt_state, float(loss), float(norm), factor, terms, weight, shapes)


def _note(metrics: dict[str, float]) -> str:
    return (
        f"reward {metrics['reward']:.3f}  no-think {metrics['no_think_accuracy']:.3f}  "
        f"mixed {metrics['groups_mixed']:.2f}"
    )


def _look(
    task: experience.Task,
    session: session_lib.Session,
    step: int,
    metrics: dict[str, float],
    watch: watch_lib.Watch,
    rewardless: int,
) -> tuple[watch_lib.Watch, int]:
    """Alarms, and a diagnosis after every 20 steps in a row without any reward."""
    watch, alarms = watch.after_step(task.config.watch, step, metrics)
    for line in alarms:
        session.log.say(line)
    rewardless = 0 if metrics["accuracy"] > 0 else rewardless + 1
    if rewardless and rewardless % 20 == 0:
        session.log.say(stepmetrics.diagnosis(task, metrics, rewardless))
    return watch, rewardless


def _end(run: _Run, session: session_lib.Session, state: _State) -> dict[str, Any]:
    own = {
        "command": "train",
        "data": run.counts(),
        "mixture_events": run.stream.events,
        "parameters": transformer.num_parameters(run.task.model),
    }
    finished = state.step >= run.task.config.train.steps
    return session.finish(state, lambda: _saved(run, session, state), finished, own)


def _account(
    book: ledger.Ledger,
    run: _Run,
    batch: pipeline.TrunkBatch,
    lived: experience.Experience,
    shapes: list[tuple[int, int, int]],
    referenced: bool,
) -> ledger.Ledger:
    """Everything the step executed on all hosts, by kind, and the same as separate rows."""
    task, model, proxy = run.task, run.task.model, run.chosen.proxy
    B, S = task.config.train.batch_size, task.config.train.seq_len
    scored = ledger.trunk_flops(model, B, S, passes=1)
    if proxy is not None:
        scored += ledger.trunk_flops(proxy.model, B, S, passes=1)
    book = book.add("score", B * S * (1 if proxy is None else 2), scored)
    book = book.add("rollout", *ledger.decode_flops(model, B, S, lived.result.decode_steps))
    tokens, flops = ledger.branch_update_flops(model, S, shapes)
    if referenced:  # forward passes only
        book = book.add("score", tokens + B * S, flops // 3)
        book = book.add("score", 0, ledger.trunk_flops(model, B, S, passes=1))
    flops += ledger.trunk_flops(model, B, S, passes=3)
    book = book.add("update", tokens + B * S, flops)
    G = task.config.rollout.group_size
    cut_BR, length_BR = np.repeat(lived.cut_BC, G, axis=1), lived.result.length_BR
    trained_BR = np.repeat(lived.trained_BC, G, axis=1)
    rows = sum(
        ledger.row_flops(model, int(cut), int(length), bool(trained))
        for cut, length, trained in zip(cut_BR.flat, length_BR.flat, trained_BR.flat, strict=True)
        if length
    )
    documents = int((batch.lengths_B - batch.header_length).clip(0).sum())
    sums = task.hosts.total({"rows": rows, "documents": documents})
    # Scoring is the same either way, and next-token prediction a row of its own.
    ntp = ledger.trunk_flops(model, B, S, passes=3) if task.config.objective.ntp_weight else 0
    return book.add_documents(sums["documents"]).add_rows(sums["rows"] + scored + ntp)


def main(argv: list[str]) -> None:
    del argv
    config = config_lib.from_config_dict(_CONFIG.value)
    with hosts.joined(_HOSTS.value) as team:
        summary = train(
            config,
            files.folder(_WORKDIR.value),
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
    _HOSTS = cli.define_hosts()
    flags.mark_flag_as_required("config")
    cli.run(main)
