"""The oracle: one dense softmax over all visible keys, everything in memory at once.

Computed in float32, or in float64 where an input is. Letters: kernels/branch_attention/api.py.
"""

import jax
import jax.numpy as jnp

from kernels.branch_attention import cache


def branch_attention(
    query_BRTNH: jax.Array,
    key_BRTKH: jax.Array,
    value_BRTKH: jax.Array,
    trunk_key_BSKH: jax.Array,
    trunk_value_BSKH: jax.Array,
    lo_BR: jax.Array,
    hi_BR: jax.Array,
) -> jax.Array:
    """api.branch_attention."""
    T = query_BRTNH.shape[2]
    own_BRTT = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (*lo_BR.shape, T, T))
    arrays = (query_BRTNH, key_BRTKH, value_BRTKH, trunk_key_BSKH, trunk_value_BSKH)
    return _attend(*arrays, lo_BR, hi_BR, own_BRTT)


def decode_attention(
    query_BRNH: jax.Array,
    trunk: cache.Trunk,
    lo_BR: jax.Array,
    hi_BR: jax.Array,
    past: cache.Past,
    length: jax.Array,
) -> jax.Array:
    """api.decode_attention."""
    key_BRUKH, value_BRUKH = cache.plain_past(past)
    U = key_BRUKH.shape[2]
    filled_BR1U = jnp.broadcast_to(jnp.arange(U) < length, (*lo_BR.shape, 1, U))
    arrays = (query_BRNH[:, :, None], key_BRUKH, value_BRUKH, *cache.plain_trunk(trunk))
    return _attend(*arrays, lo_BR, hi_BR, filled_BR1U)[:, :, 0]


def _attend(query_BRTNH, key, value, trunk_key, trunk_value, lo_BR, hi_BR, own_BRTU) -> jax.Array:
    """`own_BRTU` says which of the branch's keys a position sees."""
    B, R, T, N, H = query_BRTNH.shape
    K, S = key.shape[3], trunk_key.shape[1]
    arrays = (query_BRTNH, key, value, trunk_key, trunk_value)
    dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
    query, key, value, trunk_key, trunk_value = (x.astype(dtype) for x in arrays)
    query = query.reshape(B, R, T, K, N // K, H) * H**-0.5
    s = jnp.arange(S)
    trunk_BRS = (s >= lo_BR[..., None]) & (s < hi_BR[..., None])
    trunk_BRTS = jnp.broadcast_to(trunk_BRS[:, :, None], (B, R, T, S))
    visible = jnp.concatenate([trunk_BRTS, own_BRTU], axis=-1)[:, :, :, None, None]
    logits = jnp.concatenate(
        [
            jnp.einsum("BRTKgH,BSKH->BRTKgS", query, trunk_key),
            jnp.einsum("BRTKgH,BRUKH->BRTKgU", query, key),
        ],
        axis=-1,
    )
    weights = jax.nn.softmax(logits, axis=-1, where=visible)
    mixed = jnp.einsum("BRTKgS,BSKH->BRTKgH", weights[..., :S], trunk_value)
    mixed += jnp.einsum("BRTKgU,BRUKH->BRTKgH", weights[..., S:], value)
    return mixed.reshape(B, R, T, N, H).astype(query_BRTNH.dtype)
