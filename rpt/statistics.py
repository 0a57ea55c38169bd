"""Means and paired differences, with intervals from a bootstrap clustered by document.

Positions of one document are not independent, so documents are resampled, not positions. The
statistic is the mean over positions; a resample is weighted by the positions that its documents
hold.

Letters: P positions.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

_CHUNK_ELEMENTS = 1 << 21  # resampled documents held at once, 16 MiB of indices


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over positions and its percentile interval.

    Attributes:
      mean: Over all positions.
      low: Lower end of the interval.
      high: Upper end.
      n: Positions.
      clusters: Documents. With a single one nothing is known about other documents: the
        interval is infinite.
    """

    mean: float
    low: float
    high: float
    n: int
    clusters: int


def mean_estimate(
    value_P: np.ndarray,
    document_P: np.ndarray,
    seed: int,
    samples: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """The mean of a quantity over positions, with its interval.

    Args:
      value_P: The quantity (accuracies as 0/1 or bool).
      document_P: The document of each position; any sortable ids.
      seed: Of the resampling; the same seed gives the same interval.
      samples: Resamples.
      confidence: Of the two-sided interval.

    Raises:
      ValueError: no position, lengths that differ, or values that are not finite.
    """
    return pooled_estimate([(value_P, document_P)], seed, samples, confidence)


def pooled_estimate(
    runs: Sequence[tuple[np.ndarray, np.ndarray]],
    seed: int,
    samples: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """The mean over training runs (seeds) of their means, clustered by (run, document).

    Documents are resampled within each run, so they should be other ones in each; the runs stay
    these runs. So the interval says how certain the mean of these runs is, not what further runs
    would give.

    Args:
      runs: (value_P, document_P) of each, as for `mean_estimate`.
      seed: Of the resampling.
      samples: Resamples.
      confidence: Of the two-sided interval.

    Raises:
      ValueError: no run, or as `mean_estimate`.
    """
    if not runs:
        raise ValueError("no run to estimate a mean from")
    clustered = [_by_cluster(*run) for run in runs]
    mean = float(np.mean([total.sum() / count.sum() for total, count in clustered]))
    clusters = [len(count) for _, count in clustered]
    low, high = -np.inf, np.inf
    if min(clusters) > 1:
        means = [
            # The first run draws as it does alone, the others each by themselves.
            _resampled_means(total, count, [seed, *([number] if number else [])], samples)
            for number, (total, count) in enumerate(clustered)
        ]
        ends = [(1 - confidence) / 2, (1 + confidence) / 2]
        low, high = np.quantile(np.mean(means, axis=0), ends)
    n = sum(int(count.sum()) for _, count in clustered)
    return Estimate(mean=mean, low=float(low), high=float(high), n=n, clusters=sum(clusters))


def _by_cluster(value_P: np.ndarray, document_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each document."""
    value_P, document_P = np.asarray(value_P, np.float64), np.asarray(document_P)
    if value_P.ndim != 1 or value_P.shape != document_P.shape:
        raise ValueError(f"values {value_P.shape} and documents {document_P.shape} must be [P]")
    if not value_P.size:
        raise ValueError("no positions to estimate a mean from")
    if not np.isfinite(value_P).all():
        raise ValueError("a value to average is infinite or not a number")
    cluster_P = np.unique(document_P, return_inverse=True)[1].reshape(-1)
    return np.bincount(cluster_P, weights=value_P), np.bincount(cluster_P)


def _resampled_means(
    total: np.ndarray, count: np.ndarray, seed: list[int], samples: int
) -> np.ndarray:
    """The mean over positions in each of `samples` resamples of the clusters."""
    generator = np.random.Generator(np.random.Philox(seed))
    clusters = len(count)
    rows = max(1, _CHUNK_ELEMENTS // clusters)
    means = []
    for start in range(0, samples, rows):
        picked = generator.integers(clusters, size=(min(rows, samples - start), clusters))
        means.append(total[picked].sum(axis=1) / count[picked].sum(axis=1))
    return np.concatenate(means)


def paired_difference(
    a_P: np.ndarray,
    b_P: np.ndarray,
    document_P: np.ndarray,
    seed: int,
    samples: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """The mean of a - b over identical positions; further arguments as in `mean_estimate`."""
    a_P, b_P = np.asarray(a_P, np.float64), np.asarray(b_P, np.float64)
    if a_P.shape != b_P.shape:
        raise ValueError(f"paired values must lie on the same positions: {a_P.shape}, {b_P.shape}")
    return mean_estimate(a_P - b_P, document_P, seed, samples, confidence)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the last `window` values at each, of fewer at the beginning."""
    total = np.cumsum(np.insert(np.asarray(values, np.float64), 0, 0))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    return (total[end] - total[start]) / (end - start)
