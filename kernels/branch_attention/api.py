"""Attention of branch queries to a shared trunk, to the branch's past, and to the branch.

The three parts are merged by log-sum-exp, so the result is one softmax over all visible keys.
The trunk's keys are read once per document for all its branches: the R*T*(N/K) queries of a
document meet them in one matrix product per key/value head.

Letters: B documents, S trunk positions, R branches, T positions, U past positions, K key/value
heads, g query heads per key/value head, H head width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class _Part(NamedTuple):
    """A softmax over some of the keys: maximum and sum [B, R, K, T, g, 1], unnormalised mix."""

    maximum: jax.Array
    total: jax.Array
    mix_BRKTgH: jax.Array


def branch_attention(
    query_BRTNH: jax.Array,
    key_BRTKH: jax.Array,
    value_BRTKH: jax.Array,
    trunk: tuple[jax.Array, jax.Array],
    lo_BR: jax.Array,
    hi_BR: jax.Array,
    past: tuple[jax.Array, jax.Array] | None,
    past_length: jax.Array | None,
) -> jax.Array:
    """Softmax attention over trunk[lo:hi], past[:past_length] and the branch itself, causally.

    Args:
      query_BRTNH: rotated queries, unscaled.
      key_BRTKH: rotated keys of the same positions.
      value_BRTKH: their values.
      trunk: rotated keys and values [B, S, K, H].
      lo_BR: first visible trunk position of each branch.
      hi_BR: one past the last; hi == lo means that the branch sees nothing of the trunk.
      past: keys and values [B, R, U, K, H] of earlier branch positions, or None.
      past_length: how many of the U are filled, the same for all branches.

    Returns:
      [B, R, T, N, H] in the query's dtype; the softmax is computed in float32.
    """
    B, R, T, N, H = query_BRTNH.shape
    K = key_BRTKH.shape[-2]
    query = (query_BRTNH * H**-0.5).reshape(B, R, T, K, N // K, H)
    trunk_key, trunk_value = trunk

    s = jnp.arange(trunk_key.shape[1])
    visible_BRS = (s >= lo_BR[..., None]) & (s < hi_BR[..., None])
    # Each part keeps its logits in the order its matrix products make: B and K outside for the
    # trunk, B, R and K outside for the rest. Only maxima, sums and mixes are ever transposed.
    trunk_part = _part(
        _dot("BRTKgH,BSKH->BKRTgS", query, trunk_key),
        visible_BRS[:, None, :, None, None, :],
        "BKRTgS,BSKH->BKRTgH",
        trunk_value,
    )
    parts = [
        _Part(*[jnp.swapaxes(x, 1, 2) for x in trunk_part]),
        _part(
            _dot("BRTKgH,BRUKH->BRKTgU", query, key_BRTKH),
            jnp.tril(jnp.ones((T, T), bool))[:, None, :],
            "BRKTgU,BRUKH->BRKTgH",
            value_BRTKH,
        ),
    ]
    if past is not None and past_length is not None:
        past_key, past_value = past
        parts.append(
            _part(
                _dot("BRTKgH,BRUKH->BRKTgU", query, past_key),
                jnp.arange(past_key.shape[2]) < past_length,
                "BRKTgU,BRUKH->BRKTgH",
                past_value,
            )
        )
    mixed_BRTKgH = jnp.moveaxis(_merge(parts), 2, 3)
    return mixed_BRTKgH.reshape(B, R, T, N, H).astype(query_BRTNH.dtype)


def _dot(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _part(logits: jax.Array, mask: jax.Array, spec: str, values: jax.Array) -> _Part:
    # A finite floor instead of -inf: a part without any visible key must vanish in the merge
    # and must not make NaN in the gradient.
    logits = jnp.where(mask, logits, -1e30)
    maximum = jax.lax.stop_gradient(jnp.max(logits, -1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(logits - maximum), 0.0)
    mix = jnp.einsum(spec, weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return _Part(maximum, jnp.sum(weights, -1, keepdims=True), mix)


def _merge(parts: list[_Part]) -> jax.Array:
    maximum = parts[0].maximum
    for part in parts[1:]:
        maximum = jnp.maximum(maximum, part.maximum)
    scales = [jnp.exp(part.maximum - maximum) for part in parts]
    total = jnp.float32(0)
    mix = jnp.float32(0)
    for scale, part in zip(scales, parts, strict=True):
        total += scale * part.total
        mix += scale * part.mix_BRKTgH
    return mix / total
