"""Accuracies of one arm over its seeds, with intervals: what the tables of a report show.

Of every part of the evaluation, E being mean, low and high (rpt/statistics.py: documents are
resampled within each seed):

    bins      the hardest bin, of the claim's part every nested one and 'all': no_think,
              thought_argmax, thought_sample E
    asked     no_think, thought_argmax E at labelled tokens but noise, without labels at all tokens
    gated     no_think, thought_argmax E where every position was thought at, thinking above the
              seed's own threshold
    labels    by label no_think, thought_argmax E
    depths    by family ('answer' of 'answer/3') the depths that stage 0 shows worked thoughts of,
              and those above: '<=4' and '>4': no_think, thought_argmax E

A seed without such a position is left out, and what no seed has is missing.

Letters: P positions.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rpt import evaluation, experiment_pieces, statistics

_BOTH = ("no_think", "thought_argmax")
MODES = (*_BOTH, "thought_sample")
# There are many labels of few positions each, and their intervals decide nothing.
_SAMPLES_OF_LABELS = 500

# bool [P] of a seed's positions.
Mask = Callable[[evaluation.Measured], np.ndarray]


class _Seed(NamedTuple):
    """A piece, with the document of each of its positions, which takes long to find."""

    piece: experiment_pieces.Piece
    measured: evaluation.Measured
    document_P: np.ndarray


def depth_of(label: str) -> tuple[str, int] | None:
    """('answer', 3) of 'answer/3'; None where there is no depth."""
    family, _, number = label.rpartition("/")
    return (family, int(number)) if family and number.isdigit() else None


def depth_groups(shown_depth: int) -> dict[str, range]:
    """Up to what stage 0 shows, and above it; none where the plan does not say."""
    if not shown_depth:
        return {}
    above = range(shown_depth + 1, 1_000_000)
    return {f"<={shown_depth}": range(shown_depth + 1), f">{shown_depth}": above}


def asked(measured: evaluation.Measured, part: str) -> np.ndarray:
    """bool [P]: what a part asks for: its labelled tokens but noise, else its bin of all tokens."""
    inside_P = measured.in_part(part)
    found_P = inside_P & evaluation.in_bin(measured, evaluation.ASKED)
    return found_P if found_P.any() else inside_P & measured.bins[evaluation.ALL]


def pooled(
    pieces: Sequence[experiment_pieces.Piece], claim_part: str, shown_depth: int
) -> dict[str, Any]:
    """The above by part, of one arm's pieces."""
    found = [(piece, piece.recorded.measured) for piece in pieces]
    seeds = [_Seed(piece, measured, measured.document_P) for piece, measured in found]
    return {
        part: _of_part(seeds, part, part == claim_part, shown_depth)
        for part in seeds[0].measured.parts()
    }


def _of_part(seeds: Sequence[_Seed], part: str, main: bool, shown_depth: int) -> dict[str, Any]:
    hard = seeds[0].measured.hard_bin
    nested = [name for name in seeds[0].measured.bins if name.startswith(">")]
    bins = [*nested, evaluation.ALL] if main else [hard]
    in_bins = {n: _means(seeds, functools.partial(_in_bin, part, n), MODES) for n in bins}
    labels = _labels(seeds, part)
    return {
        "bins": {name: means for name, means in in_bins.items() if means is not None},
        "asked": _means(seeds, functools.partial(asked, part=part), _BOTH),
        "gated": _gated(seeds, part),
        "labels": labels,
        "depths": _depths(seeds, part, list(labels), shown_depth),
    }


def _labels(seeds: Sequence[_Seed], part: str) -> dict[str, Any]:
    """By label; all parts together have none that a part has not."""
    if part == evaluation.ALL:
        return {}
    names = dict.fromkeys(
        name for m in seeds for name in m.measured.bins if name.startswith("label:")
    )
    found = {
        name.removeprefix("label:"): _means(
            seeds, functools.partial(_in_bin, part, name), _BOTH, _SAMPLES_OF_LABELS
        )
        for name in names
    }
    return {label: means for label, means in found.items() if means is not None}


def _depths(
    seeds: Sequence[_Seed], part: str, labels: Sequence[str], shown_depth: int
) -> dict[str, Any]:
    """By family and group of depths."""
    found: dict[str, dict[str, Any]] = {}
    for group, depths in depth_groups(shown_depth).items():
        families: dict[str, list[str]] = {}
        for label in labels:
            depth = depth_of(label)
            if depth is not None and depth[1] in depths:
                families.setdefault(depth[0], []).append(label)
        for family, of_family in families.items():
            means = _means(seeds, functools.partial(_in_labels, part, of_family), _BOTH)
            found.setdefault(family, {})[group] = means
    return found


def _in_bin(part: str, bin: str, measured: evaluation.Measured) -> np.ndarray:
    return measured.in_part(part) & evaluation.in_bin(measured, bin)


def _in_labels(part: str, labels: Sequence[str], measured: evaluation.Measured) -> np.ndarray:
    masks = [_in_bin(part, f"label:{label}", measured) for label in labels]
    return np.logical_or.reduce([np.zeros(len(measured.part_P), bool), *masks])


def _means(
    seeds: Sequence[_Seed], mask: Mask, modes: Sequence[str], samples: int = 2000
) -> dict[str, Any] | None:
    """E of each mode; None where no seed has such a position."""
    masked = [(seed, mask_P) for seed in seeds if (mask_P := mask(seed.measured)).any()]
    if not masked:
        return None
    return {
        mode: _estimate(
            [
                (evaluation.values(seed.measured, mask_P, mode), seed.document_P[mask_P])
                for seed, mask_P in masked
            ],
            samples,
        )
        for mode in modes
    }


def _gated(seeds: Sequence[_Seed], part: str) -> dict[str, Any] | None:
    """None where no document was thought through."""
    runs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {mode: [] for mode in _BOTH}
    for piece, measured, document_P in seeds:
        gated = (piece.evaluation["gated"] or {}).get(part)
        mask_P = _in_bin(part, evaluation.GATE, measured)
        if gated is None or not mask_P.any():
            continue
        threshold = gated["reported"]["threshold"]
        for mode in _BOTH:
            at = threshold if mode == "thought_argmax" else None
            values_P = evaluation.values(measured, mask_P, mode, at)
            runs[mode].append((values_P, document_P[mask_P]))
    if not runs["no_think"]:
        return None
    return {mode: _estimate(of_mode) for mode, of_mode in runs.items()}


def _estimate(runs: Sequence[tuple[np.ndarray, np.ndarray]], samples: int = 2000) -> dict[str, Any]:
    return evaluation.as_json(statistics.pooled_estimate(runs, seed=0, samples=samples))
