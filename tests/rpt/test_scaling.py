"""Fits on synthetic data: known parameters come back, and what is not known is said to be wide."""

import dataclasses

import numpy as np
import pytest
import scipy.optimize

from rpt import scaling, scaling_points

COMPUTE = np.geomspace(1e12, 1e14, 6)
TRUE = {
    "power": (
        lambda c: 0.62 - 0.2 * (c / 1e13) ** -0.45,
        {"A": -0.2, "alpha": 0.45, "P*": 0.62},
    ),
    "log_linear": (lambda c: 0.3 + 0.1 * np.log10(c / 1e13), {"P0": 0.3, "slope": 0.1}),
    "sigmoid": (
        lambda c: 0.2 + 0.5 / (1 + (8e12 / c) ** 1.7),
        {"P0": 0.2, "P*": 0.7, "B": 1.7, "Cmid": 8e12},
    ),
}


def points(curve, noise: float, seeds=(0, 1, 2), documents=40, positions=25) -> list:
    """What runs at six budgets would leave: documents that differ, seeds that differ by `noise`."""
    rng = np.random.default_rng(5)
    easy_D = rng.normal(0, noise, documents)
    found = []
    for seed in seeds:
        for budget in COMPUTE:
            mean = curve(budget) + rng.normal(0, noise / 3)
            share_D = mean + easy_D + rng.normal(0, noise / 3, documents)
            found.append(
                scaling_points.Point(
                    arm="rpt",
                    seed=seed,
                    measure="hard",
                    budget_FLOPs=budget,
                    stage0_FLOPs=2e12,
                    trained_FLOPs=budget,
                    documents={
                        f"d{d}": (float(s * positions), positions) for d, s in enumerate(share_D)
                    },
                )
            )
    return found


# ---- one fit -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRUE)
def test_parameters_come_back(name):
    curve, wanted = TRUE[name]
    found = scaling.fit(name, COMPUTE, curve(COMPUTE))
    assert found.reference_FLOPs == pytest.approx(1e13)
    assert found.parameters == pytest.approx(wanted, rel=1e-3)
    assert found.r2 == pytest.approx(1)
    assert not found.at_bound
    np.testing.assert_allclose(found.predict(COMPUTE), curve(COMPUTE), atol=1e-6)


@pytest.mark.parametrize("name", ["power", "sigmoid"])
def test_no_search_of_scipys_from_many_places_finds_a_better_curve(name):
    rng = np.random.default_rng(3)
    x = COMPUTE / 1e13
    forms = {
        "power": (lambda p: p[2] + p[0] * x ** -p[1], [-9, 0.01, 0], [9, 5, 1]),
        "sigmoid": (
            lambda p: p[0] + (p[1] - p[0]) / (1 + (p[3] / x) ** p[2]),
            [0, 0, 0.1, 1e-3],
            [1, 1, 10, 1e3],
        ),
    }
    predict, low, high = forms[name]
    for _ in range(2):
        value = np.clip(rng.uniform(0, 0.7) + np.cumsum(rng.normal(0.03, 0.04, 6)), 0, 1)
        ours = scaling.fit(name, COMPUTE, value)
        squares = np.sum((ours.predict(COMPUTE) - value) ** 2)
        others = [
            scipy.optimize.least_squares(
                lambda p, value=value: predict(p) - value,
                rng.uniform(low, high),
                bounds=(low, high),
            ).cost
            * 2
            for _ in range(8)
        ]
        assert squares <= min(others) + 1e-9


def test_an_asymptote_stays_within_the_limits_and_says_so():
    value = 0.5 + 0.2 * np.log10(COMPUTE / 1e13)
    assert scaling.fit("power", COMPUTE, value).at_bound
    assert scaling.fit("power", COMPUTE, value).parameters["P*"] == 1.0
    assert scaling.fit("power", COMPUTE, value, limits=(0, 9)).parameters["P*"] > 1.0


def test_a_loss_may_fall():
    value = 1.5 + 0.8 * (COMPUTE / 1e13) ** -0.3
    found = scaling.fit("power", COMPUTE, value, limits=(0, np.inf))
    assert found.parameters == pytest.approx({"A": 0.8, "alpha": 0.3, "P*": 1.5}, rel=1e-3)


def test_weights_count_as_repetitions():
    rng = np.random.default_rng(0)
    value = TRUE["power"][0](COMPUTE) + rng.normal(0, 0.02, 6)
    times = np.array([1, 3, 1, 2, 1, 1])
    form = scaling.FORMS["power"]
    weighted = scaling.fit_many(form, COMPUTE, value[None], times[None].astype(float))
    repeated = scaling.fit("power", np.repeat(COMPUTE, times), np.repeat(value, times))
    grid = np.geomspace(1e12, 1e14, 9)
    np.testing.assert_allclose(weighted.predict(grid)[0], repeated.predict(grid), atol=1e-5)


@pytest.mark.parametrize(
    ("form", "compute", "value", "message"),
    [
        ("cubic", COMPUTE, COMPUTE / 1e15, "unknown form 'cubic'"),
        ("power", COMPUTE[:2], [0.1, 0.2], "3 parameters, and there are 2 different computes"),
        ("sigmoid", [1e12] * 5, [0.1, 0.2, 0.3, 0.4, 0.5], "1 different computes"),
        ("power", COMPUTE, [0.1, 0.2, np.nan, 0.4, 0.5, 0.6], "not finite"),
        ("power", [0.0, *COMPUTE[1:]], COMPUTE / 1e15, "not positive"),
        ("log_linear", COMPUTE, [0.5] * 6, "all values are 0.5"),
        ("log_linear", COMPUTE, [0.5] * 5, r"must both be \[P\]"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(form, compute, value, message):
    with pytest.raises(ValueError, match=message) as raised:
        scaling.fit(form, np.array(compute), np.array(value))
    assert "\n" not in str(raised.value)


# ---- points, intervals, comparison ---------------------------------------------------------------


@pytest.mark.parametrize("name", TRUE)
def test_clean_data_tell_the_forms_apart(name):
    curve, wanted = TRUE[name]
    study = scaling_points.study(points(curve, 1e-4), with_stage0=False, resamples=40)
    errors = {form: abs(c.error.value) for form, c in study.curves.items()}
    # A sigmoid far from its middle is a power law, so where that is the truth either may win.
    rivals = {form for form in errors if (name, form) != ("power", "sigmoid")}
    assert min(rivals, key=errors.__getitem__) == name
    assert errors[name] < 2e-3
    for parameter, value in wanted.items():
        interval = study.curves[name].parameters[parameter]
        assert interval.value == pytest.approx(value, rel=0.05)
        assert interval.high - interval.low < 0.2 * abs(value)


def test_noisy_data_have_wide_intervals_and_no_clear_winner():
    study = scaling_points.study(points(TRUE["power"][0], 0.15), with_stage0=False, resamples=40)
    parameters = study.curves["power"].parameters
    assert parameters["alpha"].high / parameters["alpha"].low > 2
    assert parameters["P*"].high - parameters["P*"].low > 0.3
    assert max(curve.best_share for curve in study.curves.values()) < 0.95
    assert sum(curve.best_share for curve in study.curves.values()) == pytest.approx(1)
    for curve in study.curves.values():
        assert curve.error.low <= curve.error.value <= curve.error.high
        assert (curve.low <= curve.high).all()
        assert np.mean((curve.low <= curve.middle) & (curve.middle <= curve.high)) > 0.9


def test_the_left_out_budget_is_not_seen():
    """A last budget that falls is missed by what the others promise."""
    fallen = [
        dataclasses.replace(point, documents={"d": (0.1, 1.0)})
        if point.budget_FLOPs == COMPUTE[-1]
        else point
        for point in points(TRUE["log_linear"][0], 0.0)
    ]
    for point in fallen:
        assert point.value == pytest.approx(0.1) or point.budget_FLOPs < COMPUTE[-1]
    error = scaling_points.study(fallen, with_stage0=False, resamples=10).curves["log_linear"].error
    assert error.value == pytest.approx(0.4 - 0.1, abs=1e-9)


def test_stage_0_moves_the_axis_alone():
    given = points(TRUE["log_linear"][0], 0.0)
    without = scaling_points.study(given, with_stage0=False, resamples=5).curves["log_linear"]
    including = scaling_points.study(given, with_stage0=True, resamples=5).curves["log_linear"]
    assert without.r2 == pytest.approx(1)
    assert including.r2 < 0.999
    assert including.compute_FLOPs[0] == pytest.approx(COMPUTE[0] + 2e12)


def test_documents_and_seeds_both_widen_the_interval():
    curve = TRUE["log_linear"][0]

    def width(given) -> float:
        given = [point for point in given if point.budget_FLOPs in COMPUTE[:2]]
        found = scaling_points.study(given, with_stage0=False, resamples=60)
        level = found.curves["log_linear"].parameters["P0"]
        return level.high - level.low

    few = width(points(curve, 0.1, documents=10))
    assert few > 1.5 * width(points(curve, 0.1, documents=160))
    one = scaling_points.study(points(curve, 0.1, seeds=(0,)), with_stage0=False, resamples=5)
    assert any("one seed" in note for note in one.notes)
    apart = [
        dataclasses.replace(
            p, documents={k: (t + 5 * p.seed, n) for k, (t, n) in p.documents.items()}
        )
        for p in points(curve, 1e-4)
    ]
    assert width(apart) > 50 * width(points(curve, 1e-4))


def test_forms_that_need_more_budgets_are_left_out_and_named():
    given = [p for p in points(TRUE["power"][0], 1e-3) if p.budget_FLOPs < COMPUTE[3]]
    study = scaling_points.study(given, with_stage0=False, resamples=5)
    assert set(study.curves) == {"power", "log_linear"}
    assert study.curves["power"].error is None
    assert any("sigmoid has 4 parameters, and there are 3 budgets" in n for n in study.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arm": "ntp"}, "several arms or measures"),
        ({"measure": "easy"}, "several arms or measures"),
        ({"budget_FLOPs": COMPUTE[1]}, "same budget and seed"),
        ({"documents": {"d": (float("nan"), 1.0)}}, "not finite"),
    ],
)
def test_points_that_do_not_belong_together(change, message):
    given = points(TRUE["power"][0], 0.01)
    with pytest.raises(ValueError, match=message):
        scaling_points.study(
            [dataclasses.replace(given[0], **change), *given[1:]], with_stage0=False, resamples=2
        )
