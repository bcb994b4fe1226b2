"""One cell of an audit: the rows of one label and one group, compiled so that any weighting of patients is cheap."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.metrics.auc import RankedRows, auc_with_variance, rank_rows, weighted_auc
from evenhand.metrics.average_precision import auc_and_average_precision, average_precision_with_variance
from evenhand.metrics.calibration import BinnedRows, bin_rows, binned_error, corrected_error, error_with_variance
from evenhand.metrics.net_benefit import threshold_odds, why_no_net_benefit
from evenhand.metrics.rates import RATES, SUMS, rate, rate_gradient, ratios, row_sums
from evenhand.metrics.recalibration import Recalibration, recalibrate

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

METRICS = (
    "auc",
    "average_precision",
    "accuracy",
    "balanced_accuracy",
    "f1",
    "tpr",
    "fpr",
    "tnr",
    "fnr",
    "ppv",
    "npv",
    "positive_rate",
    "prevalence",
    "brier",
    "ece",
    "ece_corrected",
    "calibration_slope",
    "calibration_intercept",
    "log_loss",
    "net_benefit",
)
"""Every metric a cell can be asked for, in the order of the published list."""

CALIBRATION = ("calibration_slope", "calibration_intercept")
BY_CLASS = frozenset({"auc", "average_precision", "balanced_accuracy", *CALIBRATION})
"""Metrics that need patients of both classes: their denominator counts the patients of the smaller one."""

LINEAR = (*RATES, "net_benefit")
"""Metrics that are ratios of sums over rows."""

_DENOMINATORS = tuple(sorted({bottom for parts in RATES.values() for _, bottom in parts}))
_PRODUCTS = [(i, j) for i in range(len(SUMS)) for j in range(i, len(SUMS))]


def _support(metric: str) -> set[int]:
    """Which of the six sums a rate depends on."""
    return {j for top, bottom in ratios(metric, 1.0) for j in range(len(SUMS)) if top[j] or bottom[j]}


@dataclass(frozen=True)
class Cell:
    """Rows compiled by unit (a patient).

    Attributes:
        units: int64 (u,), the global unit codes that occur, ascending.
        sums: float64 (u, 6), per unit the sums of `evenhand.metrics.rates.SUMS`.
        y_true: (n,) in {0, 1}.
        y_score: (n,) in [0, 1].
        local: int64 (n,), position of each row's unit in ``units``.
        threshold: from which decisions were made, for net benefit; None where they were given.
        ece_bins: equal-width bins of the calibration error.
    """

    units: IntArray
    sums: FloatArray
    y_true: npt.NDArray[Any]
    y_score: npt.NDArray[Any]
    local: IntArray
    threshold: float | None = None
    ece_bins: int = 10

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.y_true)

    @cached_property
    def n_positive(self) -> int:
        """Positive rows."""
        return int(np.count_nonzero(self.y_true == 1))

    @cached_property
    def ranked(self) -> RankedRows:
        """The rows by level of score, for the AUC."""
        return rank_rows(self.y_true, self.y_score, self.local)

    @cached_property
    def ranked_fine(self) -> RankedRows:
        """The rows by distinct score, for average precision."""
        return rank_rows(self.y_true, self.y_score, self.local, fine=True)

    @cached_property
    def binned(self) -> BinnedRows:
        """The rows by bin of score."""
        return bin_rows(self.y_true, self.y_score, self.local, self.ece_bins)

    @cached_property
    def recalibration(self) -> Recalibration:
        """Calibration slope and intercept."""
        return recalibrate(self.y_true, self.y_score, self.local)

    @property
    def n_units(self) -> int:
        """Units (patients) with at least one row here."""
        return len(self.units)

    def values(self, metrics: tuple[str, ...], weights: FloatArray | None = None) -> dict[str, FloatArray]:
        """Each metric under each column of unit weights.

        Args:
            metrics: names out of `METRICS`.
            weights: (all units, b); default: one column of ones.

        Returns:
            Metric -> (b,), NaN where it is not defined.
        """
        own = np.ones((self.n_units, 1)) if weights is None else weights[self.units]
        sums, odds = self.sums.T @ own, threshold_odds(self.threshold)
        found = {name: rate(name, sums, odds) for name in metrics if name in LINEAR}
        if "average_precision" in metrics:
            found["auc"], found["average_precision"] = auc_and_average_precision(self.ranked_fine, own)
        elif "auc" in metrics:
            found["auc"] = weighted_auc(self.ranked, own)
        if "ece" in metrics or "ece_corrected" in metrics:
            binned = self.binned.sums(own, second="ece_corrected" in metrics)
            found["ece"] = binned_error(binned)
            if "ece_corrected" in metrics:
                found["ece_corrected"] = corrected_error(binned)
        if set(CALIBRATION) & set(metrics):
            found.update(zip(CALIBRATION, self.recalibration.replicates(own), strict=True))
        return {name: found[name] for name in metrics}

    def why_undefined(self, metric: str) -> str:
        """Why a metric has no value on all rows, where the cell knows; else empty."""
        if metric == "net_benefit":
            return why_no_net_benefit(self.threshold)
        return self.recalibration.reasons.get(metric.removeprefix("calibration_"), "") if metric in CALIBRATION else ""

    def denominator(self, metric: str) -> tuple[int, int]:
        """(rows, units) in the metric's denominator; for metrics of both classes the units of the smaller class."""
        if metric in BY_CLASS:
            return self.n, min(self._units_in(bottom)[1] for _, bottom in RATES["balanced_accuracy"])
        found = [self._units_in(bottom) for _, bottom in ratios(metric if metric in LINEAR else "accuracy")]
        return sum(rows for rows, _ in found), min(units for _, units in found)

    def _units_in(self, bottom: tuple[int, ...]) -> tuple[int, int]:
        inside = self.sums[:, np.asarray(bottom) > 0]
        return int(inside.sum()), int(np.count_nonzero(inside.sum(axis=1)))

    def moments(self, metrics: tuple[str, ...], member: FloatArray | None = None) -> dict[str, tuple[FloatArray, FloatArray]]:
        """Each metric's value and clustered variance in each column of unit memberships.

        The variance of a ratio is the linearised one, ``g' (sum_u x_u x_u') g`` times u/(u-1) with u the units in the
        denominator, at least ``1 / (2 u)**2`` where the metric is a share, so that a rate of exactly 0 or 1 has one too.

        Args:
            metrics: names out of `METRICS`.
            member: (u, b) in {0, 1} over this cell's units; default: all of them.

        Returns:
            Metric -> ((b,), (b,)).
        """
        members = np.ones((self.n_units, 1)) if member is None else member
        rates = tuple(name for name in metrics if name in LINEAR)
        found = self.rate_moments(rates, self._totals(rates, members)) if rates else {}
        if "auc" in metrics:
            found["auc"] = auc_with_variance(self.ranked, members)
        if "average_precision" in metrics:
            found["average_precision"] = average_precision_with_variance(self.ranked_fine, members)
        binned = self.binned.sums(members, second=True) if {"ece", "ece_corrected"} & set(metrics) else None
        for name in ("ece", "ece_corrected"):
            if name in metrics:
                found[name] = error_with_variance(self.binned, members, corrected=name == "ece_corrected", sums=binned)
        if set(CALIBRATION) & set(metrics):
            found.update(self._recalibration_moments(None if member is None else members))
        return {name: found[name] for name in metrics}

    def _recalibration_moments(self, member: FloatArray | None) -> dict[str, tuple[FloatArray, FloatArray]]:
        """Slope and intercept, fitted anew for each column of memberships."""
        if member is None:
            fits = [self.recalibration]
        else:
            inside = (member[self.local] > 0).T
            fits = [recalibrate(self.y_true[use], self.y_score[use], self.local[use]) for use in inside]
        slopes = np.array([(fit.slope, fit.slope_variance) for fit in fits])
        intercepts = np.array([(fit.intercept, fit.intercept_variance) for fit in fits])
        return {name: (pairs[:, 0], pairs[:, 1]) for name, pairs in zip(CALIBRATION, (slopes, intercepts), strict=True)}

    def _totals(self, rates: tuple[str, ...], member: FloatArray) -> FloatArray:
        rows, total = self.additive_rows(rates), np.zeros((len(self.additive), member.shape[1]))
        total[rows] = self.additive[rows] @ member
        return total

    def rate_moments(self, metrics: tuple[str, ...], total: FloatArray) -> dict[str, tuple[FloatArray, FloatArray]]:
        """Value and variance of metrics of `LINEAR` from totals of `additive` over units: (k, b); rows not in `additive_rows` may be 0."""
        sums, second = total[: len(SUMS)], total[len(SUMS) : len(SUMS) + len(_PRODUCTS)]
        counts = dict(zip(_DENOMINATORS, total[len(SUMS) + len(_PRODUCTS) :], strict=True))
        found, odds = {}, threshold_odds(self.threshold)
        for name in metrics:
            gradient = rate_gradient(name, sums, odds)
            variance = np.zeros(sums.shape[1])
            inside = _support(name)
            for (i, j), product in zip(_PRODUCTS, second, strict=True):
                if i not in inside or j not in inside:
                    continue
                variance += (1 if i == j else 2) * gradient[i] * gradient[j] * product
            units = np.min([counts[bottom] for _, bottom in ratios(name)], axis=0)
            variance = np.maximum(variance * units / np.maximum(units - 1, 1), variance_floor(name, units))
            found[name] = (rate(name, sums, odds), np.where(units >= 2, variance, np.nan))
        return found

    def additive_rows(self, metrics: tuple[str, ...]) -> IntArray:
        """Which rows of `additive` the metrics of `LINEAR` among these are made of."""
        supports = [_support(name) for name in metrics if name in LINEAR]
        bottoms = {bottom for name in metrics if name in LINEAR for _, bottom in ratios(name)}
        inside = [any(i in support for support in supports) for i in range(len(SUMS))]
        inside += [any(i in support and j in support for support in supports) for i, j in _PRODUCTS]
        return np.flatnonzero([*inside, *(bottom in bottoms for bottom in _DENOMINATORS)])

    @cached_property
    def additive(self) -> FloatArray:
        """What each unit adds to the sums, to the sums of their products, and to the units of each denominator: (k, u)."""
        products = [self.sums[:, i] * self.sums[:, j] for i, j in _PRODUCTS]
        present = [self.sums[:, np.asarray(bottom) > 0].any(axis=1) for bottom in _DENOMINATORS]
        return np.stack([*self.sums.T, *products, *present]).astype(float)

    def label_patterns(self) -> IntArray:
        """Of each unit: 1 only negative rows, 2 only positive rows, 3 both."""
        positive, negative = self.sums[:, :2].any(axis=1), self.sums[:, 2:4].any(axis=1)
        return np.asarray(negative + 2 * positive, dtype=np.int64)


def make_cell(
    y_true: npt.NDArray[Any],
    y_score: npt.NDArray[Any],
    decision: npt.NDArray[Any],
    unit: IntArray,
    *,
    threshold: float | None = None,
    ece_bins: int = 10,
) -> Cell:
    """Compile rows.

    Args:
        y_true: (n,) in {0, 1}.
        y_score: (n,) in [0, 1].
        decision: (n,) in {0, 1}.
        unit: (n,) global code of each row's unit.
        threshold: from which decisions were made, for net benefit.
        ece_bins: equal-width bins of the calibration error.
    """
    units, local = np.unique(unit, return_inverse=True)
    rows = row_sums(y_true, y_score, decision)
    columns = [np.bincount(local, column, minlength=len(units)).astype(np.float64) for column in rows.T]
    return Cell(units, np.stack(columns, axis=1), y_true, y_score, local, threshold, ece_bins)


def variance_floor(metric: str, units: Any) -> Any:
    """The least variance of a metric over ``units`` patients: 1 / (2 u)^2 for a share, 1 / (4 u^3) for AUC, 0 for losses
    and for calibration."""
    if metric in ("brier", "log_loss", "ece", "ece_corrected", *CALIBRATION):
        return 0.0
    return 0.25 / np.maximum(units, 1).astype(float) ** (3 if metric == "auc" else 2)
