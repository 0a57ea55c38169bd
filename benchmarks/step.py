"""Seconds of one whole RPT step, in trunk and branches and as other stacks lay it out.

    python -m benchmarks.step --workload=W1 --layout=trunk
    python -m benchmarks.step --workload=W1 --layout=rows
    python -m benchmarks.step --workload=W1 --layout=group

trunk   the document once, every thought a branch of it: what rpt.train does
rows    every thought a row of its own, prompt and all, in prefill, decoding and update
group   the prompt shared within a group for prefill and decoding (prefix cache), rows in the update

The same model code does the same work in all three: prefill, sample T tokens per thought, read and
score the predictions, then one AdamW step on all sampled tokens. Rows get what costs nothing: no
padding in prefill and update, the head on sampled tokens only, no entropies (the trunk layout
computes them, because RPT needs them), all rows decoded together, their caches as long as the
longest prompt's. Advantages are random, so that every thought is trained on. Each call measures one
layout; its peak memory is its own.
`mismatch_max_nats` is the largest difference of a token's log-probability in sampler and trainer
(trunk layout only).
"""

import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import report, workloads
from rpt import (
    cli,
    ledger,
    objectives,
    ops,
    optimizers,
    predictions,
    rewards,
    rollout,
    scoring,
    update,
)
from rpt.model import transformer

_WORKLOAD = flags.DEFINE_enum("workload", "W1", list(workloads.WORKLOADS), "What is done.")
_LAYOUT = flags.DEFINE_enum("layout", "trunk", ["trunk", "rows", "group"], "How it is laid out.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
_WEIGHTS = flags.DEFINE_string("weights", "", "Such as fetch:smollm2; random when empty.")
_REPEATS = flags.DEFINE_integer(
    "repeats", 3, "Timed steps, after one that compiles; the best counts. 0 counts that one."
)
_TOKENS = flags.DEFINE_integer(
    "micro_tokens", 2048, "Most tokens in one micro-batch of the update."
)

OBJECTIVE = objectives.ObjectiveConfig()


class Prefilled(NamedTuple):
    """Trunk rows for the rollout: keys and values, the cuts of each row, thoughts per cut."""

    kv_LBSKH: transformer.KeyValues
    cut_BC: np.ndarray
    group: int


class Bench:
    """One model and one workload; the methods are the parts of a step."""

    def __init__(self, model, params, workload: workloads.Workload, layout: str):
        self.model, self.params, self.workload, self.layout = model, params, workload, layout
        self.document_S = workloads.document(model, workload.trunk)
        self.tables = workloads.tables(model)
        # Every id has bytes of its own; which ones does not matter to the time.
        self.token_bytes = [b"%05d" % i for i in range(model.vocab_size)]
        self.optimizer = optimizers.make(optimizers.OptimizerConfig(learning_rate=1e-6))
        self.opt_state = optimizers.init_state(self.optimizer, params)
        R = len(workload.cuts) * workload.group
        self.advantage_R = np.random.default_rng(1).normal(size=R).astype(np.float32)
        self.flops, self.tokens = 0, 0
        self.mismatch = float("nan")

    def count(self, tokens_flops: tuple[int, int]) -> None:
        self.tokens += tokens_flops[0]
        self.flops += tokens_flops[1]

    def prefill(self) -> Prefilled:
        cuts, G = self.workload.cuts, self.workload.group
        if self.layout == "trunk":
            _, kv = scoring.score_trunk(self.model, self.params, *_rows(self.document_S[None]))
            S = len(self.document_S)
            self.count((S, ledger.trunk_flops(self.model, 1, S, passes=1)))
            return Prefilled(kv, np.array([cuts]), G)
        copies = G if self.layout == "rows" else 1
        parts = []
        for cut in cuts:
            tokens_BS = np.tile(self.document_S[:cut], (copies, 1))
            parts.append(_prompt(self.model, self.params, *_rows(tokens_BS)))
            flops = ledger.forward_flops(self.model, copies * cut, cut, head=False)
            self.count((copies * cut, flops))
        kv = _stack(parts, max(cuts))
        return Prefilled(kv, np.repeat(np.array(cuts), copies)[:, None], G // copies)

    def think(self, prefilled: Prefilled) -> rollout.Rollout:
        kv, cut_BC, group = prefilled
        settings = workloads.settings(self.workload, group)
        sampler = rollout.make_sampler(self.model, self.params, kv)
        result = rollout.rollout(
            self.model, settings, sampler, self.tables, cut_BC, np.ones_like(cut_BC, bool),
            seed=0, step=0, document_ids_B=np.arange(len(cut_BC)),
        )  # fmt: skip
        S = kv.keys.shape[2]
        self.count(ledger.decode_flops(self.model, len(cut_BC), S, result.decode_steps))
        return result

    def reward(self, result: rollout.Rollout, cut_BC: np.ndarray) -> np.ndarray:
        valid_BC = np.ones_like(cut_BC, bool)
        read = predictions.read(
            result, self.token_bytes, frozenset(), workloads.TEMPLATE, "token", valid_BC, 1
        )
        documents = [self.document_S] * len(cut_BC)
        targets = predictions.targets(documents, 0, cut_BC, valid_BC, self.token_bytes)
        shape = (*cut_BC.shape, result.tokens_BRT.shape[1] // cut_BC.shape[1])
        return rewards.score("prefix_match", rewards.RewardBatch(read, targets, shape, None, 0.0))

    def learn(self, result: rollout.Rollout) -> Any:
        R = self.advantage_R.size
        flat = lambda x: x.reshape(1, R, *x.shape[2:])  # noqa: E731
        sampled = flat(result.sampled_BRT)
        micro = update.MicroBatch(
            tokens_BRT=flat(result.tokens_BRT),
            weight_BRT=(sampled / sampled.sum()).astype(np.float32),
            behaviour_BRT=flat(result.log_prob_BRT),
            threshold_BRT=None,
            reference_BRT=None,
            advantage_BR=self.advantage_R[None],
            hi_BR=np.repeat(self.workload.cuts, self.workload.group)[None].astype(np.int32),
        )
        grads = (
            self._trunk_gradients(micro) if self.layout == "trunk" else self._row_gradients(micro)
        )
        return grads

    def _trunk_gradients(self, micro: update.MicroBatch) -> Any:
        R, T = micro.tokens_BRT.shape[1:]
        batches = update.micro_batches(
            micro, np.full((1, R), T), min(R, max(1, _TOKENS.value // T)), t_multiple=1
        )
        trunk = update.TrunkInputs(
            *_rows(self.document_S[None]), np.zeros((1, len(self.document_S)), np.float32)
        )
        S = len(self.document_S)
        shapes = [batch.tokens_BRT.shape for batch in batches]
        self.count(ledger.branch_update_flops(self.model, S, shapes))
        self.count((S, ledger.trunk_flops(self.model, 1, S, passes=3)))
        grads, terms = update.gradients(self.model, OBJECTIVE, 1.0, self.params, trunk, batches)
        self.mismatch = float(terms["mismatch_max"])
        return grads

    def _row_gradients(self, micro: update.MicroBatch) -> Any:
        T = micro.tokens_BRT.shape[-1]
        total = _zeros(self.params)
        for c, cut in enumerate(self.workload.cuts):
            group = slice(c * self.workload.group, (c + 1) * self.workload.group)
            rows = jax.tree.map(lambda x, group=group: x[0, group], micro)
            size = max(1, min(self.workload.group, _TOKENS.value // (cut + T)))
            for first in range(0, self.workload.group, size):
                part = jax.tree.map(lambda x, first=first, size=size: x[first : first + size], rows)
                B = len(part.tokens_BRT)
                tokens_BS = np.tile(self.document_S[:cut], (B, 1))
                tokens_BS = np.concatenate([tokens_BS, part.tokens_BRT], axis=1)
                total = _row_step(self.model, self.params, total, *_rows(tokens_BS), part)
                trunk = ledger.forward_flops(self.model, tokens_BS.size, cut + T, head=False)
                head = ledger.forward_flops(self.model, B * T, 0) - ledger.forward_flops(
                    self.model, B * T, 0, head=False
                )
                self.count((tokens_BS.size, 3 * (trunk + head)))
        return total

    def step(self) -> dict[str, float]:
        """Seconds of every part; parameters and optimiser state are replaced."""
        self.flops = self.tokens = 0
        laps, began = {}, time.perf_counter()

        def lap(name, result):
            nonlocal began
            jax.block_until_ready(result)
            now = time.perf_counter()
            laps[name], began = now - began, now

        prefilled = self.prefill()
        lap("prefill", prefilled.kv_LBSKH)
        result = self.think(prefilled)
        cut_BC = prefilled.cut_BC
        del prefilled
        lap("rollout", None)
        self.reward(result, cut_BC)
        lap("reward", None)
        grads = self.learn(result)
        lap("gradients", grads)
        self.params, self.opt_state, _ = update.apply(
            self.optimizer, self.params, self.opt_state, grads, 1.0
        )
        lap("optimizer", self.params)
        return laps


def _rows(tokens_BS: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """tokens, segments and positions of rows without padding."""
    positions_BS = np.broadcast_to(np.arange(tokens_BS.shape[1], dtype=np.int32), tokens_BS.shape)
    return tokens_BS, np.ones_like(tokens_BS), positions_BS


@functools.partial(jax.jit, static_argnames=("model",))
def _prompt(model, params, tokens_BS, segments_BS, positions_BS) -> transformer.KeyValues:
    return transformer.trunk(model, params, tokens_BS, segments_BS, positions_BS)[1]


@functools.partial(jax.jit, static_argnames=("length",))
def _stack(parts: list[transformer.KeyValues], length: int) -> transformer.KeyValues:
    def padded(x):
        return jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0), (0, 0)))

    return jax.tree.map(lambda *xs: jnp.concatenate([padded(x) for x in xs], axis=1), *parts)


@jax.jit
def _zeros(params) -> Any:
    return jax.tree.map(jnp.zeros_like, params)


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames=("total",))
def _row_step(model, params, total, tokens_BS, segments_BS, positions_BS, part: update.MicroBatch):
    """Adds the gradient of the policy loss of whole rows that end in part's tokens."""
    T = part.tokens_BRT.shape[-1]

    def loss(params):
        hidden_BSD, _ = transformer.trunk(model, params, tokens_BS, segments_BS, positions_BS)
        # Targets are branch tokens 1..T-1: token 0 is the tail's, as in the trunk layout.
        result = ops.logprob(
            hidden_BSD[:, -T:-1].reshape(-1, hidden_BSD.shape[-1]),
            transformer.unembedding(model, params),
            part.tokens_BRT[:, 1:].reshape(-1),
        )
        flat = lambda x: x[:, 1:].reshape(-1)  # noqa: E731
        advantage_BT = jnp.broadcast_to(part.advantage_BR[:, None], part.tokens_BRT.shape)
        return objectives.policy_terms(
            OBJECTIVE, result.log_prob_M, flat(part.behaviour_BRT), flat(advantage_BT),
            flat(part.weight_BRT), jax.lax.stop_gradient(result.entropy_M), None,
        ).loss  # fmt: skip

    return jax.tree.map(jnp.add, total, jax.grad(loss)(params))


def main(argv: list[str]) -> None:
    del argv
    workload = workloads.WORKLOADS[_WORKLOAD.value]
    bench = Bench(*workloads.load(_WEIGHTS.value, _DTYPE.value), workload, _LAYOUT.value)
    began = time.perf_counter()
    first_laps = bench.step()
    first = time.perf_counter() - began
    steps = [bench.step() for _ in range(_REPEATS.value)] or [first_laps]
    best = min(steps, key=lambda laps: sum(laps.values()))
    total = sum(best.values())
    row = {
        "layout": _LAYOUT.value,
        "dtype": _DTYPE.value,
        "seconds": total,
        **best,
        "first_step_seconds": first,
        "tokens": bench.tokens,
        "TFLOP": bench.flops / 1e12,
        "GFLOP/s": bench.flops / total / 1e9,
        "peak_GB": report.peak_bytes() / 1e9,
        "mismatch_max_nats": bench.mismatch,
    }
    report.show(f"{_WORKLOAD.value}: {workload}; one AdamW step", [row])


if __name__ == "__main__":
    cli.run(main)
