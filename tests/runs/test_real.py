"""Real images end to end: prepared, trained, audited. Skipped where the shared data are absent."""

import json

import pandas as pd
import pytest

from evenhand.config import compose
from evenhand.data.sources.csv import prepare_csv
from evenhand.runs.train import train

QUICK = ["trainer.accelerator=cpu", "trainer.progress=false", "audit.bootstrap=100", "audit.permutations=199"]
FINDINGS = ["atelectasis", "cardiomegaly", "effusion", "infiltration", "hernia"]


def audited(run):
    return json.loads((run.root / "audit.json").read_text())


def test_groups_of_one_and_two_patients_are_not_estimable(pad_ufes, tmp_path):
    data = tmp_path / "pad"
    prepare_csv(pad_ufes / "metadata.csv", data, images=pad_ufes, labels=["malignant"], attributes=["sex", "fitzpatrick"], size=64)
    run = train(compose("train", [f"data={data}", *QUICK, f"out={tmp_path / 'run'}"]))
    item = audited(run)["labels"]["malignant"]["attributes"]["fitzpatrick"]
    assert item["n_missing"] > 0
    small = [group for name, group in item["groups"].items() if name != "(missing)" and group["n_patients"] <= 2]
    assert small
    for group in small:
        assert group["auc"]["value"] is None
        assert group["auc"]["reason"]
    assert item["gaps"]["auc"]["value"] is None


def test_many_labels_some_empty_and_many_images_a_patient(nih_cxr64, tmp_path):
    data = tmp_path / "nih"
    prepare_csv(
        nih_cxr64 / "metadata.csv", data, images=nih_cxr64, labels=FINDINGS, attributes=["sex"], size=64, modality="chest_film"
    )
    run = train(compose("train", [f"data={data}", *QUICK, f"out={tmp_path / 'run'}"]))
    audit = audited(run)
    assert audit["kind"] == "multilabel"
    assert set(audit["labels"]) == set(FINDINGS)
    hernia = audit["labels"]["hernia"]["overall"]
    assert hernia["auc"]["value"] is None
    assert hernia["auc"]["reason"]
    assert audit["labels"]["effusion"]["overall"]["auc"]["value"] > 0.5
    assert audit["n_patients"] < audit["n"]


@pytest.mark.slow
@pytest.mark.slow_sample
def test_the_plain_probe_misses_more_melanomas_of_the_young(ham10000, mobilenet, tmp_path):
    data = tmp_path / "ham"
    bins = {"age": [0, 60, 200]}
    prepare_csv(
        ham10000 / "metadata.csv", data, images=ham10000, labels=["malignant"], attributes=["age", "sex*age"], bins=bins, size=96,
        modality="dermoscopy",
    )
    weights = mobilenet / "mobilenet_v1_075_224_imagenet.safetensors"
    model = [f"model={weights}", "model.name=mobilenetv1_075", "model.input_size=[96,96]"]
    run = train(compose("train", [f"data={data}", *model, *QUICK, f"out={tmp_path / 'run'}"]))
    item = audited(run)["labels"]["malignant"]
    assert item["overall"]["auc"]["value"] == pytest.approx(0.89, abs=0.015)
    assert 0.15 <= item["attributes"]["age"]["gaps"]["equalized_odds"]["value"] <= 0.30
    young, old = (item["attributes"]["age"]["groups"][key] for key in ("[0,60)", "[60,200)"))
    assert young["tpr"]["value"] < old["tpr"]["value"]
    assert item["attributes"]["age"]["n_missing"] == pd.read_csv(ham10000 / "metadata.csv").query("split == 'test'")["age"].isna().sum()
