"""TPU kernels: a tile of logits lives in VMEM only, forward and backward.

One set of kernels computes softmax attention in which every position sees one range [lo, hi) of a
sequence of keys. Both parts of branch attention are of that kind, and so is decoding's trunk:

    part    keys                                     range of branch r at time t
    trunk   the document's S                         [lo_r, hi_r)
    own     those of all branches, R*T in a row      [r*T, r*T + t + 1)

The parts are merged by their log-sum-exps outside, where XLA fuses it with the transposition to the
caller's layout. The backward kernels take the log-sum-exp of the merged softmax and delta =
sum(dout * out), so each part's gradients are those of the whole:

    p = exp(k q - lse)   dp = v dout   ds = p * (dp - delta)   dq = k^T ds   dk = ds q   dv = p dout

Decoding's past has keys of its own for every branch: there is nothing to share and nothing to keep
on the chip. It is left to XLA's batched products, which read it once, as a kernel would; sums of
multiplications, as decode.py has them for CPUs, would write and read it in float32.

Tiles of logits are [s, p], one after the other for the g query heads that share the keys. Positions
lie along lanes, so that everything known per position (range, maximum, sum, lse, delta) is a vector
[1, p] without padding, and sums over keys are sums of whole registers. Queries and results are
[H, P] for the same reason: H = 64 would fill half of the lanes.

    kernel    grid                           resident    accumulates in float32
    forward   (B, K, blocks of P, visits)    q           maximum, sum [g, p], mix [g, H, p]
    dquery    (B, K, blocks of P, visits)    q, dout     dq [g, H, p]
    dkey      (B, K, key tiles, visits)      k, v        dk, dv [s, H]

Visits walk the key tiles that any position of the block sees (dkey: the blocks that see the tile),
from the first to the last, which are prefetched as scalars; visits beyond the last compute nothing
and, their block being the last one's, fetch nothing. All axes but visits are parallel.

HBM, trunk part: queries and results once; keys and values once per block of positions, P / p * S *
H. dkey reads queries and dout once per key tile. The reference writes and reads logits of
[R*T*g, S + T] in float32 several times per key/value head.

VMEM, in bytes, with e the bytes of an element, Hl = H rounded up to lanes (128):

    q, dout                    2 x 2 g p H e      twice: the next one arrives meanwhile
    k, v                       2 x 2 s Hl e
    result                     2 x g p H 4        dkey: 2 x 2 s Hl 4
    vectors                    12 x 8 p 4         a [1, p] block takes 8 sublanes
    tiles of logits            5 x 4 s p          logits, mask, p, dp, ds

p = 256, s = 512, H = 128, g = 6, float32: 3 + 1 + 1.5 + 0.1 + 2.5 MiB = 8.1 of the 16 MiB that
every generation allows; `unsupported` says what does not fit.

Letters: kernels/branch_attention/api.py; also P = R*T positions, X keys; p, s: those of a block.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.branch_attention import cache, chunked, decode, pallas_layout

_MAX_HEAD_WIDTH = 256
_MAX_QUERY_ELEMENTS = 8 * 128  # g * H of a key/value head, by the table above
_FLOOR = -1e30
_COMPILER_PARAMS = pltpu.CompilerParams(
    dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
)


def unsupported(K: int, *arrays: jax.Array) -> str | None:
    """Why the kernels cannot take these, the first of which is the query, or None."""
    if any(x.dtype not in (jnp.float32, jnp.bfloat16) for x in arrays):
        return f"dtypes must be float32 or bfloat16, not {', '.join(str(x.dtype) for x in arrays)}"
    if any(0 in x.shape for x in arrays):
        return f"empty operands {', '.join(str(x.shape) for x in arrays)}"
    N, H = arrays[0].shape[-2:]
    if H % 8 or H > _MAX_HEAD_WIDTH:
        return f"head width {H} is no multiple of 8 up to {_MAX_HEAD_WIDTH}"
    if N // K * H > _MAX_QUERY_ELEMENTS:
        return f"{N // K} query heads of width {H} per key/value head need too much VMEM"
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
    _, R, T, K, _ = key_BRTKH.shape
    query_BKgHP = pallas_layout.scaled_query(query_BRTNH, K)
    trunk = _trunk(trunk_key_BSKH, trunk_value_BSKH, lo_BR, hi_BR, T)
    own = pallas_layout.own(key_BRTKH, value_BRTKH)
    (mix, lse), (own_mix, own_lse) = (_forward(query_BKgHP, keys) for keys in (trunk, own))
    both_BKgP = jnp.logaddexp(lse, own_lse)
    share, own_share = (jnp.exp(x - both_BKgP)[..., None, :] for x in (lse, own_lse))
    out_BRTNH = pallas_layout.from_lanes(mix * share + own_mix * own_share, R, T)
    lse_BRTN = pallas_layout.from_lanes(both_BKgP[..., None, :], R, T)[..., 0]
    return out_BRTNH.astype(query_BRTNH.dtype), lse_BRTN


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
        pallas_layout.scaled_query(query_BRTNH, K),
        pallas_layout.to_lanes(dout_BRTNH.astype(query_BRTNH.dtype), K),
        pallas_layout.to_lanes(lse_BRTN[..., None], K)[..., 0, :],
        pallas_layout.to_lanes(delta_BRTN[..., None], K)[..., 0, :],
    )
    trunk = _trunk(trunk_key_BSKH, trunk_value_BSKH, lo_BR, hi_BR, T)
    own = pallas_layout.own(key_BRTKH, value_BRTKH)
    dquery_BKgHP = (_dquery(rows, trunk) + _dquery(rows, own)) * H**-0.5
    dtrunk = [jnp.swapaxes(x[:, :, :S], 1, 2) for x in _dkey(rows, trunk)]
    down = [jnp.moveaxis(x[:, :, : R * T].reshape(B, K, R, T, H), 1, 3) for x in _dkey(rows, own)]
    return (
        pallas_layout.from_lanes(dquery_BKgHP, R, T).astype(query_BRTNH.dtype),
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
    """api.decode_attention: the kernel for the trunk, batched products of XLA for the past."""
    B, R, N, H = query_BRNH.shape
    K = past.key_BRKHU.shape[2]
    query_BKgHP = pallas_layout.scaled_query(query_BRNH[:, :, None], K)
    mix, lse = _forward(query_BKgHP, pallas_layout.trunk(*trunk, lo_BR, hi_BR, 1))
    mix, lse = (
        pallas_layout.from_lanes(x, R, 1).reshape(B, R, K, N // K, -1)
        for x in (mix, lse[..., None, :])
    )
    query_BRKgH = decode.scaled_query(query_BRNH, K)
    logits_BRKgU = chunked.dot("BRKgH,BRKHU->BRKgU", query_BRKgH, past.key_BRKHU)
    logits_BRKgU = jnp.where(jnp.arange(past.capacity) < length, logits_BRKgU, _FLOOR)
    shift_BRKg1 = jnp.max(logits_BRKgU, -1, keepdims=True)
    weights_BRKgU = jnp.exp(logits_BRKgU - shift_BRKg1)
    total = jnp.sum(weights_BRKgU, -1, keepdims=True)
    past_mix = chunked.dot("BRKgU,BRKUH->BRKgH", weights_BRKgU, past.value_BRKUH)
    # In units of the larger part's maximum, as neither may overflow the other's.
    largest = jnp.maximum(shift_BRKg1, lse)
    share, trunk_share = jnp.exp(shift_BRKg1 - largest), jnp.exp(lse - largest)
    out = (mix * trunk_share + past_mix * share) / (trunk_share + total * share)
    return out.reshape(B, R, N, H).astype(query_BRNH.dtype)


def _trunk(key_BSKH, value_BSKH, lo_BR, hi_BR, T: int) -> pallas_layout.Keys:
    arrays = cache.prepare_trunk(key_BSKH, value_BSKH)
    return pallas_layout.trunk(*arrays, lo_BR, hi_BR, T)


def _forward(query_BKgHP: jax.Array, keys: pallas_layout.Keys) -> tuple[jax.Array, jax.Array]:
    """The part's mix [B, K, g, H, P] and log-sum-exp [B, K, g, P]; of a position that sees nothing,
    0 and _FLOOR."""
    B, K, g, H, P = query_BKgHP.shape
    query, key, range_, vector = _specs("positions", query_BKgHP, keys)
    return pl.pallas_call(
        _forward_kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, K, keys.blocks, keys.tile_visits),
            in_specs=[range_, range_, query, key, key],
            out_specs=[query, vector],
            scratch_shapes=[pltpu.VMEM((g, P // keys.blocks), jnp.float32)] * 2,
        ),
        out_shape=[
            jax.ShapeDtypeStruct((B, K, g, H, P), jnp.float32),
            jax.ShapeDtypeStruct((B, K, g, P), jnp.float32),
        ],
        compiler_params=_COMPILER_PARAMS,
        cost_estimate=_cost("positions", 2, query_BKgHP, keys),
        name="branch_attention_forward",
    )(*_flat(keys.first_Bi, keys.last_Bi), keys.lo_B1P, keys.hi_B1P, query_BKgHP, *keys[:2])


def _dquery(rows: tuple[jax.Array, ...], keys: pallas_layout.Keys) -> jax.Array:
    """The part's gradient of the scaled queries, [B, K, g, H, P] in float32."""
    B, K = rows[0].shape[:2]
    query, key, range_, vector = _specs("positions", rows[0], keys)
    return pl.pallas_call(
        _dquery_kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, K, keys.blocks, keys.tile_visits),
            in_specs=[range_, range_, query, query, vector, vector, key, key],
            out_specs=query,
        ),
        out_shape=jax.ShapeDtypeStruct(rows[0].shape, jnp.float32),
        compiler_params=_COMPILER_PARAMS,
        cost_estimate=_cost("positions", 3, rows[0], keys),
        name="branch_attention_dquery",
    )(*_flat(keys.first_Bi, keys.last_Bi), keys.lo_B1P, keys.hi_B1P, *rows, *keys[:2])


def _dkey(rows: tuple[jax.Array, ...], keys: pallas_layout.Keys) -> tuple[jax.Array, jax.Array]:
    """Gradients of the part's keys and values, [B, K, X, H] in float32."""
    B, K = rows[0].shape[:2]
    query, key, range_, vector = _specs("keys", rows[0], keys)
    bounds = (keys.first_Bj, keys.last_Bj, keys.first_Bi, keys.last_Bi)
    return pl.pallas_call(
        functools.partial(_dkey_kernel, keys.blocks),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(B, K, keys.tiles, keys.block_visits),
            in_specs=[range_, range_, query, query, vector, vector, key, key],
            out_specs=[key, key],
        ),
        out_shape=[jax.ShapeDtypeStruct(keys.key_BKXH.shape, jnp.float32)] * 2,
        compiler_params=_COMPILER_PARAMS,
        cost_estimate=_cost("keys", 4, rows[0], keys),
        name="branch_attention_dkey",
    )(*_flat(*bounds), keys.lo_B1P, keys.hi_B1P, *rows, *keys[:2])


def _forward_kernel(first, last, lo, hi, query, key, value, mix, lse, maximum, total):
    @pl.when(pl.program_id(3) == 0)
    def _():
        maximum[...] = jnp.full_like(maximum, _FLOOR)
        total[...] = jnp.zeros_like(total)
        mix[...] = jnp.zeros_like(mix)

    tile = _visited(first)

    @pl.when(tile < last[_place()])
    def _():
        seen = _seen(tile, lo, hi, key)
        for i in range(query.shape[0]):
            row = pl.ds(i, 1)
            logits = jnp.where(seen, _dot(key[...], query[i], 1, 0), _FLOOR)
            new = jnp.maximum(maximum[row], jnp.max(logits, 0, keepdims=True))
            weights = jnp.where(seen, jnp.exp(logits - new), 0.0)
            shrink = jnp.exp(maximum[row] - new)
            maximum[row] = new
            total[row] = total[row] * shrink + jnp.sum(weights, 0, keepdims=True)
            mix[i] = mix[i] * shrink + _dot(value[...], weights, 0, 0)

    @pl.when(pl.program_id(3) == pl.num_programs(3) - 1)
    def _():
        some = total[...] > 0
        safe = jnp.where(some, total[...], 1.0)
        lse[...] = jnp.where(some, maximum[...] + jnp.log(safe), _FLOOR)
        for i in range(query.shape[0]):
            mix[i] = mix[i] / safe[i : i + 1]


def _dquery_kernel(first, last, lo, hi, query, dout, lse, delta, key, value, dquery):
    @pl.when(pl.program_id(3) == 0)
    def _():
        dquery[...] = jnp.zeros_like(dquery)

    tile = _visited(first)

    @pl.when(tile < last[_place()])
    def _():
        seen = _seen(tile, lo, hi, key)
        for i in range(query.shape[0]):
            _, dlogits = _dlogits(i, seen, query, dout, lse, delta, key, value)
            dquery[i] += _dot(key[...], dlogits, 0, 0)


def _dkey_kernel(
    blocks, first_j, last_j, first_i, last_i, lo, hi, query, dout, lse, delta, key, value,
    dkey, dvalue,
):  # fmt: skip
    @pl.when(pl.program_id(3) == 0)
    def _():
        dkey[...] = jnp.zeros_like(dkey)
        dvalue[...] = jnp.zeros_like(dvalue)

    tile, block = pl.program_id(2), _visited(first_j)
    exists = block < last_j[_place()]
    place = pl.program_id(0) * blocks + jnp.where(exists, block, 0)

    # Between the first and the last there may be blocks that do not see the tile.
    @pl.when(exists & (first_i[place] <= tile) & (tile < last_i[place]))
    def _():
        seen = _seen(tile, lo, hi, key)
        for i in range(query.shape[0]):
            weights, dlogits = _dlogits(i, seen, query, dout, lse, delta, key, value)
            dkey[...] += _dot(dlogits, query[i], 1, 1)
            dvalue[...] += _dot(weights, dout[i], 1, 1)


def _seen(tile, lo, hi, key):
    """[s, p]: which keys of a tile are visible."""
    shape = (key.shape[0], lo.shape[1])
    x = tile * shape[0] + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    return (x >= lo[...]) & (x < hi[...])


def _dlogits(i: int, seen, query, dout, lse, delta, key, value):
    """Weights and the gradient of logits of query head i, [s, p]."""
    row = pl.ds(i, 1)
    weights = jnp.where(seen, jnp.exp(_dot(key[...], query[i], 1, 0) - lse[row]), 0.0)
    return weights, weights * (_dot(value[...], dout[i], 1, 0) - delta[row])


def _dot(a, b, contract_a: int, contract_b: int):
    """In the dtype of the operand that is an input, summed in float32."""
    dtype = jnp.bfloat16 if jnp.bfloat16 in (a.dtype, b.dtype) else jnp.float32
    axes = (((contract_a,), (contract_b,)), ((), ()))
    a, b = a.astype(dtype), b.astype(dtype)
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _place():
    return pl.program_id(0) * pl.num_programs(2) + pl.program_id(2)


def _visited(first):
    """The tile or block of this visit, which may lie beyond the last."""
    return first[_place()] + pl.program_id(3)


def _flat(*bounds: jax.Array) -> list[jax.Array]:
    return [x.reshape(-1) for x in bounds]


def _specs(resident: str, query_BKgHP: jax.Array, keys: pallas_layout.Keys):
    """Blocks of queries, of keys, of ranges [B, 1, P] and of vectors [B, K, g, P]; `resident` says
    whether positions or keys stay while the grid's last axis walks the others."""
    g, H, P = query_BKgHP.shape[2:]
    s, p = keys.tile, P // keys.blocks
    count = keys.blocks if resident == "positions" else keys.tiles

    def walked(b, stays, visit, first, last):
        place = b * count + stays
        return jnp.maximum(jnp.minimum(first[place] + visit, last[place] - 1), 0)

    def block(b, stays, visit, first, last, *_):
        return stays if resident == "positions" else walked(b, stays, visit, first, last)

    def tile(b, stays, visit, first, last, *_):
        return stays if resident == "keys" else walked(b, stays, visit, first, last)

    return (
        pl.BlockSpec((None, None, g, H, p), lambda b, k, *at: (b, k, 0, 0, block(b, *at))),
        pl.BlockSpec((None, None, s, H), lambda b, k, *at: (b, k, tile(b, *at), 0)),
        pl.BlockSpec((None, 1, p), lambda b, k, *at: (b, 0, block(b, *at))),
        pl.BlockSpec((None, None, g, p), lambda b, k, *at: (b, k, 0, block(b, *at))),
    )


def _cost(
    resident: str, matmuls: int, query_BKgHP: jax.Array, keys: pallas_layout.Keys
) -> pl.CostEstimate:
    """As if every tile that may be visited were."""
    B, K, g, H, P = query_BKgHP.shape
    X = keys.key_BKXH.shape[2]
    if resident == "positions":
        met, query_reads, key_reads = P * keys.tile_visits * keys.tile, 1, keys.blocks
    else:
        met, query_reads, key_reads = X * keys.block_visits * (P // keys.blocks), keys.tiles, 1
    return pl.CostEstimate(
        flops=2 * matmuls * B * K * g * met * H,
        transcendentals=B * K * g * met,
        bytes_accessed=query_reads * 2 * query_BKgHP.nbytes + key_reads * 2 * keys.key_BKXH.nbytes,
    )
