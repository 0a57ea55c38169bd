"""Trunk attention against one dense softmax in float64, and its TPU form.

Letters as in kernels/trunk_attention/api.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels.trunk_attention import api
from tests.kernels import tpu_topologies

SEGMENTS = np.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 12], np.int32)


def dense(query, key, value, segments_BS):
    N, H = query.shape[2:]
    key, value = (np.repeat(x, N // key.shape[2], axis=2) for x in (key, value))
    logits = jnp.einsum("BSNH,BXNH->BNSX", query, key) / np.sqrt(H)
    visible = np.tril(segments_BS[:, :, None] == segments_BS[:, None, :])
    weights = jax.nn.softmax(logits, where=visible[:, None], axis=-1)
    return jnp.einsum("BNSX,BXNH->BSNH", weights, value)


def draw(B, S, N, K, H, dtype=np.float32):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(B, S, heads, H)).astype(dtype) for heads in (N, K, K, N)]


def value_and_gradients(function, arrays, weight):
    mixed, pull = jax.vjp(function, *arrays)
    return mixed, *pull(weight.astype(mixed.dtype))


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.05)])
def test_is_causal_attention_within_segments(dtype, tolerance):
    *arrays, weight = draw(2, 12, 4, 2, 8)
    arrays = [jnp.asarray(x, dtype) for x in arrays]
    found = value_and_gradients(lambda *a: api.trunk_attention(*a, SEGMENTS), arrays, weight)
    with jax.enable_x64(True):
        exact = [np.asarray(x, np.float64) for x in arrays]
        expected = value_and_gradients(lambda *a: dense(*a, SEGMENTS), exact, weight)
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == dtype
        np.testing.assert_allclose(np.asarray(x, np.float64), y, atol=tolerance, rtol=tolerance)


def test_splash_is_the_same():
    """With a tile that holds nothing but another segment, and grouped queries."""
    *arrays, weight = draw(1, 256, 2, 1, 64)
    segments_BS = np.repeat([1, 2, 0], [128, 100, 28])[None].astype(np.int32)

    def run(implementation):
        def function(*arrays):
            return api.trunk_attention(*arrays, segments_BS, implementation=implementation)

        return jax.jit(lambda *a: value_and_gradients(function, a, weight))(*arrays)

    with pltpu.force_tpu_interpret_mode():
        found = jax.block_until_ready(run("splash"))
    for x, y in zip(found, run("xla"), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("S", "H", "implementation", "message"),
    [
        (256, 64, "chunked", "choose one of xla, splash"),
        (200, 64, "splash", "multiple of 128"),
        (256, 80, "splash", "and H=80 of 64"),
    ],
)
def test_requests_that_cannot_be_met_raise(S, H, implementation, message):
    *arrays, _ = draw(1, S, 2, 1, H)
    with pytest.raises(ValueError, match=message):
        api.trunk_attention(*arrays, np.ones((1, S), np.int32), implementation=implementation)


def test_shapes_that_do_not_fit_raise():
    query, key, value, _ = draw(1, 8, 3, 2, 4)
    with pytest.raises(ValueError, match="need shapes"):
        api.trunk_attention(query, key, value, np.ones((1, 8), np.int32))


@tpu_topologies.needs_libtpu
@pytest.mark.parametrize("H", [64, 128])
@pytest.mark.parametrize("generation", tpu_topologies.GENERATIONS)
def test_compiles_for_tpu(generation, H):
    """Forward and backward are kernels there; no logits [S, S] are left in the program."""
    S = 640
    query, key = (jax.ShapeDtypeStruct((1, S, heads, H), jnp.bfloat16) for heads in (2, 1))
    segments = jax.ShapeDtypeStruct((1, S), jnp.int32)

    def gradients(query, key, segments_BS, dout):
        _, pull = jax.vjp(lambda q, k: api.trunk_attention(q, k, k, segments_BS), query, key)
        return pull(dout)

    text = tpu_topologies.compile_for(generation, gradients, query, key, segments, query).as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 3  # forward, dq, dkv
    assert f"{S},{S}]" not in text
