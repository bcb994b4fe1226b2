"""The L2 strength that is chosen on validation rows where the user gives none."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.preprocessing import StandardScaler

from evenhand.config.methods import LinearProbeConfig
from evenhand.methods.baselines.linear_probe import LinearProbe
from evenhand.methods.fitting import HeadSpec, fit_head
from evenhand.methods.regularisation import FALL_BACK, GRID, choose_l2, log_loss


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
def test_the_validation_loss_is_scikit_learns(make_task, kind):
    task = make_task(kind, 2)
    head = fit_head(task.train.x.features, task.train.y, HeadSpec(kind, task.labels, task.classes, l2=0.1))
    own = log_loss(head, task.val.x.features, task.val.y, kind)
    logits = task.val.x.features.astype(float) @ head.weight.T + head.bias
    if kind == "multiclass":
        e = np.exp(logits - logits.max(axis=1, keepdims=True))
        known = task.val.y >= 0
        expected = sklearn_log_loss(task.val.y[known], (e / e.sum(axis=1, keepdims=True))[known], labels=range(len(task.classes)))
    else:
        p = 1 / (1 + np.exp(-logits))
        y = task.val.y.reshape(len(p), -1)
        seen = [~np.isnan(y[:, j]) for j in range(y.shape[1])]
        expected = np.mean([sklearn_log_loss(y[seen[j], j], p[seen[j], j], labels=[0, 1]) for j in range(y.shape[1])])
    assert own == pytest.approx(expected, rel=1e-9)


def test_the_chosen_strength_has_the_lowest_validation_loss_of_the_grid_it_walked(make_task):
    task = make_task("binary", 2)
    chosen, said = choose_l2(task, HeadSpec("binary", task.labels))
    scaler = StandardScaler().fit(task.train.x.features)
    train, val = scaler.transform(task.train.x.features), scaler.transform(task.val.x.features)
    y, y_val = task.train.y[:, 0], task.val.y[:, 0]
    known = ~np.isnan(y)
    losses = {}
    for strength in GRID:
        model = LogisticRegression(C=1 / (strength * known.sum()), max_iter=5000, tol=1e-8).fit(train[known], y[known])
        seen = ~np.isnan(y_val)
        losses[strength] = sklearn_log_loss(y_val[seen], model.predict_proba(val[seen])[:, 1])
    falling = list(losses)
    walked = falling[: falling.index(chosen) + 3]
    assert chosen == min(walked, key=losses.__getitem__)
    assert f"{chosen:g}" in said
    assert f"{len(y_val)} validation rows" in said


def test_features_without_signal_get_a_strong_penalty(make_task):
    task = make_task("binary", 2)
    noise = np.random.default_rng(0)
    blank = replace(
        task,
        embed=lambda images: noise.normal(size=(len(images), 200)).astype(np.float32),
    )
    assert choose_l2(blank, HeadSpec("binary", task.labels))[0] >= 1.0


def test_too_few_validation_rows_choose_nothing_and_it_is_said(make_task):
    task = make_task("binary", 2)
    empty = replace(task, val=replace(task.val, index=task.val.index[:3]))
    chosen, said = choose_l2(empty, HeadSpec("binary", task.labels))
    assert chosen == FALL_BACK
    assert "too few" in said


def test_a_given_strength_is_taken_and_a_chosen_one_is_noted(make_task):
    task = make_task("binary", 2)
    given = LinearProbe(LinearProbeConfig(l2=0.5)).fit(task)
    assert given.history[0]["l2"] == 0.5
    assert not any("L2 strength" in note for note in given.notes)
    chosen = LinearProbe(LinearProbeConfig()).fit(task)
    assert any("chosen by log loss" in note for note in chosen.notes)
