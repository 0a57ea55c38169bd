"""The oracle: all logits at once, one sort. Letters: M rows, D width, V vocabulary.

Computes in the promoted dtype of its inputs, so under `jax.enable_x64` and float64 inputs order
and masses are those of float64; the noise is float32 everywhere.
"""

import jax
import jax.numpy as jnp

from kernels.sample import noise
from kernels.sample.result import NEVER, Request, Sample, greedy


def sample(
    request: Request, hidden_MD: jax.Array, unembedding_VD: jax.Array, keys_M2: jax.Array
) -> Sample:
    """See `api.sample`; with a vocabulary axis the unembedding is gathered first."""
    if request.vocab_axis is not None:
        unembedding_VD = jax.lax.all_gather(unembedding_VD, request.vocab_axis, tiled=True)
    dtype = jnp.promote_types(jnp.promote_types(hidden_MD.dtype, unembedding_VD.dtype), jnp.float32)
    z_MV = request.tempering(
        jnp.einsum(
            "MD,VD->MV",
            hidden_MD,
            unembedding_VD.astype(hidden_MD.dtype),
            preferred_element_type=dtype,
        )
    )
    best_M = jnp.argmax(z_MV, axis=-1).astype(jnp.int32)
    if request.temperature == 0:
        return greedy(best_M)
    threshold_M = _threshold(z_MV, request)
    kept_MV = jnp.where(z_MV >= threshold_M[:, None], z_MV, NEVER)
    ids_V = jnp.arange(z_MV.shape[1], dtype=jnp.uint32)
    token_M = jnp.argmax(kept_MV + noise.gumbel(keys_M2, ids_V), axis=-1).astype(jnp.int32)
    chosen_M = jnp.take_along_axis(kept_MV, token_M[:, None], axis=-1)[:, 0]
    kept_mass_M = jax.nn.logsumexp(kept_MV, axis=-1)
    log_mass_M = kept_mass_M - jax.nn.logsumexp(z_MV, axis=-1)
    return Sample(token_M, chosen_M - kept_mass_M, threshold_M, log_mass_M, best_M)


def _threshold(z_MV: jax.Array, request: Request) -> jax.Array:
    V = z_MV.shape[1]
    if not request.truncates:
        return jnp.full(z_MV.shape[:1], NEVER, z_MV.dtype)
    ordered_MV = -jnp.sort(-z_MV, axis=-1)
    rank_V = jnp.arange(V)
    within_MV = jnp.where(rank_V < (request.top_k or V), ordered_MV, NEVER)
    kept_MV = within_MV > NEVER
    if request.top_p < 1:
        sums_MV = jnp.cumsum(jax.nn.softmax(within_MV, axis=-1), axis=-1)
        kept_MV &= jnp.pad(sums_MV[:, :-1], ((0, 0), (1, 0))) < request.top_p
    last_M = jnp.min(jnp.where(kept_MV, ordered_MV, jnp.inf), axis=-1)
    first_M = jnp.max(jnp.where(z_MV < last_M[:, None], z_MV, NEVER), axis=-1)
    return halfway(last_M, first_M)


def halfway(last_M: jax.Array, first_M: jax.Array) -> jax.Array:
    """Between the last kept and the first dropped logit, never at the dropped one."""
    middle_M = (last_M + first_M) / 2
    return jnp.where(middle_M > first_M, middle_M, jnp.where(first_M == NEVER, NEVER, last_M))
