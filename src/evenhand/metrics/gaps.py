"""Gaps between groups: how far apart the groups are, between whom, and within which limits.

A gap is over the estimable groups only; with fewer than two it is not estimable. Its interval is not the percentile
interval of a maximum (which with no true gap almost never reaches 0): every pairwise difference gets an interval of the
same critical value, taken from the studentised maximum test, and the gap's limits are the largest lower and the largest
upper limit. So 0 lies inside exactly when the test's p-value is at least 1 - confidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.metrics.permutation import critical_value, largest_difference, log_moments, p_value
from evenhand.metrics.rates import LOWER_IS_BETTER, NEITHER_IS_BETTER, UNBOUNDED

FloatArray = npt.NDArray[np.float64]

COMBINED: dict[str, tuple[str, ...]] = {
    "equalized_odds": ("tpr", "fpr"),
    "equalized_odds_mean": ("tpr", "fpr"),
    "equal_opportunity": ("tpr",),
    "demographic_parity": ("positive_rate",),
    "demographic_parity_ratio": ("positive_rate",),
    "disparate_impact": ("positive_rate",),
}
"""Named gap -> the metrics it is made of.

equalized_odds: the larger of the TPR gap and the FPR gap; equalized_odds_mean: their mean; equal_opportunity: the TPR
gap; demographic_parity: the gap of P(d=1); demographic_parity_ratio and disparate_impact: min over groups of P(d=1) /
max over groups (without a named reference group the two are one number).
"""

RATIOS = frozenset({"demographic_parity_ratio", "disparate_impact"})


@dataclass(frozen=True)
class GroupValue:
    """One estimable group's part in a gap.

    Attributes:
        group: its key.
        value: the metric's estimate.
        variance: its clustered variance.
        units: patients in the denominator.
        n: rows in the denominator.
        lower: lower limit of the group's value, simultaneous over the groups of the gap.
        upper: the upper limit.
    """

    group: str
    value: float
    variance: float
    units: int
    n: int
    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True)
class Gap:
    """A gap of one metric (or of a named combination) between the groups of one attribute.

    Attributes:
        value: max - min over the estimable groups (`RATIOS`: min / max); None where fewer than two are estimable.
        lower, upper: limits of its interval.
        p: p-value of the studentised maximum test of "no gap"; None where no permutations were made.
        p_holm: adjusted over the named family; None outside it.
        groups: the two groups furthest apart, the lower value first.
        excluded: groups that are not estimable, as ``{group, reason, n}``.
        n: rows in the denominators of the groups that entered.
        n_groups: groups that entered.
        ratio: min / max of the metric over the groups; None for combinations.
        worst: ``{group, value, lower, upper}`` of the worst group, where the metric has a worse end.
        reason: why it is not estimable.
    """

    value: float | None = None
    lower: float | None = None
    upper: float | None = None
    p: float | None = None
    p_holm: float | None = None
    groups: tuple[str, str] | None = None
    excluded: tuple[dict[str, Any], ...] = ()
    n: int = 0
    n_groups: int = 0
    ratio: float | None = None
    worst: dict[str, Any] | None = field(default=None)
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """The contract's form of a gap."""
        numbers = {"value": self.value, "lower": self.lower, "upper": self.upper, "p": self.p, "p_holm": self.p_holm}
        more = {
            "groups": list(self.groups) if self.groups else None,
            "excluded": [dict(item) for item in self.excluded],
            "n": self.n,
            "n_groups": self.n_groups,
            "ratio": self.ratio,
            "worst": self.worst,
        }
        return {**numbers, **more} if self.value is not None else {**numbers, "reason": self.reason, **more}


def difference_limits(values: FloatArray, variances: FloatArray, critical: float, largest: float) -> tuple[float, float]:
    """Limits of max - min: the largest lower and the largest upper limit of all pairwise differences, cut to [0, largest].

    Example:
        >>> difference_limits(np.array([0.9, 0.5]), np.array([0.005, 0.005]), 2.0, 1.0)
        (0.2, 0.6)
    """
    low, high = 0.0, 0.0
    for i in range(len(values)):
        for j in range(i):
            apart, spread = abs(values[i] - values[j]), float(np.sqrt(variances[i] + variances[j]))
            width = critical * spread if spread > 0 or not np.isfinite(critical) else 0.0
            width = float("inf") if np.isnan(width) else width
            low, high = max(low, apart - width), max(high, apart + width)
    return round(float(low), 12), round(float(min(high, largest)), 12)


def metric_gap(
    metric: str, members: Sequence[GroupValue], excluded: Sequence[dict[str, Any]], null: FloatArray | None, confidence: float
) -> Gap:
    """The gap of one metric.

    Args:
        metric: its name.
        members: the estimable groups.
        excluded: the others, with reasons.
        null: studentised maxima without a gap, from `evenhand.metrics.permutation.null_maxima`; None: no test, no limits.
        confidence: of the limits.
    """
    n = sum(member.n for member in members)
    if len(members) < 2:
        reason = f"{len(members)} of {len(members) + len(excluded)} groups can be estimated, at least 2 are needed"
        return Gap(excluded=tuple(excluded), n=n, n_groups=len(members), reason=reason)
    values, variances = _arrays(members)
    low, high = int(np.argmin(values)), int(np.argmax(values))
    lower = upper = p = None
    if null is not None and len(null):
        p = p_value(float(largest_difference(values[:, None], variances[:, None])[0]), null)
        limit = float("inf") if metric in UNBOUNDED else 1.0
        lower, upper = difference_limits(values, variances, critical_value(null, confidence), limit)
    return Gap(
        value=float(values[high] - values[low]),
        lower=lower,
        upper=_finite(upper),
        p=p,
        groups=(members[low].group, members[high].group),
        excluded=tuple(excluded),
        n=n,
        n_groups=len(members),
        ratio=float(values[low] / values[high]) if values[high] > 0 else None,
        worst=worst_group(metric, members),
    )


def ratio_gap(members: Sequence[GroupValue], base: Gap, null: FloatArray | None, confidence: float) -> Gap:
    """min / max of a share over groups, its limits on the logarithmic scale; 1 lies inside exactly when p >= 1 - confidence.

    Args:
        members: the estimable groups.
        base: the difference gap of the same groups.
        null: studentised maxima of the logarithm.
        confidence: of the limits.
    """
    values, variances = _arrays(members) if members else (np.zeros(0), np.zeros(0))
    if base.value is None or values.max() == 0:
        reason = base.reason or "no group has a positive decision, so there is no ratio"
        return Gap(excluded=base.excluded, n=base.n, n_groups=base.n_groups, reason=reason)
    lower = upper = p = None
    value = float(values.min() / values.max())
    if null is not None and len(null):
        logs, spread = log_moments(values, variances, np.array([member.units for member in members]))
        p = p_value(float(largest_difference(logs[:, None], spread[:, None])[0]), null)
        near, far = difference_limits(logs, spread, critical_value(null, confidence), float("inf"))
        lower, upper = min(float(np.exp(-far)), value), max(float(np.exp(-near)), value)
    return Gap(
        value=value,
        lower=lower,
        upper=upper,
        p=p,
        groups=base.groups,
        excluded=base.excluded,
        n=base.n,
        n_groups=base.n_groups,
    )


def equalized_odds_gaps(
    tpr: Gap, fpr: Gap, members: Mapping[str, Sequence[GroupValue]], nulls: Mapping[str, FloatArray], confidence: float
) -> tuple[Gap, Gap]:
    """(equalized_odds, equalized_odds_mean): the larger and the mean of the TPR and the FPR gap, with one joint test.

    Not estimable where either gap is not. The joint statistic is the larger of the two studentised maxima, permutation
    by permutation; both gaps' limits use its critical value.
    """
    excluded = _merge(tpr.excluded, fpr.excluded)
    n, n_groups = tpr.n + fpr.n, min(tpr.n_groups, fpr.n_groups)
    if tpr.value is None or fpr.value is None:
        missing = "TPR" if tpr.value is None else "FPR"
        gone = Gap(excluded=excluded, n=n, n_groups=n_groups, reason=f"{missing}: {tpr.reason if tpr.value is None else fpr.reason}")
        return gone, gone
    wider = tpr if tpr.value >= fpr.value else fpr
    limits: list[tuple[float | None, float | None]] = [(None, None), (None, None)]
    p = None
    if "tpr" in nulls and "fpr" in nulls and len(nulls["tpr"]):
        null = np.maximum(nulls["tpr"], nulls["fpr"])
        parts = [_arrays(members[name]) for name in ("tpr", "fpr")]
        p = p_value(max(float(largest_difference(v[:, None], s[:, None])[0]) for v, s in parts), null)
        critical = critical_value(null, confidence)
        (low1, high1), (low2, high2) = (difference_limits(v, s, critical, 1.0) for v, s in parts)
        limits = [(max(low1, low2), max(high1, high2)), ((low1 + low2) / 2, (high1 + high2) / 2)]
    values = (max(tpr.value, fpr.value), (tpr.value + fpr.value) / 2)
    largest, mean = (
        Gap(value=value, lower=lower, upper=upper, p=p, groups=wider.groups, excluded=excluded, n=n, n_groups=n_groups)
        for value, (lower, upper) in zip(values, limits, strict=True)
    )
    return largest, mean


def all_gaps(
    members: Mapping[str, Sequence[GroupValue]],
    excluded: Mapping[str, Sequence[dict[str, Any]]],
    nulls: Mapping[str, FloatArray],
    confidence: float,
) -> dict[str, Gap]:
    """Every gap of one attribute and label: one for each metric, then the named combinations of `COMBINED`.

    Args:
        members: metric -> its estimable groups.
        excluded: metric -> the other groups with reasons.
        nulls: metric (and ``log_positive_rate``) -> studentised maxima without a gap; empty: no tests, no limits.
        confidence: of the limits.
    """
    gaps = {name: metric_gap(name, members[name], excluded[name], nulls.get(name), confidence) for name in members}
    if "tpr" in gaps and "fpr" in gaps:
        gaps["equalized_odds"], gaps["equalized_odds_mean"] = equalized_odds_gaps(gaps["tpr"], gaps["fpr"], members, nulls, confidence)
        gaps["equal_opportunity"] = gaps["tpr"]
    if "positive_rate" in gaps:
        ratio = ratio_gap(members["positive_rate"], gaps["positive_rate"], nulls.get("log_positive_rate"), confidence)
        gaps.update(demographic_parity=gaps["positive_rate"], demographic_parity_ratio=ratio, disparate_impact=ratio)
    return gaps


def worst_group(metric: str, members: Sequence[GroupValue]) -> dict[str, Any] | None:
    """The worst group's value; its limits are those of the minimum (maximum) over groups, from simultaneous limits."""
    if metric in NEITHER_IS_BETTER:
        return None
    pick = max if metric in LOWER_IS_BETTER else min
    worst = pick(members, key=lambda member: member.value)
    lower = [member.lower for member in members if member.lower is not None]
    upper = [member.upper for member in members if member.upper is not None]
    complete = len(lower) == len(members) == len(upper)
    return {
        "group": worst.group,
        "value": worst.value,
        "lower": pick(lower) if complete else None,
        "upper": pick(upper) if complete else None,
    }


def _arrays(members: Sequence[GroupValue]) -> tuple[FloatArray, FloatArray]:
    return np.array([member.value for member in members]), np.array([member.variance for member in members])


def _finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else value


def _merge(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    seen = {item["group"] for item in first}
    return (*first, *(item for item in second if item["group"] not in seen))
