"""COVID-CT-MD, from a tiny copy of its archive to a table, and to a trained probe."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evenhand.data.datasets import PreparedData
from evenhand.data.images import read_image
from evenhand.data.sources.base import Found
from evenhand.data.sources.prepare import make_choice
from evenhand.data.sources.public import covid_ct_md
from evenhand.data.sources.raw import RawFolder
from evenhand.errors import InputError

Make = Callable[..., Path]


def read(raw: Path, task: str | None = None, **options: str) -> Found:
    return covid_ct_md.read(RawFolder(raw, covid_ct_md.INFO.layout), make_choice(covid_ct_md.INFO, task, None, options))


def test_from_raw_to_a_trained_probe(miniature: Make, story: Callable[..., PreparedData]) -> None:
    data = story("covid_ct_md", miniature("covid_ct_md"), task="diagnosis")
    assert len(data) == 24
    assert data.spec.classes == ("CAP", "COVID-19", "Normal")
    assert any("COVID-19: 8 here, the provider says 169" in note for note in data.description["notes"])


def test_one_row_a_patient(miniature: Make) -> None:
    raw = miniature("covid_ct_md", patients=9)
    found = read(raw)
    assert found.frame["image"].iloc[0] == "COVID-19 Cases/P001/#axis=0&slice=middle&window=-600,1500"
    assert found.frame[["COVID-19", "disease", "diagnosis"]].drop_duplicates().to_numpy().tolist() == [
        ["1", "1", "COVID-19"], ["0", "1", "CAP"], ["0", "0", "Normal"],
    ]
    people = found.frame.set_index("patient_id")
    assert people.loc["COVID-19 P002", ["sex", "age"]].tolist() == ["male", "29"]
    assert people.loc["Normal normal001", ["sex"]].isna().all(), "O is no sex"
    assert people.loc["Normal normal002", ["sex", "age"]].isna().all(), "no row"
    assert "1 patient has a folder and no row in Clinical-data.csv: sex and age are missing there" in found.notes
    assert "1 row of Clinical-data.csv has no folder and is left out" in found.notes
    assert found.counts == {"patients": 9, "COVID-19": 3, "CAP": 3, "Normal": 3, "women": 4, "men": 3}


def test_slices_are_in_the_body_s_order_and_in_one_window(miniature: Make) -> None:
    raw = miniature("covid_ct_md", patients=3, slices=12)
    means = [read_image(raw / name).mean() for name in read(raw, view="slices").frame["image"].iloc[:6]]
    assert means == sorted(means), "file names run the other way round"
    frame = read(raw, view="slices").frame
    assert frame["image"].str.extract(r"slice=(\d+)")[0].iloc[:6].tolist() == ["3", "4", "5", "6", "7", "8"]
    assert frame["patient_id"].nunique() == 3
    mean, top = (read_image(raw / read(raw, view=how).frame["image"].iloc[2]) for how in ("mean", "max"))
    assert (top >= mean).all()
    hounsfield = mean / 65535 * 1500 - 1350
    assert np.allclose(hounsfield.mean(), -800 + 10 * 5.5, atol=3)


def test_without_the_clinical_table(miniature: Make) -> None:
    raw = miniature("covid_ct_md", patients=3, clinical=False)
    found = read(raw)
    assert found.frame["age"].tolist() == ["20", "23", "26"]
    assert found.frame["sex"].tolist()[:2] == ["female", "male"]
    assert any("read from the DICOM headers" in note for note in found.notes)


def test_bad_input(miniature: Make) -> None:
    raw = miniature("covid_ct_md", patients=3)
    (raw / "Cap Cases" / "cap002").mkdir()
    found = read(raw)
    assert found.left_out is not None
    assert found.left_out["reason"].tolist() == ["its folder holds no .dcm files"]
    with pytest.raises(InputError, match="has it: give that folder"):
        read(raw / "Cap Cases")
    shutil.rmtree(raw / "Cap Cases")
    (raw / "COVID-CT-MD.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"has no folder 'Cap Cases'.* archives that are not unpacked \(COVID-CT-MD\.zip\)"):
        read(raw)
