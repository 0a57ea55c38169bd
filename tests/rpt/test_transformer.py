"""Branch == separate row, packed == unpacked, decode == forward, and causality by gradients.

Letters as in rpt/model/transformer.py. One compiled program serves most tests: B documents of S
tokens, R branches of T tokens each, with a random linear functional of all hidden states.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.logprob import api as logprob
from rpt.model import config as config_lib
from rpt.model import decoding, transformer

B, S, R, T = 2, 12, 3, 5


class Batch(NamedTuple):
    """Inputs of trunk and branch."""

    tokens_BS: np.ndarray
    segments_BS: np.ndarray
    positions_BS: np.ndarray
    branch_BRT: np.ndarray
    lo_BR: np.ndarray
    hi_BR: np.ndarray


class Functional(NamedTuple):
    """Weights of the hidden states: what is differentiated is their weighted sum."""

    trunk_BSD: np.ndarray
    branch_BRTD: np.ndarray


def forward(model, params, batch: Batch):
    hidden_BSD, kv = transformer.trunk(
        model, params, batch.tokens_BS, batch.segments_BS, batch.positions_BS
    )
    start_BR = batch.hi_BR - batch.lo_BR
    hidden_BRTD, _ = transformer.branch(
        model, params, kv, batch.branch_BRT, batch.lo_BR, batch.hi_BR, start_BR
    )
    return hidden_BSD, hidden_BRTD


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, batch: Batch, functional: Functional):
    """Hidden states of trunk and branches, and the functional's gradient."""

    def loss(params):
        hidden = forward(model, params, batch)
        return sum(jnp.sum(w * h) for w, h in zip(functional, hidden, strict=True)), hidden

    grads, hidden = jax.grad(loss, has_aux=True)(params)
    return hidden, grads


@functools.partial(jax.jit, static_argnums=0)
def run_rows(model, params, tokens_BS, segments_BS, weight_BSD):
    """The oracle: each branch as a row of its own, through `trunk` alone."""

    def loss(params):
        positions = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
        hidden, _ = transformer.trunk(model, params, tokens_BS, segments_BS, positions)
        return jnp.sum(weight_BSD * hidden), hidden

    grads, hidden = jax.grad(loss, has_aux=True)(params)
    return hidden, grads


def make_batch(seed: int, hi_BR) -> Batch:
    """Whole documents: one segment per row."""
    rng = np.random.default_rng(seed)
    return Batch(
        rng.integers(0, 40, (B, S)),
        np.ones((B, S), np.int32),
        np.tile(np.arange(S, dtype=np.int32), (B, 1)),
        rng.integers(0, 40, (B, R, T)),
        np.zeros((B, R), np.int32),
        np.asarray(hi_BR, np.int32),
    )


def random_functional(seed: int) -> Functional:
    rng = np.random.default_rng(seed)
    return Functional(
        rng.normal(size=(B, S, 16)).astype(np.float32),
        rng.normal(size=(B, R, T, 16)).astype(np.float32),
    )


def assert_gradients_close(a, b, tolerance=1e-5):
    """Relative to the largest entry of each leaf."""
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        scale = np.abs(y).max()
        assert scale > 0, path
        np.testing.assert_allclose(x / scale, y / scale, atol=tolerance, err_msg=str(path))


@pytest.mark.parametrize("hi_BR", [[[3, 7, 12], [5, 5, 9]], [[1, 0, 11], [12, 2, 6]]])
def test_branch_is_a_separate_row(tiny_model, tiny_params, hi_BR):
    """Values and gradients; cuts at both ends, equal cuts, and a branch that sees no trunk."""
    batch = make_batch(1, hi_BR)
    functional = random_functional(2)._replace(trunk_BSD=np.zeros((B, S, 16), np.float32))
    (_, hidden_BRTD), grads = run(tiny_model, tiny_params, batch, functional)

    rows = np.zeros((B * R, S + T), np.int32)
    segments = np.zeros((B * R, S + T), np.int32)
    weight = np.zeros((B * R, S + T, 16), np.float32)
    for row in range(B * R):
        b, r = divmod(row, R)
        hi = batch.hi_BR[b, r]
        rows[row, :hi] = batch.tokens_BS[b, :hi]
        rows[row, hi : hi + T] = batch.branch_BRT[b, r]
        segments[row, : hi + T] = 1
        weight[row, hi : hi + T] = functional.branch_BRTD[b, r]
    hidden_rows, expected_grads = run_rows(tiny_model, tiny_params, rows, segments, weight)
    for row in range(B * R):
        b, r = divmod(row, R)
        hi = batch.hi_BR[b, r]
        expected = hidden_rows[row, hi : hi + T]
        np.testing.assert_allclose(hidden_BRTD[b, r], expected, atol=1e-5, rtol=1e-5)
    assert_gradients_close(grads, expected_grads)


def test_packed_is_unpacked(tiny_model, tiny_params):
    """Two documents in one row, with branches of both, against a row for each."""
    first = 5  # tokens of the first document; the second has S - first
    apart = make_batch(3, [[2, 5, 4], [3, 7, 1]])
    functional = random_functional(4)
    for array in (functional.trunk_BSD, functional.branch_BRTD):
        array[:, first if array.ndim == 3 else R :] = 0
    functional.trunk_BSD[1] = np.random.default_rng(5).normal(size=(S, 16))
    functional.trunk_BSD[1, S - first :] = 0

    packed = make_batch(6, [[2, 5, 5 + 3], [5 + 7, 5 + 1, 4]])
    for row in range(B):
        packed.tokens_BS[row, :first] = apart.tokens_BS[0, :first]
        packed.tokens_BS[row, first:] = apart.tokens_BS[1, : S - first]
    packed.segments_BS[:, first:] = 2
    packed.positions_BS[:, first:] = np.arange(S - first)
    packed.lo_BR[:] = [[0, 0, first], [first, first, 0]]
    # Where the branches and the hidden states of the two separate rows are in the packed rows.
    places = {(0, 0): (0, 0), (0, 1): (0, 1), (0, 2): (1, 2)}
    places |= {(1, 0): (0, 2), (1, 1): (1, 0), (1, 2): (1, 1)}
    packed_functional = Functional(*[np.zeros_like(x) for x in functional])
    packed_functional.trunk_BSD[0, :first] = functional.trunk_BSD[0, :first]
    packed_functional.trunk_BSD[0, first:] = functional.trunk_BSD[1, : S - first]
    for here, there in places.items():
        packed.branch_BRT[there] = apart.branch_BRT[here]
        packed_functional.branch_BRTD[there] = functional.branch_BRTD[here]

    hidden, grads = run(tiny_model, tiny_params, apart, functional)
    packed_hidden, packed_grads = run(tiny_model, tiny_params, packed, packed_functional)
    close = functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5)
    close(packed_hidden[0][0, :first], hidden[0][0, :first])
    close(packed_hidden[0][0, first:], hidden[0][1, : S - first])
    for here, there in places.items():
        close(packed_hidden[1][there], hidden[1][here])
    assert_gradients_close(packed_grads, grads)


@pytest.mark.parametrize("prefilled", [0, 2])
@pytest.mark.parametrize("tied_head", [True, False])
def test_decode_is_forward_whatever_the_cache_held(tiny_model, tiny_params, prefilled, tied_head):
    """Over the sampling copy, with caches longer than the branch and full of different garbage."""
    model = dataclasses.replace(tiny_model, tied_head=tied_head)
    params = dict(tiny_params) | ({} if tied_head else {"head": tiny_params["embedding"] + 1})
    batch = make_batch(7, [[3, 12, 5], [8, 0, 1]])
    (_, expected), _ = run(model, params, batch, random_functional(8))
    _, kv = jax.jit(transformer.trunk, static_argnums=0)(model, params, *batch[:3])
    copy = decoding.sampling_copy(model, params)
    np.testing.assert_array_equal(copy.unembedding_VD, transformer.unembedding(model, params))
    trunk = decoding.prepare_trunk(model, kv)
    rotations = decoding.rotations(model, trunk, T)
    lo_BR, hi_BR = jnp.zeros_like(batch.hi_BR), batch.hi_BR
    prefill = jax.jit(decoding.prefill, static_argnums=0)
    step = jax.jit(decoding.step, static_argnums=0)
    found = []
    for seed in (9, 10):
        generator = np.random.default_rng(seed)
        cache = jax.tree.map(
            lambda x, g=generator: jnp.asarray(g.normal(size=x.shape) * 1e3, x.dtype),
            decoding.empty_cache(model, B, R, T + 3),
        )
        if prefilled:
            tokens_BRT = batch.branch_BRT[:, :, :prefilled]
            cache = prefill(model, copy, kv, cache, tokens_BRT, lo_BR, hi_BR, hi_BR)
        parts = []
        for t in range(prefilled, T):
            hidden_BRD, cache = step(
                model, copy, trunk, cache, batch.branch_BRT[:, :, t], lo_BR, hi_BR, hi_BR,
                jnp.int32(t), rotations,
            )  # fmt: skip
            parts.append(hidden_BRD)
        found.append(np.stack(parts, axis=2))
    np.testing.assert_allclose(found[0], expected[:, :, prefilled:], atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(found[0], found[1])


def test_causality_by_gradients(tiny_model, tiny_params):
    """Every hidden state depends on exactly the tokens that it may see.

    All tokens are different, so row v of the embedding is one token of the batch.
    """
    ids = np.random.default_rng(11).permutation(40)
    length, R, T = 12, 3, 4
    segments_S = np.where(np.arange(length) < 5, 1, 2)
    positions_S = np.where(segments_S == 1, np.arange(length), np.arange(length) - 5)
    batch = Batch(
        ids[None, :length],
        segments_S[None],
        positions_S[None],
        ids[length : length + R * T].reshape(1, R, T),
        np.array([[5, 0, 5]]),
        np.array([[9, 3, 12]]),
    )
    direction = np.random.default_rng(12).normal(size=16).astype(np.float32)

    def projected(embedding):
        hidden = forward(tiny_model, tiny_params | {"embedding": embedding}, batch)
        return jnp.concatenate([(x @ direction).reshape(-1) for x in hidden])

    jacobian = jax.jit(jax.jacrev(projected))(tiny_params["embedding"])
    depends = np.abs(jacobian).max(-1)[:, ids] > 0  # [outputs, inputs], in the order of the ids
    s = np.arange(length)
    expected = np.zeros((length + R * T, 40), bool)
    same = segments_S[:, None] == segments_S[None, :]
    expected[:length, :length] = same & (s[None, :] <= s[:, None])
    for r in range(R):
        for t in range(T):
            row = expected[length + r * T + t]
            row[:length] = (s >= batch.lo_BR[0, r]) & (s < batch.hi_BR[0, r])
            row[length + r * T : length + r * T + t + 1] = True
    np.testing.assert_array_equal(depends, expected)


def test_no_branch_logit_depends_on_the_document_from_its_cut_on(tiny_model, tiny_params):
    """Bit for bit: other document tokens at and after the cut, and other branches."""
    batch = make_batch(13, [[3, 7, 12], [5, 1, 9]])
    functional = random_functional(14)
    unembedding = transformer.unembedding(tiny_model, tiny_params)

    def logits(batch):
        (_, hidden_BRTD), _ = run(tiny_model, tiny_params, batch, functional)
        return np.asarray(logprob.logits(hidden_BRTD, unembedding))

    expected = logits(batch)
    for r in range(R):
        hi_B1 = batch.hi_BR[:, r, None]
        after_BS = np.arange(S) >= hi_B1
        leaked = batch._replace(
            tokens_BS=np.where(after_BS, (batch.tokens_BS + 1) % 40, batch.tokens_BS),
            branch_BRT=(batch.branch_BRT + (np.arange(R) != r)[:, None]) % 40,
        )
        np.testing.assert_array_equal(logits(leaked)[:, r], expected[:, r])
        last_BS = np.arange(S) == hi_B1 - 1
        seen = batch._replace(
            tokens_BS=np.where(last_BS, (batch.tokens_BS + 1) % 40, batch.tokens_BS)
        )
        changed_BT = np.abs(logits(seen)[:, r] - expected[:, r]).max(-1)
        assert (changed_BT > 1e-4).all()


def test_logical_axes_are_those_of_the_parameters(tiny_model, tiny_params):
    axes = transformer.logical_axes(tiny_model)
    is_spec = lambda x: isinstance(x, jax.sharding.PartitionSpec)  # noqa: E731
    ranks = jax.tree.map(len, axes, is_leaf=is_spec)
    assert ranks == jax.tree.map(lambda x: x.ndim, tiny_params)
    assert transformer.num_parameters(tiny_model) == sum(
        x.size for x in jax.tree.leaves(tiny_params)
    )


def test_heads_that_do_not_group_are_refused():
    shape = {"vocab_size": 8, "width": 8, "num_layers": 1, "ff_width": 8}
    with pytest.raises(ValueError, match="multiple of num_kv_heads"):
        config_lib.ModelConfig(**shape, num_heads=3, num_kv_heads=2, head_width=4)
    with pytest.raises(ValueError, match="must be even"):
        config_lib.ModelConfig(**shape, num_heads=2, num_kv_heads=2, head_width=3)
