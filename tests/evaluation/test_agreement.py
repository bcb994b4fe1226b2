"""Gaps and averages of an audit against fairlearn, torchmetrics and scikit-learn on the same decisions."""

from __future__ import annotations

from typing import Any

import fairlearn.metrics as fm
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk
import torch
from torchmetrics.functional.classification import binary_fairness, binary_groups_stat_rates

from evenhand.config.schema import AuditConfig
from evenhand.evaluation import AuditResult, evaluate

EXACT = {"abs": 1e-9, "rel": 0}
POINTS = AuditConfig(threshold="0.5", bootstrap=0, permutations=0, min_patients=2)


def predictions(n: int, groups: int, levels: int, prevalence: float, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    g = rng.integers(0, groups, n)
    y = (rng.random(n) < prevalence).astype(int)
    for group in range(groups):
        y[np.flatnonzero(g == group)[:4]] = (0, 1, 0, 1)
    s = np.round(levels / (1 + np.exp(-(rng.normal(size=n) + 1.3 * y - 0.3 * g)))) / levels
    return pd.DataFrame({"y_true": y, "y_score": s, "y_pred": (s >= 0.5).astype(int), "g": [f"g{k}" for k in g]})


CASES = {
    "two groups, ties": predictions(200, 2, 7, 0.5, 0),
    "five groups": predictions(900, 5, 10**6, 0.3, 1),
    "rare": predictions(700, 3, 100, 0.06, 2),
    "small": predictions(30, 2, 10, 0.5, 3),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def frame(request: pytest.FixtureRequest) -> pd.DataFrame:
    case: pd.DataFrame = request.param
    return case


def audited(frame: pd.DataFrame, **options: Any) -> AuditResult:
    return evaluate(frame, labels=["label"], attributes=["g"], config=POINTS, **options)


def gaps_of(result: AuditResult, attribute: str = "g") -> dict[str, Any]:
    found: dict[str, Any] = result.to_json()["labels"]["label"]["attributes"][attribute]["gaps"]
    return found


def test_named_gaps_are_fairlearns(frame: pd.DataFrame) -> None:
    found = gaps_of(audited(frame))
    arguments: dict[str, Any] = {"y_true": frame["y_true"], "y_pred": frame["y_pred"], "sensitive_features": frame["g"]}
    expected = {
        "equalized_odds": fm.equalized_odds_difference(**arguments),
        "equalized_odds_mean": fm.equalized_odds_difference(**arguments, agg="mean"),
        "equal_opportunity": fm.equal_opportunity_difference(**arguments),
        "demographic_parity": fm.demographic_parity_difference(**arguments),
        "demographic_parity_ratio": fm.demographic_parity_ratio(**arguments),
    }
    assert {name: found[name]["value"] for name in expected} == pytest.approx(expected, **EXACT)


def test_every_gap_is_a_metric_frames_difference_and_ratio(frame: pd.DataFrame) -> None:
    found = gaps_of(audited(frame))
    metrics = {
        "tpr": fm.true_positive_rate,
        "fpr": fm.false_positive_rate,
        "accuracy": sk.accuracy_score,
        "balanced_accuracy": sk.balanced_accuracy_score,
        "positive_rate": fm.selection_rate,
    }
    decided = fm.MetricFrame(metrics=metrics, y_true=frame["y_true"], y_pred=frame["y_pred"], sensitive_features=frame["g"])
    scored = fm.MetricFrame(
        metrics={"auc": sk.roc_auc_score, "brier": sk.brier_score_loss},
        y_true=frame["y_true"],
        y_pred=frame["y_score"],
        sensitive_features=frame["g"],
    )
    for other in (decided, scored):
        for name, difference in other.difference().items():
            assert found[name]["value"] == pytest.approx(difference, **EXACT)
            assert [other.by_group[name][group] for group in found[name]["groups"]] == pytest.approx(
                [other.group_min()[name], other.group_max()[name]], **EXACT
            )
            if other.group_max()[name] > 0:
                assert found[name]["ratio"] == pytest.approx(other.ratio()[name], **EXACT)


def test_joint_groups_are_fairlearns_intersections() -> None:
    frame = predictions(800, 2, 50, 0.4, 4).assign(h=np.arange(800) // 7 % 3)
    result = evaluate(frame, labels=["label"], attributes=["g*h"], config=POINTS)
    other = fm.MetricFrame(
        metrics=fm.true_positive_rate, y_true=frame["y_true"], y_pred=frame["y_pred"], sensitive_features=frame[["g", "h"]].astype(str)
    )
    groups = result.to_json()["labels"]["label"]["attributes"]["g*h"]["groups"]
    assert {tuple(key.split("*")): row["tpr"]["value"] for key, row in groups.items()} == pytest.approx(other.by_group.to_dict(), **EXACT)


def test_group_rates_and_parity_ratio_are_torchmetrics(frame: pd.DataFrame) -> None:
    result = audited(frame)
    names, codes = np.unique(frame["g"], return_inverse=True)
    truth, decision = (torch.tensor(frame[name].tolist()) for name in ("y_true", "y_pred"))
    shares = binary_groups_stat_rates(decision, truth, torch.as_tensor(codes), len(names))
    groups = result.to_json()["labels"]["label"]["attributes"]["g"]["groups"]
    for code, name in enumerate(names):
        tp, fp, tn, fn = shares[f"group_{code}"].tolist()
        row = groups[name]
        assert row["tpr"]["value"] == pytest.approx(tp / (tp + fn), abs=1e-6)
        assert row["fpr"]["value"] == pytest.approx(fp / (fp + tn), abs=1e-6)
        assert row["accuracy"]["value"] == pytest.approx(tp + tn, abs=1e-6)
    parity = binary_fairness(decision.double(), truth, torch.as_tensor(codes), task="all")
    found = gaps_of(result)
    (ratio,) = (float(value) for name, value in parity.items() if name.startswith("DP"))
    assert found["demographic_parity_ratio"]["value"] == pytest.approx(ratio, abs=1e-6)
    (opportunity,) = (float(value) for name, value in parity.items() if name.startswith("EO"))
    assert found["tpr"]["ratio"] == pytest.approx(opportunity, abs=1e-6)


def test_classes_and_their_average_are_scikit_learns() -> None:
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 3, 400)
    score = rng.dirichlet(np.ones(3), 400) * 0.5 + 0.5 * np.eye(3)[truth] * rng.random((400, 1))
    score /= score.sum(axis=1, keepdims=True)
    classes = ["a", "b", "c"]
    columns = {f"y_score_{name}": score[:, k] for k, name in enumerate(classes)}
    frame = pd.DataFrame({"y_true": np.array(classes)[truth], **columns, "g": np.array(["f", "m"])[np.arange(400) % 2]})
    data = evaluate(frame, labels=["label"], attributes=["g"], classes=classes, config=POINTS).to_json()["labels"]
    decided = score.argmax(axis=1)
    for rows, get in ((np.ones(400, bool), lambda x: x["overall"]), (frame["g"] == "f", lambda x: x["attributes"]["g"]["groups"]["f"])):
        y, d = truth[rows], decided[rows]
        assert get(data["macro"])["auc"]["value"] == pytest.approx(sk.roc_auc_score(y, score[rows], multi_class="ovr"), **EXACT)
        assert get(data["macro"])["f1"]["value"] == pytest.approx(sk.f1_score(y, d, average="macro"), **EXACT)
        assert get(data["macro"])["tpr"]["value"] == pytest.approx(sk.recall_score(y, d, average="macro"), **EXACT)
        recalls = sk.recall_score(y, d, average=None)
        assert [get(data[name])["tpr"]["value"] for name in classes] == pytest.approx(recalls.tolist(), **EXACT)
        each = [sk.roc_auc_score(y == k, score[rows][:, k]) for k in range(3)]
        assert [get(data[name])["auc"]["value"] for name in classes] == pytest.approx(each, **EXACT)
