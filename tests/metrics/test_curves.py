"""Curves: scikit-learn's points, net benefit by hand, and bands that are reproducible, wider for clustered rows, and quick."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import precision_recall_curve, roc_curve

from evenhand.metrics import curves
from evenhand.metrics.rates import wilson

ROWS = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=60)


def cohort(n: int, groups: int = 2, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    return y, 1 / (1 + np.exp(-(rng.normal(size=n) + 1.2 * y - 0.6))), np.arange(n), rng.integers(0, groups, n)


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_points_are_scikit_learns(rows: list[tuple[bool, int]]) -> None:
    y, s = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows], float)
    if len(set(y)) < 2:
        return
    fpr, tpr, _ = roc_curve(y, s, drop_intermediate=False)
    ours = curves.roc_points(y, s)
    np.testing.assert_allclose(ours[0], fpr)
    np.testing.assert_allclose(ours[1], tpr)
    precision, recall, _ = precision_recall_curve(y, s)
    ours = curves.precision_recall_points(y, s)
    np.testing.assert_allclose(ours[0], recall[:-1][::-1])
    np.testing.assert_allclose(ours[1], precision[:-1][::-1])


@pytest.mark.parametrize("n", [40, 203, 1000])
def test_reliability_bins_are_scikit_learns(n: int) -> None:
    y, s, _, _ = cohort(n)
    bins = curves.reliability_bins(y, s)
    observed, mean = calibration_curve(y, s, n_bins=min(10, n // 20), strategy="quantile")
    np.testing.assert_allclose(bins.observed, observed)
    np.testing.assert_allclose(bins.score, mean)
    assert bins.n.sum() == n
    assert (bins.lower[0], bins.upper[0]) == wilson(float(bins.observed[0]), int(bins.n[0]))


def test_reliability_bars_count_patients_not_rows() -> None:
    y, s, _, _ = cohort(400)
    alone = curves.reliability_bins(y, s)
    double = curves.reliability_bins(np.repeat(y, 4), np.repeat(s, 4), np.repeat(np.arange(400), 4))
    np.testing.assert_allclose(double.upper - double.lower, alone.upper - alone.lower, rtol=0.06)


def test_net_benefit_is_the_textbooks() -> None:
    """10 rows, threshold 0.2: 3 of 4 found, 2 of 6 false alarms: 3/10 - 2/10 * 0.25; everybody: 4/10 - 6/10 * 0.25."""
    y = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    s = np.array([0.9, 0.2, 0.5, 0.1, 0.2, 0.7, 0.1, 0.0, 0.1, 0.19])
    model, everybody = curves.net_benefit_points(y, s, np.array([0.2]))
    assert model[0] == pytest.approx(0.3 - 0.2 * 0.25)
    assert everybody[0] == pytest.approx(0.4 - 0.6 * 0.25)


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_net_benefit_never_beats_finding_all_without_alarms(seed: int) -> None:
    y, s, _, _ = cohort(60, seed=seed)
    if y.min() == y.max():
        return
    model, everybody = curves.net_benefit_points(y, s)
    assert (model <= y.mean() + 1e-12).all()
    perfect, _ = curves.net_benefit_points(y, y.astype(float))
    np.testing.assert_allclose(perfect, y.mean())
    assert everybody[0] >= everybody[-1]


def test_bands_hold_the_curve_and_come_again() -> None:
    data = cohort(600)
    found, again = (curves.group_curves(*data, n_bootstrap=60, seed=3, name="a") for _ in range(2))
    for code in (0, 1):
        for kind in ("roc", "precision_recall", "decision"):
            line, same = getattr(found[code], kind), getattr(again[code], kind)
            short = {"roc": "roc", "precision_recall": "pr", "decision": "decision"}[kind]
            here = curves.at_grid(short, line.x, line.y, line.grid)
            assert (line.lower <= here).all()
            assert (here <= line.upper).all()
            np.testing.assert_array_equal(line.lower, same.lower)
    other = curves.group_curves(*data, n_bootstrap=60, seed=4, name="a")
    assert not np.array_equal(other[0].roc.lower, found[0].roc.lower)


def test_a_band_agrees_with_a_plain_bootstrap_of_the_exact_curve() -> None:
    y, s, unit, _ = cohort(300)
    line = curves.group_curves(y, s, unit, np.zeros(300, int), n_bootstrap=1500)[0].roc
    rng, heights = np.random.default_rng(1), []
    for _ in range(1500):
        rows = rng.integers(0, 300, 300)
        heights.append(np.interp(curves.GRID, *curves.roc_points(y[rows], s[rows])))
    low, high = np.quantile(heights, [0.025, 0.975], axis=0)
    assert np.abs(line.lower - low)[2:].max() < 0.04
    assert np.abs(line.upper - high)[2:].max() < 0.04


def test_both_ways_of_drawing_have_the_same_spread() -> None:
    """Few kinds of patients are drawn as counts, many one by one; either way a kind's count is binomial."""
    rng = np.random.default_rng(0)
    for patients in (np.array([300, 700]), np.array([3, 7])):
        drawn = curves._draws(patients, int(patients.sum()), 4000, rng)
        assert (drawn.sum(axis=0) == patients.sum()).all()
        assert drawn[0].mean() == pytest.approx(patients[0], rel=0.03)
        assert drawn[0].var() == pytest.approx(patients.sum() * 0.3 * 0.7, rel=0.1)


def test_bands_widen_when_rows_of_a_patient_repeat() -> None:
    y, s, unit, codes = cohort(300)
    alone = curves.group_curves(np.repeat(y, 4), np.repeat(s, 4), np.arange(1200), np.repeat(codes, 4), n_bootstrap=150)[0].roc
    together = curves.group_curves(np.repeat(y, 4), np.repeat(s, 4), np.repeat(unit, 4), np.repeat(codes, 4), n_bootstrap=150)[0].roc
    assert (together.upper - together.lower).mean() > 1.6 * (alone.upper - alone.lower).mean()


def test_one_class_and_missing_groups_have_no_curves() -> None:
    y, s, unit, _ = cohort(90)
    codes = np.repeat([0, 1, -1], 30)
    y = np.where(codes == 1, 1, y)
    assert list(curves.group_curves(y, s, unit, codes, n_bootstrap=10)) == [0]
    assert curves.group_curves(y, s, unit, np.full(90, -1)) == {}
    assert len(curves.group_curves(y, s, unit, codes, n_bootstrap=0)[0].roc.grid) == 0


def test_decimation_keeps_ends_and_shape() -> None:
    y, s, _, _ = cohort(20_000)
    fpr, tpr = curves.roc_points(y, s)
    x, z = curves.decimate(fpr, tpr)
    assert len(x) <= 120
    assert (x[0], z[0], x[-1], z[-1]) == (0, 0, 1, 1)
    assert np.abs(np.interp(fpr, x, z) - tpr).max() < 0.03


def test_ten_thousand_rows_in_four_groups_are_quick() -> None:
    data = cohort(10_000, groups=4)
    curves.group_curves(*data, n_bootstrap=2)
    times = []
    for _ in range(3):
        start = time.process_time()
        curves.group_curves(*data)
        times.append(time.process_time() - start)
    assert min(times) < 0.6, "about 0.15 s on an idle core; the bar is 0.3"
