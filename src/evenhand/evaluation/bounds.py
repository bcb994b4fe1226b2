"""Missing attributes: between which values would every gap lie, whatever groups the missing patients belong to?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.data.groups import Groups
from evenhand.evaluation.cohort import Question
from evenhand.metrics.bounds import Differences, GapBounds, auc_differences, bounds_of_gap, ratio_bounds, share_differences
from evenhand.metrics.gaps import COMBINED, RATIOS, Gap
from evenhand.metrics.net_benefit import threshold_odds
from evenhand.metrics.rates import RATES, UNBOUNDED, ratios, row_sums

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

NO_BOUNDS = "no bounds are computed for this metric"


@dataclass(frozen=True)
class _Split:
    """The labelled rows of one question: those of the groups, and those that could fall into any of them.

    ``known`` (groups, s) and ``units`` (missing patients, s) are their sums of `evenhand.metrics.rates.SUMS`.
    """

    codes: IntArray
    unit: IntArray
    y_true: FloatArray
    y_score: FloatArray
    missing: BoolArray
    known: FloatArray
    units: FloatArray
    n_groups: int
    odds: float


def gap_bounds(
    question: Question,
    groups: Groups,
    patient: IntArray,
    gaps: Mapping[str, Gap],
    *,
    reference: str | None = None,
) -> dict[str, dict[str, Any]]:
    r"""Bounds of every gap over all assignments of the patients without a group to the groups of the table.

    For a gap :math:`\Delta(a)` under an assignment a of the missing patients, ``lower`` is at most
    :math:`\min_a \Delta(a)` and ``upper`` at least :math:`\max_a \Delta(a)`.

    * Patients are assigned, with all their missing rows, to one group. A patient whose other rows all lie in one group
      belongs to that group and is not missing here; a patient known in several groups (ages change) can fall into any.
    * Every group of the table can receive patients; the gap is over the groups that entered the reported gap, so that
      the bounds speak of the same comparison. With two groups in the table, who is not in one is in the other.
    * ``upper`` is exact for ratios of sums (rates, Brier score, log loss, F1) and their gaps; for balanced accuracy and the
      mean of equalized odds it is exact where no missing patient has both positive and negative rows; for the AUC where
      the extreme assignment keeps the rows of each patient together. ``lower`` is conservative unless it says exact.
    * Sampling error comes on top: ``interval`` moves the bounds apart by the half-widths of the gap's usual interval.

    Args:
        question: the outcome.
        groups: of the judged rows.
        patient: patient codes of the judged rows.
        gaps: name -> the reported gap; decides which groups enter, and the width of ``interval``.
        reference: key of the reference group of the disparate impact, if any.

    Returns:
        Name of the gap -> ``{lower, upper, exact, lower_exact, upper_exact, interval, groups: [low, high], n_missing,
        n_missing_patients, n_resolved}``; with ``lower = upper = None`` and a ``reason`` where there are none. Empty
        where no labelled row lacks a group.
    """
    use = ~np.isnan(question.y_true)
    if not (groups.codes[use] < 0).any():
        return {}
    codes = settle(groups.codes, patient)
    codes, unit = codes[use], patient[use]
    truth, score, decision = question.y_true[use], question.y_score[use], question.decision[use]
    missing = codes < 0
    known, units = _sums(row_sums(truth, score, decision), codes, unit, len(groups.keys))
    n_groups, odds = len(np.unique(groups.codes[groups.codes >= 0])), threshold_odds(question.threshold.get("value"))
    split = _Split(codes, unit, truth, score, missing, known, units, n_groups, odds)
    counts = {
        "n_missing": int(missing.sum()),
        "n_missing_patients": len(np.unique(unit[missing])),
        "n_resolved": int((groups.codes[use] < 0).sum() - missing.sum()),
    }
    cache: dict[tuple[str, tuple[int, ...]], Differences | None] = {}
    found = {}
    for name, gap in gaps.items():
        inside = _entering(groups, gap)
        first = groups.keys.index(reference) if reference in groups.keys and name.startswith("disparate_impact") else None
        bounds = _bounds(name, gap, split, inside, first, cache) if len(inside) > 1 else None
        found[name] = {**_record(name, gap, bounds, groups, inside), **counts}
    return found


def settle(codes: IntArray, patient: IntArray) -> IntArray:
    """Groups with the missing rows filled of patients whose other rows all lie in one group.

    Example:
        >>> settle(np.array([0, -1, 1, 0, -1, -1]), np.array([0, 0, 1, 1, 1, 2]))
        array([ 0,  0,  1,  0, -1, -1])
    """
    n = int(patient.max(initial=-1)) + 1
    low, high = np.full(n, np.iinfo(np.int64).max), np.full(n, -1, dtype=np.int64)
    known = codes >= 0
    np.minimum.at(low, patient[known], codes[known])
    np.maximum.at(high, patient[known], codes[known])
    only = np.where(low == high, high, -1)
    return np.asarray(np.where(known, codes, only[patient]))


def _entering(groups: Groups, gap: Gap) -> tuple[int, ...]:
    if gap.value is None:
        return ()
    left_out = {item["group"] for item in gap.excluded}
    present = set(np.unique(groups.codes[groups.codes >= 0]).tolist())
    return tuple(code for code, key in enumerate(groups.keys) if code in present and key not in left_out)


def _bounds(
    name: str,
    gap: Gap,
    split: _Split,
    inside: tuple[int, ...],
    first: int | None,
    cache: dict[tuple[str, tuple[int, ...]], Differences | None],
) -> GapBounds | None:
    """The bounds of one gap, base metric or named combination; ``first`` is the reference group of a ratio."""
    if name in RATIOS or name == "disparate_impact_distance":
        ratio = _of_ratio(split, COMBINED[name][0], inside, first)
        return ratio if name in RATIOS or ratio is None else _distance(ratio)
    parts = (gap.measure,) if gap.measure else COMBINED.get(name, (name,))
    found = []
    for part in parts:
        if (part, inside) not in cache:
            cache[part, inside] = _differences(part, split, inside)
        differences = cache[part, inside]
        if differences is None:
            return None
        found.append(bounds_of_gap(differences))
    return found[0] if len(found) == 1 else _combine(name, found, apart=_one_class_each(split))


def _distance(ratio: GapBounds) -> GapBounds:
    """|1 - ratio|."""
    if ratio.upper <= 1:
        return GapBounds(1 - ratio.upper, 1 - ratio.lower, ratio.upper_exact, ratio.lower_exact, ratio.pair)
    return GapBounds(max(0.0, ratio.lower - 1), max(1 - ratio.lower, ratio.upper - 1), False, False, ratio.pair)


def _combine(name: str, found: list[GapBounds], *, apart: bool) -> GapBounds:
    """Equalized odds: TPR moves with positive rows and FPR with negative ones, so each reaches its own extreme.

    The largest of two gaps has its exact upper bound in any case; the other three bounds are exact where no patient has
    both kinds of rows (``apart``).
    """
    widest = max(found, key=lambda item: item.upper)
    both_lower, both_upper = (all(getattr(item, end) for item in found) for end in ("lower_exact", "upper_exact"))
    if name == "equalized_odds_mean":
        lower, upper = (sum(getattr(item, end) for item in found) / len(found) for end in ("lower", "upper"))
        return GapBounds(lower, upper, apart and both_lower, apart and both_upper, widest.pair)
    return replace(widest, lower=max(item.lower for item in found), lower_exact=apart and both_lower)


def _one_class_each(split: _Split) -> bool:
    positive, negative = (split.unit[split.missing & (split.y_true == value)] for value in (1, 0))
    return not len(np.intersect1d(positive, negative))


def _sums(rows: FloatArray, codes: IntArray, unit: IntArray, n_groups: int) -> tuple[FloatArray, FloatArray]:
    """((groups, s) of the groups, (u, s) of the missing patients)."""
    missing = codes < 0
    known = [np.bincount(codes[~missing], column[~missing], minlength=n_groups) for column in rows.T]
    _, local = np.unique(unit[missing], return_inverse=True)
    return np.stack(known, axis=1), np.stack([np.bincount(local, column[missing]) for column in rows.T], axis=1)


def _differences(metric: str, split: _Split, inside: tuple[int, ...]) -> Differences | None:
    """None where no bounds are known, or a group lacks a denominator."""
    others = split.n_groups > len(inside)
    if metric == "auc":
        return _auc(split, inside, others)
    if metric not in RATES and not (metric == "net_benefit" and np.isfinite(split.odds)):
        return None
    known, units = split.known[list(inside)], split.units
    found, bottoms = [], []
    for top, bottom in ratios(metric, split.odds):
        u, v = np.asarray(top, float), np.asarray(bottom, float)
        if not (known @ v > 0).all():
            return None
        bottoms.append(units @ v > 0)
        found.append(share_differences(known @ u, known @ v, units @ u, units @ v, other_groups=others))
    if len(found) == 1:
        return found[0]
    apart = not np.logical_and.reduce(bottoms).any()
    largest = sum(item.largest for item in found) / len(found)
    exact = np.logical_and.reduce([item.exact for item in found]) & apart
    return Differences(np.asarray(largest), exact, settled=all(item.settled for item in found))


def _of_ratio(split: _Split, metric: str, inside: tuple[int, ...], first: int | None) -> GapBounds | None:
    if first is not None and first not in inside:
        return None
    known, units = split.known[list(inside)], split.units
    ((top, bottom),) = RATES[metric]
    u, v = np.asarray(top, float), np.asarray(bottom, float)
    others, reference = split.n_groups > len(inside), None if first is None else inside.index(first)
    return ratio_bounds(known @ u, known @ v, units @ u, units @ v, other_groups=others, reference=reference)


def _auc(split: _Split, inside: tuple[int, ...], others: bool) -> Differences | None:
    positive = split.y_true == 1
    known = [(split.y_score[(split.codes == code) & positive], split.y_score[(split.codes == code) & ~positive]) for code in inside]
    if not all(len(part) for pair in known for part in pair):
        return None
    free1, free0 = split.missing & positive, split.missing & ~positive
    return auc_differences(known, (split.y_score[free1], split.unit[free1]), (split.y_score[free0], split.unit[free0]), other_groups=others)


def _record(name: str, gap: Gap, bounds: GapBounds | None, groups: Groups, inside: tuple[int, ...]) -> dict[str, Any]:
    if bounds is None:
        return {"lower": None, "upper": None, "reason": gap.reason or NO_BOUNDS}
    low, high = (groups.keys[inside[position]] for position in bounds.pair)
    return {
        "lower": _finite(bounds.lower),
        "upper": _finite(bounds.upper),
        "exact": bounds.lower_exact and bounds.upper_exact,
        "lower_exact": bounds.lower_exact,
        "upper_exact": bounds.upper_exact,
        "interval": _widened(name, gap, bounds),
        "groups": [low, high],
    }


def _widened(name: str, gap: Gap, bounds: GapBounds) -> list[float | None] | None:
    """The bounds, moved apart by the half-widths of the gap's interval; of a ratio by its factors."""
    if gap.value is None or gap.lower is None:
        return None
    if name in RATIOS:
        if not gap.value:
            return None
        most = 1.0 if bounds.upper <= 1 else np.inf
        upper = None if gap.upper is None else _finite(min(most, bounds.upper * max(1.0, gap.upper / gap.value)))
        return [bounds.lower * min(1.0, gap.lower / gap.value), upper]
    lower = max(0.0, bounds.lower - max(gap.value - gap.lower, 0.0))
    if gap.upper is None:
        return [lower, None]
    upper = bounds.upper + max(gap.upper - gap.value, 0.0)
    # |1 - disparate impact| against a reference group has no end
    open_ended = name in UNBOUNDED or (name == "disparate_impact_distance" and max(bounds.upper, gap.upper) > 1)
    return [lower, _finite(upper) if open_ended else min(1.0, upper)]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
