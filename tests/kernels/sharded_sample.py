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

from kernels.sample import api, chunked, noise, tiles

M, D, V = 20, 4, 8 * 37
OPTIONS = {
    "plain": {"temperature": 0.7},
    "greedy": {"temperature": 0.0},
    "top_k": {"temperature": 1.0, "top_k": 7},
    "top_p_of_most": {"temperature": 2.0, "top_p": 0.99},
    "both": {"temperature": 0.8, "top_k": 60, "top_p": 0.8},
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles, groups and row blocks on every shard; few bins: some rows fall back."""
    monkeypatch.setattr(tiles, "_MIN_TILE", 16)
    monkeypatch.setattr(tiles, "_MAX_TILE", 16)
    monkeypatch.setattr(chunked, "_ROWS", 12)
    monkeypatch.setattr(chunked, "_SMALL", 0)
    monkeypatch.setattr(chunked, "_BINS", 4)


def inputs(exact: bool):
    rng = np.random.default_rng(0)
    hidden, unembedding = rng.normal(size=(M, D)), rng.normal(size=(V, D))
    if exact:
        hidden, unembedding = np.round(hidden * 4) / 4, np.round(unembedding * 8) / 8
    keys = noise.fold(noise.root_keys(0, M), jnp.arange(M))
    return jnp.asarray(hidden, jnp.float32), jnp.asarray(unembedding, jnp.float32), keys


@functools.cache
def split(shards: int, **options):
    """Compiled once for all inputs, which have one shape; every test has the fixture's tiles."""
    devices = np.asarray(jax.devices()[:shards])
    return jax.jit(
        jax.shard_map(
            functools.partial(api.sample, vocab_axis="tensor", **options),
            mesh=Mesh(devices, ("tensor",)),
            in_specs=(PartitionSpec(), PartitionSpec("tensor"), PartitionSpec()),
            out_specs=PartitionSpec(),
            check_vma=False,
        )
    )


def assert_same(found, expected):
    np.testing.assert_array_equal(found.token_M, expected.token_M)
    np.testing.assert_array_equal(found.best_M, expected.best_M)
    for field in ("log_prob_M", "threshold_M", "log_mass_M"):
        x, y = getattr(found, field), getattr(expected, field)
        np.testing.assert_allclose(x, y, atol=1e-5, rtol=0, err_msg=field)


CASES = [(name, shards, True) for name in ("plain", "both") for shards in (1, 2, 4, 8)]
CASES += [(name, 8, True) for name in ("greedy", "top_k", "top_p_of_most")]
CASES += [(name, shards, False) for name in ("plain", "both") for shards in (1, 2, 4, 8)]


def least_gap(arrays, expected, temperature: float) -> float:
    """Of all rows: between the best two logits, the best two of the race that decides the token,
    and the last logit kept and the first dropped; in float64, of tempered logits."""
    hidden, unembedding, keys = arrays
    z_MV = np.asarray(hidden, np.float64) @ np.asarray(unembedding, np.float64).T / temperature
    kept_MV = z_MV >= np.asarray(expected.threshold_M)[:, None]
    race_MV = np.where(kept_MV, z_MV, -np.inf) + noise.gumbel(keys, jnp.arange(V))
    gaps = [np.diff(np.sort(x_MV)[:, -2:]).min() for x_MV in (z_MV, race_MV)]
    edges_M = np.where(kept_MV, z_MV, np.inf).min(1) - np.where(kept_MV, -np.inf, z_MV).max(1)
    return min(*gaps, edges_M.min())


@pytest.mark.parametrize(("name", "shards", "exact"), CASES)
def test_any_number_of_shards_draws_the_same_tokens(name, shards, exact):
    """Products of float inputs may be rounded by the tile's shape: this seed's leave no row whose
    outcome 1e-5 could change."""
    arrays = inputs(exact)
    expected = api.sample(*arrays, implementation="reference", **OPTIONS[name])
    if not exact:
        assert least_gap(arrays, expected, OPTIONS[name]["temperature"]) > 1e-5
    found = split(shards, implementation="chunked", **OPTIONS[name])(*arrays)
    assert_same(found, expected)


@pytest.mark.parametrize(("name", "shards"), [("plain", 8), ("top_k", 2)])
def test_the_kernel_on_every_shard(name, shards):
    arrays = inputs(exact=True)
    expected = api.sample(*arrays, implementation="reference", **OPTIONS[name])
    with pltpu.force_tpu_interpret_mode():
        assert_same(split(shards, implementation="pallas", **OPTIONS[name])(*arrays), expected)


def test_no_logits_are_gathered():
    """What is exchanged is of rows, and with truncation of a few logits per row and shard."""
    for name, most in (("plain", M), ("both", 8 * 76 * M)):
        text = (
            split(8, implementation="chunked", **OPTIONS[name])
            .lower(*inputs(exact=True))
            .compile()
            .as_text()
        )
        sizes = [
            int(np.prod([int(n) for n in line.split("[")[1].split("]")[0].split(",") if n]))
            for line in text.splitlines()
            if " = " in line and ("all-gather(" in line or "all-reduce(" in line)
        ]
        assert sizes
        assert max(sizes) <= most


def test_rows_may_be_split_as_well():
    """Blocks of rows decide for themselves whether they need further passes."""
    hidden, unembedding, keys = inputs(exact=True)
    hidden = hidden.at[: M // 2].multiply(0.0)
    mesh = Mesh(np.asarray(jax.devices()).reshape(2, 4), ("fsdp", "tensor"))
    rows = PartitionSpec("fsdp")
    options = OPTIONS["top_k"]
    call = jax.shard_map(
        functools.partial(api.sample, vocab_axis="tensor", implementation="chunked", **options),
        mesh=mesh,
        in_specs=(rows, PartitionSpec("tensor"), rows),
        out_specs=rows,
        check_vma=False,
    )
    expected = api.sample(hidden, unembedding, keys, implementation="reference", **options)
    assert_same(jax.jit(call)(hidden, unembedding, keys), expected)
