"""What `prepare_source` does for every set alike, on the miniature of NIH ChestX-ray14."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evenhand.data import prepare as preparing
from evenhand.data.datasets import PreparedData
from evenhand.data.sources.prepare import prepare_source
from evenhand.errors import InputError, TableError

TABLE = "Data_Entry_2017_v2020.csv"


@pytest.fixture
def raw(miniature: Callable[..., Path]) -> Path:
    return miniature("nih", patients=16)


@pytest.fixture
def prepare(raw: Path, tmp_path: Path) -> Callable[..., PreparedData]:
    return lambda name="out", **options: prepare_source("nih", raw, tmp_path / name, size=16, workers=1, **options)


def film(raw: Path, patient: int, visit: int = 0) -> Path:
    return raw / "images" / f"{patient:08d}_{visit:03d}.png"


def test_an_image_in_two_published_splits_is_found_by_its_content(raw: Path, prepare: Callable[..., PreparedData]) -> None:
    pixels = np.asarray(Image.open(film(raw, 4)).convert("L"))
    Image.fromarray(pixels).save(film(raw, 5), compress_level=9)
    assert film(raw, 4).read_bytes() != film(raw, 5).read_bytes()
    notes = prepare().description["notes"]
    assert [note for note in notes if note.startswith("1 image content is in more than one split (rows 7, 9)")]


@pytest.mark.parametrize("split", ["published", "patient"])
def test_where_the_split_is_ours_equal_images_stay_together(raw: Path, prepare: Callable[..., PreparedData], split: str) -> None:
    """Films of patients 1, 2 and 3 are chained by equal content, and none of them is in the published test list."""
    shutil.copy(film(raw, 1), film(raw, 2))
    shutil.copy(film(raw, 2, 1), film(raw, 3, 1))
    for seed in range(2):
        data = prepare(f"out{seed}", split=split, seed=seed, fractions=(0.4, 0.3, 0.3))
        assert data.table.groupby("patient_id")["split"].nunique().max() == 1
        assert data.table["split"][data.table["patient_id"].isin(["1", "2", "3"])].nunique() == 1
        assert not [note for note in data.description["notes"] if "more than one split" in note]


def test_a_usual_attribute_without_a_value_is_left_out_and_said(raw: Path, prepare: Callable[..., PreparedData]) -> None:
    frame = pd.read_csv(raw / TABLE, dtype="str").assign(**{"Patient Gender": ""})
    frame.to_csv(raw / TABLE, index=False)
    data = prepare()
    assert data.spec.attributes == ("age60",)
    assert "attribute 'sex' has no value in this download and was left out" in data.description["notes"]
    with pytest.raises(TableError, match="attribute 'sex' is missing in all 32 rows; leave it out, or fill the column"):
        prepare("other", attributes=["sex"])


def test_ages_are_cut_as_one_likes(prepare: Callable[..., PreparedData]) -> None:
    data = prepare(attributes=["age", "sex*age"], bins={"age": (0, 40, 65, 200)})
    assert data.groups()["age"].keys == ("[0,40)", "[40,65)", "[65,200)")
    assert (data.groups()["age"].codes < 0).sum() == 2
    with pytest.raises(TableError, match="outside its bins"):
        prepare("other", attributes=["age"], bins={"age": (0, 40)})


def test_rows_with_a_missing_attribute_can_be_dropped(prepare: Callable[..., PreparedData], tmp_path: Path) -> None:
    data = prepare(missing="drop")
    assert len(data) == 28
    excluded = pd.read_csv(tmp_path / "out" / "excluded.csv")
    assert excluded["reason"].value_counts().to_dict() == {"attribute 'sex' is missing": 2, "attribute 'age60' is missing": 2}
    assert data.description["excluded"] == {"missing_attribute": 4, "unreadable_image": 0}
    with pytest.raises(TableError):
        prepare("other", missing="error")


def test_a_killed_call_goes_on(prepare: Callable[..., PreparedData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(preparing, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare()
    with pytest.raises(InputError, match="was not finished; run the same 'evenhand prepare' command again to go on"):
        PreparedData.open(tmp_path / "out")
    monkeypatch.undo()
    built = (tmp_path / "out" / "cache" / "manifest.json").stat().st_mtime_ns
    assert prepare().fingerprint == prepare("whole").fingerprint
    assert (tmp_path / "out" / "cache" / "manifest.json").stat().st_mtime_ns == built


def test_a_finished_set_is_left_as_it_is_also_with_the_raw_folder_moved(
    raw: Path, prepare: Callable[..., PreparedData], tmp_path: Path
) -> None:
    first = prepare()
    moved = raw.rename(tmp_path / "moved")
    again = prepare_source("nih", moved, tmp_path / "out", size=16, workers=1)
    assert again.fingerprint == first.fingerprint
    assert again.description["source"]["raw"] == str(raw)
