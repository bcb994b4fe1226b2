"""Interactive Atlas of Dermoscopy (derm7pt), from a tiny copy of the download to a trained probe: lists of indexes, names, groupings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evenhand.data.datasets import PreparedData
from evenhand.data.sources.base import Found
from evenhand.data.sources.prepare import make_choice
from evenhand.data.sources.public import derm7pt
from evenhand.data.sources.raw import RawFolder
from evenhand.errors import InputError

Miniature = Callable[..., Path]


def found(root: Path, task: str | None = None, split: str | None = None, **options: str) -> Found:
    return derm7pt.read(RawFolder(root, derm7pt.INFO.layout), make_choice(derm7pt.INFO, task, split, options))


def test_from_raw_to_a_trained_probe(miniature: Miniature, story: Callable[..., PreparedData]) -> None:
    miniature_root = miniature("derm7pt")
    data = story("derm7pt", miniature_root)
    assert data.table["split"].value_counts().to_dict() == {"train": 20, "val": 10, "test": 18}
    assert data.spec.attributes == ("sex",)
    told = "\n".join(data.description["notes"])
    for line in ("cases: 48 here, the provider says 1,011", "melanomas: 16 here, the provider says 252", "test cases: 18 here"):
        assert line in told
    assert "test cases" not in found(miniature_root, split="patient").counts


def test_indexes_count_rows_from_0(miniature: Miniature) -> None:
    frame = found(miniature("derm7pt")).frame
    assert frame["split"][:6].tolist() == ["train", "train", "val", "test", "test", "train"]
    assert frame["patient_id"][0] == "case 1"


def test_the_image_asked_for_is_found_without_regard_to_case(miniature: Miniature) -> None:
    root = miniature("derm7pt")
    assert found(root).frame["image"][:2].tolist() == ["images/NEL/Nel001.jpg", "images/NEL/Nel003.jpg"]
    clinic = found(root, image="clinic").frame["image"]
    assert clinic[:2].tolist() == ["images/NEL/Nel000.jpg", "images/NEL/Nel002.jpg"]
    for path in (root / "images" / "NEL").iterdir():
        path.rename(root / "images" / path.name)
    assert found(root, image="clinic").frame["image"][0] == "images/Nel000.jpg", "flattened folders"


@pytest.mark.parametrize(
    ("task", "label", "positive"),
    [
        ("malignant", "malignant", {"melanoma", "bcc"}), ("malignant_melanoma", "malignant", {"melanoma"}),
        ("melanoma", "melanoma", {"melanoma"}),
    ],
)
def test_groupings(miniature: Miniature, task: str, label: str, positive: set[str]) -> None:
    frame = found(miniature("derm7pt"), task).frame
    assert set(frame["diagnosis"]) == {"nevus", "melanoma", "bcc", "sk"}
    assert set(frame["diagnosis"][frame[label] == "1"]) == positive


def test_lists_that_do_not_fit_are_refused(miniature: Miniature) -> None:
    root = miniature("derm7pt")
    path = root / "meta" / "valid_indexes.csv"
    text = path.read_text()
    for change, said in (
        (text.replace("\n2\n", "\n0\n"), "has 1 index that another list has"),
        (text.replace("\n2\n", "\n"), "1 case is in none of the three lists"),
        (text + "48\n", r"not rows of meta.csv \(0 to 47\)"),
    ):
        path.write_text(change)
        with pytest.raises(InputError, match=said):
            found(root)
    path.unlink()
    with pytest.raises(InputError, match=r"valid_indexes\.csv"):
        found(root)
    assert "split" not in found(root, split="patient").frame


def test_an_unknown_diagnosis_is_refused(miniature: Miniature) -> None:
    root = miniature("derm7pt")
    path = root / "meta" / "meta.csv"
    path.write_text(path.read_text().replace("clark nevus", "clark naevus"))
    with pytest.raises(InputError, match="'clark naevus'"):
        found(root)
