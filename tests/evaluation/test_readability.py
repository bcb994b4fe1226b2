"""The linear reader: against scikit-learn, blind to its own fold, near 0.5 where nothing is, and AUC within strata by brute force."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from evenhand.evaluation.readability import (
    STRENGTHS,
    Comparison,
    FoldedRidge,
    ReadRows,
    folds_of,
    indicators,
    permuted,
    read,
    read_within,
    standardised,
)


def features(n=200, d=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng


def rows_of(x, codes, n_groups=2, per_patient=1, test=0.25):
    patients = np.arange(len(codes)) // per_patient
    outside = patients < patients.max() * (1 - test)
    fold = np.full(len(codes), -1)
    fold[outside] = folds_of(patients[outside], codes[outside], 0)
    return ReadRows(standardised(x, outside), codes, patients, fold, n_groups)


def test_readers_are_ridge_regressions():
    x, rng = features()
    y, fold = rng.normal(size=(200, 2)), np.arange(200) % 4
    for strength, (weight, bias) in zip(STRENGTHS, FoldedRidge(x, fold, y).without(1), strict=True):
        kept = fold != 1
        fit = Ridge(alpha=strength * kept.sum()).fit(x[kept], y[kept])
        np.testing.assert_allclose(weight.T, fit.coef_, atol=1e-8)
        np.testing.assert_allclose(bias, fit.intercept_, atol=1e-8)


def test_a_fold_is_scored_by_readers_that_do_not_know_its_targets():
    x, rng = features()
    fold, y = np.arange(200) % 5, rng.normal(size=(200, 3))
    before, _ = FoldedRidge(x, fold, y).held_out(np.arange(3))
    y[fold == 2] = rng.normal(size=(40, 3)) * 50
    after, _ = FoldedRidge(x, fold, y).held_out(np.arange(3))
    np.testing.assert_array_equal(before[fold == 2], after[fold == 2])
    assert not np.allclose(before[fold == 1], after[fold == 1])


def test_auc_is_over_pairs_of_one_stratum():
    rng = np.random.default_rng(1)
    truth, stratum, scores = rng.integers(0, 2, 120), rng.integers(0, 3, 120), np.round(rng.normal(size=120), 1)
    won = total = 0.0
    for s in range(3):
        rows = stratum == s
        pairs = truth[rows].sum() * (1 - truth[rows]).sum()
        won, total = won + pairs * roc_auc_score(truth[rows], scores[rows]), total + pairs
    compared = Comparison(truth, stratum, np.arange(120), 2)
    assert compared.value(scores[:, None]) == pytest.approx(won / total)
    found = compared.estimate(scores[:, None], 0)
    assert found["value"] == pytest.approx(won / total)
    assert found["lower"] < found["value"] < found["upper"]


def test_several_groups_are_the_mean_of_each_against_the_rest():
    rng = np.random.default_rng(2)
    truth, scores = rng.integers(0, 3, 150), rng.normal(size=(150, 3))
    compared = Comparison(truth, np.zeros(150, int), np.arange(150), 3)
    each = [roc_auc_score(truth == k, scores[:, k]) for k in range(3)]
    assert compared.value(scores) == pytest.approx(np.mean(each))
    assert compared.estimate(scores, 0, only=1)["value"] == pytest.approx(each[1])


def test_perfect_reading_has_an_interval_and_few_patients_have_none():
    truth = np.repeat([0, 1], 15)
    found = Comparison(truth, np.zeros(30, int), np.arange(30), 2).estimate(truth[:, None].astype(float), 0)
    assert (found["value"], found["upper"]) == (1.0, 1.0)
    assert 0.5 < found["lower"] < 0.95
    few = Comparison(truth, np.zeros(30, int), np.arange(30) // 3, 2).estimate(truth[:, None].astype(float), 0)
    assert few["value"] is None
    assert "fewer than 10 patients" in few["reason"]


def test_what_is_there_is_read_and_what_is_not_is_near_a_half():
    x, rng = features(400, 12)
    codes = (x[:, 0] + rng.normal(size=400) > 0).astype(int)
    found = read(rows_of(x, codes), 0, 39)
    assert found["folds"]["lower"] > 0.6
    assert found["test"]["lower"] > 0.5
    assert found["chance"]["above"]
    assert found["chance"]["lower"] < 0.5 < found["chance"]["upper"]
    null = read(rows_of(x, rng.integers(0, 2, 400), per_patient=2), 0, 39)
    assert abs(null["folds"]["value"] - 0.5) < 0.1
    assert not null["chance"]["above"]


def test_within_the_label_only_what_the_label_does_not_show_counts():
    x, rng = features(600, 6)
    label = (x[:, 0] > 0).astype(int)
    codes = np.where(rng.random(600) < 0.85, label, 1 - label)
    rows = rows_of(x, codes)
    assert read(rows, 0)["folds"]["lower"] > 0.7
    within = read_within(rows, label, ("0", "1"), 0)
    assert abs(within["given_label"]["folds"]["value"] - 0.5) < 0.1
    assert set(within["within"]) == {"0", "1"}
    planted = rows_of(np.hstack([x, codes[:, None] + rng.normal(size=(600, 1))]), codes)
    assert read_within(planted, label, ("0", "1"), 0)["given_label"]["folds"]["lower"] > 0.6


def test_one_group_and_too_few_folds_are_not_estimable():
    x, _ = features(40)
    found = read(rows_of(x, np.zeros(40, int)), 0, 5)
    assert found["folds"]["value"] is None
    assert found["chance"] is None


def test_permuting_keeps_patients_whole():
    patients = np.repeat(np.arange(30), 2)
    codes = (patients % 3 == 0).astype(int)
    shuffled = permuted(codes, patients, np.random.default_rng(0))
    assert (shuffled[::2] == shuffled[1::2]).all()
    assert shuffled.sum() == codes.sum()
    assert indicators(np.array([0, 2]), 3).tolist() == [[1, 0, 0], [0, 0, 1]]


def test_wide_features_are_cut_and_constant_ones_left_out():
    x = np.random.default_rng(0).normal(size=(60, 900))
    x[:, 3] = 1.0
    assert standardised(x, np.ones(60, bool)).shape == (60, 768)
