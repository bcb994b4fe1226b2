"""Linear heads on fixed embeddings: L2-regularised logistic and softmax regression, and ridge in closed form.

Objective, on standardised embeddings x~ = (x - mean) / sd of the training rows:

    J(W, b) = sum_i w_i * loss(W x~_i + b, y_i) / sum_i w_i  +  l2 / 2 * ||W||^2          (intercepts are not penalised)

with the logistic loss for one output and the softmax cross-entropy for C outputs. In scikit-learn's terms C = 1 / (l2 *
sum_i w_i). Products run in float32 over blocks of rows, so a value and its gradient
cost two products and little memory; sums, losses and the optimiser are float64. The result is folded to raw embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg

from evenhand.methods.lbfgs import DECREASE, Minimum, Precondition, minimise

Array = npt.NDArray[np.float64]
Embeddings = npt.NDArray[np.float32]
RowTerm = Callable[[Array], tuple[float, Array]]
"""Logits (n, K) -> (value, its gradient with respect to the logits, (n, K))."""

BLOCK = 32768
CURVATURE_ROWS = 8192


@dataclass(frozen=True)
class Standardizer:
    """x~ = (x - mean) / scale; columns that do not vary get scale 1, so they stay 0."""

    mean: Array
    scale: Array

    @classmethod
    def fit(cls, x: Embeddings, enabled: bool = True) -> Standardizer:
        """Mean and standard deviation (denominator n) of the rows, in float64; the identity when not enabled."""
        d = x.shape[1]
        if not enabled:
            return cls(np.zeros(d), np.ones(d))
        shift = x[: min(len(x), 64)].mean(axis=0, dtype=np.float64).astype(np.float32)
        total, square = np.zeros(d), np.zeros(d)
        for start in range(0, len(x), BLOCK):
            block = x[start : start + BLOCK] - shift
            total += block.sum(axis=0)
            square += np.einsum("ij,ij->j", block, block)
        mean = total / len(x)
        scale = np.sqrt(np.maximum(square / len(x) - mean**2, 0.0))
        constant = scale <= 1e-6 * (np.abs(shift) + np.abs(mean)) + 1e-12
        return cls(mean + shift, np.where(constant, 1.0, scale))

    def apply(self, x: Embeddings) -> Embeddings:
        """Standardised copy, float32."""
        out = np.empty(x.shape, dtype=np.float32)
        mean, inverse = self.mean.astype(np.float32), (1.0 / self.scale).astype(np.float32)
        for start in range(0, len(x), BLOCK):
            block = out[start : start + BLOCK]
            np.subtract(x[start : start + BLOCK], mean, out=block)
            block *= inverse
        return out

    def fold(self, theta: Array) -> tuple[Array, Array]:
        """Parameters (K, d + 1) on standardised embeddings -> (weight (K, d), bias (K,)) on raw ones."""
        # apply() subtracts the float32 mean, so the same number is folded
        weight = theta[:, :-1] / self.scale
        return weight, theta[:, -1] - weight @ self.mean.astype(np.float32).astype(np.float64)


def _logistic(z: Array, y: Array) -> tuple[Array, Array, Array]:
    """Row losses (n,), residuals (n, 1) and curvatures (n, 1) of one logit per row."""
    e = np.exp(-np.abs(z[:, 0]))
    p = np.where(z[:, 0] >= 0, 1.0, e) / (1.0 + e)
    loss = np.log1p(e) + np.maximum(z[:, 0], 0.0) - y * z[:, 0]
    return loss, (p - y)[:, None], (p * (1.0 - p))[:, None]


def _softmax(z: Array, y: npt.NDArray[np.int64]) -> tuple[Array, Array, Array]:
    """Row losses (n,), residuals (n, C) and diagonal curvatures (n, C)."""
    shifted = z - z.max(axis=1, keepdims=True)
    e = np.exp(shifted)
    total = e.sum(axis=1, keepdims=True)
    p = e / total
    rows = np.arange(len(z))
    loss = np.log(total[:, 0]) - shifted[rows, y]
    curvature = p * (1.0 - p)
    p[rows, y] -= 1.0
    return loss, p, curvature


def _shrinkage(rows: Embeddings, second: Array) -> float:
    """Ledoit and Wolf's share in [0, 1] of a multiple of the identity, for a mean of outer products of few rows."""
    norms = np.einsum("ij,ij->i", rows, rows).astype(np.float64)
    squared = float(np.vdot(second, second))
    noise = (float(norms @ norms) / len(rows) - squared) / len(rows)
    spread = squared - float(np.trace(second)) ** 2 / len(second)
    return float(np.clip(noise / spread, 0.0, 1.0)) if spread > 0 else 1.0


@dataclass
class LogisticProblem:
    """Weighted logistic (n_classes 1) or softmax (n_classes C) regression on one matrix of embeddings.

    Attributes:
        x: (n, d) float32, standardised.
        y: (n,) 0/1, or the class code; rows of weight 0 may hold anything finite.
        weight: (n,) row weights; they are used as given, so let them sum to 1 for a mean.
        l2: L2 strength.
        n_classes: 1, or the number of classes.
        term: an optional further term of the objective, a function of all logits.
    """

    x: Embeddings
    y: npt.NDArray[np.generic]
    weight: Array
    l2: float
    n_classes: int = 1
    term: RowTerm | None = None

    def __post_init__(self) -> None:
        self.y = self.y.astype(np.int64 if self.n_classes > 1 else np.float64)

    def row_terms(self, z: Array, rows: slice | npt.NDArray[np.int64]) -> tuple[Array, Array, Array]:
        """Losses (m,), residuals (m, K) and curvatures (m, K) of some rows, unweighted."""
        y = self.y[rows]
        return _softmax(z, y) if self.n_classes > 1 else _logistic(z, y)  # type: ignore[arg-type]

    def logits(self, theta: Array) -> Array:
        """(n, K) logits."""
        w = theta[:, :-1].T.astype(np.float32)
        out = np.empty((len(self.x), len(theta)))
        for start in range(0, len(self.x), BLOCK):
            out[start : start + BLOCK] = self.x[start : start + BLOCK] @ w
        return out + theta[:, -1]

    def losses(self, theta: Array) -> Array:
        """(n,) losses, unweighted."""
        return self.row_terms(self.logits(theta), slice(None))[0]

    def value_grad(self, theta: Array) -> tuple[float, Array]:
        """The objective and its gradient (K, d + 1)."""
        if self.term is not None:
            return self._with_term(theta)
        w = theta[:, :-1].T.astype(np.float32)
        gradient = np.zeros_like(theta)
        value = 0.0
        for start in range(0, len(self.x), BLOCK):
            rows = slice(start, start + BLOCK)
            block = self.x[rows]
            loss, residual, _ = self.row_terms((block @ w).astype(np.float64) + theta[:, -1], rows)
            value += float(loss @ self.weight[rows])
            residual *= self.weight[rows, None]
            self._accumulate(gradient, residual, block)
        return self._penalised(value, gradient, theta)

    def _with_term(self, theta: Array) -> tuple[float, Array]:
        assert self.term is not None
        z = self.logits(theta)
        loss, residual, _ = self.row_terms(z, slice(None))
        extra, slope = self.term(z)
        residual = residual * self.weight[:, None] + slope
        gradient = np.zeros_like(theta)
        for start in range(0, len(self.x), BLOCK):
            rows = slice(start, start + BLOCK)
            self._accumulate(gradient, residual[rows], self.x[rows])
        return self._penalised(float(loss @ self.weight) + extra, gradient, theta)

    @staticmethod
    def _accumulate(gradient: Array, residual: Array, block: Embeddings) -> None:
        # weights of single rows are about 1/n: scaled up, so that float32 keeps its digits
        size = float(np.abs(residual).max(initial=0.0))
        if size > 0.0:
            gradient[:, :-1] += ((residual / size).astype(np.float32).T @ block) * size
            gradient[:, -1] += residual.sum(axis=0)

    def _penalised(self, value: float, gradient: Array, theta: Array) -> tuple[float, Array]:
        gradient[:, :-1] += self.l2 * theta[:, :-1]
        return value + 0.5 * self.l2 * float(np.vdot(theta[:, :-1], theta[:, :-1])), gradient

    def preconditioner(self, theta: Array) -> Precondition:
        """The inverse of the (block-diagonal) Hessian on an evenly spaced sample of rows, as Cholesky factors."""
        used = np.flatnonzero(self.weight > 0)
        sample = used[np.linspace(0, len(used) - 1, min(len(used), CURVATURE_ROWS)).astype(np.int64)]
        rows = np.hstack([self.x[sample], np.ones((len(sample), 1), np.float32)])
        z = (rows[:, :-1] @ theta[:, :-1].T.astype(np.float32)).astype(np.float64) + theta[:, -1]
        curvature = self.row_terms(z, sample)[2] * self.weight[sample, None] * (self.weight.sum() / self.weight[sample].sum())
        if curvature.shape[1] > 32:
            curvature = curvature.mean(axis=1, keepdims=True)
        factors = [self._factor(rows, column) for column in curvature.T]

        def apply(gradient: Array) -> Array:
            columns = factors if len(factors) == len(gradient) else factors * len(gradient)
            return np.stack([scipy.linalg.cho_solve(f, g, check_finite=False) for f, g in zip(columns, gradient, strict=True)])

        return apply

    def _factor(self, rows: Embeddings, curvature: Array) -> tuple[Array, bool]:
        # a floor keeps rows that are already decided from making the matrix singular
        curvature = np.maximum(curvature, 1e-3 * curvature.mean() + 1e-12 * self.weight.max())
        scaled = rows * np.sqrt(curvature * len(curvature)).astype(np.float32)[:, None]
        hessian = (scaled.T @ scaled).astype(np.float64) / len(curvature)
        diagonal = np.einsum("ii->i", hessian)
        share = _shrinkage(scaled, hessian)
        centre = float(diagonal.mean())
        hessian *= 1.0 - share
        diagonal += share * centre
        diagonal[:-1] += self.l2
        diagonal += 1e-6 * max(float(diagonal.mean()), 1e-12)
        factor: tuple[Array, bool] = scipy.linalg.cho_factor(hessian, overwrite_a=True, check_finite=False)
        return factor

    def start(self) -> Array:
        """Zero weights; intercepts at the (smoothed) log odds or log shares of the weighted labels."""
        theta = np.zeros((self.n_classes, self.x.shape[1] + 1))
        total = float(self.weight.sum())
        shares = [float(self.weight[self.y == c].sum()) / total for c in range(max(self.n_classes, 2))]
        logs = np.log(np.maximum(shares, 1e-6))
        theta[:, -1] = logs - logs.mean() if self.n_classes > 1 else logs[1] - logs[0]
        return theta

    def solve(self, *, max_iter: int, tol: float, theta: Array | None = None, decrease: float = DECREASE) -> Minimum:
        """The minimum, from ``theta`` or from `start`; see `minimise`."""
        first = self.start() if theta is None else theta
        return minimise(self.value_grad, first, self.preconditioner, max_iter=max_iter, tol=tol, decrease=decrease)
