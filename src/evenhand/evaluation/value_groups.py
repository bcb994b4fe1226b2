"""The numbers of one attribute's groups for continuous values: estimates with limits, and gaps with their test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.config.schema import AuditConfig
from evenhand.data.groups import Groups
from evenhand.metrics.bootstrap import bootstrap_blocks, processors
from evenhand.metrics.gaps import Gap, GroupValue, farthest, metric_gap
from evenhand.metrics.means import VALUE_METRICS, ValueCell, make_value_cell, mean_limits, median_limits, value_null
from evenhand.metrics.permutation import largest_difference
from evenhand.random import generator

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MeasuredValue:
    """One group's numbers of one value.

    Attributes:
        cell: its measured rows.
        n_missing: rows of the group where the value is not measured.
        values: mean and median, NaN without rows.
        variances: their clustered variances, NaN with fewer than two patients.
        replicates: ``mean``, ``median`` and the mean's studentised error ``t`` of each bootstrap replicate.
        reason: why nothing is estimable; empty where it is.
    """

    cell: ValueCell
    n_missing: int
    values: dict[str, float]
    variances: dict[str, float]
    replicates: dict[str, FloatArray]
    reason: str

    @property
    def n_failed(self) -> int:
        """Replicates without a mean, of a group that is estimable."""
        return 0 if self.reason else int((~np.isfinite(self.replicates["mean"])).sum())

    def limits(self, metric: str, confidence: float, interval: str) -> tuple[float | None, float | None]:
        """Limits of the mean or the median, never beyond the observed value's own side."""
        value, variance, replicates = self.values[metric], self.variances[metric], self.replicates[metric]
        if interval != "auto" and np.isfinite(replicates).sum() >= 20:
            return resampled_limits(value, replicates, _acceleration(self.cell, metric) if interval == "bca" else None, confidence)
        if metric == "mean":
            return mean_limits(value, variance, self.cell.n_units, self.replicates["t"], confidence)
        return median_limits(value, variance, self.cell.n_units, replicates, confidence)

    def row_json(self, config: AuditConfig) -> dict[str, Any]:
        """A group's row of audit.json."""
        spread, quantiles = self.cell.describe()
        row: dict[str, Any] = {"n": self.cell.n, "n_patients": self.cell.n_units, "n_missing_value": self.n_missing}
        for name in VALUE_METRICS:
            lower = upper = None
            if not self.reason:
                lower, upper = self.limits(name, config.confidence, config.interval)
            found = {"value": None if self.reason else self.values[name], "lower": lower, "upper": upper}
            row[name] = {**found, **({"reason": self.reason} if self.reason else {}), "n": self.cell.n}
        return {**row, "sd": spread, "quantiles": quantiles}


def measure_values(
    values: Mapping[str, FloatArray],
    patient: IntArray,
    codes: IntArray,
    name: str,
    *,
    config: AuditConfig,
    seed: int,
    threads: int | None,
) -> dict[str, dict[int, MeasuredValue]]:
    """Measure every group of one attribute for every value.

    Args:
        values: name -> (n,), NaN where not measured.
        patient: (n,) patient codes.
        codes: (n,) group of each row; -1 is a group of its own.
        name: names the random stream.
        config: replicates, and patients needed.
        seed: the audit's seed.
        threads: blocks of replicates at a time; does not change the result.

    Returns:
        Value -> group code -> its numbers.
    """
    keys = [int(code) for code in np.unique(codes)]
    cells = {value: {key: _cell(x, patient, codes == key, spread_of(x)) for key in keys} for value, x in values.items()}
    strata = np.full(patient.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(strata, patient, codes)

    def statistic(weights: FloatArray) -> dict[str, dict[int, dict[str, FloatArray]]]:
        return {value: {key: cell.weighted(weights) for key, cell in by_group.items()} for value, by_group in cells.items()}

    threads = threads or processors()
    blocks = list(bootstrap_blocks(statistic, strata, config.bootstrap, seed, "value", name, threads=threads)) if config.bootstrap else []
    return {
        value: {
            key: _measured(cell, int((codes == key).sum()), [block[value][key] for block in blocks], config.min_patients)
            for key, cell in by_group.items()
        }
        for value, by_group in cells.items()
    }


def spread_of(x: FloatArray) -> float:
    """Standard deviation of the measured rows, 0 where there are fewer than two; equal values have none."""
    measured = x[~np.isnan(x)]
    return float(measured.std(ddof=1)) if len(measured) > 1 and np.ptp(measured) > 0 else 0.0


def _cell(x: FloatArray, patient: IntArray, rows: npt.NDArray[np.bool_], scale: float) -> ValueCell:
    use = rows & ~np.isnan(x)
    return make_value_cell(x[use], patient[use], scale)


def _measured(cell: ValueCell, n_rows: int, blocks: Sequence[Mapping[str, FloatArray]], min_patients: int) -> MeasuredValue:
    few = f"{cell.n_units} patient{'s' * (cell.n_units != 1)} in the denominator, at least {min_patients} are needed"
    return MeasuredValue(
        cell=cell,
        n_missing=n_rows - cell.n,
        values=cell.values(),
        variances={name: float(variance[0]) for name, (_, variance) in cell.moments(VALUE_METRICS).items()},
        replicates={name: np.concatenate([b[name] for b in blocks]) if blocks else np.zeros(0) for name in ("mean", "median", "t")},
        reason=few if cell.n_units < min_patients else "",
    )


def resampled_limits(value: float, replicates: FloatArray, acceleration: float | None, confidence: float) -> tuple[float, float]:
    """Percentile limits, or BCa limits where an acceleration is given.

    Example:
        >>> resampled_limits(50.0, np.arange(101.0), None, 0.5)
        (25.0, 75.0)
    """
    finite, normal = replicates[np.isfinite(replicates)], NormalDist()
    tails = [0.5 - confidence / 2, 0.5 + confidence / 2]
    if acceleration is not None:
        below = (np.count_nonzero(finite < value) + 0.5 * np.count_nonzero(finite == value)) / len(finite)
        shift = normal.inv_cdf(min(max(below, 0.5 / len(finite)), 1 - 0.5 / len(finite)))
        moved = [shift + normal.inv_cdf(tail) for tail in tails]
        tails = [normal.cdf(shift + z / (1 - acceleration * z)) if acceleration * z < 1 else float(z > 0) for z in moved]
    low, high = np.quantile(finite, tails)
    return min(float(low), value), max(float(high), value)


def _acceleration(cell: ValueCell, metric: str) -> float:
    """BCa's acceleration: a sixth of the skewness of what each patient adds to the estimate."""
    n, s = cell.sums[0], cell.sums[1]
    if metric == "mean":
        errors = s - s.sum() / n.sum() * n
    else:
        side = np.sign(cell.ordered - cell.values()["median"])
        errors = np.bincount(cell.owner, side, minlength=cell.n_units)
    squares = float((errors**2).sum())
    return float((errors**3).sum()) / (6 * squares**1.5) if squares > 0 else 0.0


def value_gaps(
    name: str,
    x: FloatArray,
    patient: IntArray,
    groups: Groups,
    measured: Mapping[int, MeasuredValue],
    overall: MeasuredValue,
    config: AuditConfig,
    n_permutations: int,
    seed: int,
    lower_is_better: bool,
) -> dict[str, Gap]:
    """The gaps in mean and median of one value between the groups of one attribute.

    Args:
        name: the value's, for the random stream.
        x: (n,) the value, NaN where not measured.
        patient: (n,) patient codes.
        groups: of every row.
        measured: group code -> numbers; -1 enters no gap.
        overall: everybody's numbers, from which the distance of the furthest group is taken.
        config: confidence and kind of interval.
        n_permutations: permutations; 0: the null distribution is that of the bootstrap errors.
        seed: the audit's seed.
        lower_is_better: whether the group of the highest value is the worst.
    """
    known = {code: item for code, item in measured.items() if code >= 0}
    inside = [code for code, item in known.items() if not item.reason]
    excluded = [{"group": groups.keys[code], "reason": item.reason, "n": item.cell.n} for code, item in known.items() if item.reason]
    nulls = _nulls(name, x, patient, groups, known, inside, n_permutations, seed)
    gaps = {}
    for metric in VALUE_METRICS:
        members = [_member(groups.keys[code], known[code], metric, config, len(inside)) for code in inside]
        gap = metric_gap(metric, members, excluded, nulls.get(metric), config.confidence)
        # a ratio says something only of values on one side of 0
        positive = all(member.value > 0 for member in members)
        apart = farthest(members, None if overall.reason or len(members) < 2 else overall.values[metric])
        gaps[metric] = replace(gap, worst=worst_of(members, lower_is_better), ratio=gap.ratio if positive else None, to_overall=apart)
    return gaps


def _member(group: str, item: MeasuredValue, metric: str, config: AuditConfig, n_groups: int) -> GroupValue:
    """One group's part in a gap: limits simultaneous over the groups, and the standard error that its own interval has on each side."""
    value = item.values[metric]
    own = item.limits(metric, config.confidence, config.interval)
    lower, upper = item.limits(metric, 1 - (1 - config.confidence) / n_groups, config.interval)
    z = NormalDist().inv_cdf(0.5 + config.confidence / 2)
    least = float(np.sqrt(item.cell.floor(item.cell.n_units)))
    down, up = (None if limit is None else max(abs(limit - value) / z, least) for limit in own)
    return GroupValue(group, value, item.variances[metric], item.cell.n_units, item.cell.n, lower, upper, down, up)


def worst_of(members: Sequence[GroupValue], lower_is_better: bool) -> dict[str, Any] | None:
    """The worst group; its limits are those of the extreme over groups, from simultaneous limits."""
    if len(members) < 2:
        return None
    pick = max if lower_is_better else min
    worst = pick(members, key=lambda member: member.value)
    lower = [member.lower for member in members if member.lower is not None]
    upper = [member.upper for member in members if member.upper is not None]
    complete = len(lower) == len(members) == len(upper)
    limits = {"lower": pick(lower) if complete else None, "upper": pick(upper) if complete else None}
    return {"group": worst.group, "value": worst.value, **limits}


def _nulls(
    name: str,
    x: FloatArray,
    patient: IntArray,
    groups: Groups,
    known: Mapping[int, MeasuredValue],
    inside: Sequence[int],
    n_permutations: int,
    seed: int,
) -> dict[str, FloatArray]:
    if len(inside) < 2:
        return {}
    if n_permutations:
        use = (groups.codes >= 0) & ~np.isnan(x)
        # a patient of two groups (ages change) counts in both
        pairs = make_value_cell(x[use], patient[use] * len(groups.keys) + groups.codes[use], spread_of(x))
        codes = np.array(inside, dtype=np.int64)
        rng = generator(seed, "permutation", "value", groups.attribute, name)
        return value_null(pairs, pairs.units % len(groups.keys), codes, n_permutations, rng)
    nulls = {}
    for metric in VALUE_METRICS:
        errors = np.array([known[code].replicates[metric] - known[code].values[metric] for code in inside])
        if errors.size:
            spread = np.array([np.full(errors.shape[1], known[code].variances[metric]) for code in inside])
            nulls[metric] = largest_difference(errors, spread)
    return nulls
