"""reweight, resample and dfr against scikit-learn with weights worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from evenhand.config.methods import DFRConfig, ResampleConfig, ReweightConfig
from evenhand.errors import MethodError
from evenhand.methods.base import Split
from evenhand.methods.baselines.dfr import DFR, balanced_subset, hold_out
from evenhand.methods.baselines.resample import Resample, draw_counts
from evenhand.methods.baselines.reweight import Reweight
from evenhand.methods.cells import split_cells


def test_reweight_is_the_weighted_fit_of_scikit_learn(make_task):
    task = make_task("binary", 3)
    x, y, g = task.train.x.features, task.train.y[:, 0], task.train.groups["site"].codes
    weight = np.zeros(len(y))
    cells = [(a, b) for a in range(3) for b in (0, 1)]
    total = sum(((g == a) & (y == b)).sum() for a, b in cells)
    for a, b in cells:
        rows = (g == a) & (y == b)
        weight[rows] = total / 6 / rows.sum()
    weight[(g < 0) & ~np.isnan(y)] = 1
    result = Reweight(ReweightConfig(l2=1e-2, tol=1e-9)).fit(task)
    keep = ~np.isnan(y)
    mean, scale = x.mean(axis=0), x.std(axis=0)  # of all training rows, unlabelled ones included
    peer = LogisticRegression(C=1 / (1e-2 * weight.sum()), tol=1e-12, max_iter=5000)
    peer.fit(((x - mean) / scale)[keep], y[keep], sample_weight=weight[keep])
    np.testing.assert_allclose(result.predictor.weight * scale, peer.coef_, atol=1e-3)


def test_resample_sees_every_cell_equally_often(make_task):
    cells = split_cells(make_task("binary", 3).train, make_task("binary", 3), "site")[0]
    counts = draw_counts(cells, np.random.default_rng(0))
    known = cells.codes >= 0
    totals = np.bincount(cells.codes[known], counts[known])
    np.testing.assert_array_equal(totals, cells.counts.max())
    np.testing.assert_array_equal(counts[~known], 0)
    for cell in range(len(cells.names)):  # nobody is drawn twice before everybody was drawn once
        assert np.ptp(counts[cells.codes == cell]) <= 1


def test_resample_follows_the_seed(make_task):
    one, two = (Resample(ResampleConfig()).fit(make_task("binary", 3, seed=0)).predictor.weight for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_dfr_subsets_have_the_smallest_cells_count(make_task):
    task = make_task("binary", 3)
    cells = split_cells(task.val, task, "site")[0]
    chosen = balanced_subset(cells, np.random.default_rng(1)).astype(bool)
    np.testing.assert_array_equal(np.bincount(cells.codes[chosen]), cells.counts.min())
    assert (cells.codes[chosen] >= 0).all()


def test_dfr_is_the_mean_of_fits_on_balanced_validation_rows(make_task):
    task = make_task("binary", 2)
    result = DFR(DFRConfig(n_models=3)).fit(task)
    single = [DFR(DFRConfig(n_models=n)).fit(task).predictor.weight for n in (1, 2)]
    third = 3 * result.predictor.weight - 2 * single[1]
    assert np.abs(third - single[0]).max() > 1e-3  # subsets differ
    rows = {record["subset"] for record in result.history}
    assert rows == {0, 1, 2}
    assert any("no longer independent" in note for note in result.notes)


def test_dfr_on_a_share_of_train_leaves_validation_alone(make_task):
    task = make_task()
    result = DFR(DFRConfig(n_models=2, held_out="train", share=0.5)).fit(task)
    assert not any("no longer independent" in note for note in result.notes)
    held = hold_out(task.train.patient, 0.5, np.random.default_rng(0))
    assert held.mean() == pytest.approx(0.5, abs=0.02)
    assert not set(task.train.patient[held]) & set(task.train.patient[~held])


def test_dfr_without_validation_rows_is_refused(make_task):
    task = make_task()
    nothing = np.zeros(0, int)
    none = Split(task.val.x, task.val.y[:0], {k: g.take(nothing) for k, g in task.val.groups.items()}, nothing, nothing)
    with pytest.raises(MethodError, match="held_out=train"):
        DFR(DFRConfig()).fit(make_task(val=none))


def test_dfr_says_which_cells_are_small_or_empty(make_task):
    task = make_task()
    rare = (task.val.groups["site"].codes == 0) & (task.val.y[:, 0] == 1)
    task.val.y[np.flatnonzero(rare)] = 0
    notes = DFR(DFRConfig(n_models=2)).fit(task).notes
    assert any("1 of 4 cells have no held-out row" in note for note in notes)
