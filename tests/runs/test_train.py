"""Whole runs: what they write, that they repeat and resume exactly, and that a refused command leaves nothing."""

import json
import os

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from evenhand.errors import ConfigError, InputError, MethodError
from evenhand.runs.folder import RunFolder
from evenhand.runs.train import train

FILES = {
    "config.yaml", "run.json", "metrics.jsonl", "predictions.parquet", "audit.json", "report.html", "results.csv", "model.safetensors",
    "predictor.json",
}


def scores(run):
    frame = pd.read_parquet(run.root / "predictions.parquet")
    return frame.set_index("image")["y_score"]


def test_a_run_explains_itself_and_its_numbers_trace_to_its_predictions(config, tmp_path):
    run = train(config("method=linear_probe", f"out={tmp_path / 'run'}"))
    assert set(os.listdir(run.root)) >= FILES
    info = run.info
    assert info["status"] == "done"
    assert {"torch", "timm", "evenhand"} <= set(info["versions"])
    assert len(info["data_hash"]) == len(info["model_hash"]) == len(info["split_hash"]) == 64
    predictions = pd.read_parquet(run.root / "predictions.parquet")
    test = predictions[predictions["split"] == "test"]
    audit = json.loads((run.root / "audit.json").read_text())
    overall = audit["labels"]["label"]["overall"]
    assert overall["auc"]["value"] == pytest.approx(roc_auc_score(test["y_true"], test["y_score"]), abs=1e-12)
    limit = audit["labels"]["label"]["threshold"]["value"]
    positive = test[test["y_true"] == 1]
    assert overall["tpr"]["value"] == pytest.approx((positive["y_score"] >= limit).mean(), abs=1e-12)
    assert audit["provenance"]["model_hash"] == info["model_hash"]
    assert set(audit["labels"]["label"]["attributes"]) == {"group", "age", "group*age"}


def test_the_same_command_finds_the_finished_run_and_another_is_refused(config, tmp_path):
    run = train(config("method=linear_probe", f"out={tmp_path / 'run'}"))
    before = (run.root / "predictions.parquet").stat().st_mtime_ns
    assert train(config("method=linear_probe", f"out={tmp_path / 'run'}")).done
    assert (run.root / "predictions.parquet").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"another configuration \(method\.l2 was"):
        train(config("method=linear_probe", "method.l2=0.5", f"out={tmp_path / 'run'}"))
    assert run.done


def test_two_runs_of_one_command_give_the_same_numbers(config, tmp_path):
    first, second = (train(config("method=reweight", f"out={tmp_path / name}")) for name in "ab")
    pd.testing.assert_series_equal(scores(first), scores(second), check_exact=True)
    assert (first.root / "results.csv").read_text() == (second.root / "results.csv").read_text()


def test_seeds_redraw_train_and_validation_by_patient_and_keep_the_test_rows(config, tmp_path):
    run = train(config("method=linear_probe", "seeds=0,1", f"out={tmp_path / 'runs'}"))
    frames = [pd.read_parquet(one.root / "predictions.parquet") for one in run.seeds]
    assert [one.root.name for one in run.seeds] == ["seed=0", "seed=1"]
    test = [set(frame[frame["split"] == "test"]["image"]) for frame in frames]
    val = [set(frame[frame["split"] == "val"]["patient_id"]) for frame in frames]
    assert test[0] == test[1]
    assert val[0] != val[1]
    results = pd.read_csv(run.root / "results.csv")
    assert set(results["seed"]) == {0, 1}
    assert run.seeds[0].info["split_redrawn"] is True


class _Killed(BaseException):
    """Stands for a kill in the middle of training."""


@pytest.mark.parametrize("words", [["method=finetune"], ["method=group_dro", "method.scope=full"]], ids=["finetune", "group_dro"])
def test_a_killed_run_goes_on_and_ends_with_the_numbers_of_an_uninterrupted_one(config, tmp_path, monkeypatch, words):
    words = [*words, "trainer.max_epochs=3", "trainer.lr=1e-3", "data.batch_size=32"]
    whole = train(config(*words, f"out={tmp_path / 'whole'}"))
    from evenhand.runs.folder import FileStore

    put, calls = FileStore.put, []

    def put_then_die(self, key, value):
        put(self, key, value)
        calls.append(key)
        if len(calls) == 2:
            raise _Killed

    monkeypatch.setattr(FileStore, "put", put_then_die)
    with pytest.raises(_Killed):
        train(config(*words, f"out={tmp_path / 'cut'}"))
    monkeypatch.setattr(FileStore, "put", put)
    assert RunFolder(tmp_path / "cut").info["status"] == "running"
    assert not (tmp_path / "cut" / "predictions.parquet").exists()
    resumed = train(config(*words, f"out={tmp_path / 'cut'}"))
    pd.testing.assert_series_equal(scores(whole), scores(resumed), check_exact=True)
    assert (whole.root / "metrics.jsonl").read_text() == (resumed.root / "metrics.jsonl").read_text()
    assert (whole.root / "results.csv").read_text() == (resumed.root / "results.csv").read_text()


@pytest.mark.parametrize(
    ("words", "error", "text"),
    [
        (["data.labels=lable"], InputError, "did you mean 'label'"),
        (["data.attributes=grup"], InputError, "did you mean 'group'"),
        (["data.missing=error"], InputError, "data.missing=error"),
        (["model=vit_tiny_patch99"], InputError, "vit_tiny_patch99"),
        (["method=dfr", "method.attribute=sex"], (InputError, MethodError), "sex"),
        (["trainer.accelerator=gpu"], InputError, "evenhand doctor"),
        (["seeds=1,1"], InputError, "names a seed twice"),
        (["audit.threshold=best"], ConfigError, "best"),
    ],
)
def test_a_refused_command_leaves_nothing(config, tmp_path, words, error, text):
    with pytest.raises(error, match=text):
        train(config("method=linear_probe", *words, f"out={tmp_path / 'run'}"))
    assert not (tmp_path / "run").exists()


def test_missing_drop_leaves_rows_out_everywhere(config, prepared, tmp_path):
    kept = train(config("method=linear_probe", f"out={tmp_path / 'own'}"))
    dropped = train(config("method=linear_probe", "data.missing=drop", f"out={tmp_path / 'drop'}"))
    table = pd.read_csv(prepared / "table.csv")
    judged = table["split"].isin(["val", "test"])
    assert len(scores(kept)) == judged.sum()
    assert len(scores(dropped)) == (judged & table["age"].notna()).sum()
    assert np.isfinite(scores(dropped)).all()


def test_a_failure_while_training_keeps_the_state_and_says_so(config, tmp_path):
    from evenhand.errors import NonFiniteLossError

    words = ["method=finetune", "trainer.lr=1e30", "trainer.max_epochs=2", f"out={tmp_path / 'run'}"]
    with pytest.raises(NonFiniteLossError) as caught:
        train(config(*words))
    assert caught.value.exit_code == 4
    assert RunFolder(tmp_path / "run").info["status"] == "failed"
