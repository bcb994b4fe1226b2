"""PAPILA, from a tiny copy of the download to a trained probe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from evenhand.data.datasets import PreparedData
from evenhand.errors import InputError
from tests.data.sources.miniatures._sheet import write_sheet
from tests.data.sources.reading import found


def test_from_raw_to_a_trained_probe(miniature: Callable[..., Path], story: Callable[..., PreparedData]) -> None:
    data = story("papila", miniature("papila"))
    assert len(data) == 40
    assert set(data.table["diagnosis"]) == {"healthy", "glaucoma"}
    told = " ".join(data.description["notes"])
    assert "8 rows were left out: suspicious" in told
    assert "images: 48 here, the provider says 488" in told


def test_the_sheets_become_a_row_an_eye(miniature: Callable[..., Path]) -> None:
    root = miniature("papila")
    frame = found("papila", root, "diagnosis").frame
    first = frame[frame.patient_id == "004"].set_index("eye")
    assert list(first.index) == ["right", "left"]
    assert first.loc["left", "image"] == "FundusImages/RET004OS.jpg"
    assert first["sex"].isna().all(), "an unknown sex is in no group"
    third = frame[frame.patient_id == "006"].iloc[0]
    assert (third.sex, third.age, third.age60, third.age_over60, third.age5) == ("female", "60", "60 and over", "60 and under", "60 to 79")
    ill = found("papila", root, "glaucoma_or_suspicious").frame["glaucoma"].eq("1").sum()
    assert ill == (frame["diagnosis"] != "healthy").sum() == 27


def test_tables_saved_as_csv_read_the_same(miniature: Callable[..., Path]) -> None:
    root = miniature("papila")
    before = found("papila", root, "diagnosis").frame
    for side, eye in (("od", "right"), ("os", "left")):
        part = before[before.eye == eye]
        csv = pd.DataFrame({
            "ID": "#" + part.patient_id, "Age": part.age.astype(float), "Gender": part.sex.map({"male": 0.0, "female": 1.0}),
            "Diagnosis": part.diagnosis.map({"healthy": 0.0, "glaucoma": 1.0, "suspicious": 2.0}),
        })
        csv.to_csv(root / "ClinicalData" / f"patient_data_{side}.csv", index=False)
        (root / "ClinicalData" / f"patient_data_{side}.xlsx").unlink()
    pd.testing.assert_frame_equal(found("papila", root, "diagnosis").frame.astype(str), before.astype(str))


def test_other_columns_and_a_wrong_level_are_said(miniature: Callable[..., Path]) -> None:
    root = miniature("papila")
    with pytest.raises(InputError, match="give that folder"):
        found("papila", root.parent)
    write_sheet(root / "ClinicalData" / "patient_data_od.xlsx", [("ID", "Age", "Sex", "Diagnosis"), ("#002", 47, 0, 2)])
    with pytest.raises(InputError, match="'Gender' is absent"):
        found("papila", root)
    (root / "ClinicalData" / "patient_data_od.xlsx").write_bytes(b"PK half a file")
    with pytest.raises(InputError, match="download it again"):
        found("papila", root)
