"""The sets of the Harvard Ophthalmology AI Lab, from tiny copies of the downloads to trained probes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evenhand.data.datasets import PreparedData
from evenhand.data.images import read_image
from evenhand.errors import InputError
from tests.data.sources.reading import found

NAMES = ("harvard_gf3300", "harvard_fairvlmed", "harvard_glaucoma_fairness")


@pytest.mark.parametrize("name", NAMES)
def test_from_raw_to_a_trained_probe(name: str, miniature: Callable[..., Path], story: Callable[..., PreparedData]) -> None:
    data = story(name, miniature(name))
    assert len(data) == (27 if name == "harvard_glaucoma_fairness" else 28)
    assert not {"note", "gpt4_summary"} & set(data.table.columns)
    told = " ".join(data.description["notes"])
    assert "train images: 16 here, the provider says" in told or name == "harvard_glaucoma_fairness"
    assert "images: 28 here, the provider says" in told


@pytest.mark.parametrize("name", NAMES)
def test_unknown_is_missing_and_the_provider_splits(name: str, miniature: Callable[..., Path]) -> None:
    frame = found(name, miniature(name), split="published").frame.set_index("patient_id")
    digits = 4 if name == "harvard_gf3300" else 5
    second, third, fifth = (frame.loc[f"data_{number:0{digits}d}"] for number in (2, 3, 5))
    assert pd.isna(second.ethnicity)
    assert second.sex == "female"
    assert second.race_white == "White"
    assert (third.age, third.age60, third.age_over60) == ("60", "60 and over", "60 and under")
    assert (third.race, third.marital) == ("Asian", "widowed")
    assert pd.isna(fifth.language)
    assert (fifth.split, frame.loc[f"data_{6:0{digits}d}", "split"], second.split) == ("test", "test", "train")
    assert frame["split"].value_counts().to_dict() == {"train": 16, "test": 8, "val": 4 - (name == NAMES[2])}


def test_without_the_summary_table_the_files_are_read(miniature: Callable[..., Path]) -> None:
    root = miniature("harvard_gf3300")
    with_table = found("harvard_gf3300", root).frame
    (root / "data_summary.csv").unlink()
    without = found("harvard_gf3300", root).frame
    kept = [name for name in with_table if name not in ("md", "age")]
    pd.testing.assert_frame_equal(without[kept].astype(str), with_table[kept].astype(str))
    assert without["md"].notna().all()


def test_words_that_are_not_known_are_said_and_the_others_spelled_as_elsewhere(miniature: Callable[..., Path]) -> None:
    root = miniature("harvard_gf3300")
    table = pd.read_csv(root / "data_summary.csv")
    table.loc[0, "language"], table.loc[1, "maritalstatus"] = "klingon", "Married/Civil Union"
    table.to_csv(root / "data_summary.csv", index=False)
    result = found("harvard_gf3300", root)
    assert [note for note in result.notes if note.startswith("language")] == [
        "language: 1 value is none that the provider describes ('klingon' 1) and counts as missing",
    ]
    assert result.frame.loc[1, "marital"] == "married or partnered"
    assert set(result.frame["ethnicity"].dropna()) == {"Hispanic or Latino", "not Hispanic or Latino"}
    assert set(result.frame["race_white"].dropna()) == {"White", "Other"}


def test_volumes_thickness_and_pictures(miniature: Callable[..., Path]) -> None:
    root = miniature("harvard_gf3300")
    assert found("harvard_gf3300", root).frame["image"][0] == "Training/data_0001.npz#array=rnflt&scale=-2,350"
    film = read_image(root / "Training/data_0002.npz#array=rnflt&scale=-2,350")
    assert (film[0].max(), film[5, 5], film.dtype) == (0, round(347 / 352 * 65535), np.uint16)
    volumes = found("harvard_gf3300", root, image="oct_bscans", view="max")
    assert volumes.frame["image"][0] == "Training/data_0001.npz#array=oct_bscans&axis=0&project=max&scale=0,255"
    assert volumes.left_out is not None
    assert list(volumes.left_out["reason"]) == ["the OCT volume is empty"]
    vlm = found("harvard_fairvlmed", miniature("harvard_fairvlmed"))
    assert vlm.frame["image"][:2].tolist() == ["Training/data_00001.npz#array=slo_fundus&scale=0,255", "Training/slo_fundus_00002.jpg"]
    assert "1 of 28 images has no picture beside the .npz file and is read from it" in vlm.notes


def test_other_diseases_of_fairvision(miniature: Callable[..., Path]) -> None:
    root = miniature("harvard_glaucoma_fairness")
    frame = found("harvard_glaucoma_fairness", root, "amd_stage", image="slo").frame
    assert frame["stage"][:5].tolist() == ["early", "intermediate", "late", "none", "none"]
    assert frame["amd"][:5].tolist() == ["1", "1", "1", "0", "0"]
    assert frame["age"].isna().all()
    assert frame["image"][0] == "AMD/train/slo_fundus_00001.jpg"
    with pytest.raises(InputError, match="has no folder 'DR'"):
        found("harvard_glaucoma_fairness", root, "dr")


def test_absent_and_damaged_files_are_said(miniature: Callable[..., Path], tmp_path: Path) -> None:
    root = miniature("harvard_gf3300", summary=False)
    (root / "Training" / "data_0001.npz").write_bytes(b"PK\x03\x04 half")
    result = found("harvard_gf3300", root)
    assert "1 file cannot be read; the attributes there count as missing" in result.notes
    assert pd.isna(result.frame["glaucoma"][0])
    (root / "copies").mkdir()
    (root / "copies" / "data_0002.npz").write_bytes((root / "Training" / "data_0002.npz").read_bytes())
    with pytest.raises(InputError, match=r"1 file data_\*\.npz stands in two folders"):
        found("harvard_gf3300", root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"has no file 'data_summary.csv'"):
        found("harvard_gf3300", tmp_path / "empty")
    other = tmp_path / "other" / "Training"
    other.mkdir(parents=True)
    np.savez(other / "data_0001.npz", x=np.zeros(3))
    with pytest.raises(InputError, match="has no label: neither summary table nor files have 'glaucoma'"):
        found("harvard_gf3300", other.parent)


def test_progression_is_labelled_in_half_of_gdp(miniature: Callable[..., Path], story: Callable[..., PreparedData]) -> None:
    root = miniature("harvard_gdp")
    result = found("harvard_gdp", root, "progression")
    assert result.counts == {"images": 24, "patients": 24, "with progression": 12}
    assert len(result.frame) == 12
    assert result.frame.loc[2, ["progression_md", "progression_vfi", "progression_md_fast", "race"]].tolist() == ["1", "0", "1", "Asian"]
    assert "race: 1 value is none of Asian, Black, White and counts as missing" in result.notes
    assert len(story("harvard_gdp", root)) == 24
