"""Rollouts: G thoughts at every cut of every document, decoded together over one trunk.

All branches of a batch advance in lockstep: position t of every branch is computed at once, so
the cache is written with one slice per step and the trunk is read once per document. What a branch
passes through stands in rpt/phases.py. Decoding runs in chunks; between chunks one scalar reaches
the host, finished branches are compacted away within each document, and the branch cache grows to
its next bucket.
"""

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernels.branch_attention import api as branch_attention
from kernels.sample import noise
from rpt import branch_cache, formats, ops, phases, sharding
from rpt.model import config as config_lib
from rpt.model import decoding, transformer


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How thoughts are sampled. Token counts are per branch.

    `chunk_tokens` is the first bucket of branch positions; each later bucket doubles, and the last
    holds the longest branch. top_k=0 and top_p=1 leave the distribution whole; temperature 0 is
    greedy.
    """

    group_size: int
    think_tokens: int
    answer_format: formats.AnswerFormat = "token"
    answer_tokens: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    on_budget: Literal["force_close", "zero_reward"] = "force_close"
    chunk_tokens: int = 16

    def __post_init__(self):
        if min(self.group_size, self.think_tokens, self.answer_tokens, self.chunk_tokens) < 1:
            raise ValueError(f"group size and token counts of a rollout must be positive: {self}")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                "rollout needs temperature >= 0, 0 < top_p <= 1 and top_k >= 0, got "
                f"{self.temperature}, {self.top_p}, {self.top_k}"
            )


class Sampler(NamedTuple):
    """What all rollouts over the same trunk under the same parameters share, of `make_sampler`."""

    copy: decoding.SamplingCopy
    kv_LBSKH: transformer.KeyValues
    trunk: tuple[branch_attention.Trunk, ...]


class Rollout(NamedTuple):
    """Finished branches as numpy. Positions from `tail_length` on are the model's or forced.

    sampled_BRT marks tokens that were sampled (they are in the loss); log_prob_BRT is their
    log-probability under the distribution really sampled from, threshold_BRT its truncation;
    best_BRT is the most probable token there; target_log_prob_BRT the untempered log-probability
    of the branch's target token (zeros unless targets were given); answer_start_BR is -1 when
    no answer was begun. decode_steps lists (positions computed, branches per document, cache
    length) of every chunk, for the ledger.
    """

    tokens_BRT: np.ndarray
    sampled_BRT: np.ndarray
    log_prob_BRT: np.ndarray
    threshold_BRT: np.ndarray
    best_BRT: np.ndarray
    target_log_prob_BRT: np.ndarray
    length_BR: np.ndarray
    answer_start_BR: np.ndarray
    over_budget_BR: np.ndarray
    tail_length: int
    decode_steps: tuple[tuple[int, int, int], ...]


def total_positions(config: RolloutConfig, tables: phases.Tables) -> int:
    """T: the longest branch possible, tail and forced tokens included."""
    forced = tables.forced_ids.shape[0]
    return tables.tail_ids.shape[0] + config.think_tokens + forced + config.answer_tokens


def branch_keys(
    seed: int, step: int, round_: int, document_ids_B: np.ndarray, cut_BR: np.ndarray, group: int
) -> jax.Array:
    """Noise keys [B, R, 2] of (run seed, step, round, document, cut, sample index).

    Each of several processes gives its own rows; the keys are those of all.
    """
    B, R = cut_BR.shape
    ids = np.broadcast_to(np.asarray(document_ids_B, np.uint64)[:, None], (B, R))
    sample = np.broadcast_to(np.arange(R) % group, (B, R))
    words = (ids >> np.uint64(32), ids & np.uint64(0xFFFFFFFF), cut_BR, sample)
    words_BR = sharding.put_rows([word.astype(np.uint32) for word in words])
    B = len(words_BR[0])
    keys = noise.root_keys(seed, B * R)
    for word in (step, round_):
        keys = noise.fold(keys, jnp.full(B * R, word, jnp.uint32))
    for word_BR in words_BR:
        keys = noise.fold(keys, word_BR.reshape(-1))
    return keys.reshape(B, R, 2)


def make_sampler(
    model: config_lib.ModelConfig, params: transformer.Params, kv_LBSKH: transformer.KeyValues
) -> Sampler:
    """The sampling copy of the parameters, and the trunk as decoding reads it.

    Under a mesh the copy is gathered from the chips, so it is made once for all rounds of a step.

    Args:
      model: static model shape.
      params: as they are trained.
      kv_LBSKH: the trunk's keys and values under the same parameters.
    """
    return Sampler(
        copy=decoding.sampling_copy(model, params),
        kv_LBSKH=kv_LBSKH,
        trunk=decoding.prepare_trunk(model, kv_LBSKH),
    )


def rollout(
    model: config_lib.ModelConfig,
    config: RolloutConfig,
    sampler: Sampler,
    tables: phases.Tables,
    cut_BC: np.ndarray,
    valid_BC: np.ndarray,
    *,
    seed: int,
    step: int,
    document_ids_B: np.ndarray,
    round_: int = 0,
    target_BC: np.ndarray | None = None,
    branch_multiple: int = 1,
) -> Rollout:
    """Samples `group_size` thoughts and answers at every valid cut.

    Each of several processes gives and gets its own rows of the arrays of numpy; `sampler` is of
    all.

    Args:
      model: static model shape.
      config: static sampling settings.
      sampler: of `make_sampler`.
      tables: of `phases.make_tables`.
      cut_BC: trunk positions; the branches of cut c see positions [0, c) of their row.
      valid_BC: slots without a cut decode nothing.
      seed, step, document_ids_B, round_: identity of the noise, see `branch_keys`.
      target_BC: token ids whose probability is recorded at every position, for evaluation.
      branch_multiple: buckets of R are multiples of it (for sharding R).
    """
    G = config.group_size
    hi_BR = np.repeat(cut_BC, G, axis=1).astype(np.int32)
    live_BR = np.repeat(valid_BC, G, axis=1)
    target_BR = None if target_BC is None else np.repeat(target_BC, G, axis=1)
    keys = branch_keys(seed, step, round_, document_ids_B, hi_BR, G)
    T = total_positions(config, tables)
    tail = int(tables.tail_ids.shape[0])
    sizes = branch_cache.ladder(config.chunk_tokens + tail, T)
    of_rows = sharding.put_rows((hi_BR, live_BR))
    target_BR = None if target_BR is None else sharding.put_rows(target_BR)
    branches, cache = start(model, tables, *of_rows, keys, target_BR, T, sizes[0])
    finished = branches
    decode_steps = []
    if tail > 1:
        cache = prefill(
            model, sampler.copy, sampler.kv_LBSKH, cache, branches, tables.tail_ids[:-1]
        )
        decode_steps.append((tail - 1, hi_BR.shape[1], 0))
    t = tail - 1
    for i, size in enumerate(sizes):
        if i:
            cache = branch_cache.grow(cache, size)
        branches, cache, end, live = decode(
            model, config, sampler.copy, tables, sampler.trunk, cache, branches, jnp.int32(t),
            size, target_BC is not None,
        )  # fmt: skip
        live, end = int(live), int(end)
        decode_steps.append((end - t, branches.slot_BR.shape[1], size))
        t = end
        if not live:
            break
        keep = branch_cache.width(live, hi_BR.shape[1], branch_multiple)
        if keep < branches.slot_BR.shape[1]:
            finished, branches, order_BR = _compact(finished, branches, keep)
            cache = branch_cache.take(cache, order_BR)
    out = _scatter(finished, branches)
    return Rollout(
        **sharding.own_rows({name: getattr(out, name) for name in Rollout._fields[:9]}),
        tail_length=tail,
        decode_steps=tuple(decode_steps),
    )


@functools.partial(jax.jit, static_argnames=("model", "T", "size"))
def start(
    model, tables, hi_BR, live_BR, key_BR2, target_BR, T, size
) -> tuple[phases.Branches, decoding.Cache]:
    """Branches of T positions at their beginning, and an empty cache of `size` positions."""
    B, R = hi_BR.shape
    tail = tables.tail_ids.shape[0]
    zeros_BR = jnp.zeros((B, R), jnp.int32)
    float_BRT = jnp.zeros((B, R, T), jnp.float32)
    tokens_BRT = jnp.zeros((B, R, T), jnp.int32).at[:, :, :tail].set(tables.tail_ids)
    branches = phases.Branches(
        slot_BR=jnp.broadcast_to(jnp.arange(R, dtype=jnp.int32), (B, R)),
        lo_BR=zeros_BR,
        hi_BR=hi_BR,
        key_BR2=key_BR2,
        target_BR=zeros_BR if target_BR is None else target_BR.astype(jnp.int32),
        phase_BR=jnp.where(live_BR, phases.THINK, phases.DONE).astype(jnp.int32),
        match_BR=zeros_BR,
        forced_BR=zeros_BR,
        sampled_count_BR=zeros_BR,
        length_BR=jnp.where(live_BR, tail, 0).astype(jnp.int32),
        answer_start_BR=zeros_BR - 1,
        over_budget_BR=jnp.zeros((B, R), bool),
        tokens_BRT=tokens_BRT,
        sampled_BRT=jnp.zeros((B, R, T), bool),
        log_prob_BRT=float_BRT,
        threshold_BRT=jnp.full((B, R, T), -jnp.inf, jnp.float32),
        best_BRT=jnp.zeros((B, R, T), jnp.int32),
        target_log_prob_BRT=float_BRT,
    )
    return ops.split_rows((branches, decoding.empty_cache(model, B, R, size)))


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames=("cache",))
def prefill(model, copy, kv_LBSKH, cache, branches, ids) -> decoding.Cache:
    """Runs the tail but its last token, which is the first input of the decode loop."""
    lo_BR, hi_BR = branches.lo_BR, branches.hi_BR
    tokens_BRT = jnp.broadcast_to(ids, (*hi_BR.shape, ids.shape[0]))
    return decoding.prefill(model, copy, kv_LBSKH, cache, tokens_BRT, lo_BR, hi_BR, hi_BR - lo_BR)


@functools.partial(
    jax.jit,
    static_argnames=("model", "config", "size", "record"),
    donate_argnames=("cache",),
)
def decode(model, config, copy, tables, trunk, cache, branches, t, size, record):
    """Decodes until the cache of `size` positions is full or every branch has ended.

    Returns branches, cache, the position reached, and the largest number of live branches of a
    document.
    """
    last = min(size, branches.tokens_BRT.shape[2] - 1)
    lo_BR, hi_BR = branches.lo_BR, branches.hi_BR
    rotations = decoding.rotations(model, trunk, size)

    def body(state):
        branches, cache, t = state
        token_BR = jax.lax.dynamic_index_in_dim(branches.tokens_BRT, t, axis=2, keepdims=False)
        hidden_BRD, cache = decoding.step(
            model, copy, trunk, cache, token_BR, lo_BR, hi_BR, hi_BR - lo_BR, t, rotations
        )
        hidden_MD = hidden_BRD.reshape(-1, hidden_BRD.shape[-1])
        branches = phases.advance(
            config, tables, branches, hidden_MD, copy.unembedding_VD, t + 1, record
        )
        return branches, cache, t + 1

    def unfinished(state):
        branches, _, t = state
        return (t < last) & jnp.any(branches.phase_BR != phases.DONE)

    branches, cache, t = jax.lax.while_loop(unfinished, body, (branches, cache, t))
    live = jnp.max(jnp.sum(branches.phase_BR != phases.DONE, axis=1))
    return branches, cache, t, live


@jax.jit
def _scatter(finished: phases.Branches, branches: phases.Branches) -> phases.Branches:
    """Writes (possibly compacted) branches back to their original slots."""

    def put(full, part):
        return jax.vmap(lambda f, p, slot: f.at[slot].set(p))(full, part, branches.slot_BR)

    return jax.tree.map(put, finished, branches)


@functools.partial(jax.jit, static_argnames=("keep",))
def _compact(finished, branches, keep) -> tuple[phases.Branches, phases.Branches, jax.Array]:
    """The first `keep` branches of every document, live ones first, and their order [B, keep]."""
    finished = _scatter(finished, branches)
    order_BR = jnp.argsort(branches.phase_BR == phases.DONE, axis=1, stable=True)[:, :keep]

    def take(x):
        return jax.vmap(lambda row, order: row[order])(x, order_BR)

    return finished, jax.tree.map(take, branches), order_BR
