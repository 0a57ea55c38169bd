"""The vocabulary split over devices == on one. Run by test_eight_devices.py.

Letters: M rows, D width, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, PartitionSpec

from kernels.logprob import api, chunked

M, D, V = 16, 6, 8 * 37
OPTIONS = {"temperature": 0.7, "logit_scale": 1.2, "soft_cap": 4.0}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """A loop and a remainder on every shard of up to 4."""
    monkeypatch.setattr(chunked, "TILE_LOGITS", 512)
    monkeypatch.setattr(chunked, "_TILE_ROWS", 8)
    monkeypatch.setattr(chunked, "_SCORE_ROWS", 8)


def make_mesh(rows: int, shards: int) -> Mesh:
    devices = np.asarray(jax.devices()[: rows * shards])
    return Mesh(devices.reshape(rows, shards), ("fsdp", "tensor"))


def inputs():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(M, D)), jnp.float32)
    unembedding = jnp.asarray(rng.normal(size=(V, D)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, V, M), jnp.int32)
    weights = jnp.asarray(rng.normal(size=(3, M)), jnp.float32)
    threshold = jnp.asarray(rng.uniform(-1, 1, M), jnp.float32)
    return hidden, unembedding, labels, weights, threshold


def split(function, mesh, threshold):
    """`function` of each shard's rows and tokens."""
    row = PartitionSpec("fsdp")
    return jax.shard_map(
        functools.partial(function, vocab_axis="tensor"),
        mesh=mesh,
        in_specs=(row, PartitionSpec("tensor"), row, None if threshold is None else row),
        out_specs=row,
        check_vma=False,
    )


def gradient(function):
    def loss(hidden, unembedding, labels, weights, threshold):
        result = function(hidden, unembedding, labels, threshold)
        return sum(jnp.sum(w * x) for w, x in zip(weights, result, strict=True)), result

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))


def op(implementation):
    def call(hidden, unembedding, labels, threshold, vocab_axis=None):
        return api.logprob(
            hidden,
            unembedding,
            labels,
            threshold_M=threshold,
            vocab_axis=vocab_axis,
            implementation=implementation,
            **OPTIONS,
        )

    return call


def assert_same(found, expected):
    """Gradients, and values to 1e-5 of a nat, however large they are."""
    (gradients, values), (expected_gradients, expected_values) = found, expected
    for x, y in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-5)
    for x, y in zip(values, expected_values, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("rows", "shards", "truncated"),
    [(1, 1, True), (1, 2, True), (1, 4, True), (1, 8, True), (2, 4, False)],
)
def test_values_and_gradients(rows, shards, truncated):
    """One matmul's rows over fsdp too; no logits are gathered."""
    *arrays, threshold = inputs()
    threshold = threshold if truncated else None
    expected = gradient(op("reference"))(*arrays, threshold)
    mesh = make_mesh(rows, shards)
    found = gradient(split(op("chunked"), mesh, threshold)).lower(*arrays, threshold).compile()
    assert_same(found(*arrays, threshold), expected)
    assert "all-gather" not in found.as_text()


def test_the_reference_is_split_too():
    *arrays, threshold = inputs()
    expected = gradient(op("reference"))(*arrays, threshold)
    found = gradient(split(op("reference"), make_mesh(1, 4), threshold))
    assert_same(found(*arrays, threshold), expected)


@pytest.mark.parametrize("shards", [2, 8])
def test_the_tpu_kernel_is_split_too(shards):
    *arrays, threshold = inputs()
    expected = gradient(op("reference"))(*arrays, threshold)
    with pltpu.force_tpu_interpret_mode():
        found = gradient(split(op("pallas"), make_mesh(1, shards), threshold))(*arrays, threshold)
        assert_same(found, expected)


@pytest.mark.parametrize(("shards", "top"), [(1, 16), (2, 16), (8, 1), (8, 16), (8, 40)])
def test_scores(shards, top):
    """Equal logits by lowest id across shards too, and more of them than a shard has tokens."""
    hidden, unembedding, labels, *_ = inputs()
    hidden, unembedding = (jnp.round(x * 2) / 2 for x in (hidden, unembedding))

    def call(hidden, unembedding, labels, _, vocab_axis=None):
        return api.score(hidden, unembedding, labels, top=top, vocab_axis=vocab_axis)

    expected = api.score(hidden, unembedding, labels, top=top, implementation="reference")
    found = jax.jit(split(call, make_mesh(1, shards), None))(hidden, unembedding, labels, None)
    np.testing.assert_array_equal(found.top_ids_MK, expected.top_ids_MK)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5, rtol=0)
