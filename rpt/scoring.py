"""What one trunk pass says about every position: entropies, no-think prediction, likelihood.

Three quantities are kept apart (docs/architecture.md). `entropy_BS` is over the full vocabulary
and serves as bin_entropy (under the frozen reference) and gate_entropy (under the policy);
`filter_entropy_BS` is over the 16 most probable tokens, renormalised, and selects training
positions (RPT, arXiv 2506.08007, section 3.3). Both are in nats.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.logprob import api as logprob
from rpt import ops
from rpt.model import config as config_lib
from rpt.model import transformer

FILTER_TOP = 16


class TrunkScores(NamedTuple):
    """Entry c describes the prediction of trunk token c from the tokens before it; entry 0 is 0.

    entropy and filter_entropy in nats; best: the most probable token; target_log_prob: of the
    token that stands there.
    """

    entropy_BS: jax.Array
    filter_entropy_BS: jax.Array
    best_BS: jax.Array
    target_log_prob_BS: jax.Array


@functools.partial(jax.jit, static_argnames=("model",))
def score_trunk(
    model: config_lib.ModelConfig,
    params: transformer.Params,
    tokens_BS: jax.Array,
    segments_BS: jax.Array,
    positions_BS: jax.Array,
) -> tuple[TrunkScores, transformer.KeyValues]:
    """One trunk pass: the scores of every position, and the keys and values for branches."""
    hidden_BSD, kv = transformer.trunk(model, params, tokens_BS, segments_BS, positions_BS)
    unembedding_VD = transformer.unembedding(model, params)
    B, S, D = hidden_BSD.shape
    hidden_MD = hidden_BSD.reshape(-1, D)
    target_M = transformer.next_tokens(tokens_BS).reshape(-1)
    found = ops.score(hidden_MD, unembedding_VD, target_M, top=min(FILTER_TOP, len(unembedding_VD)))
    log_probs_MK = jax.nn.log_softmax(found.top_logits_MK, axis=-1)
    scores = TrunkScores(
        entropy_BS=found.entropy_M,
        filter_entropy_BS=-jnp.sum(jnp.exp(log_probs_MK) * log_probs_MK, axis=-1),
        best_BS=found.top_ids_MK[:, 0],
        target_log_prob_BS=found.log_prob_M,
    )

    def of_targets(x_M: jax.Array) -> jax.Array:
        return jnp.pad(x_M.reshape(B, S)[:, :-1], ((0, 0), (1, 0)))

    return jax.tree.map(of_targets, scores), kv


@functools.partial(jax.jit, static_argnames=("model",))
def no_think_probs(
    model: config_lib.ModelConfig,
    params: transformer.Params,
    tokens_BS: jax.Array,
    segments_BS: jax.Array,
    positions_BS: jax.Array,
    cut_BC: jax.Array,
    ids_BCG: jax.Array,
) -> jax.Array:
    """P(id | trunk[:cut]) of given tokens [B, C, G], for the dense rewards; an extra trunk pass."""
    hidden_BSD, _ = transformer.trunk(model, params, tokens_BS, segments_BS, positions_BS)
    hidden_BCD = jnp.take_along_axis(hidden_BSD, cut_BC[..., None] - 1, axis=1)
    logits_BCV = logprob.logits(hidden_BCD, transformer.unembedding(model, params))
    return jnp.take_along_axis(jax.nn.softmax(logits_BCV, axis=-1), ids_BCG, axis=-1)


@functools.partial(jax.jit, static_argnames=("model",))
def probs_after_thoughts(
    model: config_lib.ModelConfig,
    params: transformer.Params,
    kv_LBSKH: transformer.KeyValues,
    tokens_BCGT: jax.Array,
    cut_BC: jax.Array,
    answer_start_BCG: jax.Array,
    target_BC: jax.Array,
) -> jax.Array:
    """P(target | trunk[:cut], branch[:answer_start]), [B, C, G]; for people, not for the update.

    B may be less than the trunk's: its first documents. One cut's group is run at a time. Where no
    answer was begun (answer_start < 1) the value means nothing.
    """
    B, _, G, _ = tokens_BCGT.shape
    unembedding_VD = transformer.unembedding(model, params)
    kv_LBSKH = jax.tree.map(lambda x: x[:, :B], kv_LBSKH)

    def one_cut(group: tuple[jax.Array, ...]) -> jax.Array:
        tokens_BGT, cut_B, start_BG, target_B = group
        hi_BG = jnp.broadcast_to(cut_B[:, None], (B, G))
        hidden_BGTD, _ = transformer.branch(
            model, params, kv_LBSKH, tokens_BGT, jnp.zeros_like(hi_BG), hi_BG, hi_BG
        )
        # A token is predicted by the position before it.
        last_BG11 = jnp.maximum(start_BG - 1, 0)[..., None, None]
        hidden_BGD = jnp.take_along_axis(hidden_BGTD, last_BG11, axis=2)[:, :, 0]
        label_M = jnp.repeat(target_B, G)
        found = ops.logprob(hidden_BGD.reshape(B * G, -1), unembedding_VD, label_M)
        return jnp.exp(found.log_prob_M).reshape(B, G)

    by_cut = [jnp.moveaxis(x, 1, 0) for x in (tokens_BCGT, cut_BC, answer_start_BCG, target_BC)]
    return jnp.moveaxis(jax.lax.map(one_cut, tuple(by_cut)), 0, 1)
