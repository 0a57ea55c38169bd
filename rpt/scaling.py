"""How a measure grows with compute: three forms, fitted by bounded least squares.

    power        P(C) = P* + A (C/C0)^-alpha            A < 0 where accuracy rises to P*
    log_linear   P(C) = P0 + slope log10(C/C0)          no limit: what a power law must beat
    sigmoid      P(C) = P0 + (P* - P0) / (1 + (Cmid/C)^B)

The power law is equation 4 of the RPT paper (arXiv 2506.08007, section 4.2), the sigmoid that of
ScaleRL (arXiv 2510.13786). C0 is the geometric mean of the computes that were fitted, so that A is
the distance to P* at a middling budget and not a number with 20 digits.

Each form is linear in two of its parameters and has at most two more, its shape. For a given shape
the two are solved for exactly, within their limits; the shape is searched from many starts
(rpt/separable.py). So nothing depends on a guess, and a thousand resamples are fitted at once;
`rpt/scaling_points.py` makes them.

Letters: P points, Q fits done side by side, X shape parameters (0 to 2).
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from rpt import separable

# Of the search for the shape.
STARTS = 6
_LN10 = math.log(10)


@dataclasses.dataclass(frozen=True)
class Form:
    """A family of curves.

    Attributes:
      name, formula: for people.
      parameters: names in the order of `values`.
      axes: shape parameters, from the natural logarithms of the least and the greatest C / C0.
      basis: (shape [..., 1] each, log(C / C0) [..., P]) -> the two functions [..., P] that are
        combined linearly.
      limited: which of the two coefficients lie within the limits of the measure.
      values: (two coefficients, shape, C0) -> parameters.
    """

    name: str
    formula: str
    parameters: tuple[str, ...]
    axes: Callable[[float, float], tuple[separable.Axis, ...]]
    basis: Callable[..., tuple[np.ndarray, np.ndarray]]
    limited: tuple[bool, bool]
    values: Callable[..., tuple[np.ndarray, ...]]


def _power_axes(low: float, high: float) -> tuple[separable.Axis, ...]:
    # Flatter than this is a line in log C over the few decades of any experiment, and steeper
    # than this a step.
    del low, high
    return (separable.Axis(math.log(0.01), math.log(5.0), 48),)


def _sigmoid_axes(low: float, high: float) -> tuple[separable.Axis, ...]:
    # A middle far outside of what was measured leaves a tail, which is a power law.
    return (
        separable.Axis(math.log(0.1), math.log(10.0), 24),
        separable.Axis(low - 2 * _LN10, high + 2 * _LN10, 36),
    )


def _sigmoid_basis(log_steepness, log_middle, log_x):
    share = 0.5 * (1 + np.tanh(0.5 * np.exp(log_steepness) * (log_x - log_middle)))
    return 1 - share, share


FORMS = {
    form.name: form
    for form in (
        Form(
            name="power",
            formula="P* + A (C/C0)^-alpha",
            parameters=("A", "alpha", "P*"),
            axes=_power_axes,
            basis=lambda log_alpha, log_x: (
                np.exp(-np.exp(log_alpha) * log_x),
                np.ones_like(log_x),
            ),
            limited=(False, True),
            values=lambda u, v, shape, reference: (u, np.exp(shape[0]), v),
        ),
        Form(
            name="log_linear",
            formula="P0 + slope log10(C/C0)",
            parameters=("P0", "slope"),
            axes=lambda low, high: (),
            basis=lambda log_x: (np.ones_like(log_x), log_x / _LN10),
            limited=(False, False),
            values=lambda u, v, shape, reference: (u, v),
        ),
        Form(
            name="sigmoid",
            formula="P0 + (P* - P0) / (1 + (Cmid/C)^B)",
            parameters=("P0", "P*", "B", "Cmid"),
            axes=_sigmoid_axes,
            basis=_sigmoid_basis,
            limited=(True, True),
            values=lambda u, v, shape, reference: (
                u,
                v,
                np.exp(shape[0]),
                reference * np.exp(shape[1]),
            ),
        ),
    )
}


@dataclasses.dataclass(frozen=True, eq=False)
class Fits:
    """Q fits of one form.

    Attributes:
      form: which.
      reference_FLOPs: C0.
      first_Q, second_Q: the two linear coefficients.
      shape_XQ: shape parameters, as logarithms.
      squares_Q: weighted sum of squared residuals.
      at_bound_Q: whether a parameter lies at an end of its range, where it says little.
    """

    form: Form
    reference_FLOPs: float
    first_Q: np.ndarray
    second_Q: np.ndarray
    shape_XQ: np.ndarray
    squares_Q: np.ndarray
    at_bound_Q: np.ndarray

    def parameters(self) -> dict[str, np.ndarray]:
        """Name -> [Q]."""
        found = self.form.values(self.first_Q, self.second_Q, self.shape_XQ, self.reference_FLOPs)
        return dict(zip(self.form.parameters, found, strict=True))

    def predict(self, compute_FLOPs_P: np.ndarray) -> np.ndarray:
        """The curves at these computes, [Q, P]."""
        log_x_P = np.log(np.asarray(compute_FLOPs_P, np.float64) / self.reference_FLOPs)
        log_x_QP = np.broadcast_to(log_x_P, (len(self.first_Q), len(log_x_P)))
        first_QP, second_QP = self.form.basis(*self.shape_XQ[..., None], log_x_QP)
        return self.first_Q[:, None] * first_QP + self.second_Q[:, None] * second_QP


@dataclasses.dataclass(frozen=True)
class Fit:
    """One curve.

    Attributes:
      form: its name.
      parameters: by name; see the formulas above.
      reference_FLOPs: C0.
      r2: share of the variance explained; without a threshold it proves nothing.
      at_bound: a parameter lies at an end of its range.
      fits: the same, for predictions.
    """

    form: str
    parameters: dict[str, float]
    reference_FLOPs: float
    r2: float
    at_bound: bool
    fits: Fits

    def predict(self, compute_FLOPs_P: np.ndarray) -> np.ndarray:
        """The curve at these computes, [P]."""
        return self.fits.predict(compute_FLOPs_P)[0]


def fit(
    form: str,
    compute_FLOPs_P: np.ndarray,
    value_P: np.ndarray,
    *,
    limits: tuple[float, float] = (0.0, 1.0),
    starts: int = STARTS,
) -> Fit:
    """The least-squares curve through points.

    Args:
      form: 'power', 'log_linear' or 'sigmoid'.
      compute_FLOPs_P: of every point, positive.
      value_P: what was measured.
      limits: of the measure, for the asymptotes: (0, 1) for an accuracy.
      starts: of the search for the shape.

    Raises:
      ValueError: an unknown form; values that are not finite, all equal, or at fewer computes than
        the form has parameters.
    """
    compute_P, value_P = check(form, compute_FLOPs_P, value_P)
    found = fit_many(
        FORMS[form],
        compute_P,
        value_P[None],
        np.ones((1, len(value_P))),
        limits=limits,
        starts=starts,
    )
    return Fit(
        form=form,
        parameters={name: float(value[0]) for name, value in found.parameters().items()},
        reference_FLOPs=found.reference_FLOPs,
        r2=float(r2(found.predict(compute_P), value_P[None], np.ones((1, len(value_P))))[0]),
        at_bound=bool(found.at_bound_Q[0]),
        fits=found,
    )


def check(form: str, compute_P: np.ndarray, value_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points as float64, if the form can be fitted to them; raises as `fit` does."""
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}; known are {', '.join(FORMS)}")
    compute_P, value_P = np.asarray(compute_P, np.float64), np.asarray(value_P, np.float64)
    if compute_P.ndim != 1 or compute_P.shape != value_P.shape:
        raise ValueError(f"computes {compute_P.shape} and values {value_P.shape} must both be [P]")
    if not np.isfinite(value_P).all() or not np.isfinite(compute_P).all() or (compute_P <= 0).any():
        raise ValueError("a compute or value to fit is not finite, or a compute is not positive")
    needed, given = len(FORMS[form].parameters), len(np.unique(compute_P))
    if given < needed:
        raise ValueError(
            f"{form} has {needed} parameters, and there are {given} different computes; "
            "measure at more budgets"
        )
    if np.ptp(value_P) == 0:
        raise ValueError(f"all values are {value_P[0]:g}: there is no curve to fit")
    return compute_P, value_P


def r2(predicted_QP: np.ndarray, value_QP: np.ndarray, weight_QP: np.ndarray) -> np.ndarray:
    """1 - residual / total sum of squares, [Q]; not a number where all values are equal."""
    total_Q = weight_QP.sum(1)
    mean_Q1 = ((weight_QP * value_QP).sum(1) / total_Q)[:, None]
    spread_Q = (weight_QP * (value_QP - mean_Q1) ** 2).sum(1)
    residual_Q = (weight_QP * (value_QP - predicted_QP) ** 2).sum(1)
    return 1 - np.divide(
        residual_Q, spread_Q, out=np.full_like(total_Q, np.nan), where=spread_Q > 0
    )


# ---- many fits at once ---------------------------------------------------------------------------


def fit_many(
    form: Form,
    compute_P: np.ndarray,
    value_QP: np.ndarray,
    weight_QP: np.ndarray,
    *,
    limits: tuple[float, float] = (0.0, 1.0),
    starts: int = STARTS,
) -> Fits:
    """Q weighted fits at the same computes; arguments are taken as they are."""
    reference = float(np.exp(np.log(compute_P).mean()))
    log_x_P = np.log(compute_P / reference)
    axes = form.axes(float(log_x_P.min()), float(log_x_P.max()))
    boxes = [limits if limited else (-np.inf, np.inf) for limited in form.limited]
    problem = separable.Problem(form.basis, log_x_P, value_QP, weight_QP, boxes)
    shape_XQ, solved = separable.solve(problem, axes, starts)
    at_bound_Q = np.zeros(len(value_QP), bool)
    for axis, shape_Q in zip(axes, shape_XQ, strict=True):
        margin = 1e-6 * (axis.high - axis.low)
        at_bound_Q |= (shape_Q < axis.low + margin) | (shape_Q > axis.high - margin)
    for value_Q, (low, high) in zip((solved.first, solved.second), boxes, strict=True):
        at_bound_Q |= (value_Q <= low) | (value_Q >= high)
    return Fits(form, reference, solved.first, solved.second, shape_XQ, solved.squares, at_bound_Q)
