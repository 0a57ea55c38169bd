"""Scaling fits of results.json: from its points, with intervals, and strict JSON."""

import json

import numpy as np
import pytest

from rpt import experiment_scaling_tables, scaling, scaling_points, scaling_studies
from tests.rpt import report_fixture


@pytest.fixture(scope="module")
def given():
    return {"rpt": report_fixture.curve((0, 1))}


@pytest.fixture(scope="module")
def fits(given):
    return scaling_studies.as_json(given, resamples=8)


def test_every_form_stands_with_its_parameters_intervals_errors_and_r2(given, fits):
    assert json.loads(json.dumps(fits, allow_nan=False)) == fits
    assert [(f["measure"].split()[-3], f["with_stage0"]) for f in fits] == [
        (how, stage) for how in ("without", "with") for stage in (False, True)
    ]
    points = [p for p in scaling_studies.points(given) if p.measure.endswith("with a thought")]
    expected = scaling_points.study(points, with_stage0=True, resamples=8)
    assert fits[3]["forms"].keys() == scaling.FORMS.keys()
    for name, form in fits[3]["forms"].items():
        fitted = expected.curves[name]
        assert form["r2"] == pytest.approx(fitted.r2)
        assert form["reference_flops"] == fitted.reference_FLOPs
        for key, value in fitted.parameters.items():
            assert list(form["parameters"][key].values()) == [value.value, value.low, value.high]
        known = fitted.error is not None  # four budgets: too few for a sigmoid less the last
        assert known == (form["left_out_error"] is not None) == (name != "sigmoid")
        if fitted.error is not None:
            assert form["left_out_error"]["value"] == fitted.error.value
    assert "2 seeds" in fits[3]["notes"][0]


def test_a_curve_that_cannot_be_fitted_says_why(given):
    first = min(point["flops_after_stage0"] for point in given["rpt"])
    single = {"rpt": [p for p in given["rpt"] if p["arm"] == "rpt_0"]}
    assert min(p["flops_after_stage0"] for p in single["rpt"]) == first
    empty = {**single["rpt"][0], "documents": {n: [] for n in single["rpt"][0]["documents"]}}
    for one in ({"rpt": single["rpt"][:1]}, {"rpt": [*single["rpt"][:1], {**empty, "seed": 1}]}):
        fits = scaling_studies.as_json(one, resamples=4)
        assert [f["forms"] for f in fits] == [{}] * 4
        assert "1 different computes" in fits[0]["notes"][0]


def test_the_table_has_a_row_for_each_form_and_the_numbers_of_the_file(fits):
    table = experiment_scaling_tables.fits(fits)
    assert len({len(row) for row in (table.heads, *table.rows)}) == 1
    rows = [[cell.text for cell in row] for row in table.rows]
    assert [row[3] for row in rows] == ["power", "log-linear", "sigmoid"] * 4
    power = fits[0]["forms"]["power"]
    error, alpha = power["left_out_error"], power["parameters"]["alpha"]
    miss = " [".join([f"{error['value']:+.3f}", f"{error['low']:+.3f}, {error['high']:+.3f}]"])
    assert rows[0][4] == miss
    assert f"alpha {alpha['value']:.3g} [{alpha['low']:.3g}, {alpha['high']:.3g}]" in rows[0][7]
    assert rows[0][6] == f"{power['r2']:.3f}"
    assert (rows[2][4], rows[0][2], rows[3][2]) == (
        "too few budgets",
        "after stage 0",
        "with stage 0",
    )


def test_numbers_that_are_unknown_are_null():
    found = scaling_studies._interval(scaling_points.Interval(1.0, -np.inf, np.nan))
    assert found == {"value": 1.0, "low": None, "high": None}
