r"""Cox recalibration: the slope and the intercept of a logistic regression of the truth on the logit of the score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.metrics.calibration import CLIP, GRID

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

SEPARATED = "the scores separate the classes completely, so the slope has no finite value"
CONSTANT = "all scores are equal, so there is no slope"
ONE_CLASS = "only one class, so the fit has no finite value"
_NOT_FOUND = "the fit did not converge"
_STEPS, _TOLERANCE, _ROUNDING, _LARGEST = 100, 1e-12, 1e-14, 2.0


@dataclass(frozen=True)
class Recalibration:
    """Slope and intercept of the calibration of one set of rows.

    Attributes:
        slope: b in logit P(Y=1) = a + b logit S; 1 is right, below 1 the scores are too extreme. NaN where not defined.
        intercept: a in logit P(Y=1) = a + logit S (the slope fixed at 1); 0 is right, below 0 the scores are too high.
        slope_variance: sandwich variance of the slope with patients as clusters.
        intercept_variance: of the intercept.
        reasons: ``slope`` or ``intercept`` -> why it is not defined.
        sums: (n_units, 7), what each unit adds to score and information of the two fits at their solutions: for the slope
            (2 scores, 3 informations), for the intercept (1, 1).
    """

    slope: float
    intercept: float
    slope_variance: float
    intercept_variance: float
    reasons: dict[str, str]
    sums: FloatArray

    def replicates(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        r"""(slopes, intercepts) under each column of weights, by one Newton step from this solution.

        :math:`\theta_w = \hat\theta + H_w^{-1} g_w` with :math:`g_w = \sum_i w_i x_i (y_i - p_i)` and :math:`H_w =
        \sum_i w_i p_i (1 - p_i) x_i x_i'`, so a bootstrap is a matrix product; the error is of second order in the
        distance of the weights from 1.

        Args:
            weights: (n_units, b), not negative.
        """
        found = self.sums.T @ weights
        found[[0, 1, 5]] -= self.sums[:, [0, 1, 5]].sum(axis=0)[:, None]
        score0, score1, h00, h01, h11, score, information = found
        determinant = h00 * h11 - h01**2
        usable = determinant > 1e-9 * np.maximum(h00 * h11, 1e-300)
        missing = np.full(weights.shape[1], np.nan)
        step = np.divide(h00 * score1 - h01 * score0, determinant, out=missing.copy(), where=usable)
        shift = np.divide(score, information, out=missing, where=information > 0)
        return self.slope + step, self.intercept + shift


def recalibrate(y_true: npt.NDArray[Any], y_score: npt.NDArray[Any], unit: IntArray, weight: FloatArray | None = None) -> Recalibration:
    """Fit slope and intercept; see `calibration_slope_intercept`.

    Args:
        y_true: (n,) in {0, 1}.
        y_score: (n,) in [0, 1].
        unit: (n,) position of each row's unit.
        weight: (n,) not negative; default: all 1.
    """
    y = (np.asarray(y_true) == 1).astype(float)
    score = np.clip(y_score, CLIP, 1 - CLIP)
    x = np.log(score) - np.log1p(-score)
    w = np.ones(len(y)) if weight is None else weight
    order = np.lexsort((w, y, x))  # so that the fit does not depend on the order of rows
    rows, seen = (y[order], x[order], w[order]), w > 0
    reasons = {}
    slope = np.full(2, np.nan)
    intercept = np.full(1, np.nan)
    reason = _undefined(y[seen], x[seen])
    if reason != ONE_CLASS:
        intercept = _fit(*rows, slope=False, start=np.zeros(1))
    if not reason:
        slope = _fit(*rows, slope=True, start=np.array([np.nan_to_num(intercept[0]), 1.0]))
    for name, found in (("slope", slope), ("intercept", intercept)):
        if not np.isfinite(found).all():
            reasons[name] = reason or _NOT_FOUND
    sums = _unit_sums(y, x, w, unit, slope, intercept)
    return Recalibration(float(slope[1]), float(intercept[0]), *_sandwich(sums), reasons, sums)


def _undefined(y: FloatArray, x: FloatArray) -> str:
    """Why there is no finite slope: it exists exactly where the scores of the classes overlap."""
    low, high = x[y == 0], x[y == 1]
    if not len(low) or not len(high):
        return ONE_CLASS
    if x.min() == x.max():
        return CONSTANT
    return "" if low.max() > high.min() and high.max() > low.min() else SEPARATED


def _fit(y: FloatArray, x: FloatArray, weight: FloatArray, *, slope: bool, start: FloatArray) -> FloatArray:
    """Damped Newton steps of a logistic regression on 1 and x, or on 1 with x as the offset; NaN where they do not converge."""
    from scipy.special import expit

    design = np.stack([np.ones(len(x)), x] if slope else [np.ones(len(x))])
    offset = np.zeros(len(x)) if slope else x
    theta, best = start, -np.inf
    step = np.zeros_like(start)
    for _ in range(_STEPS):
        line = offset + np.einsum("k,kn->n", theta + step, design)
        likelihood = float(np.sum(weight * (y * line - np.logaddexp(0.0, line))))
        if likelihood < best - 1e-9 * abs(best):
            step = step / 2
            continue
        theta, best, p = theta + step, likelihood, expit(line)
        information = np.einsum("jn,kn,n->jk", design, design, weight * p * (1 - p))
        if np.linalg.det(information) <= 0:
            return np.full_like(theta, np.nan)
        score = np.einsum("kn,n->k", design, weight * (y - p))
        step = np.linalg.solve(information, score)
        # Scores of 0 and 1 leave so little information that rounding alone moves the solution by more than the tolerance.
        if np.abs(step).max() < _TOLERANCE * (1 + np.abs(theta).max()) or np.abs(score).max() < _ROUNDING * weight.sum():
            return np.asarray(theta + step)
        step = step * min(1.0, _LARGEST / float(np.abs(step).max()))
    return np.full_like(theta, np.nan)


def _unit_sums(y: FloatArray, x: FloatArray, w: FloatArray, unit: IntArray, slope: FloatArray, intercept: FloatArray) -> FloatArray:
    """Each unit's scores and informations, (u, 7), on a grid so that their sums do not depend on the order of summation."""
    from scipy.special import expit

    p, q = expit(slope[0] + slope[1] * x), expit(intercept[0] + x)
    off, spread = w * (y - p), w * p * (1 - p)
    columns = (off, off * x, spread, spread * x, spread * x * x, w * (y - q), w * q * (1 - q))
    n_units = int(unit.max(initial=-1)) + 1
    return np.stack([np.bincount(unit, np.round(column / GRID) * GRID, minlength=n_units) for column in columns], axis=1)


def _sandwich(sums: FloatArray) -> tuple[float, float]:
    """(variance of the slope, of the intercept): H^-1 (sum_u g_u g_u') H^-1 u / (u - 1)."""
    units = int(np.count_nonzero(sums[:, 6] > 0))
    if units < 2:
        return float("nan"), float("nan")
    factor = units / (units - 1)
    h00, h01, h11, information = (float(sums[:, k].sum()) for k in (2, 3, 4, 6))
    determinant = h00 * h11 - h01**2
    pull = (h00 * sums[:, 1] - h01 * sums[:, 0]) / determinant if determinant > 0 else np.full(len(sums), np.nan)
    shift = factor * float((sums[:, 5] ** 2).sum()) / information**2 if information > 0 else float("nan")
    return factor * float((pull**2).sum()), shift


def calibration_slope_intercept(
    y_true: npt.ArrayLike, y_score: npt.ArrayLike, *, weight: npt.ArrayLike | None = None, patient: npt.ArrayLike | None = None
) -> Recalibration:
    r"""Cox recalibration of probabilities: are they too extreme, and are they too high on average?

    The slope is b in :math:`\mathrm{logit} P(Y=1 \mid S) = a + b \, \mathrm{logit} S`; the intercept is a in
    :math:`\mathrm{logit} P(Y=1 \mid S) = a + \mathrm{logit} S`, the slope fixed at 1 (calibration in the large), not
    the a of the first fit. Both by maximum likelihood; scores are cut to [1e-6, 1 - 1e-6] before the logit. The slope
    is not defined where the scores of the classes do not overlap (its likelihood has no maximum) or are all equal.

    More than two groups: the gap is the largest minus the smallest group's value; the worst group is the one furthest
    from 1 (slope) or 0 (intercept). Other libraries: statsmodels' ``Logit(y, [1, logit s])`` has the same slope, its
    ``GLM(..., offset=logit s)`` the same intercept; its clustered covariance multiplies ours by (n - 1)/(n - k).
    scikit-learn's LogisticRegression shrinks the slope by default; fairlearn and torchmetrics have neither.

    Args:
        y_true: (n,) in {0, 1}.
        y_score: (n,) probabilities in [0, 1].
        weight: (n,) not negative; default: all 1.
        patient: (n,) ids, the clusters of the variance; default: every row is one of its own.

    Returns:
        Slope, intercept and their variances.

    Example:
        >>> found = calibration_slope_intercept([0, 0, 1, 0, 1, 1], [0.01, 0.1, 0.3, 0.7, 0.9, 0.99])
        >>> round(found.slope, 3), round(found.intercept, 3)
        (0.712, 0.0)

    References:
        Cox, Biometrika 45 (1958) 562; Van Calster et al., Calibration: the Achilles heel of predictive analytics, BMC
        Medicine 17 (2019) 230; Liang and Zeger, Biometrika 73 (1986) 13 (sandwich variance).
    """
    truth, score = np.asarray(y_true), np.asarray(y_score, float)
    unit = np.arange(len(truth)) if patient is None else np.unique(np.asarray(patient), return_inverse=True)[1]
    return recalibrate(truth, score, unit, None if weight is None else np.asarray(weight, float))
