"""Scaling over budgets and seeds: points, intervals, and the three forms compared.

A point is one arm trained at one budget from one seed, and evaluated; those of an experiment stand
in its results.json (`report_data.gather`).

Intervals are percentiles of a bootstrap over seeds and documents: seeds are drawn with replacement,
and so are documents, the same ones for every point of a seed, since these are all evaluated on the
same text; seeds have documents of their own. With three seeds such intervals are too narrow more
often than they say; with one they are of the documents alone.

Letters: P points, Q resamples, D documents.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rpt import scaling

RESAMPLES = 200
_BAND_POINTS = 49


@dataclasses.dataclass(frozen=True)
class Point:
    """One run.

    Attributes:
      arm: the curve that it is a point of.
      seed: of its experiment.
      measure: what was measured, in words; only equal ones are compared.
      budget_FLOPs: the nominal budget, the same for all seeds.
      stage0_FLOPs: executed before the arm begins.
      trained_FLOPs: executed by the arm itself.
      documents: of each, the sum of the measure over its positions, and the positions.
    """

    arm: str
    seed: int
    measure: str
    budget_FLOPs: float
    stage0_FLOPs: float
    trained_FLOPs: float
    documents: Mapping[str, tuple[float, float]]

    @property
    def value(self) -> float:
        """The mean over all positions."""
        total, count = np.sum(list(self.documents.values()), axis=0)
        return float(total / count)

    def compute_FLOPs(self, with_stage0: bool) -> float:
        return self.trained_FLOPs + (self.stage0_FLOPs if with_stage0 else 0.0)


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value and its 95% percentile interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """One form through an arm's points.

    Attributes:
      form: its name.
      parameters: by name, with intervals.
      reference_FLOPs: C0.
      r2: of the fit to all points; no threshold makes it a proof.
      at_bound: the fit lies at an end of a parameter's range.
      at_bound_share: of the resamples.
      error: predicted minus measured at the left-out largest budget; None where too few are left.
      best_share: of the resamples, where this form's error is the smallest in absolute value.
      compute_FLOPs, middle, low, high: the curve and its band.
    """

    form: str
    parameters: dict[str, Interval]
    reference_FLOPs: float
    r2: float
    at_bound: bool
    at_bound_share: float
    error: Interval | None
    best_share: float | None
    compute_FLOPs: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """Everything about one arm and one measure.

    Attributes:
      arm, measure, with_stage0: what was fitted.
      points: in the order of budgets.
      curves: by form; a form with more parameters than there are budgets is not among them.
      notes: what a reader must know: few seeds, forms left out.
    """

    arm: str
    measure: str
    with_stage0: bool
    points: tuple[Point, ...]
    curves: dict[str, Curve]
    notes: tuple[str, ...]


# ---- intervals -----------------------------------------------------------------------------------


def study(
    points: Sequence[Point],
    *,
    with_stage0: bool,
    limits: tuple[float, float] = (0.0, 1.0),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Study:
    """Fits every form to one arm's points, and leaves the largest budget out to predict it.

    Args:
      points: of one arm and one measure.
      with_stage0: whether the compute includes what was executed before the arm.
      limits: of the measure.
      resamples: of the bootstrap; the same seed gives the same intervals.
      seed: of the bootstrap.

    Raises:
      ValueError: points of several arms or measures, the same budget twice for a seed, or values
        and computes that no form can be fitted to.
    """
    points = sorted(points, key=lambda point: (point.budget_FLOPs, point.seed))
    _check(points)
    compute_P = np.array([point.compute_FLOPs(with_stage0) for point in points])
    value_P = np.array([point.value for point in points])
    budget_P = np.unique([p.budget_FLOPs for p in points], return_inverse=True)[1]
    budgets = int(budget_P.max()) + 1
    scaling.check("log_linear", compute_P, value_P)
    value_QP, weight_QP = _resampled(points, resamples, seed)
    # The first row is what was measured.
    value_QP = np.concatenate([value_P[None], value_QP])
    weight_QP = np.concatenate([np.ones((1, len(points))), weight_QP])
    fitted = _Fitted(compute_P, value_QP, weight_QP, budget_P, limits)
    possible = {n: f for n, f in scaling.FORMS.items() if budgets >= len(f.parameters)}
    errors = {
        name: fitted.last_errors(form)
        for name, form in possible.items()
        if budgets - 1 >= len(form.parameters)
    }
    return Study(
        arm=points[0].arm,
        measure=points[0].measure,
        with_stage0=with_stage0,
        points=tuple(points),
        curves={
            name: fitted.curve(form, errors.get(name), _best_share(errors, name))
            for name, form in possible.items()
        },
        notes=tuple(_notes(points, budgets, possible, errors)),
    )


def _check(points: Sequence[Point]) -> None:
    if not points:
        raise ValueError("no points to fit")
    kinds = {(point.arm, point.measure) for point in points}
    if len(kinds) > 1:
        raise ValueError(f"points of several arms or measures: {sorted(kinds)}; fit each by itself")
    places = [(point.budget_FLOPs, point.seed) for point in points]
    if len(set(places)) < len(places):
        raise ValueError("two points have the same budget and seed; which one counts?")


def _notes(points, budgets: int, possible, errors) -> Iterable[str]:
    seeds = len({point.seed for point in points})
    if seeds == 1:
        yield "one seed: intervals are of the documents alone"
    elif seeds < 5:
        yield f"{seeds} seeds: intervals over so few are too narrow more often than they say"
    for name, form in scaling.FORMS.items():
        if name not in possible:
            yield f"{name} has {len(form.parameters)} parameters, and there are {budgets} budgets"
        elif name not in errors:
            yield f"{name}: without the largest budget there are fewer budgets than parameters"
        elif budgets - 1 == len(form.parameters):
            yield f"{name}: as many parameters as budgets when the largest is left out"


def _resampled(points: Sequence[Point], resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and weights [Q, P]: how often the point's seed was drawn, and the documents' mean.

    A resample in which some point has no document, or which leaves a single budget, is drawn again.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    names = sorted({name for point in points for name in point.documents})
    place = {name: d for d, name in enumerate(names)}
    total_DP, count_DP = (np.zeros((len(names), len(points))) for _ in range(2))
    for p, point in enumerate(points):
        for name, (total, count) in point.documents.items():
            total_DP[place[name], p], count_DP[place[name], p] = total, count
    seed_P = np.unique([point.seed for point in points], return_inverse=True)[1]
    seeds = int(seed_P.max()) + 1
    budget_P = np.array([point.budget_FLOPs for point in points])
    values, weights = [], []
    while len(values) < resamples:
        times_D = np.bincount(generator.integers(len(names), size=len(names)), minlength=len(names))
        weight_P = np.bincount(generator.integers(seeds, size=seeds), minlength=seeds)[seed_P]
        count_P = times_D @ count_DP
        drawn = weight_P > 0
        if (count_P[drawn] == 0).any() or set(budget_P[drawn]) != set(budget_P):
            continue
        values.append((times_D @ total_DP) / np.maximum(count_P, 1e-300) * drawn)
        weights.append(weight_P)
    return np.array(values), np.array(weights, np.float64)


@dataclasses.dataclass(frozen=True, eq=False)
class _Fitted:
    """The measured points (row 0) and their resamples, and what is made of them."""

    compute_P: np.ndarray
    value_QP: np.ndarray
    weight_QP: np.ndarray
    budget_P: np.ndarray
    limits: tuple[float, float]

    def _fits(self, form: scaling.Form, weight_QP: np.ndarray) -> scaling.Fits:
        return scaling.fit_many(form, self.compute_P, self.value_QP, weight_QP, limits=self.limits)

    def last_errors(self, form: scaling.Form) -> np.ndarray:
        """Predicted minus measured at the largest budget, which the fit has not seen; [Q]."""
        last_P = self.budget_P == self.budget_P.max()
        fits = self._fits(form, self.weight_QP * ~last_P)
        residual_QP = fits.predict(self.compute_P) - self.value_QP
        weight_QP = self.weight_QP * last_P
        return (residual_QP * weight_QP).sum(1) / weight_QP.sum(1)

    def curve(
        self, form: scaling.Form, error_Q: np.ndarray | None, best_share: float | None
    ) -> Curve:
        fits = self._fits(form, self.weight_QP)
        compute = np.geomspace(self.compute_P.min(), self.compute_P.max(), _BAND_POINTS)
        curve_QP = fits.predict(compute)
        low, high = np.quantile(curve_QP[1:], [0.025, 0.975], axis=0)
        return Curve(
            form=form.name,
            parameters={name: _interval(value_Q) for name, value_Q in fits.parameters().items()},
            reference_FLOPs=fits.reference_FLOPs,
            r2=float(scaling.r2(fits.predict(self.compute_P), self.value_QP, self.weight_QP)[0]),
            at_bound=bool(fits.at_bound_Q[0]),
            at_bound_share=float(fits.at_bound_Q[1:].mean()),
            error=None if error_Q is None else _interval(error_Q),
            best_share=best_share,
            compute_FLOPs=compute,
            middle=curve_QP[0],
            low=low,
            high=high,
        )


def _interval(value_Q: np.ndarray) -> Interval:
    low, high = np.quantile(value_Q[1:], [0.025, 0.975])
    return Interval(float(value_Q[0]), float(low), float(high))


def _best_share(errors: Mapping[str, np.ndarray], name: str) -> float | None:
    if name not in errors or len(errors) < 2:
        return None
    size_FQ = np.abs(np.stack(list(errors.values())))[:, 1:]
    return float((size_FQ.argmin(0) == list(errors).index(name)).mean())
