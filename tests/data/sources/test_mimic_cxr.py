"""MIMIC-CXR-JPG with MIMIC-IV, from a tiny copy of the downloads to a table, and to a trained probe."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from evenhand.data.datasets import PreparedData
from evenhand.data.sources.base import Found
from evenhand.data.sources.prepare import make_choice
from evenhand.data.sources.public import mimic_cxr
from evenhand.data.sources.raw import RawFolder
from evenhand.errors import InputError
from tests.data.sources.miniatures.mimic_cxr import write

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With MIMIC-IV in the folder; only read."""
    root = tmp_path_factory.mktemp("mimic")
    write(root)
    return root


def read(raw: Path, task: str | None = None, split: str | None = None, **options: str) -> Found:
    found = mimic_cxr.read(RawFolder(raw, mimic_cxr.INFO.layout), make_choice(mimic_cxr.INFO, task, split, options))
    assert all((raw / name).is_file() for name in found.frame["image"])
    return found


def of(found: Found, patient: int) -> pd.Series:
    return found.frame[found.frame["patient_id"] == str(10000000 + 32 * patient)].iloc[0]


def test_from_raw_to_a_trained_probe(miniature: Make, story: Callable[..., PreparedData]) -> None:
    data = story(
        "mimic_cxr", miniature("mimic_cxr"), task="pleural_effusion_vs_no_finding", options={"uncertain": "ones"},
        attributes=["sex", "race_white"],
    )
    assert len(data) == 47
    assert any("images: 80 here, the provider says 377,110" in note for note in data.description["notes"])


def test_sex_age_at_the_study_and_race(raw: Path) -> None:
    found = read(raw)
    assert of(found, 2)[["sex", "age", "race"]].isna().all()
    assert "1 patient is not in MIMIC-IV: sex, age and race are missing there" in found.notes
    first = found.frame[found.frame["patient_id"] == "10000032"]
    assert first["age"].tolist() == ["23", "26"], "three years lie between the studies"
    assert of(found, 3)[["sex", "age", "age5"]].tolist() == ["male", "91", "80 and over"]
    races = {patient: of(found, patient)["race"] for patient in range(4, 14)}
    assert pd.isna([races.pop(patient) for patient in (4, 7, 10)]).all(), "entries that differ, and unknown words"
    assert races == {
        5: "Black", 6: "White", 8: "Hispanic", 9: "Other", 11: "Pacific Islander", 12: "Native American", 13: "Asian",
    }
    assert of(found, 9)["race_white"] == "Other"
    assert "race: 1 patient has entries that differ; it is missing there" in found.notes
    assert not [note for note in found.notes if "100000" in note]


def test_views_labels_and_splits(raw: Path) -> None:
    found = read(raw)
    assert found.counts == {"images": 80, "patients": 24, "labelled studies": 47}
    assert found.left_out is not None
    assert found.left_out["reason"].value_counts().to_dict() == {
        "not the view asked for (option view=frontal)": 32, "its study has no labels": 1,
    }
    assert found.frame["split"].value_counts().to_dict() == {"train": 24, "val": 12, "test": 11}
    assert set(found.frame["view"]) == {"PA", "AP"}
    everything = read(raw, view="all", split="patient")
    assert len(everything.frame) == 78
    assert everything.frame["view"].isna().sum() == 15
    assert "split" not in everything.frame
    assert len(read(raw, view="lateral").frame) == 16


def test_the_other_program_and_the_radiologist(raw: Path) -> None:
    uncertain = {name: read(raw, "findings", labeller=name).frame["Pleural Effusion"].isna().sum() for name in ("chexpert", "negbio")}
    assert uncertain == {"chexpert": 16, "negbio": 0}
    found = read(raw, "findings", test_labels="radiologist")
    test = found.frame["split"].eq("test")
    assert set(found.frame["Edema"][test]) == {"1"}
    assert set(found.frame["Edema"][~test]) == {"0"}
    assert test.sum() == 10, "two test studies have no radiologist's labels"


def test_where_mimic_iv_lies(miniature: Make, tmp_path: Path) -> None:
    raw = miniature("mimic_cxr", iv=None)
    without = read(raw)
    assert without.frame[["sex", "age", "race"]].isna().all(axis=None)
    assert any("were not found in or beside the raw folder (option mimic_iv)" in note for note in without.notes)
    write(tmp_path / "other", iv="core", race="ethnicity")
    shutil.move(tmp_path / "other" / "core", tmp_path / "elsewhere" / "core")
    elsewhere = str(tmp_path / "elsewhere")
    assert of(read(raw, mimic_iv=elsewhere), 5)["race"] == "Black"
    (tmp_path / "mimiciv").mkdir()
    shutil.move(tmp_path / "elsewhere", tmp_path / "mimiciv" / "1.0")
    beside = read(raw)
    assert of(beside, 5)["race"] == "Black", "beside the raw folder, as wget lays it out"
    assert f"sex, age and race are read from {tmp_path / 'mimiciv' / '1.0' / 'core'}" in beside.notes
    with pytest.raises(InputError, match="has no tables patients"):
        read(raw, mimic_iv=elsewhere)


def test_bad_input(miniature: Make) -> None:
    raw = miniature("mimic_cxr", patients=4)
    with pytest.raises(InputError, match="has it: give that folder"):
        read(raw / "files")
    (raw / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    with pytest.raises(InputError, match=r"has no file 'mimic-cxr-2\.0\.0-split\.csv'"):
        read(raw)
    (raw / "mimic-cxr-2.0.0-split.csv").write_text("dicom_id,split\nx,train\n")
    with pytest.raises(InputError, match=r"14 images have no split in the provider's table; use --split patient"):
        read(raw)
    (raw / "mimic-cxr-2.0.0-metadata.csv.gz").write_bytes(b"\x1f\x8b cut off")
    with pytest.raises(InputError, match="cannot be read as a table"):
        read(raw, split="patient")
