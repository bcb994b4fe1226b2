"""Gaps against fairlearn, limits that agree with tests, and what is not estimable."""

from __future__ import annotations

import numpy as np
import pytest
from fairlearn import metrics as outside
from hypothesis import given, settings
from hypothesis import strategies as st

from evenhand.metrics import GroupValue, all_gaps, critical_value, make_cell, null_maxima
from evenhand.metrics.gaps import metric_gap, worst_group
from evenhand.metrics.permutation import largest_difference


def _members(y: np.ndarray, s: np.ndarray, d: np.ndarray, g: np.ndarray) -> dict[str, list[GroupValue]]:
    found: dict[str, list[GroupValue]] = {}
    for group in np.unique(g):
        rows = g == group
        cell = make_cell(y[rows], s[rows], d[rows], np.arange(rows.sum()))
        for name in ("auc", "tpr", "fpr", "positive_rate"):
            value, variance = cell.moments((name,))[name]
            rows_in, units = cell.denominator(name)
            found.setdefault(name, []).append(GroupValue(str(group), float(value[0]), float(variance[0]), units, rows_in))
    return found


@given(st.integers(0, 10_000), st.integers(2, 5))
@settings(max_examples=25, deadline=None)
def test_definitions_agree_with_fairlearn(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    n = 60 * k
    y, s, g = rng.integers(0, 2, n), rng.random(n), np.arange(n) % k
    d = (s + 0.1 * g > 0.5).astype(int)
    members = _members(y, s, d, g)
    gaps = all_gaps(members, {name: [] for name in members}, {}, 0.95)
    given_groups = {"sensitive_features": g}
    assert gaps["equalized_odds"].value == pytest.approx(outside.equalized_odds_difference(y, d, **given_groups))
    assert gaps["equalized_odds_mean"].value == pytest.approx(outside.equalized_odds_difference(y, d, agg="mean", **given_groups))
    assert gaps["equal_opportunity"].value == pytest.approx(outside.equal_opportunity_difference(y, d, **given_groups))
    assert gaps["demographic_parity"].value == pytest.approx(outside.demographic_parity_difference(y, d, **given_groups))
    assert gaps["demographic_parity_ratio"].value == pytest.approx(outside.demographic_parity_ratio(y, d, **given_groups))


@given(st.integers(0, 10_000), st.integers(2, 6), st.sampled_from([0.9, 0.95]))
@settings(max_examples=20, deadline=None)
def test_zero_lies_inside_exactly_when_p_is_not_small(seed: int, k: int, level: float) -> None:
    rng = np.random.default_rng(seed)
    n = 50 * k
    y, s, g = rng.integers(0, 2, n), rng.random(n), np.arange(n) % k
    members = _members(y, s, (s > 0.5).astype(int), g)
    null = {name: np.abs(rng.normal(size=199)) * rng.uniform(0.3, 1.5) for name in (*members, "log_positive_rate")}
    for name, gap in all_gaps(members, {name: [] for name in members}, null, level).items():
        accepted = gap.p >= 1 - level - 1e-12
        if name in ("demographic_parity_ratio", "disparate_impact"):
            assert (gap.upper >= 1) == accepted
            assert gap.lower <= gap.value <= gap.upper
        else:
            assert (gap.lower <= 0) == accepted
            assert gap.lower <= gap.value <= gap.upper


def test_fewer_than_two_groups_give_a_reason_not_a_zero() -> None:
    excluded = [{"group": "b", "reason": "2 patients", "n": 2}]
    gap = metric_gap("auc", [GroupValue("a", 0.8, 0.01, 50, 50)], excluded, np.ones(10), 0.95)
    found = gap.to_json()
    assert found["value"] is None
    assert "1 of 2 groups" in found["reason"]
    assert found["excluded"] == excluded
    assert found["groups"] is None


def test_worst_is_the_bad_end_of_each_metric() -> None:
    members = [GroupValue("a", 0.8, 0.1, 9, 9, 0.7, 0.9), GroupValue("b", 0.6, 0.1, 9, 9, 0.4, 0.95)]
    assert worst_group("auc", members) == {"group": "b", "value": 0.6, "lower": 0.4, "upper": 0.9}
    assert worst_group("fpr", members) == {"group": "a", "value": 0.8, "lower": 0.7, "upper": 0.95}
    assert worst_group("positive_rate", members) is None


@pytest.mark.slow
@pytest.mark.parametrize(("k", "metric"), [(2, "auc"), (5, "auc"), (2, "tpr"), (5, "tpr")])
def test_limits_reach_zero_in_95_of_100_audits_without_a_gap(k: int, metric: str) -> None:
    covered, runs, images = 0, 300, 2
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        unit = np.repeat(np.arange(70 * k), images)
        y = np.repeat((rng.random(70 * k) < 0.4).astype(int), images)
        z = np.repeat(rng.normal(size=70 * k), images) + 0.5 * rng.normal(size=len(y)) + 1.5 * y - 0.7
        cell = make_cell(y, 1 / (1 + np.exp(-z)), (z > 0).astype(int), unit)
        codes = np.arange(70 * k) % k
        moments = [cell.moments((metric,), (codes == group)[:, None].astype(float))[metric] for group in range(k)]
        observed = largest_difference(np.array([value for value, _ in moments]), np.array([spread for _, spread in moments]))[0]
        covered += observed <= critical_value(null_maxima(cell, codes, {metric: np.arange(k)}, {metric: 199}, rng)[metric], 0.95)
    assert 0.92 <= covered / runs <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("k", [2, 5])
def test_equalized_odds_of_clustered_images_holds_zero_in_95_of_100_audits_without_a_gap(k: int) -> None:
    covered, runs = 0, 200
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        n_patients = 60 * k
        images = rng.integers(1, 5, n_patients)
        group = rng.choice(k, n_patients, p=np.linspace(1, 2, k) / np.linspace(1, 2, k).sum())
        unit = np.repeat(np.arange(n_patients), images)
        y = np.repeat(rng.random(n_patients) < np.linspace(0.25, 0.6, k)[group], images).astype(int)
        z = np.repeat(rng.normal(size=n_patients), images) + 0.4 * rng.normal(size=len(y)) + 1.5 * y - 0.7
        cell = make_cell(y, 1 / (1 + np.exp(-z)), (z > 0).astype(int), unit)
        codes = group[cell.units]
        members: dict[str, list[GroupValue]] = {"tpr": [], "fpr": []}
        for code in range(k):
            for name, (value, variance) in cell.moments(("tpr", "fpr"), (codes == code)[:, None].astype(float)).items():
                members[name].append(GroupValue(str(code), float(value[0]), float(variance[0]), 10, 10))
        null = null_maxima(cell, codes, dict.fromkeys(members, np.arange(k)), dict.fromkeys(members, 199), rng)
        covered += all_gaps(members, {"tpr": [], "fpr": []}, null, 0.95)["equalized_odds"].lower <= 0
    assert 0.91 <= covered / runs <= 0.985
