"""Plain XLA: one position of every branch against its trunk and its past.

A branch's weights are exp(logit - shift) with the largest logit of its past for shift; the past
ends with the position itself, so there is one. A trunk whose logits are below that plus 80 cannot
overflow float32, and needs no maximum of its own, which would be a third pass over what the two
matrix products make. Should any weight overflow, the trunk is read again with the maximum over
both parts; either way the result is the same softmax.

The past's sums are multiplications and sums, not matrix products: each branch has its own keys,
and XLA's batched products of [g, H] with [H, U] are slower on CPU, or copy the cache.

The trunk is walked as in chunked.py: blocks of branches, each against the tiles that it sees.

Letters: kernels/branch_attention/api.py; also m branches of a block, M = m*g rows of it per
key/value head, s positions of a tile, X whatever a row has.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kernels.branch_attention import cache, chunked

# Rows per key/value head and positions of one tile of logits, and how many logits are made at once
# without a loop over tiles. Measured on 2 AVX2 cores (docs/performance.md).
_ROWS = 128
_TILE = 128
_AT_ONCE = 2**24
_FLOOR = -1e30

# (state, logits [..., M, s], visible [..., M, s], shift [..., M, 1], value [..., s, H]) -> state
_Step = Callable[..., tuple[jax.Array, ...]]


def decode_attention(
    query_BRNH: jax.Array,
    trunk: cache.Trunk,
    lo_BR: jax.Array,
    hi_BR: jax.Array,
    past: cache.Past,
    length: jax.Array,
) -> jax.Array:
    """api.decode_attention."""
    B, R, N, H = query_BRNH.shape
    K = past.key_BRKHU.shape[2]
    query_BRKgH = scaled_query(query_BRNH, K)
    logits_BRKgU = _past_logits(query_BRKgH, past, length)
    shift_BRKg1 = jnp.max(logits_BRKgU, -1, keepdims=True)
    total, mix = _past_sums(logits_BRKgU, shift_BRKg1, past)

    def over_trunk(step: _Step, *initial: float, shift_BRKg1=shift_BRKg1):
        return _over_trunk(step, initial, query_BRKgH, trunk, lo_BR, hi_BR, shift_BRKg1)

    def again(total, mix, *_):
        (maximum_BRKg1,) = over_trunk(_maximum, _FLOOR)
        new_BRKg1 = jnp.maximum(shift_BRKg1, maximum_BRKg1)
        shrink = jnp.exp(shift_BRKg1 - new_BRKg1)
        trunk_total, trunk_mix = over_trunk(_sums, 0, 0, shift_BRKg1=new_BRKg1)
        return total * shrink + trunk_total, mix * shrink + trunk_mix

    def add(total, mix, trunk_total, trunk_mix):
        return total + trunk_total, mix + trunk_mix

    sums = over_trunk(_sums, 0, 0)
    finite = jnp.all(jnp.isfinite(sums[0])) & jnp.all(jnp.isfinite(sums[1]))
    total, mix = jax.lax.cond(finite, add, again, total, mix, *sums)
    return (mix / total).reshape(B, R, N, H).astype(query_BRNH.dtype)


def scaled_query(query_BRNH: jax.Array, K: int) -> jax.Array:
    """[B, R, K, g, H]"""
    B, R, N, H = query_BRNH.shape
    return (query_BRNH * H**-0.5).astype(query_BRNH.dtype).reshape(B, R, K, N // K, H)


def _past_logits(query_BRKgH: jax.Array, past: cache.Past, length: jax.Array) -> jax.Array:
    """[B, R, K, g, U] in float32, masked."""
    query, key = query_BRKgH.astype(jnp.float32), past.key_BRKHU.astype(jnp.float32)
    logits = jnp.sum(query[..., None] * key[:, :, :, None], axis=4)
    return jnp.where(jnp.arange(past.capacity) < length, logits, _FLOOR)


def _past_sums(logits_BRKgU, shift_BRKg1, past: cache.Past) -> tuple[jax.Array, jax.Array]:
    """Sums of weights [B, R, K, g, 1] and their mixes of values [B, R, K, g, H]."""
    weights = jnp.exp(logits_BRKgU - shift_BRKg1)
    value = past.value_BRKUH.astype(jnp.float32)
    mix = jnp.sum(weights[..., None] * value[:, :, :, None], axis=4)
    return jnp.sum(weights, -1, keepdims=True), mix


def _sums(state, logits, visible, shift, value):
    total, mix = state
    # Masked before exp: one loop makes the weights, where masking after it makes two.
    weights = jnp.exp(jnp.where(visible, logits, _FLOOR) - shift)
    mix = mix + chunked.dot("...Ms,...sH->...MH", weights, value)
    return total + jnp.sum(weights, -1, keepdims=True), mix


def _maximum(state, logits, visible, shift, value):
    del shift, value
    (maximum,) = state
    logits = jnp.where(visible, logits, _FLOOR)
    return (jnp.maximum(maximum, jnp.max(logits, -1, keepdims=True)),)


def _over_trunk(
    step: _Step,
    initial: tuple[float, ...],
    query_BRKgH: jax.Array,
    trunk: cache.Trunk,
    lo_BR: jax.Array,
    hi_BR: jax.Array,
    shift_BRKg1: jax.Array,
) -> tuple[jax.Array, ...]:
    """Folds `step` over the trunk from `initial`; results are [B, R, K, g, X]."""
    B, R, K, g, H = query_BRKgH.shape
    S = trunk.key_BKSH.shape[2]
    s = min(_TILE, S)
    at_once = B * R * K * g * S <= _AT_ONCE
    m = R if at_once else chunked.block_size(R, _ROWS // g)
    blocks = -(-R // m)

    def split(x_BRX):
        """[B * blocks, m, X], padded by branches that see nothing."""
        x = jnp.pad(x_BRX, ((0, 0), (0, blocks * m - R), *[(0, 0)] * (x_BRX.ndim - 2)))
        return x.reshape(B * blocks, m, *x.shape[2:])

    def rows(x_BRKgX):
        """[B * blocks, K, M, X]"""
        return jnp.moveaxis(split(x_BRKgX), 2, 1).reshape(B * blocks, K, m * g, -1)

    def fold(state, block, key, value, first, start):
        """The tile whose first position is `start`; of it, positions from `first` on."""
        query_KMH, shift_KM1, lo_m, hi_m = block
        seen = _seen(start + jnp.arange(key.shape[-2]), jnp.maximum(lo_m, first), hi_m, g)
        logits = chunked.dot("...MH,...sH->...Ms", query_KMH, key)
        return step(state, logits, seen, shift_KM1, value)

    def one(inputs):
        block, document = inputs
        nought = jnp.zeros_like(document)

        def add(j, state):
            # The last tile begins earlier than it should if s does not divide S.
            start = jnp.minimum(j * s, S - s).astype(document.dtype)
            at = (document, nought, start, nought)
            key, value = (jax.lax.dynamic_slice(x, at, (1, K, s, H))[0] for x in trunk)
            return fold(state, block, key, value, j * s, start)

        empty = [(K, m * g, 1), (K, m * g, H)]
        state = tuple(jnp.full(*x, jnp.float32) for x in zip(empty, initial))
        seen = chunked.visible_tiles(block[2], block[3], s)
        return jax.lax.fori_loop(*seen, add, state)

    arrays = (rows(query_BRKgH), rows(shift_BRKg1), split(lo_BR), split(jnp.minimum(hi_BR, S)))
    if at_once:
        state = fold(initial, arrays, *trunk, 0, 0)
    else:
        state = jax.lax.map(one, (arrays, jnp.repeat(jnp.arange(B), blocks)))

    def join(x):
        x = jnp.moveaxis(x.reshape(B * blocks, K, m, g, -1), 1, 2)
        return x.reshape(B, blocks * m, K, g, -1)[:, :R]

    return tuple(map(join, state))


def _seen(s: jax.Array, lo_m: jax.Array, hi_m: jax.Array, g: int) -> jax.Array:
    """[..., 1, M, s]: which positions each row sees."""
    seen = (s >= lo_m[..., None]) & (s < hi_m[..., None])
    return jnp.repeat(seen, g, axis=-2)[..., None, :, :]
