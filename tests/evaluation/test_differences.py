"""Every claim of docs/guide/agreement.md about where libraries differ and what we chose."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import fairlearn.metrics as fm
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk
import torch
from scipy import stats
from torchmetrics.functional import classification as tm

from evenhand.config.schema import AuditConfig
from evenhand.evaluation import evaluate
from evenhand.metrics import auc, average_precision, expected_calibration_error, percentile_interval, rates

TABLE = Path(__file__).parents[2] / "docs" / "guide" / "agreement.md"
POINTS = AuditConfig(threshold="0.5", bootstrap=0, permutations=0, min_patients=2)


def attribute_of(frame: pd.DataFrame, config: AuditConfig = POINTS, attribute: str = "g") -> dict[str, Any]:
    data = evaluate(frame, labels=["label"], attributes=[attribute], config=config).to_json()
    found: dict[str, Any] = data["labels"]["label"]["attributes"][attribute]
    return found


@pytest.fixture
def no_cases_in_b() -> pd.DataFrame:
    """Group b has no positive row."""
    y = [0, 1] * 20 + [0] * 20
    s = [0.2, 0.8, 0.6, 0.4] * 10 + [0.1, 0.7] * 10
    return pd.DataFrame({"y_true": y, "y_score": s, "g": ["a"] * 40 + ["b"] * 20})


def test_empty_group_is_0_elsewhere_and_not_estimable_here(no_cases_in_b: pd.DataFrame) -> None:
    frame = no_cases_in_b
    d = (frame["y_score"] >= 0.5).astype(int)
    theirs = fm.MetricFrame(metrics=fm.true_positive_rate, y_true=frame["y_true"], y_pred=d, sensitive_features=frame["g"])
    assert theirs.by_group["b"] == 0
    assert fm.equal_opportunity_difference(frame["y_true"], d, sensitive_features=frame["g"]) == 0.5
    ratio = tm.binary_fairness(
        torch.tensor(d.tolist()), torch.tensor(frame["y_true"].tolist()), torch.tensor([0] * 40 + [1] * 20), task="equal_opportunity"
    )
    assert list(ratio.values()) == [0]
    found = attribute_of(frame)
    assert found["groups"]["b"]["tpr"]["value"] is None
    assert "0 patients" in found["groups"]["b"]["tpr"]["reason"]
    assert found["gaps"]["tpr"]["value"] is None
    assert found["gaps"]["equal_opportunity"]["value"] is None


def test_one_class_auc_is_0_half_or_nan_elsewhere() -> None:
    with pytest.warns(UserWarning, match="Only one class"):
        assert np.isnan(sk.roc_auc_score([1, 1], [0.2, 0.3]))
    with pytest.warns(UserWarning, match="No negative samples"):
        assert tm.binary_auroc(torch.tensor([0.2, 0.3]), torch.tensor([1, 1])) == 0
    assert np.isnan(auc([1, 1], [0.2, 0.3]))


def test_zero_division_is_0_with_a_warning_in_scikit_learn() -> None:
    with pytest.warns(UserWarning, match="ill-defined"):
        assert sk.precision_score([1, 0], [0, 0]) == 0
    assert np.isnan(rates([1, 0], [0.1, 0.1], [0, 0])["ppv"])
    with pytest.warns(UserWarning, match="ill-defined"):
        assert sk.f1_score([0, 0], [0, 0]) == 0
    assert np.isnan(rates([0, 0], [0.1, 0.1], [0, 0])["f1"])


def test_balanced_accuracy_of_one_class_is_its_recall_in_scikit_learn() -> None:
    with pytest.warns(UserWarning, match="not in y_true"):
        assert sk.balanced_accuracy_score([1, 1, 1, 1], [1, 0, 1, 1]) == 0.75
    assert np.isnan(rates([1, 1, 1, 1], [0.9, 0.1, 0.9, 0.9], [1, 0, 1, 1])["balanced_accuracy"])


def test_average_precision_without_cases_is_0_elsewhere() -> None:
    with pytest.warns(UserWarning, match="No positive class"):
        assert sk.average_precision_score([0, 0], [0.2, 0.3]) == 0
    assert np.isnan(average_precision([0, 0], [0.2, 0.3]))


def test_a_score_at_the_threshold_is_positive_here_and_not_in_torchmetrics() -> None:
    y, s = [1, 1, 0, 0] * 10, [0.5, 0.9, 0.1, 0.2] * 10
    assert tm.binary_recall(torch.tensor(s), torch.tensor(y), threshold=0.5) == 0.5
    frame = pd.DataFrame({"y_true": y, "y_score": s, "g": ["a", "a", "b", "a"] * 10})
    assert evaluate(frame, labels=["label"], attributes=["g"], config=POINTS).to_json()["labels"]["label"]["overall"]["tpr"]["value"] == 1


def test_scores_outside_0_and_1_are_taken_for_logits_by_torchmetrics() -> None:
    """One score above 1 and every score, probabilities included, goes through a sigmoid there."""
    s, y = torch.tensor([0.3, 0.2, 1.5]), torch.tensor([0, 0, 1])
    assert tm.binary_specificity(s, y) == 0
    assert tm.binary_specificity(torch.tensor([0.3, 0.2, 1.0]), y) == 1


def test_ece_has_15_bins_in_torchmetrics_unless_told() -> None:
    rng = np.random.default_rng(0)
    s = torch.tensor(rng.random(500))
    y = torch.tensor((rng.random(500) < s.numpy() ** 2).astype(int))
    assert tm.binary_calibration_error(s, y) == tm.binary_calibration_error(s, y, n_bins=15)
    ten = float(tm.binary_calibration_error(s, y, n_bins=10))
    assert tm.binary_calibration_error(s, y) != ten
    assert expected_calibration_error(y.numpy(), s.numpy()) == pytest.approx(ten, abs=1e-6)
    assert expected_calibration_error(y.numpy(), s.numpy(), corrected=True) < ten


def test_log_loss_of_a_certain_and_wrong_score_depends_on_the_cut() -> None:
    assert sk.log_loss([1, 0], [0.0, 0.5], labels=[0, 1]) == pytest.approx((-np.log(2.0**-52) + np.log(2)) / 2)
    assert rates([1, 0], [0.0, 0.5], [0, 1])["log_loss"] == pytest.approx((-np.log(1e-15) + np.log(2)) / 2)


def test_precision_recall_area_by_steps_and_by_trapezoids_differ() -> None:
    y, s = [1, 0, 1, 0, 1], [0.9, 0.8, 0.7, 0.6, 0.5]
    precision, recall, _ = sk.precision_recall_curve(y, s)
    assert sk.average_precision_score(y, s) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert sk.auc(recall, precision) != pytest.approx(sk.average_precision_score(y, s))
    assert average_precision(y, s) == pytest.approx(sk.average_precision_score(y, s), abs=1e-9)


def test_multi_class_auc_one_vs_one_and_weighted_differ_from_macro() -> None:
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], [60, 30, 10])
    s = rng.dirichlet(np.ones(3), 100)
    macro, weighted = (sk.roc_auc_score(y, s, multi_class="ovr", average=kind) for kind in ("macro", "weighted"))
    one_vs_one = sk.roc_auc_score(y, s, multi_class="ovo")
    assert len({round(float(value), 6) for value in (macro, weighted, one_vs_one)}) == 3
    assert macro == pytest.approx(np.mean([auc(y == k, s[:, k]) for k in range(3)]), abs=1e-9)


def test_ratios_of_negative_numbers_are_above_1_in_fairlearn() -> None:
    def negative(y: Any, d: Any) -> float:
        return -1.0 if len(y) == 4 else -2.0

    frame = fm.MetricFrame(metrics=negative, y_true=[0] * 6, y_pred=[0] * 6, sensitive_features=list("aaaabb"))
    assert frame.ratio() == 2
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    scores = pd.DataFrame({"y_true": y, "y_score": 0.6 + 0.3 * y * rng.random(200) + 0.1 * rng.random(200), "g": np.arange(200) % 2})
    gaps = attribute_of(scores)["gaps"]
    assert gaps["calibration_intercept"]["value"] > 0
    assert gaps["calibration_intercept"]["ratio"] is None


def test_parity_ratio_without_any_positive_decision_is_not_a_number_there_and_a_reason_here() -> None:
    y, s, g = [0, 1, 0, 1] * 10, [0.1, 0.2, 0.3, 0.4] * 10, ["a", "a", "b", "b"] * 10
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.isnan(fm.demographic_parity_ratio(y, [0] * 40, sensitive_features=g))
    found = attribute_of(pd.DataFrame({"y_true": y, "y_score": s, "g": g}))["gaps"]["demographic_parity_ratio"]
    assert found["value"] is None
    assert "no group has a positive decision" in found["reason"]


def test_a_group_of_two_is_in_a_metric_frames_gap_and_not_in_ours() -> None:
    y = [0, 1] * 40 + [0, 1]
    s = [0.2, 0.8] * 40 + [0.9, 0.1]
    frame = pd.DataFrame({"y_true": y, "y_score": s, "g": ["a", "a", "b", "b"] * 20 + ["c", "c"]})
    assert fm.equalized_odds_difference(y, (frame["y_score"] >= 0.5).astype(int), sensitive_features=frame["g"]) == 1
    found = attribute_of(frame, AuditConfig(threshold="0.5", bootstrap=0, permutations=0))
    assert found["gaps"]["equalized_odds"]["value"] == 0
    assert [item["group"] for item in found["gaps"]["equalized_odds"]["excluded"]] == ["c"]


def test_a_missing_attribute_is_refused_by_fairlearn_and_a_row_of_its_own_here() -> None:
    y, s, g = [0, 1, 0, 1] * 10, [0.1, 0.7, 0.3, 0.9] * 10, ["a", "b", None, "b"] * 10
    with pytest.raises(ValueError, match="missing values"):
        fm.MetricFrame(metrics=fm.selection_rate, y_true=y, y_pred=y, sensitive_features=g)
    found = attribute_of(pd.DataFrame({"y_true": y, "y_score": s, "g": g}))
    assert found["n_missing"] == 10
    assert found["groups"]["(missing)"]["n"] == 10
    assert found["gaps"]["positive_rate"]["groups"] == ["a", "b"]


def test_no_gap_at_all_is_outside_the_percentile_interval_of_a_difference() -> None:
    """Five groups with one true rate: fairlearn's bootstrap interval of the largest difference lies above 0, ours reaches it."""
    rng = np.random.default_rng(2)
    y, g = np.ones(400, int), np.arange(400) % 5
    d = (rng.random(400) < 0.7).astype(int)
    theirs = fm.MetricFrame(
        metrics=fm.selection_rate, y_true=y, y_pred=d, sensitive_features=g, n_boot=100, ci_quantiles=[0.025, 0.975], random_state=0
    )
    assert theirs.difference_ci()[0] > 0
    frame = pd.DataFrame({"y_true": np.arange(400) % 2, "y_score": d.astype(float), "g": g.astype(str)})
    found = attribute_of(frame, AuditConfig(threshold="0.5", bootstrap=100, permutations=199))["gaps"]["positive_rate"]
    assert found["lower"] == 0
    assert found["p"] > 0.05


def test_resampling_rows_is_narrower_than_resampling_patients() -> None:
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(60), 8)
    right = np.repeat(rng.random(60) < 0.7, 8).astype(int)
    theirs = fm.MetricFrame(
        metrics=fm.selection_rate,
        y_true=right,
        y_pred=right,
        sensitive_features=patient % 2,
        n_boot=100,
        ci_quantiles=[0.025, 0.975],
        random_state=0,
    )
    frame = pd.DataFrame({"y_true": np.arange(480) // 8 % 4 > 1, "y_score": right * 1.0, "patient_id": patient, "g": patient % 2})
    frame["y_true"] = frame["y_true"].astype(int)
    config = AuditConfig(threshold="0.5", bootstrap=200, permutations=0, interval="percentile")
    ours = attribute_of(frame.astype({"g": str}), config)["groups"]["0"]["positive_rate"]
    low, high = (float(side[0]) for side in theirs.by_group_ci)
    assert ours["upper"] - ours["lower"] > 2 * (high - low)


def test_a_small_group_vanishes_from_unstratified_replicates() -> None:
    """Rows drawn from all rows: a group of two is absent from about one replicate in seven, and never from ours."""
    from evenhand.metrics import draw_weights

    strata = np.array([0] * 98 + [1] * 2)
    rng = np.random.default_rng(0)
    together, within = draw_weights(strata * 0, 2000, rng), draw_weights(strata, 2000, rng)
    assert (together[strata == 1].sum(axis=0) == 0).mean() == pytest.approx(np.exp(-2), abs=0.03)
    assert (within[strata == 1].sum(axis=0) == 2).all()


def test_quantiles_interpolate_between_replicates() -> None:
    """NumPy's default (type 7), as in fairlearn and SciPy's percentile bootstrap."""
    replicates = np.random.default_rng(0).random(101)
    low, high, _ = percentile_interval(replicates, 0.9)
    assert (low, high) == pytest.approx(tuple(np.quantile(replicates, [0.05, 0.95], method="linear")))
    nearest = np.quantile(replicates[:100], [0.05, 0.95], method="inverted_cdf")
    assert percentile_interval(replicates[:100], 0.9)[:2] != pytest.approx(tuple(nearest))


def test_permutation_p_values_are_never_0_here_as_in_scipy() -> None:
    from evenhand.metrics import p_value

    assert p_value(9.0, np.zeros(99)) == 0.01
    theirs = stats.permutation_test(
        (np.arange(20.0), np.arange(20.0) + 100), lambda a, b: b.mean() - a.mean(), n_resamples=99, alternative="greater", rng=0
    )
    assert theirs.pvalue == pytest.approx(0.01)


def test_every_row_of_the_table_names_a_test_that_exists() -> None:
    source = Path(__file__).read_text()
    named = [line.split("`")[-2] for line in TABLE.read_text().splitlines() if line.startswith("|") and "`test_" in line]
    assert len(named) >= 15
    assert [name for name in named if f"def {name}(" not in source] == []
