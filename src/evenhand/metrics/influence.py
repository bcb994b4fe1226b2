r"""Influence of each patient on a metric, so that differences of overlapping groups get a variance without a bootstrap.

To first order a metric is its value plus a sum over patients, :math:`\hat v - v \approx \sum_u h_u`; the clustered variance is
:math:`\sum_u h_u^2`, and the variance of a difference of two metrics (of a group and of everybody else, of a group and of
the same group without some rows) is that of the difference of their influences, whoever is in both.

References:
    Obuchowski, Biometrics 53 (1997) 567 (AUC); Huber, Robust Statistics (1981), ch. 1 (influence).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.metrics.cells import variance_floor
from evenhand.metrics.rates import RATES, rate, rate_gradient, row_sums

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

INFLUENCES = ("auc", *RATES)
"""Metrics whose influences are known here."""


@dataclass(frozen=True)
class Influence:
    """A metric on some rows.

    Attributes:
        value: NaN where it is not defined.
        units: patients in its denominator; those of the smaller class where it needs both.
        floor: the least variance it is given.
        by_unit: (all units,) h of each patient, with the factor of u / (u - 1) units.
    """

    value: float
    units: int
    floor: float
    by_unit: FloatArray

    @property
    def variance(self) -> float:
        """The clustered variance, at least the floor."""
        return max(float(self.by_unit @ self.by_unit), self.floor)


@dataclass(frozen=True)
class Rows:
    """Labelled rows of one question, ranked once.

    Attributes:
        y_true: (n,) in {0, 1}.
        y_score: (n,).
        decision: (n,) in {0, 1}.
        unit: (n,) patient codes.
    """

    y_true: npt.NDArray[Any]
    y_score: FloatArray
    decision: npt.NDArray[Any]
    unit: IntArray

    @cached_property
    def level(self) -> IntArray:
        """Rank of each row's score; equal scores have equal ranks."""
        return np.unique(self.y_score, return_inverse=True)[1].astype(np.int64)

    @cached_property
    def sums(self) -> FloatArray:
        """(n, s) what each row adds to `evenhand.metrics.rates.SUMS`."""
        return row_sums(self.y_true, self.y_score, self.decision)

    @cached_property
    def n_units(self) -> int:
        """Length of the influences."""
        return int(self.unit.max(initial=-1)) + 1


def influences(rows: Rows, use: BoolArray, metrics: tuple[str, ...]) -> dict[str, Influence]:
    """Value and patients' influences of each metric on the rows of ``use``.

    Args:
        rows: the rows.
        use: (n,) which of them count.
        metrics: names out of `INFLUENCES`.

    Example:
        >>> rows = Rows(np.array([1, 1, 1, 1]), np.full(4, 0.9), np.array([1, 1, 1, 0]), np.arange(4))
        >>> found = influences(rows, np.ones(4, bool), ("tpr",))["tpr"]
        >>> found.value, found.units, found.by_unit.round(3)
        (0.75, 4, array([ 0.072,  0.072,  0.072, -0.217]))
    """
    at = np.flatnonzero(use)
    unit = rows.unit[at]
    found = {}
    if set(metrics) - {"auc"}:
        sums = rows.sums[at]
        by_unit = np.stack([np.bincount(unit, column, minlength=rows.n_units).astype(np.float64) for column in sums.T])
        found = {name: _rate(name, by_unit) for name in metrics if name != "auc"}
    if "auc" in metrics:
        found["auc"] = _auc(rows, at)
    return found


def _rate(name: str, by_unit: FloatArray) -> Influence:
    total = by_unit.sum(axis=1, keepdims=True)
    value = float(rate(name, total)[0])
    bottoms = [np.asarray(bottom, float) @ by_unit > 0 for _, bottom in RATES[name]]
    units = min(int(np.count_nonzero(bottom)) for bottom in bottoms)
    if not np.isfinite(value):
        return Influence(value, units, 0.0, np.zeros(by_unit.shape[1]))
    by = rate_gradient(name, total)[:, 0] @ by_unit
    return Influence(value, units, float(variance_floor(name, units)), by * _factor(units))


def _auc(rows: Rows, at: IntArray) -> Influence:
    positive = rows.y_true[at] == 1
    level, unit, size = rows.level[at], rows.unit[at], int(rows.level.max(initial=-1)) + 1
    n1, n0 = int(positive.sum()), int((~positive).sum())
    units1, units0 = (np.bincount(unit[kind], minlength=rows.n_units) > 0 for kind in (positive, ~positive))
    units = int(min(units1.sum(), units0.sum()))
    if not n1 or not n0:
        return Influence(float("nan"), units, 0.0, np.zeros(rows.n_units))
    low, high = (np.bincount(level[kind], minlength=size).astype(float) for kind in (~positive, positive))
    placed1, placed0 = (np.cumsum(low) - 0.5 * low) / n0, 1 - (np.cumsum(high) - 0.5 * high) / n1
    value = float(high @ placed1) / n1
    own1 = np.bincount(unit[positive], placed1[level[positive]] - value, minlength=rows.n_units) / n1
    own0 = np.bincount(unit[~positive], placed0[level[~positive]] - value, minlength=rows.n_units) / n0
    by_unit = own1 * _factor(int(units1.sum())) + own0 * _factor(int(units0.sum()))
    return Influence(value, units, float(variance_floor("auc", units)), by_unit)


def _factor(units: int) -> float:
    return float(np.sqrt(units / (units - 1))) if units > 1 else 1.0


def difference_variance(one: Influence, other: Influence) -> tuple[float, float]:
    """(variance of one.value - other.value, Welch-Satterthwaite degrees of freedom).

    What the floors add to either variance is added to that of the difference.
    """
    apart = one.by_unit - other.by_unit
    extra = sum(item.variance - float(item.by_unit @ item.by_unit) for item in (one, other))
    parts = [(item.variance, max(item.units - 1, 1)) for item in (one, other)]
    spread = sum(variance**2 / free for variance, free in parts)
    free = sum(variance for variance, _ in parts) ** 2 / spread if spread > 0 else float(parts[0][1])
    return float(apart @ apart) + extra, free


def t_test(effect: float, variance: float, free: float, confidence: float) -> tuple[float, float, float]:
    """(lower, upper, two-sided p) of an effect with Student's t.

    Example:
        >>> lower, upper, p = t_test(0.2, 0.01, 1e9, 0.95)
        >>> round(lower, 3), round(upper, 3), round(p, 4)
        (0.004, 0.396, 0.0455)
    """
    from scipy.special import stdtr, stdtrit

    spread = float(np.sqrt(variance))
    if not spread > 0:
        return effect, effect, 1.0 if effect == 0 else 0.0
    width = float(stdtrit(free, 0.5 + confidence / 2)) * spread
    return effect - width, effect + width, float(2 * stdtr(free, -abs(effect) / spread))
