"""Sampling is exact, what it reports is true, and its noise is Gumbel noise.

Seeds are fixed, so each bound is met always or never. Letters: M rows, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from kernels.logprob import api as logprob
from kernels.sample import api, noise

sample = jax.jit(api.sample, static_argnames=("temperature", "top_k", "top_p"))
LOGITS_V = np.array([0.3, -1.0, 2.0, 1.7, -3.0, 0.9, 2.1, 0.0, -0.4, 1.1, -2.0, 0.5], np.float32)
SETTINGS = {
    "plain": (1.0, 0, 1.0),
    "temperature": (0.6, 0, 1.0),
    "top_k": (1.0, 5, 1.0),
    "top_p": (1.3, 0, 0.8),
    "top_k_and_top_p": (0.9, 6, 0.7),
}


@functools.partial(jax.jit, static_argnums=0)
def row_keys(rows: int, seed=0):
    return noise.fold(noise.root_keys(seed, rows), jnp.arange(rows))


def truncated(logits_V, temperature, top_k, top_p) -> np.ndarray:
    """The oracle: probabilities in float64, kept greedily in the order (probability, lowest id)."""
    logits = np.asarray(logits_V, np.float64) / temperature
    order = np.argsort(-logits, kind="stable")[: top_k or len(logits)]
    p = np.exp(logits[order] - logits.max())
    p /= p.sum()
    before = np.cumsum(p) - p
    # Rounding: the tail's mass before a token may reach 1 exactly, and 1 cuts nothing.
    kept = order if top_p == 1 else order[before < top_p]
    full = np.zeros(len(logits))
    full[kept] = np.exp(logits[kept] - logits.max())
    return full / full.sum()


@pytest.mark.parametrize("name", SETTINGS)
def test_goodness_of_fit(name):
    """Chi-square over 2**18 draws; tokens cut away never occur; log_prob is the true one."""
    temperature, top_k, top_p = SETTINGS[name]
    rows = 2**18
    logits_MV = jnp.broadcast_to(LOGITS_V, (rows, len(LOGITS_V)))
    drawn = sample(logits_MV, row_keys(rows), temperature=temperature, top_k=top_k, top_p=top_p)
    p = truncated(LOGITS_V, temperature, top_k, top_p)
    counts = np.bincount(drawn.token_M, minlength=len(p))
    assert counts[p == 0].sum() == 0
    assert (p == 0).any() == ("top" in name)
    fit = scipy.stats.chisquare(counts[p > 0], rows * p[p > 0])
    assert fit.pvalue > 1e-3
    np.testing.assert_allclose(drawn.log_prob_M, np.log(p[drawn.token_M]), atol=1e-5)
    assert (np.asarray(drawn.best_M) == 6).all()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_trainer_with_the_threshold_sees_the_same_log_probability(name):
    """Through hidden states, on rows that differ, with small vocabulary ties included."""
    temperature, top_k, top_p = SETTINGS[name]
    rng = np.random.default_rng(0)
    hidden = np.round(rng.normal(size=(500, 8)) * 2).astype(np.float32) / 2
    unembedding = np.round(rng.normal(size=(24, 8)) * 2).astype(np.float32) / 2
    logits = logprob.logits(hidden, unembedding)
    drawn = sample(logits, row_keys(500), temperature=temperature, top_k=top_k, top_p=top_p)
    trained = logprob.logprob(
        hidden,
        unembedding,
        drawn.token_M,
        temperature=temperature,
        threshold_M=drawn.threshold_M,
    )
    np.testing.assert_allclose(drawn.log_prob_M, trained.log_prob_M, atol=1e-5)
    kept = np.asarray(logits * (1.0 / temperature) >= drawn.threshold_M[:, None])
    for row in range(500):
        wanted = truncated(logits[row], temperature, top_k, top_p) > 0
        # Ties with the last token kept stay too, on both sides alike; nothing else does.
        last = np.asarray(logits)[row][wanted].min()
        np.testing.assert_array_equal(kept[row], np.asarray(logits)[row] >= last)


def test_ties_break_by_the_lowest_id():
    logits = jnp.asarray([[1.0, 3.0, 3.0, 2.0, 3.0]])
    greedy = sample(logits, row_keys(1), temperature=0.0, top_k=0, top_p=1.0)
    assert greedy.token_M[0] == 1
    assert greedy.best_M[0] == 1
    assert greedy.log_prob_M[0] == 0


def test_ties_at_the_threshold_stay_in_sampler_and_trainer():
    """top_k=2 of three equal logits: all three stay, with probability 1/3 each on both sides."""
    hidden, unembedding = jnp.ones((64, 1)), jnp.asarray([[1.0], [3.0], [3.0], [2.0], [3.0]])
    logits = logprob.logits(hidden, unembedding)
    drawn = sample(logits, row_keys(64), temperature=1.0, top_k=2, top_p=1.0)
    assert set(np.asarray(drawn.token_M).tolist()) == {1, 2, 4}
    np.testing.assert_allclose(drawn.log_prob_M, -np.log(3), atol=1e-6)
    trained = logprob.logprob(hidden, unembedding, drawn.token_M, threshold_M=drawn.threshold_M)
    np.testing.assert_allclose(trained.log_prob_M, -np.log(3), atol=1e-6)


def test_truncation_to_one_token_is_greedy():
    rows = jnp.asarray(np.random.default_rng(1).normal(size=(50, 30)), jnp.float32)
    for top_k, top_p in ((1, 1.0), (0, 1e-6)):
        drawn = sample(rows, row_keys(50), temperature=1.0, top_k=top_k, top_p=top_p)
        np.testing.assert_array_equal(drawn.token_M, np.argmax(rows, axis=1))
        np.testing.assert_allclose(drawn.log_prob_M, 0, atol=1e-6)


def test_noise_is_gumbel_without_correlations():
    """A million values: moments, Kolmogorov-Smirnov, and lags along ids, rows and positions."""
    rows, V = 1000, 1000
    keys = row_keys(rows)
    values = np.asarray(jax.jit(noise.gumbel)(keys, jnp.arange(V, dtype=jnp.uint32)), np.float64)
    assert np.isfinite(values).all()
    n = values.size
    deviation = np.pi / np.sqrt(6)
    assert abs(values.mean() - np.euler_gamma) < 4 * deviation / np.sqrt(n)
    # The kurtosis of a Gumbel variable is 5.4, so its variance's variance is 4.4 / n.
    assert abs(values.var() / deviation**2 - 1) < 4 * np.sqrt(4.4 / n)
    assert scipy.stats.kstest(values.reshape(-1), scipy.stats.gumbel_r.cdf).pvalue > 1e-3
    standard = (values - values.mean()) / values.std()
    for lag in (1, 2, 4, 256):
        assert abs(np.mean(standard[:, lag:] * standard[:, :-lag])) < 4 / np.sqrt(n)
        assert abs(np.mean(standard[lag:] * standard[:-lag])) < 4 / np.sqrt(n)
    # The next position of the same row is one further fold.
    moved = noise.fold(keys, jnp.full(rows, 1, jnp.uint32))
    other = np.asarray(noise.gumbel(moved, jnp.arange(V, dtype=jnp.uint32)), np.float64)
    assert abs(np.corrcoef(values.reshape(-1), other.reshape(-1))[0, 1]) < 4 / np.sqrt(n)


def test_noise_of_a_token_does_not_depend_on_what_is_computed_beside_it():
    """Bit for bit: any subset of rows and any tile of the vocabulary."""
    keys = row_keys(8)
    whole = np.asarray(noise.gumbel(keys, jnp.arange(64, dtype=jnp.uint32)))
    part = np.asarray(noise.gumbel(keys[5:7], jnp.arange(16, 48, dtype=jnp.uint32)))
    np.testing.assert_array_equal(part, whole[5:7, 16:48])
    backwards = np.asarray(noise.gumbel(keys[::-1], jnp.arange(64, dtype=jnp.uint32)))
    np.testing.assert_array_equal(backwards[::-1], whole)


def test_noise_depends_on_both_halves_of_the_key():
    base = jnp.asarray([[1, 2]], jnp.uint32)
    ids = jnp.arange(64, dtype=jnp.uint32)
    values = noise.gumbel(base, ids)
    for other in ([[3, 2]], [[1, 4]], [[2, 1]]):
        changed = noise.gumbel(jnp.asarray(other, jnp.uint32), ids)
        assert (np.asarray(values) != np.asarray(changed)).mean() > 0.99


def test_the_extremes_of_the_hash_are_never_preferred_by_mistake(monkeypatch):
    """All ones rounds to a uniform of 1, whose noise is -inf: never chosen; all zeros is finite."""
    for bits, check in ((0xFFFFFFFF, np.isneginf), (0, np.isfinite)):
        monkeypatch.setattr(
            noise, "_hash", lambda *_, bits=bits: jnp.full((1, 1), bits, jnp.uint32)
        )
        assert check(noise.gumbel(jnp.zeros((1, 2), jnp.uint32), jnp.zeros(1, jnp.uint32))).all()
