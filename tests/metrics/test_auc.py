"""AUC against scikit-learn, DeLong's variance against its textbook form, and invariants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from evenhand.metrics import auc, auc_with_variance, rank_rows, weighted_auc


def _data(seed: int, n: int = 60, levels: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    y[:2] = (0, 1)
    return y, rng.integers(0, levels, n) / levels + 0.1 * y


@given(st.integers(0, 10_000), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_agrees_with_scikit_learn_with_ties_and_weights(seed: int, levels: int) -> None:
    y, s = _data(seed, levels=levels)
    w = np.random.default_rng(seed).integers(1, 4, len(y))
    assert auc(y, s) == pytest.approx(roc_auc_score(y, s), abs=1e-12)
    assert auc(y, s, w) == pytest.approx(roc_auc_score(y, s, sample_weight=w), abs=1e-12)


def test_many_weightings_at_once_equal_one_at_a_time() -> None:
    y, s = _data(1)
    unit = np.repeat(np.arange(20), 3)
    weights = np.random.default_rng(0).integers(0, 3, (20, 5)).astype(float)
    found = weighted_auc(rank_rows(y, s, unit), weights)
    assert found == pytest.approx([auc(y, s, weights[unit, b]) for b in range(5)], abs=1e-12)


def test_one_class_is_not_a_number() -> None:
    assert np.isnan(auc([1, 1], [0.2, 0.3]))
    assert np.isnan(auc([0, 1], [0.2, 0.3], [0, 1]))


def test_variance_is_delongs_where_every_row_is_a_unit() -> None:
    y, s = _data(3, n=80, levels=30)
    pos, neg = s[y == 1], s[y == 0]
    wins = (pos[:, None] > neg) + 0.5 * (pos[:, None] == neg)
    expected = wins.mean(1).var(ddof=1) / len(pos) + wins.mean(0).var(ddof=1) / len(neg)
    value, variance = auc_with_variance(rank_rows(y, s, np.arange(80)), np.ones((80, 1)))
    assert value[0] == pytest.approx(roc_auc_score(y, s))
    assert variance[0] == pytest.approx(expected, rel=1e-10)


def test_copies_of_images_of_the_same_patients_change_nothing() -> None:
    y, s = _data(4)
    unit = np.arange(60) // 2
    once = auc_with_variance(rank_rows(y, s, unit), np.ones((30, 1)))
    thrice = auc_with_variance(rank_rows(np.tile(y, 3), np.tile(s, 3), np.tile(unit, 3)), np.ones((30, 1)))
    assert np.allclose(once, thrice, rtol=1e-12)


def test_clustered_variance_matches_a_simulation() -> None:
    rng = np.random.default_rng(0)
    n_patients, images = 80, 4
    unit = np.repeat(np.arange(n_patients), images)
    values, variances, naive = [], [], []
    for _ in range(300):
        y = np.repeat(rng.integers(0, 2, n_patients), images)
        s = np.repeat(rng.normal(size=n_patients), images) + 0.7 * rng.normal(size=len(unit)) + y
        value, variance = auc_with_variance(rank_rows(y, s, unit), np.ones((n_patients, 1)))
        values.append(value[0])
        variances.append(variance[0])
        naive.append(auc_with_variance(rank_rows(y, s, np.arange(len(y))), np.ones((len(y), 1)))[1][0])
    assert np.mean(variances) == pytest.approx(np.var(values), rel=0.25)
    assert np.mean(naive) < 0.6 * np.var(values)


def test_members_select_the_group() -> None:
    y, s = _data(5)
    unit = np.arange(60)
    member = (unit % 2 == 0).astype(float)[:, None]
    value, variance = auc_with_variance(rank_rows(y, s, unit), member)
    half = slice(0, None, 2)
    alone = auc_with_variance(rank_rows(y[half], s[half], np.arange(30)), np.ones((30, 1)))
    assert (value[0], variance[0]) == pytest.approx((alone[0][0], alone[1][0]))


def test_perfect_separation_has_a_variance_above_zero() -> None:
    y = np.repeat([0, 1], 10)
    _, variance = auc_with_variance(rank_rows(y, y.astype(float), np.arange(20)), np.ones((20, 1)))
    assert variance[0] > 0


@given(st.integers(0, 10_000), st.integers(2, 12))
@settings(max_examples=30, deadline=None)
def test_value_and_variance_are_those_of_the_double_sum(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    unit, y, s = rng.integers(0, 15, 60), rng.integers(0, 2, 60), rng.integers(0, levels, 60).astype(float)
    inside = rng.random(15) < 0.8
    use = inside[unit]
    high, low = np.flatnonzero(use & (y == 1)), np.flatnonzero(use & (y == 0))
    owners1, owners0 = set(unit[high]), set(unit[low])
    if min(len(owners1), len(owners0)) < 2:
        return
    wins = (s[high][:, None] > s[low]) + 0.5 * (s[high][:, None] == s[low])
    value = wins.mean()
    a, b = np.zeros(15), np.zeros(15)
    np.add.at(a, unit[high], wins.mean(axis=1) - value)
    np.add.at(b, unit[low], wins.mean(axis=0) - value)
    n1, n0, n = len(owners1), len(owners0), len(owners1 | owners0)
    expected = n1 / (n1 - 1) * (a @ a) / len(high) ** 2 + n0 / (n0 - 1) * (b @ b) / len(low) ** 2
    expected += 2 * n / (n - 1) * (a @ b) / (len(high) * len(low)) if owners1 & owners0 else 0.0
    found, variance = auc_with_variance(rank_rows(y, s, unit), inside[: unit.max() + 1, None].astype(float))
    assert found[0] == pytest.approx(value)
    assert variance[0] == pytest.approx(max(expected, 0.25 / min(n1, n0) ** 3))
