"""Calibration error: solved by hand, against torchmetrics, and its bias correction."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import foldnorm

from evenhand.metrics import expected_calibration_error, make_cell
from evenhand.metrics.calibration import bin_rows, error_with_variance

RNG = np.random.default_rng(8)


def test_hand_solved() -> None:
    y, s = [0, 1, 1, 0, 1], [0.1, 0.9, 0.6, 0.6, 1.0]
    expected = (1 * abs(0 - 0.1) + 2 * abs(0.5 - 0.6) + 2 * abs(1 - 0.95)) / 5
    assert expected_calibration_error(y, s) == pytest.approx(expected, abs=1e-8)
    assert expected_calibration_error(y, s, weight=[2, 1, 1, 1, 0]) == pytest.approx((2 * 0.1 + 2 * 0.1 + 0.1) / 5, abs=1e-8)
    assert np.isnan(expected_calibration_error([], []))


def test_bins_are_closed_to_the_left_as_decimals_read() -> None:
    assert expected_calibration_error([0, 1], [0.3, 0.2999], bins=10) == pytest.approx((0.3 + 0.7001) / 2, abs=1e-8)
    assert expected_calibration_error([0, 1], [0.3, 0.3999], bins=10) == pytest.approx(abs(0.3 - 0.6001) / 2, abs=1e-8)


@pytest.mark.parametrize("bins", [5, 10, 15])
def test_it_is_torchmetrics_l1(bins: int) -> None:
    torch = pytest.importorskip("torch")
    classification = pytest.importorskip("torchmetrics.classification")
    s = RNG.random(700)
    y = (RNG.random(700) < s**1.5).astype(int)
    judge = classification.BinaryCalibrationError(n_bins=bins, norm="l1")
    assert expected_calibration_error(y, s, bins=bins) == pytest.approx(float(judge(torch.tensor(s), torch.tensor(y))), abs=1e-8)


def test_the_correction_is_the_folded_normals_of_the_bins() -> None:
    s = RNG.random(300)
    y = (RNG.random(300) < s**2).astype(int)
    place, expected = np.minimum((s * 10).astype(int), 9), 0.0
    for b in range(10):
        residual = (y - s)[place == b]
        mean, error = residual.mean(), residual.std(ddof=1) / np.sqrt(len(residual))
        expected += len(residual) / 300 * (2 * abs(mean) - foldnorm(abs(mean) / error, scale=error).mean())
    assert expected_calibration_error(y, s, corrected=True) == pytest.approx(expected, abs=1e-7)


def test_the_correction_takes_off_bias_but_not_error() -> None:
    plain, corrected, off = [], [], []
    for _ in range(200):
        s = RNG.beta(1, 2, 100)
        u = RNG.random(100)
        plain.append(expected_calibration_error(u < s, s))
        corrected.append(expected_calibration_error(u < s, s, corrected=True))
        off.append(expected_calibration_error(u < np.clip(s + 0.3, 0, 1), s, corrected=True))
    assert np.mean(corrected) < 0.65 * np.mean(plain)
    assert 0.2 < np.mean(off) < 0.31


def test_copies_of_images_change_nothing_where_patients_are_known() -> None:
    s = RNG.random(60)
    y = (RNG.random(60) < s).astype(int)
    once = expected_calibration_error(y, s, corrected=True)
    twice = {"y_true": np.tile(y, 3), "y_score": np.tile(s, 3), "corrected": True}
    assert expected_calibration_error(**twice, patient=np.tile(np.arange(60), 3)) == pytest.approx(once, abs=1e-8)
    assert expected_calibration_error(**twice) > once


def test_replicates_are_the_errors_of_repeated_patients() -> None:
    unit = RNG.integers(0, 40, 150)
    s = RNG.random(150)
    y = (RNG.random(150) < s).astype(int)
    cell = make_cell(y, s, y, unit, ece_bins=7)
    weights = RNG.poisson(1.0, (40, 5)).astype(float)
    found = cell.values(("ece", "ece_corrected"), weights)
    for column in range(5):
        drawn = [(u, copy) for u in range(40) for copy in range(int(weights[u, column]))]
        rows = np.concatenate([np.flatnonzero(unit == u) for u, _ in drawn])
        patient = np.concatenate([np.full((unit == u).sum(), k) for k, (u, _) in enumerate(drawn)])
        for name in ("ece", "ece_corrected"):
            alone = expected_calibration_error(y[rows], s[rows], bins=7, corrected=name == "ece_corrected", patient=patient)
            assert found[name][column] == pytest.approx(alone, abs=1e-7), name


@pytest.mark.parametrize("corrected", [False, True])
def test_the_variance_is_near_that_of_the_bootstrap_away_from_zero(corrected: bool) -> None:
    unit = np.repeat(np.arange(300), 3)
    s = RNG.random(900)
    y = (RNG.random(900) < np.clip(0.2 + 0.6 * s + np.repeat(RNG.normal(0, 0.2, 300), 3), 0, 1)).astype(int)
    y, s = y, s / 4
    value, variance = error_with_variance(bin_rows(y, s, unit, 10), np.ones((300, 1)), corrected=corrected)
    cell = make_cell(y, s, y, unit)
    name = "ece_corrected" if corrected else "ece"
    weights = RNG.multinomial(300, np.full(300, 1 / 300), 800).T.astype(float)
    assert value[0] == pytest.approx(cell.values((name,))[name][0])
    assert variance[0] == pytest.approx(cell.values((name,), weights)[name].var(), rel=0.2)


@pytest.mark.parametrize("score", [0.1, 0.3, 0.7, 0.9])
def test_rows_that_are_all_alike_have_no_variance_below_0(score: float) -> None:
    for n in range(2, 30):
        rows = bin_rows(np.ones(n), np.full(n, score), np.arange(n), 10)
        for corrected in (False, True):
            value, variance = error_with_variance(rows, np.ones((n, 1)), corrected=corrected)
            assert value == pytest.approx(1 - score)
            assert 0 <= variance[0] < 1e-12
