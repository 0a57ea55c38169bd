"""The scaling curves of an experiment, fitted: from the points of its results.json and back to it.

`scaling_fits` of results.json is a list, one entry for each curve, measure, and with or without the
compute of stage 0:

    curve, measure    what was fitted
    with_stage0       whether the compute includes what was executed before the arm
    forms             by name: parameters {value, low, high} by name, reference_flops (C0), r2,
                      at_bound (a parameter lies at an end of its range), at_bound_share (of the
                      resamples), left_out_error {value, low, high} (predicted minus measured at
                      the largest budget, which that fit has not seen; null: too few budgets),
                      best_share (of the resamples, where this form misses least)
    notes             what a reader must know; why there is no form, where there is none

Numbers that are infinite or unknown are null.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rpt import scaling_points

_MEASURES = (("no_think", "without a thought"), ("thought_argmax", "with a thought"))


def points(scaling: Mapping[str, Any]) -> Iterator[scaling_points.Point]:
    """Of every curve, without a thought and with one; an arm is a budget, the same in all seeds.

    Args:
      scaling: of results.json; points without a hard position are left out.
    """
    for curve, of_curve in scaling.items():
        budgets: dict[str, list[float]] = {}
        for point in of_curve:
            budgets.setdefault(point["arm"], []).append(point["flops_after_stage0"])
        for mode, words in _MEASURES:
            for point in of_curve:
                documents = point["documents"]
                if not documents["n"]:
                    continue
                counted = zip(documents[mode], documents["n"], strict=True)
                trained = float(point["flops_after_stage0"])
                yield scaling_points.Point(
                    arm=curve,
                    seed=point["seed"],
                    measure=f"hard tokens, {words}",
                    budget_FLOPs=float(np.mean(budgets[point["arm"]])),
                    stage0_FLOPs=point["flops"] - trained,
                    trained_FLOPs=trained,
                    # Each seed draws documents of its own: number 3 of two seeds is not the same.
                    documents={f"{point['seed']}/{d}": pair for d, pair in enumerate(counted)},
                )


def studies(
    given: Sequence[scaling_points.Point], resamples: int = scaling_points.RESAMPLES
) -> Iterator[tuple[str, str, bool, scaling_points.Study | str]]:
    """Every curve and measure, after stage 0 and with it; a study, or why there is none."""
    for curve, measure in dict.fromkeys((point.arm, point.measure) for point in given):
        chosen = [point for point in given if (point.arm, point.measure) == (curve, measure)]
        for with_stage0 in (False, True):
            try:
                found = scaling_points.study(chosen, with_stage0=with_stage0, resamples=resamples)
            except ValueError as error:
                found = str(error)
            yield curve, measure, with_stage0, found


def as_json(
    scaling: Mapping[str, Any], resamples: int = scaling_points.RESAMPLES
) -> list[dict[str, Any]]:
    """`scaling_fits` of results.json, from its `scaling`."""
    return [_entry(*found) for found in studies(list(points(scaling)), resamples)]


def entry(study: scaling_points.Study) -> dict[str, Any]:
    """One of `scaling_fits`."""
    return _entry(study.arm, study.measure, study.with_stage0, study)


def _entry(
    curve: str, measure: str, with_stage0: bool, found: scaling_points.Study | str
) -> dict[str, Any]:
    about = {"curve": curve, "measure": measure, "with_stage0": with_stage0}
    if isinstance(found, str):
        return {**about, "forms": {}, "notes": [found]}
    forms = {name: _form(fitted) for name, fitted in found.curves.items()}
    return {**about, "forms": forms, "notes": list(found.notes)}


def _form(curve: scaling_points.Curve) -> dict[str, Any]:
    return {
        "parameters": {name: _interval(value) for name, value in curve.parameters.items()},
        "reference_flops": curve.reference_FLOPs,
        "r2": _number(curve.r2),
        "at_bound": curve.at_bound,
        "at_bound_share": curve.at_bound_share,
        "left_out_error": None if curve.error is None else _interval(curve.error),
        "best_share": curve.best_share,
    }


def _interval(found: scaling_points.Interval) -> dict[str, float | None]:
    ends = {"value": found.value, "low": found.low, "high": found.high}
    return {name: _number(value) for name, value in ends.items()}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
