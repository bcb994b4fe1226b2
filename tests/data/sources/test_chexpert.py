"""CheXpert, from tiny copies of its downloads to a table, and to a trained probe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from evenhand.data.datasets import PreparedData
from evenhand.data.sources.base import Found
from evenhand.data.sources.prepare import make_choice
from evenhand.data.sources.public import chexpert
from evenhand.data.sources.public._chexpert_labels import FINDINGS, versus_name
from evenhand.data.sources.raw import RawFolder
from evenhand.errors import InputError, TableError
from tests.data.sources.miniatures.chexpert import write

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small archive with the demographics file; only read."""
    root = tmp_path_factory.mktemp("chexpert")
    write(root)
    return root


def read(raw: Path, task: str | None = None, split: str | None = None, **options: str) -> Found:
    found = chexpert.read(RawFolder(raw, chexpert.INFO.layout), make_choice(chexpert.INFO, task, split, options))
    assert all((raw / name).is_file() for name in found.frame["image"])
    return found


def row(found: Found, place: str) -> pd.Series:
    return found.frame[found.frame["image"].str.endswith(place)].iloc[0]


def test_from_raw_to_a_trained_probe(miniature: Make, story: Callable[..., PreparedData]) -> None:
    data = story("chexpert", miniature("chexpert"), task="pleural_effusion_vs_no_finding", attributes=["sex", "race_white", "age60"])
    assert data.spec.labels == ("Pleural Effusion",)
    assert len(data) == 29
    assert any("training images: 64 here, the provider says 223,414" in note for note in data.description["notes"])
    assert any("31 rows were left out: neither 'No Finding' nor 'Pleural Effusion'" in note for note in data.description["notes"])


def test_traps_of_sex_age_and_race(raw: Path) -> None:
    found = read(raw)
    unknown = row(found, "patient00002/study1/view1_frontal.jpg")
    assert unknown[["sex", "age", "age60"]].isna().all(), "Unknown is no sex, and 0 no age"
    assert unknown[["race", "race_white", "ethnicity"]].tolist() == ["White", "White", "not Hispanic or Latino"]
    old = row(found, "patient00003/study1/view1_frontal.jpg")
    assert old[["sex", "age", "age5", "race", "race_white", "ethnicity"]].tolist() == [
        "male", "90", "80 and over", "Asian", "Other", "Hispanic or Latino",
    ]
    assert pd.isna(row(found, "patient00004/study1/view1_frontal.jpg")["race"]), "unknown"
    assert row(found, "patient00006/study1/view1_frontal.jpg")["race"] == "Pacific Islander"
    assert pd.isna(row(found, "patient00008/study1/view1_frontal.jpg")["race_white"]), "refused"
    assert row(found, "patient00009/study1/view1_frontal.jpg")["race"] == "Native American"
    assert pd.isna(row(found, "patient00005/study1/view1_frontal.jpg")["race"]), "two entries that differ"
    assert "race: 1 patient has entries that differ; it is missing there" in found.notes
    assert not [note for note in found.notes if "patient0" in note]


def test_over_60_as_the_dne_code_has_it(raw: Path) -> None:
    ages = read(raw).frame.drop_duplicates("age").set_index("age")
    assert ages.loc["59", ["age60", "age_over60"]].tolist() == ["under 60", "60 and under"]
    assert ages.loc["62", ["age60", "age_over60"]].tolist() == ["60 and over", "over 60"]


def test_uncertain_and_blank_labels(raw: Path) -> None:
    place = "patient00001/study1/view1_frontal.jpg"  # Edema -1, Pleural Effusion 0, Lung Lesion 1, No Finding blank
    edema = {policy: row(read(raw, "findings", uncertain=policy), place)["Edema"] for policy in ("zeros", "ones", "dne")}
    assert edema == {"zeros": "0", "ones": "1", "dne": "1"}
    ignored = read(raw, "findings")
    assert pd.isna(row(ignored, place)["Edema"])
    assert row(ignored, place)[["No Finding", "Fracture", "Lung Lesion"]].tolist() == ["0", "0", "1"]
    assert "36 labels of the task are uncertain (-1) and are left empty (option uncertain=ignore)" in ignored.notes
    blank = row(read(raw, "findings", unmentioned="missing"), place)
    assert pd.isna(blank["Fracture"])
    assert blank["No Finding"] == "0"
    other = "patient00001/study2/view1_frontal.jpg"  # Pleural Effusion -1, Atelectasis -1
    assert row(read(raw, "competition", uncertain="dne"), other)[["Pleural Effusion", "Atelectasis"]].tolist() == ["0", "1"]


def test_one_finding_against_none(raw: Path) -> None:
    found = read(raw, "edema_vs_no_finding", uncertain="ones")
    counts = found.frame["Edema"].value_counts()
    assert set(found.frame["No Finding"][found.frame["Edema"] == "0"]) == {"1"}
    assert counts.to_dict() == {"1": 12, "0": 15}
    assert set(read(raw, "edema_vs_no_finding", uncertain="zeros").frame["Edema"]) == {"0"}, "absent is not No Finding"
    four = read(raw, "dne", uncertain="dne").frame[["Pleural Effusion", "Pneumonia", "Lung Lesion", "Edema"]]
    assert four.iloc[0].tolist() == [pd.NA, pd.NA, "1", "1"]
    tasks = {task.name: task for task in chexpert.INFO.tasks}
    assert all(tasks[versus_name(name)].labels == (name,) for name in FINDINGS)


@pytest.mark.parametrize(("layout", "test"), [("full", "paths"), ("batches", "studies")])
def test_layouts_and_the_public_test_set(miniature: Make, layout: str, test: str) -> None:
    found = read(miniature("chexpert", layout=layout, test=test), split="published", view="all")
    assert found.counts["images"] == 64 + 16 + 7
    assert found.counts["test patients"] == 6
    assert found.frame["split"].value_counts().to_dict() == {"train": 64, "val": 16, "test": 7}
    first = row(found, "patient64741/study1/view1_frontal.jpg")
    assert first[["sex", "age", "race"]].tolist() == ["male", "71", "Black"], "from the demographics file"
    assert row(found, "patient64741/study1/view2_lateral.jpg")["view"] == "lateral"
    assert pd.isna(first["view"]), "no AP or PA is published for the test set"


def test_without_test_set_and_demographics(miniature: Make) -> None:
    found = read(miniature("chexpert", demo=False), split="published")
    assert found.frame["split"].value_counts().to_dict() == {"rest": 48, "test": 12}
    assert found.frame["race"].isna().all()
    assert any("CHEXPERT DEMO.xlsx is not in the raw folder" in note for note in found.notes)
    assert any("the validation table is the test split" in note for note in found.notes)
    assert "images" not in found.counts, "the published total includes the test set"


@pytest.mark.parametrize(("view", "kept"), [("frontal", 60), ("ap", 30), ("pa", 30), ("lateral", 20), ("all", 80)])
def test_views(raw: Path, view: str, kept: int) -> None:
    found = read(raw, view=view)
    assert len(found.frame) == kept
    assert (0 if found.left_out is None else len(found.left_out)) == 80 - kept


def test_another_labeller(miniature: Make) -> None:
    raw = miniature("chexpert", layout="batches")
    batch = raw / chexpert.BATCHES[0]
    (raw / "train_cheXbert.csv").write_text((batch / "train.csv").read_text().replace("CheXpert-v1.0/", "CheXpert-v1.0-x/"))
    assert len(read(raw, labeller="chexbert").frame) == 60
    with pytest.raises(InputError, match=r"train_visualCheXbert\.csv"):
        read(raw, labeller="visualchexbert")


def test_bad_input(miniature: Make) -> None:
    raw = miniature("chexpert")
    with pytest.raises(InputError, match="has it: give that folder"):
        read(raw / "train")
    table = (raw / "train.csv").read_text()
    (raw / "train.csv").write_text(table.replace(",-1.0", ",2.0", 1))
    with pytest.raises(TableError, match=r"is '2\.0' in 1 row, but a label of this set is 1, 0, -1 or blank"):
        read(raw)
    (raw / "train.csv").write_text(table.replace("Frontal/Lateral", "Frontal"))
    with pytest.raises(InputError, match=r"'Frontal/Lateral' is absent, did you mean 'Frontal'"):
        read(raw)
    (raw / "train.csv").write_text(table.replace("/train/patient00001", "/train/x", 1))
    with pytest.raises(InputError, match=r"1 cell of column 'Path' is not of the form"):
        read(raw)


def test_an_odd_path_is_not_shown_since_it_names_a_patient(miniature: Make) -> None:
    folder = miniature("chexpert")
    table = next(folder.rglob("train.csv"))
    table.write_text(table.read_text().replace("train/patient00001/study1/view1_frontal.jpg", "patient00001.jpg"))
    with pytest.raises(InputError, match="not of the form") as error:
        read(folder)
    assert "patient00001.jpg" not in str(error.value)
