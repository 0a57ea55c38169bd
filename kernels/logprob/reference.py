"""The oracle: all logits at once, differentiated by jax itself.

Computes in float32 at least: float64 inputs (under jax_enable_x64) give float64 results.
M rows, D width, V vocabulary, K the largest logits.
"""

import jax
import jax.numpy as jnp

from kernels.logprob import maths


def logprob(
    tempering: maths.Tempering,
    vocab_axis: str | None,
    hidden_MD: jax.Array,
    unembedding_VD: jax.Array,
    labels_M: jax.Array,
    threshold_M: jax.Array | None,
) -> maths.LogProb:
    """labels_M count from this shard's first row of the unembedding."""

    def total(x_MV):
        sum_M = jnp.sum(x_MV, axis=1)
        return sum_M if vocab_axis is None else jax.lax.psum(sum_M, vocab_axis)

    logits_MV = tempering(products(hidden_MD, unembedding_VD))
    is_label_MV = jnp.arange(logits_MV.shape[1]) == labels_M[:, None]
    label_M = total(jnp.where(is_label_MV, logits_MV, 0))
    if threshold_M is not None:
        kept_MV = (logits_MV >= threshold_M[:, None]) | is_label_MV
        logits_MV = jnp.where(kept_MV, logits_MV, maths.LOWEST)
    max_M = jnp.max(jax.lax.stop_gradient(logits_MV), axis=1)
    if vocab_axis is not None:
        max_M = jax.lax.pmax(max_M, vocab_axis)
    log_sum_exp_M = max_M + jnp.log(total(jnp.exp(logits_MV - max_M[:, None])))
    log_probs_MV = logits_MV - log_sum_exp_M[:, None]
    entropy_M = -total(jnp.exp(log_probs_MV) * log_probs_MV)
    return maths.LogProb(label_M - log_sum_exp_M, log_sum_exp_M, entropy_M)


def score(
    top: int, hidden_MD: jax.Array, unembedding_VD: jax.Array, labels_M: jax.Array
) -> tuple[maths.Partial, jax.Array, jax.Array]:
    """Partial sums, and the `top` largest logits [M, K] with their ids."""
    logits_MV = products(hidden_MD, unembedding_VD)
    is_label_MV = jnp.arange(logits_MV.shape[1]) == labels_M[:, None]
    greatest_M1, sum_M1, excess_M1 = maths.partial_sums(logits_MV, None, axis=1)
    label_M = jnp.sum(jnp.where(is_label_MV, logits_MV, 0), axis=1)
    # Stable, so equal logits stay in the order of their ids.
    order_MV = jnp.argsort(-logits_MV, axis=1, stable=True)
    top_ids_MK = order_MV[:, :top].astype(jnp.int32)
    return (
        maths.Partial(greatest_M1[:, 0], sum_M1[:, 0], excess_M1[:, 0], label_M),
        jnp.take_along_axis(logits_MV, top_ids_MK, axis=1),
        top_ids_MK,
    )


def products(hidden_MD: jax.Array, unembedding_VD: jax.Array) -> jax.Array:
    """hidden @ unembedding.T; operands in hidden's dtype, the result in float32 at least."""
    return jnp.einsum(
        "MD,VD->MV",
        hidden_MD,
        unembedding_VD.astype(hidden_MD.dtype),
        preferred_element_type=jnp.promote_types(hidden_MD.dtype, jnp.float32),
    )
