"""The studentised maximum test: exact p-values, inversion, level, Holm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenhand.metrics import critical_value, holm, make_cell, null_maxima, p_value
from evenhand.metrics.permutation import largest_difference, permute_groups


@given(st.lists(st.floats(0, 10), min_size=5, max_size=400), st.floats(0, 12), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
@settings(max_examples=200, deadline=None)
def test_a_statistic_is_within_the_critical_value_exactly_when_p_is_not_small(null: list[float], observed: float, level: float) -> None:
    draws = np.round(np.array(null), 3)
    observed = round(observed, 3)
    assert (observed <= critical_value(draws, level)) == (p_value(observed, draws) >= 1 - level - 1e-12)


def test_largest_difference_by_hand() -> None:
    values, variances = np.array([[0.5], [0.9], [0.6]]), np.array([[0.01], [0.03], [0.0]])
    assert largest_difference(values, variances)[0] == pytest.approx(0.4 / 0.2)


def test_permutation_keeps_counts_within_strata() -> None:
    codes, strata = np.array([0, 0, 1, 1, 1, 2]), np.array([0, 0, 0, 1, 1, 1])
    shuffled = permute_groups(codes, strata, 40, np.random.default_rng(0))
    for stratum in (0, 1):
        rows = strata == stratum
        assert (np.sort(shuffled[rows], axis=0) == np.sort(codes[rows])[:, None]).all()
    assert len(np.unique(shuffled, axis=1).T) > 5


def test_null_of_two_large_groups_is_that_of_a_normal() -> None:
    rng = np.random.default_rng(0)
    n = 2000
    y, s = rng.integers(0, 2, n), rng.random(n)
    cell = make_cell(y, s, (s > 0.5).astype(int), np.arange(n))
    groups = np.array([0, 1])
    metrics = ("auc", "tpr", "positive_rate", "balanced_accuracy")
    null = null_maxima(cell, np.arange(n) % 2, dict.fromkeys(metrics, groups), dict.fromkeys(metrics, 1500), np.random.default_rng(1))
    for name in (*metrics, "log_positive_rate"):
        assert len(null[name]) == 1500
        assert critical_value(null[name], 0.95) == pytest.approx(1.96, abs=0.16)


def test_fewer_than_two_groups_are_not_tested() -> None:
    cell = make_cell(np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.3, 0.4]), np.zeros(4), np.arange(4))
    assert null_maxima(cell, np.zeros(4, int), {"auc": np.array([0])}, {"auc": 10}, np.random.default_rng(0)) == {}


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.02, 0.9]) == pytest.approx([0.08, 0.04, 0.06, 0.9])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_holm_lies_between_raw_and_bonferroni(p: list[float]) -> None:
    for raw, adjusted in zip(p, holm(p), strict=True):
        assert raw <= adjusted <= min(1.0, max(raw * len(p), max(holm(p))))


def test_a_difference_without_any_spread_is_infinite_and_none_is_nothing() -> None:
    values, none = np.array([[0.9, 0.5], [0.5, 0.5]]), np.zeros((2, 2))
    assert largest_difference(values, none).tolist() == [np.inf, 0.0]
