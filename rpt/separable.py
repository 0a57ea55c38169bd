"""Least squares of curves that are linear in two of their parameters.

The curve is u a(x; shape) + v b(x; shape), with u and v each within a box. For a given shape the
optimum is known exactly, so only the shape (a few numbers at most, each on an axis) is searched
for: a grid over all of its range gives the starts, a pattern search goes on from each of them, and
the best end counts. Many fits at the same x are done side by side.

Letters: P points, Q fits done side by side, Z candidate shapes, X shape parameters, S starts,
M = S * Q.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# The search halves its steps whenever no neighbour is better: the last is far below any interval.
_ITERATIONS, _HALVINGS = 100, 16


class Axis(NamedTuple):
    """A shape parameter as it is searched: the logarithm of its value, on a grid."""

    low: float
    high: float
    cells: int

    def grid(self) -> np.ndarray:
        return np.linspace(self.low, self.high, self.cells)


class Solved(NamedTuple):
    """The linear coefficients and the sum of squares of each candidate, [Q, Z] or [Q]."""

    first: np.ndarray
    second: np.ndarray
    squares: np.ndarray

    def at(self, index_Q: np.ndarray) -> "Solved":
        """One candidate of each fit."""
        picked = [np.take_along_axis(array, index_Q[:, None], 1)[:, 0] for array in self]
        return Solved(picked[0], picked[1], picked[2])


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """Q fits at the same x.

    Attributes:
      basis: (shape parameters [Q, Z, 1] each, x [Q, Z, P]) -> a and b, [Q, Z, P]; Q may be 1.
      x_P, value_QP, weight_QP: the points.
      boxes: least and greatest u, and v; infinite where free.
    """

    basis: Callable[..., tuple[np.ndarray, np.ndarray]]
    x_P: np.ndarray
    value_QP: np.ndarray
    weight_QP: np.ndarray
    boxes: list[tuple[float, float]]

    def linear(self, shape_XQZ: np.ndarray) -> Solved:
        """The exact optimum within the boxes for every candidate; Q may be 1, shared by all."""
        x_QZP = np.broadcast_to(self.x_P, (*shape_XQZ.shape[1:], len(self.x_P)))
        a_QZP, b_QZP = self.basis(*shape_XQZ[..., None], x_QZP)
        w_QP, y_QP = self.weight_QP, self.value_QP

        def total(per_QZP: np.ndarray, weight_QP: np.ndarray) -> np.ndarray:
            return np.matmul(per_QZP, weight_QP[..., None])[..., 0]

        return _boxed_optimum(
            _Sums(
                aa=total(a_QZP * a_QZP, w_QP),
                ab=total(a_QZP * b_QZP, w_QP),
                bb=total(b_QZP * b_QZP, w_QP),
                ay=total(a_QZP, w_QP * y_QP),
                by=total(b_QZP, w_QP * y_QP),
                yy=(w_QP * y_QP * y_QP).sum(1)[:, None],
            ),
            self.boxes,
        )


class _Sums(NamedTuple):
    """Weighted sums over points of products of the two basis functions and the values, [Q, Z]."""

    aa: np.ndarray
    ab: np.ndarray
    bb: np.ndarray
    ay: np.ndarray
    by: np.ndarray
    yy: np.ndarray

    def squares(self, u: np.ndarray | float, v: np.ndarray | float) -> np.ndarray:
        """The sum of squared residuals of u a + v b."""
        linear = u * self.ay + v * self.by
        return self.yy - 2 * linear + u * u * self.aa + 2 * u * v * self.ab + v * v * self.bb


def _boxed_optimum(sums: _Sums, boxes: list[tuple[float, float]]) -> Solved:
    """The least of a convex function of two variables: inside, or on one of the finite edges."""
    (low_u, high_u), (low_v, high_v) = boxes
    with np.errstate(divide="ignore", invalid="ignore"):
        determinant = sums.aa * sums.bb - sums.ab**2
        u = (sums.ay * sums.bb - sums.by * sums.ab) / determinant
        v = (sums.by * sums.aa - sums.ay * sums.ab) / determinant
        inside = (u >= low_u) & (u <= high_u) & (v >= low_v) & (v <= high_v)
        tried = [(u, v, np.where(inside, sums.squares(u, v), np.inf))]
        for edge in (low_v, high_v):
            if np.isfinite(edge):
                u = np.clip((sums.ay - edge * sums.ab) / sums.aa, low_u, high_u)
                tried.append((u, np.full_like(u, edge), sums.squares(u, edge)))
        for edge in (low_u, high_u):
            if np.isfinite(edge):
                v = np.clip((sums.by - edge * sums.ab) / sums.bb, low_v, high_v)
                tried.append((np.full_like(v, edge), v, sums.squares(edge, v)))
    squares = np.nan_to_num(np.stack([t[2] for t in tried]), nan=np.inf)
    best = squares.argmin(0)[None]
    picked = [np.take_along_axis(np.stack([t[i] for t in tried]), best, 0)[0] for i in (0, 1)]
    return Solved(picked[0], picked[1], np.take_along_axis(squares, best, 0)[0])


def solve(problem: Problem, axes: tuple[Axis, ...], starts: int) -> tuple[np.ndarray, Solved]:
    """The best shape [X, Q] of the searches from all starts, and what belongs to it, [Q].

    A start is the best cell of a slice of the grid along its first axis.
    """
    Q = len(problem.value_QP)
    if not axes:
        shape_XQ = np.zeros((0, Q))
        return shape_XQ, problem.linear(shape_XQ[..., None]).at(np.zeros(Q, int))
    grids = np.meshgrid(*[axis.grid() for axis in axes], indexing="ij")
    cells_XZ = np.stack([grid.reshape(-1) for grid in grids])
    squares_QZ = problem.linear(cells_XZ[:, None]).squares
    slices = np.array_split(np.arange(cells_XZ.shape[1]), min(starts, axes[0].cells))
    begin_SQ = np.stack([cells[squares_QZ[:, cells].argmin(1)] for cells in slices])
    # All starts of all fits at once: as if each fit were there S times.
    S = len(begin_SQ)
    repeated = dataclasses.replace(
        problem,
        value_QP=np.tile(problem.value_QP, (S, 1)),
        weight_QP=np.tile(problem.weight_QP, (S, 1)),
    )
    shape_XM, solved = _descend(repeated, axes, cells_XZ[:, begin_SQ.reshape(-1)])
    best_Q = solved.squares.reshape(S, Q).argmin(0) * Q + np.arange(Q)
    return shape_XM[:, best_Q], Solved(
        solved.first[best_Q], solved.second[best_Q], solved.squares[best_Q]
    )


def _descend(
    problem: Problem, axes: tuple[Axis, ...], at_XQ: np.ndarray
) -> tuple[np.ndarray, Solved]:
    """Pattern search: to the best neighbour, or half the step where none is better."""
    low_X1, high_X1 = (np.array([[end] for end in ends]) for ends in zip(*[a[:2] for a in axes]))
    step_XQ = np.array([[(a.high - a.low) / (a.cells - 1)] for a in axes]) * np.ones_like(at_XQ)
    last_XQ = step_XQ * 0.5**_HALVINGS
    moves_XZ = np.stack(np.meshgrid(*[(0.0, -1.0, 1.0)] * len(axes), indexing="ij"))
    moves_XZ = moves_XZ.reshape(len(axes), -1)  # the first is to stay
    solved = None
    for _ in range(_ITERATIONS):
        near_XQZ = at_XQ[..., None] + step_XQ[..., None] * moves_XZ[:, None]
        near_XQZ = np.clip(near_XQZ, low_X1[..., None], high_X1[..., None])
        tried = problem.linear(near_XQZ)
        pick_Q = tried.squares.argmin(1)
        at_XQ = np.take_along_axis(near_XQZ, pick_Q[None, :, None], 2)[..., 0]
        solved = tried.at(pick_Q)
        step_XQ = np.where(pick_Q == 0, step_XQ / 2, step_XQ)
        if (step_XQ <= last_XQ).all():
            break
    assert solved is not None
    return at_XQ, solved
