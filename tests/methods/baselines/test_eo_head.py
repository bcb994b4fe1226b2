"""The penalty's value by hand, its gradient by finite differences, and what it does."""

from __future__ import annotations

import numpy as np
import pytest

from evenhand.config.methods import EOHeadConfig
from evenhand.errors import MethodError
from evenhand.methods.baselines.eo_head import EPS, EOHead, OddsPenalty

RNG = np.random.default_rng(2)
N = 60


def logit(p):
    return np.log(p / (1 - p))


def smooth(x):
    return np.sqrt(x**2 + EPS) - np.sqrt(EPS)


def test_opposite_gaps_do_not_cancel_by_hand():
    """TPR .9/.7 with FPR .1/.3: a signed sum would say 0."""
    z = logit(np.array([[0.9], [0.1], [0.7], [0.3]]))
    penalty = OddsPenalty(np.array([0, 0, 1, 1]), np.array([1, 0, 1, 0]), np.ones(4, bool), 2)
    assert penalty.gap(z) == pytest.approx(2 * smooth(0.2))


def test_worst_pair_and_mean_over_pairs_by_hand():
    tpr = np.array([0.9, 0.5, 0.6])
    z = logit(tpr)[:, None]
    arguments = (np.arange(3), np.ones(3, int), np.ones(3, bool), 3)
    assert OddsPenalty(*arguments, pairs="mean").gap(z) == pytest.approx(np.mean([smooth(0.4), smooth(0.3), smooth(0.1)]))
    worst = OddsPenalty(*arguments, pairs="max").gap(z)
    assert smooth(0.4) - 0.03 < worst <= smooth(0.4)  # tau log 3 below at most


@pytest.mark.parametrize("pairs", ["max", "mean"])
@pytest.mark.parametrize("n_classes", [1, 3])
def test_gradient_is_that_of_finite_differences(pairs, n_classes):
    groups, y = RNG.integers(-1, 3, N), RNG.integers(0, max(n_classes, 2), N)
    labelled = RNG.random(N) < 0.9
    penalty = OddsPenalty(groups, y, labelled, 4, n_classes, 1.7, pairs)  # the fourth group has no rows
    z = RNG.standard_normal((N, n_classes))
    _, slope = penalty(z)
    for row, column in [(0, 0), (5, n_classes - 1), (17, 0), (33, n_classes - 1)]:
        step = np.zeros_like(z)
        step[row, column] = 1e-5
        assert slope[row, column] == pytest.approx((penalty(z + step)[0] - penalty(z - step)[0]) / 2e-5, abs=1e-8)
    np.testing.assert_array_equal(slope[(groups < 0) | ~labelled], 0)


@pytest.mark.parametrize(("kind", "n_groups"), [("binary", 2), ("binary", 3), ("multilabel", 2), ("multiclass", 3)])
@pytest.mark.parametrize("pairs", ["max", "mean"])
def test_the_soft_gap_shrinks(make_task, kind, n_groups, pairs):
    result = EOHead(EOHeadConfig(strength=1.0, pairs=pairs)).fit(make_task(kind, n_groups))
    assert all(record["soft_gap"] < record["soft_gap_plain"] for record in result.history)
    assert result.history[0]["soft_gap"] < 0.5 * result.history[0]["soft_gap_plain"]


def test_strength_zero_is_the_plain_probe(make_task):
    from evenhand.config.methods import LinearProbeConfig
    from evenhand.methods.baselines.linear_probe import LinearProbe

    task = make_task()
    probe = LinearProbe(LinearProbeConfig()).fit(task)
    np.testing.assert_allclose(EOHead(EOHeadConfig(strength=0.0)).fit(task).predictor.weight, probe.predictor.weight, atol=1e-4)


def test_no_shared_rate_is_refused(make_task):
    task = make_task()
    g, y = task.train.groups["site"].codes, task.train.y[:, 0]
    y[(g == 0) & (y == 1)] = 0
    y[(g == 1) & (y == 0)] = 1
    with pytest.raises(MethodError, match="same label"):
        EOHead().fit(task)
