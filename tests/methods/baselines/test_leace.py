"""After erasure a fresh linear probe of the attribute does no better than a constant."""

from __future__ import annotations

import numpy as np
import pytest

from evenhand.config.methods import LEACEConfig
from evenhand.methods.baselines.leace import LEACE, erase, fit_eraser
from evenhand.methods.fitting import HeadSpec, fit_head


def attribute_loss(x, groups, n_groups):
    """Training loss of a fresh, unpenalised softmax probe of the group, and that of the constant predictor."""
    known = groups >= 0
    spec = HeadSpec("multiclass", ("group",), tuple(map(str, range(n_groups))), l2=0.0)
    fitted = fit_head(x[known], groups[known], spec).history[0]["objective"]
    share = np.bincount(groups[known]) / known.sum()
    return fitted, -float(share @ np.log(share))


@pytest.mark.parametrize("n_groups", [2, 3])
def test_a_fresh_probe_reads_nothing(make_task, n_groups):
    train = make_task("binary", n_groups).train
    x, groups = train.x.features * 3 + 10, train.groups["site"].codes
    before, constant = attribute_loss(x, groups, n_groups)
    assert before < constant - 0.1
    after, constant = attribute_loss(erase(x, *fit_eraser(x, groups, n_groups)), groups, n_groups)
    assert after == pytest.approx(constant, abs=1e-6)


def test_means_stay_and_the_rank_is_small(make_task):
    train = make_task("binary", 3).train
    x, groups = train.x.features, train.groups["site"].codes
    matrix, shift = fit_eraser(x, groups, 3)
    known = groups >= 0
    np.testing.assert_allclose((x[known] @ matrix.T + shift).mean(axis=0), x[known].mean(axis=0), atol=1e-5)
    assert np.linalg.matrix_rank(np.eye(x.shape[1]) - matrix, tol=1e-8) == 2
    np.testing.assert_allclose(matrix @ matrix, matrix, atol=1e-8)  # a projection


def test_given_label_erases_within_labels_and_keeps_what_the_label_explains(make_task):
    train = make_task("binary", 2, 2000).train
    y, groups = np.nan_to_num(train.y[:, 0]).astype(int), train.groups["site"].codes.copy()
    groups[y == 1] = np.where(np.arange((y == 1).sum()) % 10 == 0, groups[y == 1], 1)  # the label predicts the group
    groups[train.groups["site"].codes < 0] = -1
    x = train.x.features
    used = groups >= 0
    rows = erase(x, *fit_eraser(x, groups, 2, y))[used].astype(float)
    z = np.eye(2)[groups[used]]
    within = np.zeros((x.shape[1], 2))
    for label in (0, 1):
        own = y[used] == label
        within += (rows[own] - rows[own].mean(axis=0)).T @ (z[own] - z[own].mean(axis=0))
    assert np.abs(within / used.sum()).max() < 1e-6
    total = (rows - rows.mean(axis=0)).T @ (z - z.mean(axis=0)) / used.sum()
    assert np.abs(total).max() > 0.02


def test_the_map_on_raw_embeddings_is_erase_then_probe(make_task):
    task = make_task("binary", 3)
    x, groups = task.train.x.features, task.train.groups["site"].codes
    result = LEACE(LEACEConfig(l2=1e-3)).fit(task)
    erased = erase(x, *fit_eraser(x, groups, 3))
    probe = fit_head(erased, task.train.y, HeadSpec("binary", ("ill",)))
    by_steps = 1 / (1 + np.exp(-(erased @ probe.weight.T + probe.bias)))
    np.testing.assert_allclose(result.predict(task.train.x)[0], by_steps, atol=1e-6)


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
def test_given_label_runs_for_every_kind(make_task, kind):
    scores, _ = LEACE(LEACEConfig(given_label=True)).fit(make_task(kind, 3)).predict(make_task(kind, 3).val.x)
    assert np.isfinite(scores).all()
