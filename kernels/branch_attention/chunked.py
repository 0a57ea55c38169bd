"""Plain XLA in bounded memory: the training form, forward and backward.

Branches are walked in blocks and, for each block, the trunk in tiles from the block's first visible
one to its last: the trip count is dynamic, so tiles beyond the furthest cut cost nothing. At any
time there are logits of one block against one tile, [K, M, s], and of one block against itself.

The softmax is online (arXiv 2205.14135): it begins with the branch's own keys, of which a position
always sees at least itself, so its maximum is finite from the start. The backward pass computes the
logits again from the log-sum-exp over both parts:

    p = exp(logit - lse)    ds = p * (dout . value - dout . out)    dq = ds k    dk = ds^T q

with `dout . out` the same for both parts, since they are one softmax.

Letters: kernels/branch_attention/api.py; also m branches of a block, s positions of a tile, M =
m*T*g rows of a block per key/value head.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Most rows per key/value head, and positions, of one tile of logits. Larger ones leave the CPU's
# caches, smaller ones waste its threads: tried 384 to 3,072 by 64 to 512 on 2 AVX2 cores
# (docs/performance.md).
_ROWS = 768
_TILE = 128
_FLOOR = -1e30  # of a masked logit: finite, so that differences of two of them are no NaN


class _Block(NamedTuple):
    """One block of branches of one document; all with a leading axis of blocks outside of it."""

    query_KMH: jax.Array  # scaled
    key_KmTH: jax.Array
    value_KmTH: jax.Array
    lo_m: jax.Array
    hi_m: jax.Array
    document: jax.Array


class _Tiles(NamedTuple):
    """The trunk in tiles, padded by zeros: [B, tiles, K, s, H]."""

    key: jax.Array
    value: jax.Array


class _Sizes(NamedTuple):
    B: int
    R: int
    T: int
    K: int
    g: int
    H: int
    S: int
    m: int
    s: int

    @property
    def blocks(self) -> int:
        """Per document."""
        return -(-self.R // self.m)

    @property
    def tiles(self) -> int:
        return -(-self.S // self.s)


def _sizes(query_BRTNH: jax.Array, trunk_key_BSKH: jax.Array) -> _Sizes:
    B, R, T, N, H = query_BRTNH.shape
    _, S, K, _ = trunk_key_BSKH.shape
    m, s = block_size(R, _ROWS // (T * N // K)), block_size(S, _TILE)
    return _Sizes(B, R, T, K, N // K, H, S, m, s)


def block_size(count: int, most: int) -> int:
    """At most `most`, at least half of it, and so that little is padded."""
    if count <= most:
        return count
    return min(range(max(most, 1), most // 2, -1), key=lambda size: -(-count // size) * size)


def visible_tiles(lo_m: jax.Array, hi_m: jax.Array, s: int) -> tuple[jax.Array, jax.Array]:
    """The first and one past the last tile of s positions that any of the branches sees."""
    seen_m = hi_m > lo_m
    last = -(-jnp.max(jnp.where(seen_m, hi_m, 0)) // s)
    first = jnp.min(jnp.where(seen_m, lo_m, jnp.iinfo(jnp.int32).max)) // s
    return jnp.minimum(first, last), last


def dot(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Of operands in b's dtype, summed in float32."""
    return jnp.einsum(spec, a.astype(b.dtype), b, preferred_element_type=jnp.float32)


def forward(
    query_BRTNH: jax.Array,
    key_BRTKH: jax.Array,
    value_BRTKH: jax.Array,
    trunk_key_BSKH: jax.Array,
    trunk_value_BSKH: jax.Array,
    lo_BR: jax.Array,
    hi_BR: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the mix [B, R, T, N, H] and the log-sum-exp over all visible keys [B, R, T, N]."""
    sizes = _sizes(query_BRTNH, trunk_key_BSKH)
    tiles = _tiles(sizes, trunk_key_BSKH, trunk_value_BSKH)
    blocks = _blocks(sizes, query_BRTNH, key_BRTKH, value_BRTKH, lo_BR, hi_BR)

    def one(block: _Block) -> tuple[jax.Array, jax.Array]:
        def add(j, state):
            maximum, total, mix_KMH = state
            logits, visible = _trunk_logits(sizes, block, tiles, j)
            logits = jnp.where(visible, logits, _FLOOR)
            new = jnp.maximum(maximum, jnp.max(logits, -1, keepdims=True))
            weights, shrink = jnp.exp(logits - new), jnp.exp(maximum - new)
            total = shrink * total + jnp.sum(weights, -1, keepdims=True)
            mix = dot("KMs,KsH->KMH", _rows(weights), _tile(tiles.value, block, j))
            return new, total, _rows(shrink) * mix_KMH + mix

        seen = visible_tiles(block.lo_m, block.hi_m, sizes.s)
        logits = _own_logits(sizes, block)
        maximum = jnp.max(logits, -1, keepdims=True)
        weights = jnp.exp(logits - maximum)
        total = jnp.sum(weights, -1, keepdims=True)
        mix_KMH = _rows(dot("Kmtu,KmuH->KmtH", weights, block.value_KmTH))
        maximum, total, mix_KMH = jax.lax.fori_loop(*seen, add, (maximum, total, mix_KMH))
        mix_KMH = (mix_KMH / _rows(total)).astype(query_BRTNH.dtype)
        return mix_KMH, _rows(maximum + jnp.log(total))

    out, lse = jax.lax.map(one, blocks)
    return _join_rows(sizes, out), _join_rows(sizes, lse)[..., 0]


def backward(
    query_BRTNH: jax.Array,
    key_BRTKH: jax.Array,
    value_BRTKH: jax.Array,
    trunk_key_BSKH: jax.Array,
    trunk_value_BSKH: jax.Array,
    lo_BR: jax.Array,
    hi_BR: jax.Array,
    out_BRTNH: jax.Array,
    lse_BRTN: jax.Array,
    dout_BRTNH: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Gradients of query, key, value, trunk key and trunk value, in the dtypes of these."""
    sizes = _sizes(query_BRTNH, trunk_key_BSKH)
    tiles = _tiles(sizes, trunk_key_BSKH, trunk_value_BSKH)
    blocks = _blocks(sizes, query_BRTNH, key_BRTKH, value_BRTKH, lo_BR, hi_BR)
    delta_BRTN = jnp.sum(dout_BRTNH.astype(jnp.float32) * out_BRTNH, -1)
    # Padded rows have zero dout and zero delta, and so no gradient.
    rows = (dout_BRTNH, lse_BRTN[..., None], delta_BRTN[..., None])
    rows = tuple(_split_rows(sizes, x) for x in rows)

    def one(dtrunk, inputs):
        block, (dout_KMH, lse_KM1, delta_KM1) = inputs

        def add(j, state):
            dquery_KMH, dkey, dvalue = state
            logits, visible = _trunk_logits(sizes, block, tiles, j)
            weights = jnp.where(visible, jnp.exp(logits - _branches(sizes, lse_KM1)), 0.0)
            weights = _rows(weights)
            dweights = dot("KMH,KsH->KMs", dout_KMH, _tile(tiles.value, block, j))
            dlogits = weights * (dweights - delta_KM1)
            dquery_KMH += dot("KMs,KsH->KMH", dlogits, _tile(tiles.key, block, j))
            dkey = _add(dkey, block, j, dot("KMs,KMH->KsH", dlogits, block.query_KMH))
            dvalue = _add(dvalue, block, j, dot("KMs,KMH->KsH", weights, dout_KMH))
            return dquery_KMH, dkey, dvalue

        seen = visible_tiles(block.lo_m, block.hi_m, sizes.s)
        dout, lse, delta = (_branches(sizes, x) for x in (dout_KMH, lse_KM1, delta_KM1))
        weights = jnp.exp(_own_logits(sizes, block) - lse)
        dlogits = weights * (dot("KmtH,KmuH->Kmtu", dout, block.value_KmTH) - delta)
        dquery_KMH = _rows(dot("Kmtu,KmuH->KmtH", dlogits, block.key_KmTH))
        dkey_KmTH = dot("Kmtu,KmtH->KmuH", dlogits, _branches(sizes, block.query_KMH))
        dvalue_KmTH = dot("Kmtu,KmtH->KmuH", weights, dout)
        dquery_KMH, *dtrunk = jax.lax.fori_loop(*seen, add, (dquery_KMH, *dtrunk))
        grads = (dquery_KMH * sizes.H**-0.5, dkey_KmTH, dvalue_KmTH)
        likes = (query_BRTNH, key_BRTKH, value_BRTKH)
        return tuple(dtrunk), tuple(x.astype(y.dtype) for x, y in zip(grads, likes, strict=True))

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in tiles)
    dtrunk, (dquery, dkey, dvalue) = jax.lax.scan(one, zeros, (blocks, rows))
    return (
        _join_rows(sizes, dquery),
        _join_own(sizes, dkey),
        _join_own(sizes, dvalue),
        _join_tiles(sizes, dtrunk[0]).astype(trunk_key_BSKH.dtype),
        _join_tiles(sizes, dtrunk[1]).astype(trunk_value_BSKH.dtype),
    )


def _trunk_logits(sizes: _Sizes, block: _Block, tiles: _Tiles, j) -> tuple[jax.Array, jax.Array]:
    """Of one tile: [K, m, T*g, s], and which are visible, [m, 1, s]."""
    logits_KMs = dot("KMH,KsH->KMs", block.query_KMH, _tile(tiles.key, block, j))
    s = j * sizes.s + jnp.arange(sizes.s)
    visible_m1s = (s >= block.lo_m[:, None, None]) & (s < block.hi_m[:, None, None])
    return _branches(sizes, logits_KMs), visible_m1s


def _own_logits(sizes: _Sizes, block: _Block) -> jax.Array:
    """Of the branches to themselves, masked: [K, m, T*g, T]."""
    logits = dot("KmtH,KmuH->Kmtu", _branches(sizes, block.query_KMH), block.key_KmTH)
    t = jnp.arange(sizes.T)
    return jnp.where(t <= jnp.repeat(t, sizes.g)[:, None], logits, _FLOOR)


def _rows(x: jax.Array) -> jax.Array:
    """[K, m, T*g, ...] -> [K, M, ...]"""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _branches(sizes: _Sizes, x: jax.Array) -> jax.Array:
    """[K, M, ...] -> [K, m, T*g, ...]"""
    return x.reshape(sizes.K, sizes.m, -1, x.shape[-1])


def _tile(tiles: jax.Array, block: _Block, j) -> jax.Array:
    """[K, s, H]"""
    return tiles[block.document, j]


def _add(tiles: jax.Array, block: _Block, j, x: jax.Array) -> jax.Array:
    return tiles.at[block.document, j].add(x)


def _tiles(sizes: _Sizes, *arrays_BSKH: jax.Array) -> _Tiles:
    def one(x):
        x = jnp.pad(x, ((0, 0), (0, sizes.tiles * sizes.s - sizes.S), (0, 0), (0, 0)))
        return x.reshape(sizes.B, sizes.tiles, sizes.s, sizes.K, sizes.H).swapaxes(2, 3)

    return _Tiles(*map(one, arrays_BSKH))


def _join_tiles(sizes: _Sizes, x: jax.Array) -> jax.Array:
    """[B, tiles, K, s, H] -> [B, S, K, H]"""
    return x.swapaxes(2, 3).reshape(sizes.B, -1, sizes.K, sizes.H)[:, : sizes.S]


def _blocks(sizes: _Sizes, query_BRTNH, key_BRTKH, value_BRTKH, lo_BR, hi_BR) -> _Block:
    query = (query_BRTNH * sizes.H**-0.5).astype(query_BRTNH.dtype)
    document = jnp.repeat(jnp.arange(sizes.B), sizes.blocks)
    return _Block(
        query_KMH=_split_rows(sizes, query),
        key_KmTH=jnp.moveaxis(_split(sizes, key_BRTKH), 3, 1),
        value_KmTH=jnp.moveaxis(_split(sizes, value_BRTKH), 3, 1),
        lo_m=_split(sizes, lo_BR),
        hi_m=_split(sizes, jnp.minimum(hi_BR, sizes.S)),
        document=document,
    )


def _split(sizes: _Sizes, x: jax.Array) -> jax.Array:
    """[B, R, ...] -> [B * blocks, m, ...], padded by branches of zeros, which see nothing."""
    x = jnp.pad(x, ((0, 0), (0, sizes.blocks * sizes.m - sizes.R), *[(0, 0)] * (x.ndim - 2)))
    return x.reshape(sizes.B * sizes.blocks, sizes.m, *x.shape[2:])


def _split_rows(sizes: _Sizes, x: jax.Array) -> jax.Array:
    """[B, R, T, N, ...] -> [B * blocks, K, M, ...]"""
    x = _split(sizes, x).reshape(-1, sizes.m, sizes.T, sizes.K, sizes.g, x.shape[-1])
    return jnp.moveaxis(x, 3, 1).reshape(x.shape[0], sizes.K, -1, x.shape[-1])


def _join_rows(sizes: _Sizes, x: jax.Array) -> jax.Array:
    """[B * blocks, K, M, ...] -> [B, R, T, N, ...]"""
    x = x.reshape(sizes.B, sizes.blocks, sizes.K, sizes.m, sizes.T, sizes.g, x.shape[-1])
    x = jnp.moveaxis(x, 2, 4).reshape(sizes.B, -1, sizes.T, sizes.K * sizes.g, x.shape[-1])
    return x[:, : sizes.R]


def _join_own(sizes: _Sizes, x: jax.Array) -> jax.Array:
    """[B * blocks, K, m, T, H] -> [B, R, T, K, H]"""
    x = jnp.moveaxis(x, 1, 3).reshape(sizes.B, -1, sizes.T, sizes.K, sizes.H)
    return x[:, : sizes.R]
