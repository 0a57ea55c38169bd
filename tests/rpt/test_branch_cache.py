"""The cache of branches: its sizes, and that it is never there twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.branch_attention import api as branch_attention
from rpt import branch_cache

L, B, R, U, K, H = 3, 2, 4, 6, 2, 8


@pytest.mark.parametrize(
    ("first", "last", "sizes"),
    [
        (1032, 1040, [1040]),
        (14, 29, [14, 29]),
        (6, 15, [6, 12, 15]),
        (6, 14, [6, 14]),
        (64, 12, [12]),
        (24, 8208, [24, 48, 96, 192, 384, 768, 1536, 3072, 6144, 8208]),
    ],
)
def test_the_last_size_holds_everything_and_is_worth_its_program(first, last, sizes):
    assert branch_cache.ladder(first, last) == sizes


@pytest.mark.parametrize(
    ("live", "multiple", "expected"), [(17, 1, 32), (16, 1, 16), (3, 1, 4), (3, 8, 8), (1, 32, 32)]
)
def test_branches_shrink_by_halves_to_an_eighth_at_most(live, multiple, expected):
    assert branch_cache.width(live, 32, multiple) == expected


@pytest.fixture
def cache() -> tuple[branch_attention.Past, ...]:
    empty = branch_attention.empty_past(B, R, U, K, H, jnp.float32)
    keys = jax.random.split(jax.random.key(0), 2 * L).reshape(L, 2)
    return tuple(
        branch_attention.Past(*[jax.random.normal(k, x.shape) for k, x in zip(pair, empty)])
        for pair in keys
    )


@pytest.mark.parametrize("way", ["grow", "take"])
def test_beside_the_new_cache_lives_one_old_layer(monkeypatch, cache, way):
    """When a layer is made all those before it are gone, and in the end all are."""
    name = f"{'_' * (way == 'take')}{way}_layer"
    original, gone = getattr(branch_cache, name), []

    def watched(past, **changes):
        gone.append([x.is_deleted() for x in jax.tree.leaves(cache)])
        return original(past, **changes)

    monkeypatch.setattr(branch_cache, name, watched)
    before = jax.tree.map(np.asarray, cache)
    order_BR = jnp.array([[3, 1], [0, 2]])
    found = {
        "grow": lambda: branch_cache.grow(cache, 2 * U),
        "take": lambda: branch_cache.take(cache, order_BR),
    }[way]()
    assert gone == [[True] * 2 * i + [False] * 2 * (L - i) for i in range(L)]
    assert all(x.is_deleted() for x in jax.tree.leaves(cache))
    for past, old in zip(found, before, strict=True):
        if way == "grow":
            np.testing.assert_array_equal(past.key_BRKHU[..., :U], old.key_BRKHU)
            np.testing.assert_array_equal(past.value_BRKUH[..., :U, :], old.value_BRKUH)
            assert past.capacity == 2 * U
        else:
            rows = np.arange(B)[:, None]
            np.testing.assert_array_equal(past.key_BRKHU, old.key_BRKHU[rows, order_BR])
            np.testing.assert_array_equal(past.value_BRKUH, old.value_BRKUH[rows, order_BR])
