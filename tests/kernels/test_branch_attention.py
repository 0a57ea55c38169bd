"""Branch attention against one dense softmax over all visible keys.

Letters as in kernels/branch_attention/api.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.branch_attention import api

B, S, R, T, U, N, K, H = 2, 6, 3, 4, 5, 4, 2, 8
LO = np.array([[0, 2, 0], [1, 3, 6]], np.int32)
HI = np.array([[3, 6, 0], [6, 3, 6]], np.int32)  # three of the branches see nothing of the trunk


def dense(query_BRTNH, key_BRTKH, value_BRTKH, trunk, lo_BR, hi_BR, past, past_length):
    """The oracle: every branch gets a copy of all keys, and one masked softmax."""
    B, R, T, N, H = query_BRTNH.shape
    S = trunk[0].shape[1]
    keys, values = [
        jnp.concatenate(
            [jnp.broadcast_to(whole[:, None], (B, R, *whole.shape[1:])), own]
            + ([] if past is None else [past[i]]),
            axis=2,
        )
        for i, (whole, own) in enumerate(zip(trunk, (key_BRTKH, value_BRTKH), strict=True))
    ]
    s = jnp.arange(S)
    seen = (s >= lo_BR[..., None]) & (s < hi_BR[..., None])
    masks = [
        jnp.broadcast_to(seen[:, :, None, :], (B, R, T, S)),
        jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (B, R, T, T)),
    ]
    if past is not None:
        U = past[0].shape[2]
        masks.append(jnp.broadcast_to(jnp.arange(U) < past_length, (B, R, T, U)))
    mask = jnp.concatenate(masks, axis=-1)[:, :, :, None, :]
    repeat = functools.partial(jnp.repeat, repeats=N // keys.shape[3], axis=3)
    logits = jnp.einsum("BRTNH,BRXNH->BRTNX", query_BRTNH, repeat(keys)) / np.sqrt(H)
    weights = jax.nn.softmax(logits, axis=-1, where=mask)
    return jnp.einsum("BRTNX,BRXNH->BRTNH", weights, repeat(values))


def inputs(with_past: bool, T: int = T, dtype=np.float32):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) * 2, dtype)  # noqa: E731
    floats = {
        "query": draw(B, R, T, N, H),
        "key": draw(B, R, T, K, H),
        "value": draw(B, R, T, K, H),
        "trunk": (draw(B, S, K, H), draw(B, S, K, H)),
    }
    if with_past:
        floats["past"] = (draw(B, R, U, K, H), draw(B, R, U, K, H))
    return floats


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(function, floats, past_length, weight):
    def loss(floats):
        mixed = function(
            floats["query"],
            floats["key"],
            floats["value"],
            floats["trunk"],
            LO,
            HI,
            floats.get("past"),
            past_length,
        )
        return jnp.sum(weight * mixed), mixed

    grads, mixed = jax.grad(loss, has_aux=True)(floats)
    return mixed, grads


@pytest.mark.parametrize(
    ("with_past", "past_length", "T"), [(False, None, T), (True, 3, T), (True, 0, T), (True, 5, 1)]
)
def test_is_one_softmax_over_all_visible_keys(with_past, past_length, T):
    floats = inputs(with_past, T)
    weight = np.random.default_rng(1).normal(size=(B, R, T, N, H)).astype(np.float32)
    mixed, grads = value_and_gradients(api.branch_attention, floats, past_length, weight)
    expected, expected_grads = value_and_gradients(dense, floats, past_length, weight)
    np.testing.assert_allclose(mixed, expected, atol=1e-5, rtol=1e-5)
    for x, y in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5, rtol=1e-5)


def test_large_logits_do_not_overflow():
    """The parts have their own maxima: a merge without them would be inf / inf."""
    floats = inputs(with_past=True)
    floats["query"] = floats["query"] * 100
    mixed, grads = value_and_gradients(api.branch_attention, floats, 2, jnp.float32(1))
    expected, _ = value_and_gradients(dense, floats, 2, jnp.float32(1))
    np.testing.assert_allclose(mixed, expected, atol=1e-4, rtol=1e-4)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_bfloat16_differs_by_its_rounding_only():
    floats = inputs(with_past=True)
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), floats)
    mixed, _ = value_and_gradients(api.branch_attention, halves, 4, jnp.float32(1))
    rounded = jax.tree.map(lambda x: x.astype(jnp.float32), halves)
    expected, _ = value_and_gradients(dense, rounded, 4, jnp.float32(1))
    assert mixed.dtype == jnp.bfloat16
    np.testing.assert_allclose(mixed.astype(np.float32), expected, atol=0.05, rtol=0.05)
