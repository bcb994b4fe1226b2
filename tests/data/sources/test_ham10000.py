"""HAM10000, from a tiny copy of the download to a trained probe: exact values of what is odd, both releases, and the real words."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from evenhand.data.datasets import PreparedData
from evenhand.data.sources.base import Found
from evenhand.data.sources.prepare import make_choice
from evenhand.data.sources.public import ham10000 as source
from evenhand.data.sources.raw import RawFolder
from evenhand.errors import InputError

Miniature = Callable[..., Path]


def found(root: Path, task: str | None = None) -> Found:
    return source.read(RawFolder(root, source.INFO.layout), make_choice(source.INFO, task, None, {}))


def test_from_raw_to_a_trained_probe(miniature: Miniature, story: Callable[..., PreparedData]) -> None:
    data = story("ham10000", miniature("ham10000"))
    assert len(data) == 32
    assert data.spec.labels == ("malignant",)
    told = "\n".join(data.description["notes"])
    assert "images: 32 here, the provider says 10,015" in told
    assert "lesions: 24 here, the provider says 7,470" in told
    assert re.search(r"mel: \d+ here, the provider says 1,113", told), "counts of the diagnoses tell a wrong coding"
    assert sum(source.COUNTS.values()) == 10015


def test_a_lesion_is_the_unit_and_what_is_unknown_is_missing(miniature: Miniature) -> None:
    frame = found(miniature("ham10000")).frame.set_index("patient_id")
    assert frame.loc["HAM_0000003", "image"].tolist() == [
        "HAM10000_images_part_1/ISIC_0024308.jpg", "HAM10000_images_part_2/ISIC_0024309.jpg",
    ]
    assert frame["sex"].isna().sum() == 1
    assert frame["sex"].isna()["HAM_0000002"]
    assert frame.loc["HAM_0000003", "age"].isna().all()
    assert frame.loc["HAM_0000004", ["age", "age60", "age_over60"]].tolist() == ["0", "under 60", "60 and under"]
    assert frame.loc["HAM_0000005", ["age", "age60", "age_over60"]].tolist() == ["60", "60 and over", "60 and under"]


@pytest.mark.parametrize(
    ("task", "label", "positive"),
    [
        ("malignant", "malignant", {"mel", "bcc", "akiec"}), ("malignant_medfair", "malignant", {"mel", "akiec"}),
        ("melanoma", "melanoma", {"mel"}),
    ],
)
def test_malignant_groupings(miniature: Miniature, task: str, label: str, positive: set[str]) -> None:
    frame = found(miniature("ham10000"), task).frame
    assert set(frame["diagnosis"]) == {"akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"}
    assert set(frame["diagnosis"][frame[label] == "1"]) == positive


def test_dataverse_separates_by_tabs_and_names_the_file_in_two_ways(miniature: Miniature) -> None:
    root = miniature("ham10000", release="dataverse")
    one = found(root).frame
    assert (len(one), set(one["source"]), one["patient_id"].nunique()) == (32, {"vidir_modern"}, 24)
    (root / "HAM10000_metadata.tab").rename(root / "HAM10000_metadata")
    assert one.equals(found(root).frame)


def test_a_word_that_is_no_diagnosis_is_refused(miniature: Miniature) -> None:
    root = miniature("ham10000")
    path = root / "HAM10000_metadata.csv"
    path.write_text(path.read_text().replace(",bkl,", ",naevus,"))
    with pytest.raises(InputError, match=r"column 'dx' has words .*'naevus'.*known are akiec, bcc"):
        found(root)


def test_one_part_of_the_images_only_is_said_with_names(miniature: Miniature, story: Callable[..., PreparedData]) -> None:
    root = miniature("ham10000")
    for path in (root / "HAM10000_images_part_2").iterdir():
        path.unlink()
    (root / "HAM10000_images_part_2").rmdir()
    with pytest.raises(InputError, match="ISIC_0024307"):
        story("ham10000", root)


def test_the_real_words_are_known(ham10000: Path) -> None:
    with (ham10000 / "metadata.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["dx"] for row in rows} == set(source.CLASSES)
    assert {row["sex"] for row in rows} == {"female", "male", ""}
