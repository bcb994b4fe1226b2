"""BRSET, from a tiny copy of the download to a trained probe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from evenhand.data.datasets import PreparedData
from evenhand.errors import InputError
from tests.data.sources.reading import found


def test_from_raw_to_a_trained_probe(miniature: Callable[..., Path], story: Callable[..., PreparedData]) -> None:
    data = story("brset", miniature("brset"), options={"quality": "adequate"})
    assert len(data) == 46
    told = data.description["notes"]
    assert "2 rows were left out: the quality is inadequate (excluded.csv)" in told
    assert any(note.startswith("patients: 24 here, the provider says 8,524") for note in told)


def test_the_table_becomes_a_row_an_image(miniature: Callable[..., Path]) -> None:
    frame = found("brset", miniature("brset"), "grade").frame.set_index("image")
    third = frame.loc["fundus_photos/img00006.jpg"]
    assert (third.patient_id, third.eye, third.sex, third.age) == ("3", "left", "female", "60")
    assert (third.age60, third.age_over60, third.camera) == ("60 and over", "60 and under", "NIKON NF5050")
    assert (third.grade, third.referable, third.diabetic_retinopathy) == ("4", "1", "1")
    assert pd.isna(frame.loc["fundus_photos/img00003.jpg", "age5"])
    assert frame.groupby("patient_id").size().eq(2).all()


def test_the_newest_release_spells_columns_otherwise(miniature: Callable[..., Path], tmp_path: Path) -> None:
    from tests.data.sources.miniatures.brset import write

    old = found("brset", miniature("brset"), "diseases").frame
    write(tmp_path / "new", newest=True)
    pd.testing.assert_frame_equal(found("brset", tmp_path / "new", "diseases").frame, old)
    assert old["drusens"].tolist()[:4] == ["1", "0", "1", "0"]


def test_a_changed_column_is_offered(miniature: Callable[..., Path]) -> None:
    root = miniature("brset")
    table = root / "labels.csv"
    table.write_text(table.read_text().replace("patient_sex", "patient_gender").replace("DR_ICDR", "DR_ICD"))
    with pytest.raises(InputError, match=r"'DR_ICDR' is absent, did you mean 'DR_ICD'"):
        found("brset", root)
