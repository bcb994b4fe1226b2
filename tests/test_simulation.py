"""The simulation study: its true values are true, it runs and resumes, and it catches an interval that is too narrow."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def cohorts() -> ModuleType:
    return importlib.import_module("cohorts")


@pytest.fixture
def simulation() -> ModuleType:
    return importlib.import_module("simulation")


@pytest.mark.parametrize("shared_truth", [True, False])
def test_true_values_are_those_of_a_very_large_sample(cohorts: ModuleType, shared_truth: bool) -> None:
    group = cohorts.Group("g", 150_000, 0.3, -0.6, 0.5, 1.3, (1, 3), 0.5, shared_truth)
    frame = cohorts.make_cohort([group], np.random.default_rng(0))
    y, score = frame["y_true"].to_numpy(), frame["y_score"].to_numpy()
    flagged = score >= cohorts.THRESHOLD
    found = {
        "auc": roc_auc_score(y, score),
        "tpr": flagged[y == 1].mean(),
        "fpr": flagged[y == 0].mean(),
        "ppv": y[flagged].mean(),
        "npv": 1 - y[~flagged].mean(),
        "positive_rate": flagged.mean(),
        "prevalence": y.mean(),
        "accuracy": (flagged == y).mean(),
        "brier": brier_score_loss(y, score),
        "log_loss": log_loss(y, score),
    }
    true = cohorts.true_values(group)
    assert {name: true[name] for name in found} == pytest.approx(found, abs=0.006)
    assert true["f1"] == pytest.approx(2 / (1 / true["ppv"] + 1 / true["tpr"]))


def test_images_of_a_patient_agree_as_much_as_asked(cohorts: ModuleType) -> None:
    group = cohorts.Group("g", 40_000, 0.5, 0.0, 0.0, 1.0, (2, 2), 0.4)
    score = cohorts.make_cohort([group], np.random.default_rng(1))["y_score"].to_numpy()
    first, second = np.log(score / (1 - score)).reshape(-1, 2).T
    assert np.corrcoef(first, second)[0, 1] == pytest.approx(0.4, abs=0.02)


def test_gaps_are_planted_where_they_are_said_to_be(cohorts: ModuleType) -> None:
    for item in cohorts.scenarios():
        true = [cohorts.true_values(group) for group in item.groups]
        apart = {name: float(np.ptp([values[name] for values in true])) for name in ("auc", "tpr", "fpr")}
        if not item.gap:
            assert apart == pytest.approx(dict.fromkeys(apart, 0.0), abs=1e-9), item.name
        else:
            assert apart[item.planted] == pytest.approx(item.gap, abs=1e-9), item.name
        if item.planted == "tpr":
            assert apart["auc"] == pytest.approx(0, abs=1e-9)
            assert apart["fpr"] < apart["tpr"]
    sizes = {group.patients for item in cohorts.scenarios() for group in item.groups}
    assert (min(sizes), max(sizes)) == (20, 2000)
    assert {len(item.groups) for item in cohorts.scenarios()} >= {2, 4, 8}


def tiny(simulation: ModuleType, tmp_path: Path, audits: int = 12, *more: str) -> tuple[int, dict[str, Any]]:
    """A study of one scenario of 100 patients."""
    out = tmp_path / "study.json"
    words = ["--only", "2 x 50", "--workers", "1", "--bootstrap", "60", "--permutations", "80"]
    results = ["--results", str(tmp_path / "study.jsonl"), "--json", str(out)]
    code = simulation.main([*words, *results, "--audits", str(audits), *more])
    return code, json.loads(out.read_text())


def test_a_tiny_study_runs_and_goes_on_where_it_was_killed(
    simulation: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, first = tiny(simulation, tmp_path, 12)
    lines = (tmp_path / "study.jsonl").read_text().splitlines()
    assert len(lines) == 2
    (tmp_path / "study.jsonl").write_text(lines[0] + "\n" + lines[1][:100])  # killed while it wrote
    _, again = tiny(simulation, tmp_path, 12)
    assert again["tallies"] == first["tallies"]
    _, more = tiny(simulation, tmp_path, 20)
    tally = more["tallies"]["2 x 50"]
    assert tally["audit|claim|holm"][1] == 20
    assert tally["independent|claim|holm"][1] == tally["maxmin|claim|holm"][1] == 2
    assert tally["maxmin|claim|holm"][0] == 2  # the percentile interval of a maximum leaves 0 out by its construction
    assert tally["bca|covers|auc|50 to 199"][1] == tally["percentile|covers|auc|50 to 199"][1] == 4
    text = capsys.readouterr().out
    assert "| 2 x 50 |" in text
    assert "Bars: " in text


def test_tables_go_between_the_marks_of_a_page(simulation: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n<!-- simulation -->\nformer\n<!-- /simulation -->\n\nend\n")
    for _ in range(2):
        tiny(simulation, tmp_path, 3, "--docs", str(page))
    text = page.read_text()
    assert text.startswith("# Title\n\n<!-- simulation -->\n3 audits a scenario")
    assert text.endswith("<!-- /simulation -->\n\nend\n")
    assert text.count("| 2 x 50 |") == 3
    assert "former" not in text


def test_results_of_other_settings_are_left_alone(simulation: ModuleType, tmp_path: Path) -> None:
    tiny(simulation, tmp_path, 5)
    _, other = tiny(simulation, tmp_path, 5, "--seed", "1")
    assert other["tallies"]["2 x 50"]["audit|claim|holm"][1] == 5
    assert len((tmp_path / "study.jsonl").read_text().splitlines()) == 2


def test_an_interval_of_half_the_width_is_caught(simulation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = simulation.evaluate

    def too_sure(*args: Any, **more: Any) -> Any:
        found = honest(*args, **more)
        for attribute in found.data["labels"]["label"]["attributes"].values():
            for row in [*attribute["groups"].values(), attribute["gaps"]]:
                for estimate in row.values():
                    if isinstance(estimate, dict) and estimate.get("lower") is not None:
                        middle, quarter = (estimate["lower"] + estimate["upper"]) / 2, (estimate["upper"] - estimate["lower"]) / 4
                        estimate["lower"], estimate["upper"] = middle - quarter, middle + quarter
        return found

    monkeypatch.setattr(simulation, "evaluate", too_sure)
    code, study = tiny(simulation, tmp_path, 20)
    missed = [bar["what"] for bar in study["bars"] if not bar["met"]]
    assert code == 1
    assert "coverage of AUC, groups of 50 to 199 patients" in missed
    assert any("gap" in what for what in missed)


def test_claims_are_held_to_five_percent_and_the_binomial_limit(simulation: ModuleType) -> None:
    table = importlib.import_module("simulation_table")
    scenario = next(item for item in simulation.scenarios() if item.name == "2 x 50")
    for claims, met in ((35, True), (36, False)):  # 7% of 500
        (bar,) = table.bars([scenario], {"2 x 50": {"audit|claim|false": [claims, 500]}})
        assert bar.met is met
    for share, met in ((0.93, True), (0.95, True), (0.91, True), (0.89, False), (0.995, False)):
        (bar,) = table.bars([scenario], {"2 x 50": {"audit|covers gap|auc": [share * 500, 500]}})
        assert bar.met is met, share


def test_an_unknown_scenario_is_refused(simulation: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulation.main(["--only", "no such"]) == 2
    assert "they are: 2 x 50" in capsys.readouterr().err


@pytest.mark.slow
def test_an_audit_of_as_many_patients_as_planned_has_the_planned_power(cohorts: ModuleType, simulation: ModuleType) -> None:
    from evenhand.metrics.power import Plan, needed_patients

    better = cohorts.Group("a", 1, 0.4, images=(1, 1))
    n, _ = needed_patients(0.15, Plan("auc", cohorts.true_values(better)["auc"], prevalence=0.4))
    config = simulation.AuditConfig(threshold="0.5", bootstrap=0, permutations=300, primary=["auc"], metrics=["auc"])
    claimed = []
    for number in range(120):
        groups = [cohorts.replace(group, name=name, patients=n) for name, group in (("a", better), ("b", better.with_lower_auc(0.15)))]
        frame = cohorts.make_cohort(groups, np.random.default_rng(number))
        data = simulation.evaluate(frame, labels=["label"], attributes=["group"], config=config, seed=number, threads=1).data
        claimed.append(data["labels"]["label"]["attributes"]["group"]["gaps"]["auc"]["p"] < 0.05)
    assert np.mean(claimed) == pytest.approx(0.8, abs=0.1)
