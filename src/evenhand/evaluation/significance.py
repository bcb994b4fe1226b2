"""Gaps of one label and attribute: which groups enter, the null distribution of their test, and Holm's correction."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.evaluation.cells import Measured
from evenhand.evaluation.selection import RESAMPLED
from evenhand.metrics.cells import make_cell, variance_floor
from evenhand.metrics.gaps import Gap, GroupValue
from evenhand.metrics.large_groups import is_large, normal_maxima, shared_by_rates
from evenhand.metrics.permutation import MIRRORS, holm, largest_difference, log_moments, null_maxima

FloatArray = npt.NDArray[np.float64]
Members = dict[str, list[GroupValue]]


def members_of(
    measured: Mapping[str, Measured], variances: Mapping[str, Mapping[str, float]], confidence: float
) -> tuple[Members, dict[str, list[dict[str, Any]]]]:
    """(metric -> estimable groups, metric -> excluded groups with reasons).

    Args:
        measured: group key -> numbers; without the row of the missing.
        variances: group key -> metric -> clustered variance.
        confidence: of the groups' simultaneous limits (Bonferroni over the groups).
    """
    members: Members = {}
    excluded: dict[str, list[dict[str, Any]]] = {}
    for name in metrics_of(measured):
        inside = [key for key, item in measured.items() if name not in item.reasons and np.isfinite(variances[key][name])]
        level = 1 - (1 - confidence) / max(len(inside), 1)
        members[name] = []
        for key in inside:
            item = measured[key]
            rows, units = item.counts[name]
            lower, upper = item.limits(name, level)
            down, up = _errors(item, name, variances[key][name], confidence)
            members[name].append(GroupValue(key, item.values[name], variances[key][name], units, rows, lower, upper, down, up))
        excluded[name] = [
            {"group": key, "reason": item.reasons.get(name, "too few patients for a variance"), "n": item.counts[name][0]}
            for key, item in measured.items()
            if key not in inside
        ]
    return members, excluded


def _errors(item: Measured, metric: str, variance: float, confidence: float) -> tuple[float, float]:
    """Standard errors towards the lower and the upper side: the distances to the limits of the group's own interval over the
    normal quantile. They are 0 towards the bound that a share of 0 or 1 lies on."""
    lower, upper = item.limits(metric, confidence)
    value, plain, quantile = item.values[metric], float(np.sqrt(variance)), NormalDist().inv_cdf(0.5 + confidence / 2)
    if lower is None or upper is None or (lower == upper and value not in (0.0, 1.0)):
        return plain, plain
    return (value - lower) / quantile, (upper - value) / quantile


def metrics_of(measured: Mapping[str, Measured]) -> tuple[str, ...]:
    """The metrics that were computed, the same for every group."""
    return next((tuple(item.values) for item in measured.values()), ())


def clustered_variances(measured: Mapping[str, Measured]) -> dict[str, dict[str, float]]:
    """Group key -> metric -> the variance that studentises its tests: the linearised one, with patients as clusters."""
    return {key: dict(item.variances) for key, item in measured.items()}


def replicate_variances(measured: Mapping[str, Measured]) -> dict[str, dict[str, float]]:
    """Group key -> metric -> variance over the bootstrap replicates, NaN where there are fewer than two.

    A share of exactly 0 or 1 does not vary over replicates, which is not certainty: its variance is that of half a
    patient's answer, as in `evenhand.metrics.cells.Cell.moments`.
    """
    return {
        key: {name: _spread(name, item.replicates[name], item.counts[name][1]) for name in item.values} for key, item in measured.items()
    }


def _spread(metric: str, replicates: FloatArray, units: int) -> float:
    finite = replicates[np.isfinite(replicates)]
    return max(float(finite.var(ddof=1)), variance_floor(metric, units)) if len(finite) > 1 else float("nan")


def permuted_null(
    rows: Mapping[str, Any],
    codes: npt.NDArray[np.int64],
    members: Members,
    keys: Sequence[str],
    n_permutations: Mapping[str, int],
    rng: np.random.Generator,
    threads: int = 1,
    large: Collection[str] = (),
) -> dict[str, FloatArray]:
    """Studentised maxima under permuted groups; the units are (patient, group) pairs, so an ageing patient counts in both.

    Metrics of `RESAMPLED` are left out; those in ``large`` are drawn from their normal limit instead.
    """
    pair = rows["unit"] * len(keys) + codes
    cell = make_cell(
        rows["y_true"], rows["y_score"], rows["decision"], pair, threshold=rows.get("threshold"), ece_bins=rows.get("ece_bins", 10)
    )
    position = {key: code for code, key in enumerate(keys)}
    normal = {name: inside for name, inside in members.items() if name in large}
    permuted = {name: inside for name, inside in members.items() if name not in RESAMPLED and name not in large}
    estimable = {name: np.array([position[item.group] for item in inside], dtype=np.int64) for name, inside in permuted.items()}
    codes_of_units = cell.units % len(keys)
    null = null_maxima(cell, codes_of_units, estimable, n_permutations, rng, threads)
    shared = shared_by_rates(cell, codes_of_units, {item.group: position[item.group] for item in normal.get("tpr", ())})
    return {**null, **normal_maxima(normal, n_permutations, rng, shared=shared)}


def large_metrics(measured: Mapping[str, Measured]) -> frozenset[str]:
    """The metrics whose estimable groups are all so large that no permutation is needed; TPR and FPR go together."""
    found = {name for name in metrics_of(measured) if name not in RESAMPLED and _all_large(name, measured)}
    pair = {"tpr", "fpr"} & set(metrics_of(measured))
    return frozenset(found if pair <= found else found - {"tpr", "fpr", "tnr", "fnr"})


def _all_large(metric: str, measured: Mapping[str, Measured]) -> bool:
    inside = [item for item in measured.values() if metric not in item.reasons]
    return len(inside) >= 2 and all(is_large(metric, item.values[metric], item.counts[metric][1]) for item in inside)


def bootstrap_null(measured: Mapping[str, Measured], members: Members) -> dict[str, FloatArray]:
    """Studentised maxima of the bootstrap errors, used where no permutation is at hand.

    That is: macro averages, several seeds, and the metrics of `RESAMPLED`. The plain calibration error has none: chance makes
    it larger in small groups, and of macro averages in groups of 40 to 300 patients with no true gap the bootstrap rejected
    25%; the corrected one is tested (5%).
    """
    found = {}
    for name, inside in members.items():
        if name == "ece" or len(inside) < 2 or not len(measured[inside[0].group].replicates[name]):
            continue
        errors = np.array([measured[item.group].replicates[name] - item.value for item in inside])
        found[name] = largest_difference(errors, np.array([np.full(errors.shape[1], item.variance) for item in inside]))
        if name == "positive_rate":
            logs = [log_moments(np.array(item.value), np.array(item.variance), item.units) for item in inside]
            moved = [log_moments(measured[item.group].replicates[name], np.array(item.variance), item.units)[0] for item in inside]
            errors = np.array([there - float(here) for there, (here, _) in zip(moved, logs, strict=True)])
            found["log_positive_rate"] = largest_difference(
                errors, np.array([np.full(errors.shape[1], float(spread)) for _, spread in logs])
            )
    return found


SAME_TEST = {**MIRRORS, "equal_opportunity": "tpr", "demographic_parity": "positive_rate"}
"""Gaps that are tested by the test of another one: together in a family they count once."""


def adjust(gaps: Mapping[tuple[str, str], dict[str, Gap]], primary: Sequence[str]) -> int:
    """Fill ``p_holm`` of the named family (primary metrics x attributes x labels) in place; returns the number of tests."""
    family = [(where, name) for where, found in gaps.items() for name in primary if found[name].p is not None]
    tests = {(where, SAME_TEST.get(name, name)): float(gaps[where][name].p or 0.0) for where, name in family}
    adjusted = dict(zip(tests, holm(list(tests.values())), strict=True))
    for where, name in family:
        gaps[where][name] = replace(gaps[where][name], p_holm=adjusted[where, SAME_TEST.get(name, name)])
    return len(tests)
