"""The COVID-19 image data collection, from a tiny copy of its repository to a table, and to a trained probe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evenhand.data.datasets import PreparedData
from evenhand.data.sources.base import Found
from evenhand.data.sources.prepare import make_choice
from evenhand.data.sources.public import covid_chestxray
from evenhand.data.sources.raw import RawFolder
from evenhand.errors import InputError

Make = Callable[..., Path]


def read(raw: Path, task: str | None = None, **options: str) -> Found:
    found = covid_chestxray.read(RawFolder(raw, covid_chestxray.INFO.layout), make_choice(covid_chestxray.INFO, task, None, options))
    assert all((raw / name).is_file() for name in found.frame["image"])
    return found


def test_from_raw_to_a_trained_probe(miniature: Make, story: Callable[..., PreparedData]) -> None:
    data = story("covid_chestxray", miniature("covid_chestxray"))
    assert len(data) == 34
    assert data.spec.labels == ("COVID-19",)
    assert data.description["image"]["channels"] == 1, "colour copies of grey films are read as grey"
    assert data.table["licence"].value_counts().to_dict() == {"CC BY-NC-SA": 22}


def test_what_is_left_out_and_why(miniature: Make) -> None:
    raw = miniature("covid_chestxray")
    found = read(raw)
    assert found.left_out is not None
    assert found.left_out["reason"].value_counts().to_dict() == {
        "its finding is left out by the task's definition": 2, "a volume": 1, "not a frontal view (option view=frontal)": 1,
        "not of the modality asked for (option modality=x-ray)": 1,
    }
    assert found.counts == {"rows": 39, "patients": 24}
    assert found.frame.loc[found.frame["patient_id"] == "2", ["sex", "age"]].isna().all(axis=None)
    assert len(read(raw, view="all").frame) == 35
    assert set(read(raw, view="all").frame["view"]) == {"PA", "AP", "AP supine", "lateral"}
    table = raw / "metadata.csv"
    table.write_text(table.read_text().replace("AP Supine", "AP SUPINE", 3))
    assert set(read(raw).frame["view"]) == {"PA", "AP", "AP supine"}, "spellings that differ in case are one group"
    assert read(raw, modality="ct").frame["view"].tolist() == ["Axial"]


def test_tasks(miniature: Make) -> None:
    raw = miniature("covid_chestxray")
    covid = read(raw).frame.drop_duplicates("finding").set_index("finding")["COVID-19"]
    assert covid.to_dict() == {
        "Pneumonia/Bacterial/Streptococcus": "0", "Pneumonia/Viral/COVID-19": "1", "Pneumonia/Fungal/Pneumocystis": "0", "No Finding": "0",
        "Pneumonia/Viral/Herpes": "0", "Pneumonia/Bacterial/Staphylococcus/MRSA": "0", "Pneumonia": "0",
    }
    kinds = read(raw, "pneumonia").frame.drop_duplicates("finding").set_index("finding")["pneumonia"]
    assert kinds.to_dict() == {
        "Pneumonia/Bacterial/Streptococcus": "bacterial", "Pneumonia/Viral/COVID-19": "COVID-19", "Pneumonia/Fungal/Pneumocystis": "fungal",
        "Pneumonia/Viral/Herpes": "other viral", "Pneumonia/Bacterial/Staphylococcus/MRSA": "bacterial",
    }
    assert read(raw, "survival").frame["died"].value_counts().to_dict() == {"0": 20, "1": 10}


def test_the_first_version_of_the_table(miniature: Make) -> None:
    raw = miniature("covid_chestxray", version="first")
    found = read(raw)
    assert len(found.frame) == 34
    assert found.frame.loc[found.frame["finding"] == "COVID-19, ARDS", "COVID-19"].tolist() == ["1"]
    assert read(raw, modality="ct").frame["view"].tolist() == ["CT"]
    assert set(read(raw, "pneumonia").frame["pneumonia"]) == {"COVID-19", "bacterial", "fungal", "other viral"}


def test_bad_input(miniature: Make) -> None:
    raw = miniature("covid_chestxray", patients=4)
    with pytest.raises(InputError, match="has it: give that folder"):
        read(raw / "images")
    (raw / "metadata.csv").write_text((raw / "metadata.csv").read_text().replace("patientid,", "patient,"))
    with pytest.raises(InputError, match="'patientid' is absent, did you mean 'patient'"):
        read(raw)
