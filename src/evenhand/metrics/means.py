r"""Means and medians of continuous per-case values, with patients as clusters.

A value is any number a case has: a Dice score, an error, a length of stay. Rows are what is averaged; patients are what is
independent. With s_u the sum and n_u the number of patient u's rows, the mean is m = sum_u s_u / sum_u n_u and its clustered
linearised variance is u/(u-1) sum_u (s_u - m n_u)^2 / (sum_u n_u)^2: statsmodels' OLS on a constant with ``cov_type="cluster"``.
The median's variance is McKean and Schrader's: the width of the interval of order statistics that the clustered variance of
P(X < median) asks for, in units of the normal quantile.

References:
    McKean & Schrader (1984), A comparison of methods for studentizing the sample median.
    Hall (1988), Theoretical comparison of bootstrap confidence intervals (the studentised bootstrap).
    Hesterberg (2015), What teachers should know about the bootstrap (the expanded percentile interval).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from evenhand.metrics.permutation import largest_difference, permute_groups

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

VALUE_METRICS = ("mean", "median")
"""What is estimated of a value, with intervals and gaps."""

QUANTILES = (0.05, 0.25, 0.75, 0.95)
"""Quantiles that describe a group's distribution beside its median."""

_Z = NormalDist().inv_cdf(0.975)
_BLOCK_ENTRIES = 2_000_000


@dataclass(frozen=True)
class ValueCell:
    """One group's values compiled by unit (a patient), so that any weighting of patients is cheap.

    Attributes:
        units: int64 (u,), the global unit codes that occur, ascending.
        sums: float64 (5, u): rows n_u, centred sum s_u, s_u^2, s_u n_u, n_u^2.
        ordered: float64 (n,), the values, ascending.
        owner: int64 (n,), the position in ``units`` of each ordered value's unit.
        centre: what was taken off the values before they were summed.
        scale: standard deviation of everybody's values. No variance is below ``(scale / 2u)**2``, half a patient's ordinary
            deviation, so that a group of equal values is not certain; 0: no such floor.
    """

    units: IntArray
    sums: FloatArray
    ordered: FloatArray
    owner: IntArray
    centre: float
    scale: float = 0.0

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.ordered)

    @property
    def n_units(self) -> int:
        """Units (patients) with at least one row."""
        return len(self.units)

    def values(self) -> dict[str, float]:
        """Mean and median, NaN without rows."""
        if not self.n:
            return dict.fromkeys(VALUE_METRICS, float("nan"))
        mean = self.centre + float(self.sums[1].sum() / self.sums[0].sum())
        return {"mean": min(max(mean, float(self.ordered[0])), float(self.ordered[-1])), "median": float(np.median(self.ordered))}

    def describe(self) -> tuple[float | None, dict[str, float] | None]:
        """(standard deviation of rows with n - 1, quantiles as ``{"0.05": …}``, linear between rows); None where not defined."""
        if not self.n:
            return None, None
        found = np.quantile(self.ordered, QUANTILES)
        spread = float((self.ordered - self.centre).std(ddof=1)) if self.n > 1 else None
        return spread, {f"{q:g}": float(value) for q, value in zip(QUANTILES, found, strict=True)}

    def weighted(self, weights: FloatArray) -> dict[str, FloatArray]:
        """Mean, median and the mean's studentised error under each column of unit weights.

        Args:
            weights: (all units, b), how often each unit is drawn.

        Returns:
            ``mean``, ``median`` and ``t`` = (mean under the weights - mean) / its standard error: (b,) each, NaN where
            nothing is drawn or nothing varies.
        """
        own = weights[self.units]
        mean, variance = self._mean_moments(own)
        here = float(self.sums[1].sum() / max(self.sums[0].sum(), 1))
        with np.errstate(invalid="ignore", divide="ignore"):
            t = np.where(variance > 0, (mean - here) / np.sqrt(variance), np.nan)
        median = np.array([self._median(column) for column in np.ascontiguousarray(own.T)])
        return {"mean": mean + self.centre, "median": median, "t": t}

    def moments(self, metrics: Sequence[str], member: FloatArray | None = None) -> dict[str, tuple[FloatArray, FloatArray]]:
        """Value and clustered variance in each column of unit memberships; the variance is NaN below two units.

        Args:
            metrics: names out of `VALUE_METRICS`.
            member: (u, b) in {0, 1} over this cell's units; default: all of them.
        """
        members = np.ones((self.n_units, 1)) if member is None else member
        found: dict[str, tuple[FloatArray, FloatArray]] = {}
        if "mean" in metrics:
            mean, variance = self._mean_moments(members)
            found["mean"] = (mean + self.centre, np.maximum(variance, self.floor(members.sum(axis=0))))
        if "median" in metrics:
            columns = np.ascontiguousarray(members.T) > 0
            pairs = [self._median_moments(np.flatnonzero(own[self.owner]), int(np.count_nonzero(own))) for own in columns]
            found["median"] = (np.array([value for value, _ in pairs]), np.array([variance for _, variance in pairs]))
        return found

    def median_moments(self, shuffled: npt.NDArray[np.int32], groups: IntArray) -> tuple[FloatArray, FloatArray]:
        """Each group's median and its variance under each column of group codes (u, b): (groups, b) each."""
        value = np.full((len(groups), shuffled.shape[1]), np.nan)  # NaN: a group without rows
        variance = value.copy()
        for column, codes in enumerate(np.ascontiguousarray(shuffled.T)):
            of_rows = codes.astype(np.int16)[self.owner]
            by_group = np.argsort(of_rows, kind="stable")  # of 16 bits: in linear time
            units, rows = (np.bincount(own, minlength=int(groups.max()) + 1) for own in (codes, of_rows))
            ends = np.cumsum(rows)
            for position, group in enumerate(groups):
                moments = self._median_moments(by_group[ends[group] - rows[group] : ends[group]], int(units[group]))
                value[position, column], variance[position, column] = moments
        return value, variance

    def floor(self, units: npt.ArrayLike) -> FloatArray:
        """The least variance over so many units."""
        return np.asarray((self.scale / (2 * np.maximum(units, 1))) ** 2)

    def _mean_moments(self, own: FloatArray) -> tuple[FloatArray, FloatArray]:
        n, s, ss, sn, nn = self.sums @ own
        units = own.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = s / n
            squares = np.maximum(ss - 2 * mean * sn + mean**2 * nn, 0.0)
            # what is left of equal values after subtraction is rounding, not spread
            squares[squares <= 1e-13 * ss] = 0.0
            return mean, np.where(units >= 2, squares / n**2 * units / (units - 1), np.nan)

    def _median(self, own: FloatArray) -> float:
        """The median under weights: the mean of the two middle values where the half falls between them."""
        total = np.cumsum(own[self.owner])
        if not len(total) or total[-1] <= 0:
            return float("nan")
        low, high = np.searchsorted(total, total[-1] / 2, "left"), np.searchsorted(total, total[-1] / 2, "right")
        return float(0.5 * (self.ordered[int(low)] + self.ordered[min(int(high), self.n - 1)]))

    def _median_moments(self, rows: IntArray, units: int) -> tuple[float, float]:
        """Median and variance of some of the ordered rows, which ``units`` whole units make up."""
        n = len(rows)
        if not n:
            return float("nan"), float("nan")
        median = float(0.5 * (self.ordered[rows[(n - 1) // 2]] + self.ordered[rows[n // 2]]))
        if units < 2:
            return median, float("nan")
        half = _Z * n * float(np.sqrt(self._share_variance(rows, median, units)))
        low, high = self._at(rows, 0.5 * n - half), self._at(rows, 0.5 * n + half)
        return median, max(((high - low) / (2 * _Z)) ** 2, float(self.floor(units)))

    def _share_variance(self, rows: IntArray, median: float, units: int) -> float:
        """Clustered variance of P(X < median) + P(X = median) / 2."""
        n = len(rows)
        if self.n == self.n_units:
            return 0.25 / (n - 1)
        first, last = np.searchsorted(rows, np.searchsorted(self.ordered, (median, np.nextafter(median, np.inf))))
        side = np.full(n, -0.5)
        side[:first], side[first:last] = 0.5, 0.0
        errors = np.bincount(self.owner[rows], side)
        return float(errors @ errors) / n**2 * units / (units - 1)

    def _at(self, rows: IntArray, place: float) -> float:
        """The value at a place in [0, n] among rows, linear between their middles."""
        position = min(max(place - 0.5, 0.0), len(rows) - 1.0)
        low = int(position)
        high = min(low + 1, len(rows) - 1)
        share = position - low
        return float((1 - share) * self.ordered[rows[low]] + share * self.ordered[rows[high]])


def make_value_cell(values: FloatArray, unit: IntArray, scale: float = 0.0) -> ValueCell:
    """Compile rows.

    Args:
        values: (n,) finite numbers.
        unit: (n,) global code of each row's unit.
        scale: standard deviation of everybody's values, for the least variance; see `ValueCell`.

    Example:
        >>> cell = make_value_cell(np.array([1.0, 2.0, 6.0]), np.array([0, 0, 1]))
        >>> cell.values()
        {'mean': 3.0, 'median': 2.0}
    """
    units, local = np.unique(unit, return_inverse=True)
    middle = float(values.mean()) if len(values) else 0.0
    n = np.bincount(local, minlength=len(units)).astype(np.float64)
    s = np.bincount(local, values - middle, minlength=len(units)).astype(np.float64)
    order = np.argsort(values, kind="stable")
    sums = np.stack([n, s, s**2, s * n, n**2])
    return ValueCell(units.astype(np.int64), sums, values[order].astype(np.float64), local[order].astype(np.int64), middle, scale)


def student(level: float, units: int) -> float:
    """Student's quantile with units - 1 degrees of freedom.

    Example:
        >>> round(student(0.975, 10), 3)
        2.262
    """
    from scipy.special import stdtrit

    return float(stdtrit(max(units - 1, 1), level))


def mean_limits(value: float, variance: float, units: int, t: FloatArray, confidence: float) -> tuple[float | None, float | None]:
    """Limits of a mean by the studentised bootstrap; Student's t where there are no replicates.

    Measured at 10 to 50 patients (``benchmarks/values.py``): for skewed values (a Dice with failures at 0, a lognormal stay)
    the studentised bootstrap covers about 90%, Student's t and BCa about 87%, the percentile interval about 85%; for normal
    values the first two cover 95%, the others about 92%.

    Args:
        value: the mean.
        variance: its clustered variance.
        units: patients.
        t: studentised errors of the bootstrap replicates (`ValueCell.weighted`); those that are not finite are left out.
        confidence: level.

    Example:
        >>> [round(limit, 4) for limit in mean_limits(0.8, 0.0004, 20, np.zeros(0), 0.95)]
        [0.7581, 0.8419]
    """
    if not np.isfinite(variance):
        return None, None
    error, finite = float(np.sqrt(variance)), t[np.isfinite(t)]
    if len(finite) < 20:
        width = student(0.5 + confidence / 2, units) * error
        return value - width, value + width
    low, high = np.quantile(finite, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return value - max(float(high), 0.0) * error, value - min(float(low), 0.0) * error


def median_limits(
    value: float, variance: float, units: int, replicates: FloatArray, confidence: float
) -> tuple[float | None, float | None]:
    """Limits of a median: percentiles of the bootstrap, widened as Student's t is wider than the normal; t without replicates.

    Measured at 10 to 50 patients (``benchmarks/values.py``): covers 92% to 98%; not widened, 88% to 96%.

    Args:
        value: the median.
        variance: its clustered variance (used without replicates only).
        units: patients.
        replicates: bootstrap medians.
        confidence: level.

    Example:
        >>> [round(limit, 2) for limit in median_limits(2.0, 0.1, 400, np.arange(101) / 25, 0.9)]
        [0.2, 3.8]
    """
    finite = replicates[np.isfinite(replicates)]
    wide = student(0.5 + confidence / 2, units)
    if len(finite) < 20:
        width = wide * float(np.sqrt(variance))
        return (value - width, value + width) if np.isfinite(width) else (None, None)
    tail = NormalDist().cdf(-wide * float(np.sqrt(units / max(units - 1, 1))))
    low, high = np.quantile(finite, [tail, 1 - tail])
    return min(float(low), value), max(float(high), value)


def value_null(cell: ValueCell, codes: IntArray, groups: IntArray, n_permutations: int, rng: np.random.Generator) -> dict[str, FloatArray]:
    """The studentised maxima of mean and median under permuted groups of patients.

    Args:
        cell: all rows, units being (patient, group) pairs.
        codes: (u,) group of each unit.
        groups: codes of the groups that enter the gaps.
        n_permutations: how many.
        rng: source of randomness.

    Returns:
        Metric -> (n_permutations,).
    """
    size = int(np.clip(_BLOCK_ENTRIES // max(cell.n, 1), 8, 1000))
    parts: dict[str, list[FloatArray]] = {name: [] for name in VALUE_METRICS}
    for start in range(0, n_permutations, size):
        shuffled = permute_groups(codes, codes * 0, min(size, n_permutations - start), rng)
        moments = [cell.moments(("mean",), (shuffled == group).astype(float))["mean"] for group in groups]
        means, variances = np.array([value for value, _ in moments]), np.array([spread for _, spread in moments])
        parts["mean"].append(largest_difference(means, variances))
        parts["median"].append(largest_difference(*cell.median_moments(shuffled, groups)))
    return {name: np.concatenate(blocks) for name, blocks in parts.items()}
