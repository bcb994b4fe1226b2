"""Using a finished run: predict, evaluate, export."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import timm
import torch

from evenhand.config import compose
from evenhand.data.datasets import PreparedData
from evenhand.data.sources.csv import prepare_csv
from evenhand.data.synthetic import SyntheticConfig, make_cohort, write_cohort
from evenhand.errors import CheckpointError, InputError
from evenhand.runs.evaluate import evaluate
from evenhand.runs.export import export
from evenhand.runs.predict import predict
from evenhand.runs.train import train


@pytest.fixture(scope="module")
def module_config(prepared):
    from tests.runs.conftest import TINY

    return lambda *words: compose("train", [f"data={prepared}", *TINY, *words])


@pytest.fixture(scope="module")
def probe(module_config, tmp_path_factory):
    return train(module_config("method=linear_probe", f"out={tmp_path_factory.mktemp('probe') / 'run'}"))


@pytest.fixture(scope="module")
def tuned(module_config, tmp_path_factory):
    return train(module_config("method=finetune", "trainer.max_epochs=1", f"out={tmp_path_factory.mktemp('tuned') / 'run'}"))


@pytest.mark.parametrize("which", ["probe", "tuned"])
def test_predict_gives_the_scores_of_training_and_the_stored_decisions(which, prepared, tmp_path, request):
    run = request.getfixturevalue(which)
    out = predict(compose("predict", [f"model={run.root}", f"data={prepared}", "split=test", f"out={tmp_path / 'p'}"]))
    got = pd.read_parquet(out / "predictions.parquet").set_index("image")
    known = pd.read_parquet(run.root / "predictions.parquet").set_index("image")
    known = known[known["split"] == "test"]
    assert list(got.index) == list(known.index)
    np.testing.assert_allclose(got["y_score"], known["y_score"], atol=1e-6)
    limit = json.loads((run.root / "audit.json").read_text())["labels"]["label"]["threshold"]["value"]
    assert (got["y_pred"] == (got["y_score"] >= limit)).all()
    assert (got["y_true"] == known["y_true"]).all()


def test_predict_scores_a_folder_of_images_without_any_table(probe, prepared, cohort_folder, tmp_path):
    out = predict(compose("predict", [f"model={probe.root}", f"data={cohort_folder / 'images'}", f"out={tmp_path / 'p'}"]))
    got = pd.read_parquet(out / "predictions.parquet")
    known = pd.read_parquet(probe.root / "predictions.parquet")
    known.index = known["image"].str.removeprefix("images/")
    both = got.set_index("image")["y_score"].reindex(known.index)
    np.testing.assert_allclose(both, known["y_score"], atol=1e-6)
    assert got["y_true"].isna().all()
    assert len(got) == len(PreparedData.open(prepared))


def test_per_group_thresholds_need_the_attribute(module_config, cohort_folder, tmp_path):
    run = train(module_config("method=thresholds", "method.attribute=group", f"out={tmp_path / 'run'}"))
    with pytest.raises(InputError, match="needs an attribute to decide"):
        predict(compose("predict", [f"model={run.root}", f"data={cohort_folder / 'images'}", f"out={tmp_path / 'p'}"]))
    with pytest.raises(InputError, match="per-group thresholds"):
        export(compose("export", [f"model={run.root}", f"out={tmp_path / 'e'}"]))
    assert not (tmp_path / "e").exists()


def test_evaluate_audits_further_sets_at_the_stored_threshold(probe, tmp_path):
    write_cohort(make_cohort(SyntheticConfig(size=32, n_patients=120, seed=7)), tmp_path / "raw")
    raw = tmp_path / "raw"
    prepare_csv(raw / "metadata.csv", tmp_path / "other", images=raw, labels=["label"], attributes=["group"], size=32)
    words = [f"model={probe.root}", f"sets.other={tmp_path / 'other'}", f"out={tmp_path / 'e'}", "audit.bootstrap=50"]
    out = evaluate(compose("evaluate", words))
    audit = json.loads((out / "other" / "audit.json").read_text())
    stored = json.loads((probe.root / "audit.json").read_text())["labels"]["label"]["threshold"]["value"]
    assert audit["labels"]["label"]["threshold"]["value"] == stored
    assert audit["labels"]["label"]["overall"]["n"] == len(PreparedData.open(tmp_path / "other"))
    assert list(audit["labels"]["label"]["attributes"]) == ["group"]
    assert not [v for v in audit["verdicts"] if v["code"] == "threshold_on_test"]
    assert set(pd.read_csv(out / "results.csv")["set"]) == {"own_test", "other"}
    assert (out / "other" / "report.html").exists()


@pytest.mark.parametrize("which", ["probe", "tuned"])
def test_an_exported_folder_is_loaded_by_timm_and_scores_the_same(which, prepared, tmp_path, request):
    run = request.getfixturevalue(which)
    folder = export(compose("export", [f"model={run.root}", f"out={tmp_path / 'e'}"]))
    facts = json.loads((folder / "evenhand.json").read_text())
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    data = PreparedData.open(prepared)
    config = network.pretrained_cfg
    assert config["input_size"] == (3, 32, 32)
    images = data.images().batch(data.rows("test")).expand(-1, 3, -1, -1)
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        scores = torch.sigmoid(network((images - mean) / std))[:, 0].numpy()
    known = pd.read_parquet(run.root / "predictions.parquet")
    np.testing.assert_allclose(scores, known[known["split"] == "test"]["y_score"], atol=2e-5)
    assert facts["outputs"] == ["label"]
    assert set(facts["thresholds"]) == {"label"}


def test_a_run_whose_encoder_changed_is_refused(probe, tmp_path):
    shutil.copytree(probe.root, tmp_path / "run")
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**info, "model_hash": "0" * 64}))
    with pytest.raises(CheckpointError, match="not those the run"):
        export(compose("export", [f"model={tmp_path / 'run'}", f"out={tmp_path / 'e'}"]))


def test_what_is_no_run_is_said(tmp_path, prepared):
    with pytest.raises(InputError, match="does not exist"):
        predict(compose("predict", [f"model={tmp_path / 'nowhere'}", f"data={prepared}"]))
    with pytest.raises(InputError, match="holds no run"):
        predict(compose("predict", [f"model={tmp_path}", f"data={prepared}"]))
