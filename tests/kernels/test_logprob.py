"""Log-probabilities, entropy and their gradients against float64 in numpy.

Letters: M rows, D width, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.logprob import api

M, D, V = 10, 6, 17


class Reference(NamedTuple):
    """float64 values, and the gradient of sum(a * log_prob + b * log_sum_exp + c * entropy)."""

    log_prob_M: np.ndarray
    log_sum_exp_M: np.ndarray
    entropy_M: np.ndarray
    hidden_MD: np.ndarray
    unembedding_VD: np.ndarray


def reference(hidden, unembedding, labels, weights_3M, temperature, threshold) -> Reference:
    """By the textbook: d log p_y / d logit_j = 1[j = y] - p_j, and dH / d logit_j = -p_j (log p_j
    + H), over the tokens kept."""
    hidden, unembedding = hidden.astype(np.float64), unembedding.astype(np.float64)
    logits = hidden @ unembedding.T / temperature
    onehot = np.arange(V) == labels[:, None]
    kept = np.ones_like(onehot) if threshold is None else (logits >= threshold[:, None]) | onehot
    log_sum_exp = np.log(np.sum(np.where(kept, np.exp(logits), 0), axis=1))
    log_p = np.where(kept, logits - log_sum_exp[:, None], 0)
    p = np.where(kept, np.exp(log_p), 0)
    entropy = -np.sum(p * log_p, axis=1)
    a, b, c = weights_3M[:, :, None]
    d_logits = a * (onehot - p) + b * p - c * p * (log_p + entropy[:, None])
    d_logits /= temperature
    return Reference(
        np.sum(onehot * log_p, axis=1),
        log_sum_exp,
        entropy,
        d_logits @ unembedding,
        d_logits.T @ hidden,
    )


def inputs():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(M, D)).astype(np.float32)
    unembedding = rng.normal(size=(V, D)).astype(np.float32)
    labels = rng.integers(0, V, M).astype(np.int32)
    return hidden, unembedding, labels, rng.normal(size=(3, M)).astype(np.float32)


def middle_threshold(hidden, unembedding, temperature, keep: int) -> np.ndarray:
    """Between the `keep`-th and the next tempered logit of each row."""
    ordered = -np.sort(-(hidden @ unembedding.T) / temperature, axis=1)
    return (ordered[:, keep - 1] + ordered[:, keep]) / 2


@pytest.mark.parametrize("chunk_rows", [M, 3, 1])
@pytest.mark.parametrize(("temperature", "keep"), [(1.0, None), (0.7, None), (0.7, 5)])
def test_values_and_gradients(monkeypatch, chunk_rows, temperature, keep):
    """In one piece, in chunks that leave a remainder, and row by row."""
    monkeypatch.setattr(api, "_CHUNK_LOGITS", chunk_rows * V)
    hidden, unembedding, labels, weights = inputs()
    threshold = None if keep is None else middle_threshold(hidden, unembedding, temperature, keep)

    def loss(hidden, unembedding):
        result = api.logprob(
            hidden, unembedding, labels, temperature=temperature, threshold_M=threshold
        )
        return sum(jnp.sum(w * x) for w, x in zip(weights, result, strict=True)), result

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    grads, result = gradient(hidden, unembedding)
    expected = reference(hidden, unembedding, labels, weights, temperature, threshold)
    for found, wanted in zip((*result, *grads), expected, strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, wanted, atol=2e-5, rtol=1e-5)


def test_the_renormaliser_is_differentiated():
    """Finite differences in float64 of the truncated log-probability itself."""
    hidden, unembedding, labels, _ = inputs()
    threshold = middle_threshold(hidden, unembedding, 0.7, 5)
    weights = np.stack([np.ones(M), np.zeros(M), np.zeros(M)])
    direction = np.random.default_rng(1).normal(size=hidden.shape)

    def total(step):
        moved = hidden.astype(np.float64) + step * direction
        return reference(moved, unembedding, labels, weights, 0.7, threshold).log_prob_M.sum()

    slope = (total(1e-6) - total(-1e-6)) / 2e-6

    def loss(hidden):
        return api.logprob(
            hidden, unembedding, labels, temperature=0.7, threshold_M=threshold
        ).log_prob_M.sum()

    np.testing.assert_allclose(np.sum(jax.grad(loss)(hidden) * direction), slope, rtol=1e-4)


def test_the_label_stays_although_it_is_below_the_threshold():
    """A trainer's rounding must not turn a sampled token into probability zero."""
    hidden, unembedding, _, _ = inputs()
    labels = np.argmin(hidden @ unembedding.T, axis=1).astype(np.int32)
    threshold = np.full(M, 1e9, np.float32)
    result = api.logprob(hidden, unembedding, labels, threshold_M=threshold)
    np.testing.assert_allclose(result.log_prob_M, 0, atol=1e-6)
    np.testing.assert_allclose(result.entropy_M, 0, atol=1e-6)


def test_logits_of_bfloat16_states_are_accumulated_in_float32():
    hidden, unembedding, _, _ = inputs()
    half = jnp.asarray(hidden, jnp.bfloat16)
    found = api.logits(half, jnp.asarray(unembedding))
    rounded = np.asarray(jnp.asarray(unembedding, jnp.bfloat16), np.float32)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.asarray(half, np.float32) @ rounded.T, atol=1e-5)
