"""One cell of an audit: the rows of one label and one group, compiled so that any weighting of patients is cheap."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.metrics.auc import RankedRows, auc_with_variance, rank_rows, weighted_auc
from evenhand.metrics.rates import NEITHER_IS_BETTER, RATES, SUMS, rate, rate_gradient, row_sums

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

METRICS = ("auc", *RATES)
"""Every metric a cell can be asked for."""

_DENOMINATORS = tuple(sorted({bottom for parts in RATES.values() for _, bottom in parts}))
_PRODUCTS = [(i, j) for i in range(len(SUMS)) for j in range(i, len(SUMS))]


def _support(metric: str) -> set[int]:
    """Which of the six sums a rate depends on."""
    return {j for top, bottom in RATES[metric] for j in range(len(SUMS)) if top[j] or bottom[j]}


@dataclass(frozen=True)
class Cell:
    """Rows compiled by unit (a patient).

    Attributes:
        units: int64 (u,), the global unit codes that occur, ascending.
        sums: float64 (u, 6), per unit the sums of `evenhand.metrics.rates.SUMS`.
        ranked: the rows sorted by score, units as positions in ``units``.
        n: rows.
        n_positive: positive rows.
    """

    units: IntArray
    sums: FloatArray
    ranked: RankedRows
    n: int
    n_positive: int

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
        sums = self.sums.T @ own
        return {name: weighted_auc(self.ranked, own) if name == "auc" else rate(name, sums) for name in metrics}

    def denominator(self, metric: str) -> tuple[int, int]:
        """(rows, units) in the metric's denominator; for AUC and balanced accuracy the units of the smaller class."""
        if metric == "auc":
            return self.n, min(self._units_in(bottom)[1] for _, bottom in RATES["balanced_accuracy"])
        found = [self._units_in(bottom) for _, bottom in RATES[metric]]
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
        found: dict[str, tuple[FloatArray, FloatArray]] = {}
        if set(metrics) - {"auc"}:
            found = self._rate_moments(metrics, members)
        if "auc" in metrics:
            found["auc"] = auc_with_variance(self.ranked, members)
        return found

    def _rate_moments(self, metrics: tuple[str, ...], member: FloatArray) -> dict[str, tuple[FloatArray, FloatArray]]:
        total = self._additive @ member
        sums, second = total[: len(SUMS)], total[len(SUMS) : len(SUMS) + len(_PRODUCTS)]
        counts = dict(zip(_DENOMINATORS, total[len(SUMS) + len(_PRODUCTS) :], strict=True))
        found = {}
        for name in metrics:
            if name == "auc":
                continue
            gradient = rate_gradient(name, sums)
            variance = np.zeros(sums.shape[1])
            inside = _support(name)
            for (i, j), product in zip(_PRODUCTS, second, strict=True):
                if i not in inside or j not in inside:
                    continue
                variance += (1 if i == j else 2) * gradient[i] * gradient[j] * product
            units = np.min([counts[bottom] for _, bottom in RATES[name]], axis=0)
            variance = np.maximum(variance * units / np.maximum(units - 1, 1), variance_floor(name, units))
            found[name] = (rate(name, sums), np.where(units >= 2, variance, np.nan))
        return found

    @cached_property
    def _additive(self) -> FloatArray:
        """What each unit adds to the sums, to the sums of their products, and to the units of each denominator: (k, u)."""
        products = [self.sums[:, i] * self.sums[:, j] for i, j in _PRODUCTS]
        present = [self.sums[:, np.asarray(bottom) > 0].any(axis=1) for bottom in _DENOMINATORS]
        return np.stack([*self.sums.T, *products, *present]).astype(float)

    def label_patterns(self) -> IntArray:
        """Of each unit: 1 only negative rows, 2 only positive rows, 3 both."""
        positive, negative = self.sums[:, :2].any(axis=1), self.sums[:, 2:4].any(axis=1)
        return np.asarray(negative + 2 * positive, dtype=np.int64)


def make_cell(y_true: npt.NDArray[Any], y_score: npt.NDArray[Any], decision: npt.NDArray[Any], unit: IntArray) -> Cell:
    """Compile rows.

    Args:
        y_true: (n,) in {0, 1}.
        y_score: (n,) in [0, 1].
        decision: (n,) in {0, 1}.
        unit: (n,) global code of each row's unit.
    """
    units, local = np.unique(unit, return_inverse=True)
    rows = row_sums(y_true, y_score, decision)
    columns = [np.bincount(local, column, minlength=len(units)).astype(np.float64) for column in rows.T]
    return Cell(units, np.stack(columns, axis=1), rank_rows(y_true, y_score, local), len(y_true), int(np.count_nonzero(y_true == 1)))


def variance_floor(metric: str, units: Any) -> Any:
    """The least variance of a metric over ``units`` patients: 1 / (2 u)^2 for a share, 1 / (4 u^3) for AUC, 0 for losses."""
    if metric in ("brier", "log_loss"):
        return 0.0
    return 0.25 / np.maximum(units, 1).astype(float) ** (3 if metric == "auc" else 2)


def has_worst(metric: str) -> bool:
    """Whether one end of the metric is the worse one (it is not for positive rate and prevalence)."""
    return metric not in NEITHER_IS_BETTER
