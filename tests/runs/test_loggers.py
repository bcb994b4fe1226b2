"""Loggers: metrics.csv is metrics.jsonl, TensorBoard's files hold the numbers, MLflow is told what it should be told and no more."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import evenhand.runs.loggers as loggers_module
from evenhand.errors import DependencyError, InputError
from evenhand.runs.folder import RunFolder
from evenhand.runs.loggers import CSVLogger, Loggers, MLflowLogger, TensorBoardLogger, audit_numbers, told
from evenhand.runs.train import train

EPOCHS = [{"epoch": k, "lr": 0.1, "train_loss": 1 / k, "val_loss": None, "val_auc": 0.5 + k / 10} for k in (1, 2, 3)]


class Client:
    """An MLflow client that remembers."""

    def __init__(self, fails_at=None):
        self.runs, self.params, self.metrics, self.experiments, self.status = {}, {}, [], {}, {}
        self.fails_at = fails_at

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name):
        self.experiments[name] = "7"
        return "7"

    def create_run(self, experiment, run_name, tags):
        name = f"run{len(self.runs)}"
        self.runs[name] = {"experiment": experiment, "name": run_name, "tags": tags}
        return SimpleNamespace(info=SimpleNamespace(run_id=name))

    def update_run(self, name, status):
        if name not in self.runs:
            raise KeyError(name)
        self.status[name] = status

    def log_param(self, name, key, value):
        self.params[key] = value

    def log_metric(self, name, key, value, step):
        if self.fails_at is not None and len(self.metrics) >= self.fails_at:
            raise ConnectionError("the server went away\nwith details")
        self.metrics.append((name, key, value, step))

    def set_terminated(self, name, status):
        self.status[name] = status


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(tmp_path / "run")
    (tmp_path / "run").mkdir()
    run.update(config={"seed": 3, "trainer": {"lr": 0.03}, "out": "x" * 9000}, data_hash="d1", status="running")
    (tmp_path / "run" / "config.yaml").write_text("seed: 3\n")
    return run


def test_metrics_csv_has_what_metrics_jsonl_has(config, tmp_path):
    run = train(config("method=finetune", "trainer.max_epochs=2", "logger=csv", f"out={tmp_path / 'run'}"))
    lines = [json.loads(line) for line in (run.root / "metrics.jsonl").read_text().splitlines()]
    pd.testing.assert_frame_equal(pd.read_csv(run.root / "metrics.csv"), pd.DataFrame(lines), check_dtype=False)
    assert len(lines) == 2
    audit = json.loads((run.root / "audit.json").read_text())
    found, block = audit_numbers(audit, ["auc", "equalized_odds"]), audit["labels"]["label"]
    assert found["test/label/auc"] == block["overall"]["auc"]["value"]
    for name in ("auc", "equalized_odds"):
        assert found.get(f"test/label/group/{name}_gap") == block["attributes"]["group"]["gaps"][name]["value"]
    assert all(np.isfinite(value) for value in found.values())


def test_a_method_without_epochs_has_its_history_too(config, tmp_path):
    run = train(config("method=linear_probe", "logger=csv", f"out={tmp_path / 'run'}"))
    lines = [json.loads(line) for line in (run.root / "metrics.jsonl").read_text().splitlines()]
    assert list(pd.read_csv(run.root / "metrics.csv")["label"]) == [line["label"] for line in lines]


def test_rows_stand_in_metrics_csv_as_epochs_end_and_a_repeated_epoch_replaces_its_row(folder):
    first = CSVLogger(folder)
    first.record({"train_loss": 1.0}, 1)
    first.record({"train_loss": 0.5}, 2)
    again = CSVLogger(folder)
    again.record({"train_loss": 0.25}, 2)
    table = pd.read_csv(folder.root / "metrics.csv")
    assert list(table["train_loss"]) == [1.0, 0.25]
    again.end((), "failed")
    assert len(pd.read_csv(folder.root / "metrics.csv")) == 2


def test_what_is_not_installed_is_said_before_any_work(config, tmp_path, monkeypatch):
    def missing(module, extra, purpose):
        raise DependencyError(f"{purpose} needs the package '{module}'")

    monkeypatch.setattr(loggers_module, "require", missing)
    for name in ("tensorboard", "mlflow"):
        with pytest.raises(DependencyError, match=f"logger={name} needs the package"):
            train(config("method=linear_probe", f"logger=csv,{name}", f"out={tmp_path / 'run'}"))
    assert not (tmp_path / "run").exists()


def test_mlflow_is_told_options_epochs_and_the_end(folder, monkeypatch):
    client = Client()
    monkeypatch.setitem(loggers_module.KINDS, "mlflow", lambda run: MLflowLogger(run, client))
    monkeypatch.setattr(loggers_module, "check_loggers", lambda names: None)
    with told(folder, ["mlflow"]) as loggers:
        for record in EPOCHS:
            loggers.log(record)
        loggers.finish(EPOCHS, {"test/a/sex*age/auc_gap": 0.25})
    assert client.runs["run0"]["tags"]["data_hash"] == "d1"
    assert client.params["trainer.lr"] == "0.03"
    assert len(client.params["out"]) == 500
    assert ("run0", "val_auc", 0.8, 3) in client.metrics
    assert ("run0", "test/a/sex_x_age/auc_gap", 0.25, 3) in client.metrics
    assert not [key for _, key, _, _ in client.metrics if key in ("epoch", "val_loss")]
    assert client.status["run0"] == "FINISHED"
    assert folder.info["mlflow"] == {"run_id": "run0", "experiment": "evenhand"}


def test_a_resumed_run_goes_on_under_its_mlflow_id(folder, caplog):
    client = Client()
    first, second = MLflowLogger(folder, client), MLflowLogger(folder, client)
    assert first.id == second.id
    assert client.status[first.id] == "RUNNING"
    other = MLflowLogger(folder, Client())
    assert "not there any more" in caplog.text
    assert other.id == "run0"


def test_an_error_ends_as_failed(folder, monkeypatch):
    client = Client()
    monkeypatch.setitem(loggers_module.KINDS, "mlflow", lambda run: MLflowLogger(run, client))
    monkeypatch.setattr(loggers_module, "check_loggers", lambda names: None)
    with pytest.raises(RuntimeError), told(folder, ["mlflow"]):
        raise RuntimeError("training broke")
    assert client.status["run0"] == "FAILED"


def test_a_server_that_goes_away_ends_the_logger_and_not_the_run(folder, monkeypatch, caplog):
    client = Client(fails_at=1)
    monkeypatch.setitem(loggers_module.KINDS, "mlflow", lambda run: MLflowLogger(run, client))
    monkeypatch.setattr(loggers_module, "check_loggers", lambda names: None)
    with caplog.at_level(logging.WARNING), told(folder, ["csv", "mlflow"]) as loggers:
        for record in EPOCHS:
            loggers.log(record)
        loggers.finish(EPOCHS, {})
    assert caplog.text.count("the run goes on (the server went away)") == 1
    assert len(pd.read_csv(folder.root / "metrics.csv")) == 3


def test_a_server_that_does_not_answer_at_the_start_is_refused(folder, monkeypatch):
    def refuses(run):
        raise ConnectionError("no route to host")

    monkeypatch.setitem(loggers_module.KINDS, "mlflow", refuses)
    monkeypatch.setattr(loggers_module, "check_loggers", lambda names: None)
    with pytest.raises(InputError, match=r"logger=mlflow cannot be opened \(no route to host\)"):
        Loggers(folder, ["mlflow"])


def test_tensorboards_files_hold_every_number(folder):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra 'tensorboard')")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(folder)
    loggers = Loggers(folder, [])
    loggers.open["tensorboard"] = logger
    for record in EPOCHS:
        loggers.log(record)
    loggers.finish(EPOCHS, {"test/a/auc": 0.75})
    found = EventAccumulator(str(folder.root / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in found.Scalars("train_loss")] == [
        (record["epoch"], pytest.approx(record["train_loss"])) for record in EPOCHS
    ]
    assert [event.value for event in found.Scalars("test/a/auc")] == [0.75]
    assert "val_loss" not in found.Tags()["scalars"]


@pytest.mark.filterwarnings("ignore")  # mlflow's own, of the packages that it uses
def test_mlflow_itself_takes_what_it_is_told(folder, monkeypatch, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed (extra 'mlflow')")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with told(folder, ["mlflow"]) as loggers:
        for record in EPOCHS:
            loggers.log(record)
        loggers.finish(EPOCHS, {"test/a/sex*age/auc_gap": 0.25})
    client = mlflow.MlflowClient()
    run = client.get_run(folder.info["mlflow"]["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["trainer.lr"] == "0.03"
    assert [metric.value for metric in client.get_metric_history(run.info.run_id, "val_auc")] == [0.6, 0.7, 0.8]
