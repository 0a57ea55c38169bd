"""Branch attention against one dense softmax in float64, in training and in decoding.

Letters as in kernels/branch_attention/api.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels.branch_attention import api, chunked, decode, pallas_layout, specs

# In units of the result's largest magnitude.
TOLERANCE = {jnp.float32: 2e-6, jnp.bfloat16: 0.02}

# Packed documents (lo > 0), empty ranges, and some that end with the trunk.
SIZES = {"B": 2, "S": 18, "R": 5, "T": 4, "N": 6, "K": 3, "H": 4}
LO = np.array([[0, 2, 0, 9, 4], [1, 3, 18, 6, 12]], np.int32)
HI = np.array([[3, 18, 0, 9, 11], [16, 3, 18, 7, 18]], np.int32)


def dense(query, key, value, trunk_key, trunk_value, lo_BR, hi_BR, own_TU):
    """The oracle, apart from the op's own reference: every branch has a copy of all keys."""
    B, R, T, N, H = query.shape
    S, K = trunk_key.shape[1:3]

    def all_keys(trunk, own):
        copies = jnp.broadcast_to(trunk[:, None], (B, R, *trunk.shape[1:]))
        return jnp.repeat(jnp.concatenate([copies, own], axis=2), N // K, axis=3)

    seen = (np.arange(S) >= lo_BR[..., None]) & (np.arange(S) < hi_BR[..., None])
    masks = [np.broadcast_to(seen[:, :, None], (B, R, T, S))]
    masks.append(np.broadcast_to(own_TU, (B, R, *own_TU.shape)))
    mask = np.concatenate(masks, axis=-1)[:, :, :, None]
    logits = jnp.einsum("BRTNH,BRXNH->BRTNX", query, all_keys(trunk_key, key)) / np.sqrt(H)
    weights = jax.nn.softmax(logits, axis=-1, where=mask)
    return jnp.einsum("BRTNX,BRXNH->BRTNH", weights, all_keys(trunk_value, value))


def draw(B, S, R, T, N, K, H, dtype=jnp.float32):
    """query, key, value, trunk key, trunk value; weights of the result, whose sum is the loss."""
    rng = np.random.default_rng(0)
    shapes = (B, R, T, N, H), *[(B, R, T, K, H)] * 2, *[(B, S, K, H)] * 2
    arrays = [jnp.asarray(rng.normal(size=shape) * 1.5, dtype) for shape in shapes]
    return arrays, rng.normal(size=shapes[0])


def sizes(spec: specs.Spec) -> dict[str, int]:
    return {name: getattr(spec, name) for name in SIZES}


def attend(implementation, lo_BR, hi_BR, query, key, value, *trunk):
    return api.branch_attention(
        query, key, value, trunk, lo_BR, hi_BR, implementation=implementation
    )


def value_and_gradients(function, arrays, weight):
    mixed, pull = jax.vjp(function, *arrays)
    return mixed, *pull(jnp.asarray(weight, mixed.dtype))


def exact(arrays, lo_BR, hi_BR, weight):
    T = arrays[0].shape[2]
    function = functools.partial(dense, lo_BR=lo_BR, hi_BR=hi_BR, own_TU=np.tri(T, dtype=bool))
    with jax.enable_x64(True):
        arrays = [np.asarray(x, np.float64) for x in arrays]
        found = jax.jit(lambda *a: value_and_gradients(function, a, weight))(*arrays)
        return [np.asarray(x) for x in found]


@functools.cache
def solved(dtype, query_scale=1, trunk_scale=1):
    """A problem of SIZES, LO and HI: arrays, the loss's weights, result and gradients."""
    arrays, weight = draw(**SIZES, dtype=dtype)
    arrays[0], arrays[3] = arrays[0] * query_scale, arrays[3] * trunk_scale
    return arrays, weight, exact(arrays, LO, HI, weight)


def run(implementation, arrays, lo_BR, hi_BR, weight):
    function = functools.partial(attend, implementation, lo_BR, hi_BR)
    call = jax.jit(lambda *a: value_and_gradients(function, a, weight))
    if implementation != "pallas":
        return call(*arrays)
    with pltpu.force_tpu_interpret_mode():
        return jax.block_until_ready(call(*arrays))


def assert_close(found, expected, tolerance):
    for x, y in zip(found, expected, strict=True):
        scale = np.max(np.abs(y))
        np.testing.assert_allclose(np.asarray(x, np.float64), y, atol=tolerance * scale)


@pytest.fixture(params=["one", "many"])
def blocks(request, monkeypatch):
    """Sizes that hold the whole problem, or that divide neither its rows nor its trunk."""
    if request.param == "many":
        monkeypatch.setattr(chunked, "_ROWS", 25)
        monkeypatch.setattr(chunked, "_TILE", 7)
    return request.param


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_is_one_softmax_over_all_visible_keys(dtype, blocks):
    arrays, weight, expected = solved(dtype)
    found = run("chunked", arrays, LO, HI, weight)
    assert all(x.dtype == dtype for x in found)
    assert_close(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_reference(dtype):
    arrays, weight, expected = solved(dtype)
    assert_close(run("reference", arrays, LO, HI, weight), expected, TOLERANCE[dtype])


def test_large_logits_do_not_overflow(blocks):
    arrays, weight, expected = solved(jnp.float32, query_scale=100)
    assert_close(run("chunked", arrays, LO, HI, weight), expected, 1e-4)


def with_nan(arrays, first, last):
    """The trunk with no numbers before `first` and from `last` on."""
    *own, key, value = arrays
    return *own, *(x.at[:, :first].set(np.nan).at[:, last:].set(np.nan) for x in (key, value))


def test_tiles_beyond_the_furthest_cut_are_not_touched(monkeypatch):
    """What lies there is no number, and reaches neither result nor gradients."""
    monkeypatch.setattr(chunked, "_TILE", 4)
    arrays, weight = draw(1, 12, 2, 3, 2, 1, 4)
    lo_BR, hi_BR = np.array([[4, 5]]), np.array([[8, 7]])
    expected = exact(arrays, lo_BR, hi_BR, weight)
    found = run("chunked", with_nan(arrays, 4, 8), lo_BR, hi_BR, weight)
    assert_close(found, expected, 2e-6)


@pytest.fixture
def pallas_blocks(monkeypatch):
    """Blocks and tiles of 128, the least there are."""
    monkeypatch.setattr(pallas_layout, "_POSITIONS", 128)
    monkeypatch.setattr(pallas_layout, "_TRUNK_TILE", 128)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.usefixtures("pallas_blocks")
def test_pallas_in_blocks(dtype):
    """Two blocks of positions, the last branch sees no trunk; four tiles, of which the outer ones
    are seen by nobody and are no numbers; two tiles of own keys."""
    arrays, weight = draw(**sizes(specs.TINY["beyond_blocks"]), dtype=dtype)
    lo_BR = np.array([[130, 128, 300, 5]], np.int32)
    hi_BR = np.array([[384, 200, 350, 5]], np.int32)
    expected = exact(arrays, lo_BR, hi_BR, weight)
    found = run("pallas", with_nan(arrays, 128, 384), lo_BR, hi_BR, weight)
    assert_close(found, expected, TOLERANCE[dtype])


def test_pallas_of_grouped_queries_in_bfloat16():
    arrays, weight = draw(**sizes(specs.TINY["one_block"]), dtype=jnp.bfloat16)
    expected = exact(arrays, LO, HI, weight)
    assert_close(run("pallas", arrays, LO, HI, weight), expected, 0.02)


def test_memory_does_not_grow_with_rows_times_trunk():
    """Not even the rows' logits against one tile are held for all rows at once."""
    B, S, R, T, N, K, H = 1, 4096, 32, 32, 4, 2, 16
    arrays, weight = draw(B, S, R, T, N, K, H)
    cuts = np.full((B, R), S, np.int32)
    function = functools.partial(attend, None, cuts * 0, cuts)
    call = jax.jit(lambda *a: value_and_gradients(function, a, weight))
    temporary = call.lower(*arrays).compile().memory_analysis().temp_size_in_bytes
    operands = sum(x.nbytes for x in arrays)
    assert temporary < 6 * operands < 0.2 * (R * T * N * S * 4)


@pytest.mark.parametrize(
    ("count", "most", "size"), [(5, 8, 5), (32, 5, 4), (127, 42, 32), (9, 0, 1)]
)
def test_blocks_are_nearly_full(count, most, size):
    assert chunked.block_size(count, most) == size


# Decoding.


def decoding(implementation, arrays, lo_BR, hi_BR, extra=2):
    """The last position of branches, whose own keys are written into a past one by one."""
    query, key, value, *trunk = arrays
    B, R, T, K, H = key.shape
    past = api.empty_past(B, R, T - 1, K, H, key.dtype)
    past = api.extend(past, key[:, :, : T - 2], value[:, :, : T - 2], 0)
    past = api.append(past, key[:, :, T - 2], value[:, :, T - 2], jnp.int32(T - 2))
    past = api.append(api.grow(past, T + extra), key[:, :, -1], value[:, :, -1], T - 1)
    call = functools.partial(api.decode_attention, implementation=implementation)
    inputs = (query[:, :, -1], api.prepare_trunk(*trunk), lo_BR, hi_BR, past, jnp.int32(T))
    if implementation != "pallas":
        return jax.jit(call)(*inputs)
    with pltpu.force_tpu_interpret_mode():
        return jax.block_until_ready(jax.jit(call)(*inputs))


@pytest.fixture(params=["at once", "tiles"])
def decode_blocks(request, monkeypatch):
    if request.param == "tiles":
        monkeypatch.setattr(decode, "_AT_ONCE", 0)
        monkeypatch.setattr(decode, "_ROWS", 6)
        monkeypatch.setattr(decode, "_TILE", 7)
    return request.param


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_decoding_is_the_last_position_of_training(dtype, decode_blocks):
    arrays, _, expected = solved(dtype)
    for implementation in ["reference", "chunked"]:
        found = decoding(implementation, arrays, LO, HI)
        assert found.dtype == dtype
        assert_close([found], [expected[0][:, :, -1]], TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.usefixtures("pallas_blocks")
def test_decoding_by_pallas(dtype):
    """Two blocks of branches, of two documents; four tiles of a trunk, of which each block sees
    others, the outer ones are seen by nobody and are no numbers; every third branch sees none."""
    B, R = 2, 130
    arrays, weight = draw(B, 400, R, 3, 4, 2, 8, dtype=dtype)
    r = np.arange(R)
    lo_BR = np.stack([128 + r, np.where(r < 128, 256, 130)]).astype(np.int32)
    hi_BR = np.stack([np.minimum(lo_BR[0] + 1 + 2 * r, 384), lo_BR[1] + 1 + r % 120])
    hi_BR = np.where(r % 3 == 2, lo_BR, hi_BR).astype(np.int32)
    assert hi_BR.max() == 384
    expected = exact(arrays, lo_BR, hi_BR, weight)[0][:, :, -1]
    found = decoding("pallas", with_nan(arrays, 128, 384), lo_BR, hi_BR)
    assert found.dtype == dtype
    assert_close([found], [expected], TOLERANCE[dtype])


def test_decoding_survives_a_trunk_far_above_the_past(decode_blocks):
    """Weights relative to the past's maximum overflow: the second way to the softmax is taken."""
    arrays, _, expected = solved(jnp.float32, trunk_scale=300)
    assert_close([decoding("chunked", arrays, LO, HI)], [expected[0][:, :, -1]], 1e-4)


def test_decoding_skips_tiles_beyond_the_furthest_cut(monkeypatch):
    monkeypatch.setattr(decode, "_AT_ONCE", 0)
    monkeypatch.setattr(decode, "_TILE", 4)
    arrays, weight = draw(1, 12, 2, 3, 2, 1, 4)
    lo_BR, hi_BR = np.array([[4, 5]]), np.array([[8, 7]])
    expected = exact(arrays, lo_BR, hi_BR, weight)[0][:, :, -1]
    found = decoding("chunked", with_nan(arrays, 4, 8), lo_BR, hi_BR)
    assert_close([found], [expected], 2e-6)


def test_taken_branches_keep_their_past():
    arrays, _ = draw(2, 1, 5, 4, 6, 3, 4)
    key, value = arrays[1:3]
    past = api.extend(api.empty_past(2, 5, 6, 3, 4, key.dtype), key, value, 1)
    order_BR = jnp.array([[3, 0], [1, 4]])
    taken = api.take(past, order_BR)
    chosen = [jnp.take_along_axis(x, order_BR[..., None, None, None], 1) for x in (key, value)]
    expected = api.extend(api.empty_past(2, 2, 6, 3, 4, key.dtype), *chosen, 1)
    jax.tree.map(np.testing.assert_array_equal, taken, expected)


def test_a_past_cannot_shrink():
    with pytest.raises(ValueError, match="a past of 6 positions cannot be cut to 5"):
        api.grow(api.empty_past(1, 2, 6, 1, 4, jnp.float32), 5)


def test_a_step_writes_its_position_in_place():
    """Donated pasts in a loop are not copied: not one of them would fit into the temporaries."""
    B, R, U, N, K, H, S = 1, 16, 64, 4, 2, 16, 8
    shapes = jax.eval_shape(lambda: [api.empty_past(B, R, U, K, H, jnp.float32)] * 3)
    query = jax.ShapeDtypeStruct((B, R, N, H), jnp.float32)
    trunk = api.Trunk(*[jax.ShapeDtypeStruct((B, K, S, H), jnp.float32)] * 2)
    cuts = jnp.full((B, R), S)

    def steps(pasts, query, trunk):
        def body(t, state):
            query, pasts = state
            new = [api.append(past, query[:, :, :K], query[:, :, K:], t) for past in pasts]
            for past in new:
                query = api.decode_attention(query, trunk, cuts * 0, cuts, past, t + 1)
            return query, new

        return jax.lax.fori_loop(0, U, body, (query, pasts))

    compiled = jax.jit(steps, donate_argnums=0).lower(shapes, query, trunk).compile()
    one = sum(x.size * 4 for x in jax.tree.leaves(shapes[0]))
    assert compiled.memory_analysis().temp_size_in_bytes < one


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"implementation": "dense"}, "unknown implementation 'dense'"),
        ({"implementation": "pallas", "H": 12}, "head width 12 is no multiple of 8"),
        ({"N": 4}, "4 query heads cannot share 3"),
        ({"cuts": 6}, r"lo and hi must be \(2, 5\), not \(2, 6\)"),
    ],
)
def test_bad_input_raises(change, message):
    arrays, _ = draw(**SIZES | {k: v for k, v in change.items() if k in SIZES})
    cuts = np.zeros((2, change.get("cuts", 5)), np.int32)
    with pytest.raises(ValueError, match=message):
        attend(change.get("implementation"), cuts, cuts, *arrays)
