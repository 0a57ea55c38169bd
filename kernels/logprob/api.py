"""Log-probabilities of labels under softmax(hidden @ unembedding.T / temperature).

Logits [M, V] of a training step do not fit in memory for real vocabularies, so rows are taken
in chunks and recomputed in the backward pass: peak memory is one chunk of logits.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

# 2**23 float32 logits are 32 MB: a chunk fits a cache-friendly buffer and still fills the matmul.
_CHUNK_LOGITS = 2**23

T = TypeVar("T")


class LogProb(NamedTuple):
    """All [M] in float32: log-probability of the label, log-sum-exp of the tempered logits, and
    entropy in nats of the (truncated) distribution."""

    log_prob_M: jax.Array
    log_sum_exp_M: jax.Array
    entropy_M: jax.Array


def logprob(
    hidden_MD: jax.Array,
    unembedding_VD: jax.Array,
    labels_M: jax.Array,
    *,
    temperature: float = 1.0,
    threshold_M: jax.Array | None = None,
) -> LogProb:
    """Differentiable in hidden and unembedding.

    Args:
      hidden_MD: final hidden states.
      unembedding_VD: the head.
      labels_M: int32 ids.
      temperature: divides the logits.
      threshold_M: where the sampler truncated: tempered logits below it leave the distribution
        (the label itself always stays). The renormaliser is differentiated.
    """
    rows = [hidden_MD, labels_M] + ([] if threshold_M is None else [threshold_M])
    one = functools.partial(logprob_rows, unembedding_VD, temperature=temperature)
    return map_rows(one, rows, unembedding_VD.shape[0])


def map_rows(function: Callable[..., T], rows: Sequence[jax.Array], vocab_size: int) -> T:
    """`function(*rows)` over chunks of rows whose logits fit one buffer, recomputed backward.

    Args:
      function: takes arrays [m, ...] and returns a tree of arrays [m].
      rows: arrays [M, ...] of equal M.
      vocab_size: logits per row.
    """
    M = rows[0].shape[0]
    # Equal chunks: a last one that is nearly empty would cost as much as a full one.
    count = max(1, -(-M * vocab_size // _CHUNK_LOGITS))
    chunk = -(-M // count)
    if count == 1:
        return function(*rows)
    pad = count * chunk - M
    chunked = [
        jnp.pad(x, ((0, pad),) + ((0, 0),) * (x.ndim - 1)).reshape(count, chunk, *x.shape[1:])
        for x in rows
    ]
    body = jax.checkpoint(lambda xs: function(*xs), prevent_cse=False)
    return jax.tree.map(lambda x: x.reshape(-1)[:M], jax.lax.map(body, chunked))


def logprob_rows(
    unembedding_VD: jax.Array,
    hidden_MD: jax.Array,
    labels_M: jax.Array,
    threshold_M: jax.Array | None = None,
    *,
    temperature: float,
) -> LogProb:
    """The oracle: all logits of the given rows at once."""
    logits_MV = logits(hidden_MD, unembedding_VD) * (1.0 / temperature)
    if threshold_M is not None:
        ids_V = jnp.arange(logits_MV.shape[1])
        kept = (logits_MV >= threshold_M[:, None]) | (ids_V == labels_M[:, None])
        logits_MV = jnp.where(kept, logits_MV, -1e30)
    log_sum_exp_M = jax.nn.logsumexp(logits_MV, axis=-1)
    label_M = jnp.take_along_axis(logits_MV, labels_M[:, None], axis=-1)[:, 0]
    log_probs_MV = logits_MV - log_sum_exp_M[:, None]
    entropy_M = -jnp.sum(jnp.exp(log_probs_MV) * log_probs_MV, axis=-1)
    return LogProb(label_M - log_sum_exp_M, log_sum_exp_M, entropy_M)


def logits(hidden_MD: jax.Array, unembedding_VD: jax.Array) -> jax.Array:
    """Float32 logits [M, V]; operands stay in hidden's dtype."""
    return jnp.einsum(
        "...D,VD->...V",
        hidden_MD,
        unembedding_VD.astype(hidden_MD.dtype),
        preferred_element_type=jnp.float32,
    )
