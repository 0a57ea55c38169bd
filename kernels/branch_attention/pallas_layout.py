"""What the TPU kernels read: queries with positions along lanes, and one part's keys in tiles.

Letters: kernels/branch_attention/pallas_tpu.py.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Most positions of a block and keys of a tile. Chosen by the arithmetic of pallas_tpu.py and
# compiled for v4, v5e, v5p, v6e and TPU7x; not yet timed on a chip. A block sees p + T own keys.
_POSITIONS = 256
_TRUNK_TILE = 512
_OWN_TILE = 128
LANES = 128


class Keys(NamedTuple):
    """One part: keys and values, and which of them each position sees."""

    key_BKXH: jax.Array
    value_BKXH: jax.Array
    lo_B1P: jax.Array
    hi_B1P: jax.Array
    first_Bi: jax.Array  # the key tiles that a block of positions sees
    last_Bi: jax.Array
    first_Bj: jax.Array  # the blocks that see a key tile
    last_Bj: jax.Array
    tile: int
    tile_visits: int
    block_visits: int

    @property
    def blocks(self) -> int:
        return self.first_Bi.shape[1]

    @property
    def tiles(self) -> int:
        return self.first_Bj.shape[1]


def trunk(key_BKSH, value_BKSH, lo_BR, hi_BR, T: int) -> Keys:
    """All T positions of a branch see the same."""
    lo_BRT, hi_BRT = (jnp.broadcast_to(x[..., None], (*x.shape, T)) for x in (lo_BR, hi_BR))
    return _keys(jnp, key_BKSH, value_BKSH, lo_BRT, hi_BRT, _TRUNK_TILE)


def own(key_BRTKH: jax.Array, value_BRTKH: jax.Array) -> Keys:
    """The branches' keys in one row. Their ranges are known now, and so is who sees whom."""
    B, R, T, K, H = key_BRTKH.shape
    key, value = (jnp.moveaxis(x, 3, 1).reshape(B, K, R * T, H) for x in (key_BRTKH, value_BRTKH))
    lo_BRT = np.broadcast_to(np.arange(R, dtype=np.int32)[:, None] * T, (B, R, T))
    hi_BRT = lo_BRT + np.arange(1, T + 1, dtype=np.int32)
    return _keys(np, key, value, lo_BRT, hi_BRT, _OWN_TILE)


def _keys(xp: Any, key_BKXH, value_BKXH, lo_BRT, hi_BRT, most: int) -> Keys:
    """`xp`: numpy if the ranges are known when the program is traced."""
    B, X = len(lo_BRT), key_BKXH.shape[2]
    p, s = _size(lo_BRT[0].size, _POSITIONS), _size(X, most)
    lo_BP, hi_BP = (
        _padded(x.reshape(B, -1), 1, p) for x in (lo_BRT, xp.minimum(hi_BRT, X).astype(np.int32))
    )
    key, value = (_padded(x, 2, s) for x in (key_BKXH, value_BKXH))
    tiles, blocks = key.shape[2] // s, lo_BP.shape[1] // p
    lo_Bip, hi_Bip = (x.reshape(B, blocks, p) for x in (lo_BP, hi_BP))
    some_Bip = hi_Bip > lo_Bip
    last_Bi = -(-xp.max(xp.where(some_Bip, hi_Bip, 0), -1) // s)
    first_Bi = xp.minimum(xp.min(xp.where(some_Bip, lo_Bip, X), -1) // s, last_Bi)
    j = xp.arange(tiles)[:, None]
    seen_Bji = (first_Bi[:, None] <= j) & (j < last_Bi[:, None])
    first_Bj = xp.argmax(seen_Bji, -1)
    last_Bj = xp.where(xp.any(seen_Bji, -1), blocks - xp.argmax(seen_Bji[..., ::-1], -1), 0)
    known = xp is np
    return Keys(
        key,
        value,
        lo_BP[:, None],
        hi_BP[:, None],
        *(jnp.asarray(x, jnp.int32) for x in (first_Bi, last_Bi, first_Bj, last_Bj)),
        tile=s,
        tile_visits=int(np.max(last_Bi - first_Bi)) if known else tiles,
        block_visits=int(np.max(last_Bj - first_Bj)) if known else blocks,
    )


def scaled_query(query_BRTNH: jax.Array, K: int) -> jax.Array:
    """[B, K, g, H, P] in the query's dtype."""
    scale = query_BRTNH.shape[-1] ** -0.5
    return to_lanes((query_BRTNH * scale).astype(query_BRTNH.dtype), K)


def to_lanes(x_BRTNX: jax.Array, K: int) -> jax.Array:
    """[B, K, g, X, P]: one transposition of a matrix; P is padded to whole blocks."""
    B, R, T, N, X = x_BRTNX.shape
    x = jnp.swapaxes(x_BRTNX.reshape(B, R * T, N * X), 1, 2)
    return _padded(x, 2, _size(R * T, _POSITIONS)).reshape(B, K, N // K, X, -1)


def from_lanes(x_BKgXP: jax.Array, R: int, T: int) -> jax.Array:
    """[B, R, T, N, X]"""
    B, K, g, X, P = x_BKgXP.shape
    x = jnp.swapaxes(x_BKgXP.reshape(B, K * g * X, P)[..., : R * T], 1, 2)
    return x.reshape(B, R, T, K * g, X)


def _size(count: int, most: int) -> int:
    """Of blocks of equal size: at most about `most`, whole lanes."""
    size = -(-count // -(-count // most))
    return -(-size // LANES) * LANES


def _padded(x, axis: int, multiple: int) -> Any:
    """By zeros: keys that nobody sees, or positions that see no key."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return np.pad(x, widths) if isinstance(x, np.ndarray) else jnp.pad(x, widths)
