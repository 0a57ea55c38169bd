"""TPU kernels: a tile of logits lives in VMEM only, forward and backward.

One set of kernels computes softmax attention in which every query row sees one range [lo, hi) of a
sequence of keys. Both parts of branch attention are of that kind:

    part    keys                                     range of a row of branch r at time t
    trunk   the document's S                         [lo_r, hi_r)
    own     those of all branches, R*T in a row      [r*T, r*T + t + 1)

and so is decoding's trunk, with one row per query head. The parts are merged by their log-sum-exps
outside, where XLA fuses it with the transposition to the caller's layout. The backward kernels
take the log-sum-exp of the merged softmax and delta = sum(dout * out), so each part's gradients
are those of the whole:

    p = exp(k q - lse)   dp = v dout   ds = p * (dp - delta)   dq = k^T ds   dk = ds q   dv = p dout

Decoding's past has keys of its own for every branch: there is nothing to share and nothing to keep
on the chip, so XLA's fused sums read it once, as a kernel would.

Tiles are [s, m]: rows of the problem lie along lanes, so that everything known per row (range,
maximum, sum, lse, delta) is a vector [1, m] without padding, and sums over keys are sums of whole
registers. Queries and results are [H, M] for the same reason: H = 64 would fill half of the lanes.

    kernel    grid                               resident         accumulates in float32
    forward   (B, K, row blocks, visits)         q                maximum, sum [1, m], mix [H, m]
    dquery    (B, K, row blocks, visits)         q, dout          dq [H, m]
    dkey      (B, K, key tiles, visits)          k, v             dk, dv [s, H]

Visits walk the key tiles that any row of the block sees (dkey: the row blocks that see the tile),
from the first to the last, which are prefetched as scalars; visits beyond the last compute nothing
and, their block being the last one's, fetch nothing. All but visits are parallel.

HBM, trunk part: queries and results once; the trunk's keys and values once per row block (m / g
positions of branches), M / m * S * H. dkey reads the queries and dout once per key tile. The
reference writes and reads logits of [M, S + T] in float32 several times per head.

VMEM, in bytes, with e the bytes of an element, Hl = H rounded up to lanes (128):

    q, dout                    2 x 2 m H e        twice: the next one arrives meanwhile
    k, v                       2 x 2 s Hl e
    result                     2 x m H 4          dkey: 2 x 2 s Hl 4
    accumulator                m H 4              dkey: the result itself
    rows' vectors              8 x 2 x 8 m 4      a [1, m] block takes 8 sublanes
    tiles of logits            5 x 4 s m          logits, mask, p, dp, ds

m = s = 512, H = 128, float32: 1 + 1 + 1 + 0.25 + 0.25 + 5 MiB = 8.5 of the 16 MiB that every
generation allows.

Letters: kernels/branch_attention/api.py; also M = R*T*g rows, X keys; m, s: those of a block.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.branch_attention import cache, decode

# Most rows of a block and keys of a tile. Chosen by the arithmetic above and compiled for v4, v5e,
# v5p, v6e and TPU7x; not yet timed on a chip. A row block's own keys are few: m / g + T.
_ROWS = 512
_TRUNK_TILE = 512
_OWN_TILE = 128
_LANES = 128
_MAX_HEAD_WIDTH = 256
_FLOOR = -1e30


class _Keys(NamedTuple):
    """One part: keys and values, and which of them each row sees."""

    key_BKXH: jax.Array
    value_BKXH: jax.Array
    lo_B1M: jax.Array
    hi_B1M: jax.Array
    first_Bi: jax.Array  # key tiles that a row block sees
    last_Bi: jax.Array
    first_Bj: jax.Array  # row blocks that see a key tile
    last_Bj: jax.Array
    tile: int
    tile_visits: int
    row_visits: int


def unsupported(query: jax.Array, *others: jax.Array) -> str | None:
    """Why the kernels cannot take these, or None. The head width is the last axis of `query`."""
    arrays = (query, *others)
    if any(x.dtype not in (jnp.float32, jnp.bfloat16) for x in arrays):
        return f"dtypes must be float32 or bfloat16, not {', '.join(str(x.dtype) for x in arrays)}"
    if any(0 in x.shape for x in arrays):
        return f"empty operands {', '.join(str(x.shape) for x in arrays)}"
    H = query.shape[-1]
    if H % 8 or H > _MAX_HEAD_WIDTH:
        return f"head width {H} is no multiple of 8 up to {_MAX_HEAD_WIDTH}"
    return None


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
    sizes = query_BRTNH.shape, key_BRTKH.shape[3]
    query_BKHM = _scaled_rows(query_BRTNH, sizes[1])
    trunk = _trunk_keys(query_BRTNH, trunk_key_BSKH, trunk_value_BSKH, lo_BR, hi_BR)
    own = _own_keys(query_BRTNH, key_BRTKH, value_BRTKH)
    (mix, lse), (own_mix, own_lse) = (_forward(query_BKHM, keys) for keys in (trunk, own))
    total_BK1M = jnp.logaddexp(lse, own_lse)
    mix = mix * jnp.exp(lse - total_BK1M) + own_mix * jnp.exp(own_lse - total_BK1M)
    mix_BRTNH = _from_rows(mix, *sizes)
    return mix_BRTNH.astype(query_BRTNH.dtype), _from_rows(total_BK1M, *sizes)[..., 0]


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
    B, R, T, K, H = key_BRTKH.shape
    S = trunk_key_BSKH.shape[1]
    delta_BRTN = jnp.sum(dout_BRTNH.astype(jnp.float32) * out_BRTNH, -1)
    rows = (
        _scaled_rows(query_BRTNH, K),
        _to_rows(dout_BRTNH.astype(query_BRTNH.dtype), K),
        _to_rows(lse_BRTN[..., None], K),
        _to_rows(delta_BRTN[..., None], K),
    )
    trunk = _trunk_keys(query_BRTNH, trunk_key_BSKH, trunk_value_BSKH, lo_BR, hi_BR)
    own = _own_keys(query_BRTNH, key_BRTKH, value_BRTKH)
    dquery_BKHM = (_dquery(rows, trunk) + _dquery(rows, own)) * H**-0.5
    dtrunk = [jnp.swapaxes(x[:, :, :S], 1, 2) for x in _dkey(rows, trunk)]
    down = [jnp.moveaxis(x[:, :, : R * T].reshape(B, K, R, T, H), 1, 3) for x in _dkey(rows, own)]
    return (
        _from_rows(dquery_BKHM, query_BRTNH.shape, K).astype(query_BRTNH.dtype),
        down[0].astype(key_BRTKH.dtype),
        down[1].astype(value_BRTKH.dtype),
        dtrunk[0].astype(trunk_key_BSKH.dtype),
        dtrunk[1].astype(trunk_value_BSKH.dtype),
    )


def decode_attention(
    query_BRNH: jax.Array,
    trunk: cache.Trunk,
    lo_BR: jax.Array,
    hi_BR: jax.Array,
    past: cache.Past,
    length: jax.Array,
) -> jax.Array:
    """api.decode_attention: the kernel for the trunk, XLA for the past."""
    K = past.key_BRKHU.shape[2]
    query_BRTNH = query_BRNH[:, :, None]
    sizes = query_BRTNH.shape, K
    keys = _keys(query_BRTNH, *trunk, lo_BR[..., None], hi_BR[..., None], _TRUNK_TILE)
    mix, lse = (
        _from_rows(x, *sizes)[:, :, 0] for x in _forward(_scaled_rows(query_BRTNH, K), keys)
    )
    logits_BRKgU = decode.past_logits(decode.scaled_query(query_BRNH, K), past, length)
    shift_BRKg1 = jnp.max(logits_BRKgU, -1, keepdims=True)
    total, past_mix = decode.past_sums(logits_BRKgU, shift_BRKg1, past)
    past_lse = (shift_BRKg1 + jnp.log(total)).reshape(lse.shape)
    past_mix = (past_mix / total).reshape(mix.shape)
    both = jnp.logaddexp(lse, past_lse)
    out = mix * jnp.exp(lse - both) + past_mix * jnp.exp(past_lse - both)
    return out.astype(query_BRNH.dtype)


def _forward(query_BKHM: jax.Array, keys: _Keys) -> tuple[jax.Array, jax.Array]:
    """The part's mix [B, K, H, M] and log-sum-exp [B, K, 1, M]; of a row that sees nothing, 0 and
    _FLOOR."""
    B, K, H, M = query_BKHM.shape
    query, key, row, mapped_row = _specs("rows", query_BKHM, keys)
    m = M // keys.first_Bi.shape[1]
    return pl.pallas_call(
        _forward_kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, K, keys.first_Bi.shape[1], keys.tile_visits),
            in_specs=[row, row, query, key, key],
            out_specs=[query, mapped_row],
            scratch_shapes=[
                pltpu.VMEM((1, m), jnp.float32),
                pltpu.VMEM((1, m), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((B, K, H, M), jnp.float32),
            jax.ShapeDtypeStruct((B, K, 1, M), jnp.float32),
        ],
        compiler_params=_COMPILER_PARAMS,
        cost_estimate=_cost("rows", 2, query_BKHM, keys),
        name="branch_attention_forward",
    )(*_flat(keys.first_Bi, keys.last_Bi), keys.lo_B1M, keys.hi_B1M, query_BKHM, *keys[:2])


def _dquery(rows: tuple[jax.Array, ...], keys: _Keys) -> jax.Array:
    """The part's gradient of the scaled queries, [B, K, H, M] in float32."""
    B, K, H, M = rows[0].shape
    query, key, row, mapped_row = _specs("rows", rows[0], keys)
    return pl.pallas_call(
        _dquery_kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, K, keys.first_Bi.shape[1], keys.tile_visits),
            in_specs=[row, row, query, query, mapped_row, mapped_row, key, key],
            out_specs=query,
        ),
        out_shape=jax.ShapeDtypeStruct((B, K, H, M), jnp.float32),
        compiler_params=_COMPILER_PARAMS,
        cost_estimate=_cost("rows", 3, rows[0], keys),
        name="branch_attention_dquery",
    )(*_flat(keys.first_Bi, keys.last_Bi), keys.lo_B1M, keys.hi_B1M, *rows, *keys[:2])


def _dkey(rows: tuple[jax.Array, ...], keys: _Keys) -> tuple[jax.Array, jax.Array]:
    """Gradients of the part's keys and values, [B, K, X, H] in float32."""
    B, K, X, H = keys.key_BKXH.shape
    query, key, row, mapped_row = _specs("keys", rows[0], keys)
    bounds = (keys.first_Bj, keys.last_Bj, keys.first_Bi, keys.last_Bi)
    return pl.pallas_call(
        functools.partial(_dkey_kernel, keys.first_Bi.shape[1]),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(B, K, X // keys.tile, keys.row_visits),
            in_specs=[row, row, query, query, mapped_row, mapped_row, key, key],
            out_specs=[key, key],
        ),
        out_shape=[jax.ShapeDtypeStruct((B, K, X, H), jnp.float32)] * 2,
        compiler_params=_COMPILER_PARAMS,
        cost_estimate=_cost("keys", 4, rows[0], keys),
        name="branch_attention_dkey",
    )(*_flat(*bounds), keys.lo_B1M, keys.hi_B1M, *rows, *keys[:2])


def _forward_kernel(first, last, lo, hi, query, key, value, mix, lse, maximum, total):
    visit = pl.program_id(3)

    @pl.when(visit == 0)
    def _():
        maximum[...] = jnp.full_like(maximum, _FLOOR)
        total[...] = jnp.zeros_like(total)
        mix[...] = jnp.zeros_like(mix)

    tile = _visited(first, last)

    @pl.when(tile < last[_place()])
    def _():
        logits, seen = _logits(tile, lo, hi, query, key)
        new = jnp.maximum(maximum[...], jnp.max(jnp.where(seen, logits, _FLOOR), 0, keepdims=True))
        weights = jnp.where(seen, jnp.exp(logits - new), 0.0)
        shrink = jnp.exp(maximum[...] - new)
        maximum[...] = new
        total[...] = total[...] * shrink + jnp.sum(weights, 0, keepdims=True)
        mix[...] = mix[...] * shrink + _dot(value[...], weights, 0, 0)

    @pl.when(visit == pl.num_programs(3) - 1)
    def _():
        some = total[...] > 0
        safe = jnp.where(some, total[...], 1.0)
        mix[...] = mix[...] / safe
        lse[...] = jnp.where(some, maximum[...] + jnp.log(safe), _FLOOR)


def _dquery_kernel(first, last, lo, hi, query, dout, lse, delta, key, value, dquery):
    @pl.when(pl.program_id(3) == 0)
    def _():
        dquery[...] = jnp.zeros_like(dquery)

    tile = _visited(first, last)

    @pl.when(tile < last[_place()])
    def _():
        _, dlogits = _dlogits(tile, lo, hi, query, dout, lse, delta, key, value)
        dquery[...] += _dot(key[...], dlogits, 0, 0)


def _dkey_kernel(
    row_blocks, first_j, last_j, first_i, last_i, lo, hi, query, dout, lse, delta, key, value,
    dkey, dvalue,
):  # fmt: skip
    @pl.when(pl.program_id(3) == 0)
    def _():
        dkey[...] = jnp.zeros_like(dkey)
        dvalue[...] = jnp.zeros_like(dvalue)

    tile = pl.program_id(2)
    block = _visited(first_j, last_j)
    exists = block < last_j[_place()]
    place = pl.program_id(0) * row_blocks + jnp.where(exists, block, 0)

    # Between the first and the last there may be blocks that do not see the tile.
    @pl.when(exists & (first_i[place] <= tile) & (tile < last_i[place]))
    def _():
        weights, dlogits = _dlogits(tile, lo, hi, query, dout, lse, delta, key, value)
        dkey[...] += _dot(dlogits, query[...], 1, 1)
        dvalue[...] += _dot(weights, dout[...], 1, 1)


def _logits(tile, lo, hi, query, key):
    """[s, m] of a tile, and which are visible."""
    logits = _dot(key[...], query[...], 1, 0)
    x = tile * logits.shape[0] + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0)
    return logits, (x >= lo[...]) & (x < hi[...])


def _dlogits(tile, lo, hi, query, dout, lse, delta, key, value):
    """Weights and the gradient of logits, [s, m]."""
    logits, seen = _logits(tile, lo, hi, query, key)
    weights = jnp.where(seen, jnp.exp(logits - lse[...]), 0.0)
    return weights, weights * (_dot(value[...], dout[...], 1, 0) - delta[...])


def _dot(a, b, contract_a: int, contract_b: int):
    """In the dtype of the operand that is an input, summed in float32."""
    dtype = jnp.bfloat16 if jnp.bfloat16 in (a.dtype, b.dtype) else jnp.float32
    axes = (((contract_a,), (contract_b,)), ((), ()))
    a, b = a.astype(dtype), b.astype(dtype)
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _place():
    return pl.program_id(0) * pl.num_programs(2) + pl.program_id(2)


def _visited(first, last):
    """The tile or block of this visit, which may lie beyond the last."""
    del last
    return first[_place()] + pl.program_id(3)


_COMPILER_PARAMS = pltpu.CompilerParams(
    dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
)


def _specs(resident: str, query_BKHM: jax.Array, keys: _Keys):
    """Blocks of queries, keys, ranges [B, 1, M] and rows' vectors [B, K, 1, M]; `resident` says
    whether rows or keys stay while the grid's last axis walks the others."""
    H, M = query_BKHM.shape[2:]
    s, m = keys.tile, M // keys.first_Bi.shape[1]
    count = keys.first_Bi.shape[1] if resident == "rows" else keys.first_Bj.shape[1]

    def walked(b, stays, visit, first, last):
        place = b * count + stays
        return jnp.maximum(jnp.minimum(first[place] + visit, last[place] - 1), 0)

    def row(b, stays, visit, first, last, *_):
        return stays if resident == "rows" else walked(b, stays, visit, first, last)

    def key(b, stays, visit, first, last, *_):
        return stays if resident == "keys" else walked(b, stays, visit, first, last)

    return (
        pl.BlockSpec((None, None, H, m), lambda b, k, *place: (b, k, 0, row(b, *place))),
        pl.BlockSpec((None, None, s, H), lambda b, k, *place: (b, k, key(b, *place), 0)),
        pl.BlockSpec((None, 1, m), lambda b, k, *place: (b, 0, row(b, *place))),
        pl.BlockSpec((None, None, 1, m), lambda b, k, *place: (b, k, 0, row(b, *place))),
    )


def _cost(resident: str, matmuls: int, query_BKHM: jax.Array, keys: _Keys) -> pl.CostEstimate:
    """As if every tile that may be visited were."""
    B, K, H, M = query_BKHM.shape
    X, row_blocks = keys.key_BKXH.shape[2], keys.first_Bi.shape[1]
    if resident == "rows":
        met, row_reads, key_reads = M * keys.tile_visits * keys.tile, 1, row_blocks
    else:
        met, row_reads, key_reads = X * keys.row_visits * (M // row_blocks), X // keys.tile, 1
    return pl.CostEstimate(
        flops=2 * matmuls * B * K * met * H,
        transcendentals=B * K * met,
        bytes_accessed=row_reads * 2 * query_BKHM.nbytes + key_reads * 2 * keys.key_BKXH.nbytes,
    )


def _flat(*bounds: jax.Array) -> list[jax.Array]:
    return [x.reshape(-1) for x in bounds]


def _trunk_keys(query_BRTNH, trunk_key_BSKH, trunk_value_BSKH, lo_BR, hi_BR) -> _Keys:
    key, value = (jnp.swapaxes(x, 1, 2) for x in (trunk_key_BSKH, trunk_value_BSKH))
    return _keys(query_BRTNH, key, value, lo_BR[..., None], hi_BR[..., None], _TRUNK_TILE)


def _own_keys(query_BRTNH, key_BRTKH, value_BRTKH) -> _Keys:
    B, R, T, K, H = key_BRTKH.shape
    key, value = (jnp.moveaxis(x, 3, 1).reshape(B, K, R * T, H) for x in (key_BRTKH, value_BRTKH))
    lo_BRT = np.broadcast_to(np.arange(R, dtype=np.int32)[:, None] * T, (B, R, T))
    hi_BRT = lo_BRT + np.arange(1, T + 1, dtype=np.int32)
    return _keys(query_BRTNH, key, value, lo_BRT, hi_BRT, _OWN_TILE)


def _keys(query_BRTNH, key_BKXH, value_BKXH, lo_BRT, hi_BRT, most: int) -> _Keys:
    """Ranges that are numpy arrays are known now, and so is how many tiles a row block sees."""
    xp = np if isinstance(lo_BRT, np.ndarray) else jnp
    B, R, T, N, _ = query_BRTNH.shape
    K, X = key_BKXH.shape[1:3]
    m, s = _block(R * T * (N // K), _ROWS), _block(X, most)
    lo_BM, hi_BM = (
        _padded(xp.repeat(xp.broadcast_to(x, (B, R, T)).reshape(B, -1), N // K, 1), 1, m)
        for x in (lo_BRT, xp.minimum(hi_BRT, X))
    )
    key, value = (_padded(x, 2, s) for x in (key_BKXH, value_BKXH))
    tiles, blocks = key.shape[2] // s, lo_BM.shape[1] // m
    lo_Bim, hi_Bim = (x.reshape(B, blocks, m) for x in (lo_BM, hi_BM))
    seen_Bim = hi_Bim > lo_Bim
    last_Bi = -(-xp.max(xp.where(seen_Bim, hi_Bim, 0), -1) // s)
    first_Bi = xp.minimum(xp.min(xp.where(seen_Bim, lo_Bim, X), -1) // s, last_Bi)
    j = xp.arange(tiles)[:, None]
    seen_Bji = (first_Bi[:, None] <= j) & (j < last_Bi[:, None])
    any_Bj = xp.any(seen_Bji, -1)
    first_Bj = xp.argmax(seen_Bji, -1)
    last_Bj = xp.where(any_Bj, blocks - xp.argmax(seen_Bji[..., ::-1], -1), 0)
    known = xp is np
    return _Keys(
        key,
        value,
        lo_BM[:, None],
        hi_BM[:, None],
        *(jnp.asarray(x, jnp.int32) for x in (first_Bi, last_Bi, first_Bj, last_Bj)),
        tile=s,
        tile_visits=int(np.max(last_Bi - first_Bi)) if known else tiles,
        row_visits=int(np.max(last_Bj - first_Bj)) if known else blocks,
    )


def _block(count: int, most: int) -> int:
    """At most about `most`, whole lanes, blocks of equal size."""
    return _up(-(-count // -(-count // most)), _LANES)


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _padded(x, axis: int, multiple: int) -> Any:
    """By zeros: keys that no row sees, or rows that see no key."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return np.pad(x, widths) if isinstance(x, np.ndarray) else jnp.pad(x, widths)


def _scaled_rows(query_BRTNH: jax.Array, K: int) -> jax.Array:
    scale = query_BRTNH.shape[-1] ** -0.5
    return _to_rows((query_BRTNH * scale).astype(query_BRTNH.dtype), K)


def _to_rows(x_BRTNX: jax.Array, K: int) -> jax.Array:
    """[B, K, X, M], M padded to whole blocks."""
    B, R, T, N, X = x_BRTNX.shape
    x = x_BRTNX.reshape(B, R * T, K, N // K, X)
    x = jnp.transpose(x, (0, 2, 4, 1, 3)).reshape(B, K, X, -1)
    return _padded(x, 3, _block(x.shape[3], _ROWS))


def _from_rows(x_BKXM: jax.Array, shape: tuple[int, ...], K: int) -> jax.Array:
    """[B, R, T, N, X]"""
    B, R, T, N, _ = shape
    x = x_BKXM[..., : R * T * (N // K)].reshape(B, K, -1, R * T, N // K)
    return jnp.transpose(x, (0, 3, 1, 4, 2)).reshape(B, R, T, N, -1)
