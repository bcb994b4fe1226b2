"""A small preconditioned L-BFGS for smooth objectives whose value and gradient come from one pass over the data.

The step is the two-loop recursion of Nocedal with the initial inverse Hessian given by the caller, so that a cheap
approximation of the curvature (a Cholesky factor from a sample of rows) replaces most iterations. The line search
starts at 1 and only backtracks: with a Newton-like direction the full step is nearly always taken, and each trial costs
one pass.

References:
    J. Nocedal, "Updating quasi-Newton matrices with limited storage", Math. Comp. 35 (1980).
    W. Hager, H. Zhang, "A new conjugate gradient method with guaranteed descent", SIAM J. Optim. 16 (2005), for the
    acceptance rule near the noise of the arithmetic.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evenhand.errors import NonFiniteLossError

Array = npt.NDArray[np.float64]
ValueGrad = Callable[[Array], tuple[float, Array]]
Precondition = Callable[[Array], Array]

MEMORY = 12
NOISE = 1e-10
"""Relative size of differences of the objective that are arithmetic noise (float32 products, float64 sums)."""

DECREASE = 1e-8
"""The search also ends when the decrease that the quadratic model still promises is below this share of the objective."""


@dataclass(frozen=True)
class Minimum:
    """Where the search ended.

    Attributes:
        theta: the parameters, in the shape they were given.
        value: the objective there.
        gradient: largest absolute entry of the gradient there.
        n_iter: iterations taken.
        n_eval: passes over the data.
        converged: the gradient is within tolerance, or hardly any decrease is left (`DECREASE`, or arithmetic noise).
    """

    theta: Array
    value: float
    gradient: float
    n_iter: int
    n_eval: int
    converged: bool


def _direction(gradient: Array, pairs: deque[tuple[Array, Array]], precondition: Precondition) -> Array:
    q = gradient.copy()
    alphas = []
    for s, y in reversed(pairs):
        alpha = np.vdot(s, q) / np.vdot(s, y)
        alphas.append(alpha)
        q -= alpha * y
    q = precondition(q)
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        q += (alpha - np.vdot(y, q) / np.vdot(s, y)) * s
    return -q


def _search(
    value_grad: ValueGrad, theta: Array, value: float, direction: Array, slope: float
) -> tuple[Array | None, float, Array, int]:
    """Backtrack from the full step; (None, …) when no step decreases the objective beyond noise."""
    step = 1.0
    gradient = direction
    for trial in range(1, 31):
        candidate = theta + step * direction
        new, gradient = value_grad(candidate)
        if np.isfinite(new):
            if new <= value + 1e-4 * step * slope:
                return candidate, new, gradient, trial
            if new <= value + NOISE * abs(value) and abs(float(np.vdot(gradient, direction))) <= 0.9 * abs(slope):
                return candidate, new, gradient, trial
            curvature = 2 * (new - value - step * slope)
            guess = -slope * step**2 / curvature if curvature > 0 else 0.5 * step
            if new <= value + NOISE * abs(value) and -slope * step <= NOISE * abs(value):
                return None, value, gradient, trial
            step = float(np.clip(guess, 0.1 * step, 0.5 * step))
        else:
            step *= 0.1
    return None, value, gradient, 30


def minimise(
    value_grad: ValueGrad,
    theta: Array,
    preconditioner: Callable[[Array], Precondition],
    *,
    max_iter: int,
    tol: float,
    decrease: float = DECREASE,
    refresh: tuple[int, ...] = (10, 30, 80, 200),
) -> Minimum:
    """Minimise a smooth function.

    Args:
        value_grad: parameters -> (value, gradient of the same shape), float64.
        theta: where to start; not changed.
        preconditioner: parameters -> a positive definite map that approximates the inverse Hessian there.
        max_iter: most iterations.
        tol: stop when the largest absolute gradient entry is at or below this.
        decrease: stop when the quadratic model promises less than this share of the value.
        refresh: iterations at which the preconditioner is made anew.

    Returns:
        The last point; see `Minimum`.

    Raises:
        NonFiniteLossError: the value is not finite at the start.

    Example:
        >>> found = minimise(lambda t: (float((t**2).sum()), 2 * t), np.ones(3), lambda t: lambda g: g, max_iter=9, tol=1e-9)
        >>> found.converged, float(abs(found.theta).max()) < 1e-9
        (True, True)
    """
    value, gradient = value_grad(theta)
    if not np.isfinite(value):
        raise NonFiniteLossError("the head's loss is not finite where its search starts; check the embeddings for NaN or infinity")
    n_eval = 1
    precondition = preconditioner(theta)
    pairs: deque[tuple[Array, Array]] = deque(maxlen=MEMORY)
    for iteration in range(max_iter):
        largest = float(np.abs(gradient).max(initial=0.0))
        if largest <= tol:
            return Minimum(theta, value, largest, iteration, n_eval, True)
        if iteration in refresh:
            precondition = preconditioner(theta)
        direction = _direction(gradient, pairs, precondition)
        slope = float(np.vdot(gradient, direction))
        if not slope < 0:
            pairs.clear()
            direction = -precondition(gradient)
            slope = float(np.vdot(gradient, direction))
        if -slope <= decrease * abs(value):
            return Minimum(theta, value, largest, iteration, n_eval, True)
        candidate, new, new_gradient, trials = _search(value_grad, theta, value, direction, slope)
        n_eval += trials
        if candidate is None:
            return Minimum(theta, value, largest, iteration, n_eval, -slope <= 1e-7 * max(abs(value), 1e-12))
        s, y = candidate - theta, new_gradient - gradient
        if np.vdot(s, y) > 1e-12 * np.sqrt(np.vdot(s, s) * np.vdot(y, y)):
            pairs.append((s, y))
        theta, value, gradient = candidate, new, new_gradient
    largest = float(np.abs(gradient).max(initial=0.0))
    return Minimum(theta, value, largest, max_iter, n_eval, largest <= tol)
