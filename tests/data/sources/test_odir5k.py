"""ODIR-5K, from a tiny copy of the download to a trained probe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evenhand.data.datasets import PreparedData
from evenhand.data.sources.public.odir5k import BACKGROUND, find_codes
from evenhand.errors import InputError
from tests.data.sources.miniatures._sheet import write_sheet
from tests.data.sources.reading import found


def test_from_raw_to_a_trained_probe(miniature: Callable[..., Path], story: Callable[..., PreparedData]) -> None:
    data = story("odir5k", miniature("odir5k"))
    assert len(data) == 43
    told = data.description["notes"]
    assert "2 rows were left out: the keywords say that it is no fundus image (excluded.csv)" in told
    assert "1 row was left out: the keywords say nothing but the image's quality (excluded.csv)" in told
    assert "2 rows were left out: the provider names its wrong background (excluded.csv)" in told
    assert any(note.startswith("images: 48 here, the provider says 7,000") for note in told)


def test_an_eye_has_its_own_label(miniature: Callable[..., Path]) -> None:
    result = found("odir5k", miniature("odir5k"), "diseases", background="keep")
    frame = result.frame.set_index("image")
    left, right = (frame.loc[f"ODIR-5K_Training_Dataset/3_{side}.jpg"] for side in ("left", "right"))
    assert (left.C, left.abnormal, right.C, right.N, right.abnormal) == ("1", "1", "0", "1", "0")
    assert (right.patient_C, right.patient_N) == ("1", "0")
    assert (left.age, left.age60, left.age_over60, left.sex) == ("60", "60 and over", "60 and under", "male")
    assert frame.loc["ODIR-5K_Training_Dataset/4_left.jpg", "O"] == "1"
    assert "age: 2 rows have age 1 and are kept" in result.notes
    assert len(frame) == 45
    assert not [note for note in result.notes if "other codes" in note]


def test_the_copy_on_kaggle_gives_the_same_eyes(miniature: Callable[..., Path], tmp_path: Path) -> None:
    from tests.data.sources.miniatures.odir5k import write

    ours = found("odir5k", miniature("odir5k")).frame
    write(tmp_path / "kaggle", kaggle=True)
    theirs = found("odir5k", tmp_path / "kaggle").frame
    assert theirs["image"].str.startswith("preprocessed_images/").all()
    names = ["patient_id", "eye", "abnormal", "D", "sex", "age60"]
    assert theirs[names].astype(str).equals(ours[names].astype(str))


def test_keywords_and_codes_that_differ_are_said(miniature: Callable[..., Path]) -> None:
    root = miniature("odir5k")
    name = "ODIR-5K_Training_Annotations(Updated)_V2.xlsx"
    from tests.data.sources.miniatures.odir5k import HEADER

    row = [7, 50, "Male", "7_left.jpg", "7_right.jpg", "vitreous degeneration", "normal fundus", 1, 0, 0, 0, 0, 0, 0, 0]
    write_sheet(root / name, [list(HEADER), row])
    assert "1 of 1 patients has other codes than the keywords of the eyes give; eyes are taken" in found("odir5k", root).notes
    write_sheet(root / name, [["ID", "Age", *HEADER[2:]], row])
    with pytest.raises(InputError, match=r"'Patient Age' is absent"):
        found("odir5k", root)


def test_codes_of_keywords() -> None:
    assert find_codes("dry age-related macular degeneration，glaucoma") == {"A", "G"}
    assert find_codes("pathological myopia, lens dust") == {"M"}
    assert find_codes("tessellated fundus") == {"O"}
    assert find_codes("optic disk photographically invisible") == set()
    assert len(BACKGROUND) == 16
