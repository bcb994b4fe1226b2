"""`evenhand evaluate` as a whole: several sets and several runs in one command, own rows first, what is known where, and refusals."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from evenhand.config import compose
from evenhand.data.sources.csv import prepare_csv
from evenhand.data.synthetic import SyntheticConfig, make_cohort, write_cohort
from evenhand.errors import InputError
from evenhand.runs.evaluate import evaluate
from evenhand.runs.train import train

FAST = ["audit.bootstrap=20", "audit.permutations=0", "audit.details=false", "audit.bounds=false", "audit.metrics=[auc,tpr,fpr]"]


@pytest.fixture(scope="module")
def made(prepared, tmp_path_factory):
    """Two runs on one cohort, a run on another one, and two further sets: one without the age, one of test rows alone."""
    from tests.runs.conftest import TINY

    folder = tmp_path_factory.mktemp("evaluate")
    raw = folder / "raw"
    write_cohort(make_cohort(SyntheticConfig(size=32, n_patients=140, signal=1.5, seed=7)), raw)
    table = pd.read_csv(raw / "metadata.csv")
    table["patient_id"] = "other-" + table["patient_id"].astype(str)
    table["site"] = np.where(np.arange(len(table)) % 2, "A", "B")
    table["split"] = "test"
    table.to_csv(raw / "test_only.csv", index=False)
    prepare_csv(raw / "test_only.csv", folder / "sites", images=raw, labels=["label"], attributes=["site", "group"], size=32)
    table.drop(columns="split").to_csv(raw / "drawn.csv", index=False)
    prepare_csv(raw / "drawn.csv", folder / "plain", images=raw, labels=["label"], attributes=["group"], size=32)

    def run(name, data, *words):
        return train(compose("train", [f"data={data}", *TINY, *FAST, *words, f"out={folder / name}"]))

    return {
        "folder": folder,
        "probe": run("probe", prepared, "method=linear_probe"),
        "ridge": run("ridge", prepared, "method=linear_probe", "method.solver=ridge"),
        "away": run("away", folder / "plain", "method=linear_probe"),
    }


def test_one_run_on_two_sets_with_attributes_of_their_own(made, tmp_path):
    folder, run = made["folder"], made["probe"]
    words = [f"model={run.root}", f"sets.sites={folder / 'sites'}", f"sets.plain={folder / 'plain'}", f"out={tmp_path / 'e'}", *FAST]
    out = evaluate(compose("evaluate", words))
    table = pd.read_csv(out / "transfer.csv", keep_default_na=False, na_values=[""])
    document = json.loads((out / "transfer.json").read_text())
    assert list(document["sets"]) == ["own_test", "sites", "plain"]
    assert document["sets"]["sites"]["n"] == len(pd.read_parquet(out / "sites" / "predictions.parquet"))
    assert document["attributes"]["age"] == {"known": ["own_test"], "unknown": ["sites", "plain"]}
    assert document["attributes"]["site"]["known"] == ["sites"]
    everyone = table[(table["attribute"].isna()) & (table["metric"] == "auc")].set_index("set")
    audits = {name: json.loads((out / name / "audit.json").read_text())["labels"]["label"] for name in ("sites", "plain")}
    own = everyone.loc["own_test", "value"]
    stored = json.loads((run.root / "audit.json").read_text())["labels"]["label"]
    assert own == pytest.approx(stored["overall"]["auc"]["value"])
    for name, audit in audits.items():
        assert everyone.loc[name, "value"] == pytest.approx(audit["overall"]["auc"]["value"])
        assert everyone.loc[name, "drop"] == pytest.approx(audit["overall"]["auc"]["value"] - own)
        assert everyone.loc[name, "drop_lower"] < everyone.loc[name, "drop"] < everyone.loc[name, "drop_upper"]
        assert audit["threshold"]["value"] == stored["threshold"]["value"]
    assert list(pd.read_csv(out / "results.csv")["set"].unique()) == ["own_test", "sites", "plain"]
    text = (out / "report.html").read_text()
    assert "age is not known in sites and plain" in text
    assert not (out / "own_test").exists()


def test_several_runs_side_by_side_are_paired_on_every_set(made, tmp_path):
    folder = made["folder"]
    words = [f"models.delivered={made['probe'].root}", f"models.other={made['ridge'].root}", f"sets.plain={folder / 'plain'}",
             f"out={tmp_path / 'e'}", *FAST]
    out = evaluate(compose("evaluate", words))
    document = json.loads((out / "transfer.json").read_text())
    assert document["runs"] == ["delivered", "other"]
    for place in ("own_test", "plain"):
        compared = json.loads((out / place / "compare.json").read_text())
        assert compared["reference"] == "delivered"
        change = compared["labels"]["label"]["overall_changes"]["other"]["auc"]
        assert document["changes"][place]["label"]["other"]["overall"]["auc"] == change
        assert (out / place / "compare.html").exists()
    assert (out / "plain" / "other" / "report.html").exists()
    assert "Runs side by side" in (out / "report.html").read_text()
    assert set(pd.read_csv(out / "results.csv")["run"]) == {"delivered", "other"}


def test_a_run_that_was_judged_on_other_rows_is_scored_on_the_first_runs(made, tmp_path):
    """As a patched run is, whose own test rows are those of the external set."""
    words = [f"models.first={made['probe'].root}", f"models.away={made['away'].root}", f"sets.sites={made['folder'] / 'sites'}",
             f"out={tmp_path / 'e'}", *FAST]
    out = evaluate(compose("evaluate", words))
    compared = json.loads((out / "own_test" / "compare.json").read_text())
    predictions = pd.read_parquet(made["probe"].root / "predictions.parquet")
    assert compared["n"] == int((predictions["split"] == "test").sum())


def test_home_names_the_rows_that_count_as_in_distribution_and_rows_in_two_places_are_said(made, prepared, tmp_path):
    folder = made["folder"]
    words = [f"model={made['probe'].root}", f"home={folder / 'plain'}", f"sets.sites={folder / 'sites'}", f"sets.same={prepared}",
             f"out={tmp_path / 'e'}", *FAST]
    document = json.loads((evaluate(compose("evaluate", words)) / "transfer.json").read_text())
    assert document["attributes"]["age"]["known"] == ["same"]
    # the two sets are made of the same people
    assert "patient ids are among the own test rows too" in document["sets"]["sites"]["notes"][0]
    assert "this is the data set that the run was trained on" in document["sets"]["same"]["notes"][0]


@pytest.mark.slow
def test_seeds_count_as_one_run(made, prepared, tmp_path):
    from tests.runs.conftest import TINY

    run = train(compose("train", [f"data={prepared}", *TINY, *FAST, "method=linear_probe", "seeds=0,1", f"out={tmp_path / 'run'}"]))
    words = [f"model={run.root}", f"sets.plain={made['folder'] / 'plain'}", f"out={tmp_path / 'e'}", *FAST]
    out = evaluate(compose("evaluate", words))
    assert (out / "plain" / "seed=1" / "audit.json").exists()
    table = pd.read_csv(out / "transfer.csv", keep_default_na=False, na_values=[""])
    everyone = table[(table["attribute"].isna()) & (table["metric"] == "auc")].set_index("set")["value"]
    each = [json.loads((out / "plain" / f"seed={seed}" / "audit.json").read_text()) for seed in (0, 1)]
    assert everyone["plain"] == pytest.approx(np.mean([one["labels"]["label"]["overall"]["auc"]["value"] for one in each]))


def test_refusals_come_before_any_work(made, tmp_path):
    folder, run = made["folder"], made["probe"].root
    sets = f"sets.plain={folder / 'plain'}"
    cases = {
        "no run was named": [sets],
        "no data set was named": [f"model={run}"],
        "a set cannot be named 'own_test'": [f"model={run}", f"sets.own_test={folder / 'plain'}"],
        "holds no finished run": [f"model={tmp_path}", sets],
        "two runs are named 'probe'": [f"model={run}", f"models.probe={run}", sets],
        "audit.reference names the attribute 'sexe'": [f"model={run}", sets, "audit.reference.sexe=f"],
    }
    for text, words in cases.items():
        with pytest.raises(InputError, match=text):
            evaluate(compose("evaluate", [*words, f"out={tmp_path / 'e'}"]))
    assert not (tmp_path / "e").exists()


def test_a_run_without_predictions_of_its_own_is_scored_on_its_data_set(made, tmp_path):
    shutil.copytree(made["probe"].root, tmp_path / "bare")
    (tmp_path / "bare" / "predictions.parquet").unlink()
    words = [f"model={tmp_path / 'bare'}", f"sets.plain={made['folder'] / 'plain'}", f"out={tmp_path / 'e'}", *FAST]
    document = json.loads((evaluate(compose("evaluate", words)) / "transfer.json").read_text())
    stored = json.loads((made["probe"].root / "audit.json").read_text())["labels"]["label"]
    found = document["labels"]["label"]["bare"]["own_test"]
    assert found["overall"]["auc"]["value"] == pytest.approx(stored["overall"]["auc"]["value"], abs=1e-6)
    assert list(found["attributes"]) == list(stored["attributes"])


def test_a_data_set_that_is_gone_is_asked_for(made, tmp_path):
    shutil.copytree(made["probe"].root, tmp_path / "moved")
    info = json.loads((tmp_path / "moved" / "run.json").read_text())
    (tmp_path / "moved" / "run.json").write_text(json.dumps({**info, "data": str(tmp_path / "gone")}))
    words = [f"models.a={tmp_path / 'moved'}", f"models.b={made['away'].root}", f"sets.sites={made['folder'] / 'sites'}", *FAST]
    with pytest.raises(InputError, match="give it as home="):
        evaluate(compose("evaluate", [*words, f"out={tmp_path / 'e'}"]))
