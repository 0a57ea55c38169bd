"""The clustered bootstrap: exactness where it is exact, coverage where it is random."""

import time

import numpy as np
import pytest

from rpt import statistics


def simulated(generator, documents=60, effect=0.1, document_spread=0.3):
    """Positions whose differences share a document's own effect; sizes 1 to 20."""
    document_P = np.repeat(np.arange(documents), generator.integers(1, 21, documents))
    shared = generator.normal(0, document_spread, documents)[document_P]
    difference_P = effect + shared + generator.normal(0, 0.3, len(document_P))
    b_P = generator.normal(0, 1, len(document_P))
    return b_P + difference_P, b_P, document_P


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = clustered_width = iid_width = 0.0
    trials = 200
    for trial in range(trials):
        a_P, b_P, document_P = simulated(generator)
        found = statistics.paired_difference(a_P, b_P, document_P, seed=trial, samples=400)
        each_P = np.arange(len(a_P))
        iid = statistics.paired_difference(a_P, b_P, each_P, seed=trial, samples=100)
        assert found.low <= found.mean <= found.high
        covered += found.low <= 0.1 <= found.high
        clustered_width += found.high - found.low
        iid_width += iid.high - iid.low
    assert 0.89 <= covered / trials <= 0.99
    assert clustered_width > 1.5 * iid_width


def test_confidence_sets_the_width():
    a_P, b_P, document_P = simulated(np.random.default_rng(1))
    wide = statistics.paired_difference(a_P, b_P, document_P, 0, confidence=0.99)
    narrow = statistics.paired_difference(a_P, b_P, document_P, 0, confidence=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_no_difference_is_exactly_zero():
    a_P = np.random.default_rng(0).random(500)
    found = statistics.paired_difference(a_P, a_P, np.arange(500) // 5, seed=0)
    assert found == statistics.Estimate(mean=0.0, low=0.0, high=0.0, n=500, clusters=100)


def test_pairing_removes_what_both_arms_share():
    generator = np.random.default_rng(2)
    b_P = generator.random(1000) * 100
    found = statistics.paired_difference(b_P + 0.5, b_P, np.arange(1000) // 10, seed=0)
    assert found.mean == pytest.approx(0.5)
    assert found.high - found.low < 1e-9


def test_seeds_count_alike_and_each_draws_its_own_documents():
    generator = np.random.default_rng(3)
    runs = [(generator.normal(k, 1, 100 * (k + 1)), np.arange(100 * (k + 1)) // 5) for k in (0, 1)]
    alone = [statistics.mean_estimate(value_P, document_P, 0) for value_P, document_P in runs]
    found = statistics.pooled_estimate(runs, 0)
    assert found.mean == pytest.approx((alone[0].mean + alone[1].mean) / 2)
    assert (found.n, found.clusters) == (300, 60)
    # Two independent means halve the variance; the same draws for both would not.
    twice = statistics.pooled_estimate([runs[0], runs[0]], 0)
    ratio = (twice.high - twice.low) / (alone[0].high - alone[0].low)
    assert ratio == pytest.approx(0.5**0.5, rel=0.1)
    assert statistics.pooled_estimate(runs[:1], 0) == alone[0]


def test_a_seed_with_one_document_leaves_the_pooled_interval_unknown():
    runs = [(np.arange(4.0), np.arange(4)), (np.ones(4), np.zeros(4))]
    found = statistics.pooled_estimate(runs, 0)
    assert (found.mean, found.low, found.high) == (1.25, -np.inf, np.inf)
    with pytest.raises(ValueError, match="no run"):
        statistics.pooled_estimate([], 0)


def test_the_mean_is_over_positions_not_documents():
    value_P = np.array([1, 1, 1, 0], bool)
    found = statistics.mean_estimate(value_P, np.array(["x", "x", "x", "y"]), seed=0)
    assert (found.mean, found.n, found.clusters) == (0.75, 4, 2)
    assert (found.low, found.high) == (0.0, 1.0)  # resamples xx, xy, yy


def test_the_interval_equals_a_literal_bootstrap():
    generator = np.random.default_rng(3)
    a_P, b_P, document_P = simulated(generator, documents=30)
    groups = [(a_P - b_P)[document_P == document] for document in range(30)]
    means = [
        np.concatenate([groups[i] for i in generator.integers(30, size=30)]).mean()
        for _ in range(3000)
    ]
    found = statistics.paired_difference(a_P, b_P, document_P, seed=0, samples=3000)
    np.testing.assert_allclose(
        [found.low, found.high], np.quantile(means, [0.025, 0.975]), atol=0.02
    )


def test_order_of_positions_does_not_matter_and_the_seed_does():
    a_P, b_P, document_P = simulated(np.random.default_rng(4))
    found = statistics.paired_difference(a_P, b_P, document_P, seed=0)
    order = np.random.default_rng(5).permutation(len(a_P))
    again = statistics.paired_difference(a_P[order], b_P[order], document_P[order], seed=0)
    assert (again.low, again.high) == pytest.approx((found.low, found.high), abs=1e-12)
    other = statistics.paired_difference(a_P, b_P, document_P, seed=1)
    assert other.low != found.low


def test_one_document_says_nothing_about_others():
    found = statistics.mean_estimate(np.ones(50), np.zeros(50), seed=0)
    assert (found.mean, found.low, found.high) == (1.0, -np.inf, np.inf)


def test_resampling_in_chunks_changes_nothing(monkeypatch):
    a_P, b_P, document_P = simulated(np.random.default_rng(6))
    whole = statistics.paired_difference(a_P, b_P, document_P, seed=0, samples=101)
    monkeypatch.setattr(statistics, "_CHUNK_ELEMENTS", 300)
    assert statistics.paired_difference(a_P, b_P, document_P, seed=0, samples=101) == whole


def test_it_is_fast_at_the_size_of_an_evaluation():
    generator = np.random.default_rng(7)
    document_P = generator.integers(0, 1000, 20_000)
    started = time.perf_counter()
    statistics.paired_difference(generator.random(20_000), np.zeros(20_000), document_P, seed=0)
    assert time.perf_counter() - started < 5  # about 0.05 s


@pytest.mark.parametrize(
    ("a_P", "b_P", "document_P", "message"),
    [
        ([], [], [], "no positions"),
        ([1.0, 2.0], [1.0], [0, 0], "same positions"),
        ([1.0, 2.0], [1.0, 2.0], [0], "must be"),
        ([np.nan, 2.0], [1.0, 2.0], [0, 1], "not a number"),
    ],
)
def test_bad_input(a_P, b_P, document_P, message):
    with pytest.raises(ValueError, match=message):
        statistics.paired_difference(a_P, b_P, document_P, seed=0)


def test_a_running_mean_begins_with_what_there_is():
    found = statistics.running_mean(np.array([4.0, 2.0, 0.0, 1.0, 5.0]), 3)
    assert found == pytest.approx([4, 3, 2, 1, 2])
    assert statistics.running_mean(np.array([]), 3).size == 0
