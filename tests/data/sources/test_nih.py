"""NIH ChestX-ray14, from a tiny copy of the download to a trained probe."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evenhand.data.datasets import PreparedData
from evenhand.data.sources.prepare import prepare_source
from evenhand.data.sources.public.nih import FINDINGS
from evenhand.errors import InputError


@pytest.fixture
def raw(miniature: Callable[..., Path]) -> Path:
    return miniature("nih")


def test_from_raw_to_a_trained_probe(raw: Path, story: Callable[..., PreparedData]) -> None:
    data = story("nih", raw)
    assert (data.spec.labels, data.spec.kind, data.modality) == (("No Finding",), "binary", "chest_film")
    assert data.spec.attributes == ("sex", "age60")
    table = data.table.set_index("image")
    assert len(table) == 48
    first = table.loc["images/00000001_001.png"]
    assert first[["patient_id", "sex", "age", "age60", "age4", "age5", "view"]].tolist() == [
        "1", "male", "23", "under 60", "under 40", "20 to 39", "PA"
    ]
    assert table.loc["images/00000002_000.png", "sex"] is np.nan, "unknown sex is missing, never female"
    assert table.loc["images/00000003_000.png", ["age", "age60"]].isna().all()
    notes = data.description["notes"]
    assert "age: 2 rows have an age over 120 and count as missing" in notes
    assert "images: 48 here, the provider says 112,120 (README_CHESTXRAY.pdf of the download)" in notes
    assert "patients: 24 here, the provider says 30,805 (README_CHESTXRAY.pdf of the download)" in notes
    assert data.cache.shape == (1, 32, 32), "the film with an alpha channel is grey too"
    source = data.description["source"]
    assert (source["name"], source["task"], source["split"], source["verified"]) == ("nih", "no_finding", "published", False)
    assert source["counts"] == {"images": 48, "patients": 24, "test images": 12}


def test_the_published_test_list_is_the_test_split(raw: Path, tmp_path: Path) -> None:
    data = prepare_source("nih", raw, tmp_path / "out", size=8, workers=1)
    published = set((raw / "test_list.txt").read_text().split())
    names = data.table["image"].str.removeprefix("images/")
    assert set(names[data.split == "test"]) == published
    counts = {split: data.description["counts"][split]["patients"] for split in ("train", "val", "test")}
    assert counts == {"train": 16, "val": 2, "test": 6}
    other = prepare_source("nih", raw, tmp_path / "other", size=8, workers=1, fractions=(0.5, 0.5, 0))
    assert other.description["counts"]["val"]["patients"] == 9
    assert (other.split == "test").tolist() == (data.split == "test").tolist()
    drawn = prepare_source("nih", raw, tmp_path / "drawn", size=8, workers=1, split="patient")
    assert set(names[drawn.split == "test"]) != published
    assert abs(drawn.description["counts"]["test"]["patients"] - 5) <= 1


def test_the_fourteen_findings(raw: Path, tmp_path: Path) -> None:
    data = prepare_source("nih", raw, tmp_path / "out", task="findings", attributes=["view"], size=8, workers=1)
    assert (data.spec.labels, data.spec.kind) == (FINDINGS, "multilabel")
    entries = [line.split(",")[:2] for line in (raw / "Data_Entry_2017_v2020.csv").read_text().splitlines()[1:]]
    expected = [[name in found.split("|") for name in FINDINGS] for _, found in entries]
    assert data.labels().astype(bool).tolist() == expected
    one = prepare_source("nih", raw, tmp_path / "one", task="findings", labels=["Effusion"], attributes=["view"], size=8, workers=1)
    assert one.spec.kind == "binary"


def test_the_first_release_and_folders_by_archive_give_the_same(raw: Path, tmp_path: Path) -> None:
    whole = prepare_source("nih", raw, tmp_path / "whole", size=8, workers=1)
    table = raw / "Data_Entry_2017_v2020.csv"
    table.rename(raw / "Data_Entry_2017.csv")
    for k, path in enumerate(sorted((raw / "images").iterdir())):
        folder = raw / f"images_{k % 12 + 1:03d}" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    shutil.rmtree(raw / "images")
    parts = prepare_source("nih", raw, tmp_path / "parts", size=8, workers=1)
    assert parts.table.drop(columns="image").equals(whole.table.drop(columns="image"))
    assert parts.cache.fingerprint == whole.cache.fingerprint
    assert parts.table["image"][13] == "images_002/images/00000007_001.png"


def test_images_in_no_list_are_refused(raw: Path, tmp_path: Path) -> None:
    names = (raw / "test_list.txt").read_text().split()
    (raw / "test_list.txt").write_text("\n".join(names[2:]) + "\n")
    with pytest.raises(InputError, match="2 images are in neither of the provider's lists; use --split patient"):
        prepare_source("nih", raw, tmp_path / "out", size=8)
    (raw / "train_val_list.txt").unlink()
    with pytest.raises(InputError, match=r"has no file 'train_val_list.txt'"):
        prepare_source("nih", raw, tmp_path / "out", size=8)
    assert len(prepare_source("nih", raw, tmp_path / "out", size=8, workers=1, split="patient")) == 48


def test_a_patient_in_both_lists_is_refused_without_being_named(raw: Path, tmp_path: Path) -> None:
    names = (raw / "test_list.txt").read_text().split()
    (raw / "test_list.txt").write_text("\n".join(names[1:]) + "\n")
    with (raw / "train_val_list.txt").open("a") as file:
        file.write(names[0] + "\n")
    with pytest.raises(InputError) as caught:
        prepare_source("nih", raw, tmp_path / "out", size=8)
    assert str(caught.value) == "1 patient has images in several of the published splits (rest+test 1); use --split patient"
