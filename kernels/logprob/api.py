"""Log-probabilities of labels under softmax(hidden @ unembedding.T / temperature).

Logits [M, V] of a training step do not fit in memory for real vocabularies, so rows are taken
in chunks and recomputed in the backward pass: peak memory is one chunk of logits.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

# 2**23 float32 logits are 32 MB: a chunk fits a cache-friendly buffer and still fills the matmul.
_CHUNK_LOGITS = 2**23


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
    M, D = hidden_MD.shape
    chunk = max(1, min(M, _CHUNK_LOGITS // unembedding_VD.shape[0]))
    pad = -M % chunk
    rows = [hidden_MD, labels_M] + ([] if threshold_M is None else [threshold_M])
    chunked = [
        jnp.pad(x, ((0, pad),) + ((0, 0),) * (x.ndim - 1)).reshape(-1, chunk, *x.shape[1:])
        for x in rows
    ]
    one = functools.partial(logprob_rows, temperature=temperature)
    if chunked[0].shape[0] == 1:
        parts = one(unembedding_VD, *[x[0] for x in chunked])
        return LogProb(*[x[:M] for x in parts])
    body = jax.checkpoint(lambda xs: one(unembedding_VD, *xs), prevent_cse=False)
    parts = jax.lax.map(body, chunked)
    return LogProb(*[x.reshape(-1)[:M] for x in parts])


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
