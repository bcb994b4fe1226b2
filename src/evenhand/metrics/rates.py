r"""Rates from additive counts: one table of numerators and denominators serves values, bootstrap and variances.

Every row adds to six sums: TP, FN, FP, TN, the squared error and the log loss. A rate is a ratio of two linear forms of
these sums (balanced accuracy: the mean of two), so its value under any weights is a matrix product, and its variance
with patients as clusters follows from sums of products.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

SUMS = ("tp", "fn", "fp", "tn", "squared_error", "log_loss")
_POSITIVE = (1, 1, 0, 0, 0, 0)
_NEGATIVE = (0, 0, 1, 1, 0, 0)
_FLAGGED = (1, 0, 1, 0, 0, 0)
_CLEARED = (0, 1, 0, 1, 0, 0)
_ALL = (1, 1, 1, 1, 0, 0)
_ANY_POSITIVE = (2, 1, 1, 0, 0, 0)

Ratio = tuple[tuple[int, ...], tuple[int, ...]]

RATES: dict[str, tuple[Ratio, ...]] = {
    "tpr": (((1, 0, 0, 0, 0, 0), _POSITIVE),),
    "fpr": (((0, 0, 1, 0, 0, 0), _NEGATIVE),),
    "tnr": (((0, 0, 0, 1, 0, 0), _NEGATIVE),),
    "fnr": (((0, 1, 0, 0, 0, 0), _POSITIVE),),
    "ppv": (((1, 0, 0, 0, 0, 0), _FLAGGED),),
    "npv": (((0, 0, 0, 1, 0, 0), _CLEARED),),
    "accuracy": (((1, 0, 0, 1, 0, 0), _ALL),),
    "balanced_accuracy": (((1, 0, 0, 0, 0, 0), _POSITIVE), ((0, 0, 0, 1, 0, 0), _NEGATIVE)),
    "f1": (((2, 0, 0, 0, 0, 0), _ANY_POSITIVE),),
    "positive_rate": (((1, 0, 1, 0, 0, 0), _ALL),),
    "prevalence": (((1, 1, 0, 0, 0, 0), _ALL),),
    "brier": (((0, 0, 0, 0, 1, 0), _ALL),),
    "log_loss": (((0, 0, 0, 0, 0, 1), _ALL),),
}
"""Metric -> (numerator, denominator) coefficients on `SUMS`; several pairs are averaged.

tpr P(d=1|y=1), fpr P(d=1|y=0), tnr P(d=0|y=0), fnr P(d=0|y=1), ppv P(y=1|d=1), npv P(y=0|d=0), accuracy P(d=y),
balanced_accuracy (tpr+tnr)/2, f1 2TP/(2TP+FP+FN), positive_rate P(d=1), prevalence P(y=1), brier E[(s-y)^2],
log_loss E[-log P(y|s)] with s cut to [1e-15, 1-1e-15].
"""

GIVEN_LABEL = frozenset({"auc", "tpr", "fpr", "tnr", "fnr", "balanced_accuracy"})
"""Metrics defined within a class: their tests permute groups within patients of equal label pattern."""

LOWER_IS_BETTER = frozenset({"fpr", "fnr", "brier", "ece", "ece_corrected", "log_loss"})
NEITHER_IS_BETTER = frozenset({"positive_rate", "prevalence"})
UNBOUNDED = frozenset({"log_loss", "calibration_slope", "calibration_intercept", "net_benefit", "mean", "median"})
"""Metrics whose gap may exceed 1."""

SIGNED = frozenset({"calibration_intercept", "calibration_slope", "net_benefit"})
"""Metrics that may be negative, so that the ratio of two groups says nothing."""

TARGETS = {"calibration_slope": 1.0, "calibration_intercept": 0.0}
"""Metrics that are best at one value, and worse on both sides of it."""

_GRID = 2.0**-30


@dataclass(frozen=True)
class Estimate:
    """One number of an audit, or the reason why there is none.

    Attributes:
        value: the point estimate; None where it is not estimable.
        lower: lower end of its interval.
        upper: upper end of its interval.
        n: rows in the denominator (AUC: rows of both classes).
        n_positive: positive rows in the cell.
        reason: why it is not estimable; empty where it is.
    """

    value: float | None
    lower: float | None
    upper: float | None
    n: int
    n_positive: int
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """The contract's form of an estimate."""
        numbers = {"value": self.value, "lower": self.lower, "upper": self.upper}
        if self.value is None:
            return {**numbers, "reason": self.reason, "n": self.n, "n_positive": self.n_positive}
        return {**numbers, "n": self.n}


def row_sums(y_true: npt.NDArray[Any], y_score: npt.NDArray[Any], decision: npt.NDArray[Any]) -> FloatArray:
    """What each row adds to `SUMS`: (n, 6).

    The two loss columns are rounded to multiples of 2**-30, so that sums are exact and do not depend on the order of
    summation or the number of threads; the rounding error of a mean is below 1e-9.
    """
    y, d = y_true == 1, decision == 1
    score = np.clip(y_score, 1e-15, 1 - 1e-15)
    losses = np.stack([(y_score - y) ** 2, -np.log(np.where(y, score, 1 - score))], axis=1)
    counts = np.stack([y & d, y & ~d, ~y & d, ~y & ~d], axis=1)
    return np.hstack([counts.astype(float), np.round(losses / _GRID) * _GRID])


def ratios(name: str, odds: float = float("nan")) -> tuple[tuple[tuple[float, ...], tuple[int, ...]], ...]:
    """(numerator, denominator) coefficients of a rate; net benefit's depend on the odds of the threshold."""
    return (((1.0, 0.0, -odds, 0.0, 0.0, 0.0), _ALL),) if name == "net_benefit" else RATES[name]


def rate(name: str, sums: FloatArray, odds: float = float("nan")) -> FloatArray:
    """The rate from sums (6, b): (b,), NaN where a denominator is 0."""
    parts = [_divide(np.asarray(top, float) @ sums, np.asarray(bottom, float) @ sums) for top, bottom in ratios(name, odds)]
    return np.asarray(sum(parts) / len(parts))


def _divide(top: FloatArray, bottom: FloatArray) -> FloatArray:
    return np.asarray(np.divide(top, bottom, out=np.full(np.shape(bottom), np.nan), where=bottom > 0))


def rate_gradient(name: str, sums: FloatArray, odds: float = float("nan")) -> FloatArray:
    """Derivative of the rate by each of the six sums: (6, b), NaN where a denominator is 0."""
    parts = ratios(name, odds)
    gradient = np.zeros_like(sums)
    for top, bottom in parts:
        u, v = np.asarray(top, float), np.asarray(bottom, float)
        below = v @ sums
        gradient += _divide(u[:, None] - _divide(u @ sums, below) * v[:, None], np.broadcast_to(below, sums.shape))
    return np.asarray(gradient / len(parts))


def rates(y_true: npt.ArrayLike, y_score: npt.ArrayLike, decision: npt.ArrayLike) -> dict[str, float]:
    """All rates of one set of rows; NaN where a denominator is empty.

    Their definitions are those of `RATES`. More than two groups: a gap is the largest minus the smallest group's value, its
    ratio the smallest by the largest; fairlearn's ``MetricFrame.difference()`` and ``.ratio()`` (between_groups) are the
    same, its ``equalized_odds_difference`` is our ``equalized_odds`` (the larger of the two gaps) and with
    ``agg="mean"`` our ``equalized_odds_mean``. Other libraries: scikit-learn and torchmetrics give 0 (with or without a
    warning) where a denominator is empty, and so a group without positive cases looks like one where all are missed;
    scikit-learn's log_loss cuts scores at the machine's precision, ours at 1e-15.

    Args:
        y_true: (n,) in {0, 1}.
        y_score: (n,) probabilities in [0, 1].
        decision: (n,) in {0, 1}.

    Example:
        >>> found = rates([1, 1, 0, 0], [0.9, 0.2, 0.6, 0.1], [1, 0, 1, 0])
        >>> found["tpr"], found["fpr"], found["positive_rate"]
        (0.5, 0.5, 0.5)
    """
    sums = row_sums(np.asarray(y_true), np.asarray(y_score, float), np.asarray(decision)).sum(axis=0)[:, None]
    return {name: float(rate(name, sums)[0]) for name in RATES}


def wilson(share: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share among n independent units.

    Used where every bootstrap replicate is the same (a rate of exactly 0 or 1), which would give an interval of width 0.

    Example:
        >>> low, high = wilson(1.0, 20)
        >>> round(low, 3), high
        (0.839, 1.0)
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * float(np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)))
    return (0.0 if share == 0 else centre - half, 1.0 if share == 1 else centre + half)
