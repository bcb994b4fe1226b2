"""Average precision against scikit-learn, its variance against numerical derivatives, and bootstrap weights as repeated rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from evenhand.metrics import average_precision, make_cell, rank_rows
from evenhand.metrics.average_precision import auc_and_average_precision, average_precision_with_variance

RNG = np.random.default_rng(5)
Y = (RNG.random(240) < 0.4).astype(int)
S = np.round(np.clip(0.2 * Y + RNG.random(240), 0, 1), 2)
UNIT = np.unique(RNG.integers(0, 90, 240), return_inverse=True)[1]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6), st.integers(0, 3)), min_size=2, max_size=30))
def test_it_is_scikit_learns_with_ties_and_weights(rows: list[tuple[int, int, int]]) -> None:
    y, s, w = (np.array(column) for column in zip(*rows, strict=True))
    found = average_precision(y, s, w)
    if (w * y).sum() == 0:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(average_precision_score(y, s, sample_weight=w), abs=1e-12)


def test_hand_solved() -> None:
    assert average_precision([1, 0, 1], [0.9, 0.8, 0.7]) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([1, 0, 1], [0.5, 0.5, 0.5]) == pytest.approx(2 / 3)
    assert np.isnan(average_precision([0, 0], [0.1, 0.2]))
    assert np.isnan(average_precision([], []))


def test_many_weightings_at_once_give_both_areas() -> None:
    weights = RNG.poisson(1.0, (UNIT.max() + 1, 70)).astype(float)
    area, precision = auc_and_average_precision(rank_rows(Y, S, UNIT, fine=True), weights)
    for column in (0, 31, 32, 69):
        use = np.repeat(np.arange(240), weights[UNIT, column].astype(int))
        assert area[column] == pytest.approx(roc_auc_score(Y[use], S[use]), abs=1e-12)
        assert precision[column] == pytest.approx(average_precision_score(Y[use], S[use]), abs=1e-12)


def test_the_auc_is_the_same_number_with_and_without_average_precision() -> None:
    cell = make_cell(Y, S, (S >= 0.5).astype(int), UNIT)
    weights = RNG.poisson(1.0, (UNIT.max() + 1, 40)).astype(float)
    assert np.array_equal(cell.values(("auc",), weights)["auc"], cell.values(("auc", "average_precision"), weights)["auc"])


def test_the_variance_is_the_infinitesimal_jackknife_over_patients() -> None:
    rows, units = rank_rows(Y, S, UNIT, fine=True), UNIT.max() + 1
    value, variance = average_precision_with_variance(rows, np.ones((units, 1)))
    assert value[0] == pytest.approx(average_precision_score(Y, S), abs=1e-12)
    step = 1e-5
    moved = auc_and_average_precision(rows, 1 + step * np.eye(units))[1]
    assert variance[0] == pytest.approx(units / (units - 1) * (((moved - value) / step) ** 2).sum(), rel=1e-3)


def test_the_variance_is_near_that_of_the_bootstrap() -> None:
    rows, units = rank_rows(Y, S, UNIT, fine=True), UNIT.max() + 1
    weights = RNG.multinomial(units, np.full(units, 1 / units), 1500).T.astype(float)
    replicates = auc_and_average_precision(rows, weights)[1]
    assert average_precision_with_variance(rows, np.ones((units, 1)))[1][0] == pytest.approx(replicates.var(), rel=0.15)


def test_a_perfect_ranking_has_a_variance_and_memberships_are_subsets() -> None:
    y, s = np.repeat([0, 1], 10), np.arange(20.0)
    value, variance = average_precision_with_variance(rank_rows(y, s, np.arange(20), fine=True), np.ones((20, 1)))
    assert value[0] == 1
    assert variance[0] == pytest.approx(1 / 400)
    member = (np.arange(UNIT.max() + 1) % 2 == 0).astype(float)[:, None]
    inside = member[UNIT, 0] > 0
    found = average_precision_with_variance(rank_rows(Y, S, UNIT, fine=True), np.hstack([member, 1 - member]))
    half = rank_rows(Y[inside], S[inside], UNIT[inside] // 2, fine=True)
    alone = average_precision_with_variance(half, np.ones((UNIT.max() // 2 + 1, 1)))
    assert [found[0][0], found[1][0]] == pytest.approx([alone[0][0], alone[1][0]])
