"""Own sets as folders of classes and as parquet files, from the folder to a table, and to a trained probe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from evenhand.data.datasets import PreparedData
from evenhand.data.sources.base import Found
from evenhand.data.sources.prepare import make_choice
from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.registry import find_source
from evenhand.errors import InputError

Make = Callable[..., Path]
Story = Callable[..., PreparedData]


def read(name: str, raw: Path, task: str | None = None, split: str | None = None, **options: str) -> Found:
    source = find_source(name)
    found: Found = source.read(RawFolder(raw, source.INFO.layout), make_choice(source.INFO, task, split, options))
    return found


def test_image_folder_from_raw_to_a_trained_probe(miniature: Make, story: Story) -> None:
    data = story("image_folder", miniature("image_folder"), task="positive", options={"positive": "malignant"}, attributes=["sex"])
    assert len(data) == 48
    assert data.table["patient_id"].nunique() == 13, "twelve people of four images, and one image without a row"
    notes = data.description["notes"]
    assert "1 image has no row in attributes.csv: attributes are missing there" in notes
    assert "1 row of attributes.csv has no image" in notes
    assert "there are no folders train, val and test: split by patient" in notes


def test_image_folder_with_splits(miniature: Make) -> None:
    raw = miniature("image_folder", splits=True)
    found = read("image_folder", raw)
    assert found.frame["split"].value_counts().to_dict() == {"train": 36, "test": 6, "val": 6}
    assert found.frame["class"].value_counts().to_dict() == {"benign": 24, "malignant": 24}
    row = found.frame[found.frame["image"] == "train/malignant/Bild 03ä1.png"].iloc[0]
    assert (row["patient_id"], row["sex"], row["age"]) == ("P3", "m", "26")
    assert "split" not in read("image_folder", raw, split="patient").frame


def test_image_folder_without_a_table_and_with_a_wrong_one(miniature: Make) -> None:
    raw = miniature("image_folder", patients=4)
    for words, options in (("positive=NAME; the classes are benign, malignant", {}), ("did you mean 'malignant'", {"positive": "malign"})):
        with pytest.raises(InputError, match=words):
            read("image_folder", raw, "positive", **options)
    with pytest.raises(InputError, match="no such column"):
        read("image_folder", raw, patient="Patients")
    (raw / "attributes.csv").write_text("File,sex\nother.png,f\n")
    with pytest.raises(InputError, match=r"no file has a row in attributes\.csv"):
        read("image_folder", raw)
    (raw / "attributes.csv").write_text("picture,sex\nBild 00ä0.png,f\n")
    with pytest.raises(InputError, match="no column of files"):
        read("image_folder", raw)
    assert read("image_folder", raw, file="picture").frame["sex"].notna().sum() == 1
    (raw / "second.csv").write_text("a\n1\n")
    with pytest.raises(InputError, match="holds 2 tables"):
        read("image_folder", raw)
    found = read("image_folder", raw, table="none")
    assert found.frame["patient_id"].nunique() == 8
    assert list(found.frame.columns) == ["image", "class", "patient_id"]
    (raw / "benign" / "Bild 01ä0.png").write_bytes((raw / "malignant" / "Bild 01ä0.png").read_bytes())
    (raw / "attributes.csv").write_text("File,sex\nBild 01ä0,f\n")
    with pytest.raises(InputError, match="fits several files of one name"):
        read("image_folder", raw, table="attributes.csv")
    empty = raw / "benign" / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="no images in folders"):
        read("image_folder", empty)


def test_parquet_folder_from_raw_to_a_trained_probe(miniature: Make, story: Story) -> None:
    data = story("parquet_folder", miniature("parquet_folder"), attributes=["sex"])
    assert data.spec.classes == ("benign", "malignant")
    assert set(data.split) == {"train", "val", "test"}
    assert (data.split == "test").sum() == 16, "the files' own test split; val is drawn"
    assert data.table["class"].isna().sum() == 1


@pytest.mark.parametrize("stored", [True, False])
def test_parquet_cells_are_text(miniature: Make, stored: bool) -> None:
    raw = miniature("parquet_folder", patients=6, stored=stored)
    found = read("parquet_folder", raw, "positive", positive="malignant")
    first = found.frame[found.frame["patient_id"] == "person 3"].iloc[0]
    assert first["image"] == "data/train-00000-of-00002.parquet#row=2&column=image"
    cells = first[["class", "label", "positive", "age", "split"]].tolist()
    assert cells == ["malignant", "malignant", "1", "33.5", "rest"]
    assert found.frame["age"].isna().sum() == 2
    assert found.frame["positive"].isna().sum() == 1
    assert "boxes" not in found.frame
    assert found.counts == {"images": 12, "patients": 6, "files": 3}


def test_parts_of_a_parquet_folder_that_are_absent_are_named(miniature: Make) -> None:
    raw = miniature("parquet_folder", patients=6)
    assert not any("are not there" in note for note in read("parquet_folder", raw).notes)
    (raw / "data" / "train-00000-of-00002.parquet").unlink()
    note = next(note for note in read("parquet_folder", raw).notes if "are not there" in note)
    assert "a part of the data set: data/train-00000-of-00002.parquet; download" in note


def test_parquet_folders_that_do_not_fit(miniature: Make) -> None:
    raw = miniature("parquet_folder", patients=6)
    data = raw / "data"
    with pytest.raises(InputError, match="no such column"):
        read("parquet_folder", raw, label="lable")
    (data / "test-00000-of-00001.parquet").rename(data / "all.parquet")
    assert "split" not in read("parquet_folder", raw).frame
    pd.DataFrame({"a": [1]}).to_parquet(data / "b.parquet")
    with pytest.raises(InputError, match="other columns"):
        read("parquet_folder", raw)
    (data / "b.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(InputError, match="not a parquet file"):
        read("parquet_folder", raw)
    for path in data.iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"has no \.parquet files"):
        read("parquet_folder", raw)
    pd.DataFrame({"a": [1]}).to_parquet(data / "b.parquet")
    with pytest.raises(InputError, match="no column of images"):
        read("parquet_folder", raw)
