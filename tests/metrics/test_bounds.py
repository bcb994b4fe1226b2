"""Bounds of gaps against every assignment there is, tried one by one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenhand.metrics.bounds import Differences, auc_differences, bounds_of_gap, ratio_bounds, share_differences, share_ranges


def _all_values(known_top, known_bottom, top, bottom, n_groups):
    """Values of the first groups under every assignment of the units to n_groups groups: (assignments, k)."""
    k, found = len(known_top), []
    for places in product(range(n_groups), repeat=len(top)):
        at = np.array(places, int)
        tops = [known_top[g] + top[at == g].sum() for g in range(k)]
        bottoms = [known_bottom[g] + bottom[at == g].sum() for g in range(k)]
        found.append(np.array(tops) / np.array(bottoms))
    return np.array(found)


@st.composite
def shares(draw):
    k = draw(st.integers(2, 3))
    known_bottom = np.array(draw(st.lists(st.integers(1, 6), min_size=k, max_size=k)), float)
    known_top = np.array([draw(st.integers(0, int(b))) for b in known_bottom], float)
    bottom = np.array(draw(st.lists(st.integers(0, 4), min_size=0, max_size=6 if k == 2 else 5)), float)
    top = np.array([draw(st.integers(0, int(b))) for b in bottom], float)
    return known_top, known_bottom, top, bottom, k + draw(st.integers(0, 1))


@given(shares())
@settings(max_examples=80, deadline=None)
def test_shares_against_every_assignment(case) -> None:
    *parts, n_groups = case
    values = _all_values(*parts, n_groups)
    gaps = values.max(axis=1) - values.min(axis=1)
    found = bounds_of_gap(share_differences(*parts, other_groups=n_groups > len(parts[0])))
    assert found.upper == pytest.approx(gaps.max(), abs=1e-12)
    assert found.upper_exact
    assert found.lower <= gaps.min() + 1e-12
    if found.lower_exact:
        assert found.lower == pytest.approx(gaps.min(), abs=1e-12)
    low, high = found.pair
    assert (values[:, high] - values[:, low]).max() == pytest.approx(found.upper, abs=1e-12)


@given(shares())
@settings(max_examples=60, deadline=None)
def test_ratios_against_every_assignment(case) -> None:
    *parts, n_groups = case
    values = _all_values(*parts, n_groups)
    some = values.max(axis=1) > 0
    if not some.any():
        return
    ratios = values[some].min(axis=1) / values[some].max(axis=1)
    found = ratio_bounds(*parts, other_groups=n_groups > len(parts[0]))
    assert found.lower == pytest.approx(ratios.min(), abs=1e-12)
    assert found.upper >= ratios.max() - 1e-12


def test_ranges_of_one_group_are_those_of_every_subset() -> None:
    rng = np.random.default_rng(0)
    bottom = rng.integers(1, 5, 9).astype(float)
    top = rng.random(9) * bottom
    values = np.array([(2 + top[list(s)].sum()) / (5 + bottom[list(s)].sum()) for s in map(np.flatnonzero, product((0, 1), repeat=9))])
    low, high = share_ranges(np.array([2.0]), np.array([5.0]), top, bottom)
    assert (low[0], high[0]) == pytest.approx((values.min(), values.max()))


def _auc(p, n):
    return ((p[:, None] > n) + 0.5 * (p[:, None] == n)).mean()


@st.composite
def scored(draw):
    k = draw(st.integers(2, 3))
    score = st.integers(0, 6).map(float)
    some = st.lists(score, min_size=1, max_size=4)
    known = [(np.array(draw(some)), np.array(draw(some))) for _ in range(k)]
    most = 6 if k == 2 else 5
    rows = draw(st.lists(st.tuples(score, st.booleans(), st.integers(0, most)), max_size=most))
    one_each = draw(st.booleans())
    unit = np.arange(len(rows)) if one_each else np.array([u for *_, u in rows], int)
    return known, np.array([s for s, *_ in rows]), np.array([y for _, y, _ in rows], bool), unit, k + draw(st.integers(0, 1)), one_each


@given(scored())
@settings(max_examples=80, deadline=None)
def test_auc_against_every_assignment(case) -> None:
    known, score, positive, unit, n_groups, one_each = case
    codes, local = np.unique(unit, return_inverse=True)
    gaps = []
    for places in product(range(n_groups), repeat=len(codes)):
        at = np.array(places, int)[local] if len(codes) else np.zeros(0, int)
        values = [
            _auc(np.append(p, score[(at == g) & positive]), np.append(n, score[(at == g) & ~positive])) for g, (p, n) in enumerate(known)
        ]
        gaps.append(max(values) - min(values))
    two = n_groups == len(known) == 2
    differences = auc_differences(
        known, (score[positive], unit[positive]), (score[~positive], unit[~positive]), other_groups=n_groups > len(known)
    )
    found = bounds_of_gap(differences)
    assert found.upper >= max(gaps) - 1e-12
    assert found.lower <= min(gaps) + 1e-12
    if found.upper_exact or (two and one_each):
        assert found.upper == pytest.approx(max(gaps), abs=1e-12)
    if found.lower_exact:
        assert found.lower == pytest.approx(min(gaps), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_branch_and_bound_finds_the_best_cut_of_many_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    known = [(rng.normal(shift + 1, size=20), rng.normal(shift, size=30)) for shift in (0.0, 0.3)]
    p, n = np.sort(rng.normal(1, size=70))[::-1], np.sort(rng.normal(size=110))
    best = max(
        _auc(np.append(known[0][0], p[:a]), np.append(known[0][1], n[:b]))
        - _auc(np.append(known[1][0], p[a:]), np.append(known[1][1], n[b:]))
        for a in range(0, 71)
        for b in range(0, 111)
    )
    found = auc_differences(known, (p, np.arange(70)), (n, 70 + np.arange(110)), other_groups=False)
    assert found.largest[0, 1] == pytest.approx(best, abs=1e-12)
    assert found.exact[0, 1]


def test_nothing_missing_is_the_gap_itself() -> None:
    none = np.zeros(0)
    found = bounds_of_gap(share_differences(np.array([3.0, 8.0, 5.0]), np.full(3, 10.0), none, none, other_groups=False))
    assert (found.lower, found.upper) == pytest.approx((0.5, 0.5))
    assert (found.lower_exact, found.upper_exact, found.pair) == (True, True, (0, 1))


def test_a_gap_that_no_assignment_can_undo_keeps_a_positive_lower_bound() -> None:
    found = bounds_of_gap(
        share_differences(np.array([90.0, 10.0]), np.full(2, 100.0), np.array([1.0, 0.0]), np.ones(2), other_groups=False)
    )
    assert 0.75 < found.lower < 0.8 < found.upper
    assert found.lower_exact


def test_the_lower_bound_of_overlapping_groups_is_zero() -> None:
    found = bounds_of_gap(Differences(np.array([[0.0, 0.2], [0.1, 0.0]]), np.ones((2, 2), bool)))
    assert (found.lower, found.upper, found.lower_exact) == (0.0, 0.2, False)
