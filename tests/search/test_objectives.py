"""Objectives against other people's implementations, cases solved by hand, and models that have collapsed."""

from __future__ import annotations

import numpy as np
import pytest
from fairlearn.metrics import demographic_parity_difference, equalized_odds_difference
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from evenhand.config.search import OBJECTIVES
from evenhand.data.groups import Groups
from evenhand.errors import InputError, NonFiniteLossError
from evenhand.search.objectives import MAXIMISED, Scorer, worst_value


def groups(name, codes):
    codes = np.asarray(codes)
    return {name: Groups(name, tuple("abcdefg"[: codes.max() + 1]), codes.astype(np.int64))}


def case(seed, n=600, k=3):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4).astype(float)
    codes = rng.integers(0, k, n)
    score = 1 / (1 + np.exp(-(rng.standard_normal(n) + y * (0.5 + 0.6 * codes) - 0.5)))
    return y, codes, score


@pytest.mark.parametrize("seed", range(3))
def test_every_objective_is_that_of_other_libraries(seed):
    y, codes, score = case(seed)
    scorer = Scorer(y[:, None], groups("site", codes), np.arange(len(y)), "binary", tuple(OBJECTIVES), threshold="0.5")
    found = scorer(score[:, None]).values
    decision = (score >= 0.5).astype(int)
    parts = [codes == code for code in range(3)]
    aucs = np.array([roc_auc_score(y[part], score[part]) for part in parts])
    right = np.array([accuracy_score(y[part], decision[part]) for part in parts])
    expected = {
        "worst_auc": aucs.min(), "auc_gap": np.ptp(aucs), "worst_accuracy": right.min(), "accuracy_gap": np.ptp(right),
        "worst_loss": max(log_loss(y[part], score[part]) for part in parts), "auc": roc_auc_score(y, score),
        "accuracy": accuracy_score(y, decision), "utopia": np.sqrt(np.mean((1 - aucs) ** 2)),
        "equalized_odds": equalized_odds_difference(y, decision, sensitive_features=codes),
        "demographic_parity": demographic_parity_difference(y, decision, sensitive_features=codes),
    }
    assert found == pytest.approx(expected)
    assert set(found) == set(OBJECTIVES)


def test_of_several_attributes_the_worst_counts():
    y, codes, score = case(0)
    other = np.random.default_rng(9).integers(0, 2, len(y))
    both = groups("site", codes) | groups("sex", other)
    patient = np.arange(len(y))

    def values(chosen):
        return Scorer(y[:, None], chosen, patient, "binary", threshold="0.5")(score[:, None]).values

    one, two, together = values(groups("site", codes)), values(groups("sex", other)), values(both)
    for name in set(OBJECTIVES) - {"auc", "accuracy"}:
        worst = min if name in MAXIMISED else max
        assert together[name] == worst(one[name], two[name])


def test_labels_are_averaged_or_the_worst_is_taken_and_unlabelled_rows_are_left_out():
    y, codes, score = case(1)
    second, _, other = case(2)
    both, scores = np.stack([y, second], axis=1), np.stack([score, other], axis=1)
    both[:50, 1] = np.nan
    patient, by_site = np.arange(len(y)), groups("site", codes)
    first = Scorer(y[:, None], by_site, patient, "binary")(score[:, None]).values
    keep = np.arange(50, len(y))
    last = Scorer(second[keep, None], groups("site", codes[keep]), patient[keep], "binary")(other[keep, None]).values
    mean = Scorer(both, by_site, patient, "multilabel")(scores).values
    worst = Scorer(both, by_site, patient, "multilabel", over_labels="worst")(scores).values
    for name in OBJECTIVES:
        assert mean[name] == pytest.approx((first[name] + last[name]) / 2)
        assert worst[name] == (min if name in MAXIMISED else max)(first[name], last[name])


def test_multi_class_is_each_class_against_the_rest_by_the_most_probable_class():
    rng = np.random.default_rng(3)
    y, codes = rng.integers(0, 3, 600), rng.integers(0, 2, 600)
    logits = rng.standard_normal((600, 3)) + 1.2 * np.eye(3)[y] * (1 + codes[:, None])
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    y[:7] = -1
    found = Scorer(y, groups("sex", codes), np.arange(600), "multiclass", tuple(OBJECTIVES))(scores).values
    use = y >= 0
    decision = scores.argmax(axis=1)
    parts = [use & (codes == code) for code in (0, 1)]
    per_class = np.array([[roc_auc_score(y[part] == c, scores[part, c]) for part in parts] for c in range(3)])
    assert found["auc"] == pytest.approx(np.mean([roc_auc_score(y[use] == c, scores[use, c]) for c in range(3)]))
    assert found["worst_auc"] == pytest.approx(per_class.min(axis=1).mean())
    assert found["auc_gap"] == pytest.approx(np.ptp(per_class, axis=1).mean())
    right = [accuracy_score(y[part], decision[part]) for part in parts]
    assert found["worst_accuracy"] == pytest.approx(min(right))
    assert found["worst_loss"] == pytest.approx(max(log_loss(y[part], scores[part], labels=[0, 1, 2]) for part in parts))
    odds = [equalized_odds_difference(y[use] == c, decision[use] == c, sensitive_features=codes[use]) for c in range(3)]
    assert found["equalized_odds"] == pytest.approx(np.mean(odds))


def test_rows_are_pooled_and_not_averaged_over_batches():
    """A classifier of equal rates in both groups has no gap, whatever the order of the rows."""
    y = np.tile([0.0, 0.0, 1.0, 1.0], 50)
    score = np.tile([0.1, 0.9, 0.1, 0.9], 50)
    scorer = Scorer(y[:, None], groups("sex", np.repeat([0, 1], 100)), np.arange(200), "binary", threshold="0.5")
    assert scorer(score[:, None]).values["equalized_odds"] == 0


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (lambda y: np.full(len(y), 0.7), "AUC 0.500 is below 0.52"),
        (lambda y: 0.5 - 0.2 * y, "AUC 0.000 is below 0.52"),
        (lambda y: 0.8 + 0.1 * y, "one class is predicted for 100.0% of rows"),
        (lambda y: 0.1 + 0.1 * y, "one class is predicted for 100.0% of rows"),
    ],
)
def test_models_that_have_collapsed(score, said):
    y, codes, _ = case(0)
    scorer = Scorer(y[:, None], groups("site", codes), np.arange(len(y)), "binary", threshold="0.5")
    found = scorer(score(y)[:, None])
    assert found.collapsed == said
    assert found.constraint > 0
    assert scorer(case(0)[2][:, None]).constraint <= 0


@pytest.mark.parametrize(("found", "collapsed"), [(20, False), (11, False), (9, True), (0, True), (4000, True)])
def test_a_model_that_finds_a_rare_disease_has_not_collapsed(found, collapsed):
    """20 of 4,000 rows are ill: a model that is right decides alike for 99.5% of rows."""
    y = (np.arange(4000) % 200 == 0).astype(float)
    score = 0.1 + 0.3 * y
    score[np.flatnonzero(y)[: min(found, 20)]] = 0.9
    if found == 4000:
        score = 0.9 + 0.05 * y
    scorer = Scorer(y[:, None], groups("site", np.arange(4000) // 200 % 2), np.arange(4000), "binary", threshold="0.5")
    said = scorer(score[:, None])
    assert (said.collapsed != "") == collapsed == (said.constraint > 0)
    assert said.values["worst_auc"] == 1.0
    both = Scorer(np.stack([y, y], axis=1), groups("site", np.arange(4000) // 200 % 2), np.arange(4000), "multilabel", threshold="0.5")
    assert (both(np.stack([score, 0.1 + 0.8 * y], axis=1)).collapsed) == "", "one label that is told apart is enough"
    classes = np.where(y == 1, 1, 0)
    three = np.stack([1 - score, score, np.zeros_like(score)], axis=1)
    judge = Scorer(classes, groups("site", np.arange(4000) // 200 % 2), np.arange(4000), "multiclass", labels=("a", "b", "c"))
    assert (judge(three).collapsed != "") == collapsed


def test_a_threshold_chosen_on_the_rows_does_not_call_a_shifted_model_collapsed():
    y, codes, score = case(0)
    by_site = groups("site", codes)
    assert Scorer(y[:, None], by_site, np.arange(len(y)), "binary")(0.9 + score[:, None] / 20).collapsed == ""
    assert Scorer(y[:, None], by_site, np.arange(len(y)), "binary", threshold="0.5")(0.9 + score[:, None] / 20).collapsed != ""


def test_groups_that_are_too_small_are_left_out_and_named():
    y, codes, score = case(0, k=3)
    codes = np.where(np.arange(len(y)) < 6, 2, codes % 2)
    scorer = Scorer(y[:, None], groups("site", codes), np.arange(len(y)), "binary", ("worst_auc",), labels=("ill",))
    two = Scorer(y[6:, None], groups("site", codes[6:]), np.arange(len(y) - 6), "binary")
    assert scorer(score[:, None]).values["worst_auc"] == two(score[6:, None]).values["worst_auc"]
    assert "auc of ill by site: c left out of the objective" in scorer.notes()


def test_a_patient_with_many_images_is_one_patient():
    y, codes, _ = case(0)
    with pytest.raises(InputError, match="needs two groups of at least 10 patients of each class among the validation rows"):
        Scorer(y[:, None], groups("site", codes), np.zeros(len(y)), "binary", ("worst_auc",))


def test_what_cannot_be_estimated_is_refused_with_the_counts():
    y, codes, _ = case(0)
    patient = np.arange(len(y))
    with pytest.raises(InputError, match=r"objective=auc_gap needs two groups .* \(site: a 600 validation rows\)"):
        Scorer(y[:, None], groups("site", codes * 0), patient, "binary", ("auc_gap",))
    with pytest.raises(InputError, match="objective=auc needs validation rows of both classes"):
        Scorer(y[:, None] * 0, groups("site", codes), patient, "binary", ("auc",))
    with pytest.raises(InputError, match="no attribute was chosen"):
        Scorer(y[:, None], {}, patient, "binary", ("worst_auc",))
    with pytest.raises(InputError, match="objective=accuracy: no validation row has a label"):
        Scorer(y[:, None] * np.nan, groups("site", codes), patient, "binary", ("accuracy",))


def test_predictions_that_are_not_finite_are_an_error_and_no_score():
    y, codes, score = case(0)
    with pytest.raises(NonFiniteLossError, match="1 validation predictions are NaN"):
        Scorer(y[:, None], groups("site", codes), np.arange(len(y)), "binary")(np.where(np.arange(600) == 5, np.nan, score)[:, None])


def test_no_value_is_worse_than_the_worst():
    y, codes, _ = case(0)
    scorer = Scorer(y[:, None], groups("site", codes), np.arange(len(y)), "binary", threshold="0.5")
    bad = scorer((1 - y)[:, None]).values
    for name in OBJECTIVES:
        assert bad[name] >= worst_value(name) - 1e-9 if name in MAXIMISED else bad[name] <= worst_value(name) + 1e-9
    assert bad["worst_loss"] == pytest.approx(worst_value("worst_loss"))
