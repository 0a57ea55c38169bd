"""Plain XLA in bounded memory: a loop over tiles of the vocabulary, forward and backward.

Forward keeps a maximum and three sums per row; backward computes each tile of logits again, adds
to dh in float32 and writes each tile of dW once, in its place in the result. So beside arguments
and results there is one tile of logits, a few arrays of its size, and dh: never [M, V], and no
second [V, D]. The price is three matmuls in the backward pass instead of two.

XLA for TPU, where only `score` comes here by default, casts a float32 head to bfloat16 before the
loop, as a whole after all: 2 V D bytes.

The loop over the vocabulary is the outer one because dW is as large as the head and dh is not.
M rows, D width, V vocabulary, K the largest logits; m and v: rows and vocabulary of a tile.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from kernels.logprob import maths

# These sizes are arithmetic, not the best of a search; what they reach is in docs/performance.md,
# measured on 2 cores of an AMD EPYC with AVX2, 2026-11-21.
# Float32 logits of one tile: 8 MB stay in the last cache of a CPU core between matmul and softmax.
TILE_LOGITS = 2**21
# Rows of one tile: more do not make a matmul faster, and would make tiles of few tokens.
_TILE_ROWS = 2048
# The search for the largest logits sorts, which is cheaper on few wide tiles.
_SCORE_ROWS = 512

Carry = TypeVar("Carry")


def forward(
    tempering: maths.Tempering,
    hidden_MD: jax.Array,
    unembedding_VD: jax.Array,
    labels_M: jax.Array,
    threshold_M: jax.Array | None,
) -> maths.Partial:
    """Sums over this unembedding; labels_M count from its first row, and may lie outside."""
    M, V = hidden_MD.shape[0], unembedding_VD.shape[0]
    rows, columns = _tile_shape(M, V, _TILE_ROWS)

    def column_tile(v, size, part: maths.Partial) -> maths.Partial:
        unembedding_vD = _take(unembedding_VD, v, size).astype(hidden_MD.dtype)

        def tile(m, count, part: maths.Partial) -> maths.Partial:
            logits_mv = tempering(_products(_take(hidden_MD, m, count), unembedding_vD))
            labels_m = _take(labels_M, m, count) - v
            kept_mv = _kept(logits_mv, labels_m, threshold_M, m)
            return _merge(part, m, _sums(logits_mv, labels_m, kept_mv))

        return _over(M, rows, tile, part)

    return _over(V, columns, column_tile, maths.nothing((M,)))


def backward(
    tempering: maths.Tempering,
    hidden_MD: jax.Array,
    unembedding_VD: jax.Array,
    labels_M: jax.Array,
    threshold_M: jax.Array | None,
    pull: maths.Pull,
) -> tuple[jax.Array, jax.Array]:
    """dh and dW, each accumulated in float32 and returned in its argument's dtype."""
    (M, D), V = hidden_MD.shape, unembedding_VD.shape[0]
    rows, columns = _tile_shape(M, V, _TILE_ROWS)

    def column_tile(v, size, carry):
        dhidden_MD, dunembedding_VD = carry
        unembedding_vD = _take(unembedding_VD, v, size).astype(hidden_MD.dtype)

        def tile(m, count, carry):
            dhidden_MD, dunembedding_vD = carry
            hidden_mD = _take(hidden_MD, m, count)
            labels_m = _take(labels_M, m, count) - v
            logits_mv = tempering(_products(hidden_mD, unembedding_vD))
            dproducts_mv = maths.pull_back(
                tempering,
                maths.Pull(*[_take(x, m, count)[:, None] for x in pull]),
                logits_mv,
                _is_label(logits_mv, labels_m),
                _kept(logits_mv, labels_m, threshold_M, m),
            ).astype(hidden_MD.dtype)
            dhidden_mD = _take(dhidden_MD, m, count) + _dot(dproducts_mv, unembedding_vD, (1, 0))
            dunembedding_vD += _dot(dproducts_mv, hidden_mD, (0, 0))
            return _put(dhidden_MD, m, dhidden_mD), dunembedding_vD

        dunembedding_vD = jnp.zeros((size, D), jnp.float32)
        dhidden_MD, dunembedding_vD = _over(M, rows, tile, (dhidden_MD, dunembedding_vD))
        return dhidden_MD, _put(dunembedding_VD, v, dunembedding_vD.astype(dunembedding_VD.dtype))

    initial = (jnp.zeros((M, D), jnp.float32), jnp.zeros_like(unembedding_VD))
    dhidden_MD, dunembedding_VD = _over(V, columns, column_tile, initial)
    return dhidden_MD.astype(hidden_MD.dtype), dunembedding_VD


def score(
    top: int, hidden_MD: jax.Array, unembedding_VD: jax.Array, labels_M: jax.Array
) -> tuple[maths.Partial, jax.Array, jax.Array]:
    """Partial sums, and the `top` largest logits [M, K] with their ids; equal ones by lowest id."""
    M, V = hidden_MD.shape[0], unembedding_VD.shape[0]
    rows, columns = _tile_shape(M, V, _SCORE_ROWS)

    def column_tile(v, size, carry):
        unembedding_vD = _take(unembedding_VD, v, size).astype(hidden_MD.dtype)

        def tile(m, count, carry):
            part, best_MK, ids_MK = carry
            logits_mv = _products(_take(hidden_MD, m, count), unembedding_vD)
            part = _merge(part, m, _sums(logits_mv, _take(labels_M, m, count) - v, None))
            tile_mK, tile_ids_mK = jax.lax.top_k(logits_mv, min(top, size))
            # Earlier tiles first: top_k keeps the first of equals, and ids grow with the tiles.
            both_mK = jnp.concatenate([_take(best_MK, m, count), tile_mK], axis=1)
            both_ids_mK = jnp.concatenate([_take(ids_MK, m, count), tile_ids_mK + v], axis=1)
            best_mK, where_mK = jax.lax.top_k(both_mK, top)
            ids_mK = jnp.take_along_axis(both_ids_mK, where_mK, axis=1)
            return part, _put(best_MK, m, best_mK), _put(ids_MK, m, ids_mK)

        return _over(M, rows, tile, carry)

    nobody = jnp.full((M, top), -jnp.inf, jnp.float32), jnp.zeros((M, top), jnp.int32)
    return _over(V, columns, column_tile, (maths.nothing((M,)), *nobody))


def _tile_shape(M: int, V: int, most_rows: int) -> tuple[int, int]:
    """Rows and tokens of a tile: all of a small problem, else about equal parts."""
    if M * V <= TILE_LOGITS:
        return M, V
    rows = _part(M, most_rows, 8)
    return rows, _part(V, max(TILE_LOGITS // rows, 128), 128)


def _part(total: int, most: int, multiple: int) -> int:
    """The size of equal parts of at most about `most`: a last one that is nearly empty would waste
    the matmul's time."""
    count = -(-total // most)
    return min(total, -(-total // (count * multiple)) * multiple)


def _over(total: int, size: int, body: Callable[..., Carry], carry: Carry) -> Carry:
    """body(start, size, carry) over tiles of [0, total); what is left over is a tile of its own, so
    nothing is padded."""
    if size >= total:
        return body(0, total, carry)
    count, rest = divmod(total, size)
    carry = jax.lax.fori_loop(0, count, lambda i, carry: body(i * size, size, carry), carry)
    return body(count * size, rest, carry) if rest else carry


def _take(x: jax.Array, start, size: int) -> jax.Array:
    """x[start : start + size]."""
    if size == x.shape[0]:
        return x
    return jax.lax.dynamic_slice_in_dim(x, start, size)


def _put(x: jax.Array, start, part: jax.Array) -> jax.Array:
    """x with `part` from `start` on."""
    if part.shape[0] == x.shape[0]:
        return part
    return jax.lax.dynamic_update_slice_in_dim(x, part, start, axis=0)


def _merge(part: maths.Partial, m, tile: maths.Partial) -> maths.Partial:
    count = tile.max_M.shape[0]
    merged = maths.merge(maths.Partial(*[_take(x, m, count) for x in part]), tile)
    return maths.Partial(*[_put(x, m, y) for x, y in zip(part, merged, strict=True)])


def _sums(logits_mv, labels_m, kept_mv) -> maths.Partial:
    size = logits_mv.shape[1]
    greatest_m1, sum_m1, excess_m1 = maths.partial_sums(logits_mv, kept_mv, axis=1)
    inside_m = (labels_m >= 0) & (labels_m < size)
    # Read, not summed over a mask, which would be a further pass over the tile.
    label_m = jnp.take_along_axis(logits_mv, jnp.clip(labels_m, 0, size - 1)[:, None], axis=1)
    label_m = jnp.where(inside_m, label_m[:, 0], 0.0)
    return maths.Partial(greatest_m1[:, 0], sum_m1[:, 0], excess_m1[:, 0], label_m)


def _is_label(logits_mv, labels_m):
    return jax.lax.broadcasted_iota(jnp.int32, logits_mv.shape, 1) == labels_m[:, None]


def _kept(logits_mv, labels_m, threshold_M, m):
    if threshold_M is None:
        return None
    threshold_m = _take(threshold_M, m, logits_mv.shape[0])
    return maths.kept(logits_mv, threshold_m[:, None], _is_label(logits_mv, labels_m))


def _products(hidden_mD, unembedding_vD):
    return _dot(hidden_mD, unembedding_vD, (1, 1))


def _dot(a, b, contracting: tuple[int, int]):
    axes = ((contracting[0],), (contracting[1],))
    return jax.lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=jnp.float32)
