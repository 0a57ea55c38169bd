"""The scaling curves of an experiment's report, as tables: pure functions of results.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from rpt import experiment_cells as cells

Results = Mapping[str, Any]


def tables(found: Results) -> list[cells.Table]:
    """The points, and what the three forms make of them; those that have a row."""
    return [table for table in (points(found), fits(found["scaling_fits"])) if table.rows]


def points(found: Results) -> cells.Table:
    """Every run of a curve."""
    rows = [
        [
            curve,
            found["arms"][point["arm"]]["title"],
            str(point["seed"]),
            f"{point['flops'] / 1e12:.3f}",
            f"{point['flops_after_stage0'] / 1e12:.3f}",
            *(
                cells.MISSING if point["value"] is None else f"{point['value'][mode]['mean']:.3f}"
                for mode in ("no_think", "thought_argmax")
            ),
        ]
        for curve, of_curve in found["scaling"].items()
        for point in of_curve
    ]
    names = ("curve", "arm", "seed", "TFLOP", "after stage 0", "hard, no thought", "hard, thought")
    return cells.Table(
        "Scaling points", list(map(cells.Head, names)), [list(map(cells.Cell, row)) for row in rows]
    )


def fits(studies: Sequence[Mapping[str, Any]]) -> cells.Table:
    """Parameters, intervals, and the error at the left-out largest budget, of every form.

    Args:
      studies: `scaling_fits` of results.json.
    """
    heads = [
        cells.Head("curve"),
        cells.Head("measure"),
        cells.Head("compute"),
        cells.Head("form"),
        cells.Head(
            "miss at the last budget", "predicted minus measured, where the fit has not seen it"
        ),
        cells.Head("misses least", "share of resamples in which this form does"),
        cells.Head("R\u00b2", "of all points; no threshold makes it a proof"),
        cells.Head("parameters", "with 95% intervals; * the fit lies at an end of a range"),
    ]
    rows = [
        [cells.Cell(study["curve"]), cells.Cell(study["measure"]), cells.Cell(_stage(study)), *form]
        for study in studies
        for form in _forms(study)
    ]
    return cells.Table("Scaling fits", heads, rows)


def _stage(study: Mapping[str, Any]) -> str:
    return "with stage 0" if study["with_stage0"] else "after stage 0"


def _forms(study: Mapping[str, Any]) -> list[list[cells.Cell]]:
    """A row for each form; without any the reason."""
    if not study["forms"]:
        return [[cells.Cell(cells.MISSING)] * 4 + [cells.Cell("; ".join(study["notes"]))]]
    rows = []
    for name, form in study["forms"].items():
        error, share, r2 = form["left_out_error"], form["best_share"], form["r2"]
        parameters = [f"{key} {_interval(v, '.3g')}" for key, v in form["parameters"].items()]
        rows.append(
            [
                cells.Cell(name.replace("_", "-")),
                cells.Cell("too few budgets" if error is None else _interval(error, "+.3f")),
                cells.Cell(cells.MISSING if share is None else f"{share:.0%}"),
                cells.Cell(cells.MISSING if r2 is None else f"{r2:.3f}"),
                cells.Cell(", ".join(parameters) + "*" * form["at_bound"]),
            ]
        )
    return rows


def _interval(found: Mapping[str, Any], form: str) -> str:
    value, low, high = (
        "?" if found[end] is None else format(found[end], form) for end in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"
