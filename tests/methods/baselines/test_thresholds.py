"""The stored rules against fairlearn's own predictions, and what happens where groups are missing."""

from __future__ import annotations

import numpy as np
import pytest
from fairlearn.metrics import equalized_odds_difference
from fairlearn.postprocessing import ThresholdOptimizer

from evenhand.config.methods import ThresholdsConfig
from evenhand.data.groups import Groups
from evenhand.errors import InputError, MethodError
from evenhand.methods.baselines.thresholds import Thresholds, _GivenScores, best_threshold, fit_rule
from evenhand.methods.predictors import uniform_by_content

RNG = np.random.default_rng(8)
N = 600
CODES = RNG.integers(0, 3, N)
Y = (RNG.random(N) < np.array([0.3, 0.5, 0.4])[CODES]).astype(np.int64)
SCORES = 1 / (1 + np.exp(-(RNG.standard_normal(N) + (Y - 0.5) * np.array([3.0, 1.0, 2.0])[CODES] + CODES * 0.5)))
GROUPS = Groups("site", ("a", "b", "c"), CODES)


@pytest.mark.parametrize("constraint", ["equalized_odds", "true_positive_rate_parity", "false_positive_rate_parity", "demographic_parity"])
@pytest.mark.parametrize("objective", ["accuracy_score", "balanced_accuracy_score"])
def test_probabilities_are_those_of_fairlearn(constraint, objective):
    rule, incomplete = fit_rule(SCORES, Y, GROUPS, constraint, objective)
    peer = ThresholdOptimizer(estimator=_GivenScores(), constraints=constraint, objective=objective, prefit=True, predict_method="predict")
    peer.fit(SCORES[:, None], Y, sensitive_features=CODES)
    theirs = peer._pmf_predict(SCORES[:, None], sensitive_features=CODES)[:, 1]
    np.testing.assert_allclose(rule.probability(SCORES, GROUPS.names()), theirs, atol=1e-12)
    assert incomplete == []


def test_equalized_odds_hold_on_the_validation_rows():
    rule, _ = fit_rule(SCORES, Y, GROUPS, "equalized_odds", "balanced_accuracy_score")
    p = rule.probability(SCORES, GROUPS.names())
    for label in (0, 1):
        rates = [p[(g == CODES) & (label == Y)].mean() for g in range(3)]
        assert np.ptp(rates) < 1e-9
    gaps = [equalized_odds_difference(Y, u < p, sensitive_features=CODES) for u in RNG.random((5, N))]
    one_for_all = best_threshold(SCORES, Y, "balanced_accuracy_score") <= SCORES
    assert np.mean(gaps) < equalized_odds_difference(Y, one_for_all, sensitive_features=CODES)


@pytest.mark.parametrize("objective", ["accuracy_score", "balanced_accuracy_score"])
def test_overall_threshold_is_the_best_of_all(objective):
    scores, y = np.round(SCORES[:40], 1), Y[:40]

    def value(t):
        hit, false = (scores[y == 1] >= t), (scores[y == 0] >= t)
        return hit.mean() - false.mean() if objective == "balanced_accuracy_score" else (hit.sum() - false.sum()) / 40

    best = max(value(t) for t in np.linspace(-0.05, 1.05, 23))
    assert value(best_threshold(scores, y, objective)) == pytest.approx(best)


def test_threshold_without_both_classes_is_a_half():
    assert best_threshold(SCORES, np.ones(N, np.int64), "accuracy_score") == 0.5


def test_draws_depend_on_seed_and_content_not_on_order():
    x = RNG.standard_normal((500, 4)).astype(np.float32)
    draws = uniform_by_content(x, 1, "ill")
    order = RNG.permutation(500)
    np.testing.assert_array_equal(uniform_by_content(x[order], 1, "ill"), draws[order])
    assert np.abs(np.sort(draws) - (np.arange(500) + 0.5) / 500).max() < 0.08  # uniform (Kolmogorov, p about 0.003)
    assert not np.array_equal(uniform_by_content(x, 2, "ill"), draws)
    assert not np.array_equal(uniform_by_content(x, 1, "other"), draws)


def test_missing_and_unseen_groups_use_the_overall_threshold(make_task, make_split):
    task = make_task("binary", 2)
    result = Thresholds(ThresholdsConfig()).fit(task)
    test = make_split("binary", 4, 200, 9)
    scores, decisions = result.predict(test.x, test.groups)
    outside = (test.groups["site"].codes < 0) | (test.groups["site"].codes > 1)
    overall = result.predictor.rules[0].overall
    np.testing.assert_array_equal(decisions[outside, 0], scores[outside, 0] >= overall)
    assert any("overall threshold" in note for note in result.notes)


def test_attribute_is_needed_at_use(make_task):
    task = make_task()
    result = Thresholds().fit(task)
    assert result.predictor.needs_groups
    with pytest.raises(InputError, match="'site' at use"):
        result.predict(task.val.x)


def test_group_without_positives_falls_back_and_is_named(make_task):
    task = make_task("binary", 3)
    task.val.y[(task.val.groups["site"].codes == 1)] = 0
    result = Thresholds().fit(task)
    assert set(result.predictor.rules[0].groups) == {"a", "c"}
    assert any("without both classes" in note and note.endswith("b") for note in result.notes)


def test_one_complete_group_is_refused(make_task):
    task = make_task("binary", 2)
    task.val.y[(task.val.groups["site"].codes == 1)] = 0
    with pytest.raises(MethodError, match="fewer than two groups"):
        Thresholds().fit(task)
