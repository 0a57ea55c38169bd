"""One token per row by Gumbel-max, with the log-probability of what was really sampled from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.sample import noise


class Sample(NamedTuple):
    """token [M]; log_prob [M] under the truncated, tempered distribution; threshold [M]: tempered
    logits below it were cut away (-inf without truncation); best [M]: the most probable token."""

    token_M: jax.Array
    log_prob_M: jax.Array
    threshold_M: jax.Array
    best_M: jax.Array


def sample(
    logits_MV: jax.Array,
    keys_M2: jax.Array,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
) -> Sample:
    """Samples from softmax(logits / temperature), cut to the top k and then to the mass p.

    Args:
      logits_MV: float32 logits.
      keys_M2: uint32 key per row, of everything that identifies the token to be drawn.
      temperature: above 0; 0 means the most probable token, with log-probability 0.
      top_k: how many of the largest logits stay; 0 keeps all.
      top_p: the smallest set of largest probabilities whose mass reaches p stays; 1 keeps all.

    Returns:
      a `Sample`; equal logits are ordered by the lower id.
    """
    best_M = jnp.argmax(logits_MV, axis=-1).astype(jnp.int32)
    floor_M = jnp.full(logits_MV.shape[:1], -jnp.inf, jnp.float32)
    if temperature == 0:
        return Sample(best_M, jnp.zeros_like(floor_M), floor_M, best_M)
    scaled_MV = logits_MV * (1.0 / temperature)
    threshold_M = floor_M
    if top_k or top_p < 1:
        threshold_M = _threshold(scaled_MV, top_k, top_p)
        scaled_MV = jnp.where(scaled_MV >= threshold_M[:, None], scaled_MV, -jnp.inf)
    ids_V = jnp.arange(logits_MV.shape[1], dtype=jnp.uint32)
    noisy_MV = scaled_MV + noise.gumbel(keys_M2, ids_V)
    token_M = jnp.argmax(noisy_MV, axis=-1).astype(jnp.int32)
    chosen_M = jnp.take_along_axis(scaled_MV, token_M[:, None], axis=-1)[:, 0]
    log_prob_M = chosen_M - jax.nn.logsumexp(scaled_MV, axis=-1)
    return Sample(token_M, log_prob_M, threshold_M, best_M)


def _threshold(scaled_MV: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """A value between the last kept and the first dropped logit of each row.

    Halfway, so that a trainer whose logits differ by a rounding error masks the same tokens.
    """
    V = scaled_MV.shape[1]
    ordered_MV = -jnp.sort(-scaled_MV, axis=-1)
    kept_M = jnp.full(scaled_MV.shape[:1], min(top_k or V, V), jnp.int32)
    if top_p < 1:
        rank_V = jnp.arange(V)
        within_MV = jnp.where(rank_V < kept_M[:, None], ordered_MV, -jnp.inf)
        before_MV = jnp.cumsum(jax.nn.softmax(within_MV, axis=-1), axis=-1)
        before_MV = jnp.pad(before_MV[:, :-1], ((0, 0), (1, 0)))
        kept_M = jnp.minimum(kept_M, jnp.sum(before_MV < top_p, axis=-1))
    last_M = jnp.take_along_axis(ordered_MV, kept_M[:, None] - 1, axis=-1)[:, 0]
    first_M = jnp.take_along_axis(ordered_MV, jnp.minimum(kept_M, V - 1)[:, None], axis=-1)[:, 0]
    return jnp.where(kept_M < V, (last_M + first_M) / 2, -jnp.inf)
