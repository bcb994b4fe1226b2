"""Gaps between groups: how far apart the groups are, between whom, and within which limits.

A gap is over the estimable groups only; with fewer than two it is not estimable. Its interval is not the percentile
interval of a maximum (which with no true gap almost never reaches 0) but the inverted studentised maximum test
(`evenhand.metrics.gap_limits`): 0 lies inside exactly when the test's p-value is at least 1 - confidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.metrics.gap_limits import Side, gap_limits
from evenhand.metrics.permutation import critical_value, largest_difference, log_moments, p_value
from evenhand.metrics.rates import LOWER_IS_BETTER, NEITHER_IS_BETTER, SIGNED, TARGETS, UNBOUNDED

FloatArray = npt.NDArray[np.float64]

COMBINED: dict[str, tuple[str, ...]] = {
    "equalized_odds": ("tpr", "fpr"),
    "equalized_odds_mean": ("tpr", "fpr"),
    "equal_opportunity": ("tpr",),
    "demographic_parity": ("positive_rate",),
    "demographic_parity_ratio": ("positive_rate",),
    "disparate_impact": ("positive_rate",),
    "disparate_impact_distance": ("positive_rate",),
    "underdiagnosis": ("fnr", "fpr"),
}
"""Named gap -> the metrics it is made of.

equalized_odds: the larger of the TPR gap and the FPR gap; equalized_odds_mean: their mean; equal_opportunity: the TPR
gap; demographic_parity: the gap of P(d=1); demographic_parity_ratio: min over groups of P(d=1) / max over groups;
disparate_impact: the same, or with a named reference group the least P(d=1) of the other groups / P(d=1) of the reference;
disparate_impact_distance: |1 - disparate_impact|; underdiagnosis: the FNR gap, for a label that means health the FPR gap.
"""

_SPAN = NormalDist().inv_cdf(0.975)
"""Distances on the logarithmic scale are taken to the 95% limits, whatever the confidence of the gap."""

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
        down, up: distance from the value to its own lower and upper limit over the normal quantile, the standard error
            towards either side; None: the root of the variance.
    """

    group: str
    value: float
    variance: float
    units: int
    n: int
    lower: float | None = None
    upper: float | None = None
    down: float | None = None
    up: float | None = None


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
        to_overall: ``{group, value}``, the largest distance of a group from everybody; without an interval.
        measure: for `underdiagnosis`, the metric it is of.
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
    to_overall: dict[str, Any] | None = field(default=None)
    measure: str = ""

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
            "to_overall": self.to_overall,
            **({"measure": self.measure} if self.measure else {}),
        }
        return {**numbers, **more} if self.value is not None else {**numbers, "reason": self.reason, **more}


def side_of(members: Sequence[GroupValue], log: bool = False) -> Side:
    """The groups' values and the standard errors of their own intervals, for `gap_limits`.

    Args:
        members: at least two groups.
        log: on the logarithmic scale; a share of 0 counts as half a patient, and its lower limit is minus infinity.
    """
    values, variances = _arrays(members)
    if log:
        values, variances = log_moments(values, variances, np.array([member.units for member in members]))
    error, plain = np.sqrt(variances), np.array([member.value for member in members])
    down, up = error.copy(), error.copy()
    for k, member in enumerate(members):
        if member.down is None or member.up is None:
            continue
        down[k], up[k] = member.down, member.up
        if log:
            with np.errstate(divide="ignore"):
                ends = np.log(np.maximum([plain[k] - _SPAN * member.down, plain[k] + _SPAN * member.up], 0.0))
            down[k], up[k] = (values[k] - ends[0]) / _SPAN, max(float(ends[1] - values[k]) / _SPAN, error[k] * 1e-3)
    return Side(values, down, up)


def _excess(statistic: float, null: FloatArray, confidence: float) -> tuple[float, float]:
    """(p-value, statistic over its critical value): above 1 exactly when p < 1 - confidence."""
    p, critical = p_value(statistic, null), critical_value(null, confidence)
    if p >= 1 - confidence - 1e-12 or not np.isfinite(critical):
        return p, 0.0
    return p, max(statistic / critical, 1 + 1e-9) if critical > 0 else float("inf")


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
        p, excess = _excess(float(largest_difference(values[:, None], variances[:, None])[0]), null, confidence)
        lower, upper = gap_limits([side_of(members)], excess, confidence, float("inf") if metric in UNBOUNDED else 1.0)
    return Gap(
        value=float(values[high] - values[low]),
        lower=lower,
        upper=_finite(upper),
        p=p,
        groups=(members[low].group, members[high].group),
        excluded=tuple(excluded),
        n=n,
        n_groups=len(members),
        ratio=float(values[low] / values[high]) if values[high] > 0 and metric not in SIGNED else None,
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
        p, excess = _excess(float(largest_difference(logs[:, None], spread[:, None])[0]), null, confidence)
        near, far = gap_limits([side_of(members, log=True)], excess, confidence, float("inf"))
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


def impact_gap(members: Sequence[GroupValue], base: Gap, null: FloatArray | None, confidence: float, reference: str) -> Gap:
    r"""Disparate impact against a reference group: :math:`\min_{a \ne r} P(D=1|A=a) / P(D=1|A=r)`.

    With more than two groups it is that of the most disadvantaged other group, the lowest rate of positive decisions; it
    exceeds 1 where every other group has a higher rate than the reference. Its limits are the least lower and the least
    upper limit of the groups' ratios, simultaneous by the critical value of all pairs (which is wider than the pairs with
    the reference alone would need); 1 lies inside exactly when p >= 1 - confidence. fairlearn has no reference group;
    AIF360's disparate_impact is this ratio for two groups.

    Args:
        members: the estimable groups.
        base: the difference gap of the same groups.
        null: studentised maxima of the logarithm.
        confidence: of the limits.
        reference: key of the reference group.
    """
    none = Gap(excluded=base.excluded, n=base.n, n_groups=base.n_groups)
    first = next((member for member in members if member.group == reference), None)
    others = [member for member in members if member.group != reference]
    if base.value is None or first is None or first.value == 0:
        why = "cannot be estimated" if first is None else "has no positive decision, so there is no ratio"
        return replace(none, reason=base.reason or f"the reference group {reference} {why}")
    least = min(others, key=lambda member: member.value)
    lower = upper = p = None
    value = least.value / first.value
    if null is not None and len(null):
        values, variances = _arrays([first, *others])
        logs, spread = log_moments(values, variances, np.array([first.units, *(member.units for member in others)]))
        apart, width = logs[1:] - logs[0], np.sqrt(spread[1:] + spread[0])
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = np.nan_to_num(apart / width, nan=0.0)
        statistic = float(-distance.min()) if value < 1 else float(distance.min())
        p = p_value(max(statistic, 0.0), null)
        critical = critical_value(null, confidence)
        if np.isfinite(critical):
            lower, upper = float(np.exp((apart - critical * width).min())), float(np.exp((apart + critical * width).min()))
            lower, upper = min(lower, value), max(upper, value)
    return replace(none, value=value, lower=lower, upper=upper, p=p, groups=(least.group, reference))


def distance_gap(impact: Gap) -> Gap:
    """|1 - disparate impact|, as published: how far the ratio is from 1, on either side; limits and test are the ratio's."""
    if impact.value is None:
        return impact
    lower = upper = None
    if impact.lower is not None and impact.upper is not None:
        ends = abs(1 - impact.lower), abs(1 - impact.upper)
        lower, upper = (0.0 if impact.lower <= 1 <= impact.upper else min(ends)), max(ends)
    return replace(impact, value=abs(1 - impact.value), lower=lower, upper=upper, ratio=None)


def equalized_odds_gaps(
    tpr: Gap, fpr: Gap, members: Mapping[str, Sequence[GroupValue]], nulls: Mapping[str, FloatArray], confidence: float
) -> tuple[Gap, Gap]:
    """(equalized_odds, equalized_odds_mean): the larger and the mean of the TPR and the FPR gap, with one joint test.

    Not estimable where either gap is not. The joint statistic is the larger of the two studentised maxima, permutation
    by permutation. The mean's limits are made from the limits of both gaps, and exclude 0 exactly when the joint test rejects.
    """
    excluded = _merge(tpr.excluded, fpr.excluded)
    n, n_groups = tpr.n + fpr.n, min(tpr.n_groups, fpr.n_groups)
    if tpr.value is None or fpr.value is None:
        missing = "TPR" if tpr.value is None else "FPR"
        gone = Gap(excluded=excluded, n=n, n_groups=n_groups, reason=f"{missing}: {tpr.reason if tpr.value is None else fpr.reason}")
        return gone, gone
    wider = tpr if tpr.value >= fpr.value else fpr
    values = (max(tpr.value, fpr.value), (tpr.value + fpr.value) / 2)
    limits: list[tuple[float | None, float | None]] = [(None, None), (None, None)]
    p = None
    if "tpr" in nulls and "fpr" in nulls and len(nulls["tpr"]):
        parts = [_arrays(members[name]) for name in ("tpr", "fpr")]
        statistic = max(float(largest_difference(v[:, None], s[:, None])[0]) for v, s in parts)
        p, excess = _excess(statistic, np.maximum(nulls["tpr"], nulls["fpr"]), confidence)
        low, high = gap_limits([side_of(members[name]) for name in ("tpr", "fpr")], excess, confidence, 1.0)
        limits = [(low, high), _mean_limits(tpr, fpr, low if excess > 1 else None)]
    largest, mean = (
        Gap(value=value, lower=lower, upper=upper, p=p, groups=wider.groups, excluded=excluded, n=n, n_groups=n_groups)
        for value, (lower, upper) in zip(values, limits, strict=True)
    )
    apart = [gap.to_overall for gap in (tpr, fpr) if gap.to_overall is not None]
    return replace(largest, to_overall=max(apart, key=lambda item: float(item["value"])) if len(apart) == 2 else None), mean


def _mean_limits(first: Gap, second: Gap, joint: float | None) -> tuple[float, float]:
    """Limits of the mean of two gaps from the limits of both, which are independent (Zou and Donner's way).

    A gap whose interval reaches 0 enters the lower limit as a whole: without a true gap the observed one is chance alone,
    which does not average out.

    Args:
        first, second: the gaps.
        joint: lower limit of the larger of the two, where the joint test rejects; the mean is at least half of it.
    """
    pairs = [(gap.value or 0.0, gap.lower or 0.0, 1.0 if gap.upper is None else gap.upper) for gap in (first, second)]
    mean = sum(value for value, _, _ in pairs) / 2
    shown = [value - lower for value, lower, _ in pairs if lower > 0]
    low = mean - (float(np.sqrt(sum(width**2 for width in shown))) + sum(value for value, lower, _ in pairs if lower == 0)) / 2
    high = mean + float(np.sqrt(sum((upper - value) ** 2 for value, _, upper in pairs))) / 2
    return (0.0 if joint is None else min(max(low, joint / 2), mean)), min(high, 1.0)


def all_gaps(
    members: Mapping[str, Sequence[GroupValue]],
    excluded: Mapping[str, Sequence[dict[str, Any]]],
    nulls: Mapping[str, FloatArray],
    confidence: float,
    *,
    overall: Mapping[str, float] | None = None,
    underdiagnosis: str = "fnr",
    reference: str | None = None,
) -> dict[str, Gap]:
    """Every gap of one attribute and label: one for each metric, then the named combinations of `COMBINED`.

    Args:
        members: metric -> its estimable groups.
        excluded: metric -> the other groups with reasons.
        nulls: metric (and ``log_positive_rate``) -> studentised maxima without a gap; empty: no tests, no limits.
        confidence: of the limits.
        overall: metric -> value over everybody, for the distance of the groups from it.
        underdiagnosis: ``fnr``, or ``fpr`` for a label that means health.
        reference: the reference group of disparate impact.
    """
    gaps = {name: metric_gap(name, members[name], excluded[name], nulls.get(name), confidence) for name in members}
    gaps = {name: replace(gap, to_overall=farthest(members[name], (overall or {}).get(name))) for name, gap in gaps.items()}
    if underdiagnosis in gaps:
        gaps["underdiagnosis"] = replace(gaps[underdiagnosis], measure=underdiagnosis)
    if "tpr" in gaps and "fpr" in gaps:
        gaps["equalized_odds"], gaps["equalized_odds_mean"] = equalized_odds_gaps(gaps["tpr"], gaps["fpr"], members, nulls, confidence)
        gaps["equal_opportunity"] = gaps["tpr"]
    if "positive_rate" in gaps:
        ratio = ratio_gap(members["positive_rate"], gaps["positive_rate"], nulls.get("log_positive_rate"), confidence)
        gaps.update(demographic_parity=gaps["positive_rate"], demographic_parity_ratio=ratio, disparate_impact=ratio)
        if reference is not None:
            against = (members["positive_rate"], gaps["positive_rate"], nulls.get("log_positive_rate"), confidence)
            gaps["disparate_impact"] = impact_gap(*against, reference)
        gaps["disparate_impact_distance"] = distance_gap(gaps["disparate_impact"])
    return {name: gaps[name] for name in (*members, *COMBINED) if name in gaps}


def gap_of_values(
    name: str,
    values: Callable[[str], FloatArray],
    groups: Mapping[str, Sequence[str]],
    *,
    underdiagnosis: str = "fnr",
    reference: str | None = None,
) -> FloatArray:
    """A gap of many sets of values at once, such as bootstrap replicates.

    Args:
        name: a metric, or a key of `COMBINED`.
        values: metric -> (k, b) values of its estimable groups.
        groups: metric -> the k groups.
        underdiagnosis, reference: as in `all_gaps`.

    Returns:
        (b,), NaN where a ratio has no value.
    """
    parts = (underdiagnosis,) if name == "underdiagnosis" else COMBINED.get(name, (name,))
    if name in RATIOS or name == "disparate_impact_distance":
        found = values(parts[0])
        low, high = found.min(axis=0), found.max(axis=0)
        if reference is not None and name != "demographic_parity_ratio":
            first = list(groups[parts[0]]).index(reference)
            low, high = np.delete(found, first, axis=0).min(axis=0), found[first]
        ratio = np.divide(low, high, out=np.full(found.shape[1], np.nan), where=high > 0)
        return np.asarray(np.abs(1 - ratio) if name == "disparate_impact_distance" else ratio)
    spans = [np.ptp(values(metric), axis=0) for metric in parts]
    return np.asarray(np.mean(spans, axis=0) if name.endswith("_mean") else np.max(spans, axis=0))


def farthest(members: Sequence[GroupValue], everybody: float | None) -> dict[str, Any] | None:
    """The group furthest from everybody, and how far; None where either side cannot be estimated.

    Everybody includes the group itself, and those whose attribute is missing.
    """
    if everybody is None or not np.isfinite(everybody) or not members:
        return None
    found = max(members, key=lambda member: abs(member.value - everybody))
    return {"group": found.group, "value": abs(found.value - everybody)}


def worst_group(metric: str, members: Sequence[GroupValue]) -> dict[str, Any] | None:
    """The worst group's value; its limits are those of the minimum (maximum) over groups, from simultaneous limits.

    The worst calibration slope is the one furthest from 1, the worst intercept the one furthest from 0; there the limits
    are the group's own simultaneous ones.
    """
    if metric in NEITHER_IS_BETTER:
        return None
    if metric in TARGETS:
        off = max(members, key=lambda member: abs(member.value - TARGETS[metric]))
        return {"group": off.group, "value": off.value, "lower": off.lower, "upper": off.upper}
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
