"""MetricFrames and pandas tables of an audit carry its numbers, and nothing else."""

from __future__ import annotations

import sys
from typing import Any

import fairlearn.metrics as fm
import numpy as np
import pandas as pd
import pytest

import evenhand as eh
from evenhand.errors import ConfigError, TableError
from evenhand.evaluation import from_metric_frame, to_metric_frame


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    n = 600
    patient = np.arange(n) // 2
    sex = np.array(["f", "m", None], object)[rng.choice(3, 300, p=[0.5, 0.45, 0.05])][patient]
    site = np.array(["x", "y", "rare"], object)[rng.choice(3, 300, p=[0.6, 0.38, 0.02])][patient]
    y = (rng.random(300) < 0.4).astype(int)[patient]
    p = 1 / (1 + np.exp(-(rng.normal(size=n) + 1.2 * y - 0.2)))
    split = np.where(patient % 4 == 0, "val", "test")
    return pd.DataFrame({"patient_id": patient, "split": split, "y": y, "p": p, "q": 1 - p, "sex": sex, "site": site})


@pytest.fixture(scope="module")
def result(frame: pd.DataFrame) -> Any:
    return eh.audit(frame, "y", "p", ["sex", "site", "sex*site"], bootstrap=50, permutations=19)


@pytest.mark.parametrize("attribute", ["sex", "site", "sex*site"])
def test_a_metric_frame_has_the_audits_numbers(result: Any, attribute: str) -> None:
    made = to_metric_frame(result, attribute=attribute)
    audited = result.to_json()["labels"]["y"]["attributes"][attribute]
    rows = {key: row for key, row in audited["groups"].items() if key != "(missing)"}
    assert set(made.by_group.index) == set(rows)
    assert made.by_group.index.name == attribute
    for metric in made.by_group.columns:
        expected = {key: np.nan if row[metric]["value"] is None else row[metric]["value"] for key, row in rows.items()}
        assert made.by_group[metric].to_dict() == pytest.approx(expected, abs=1e-12, nan_ok=True)
    for metric in ("auc", "tpr", "brier"):
        assert made.difference()[metric] == pytest.approx(audited["gaps"][metric]["value"], abs=1e-12)
    if attribute == "site":
        assert np.isnan(made.by_group.loc["rare", "auc"])
        overall = result.to_json()["labels"]["y"]["overall"]
        assert made.overall["auc"] == pytest.approx(overall["auc"]["value"], abs=1e-12)


def test_several_attributes_must_be_named(result: Any) -> None:
    with pytest.raises(ConfigError, match="sex, site, sex\\*site, and none was named"):
        to_metric_frame(result)
    with pytest.raises(ConfigError, match="'age' is not among them"):
        to_metric_frame(result, attribute="age")
    with pytest.raises(ConfigError, match="metric 'aucc' is not in the audit"):
        to_metric_frame(result, attribute="sex", metrics=["aucc"])


def test_classes_make_metric_frames_too() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 300)
    score = 0.5 * rng.dirichlet(np.ones(3), 300) + 0.5 * np.eye(3)[truth]
    columns = {name: score[:, k] for k, name in enumerate("abc")}
    frame = pd.DataFrame({"y": np.array(list("abc"))[truth], **columns, "g": np.arange(300) % 2})
    found = eh.audit(frame, "y", ["a", "b", "c"], "g", bootstrap=0, permutations=0)
    made = to_metric_frame(found, label="b", metrics=["tpr", "auc"])
    groups = found.to_json()["labels"]["b"]["attributes"]["g"]["groups"]
    assert made.by_group["tpr"].to_dict() == pytest.approx({key: row["tpr"]["value"] for key, row in groups.items()})


def test_decisions_of_the_table_are_kept(frame: pd.DataFrame) -> None:
    decided = frame.assign(d=(frame["q"] > 0.3).astype(int))
    found = eh.audit(decided, "y", "p", "sex", pred="d", bootstrap=0, permutations=0)
    groups = found.to_json()["labels"]["y"]["attributes"]["sex"]["groups"]
    made = to_metric_frame(found, metrics=["tpr"])
    assert made.by_group["tpr"]["f"] == pytest.approx(groups["f"]["tpr"]["value"])


def test_a_metric_frame_comes_back_as_the_same_table(result: Any) -> None:
    table = result.to_table()
    mine = table[(table["attribute"] == "site") | (table["attribute"] == "")]
    back = from_metric_frame(to_metric_frame(result, attribute="site"), label="y")
    assert list(back.columns) == list(table.columns)
    keys = ["attribute", "group", "kind", "metric"]
    both = mine.merge(back, on=["label", *keys], suffixes=("", "_back"))
    assert len(both) == len(back)
    known = both["value"].notna()
    assert both["value_back"][known].astype(float).to_numpy() == pytest.approx(both["value"][known].astype(float).to_numpy(), abs=1e-12)
    assert both["value_back"][~known].isna().all()
    assert both["lower_back"].isna().all()
    assert both["p_back"].isna().all()


def test_a_metric_frames_own_intervals_are_copied() -> None:
    y, d, g = np.arange(80) % 2, np.arange(80) % 3 % 2, np.arange(80) % 4 // 2
    metrics = {"tpr": fm.true_positive_rate, "count": fm.count}
    made = fm.MetricFrame(
        metrics=metrics, y_true=y, y_pred=d, sensitive_features={"g": g}, n_boot=20, ci_quantiles=[0.5, 0.975, 0.025], random_state=0
    )
    back = from_metric_frame(made).set_index(["kind", "metric", "group"])
    assert back.loc[("value", "tpr", "1"), "lower"] == made.by_group_ci[2].loc[1, "tpr"]
    assert back.loc[("value", "tpr", "1"), "upper"] == made.by_group_ci[1].loc[1, "tpr"]
    assert back.loc[("value", "tpr", "1"), "n"] == 40
    assert back.loc[("gap", "tpr", ""), "upper"] == made.difference_ci()[1]["tpr"]
    assert back.loc[("value", "tpr", ""), "lower"] == made.overall_ci[2]["tpr"]


def test_one_metric_and_two_features() -> None:
    features = pd.DataFrame({"a": list("xxyy") * 10, "b": list("uvuv") * 10})
    made = fm.MetricFrame(metrics=fm.selection_rate, y_true=[0, 1] * 20, y_pred=[1, 0, 0, 0] * 10, sensitive_features=features)
    back = from_metric_frame(made).set_index(["kind", "group"])
    assert back.loc[("value", "x*u"), "value"] == 1
    assert back.loc[("gap", ""), "high_group"] == "x*u"
    assert set(back["attribute"]) == {"", "a*b"}


def test_what_cannot_come_back_is_refused() -> None:
    y, g = [0, 1] * 10, list("abab") * 5
    matrices = fm.MetricFrame(metrics={"m": lambda a, b: np.zeros((2, 2))}, y_true=y, y_pred=y, sensitive_features=g)
    with pytest.raises(TableError, match="metric 'm' of the MetricFrame is ndarray"):
        from_metric_frame(matrices)
    controlled = fm.MetricFrame(metrics=fm.selection_rate, y_true=y, y_pred=y, sensitive_features=g, control_features={"c": g})
    with pytest.raises(ConfigError, match="control features"):
        from_metric_frame(controlled)


def test_tables_by_group_and_by_gap(result: Any) -> None:
    groups = result.groups("sex")
    data = result.to_json()["labels"]["y"]["attributes"]["sex"]
    assert groups.loc[("f", "tpr"), "value"] == data["groups"]["f"]["tpr"]["value"]
    assert result.gaps("sex").loc["auc", "p_holm"] == data["gaps"]["auc"]["p_holm"]
    assert result.gaps().loc[("site", "auc"), "high_group"] in ("x", "y")
    assert "at least 10 are needed" in result.groups("site", "y").loc[("rare", "auc"), "reason"]
    assert "<table" in groups._repr_html_()
    with pytest.raises(ConfigError, match="no attribute 'age'; it has sex, site"):
        result.gaps("age")


def test_fairlearn_is_loaded_only_when_asked_for() -> None:
    import subprocess

    program = "import sys, evenhand.evaluation.interop; sys.exit('fairlearn' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
