"""Fitzpatrick17k, DDI and PAD-UFES-20, from tiny copies of the downloads to trained probes: skin tones, and what is odd about each."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from evenhand.data.datasets import PreparedData
from evenhand.data.sources.base import Found
from evenhand.data.sources.prepare import make_choice
from evenhand.data.sources.public import pad_ufes_20
from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.registry import find_source
from evenhand.errors import InputError

Miniature = Callable[..., Path]
Story = Callable[..., PreparedData]


def found(name: str, root: Path, task: str | None = None, **options: str) -> Found:
    source = find_source(name)
    result: Found = source.read(RawFolder(root, source.INFO.layout), make_choice(source.INFO, task, None, options))
    return result


def test_fitzpatrick17k_from_raw_to_a_trained_probe(miniature: Miniature, story: Story) -> None:
    data = story("fitzpatrick17k", miniature("fitzpatrick17k"))
    assert (len(data), data.spec.attributes) == (47, ("skin_tone",))
    assert data.groups()["skin_tone"].keys == ("dark", "light")
    told = "\n".join(data.description["notes"])
    assert "1 row was left out: the image was not downloaded" in told
    assert "rows: 48 here, the provider says 16,577" in told
    assert "attribute 'skin_tone' is missing in 4 of 47 rows" in told


def test_ddi_from_raw_to_a_trained_probe(miniature: Miniature, story: Story) -> None:
    data = story("ddi", miniature("ddi"))
    assert (len(data), data.groups()["skin_tone3"].keys) == (48, ("I-II", "III-IV", "V-VI"))
    assert "III-IV: 16 here, the provider says 241" in "\n".join(data.description["notes"])


def test_pad_ufes_20_from_raw_to_a_trained_probe(miniature: Miniature, story: Story) -> None:
    data = story("pad_ufes_20", miniature("pad_ufes_20"))
    assert (len(data), data.spec.attributes) == (48, ("skin_tone", "sex", "age60"))
    assert data.table["patient_id"].nunique() == 24


@pytest.mark.parametrize("release", ["2021", "2022"])
def test_type_3_is_light_and_minus_1_is_missing(miniature: Miniature, release: str) -> None:
    frame = found("fitzpatrick17k", miniature("fitzpatrick17k", release=release)).frame
    table = frame.drop_duplicates("fitzpatrick")[["fitzpatrick", "skin_tone", "skin_tone3"]].sort_values("fitzpatrick")
    assert table.dropna().to_numpy().tolist() == [
        ["1", "light", "I-II"], ["2", "light", "I-II"], ["3", "light", "III-IV"], ["4", "dark", "III-IV"], ["5", "dark", "V-VI"],
        ["6", "dark", "V-VI"],
    ]
    assert frame["skin_tone"].isna().sum() == 4


def test_the_other_service_gives_other_types(miniature: Miniature) -> None:
    root = miniature("fitzpatrick17k")
    frame = found("fitzpatrick17k", root, annotator="centaur").frame
    assert frame["fitzpatrick"][0] == "2"
    path = root / "fitzpatrick17k.csv"
    path.write_text(path.read_text().replace("fitzpatrick_centaur", "other").replace("fitzpatrick_scale", "fitzpatrick"))
    assert found("fitzpatrick17k", root).frame["fitzpatrick"][0] == "1"
    with pytest.raises(InputError, match=r"no column 'fitzpatrick_centaur'; .* --option annotator=scale"):
        found("fitzpatrick17k", root, annotator="centaur")


def test_fitzpatrick17k_groupings(miniature: Miniature) -> None:
    root = miniature("fitzpatrick17k")
    frame = found("fitzpatrick17k", root).frame
    assert frame.groupby("three_partition_label")["malignant"].first().to_dict() == {"benign": "0", "malignant": "1", "non-neoplastic": "0"}
    assert set(frame["label"][frame["melanoma"] == "1"]) == {"melanoma"}
    result = found("fitzpatrick17k", root, "neoplastic")
    assert set(result.frame["three_partition_label"]) == {"benign", "malignant"}
    assert result.left_out is not None
    assert result.left_out["reason"].value_counts().to_dict() == {
        "non-neoplastic": 12, "the image was not downloaded": 1, "a dermatologist marked it as wrongly labelled": 1,
    }
    assert len(found("fitzpatrick17k", root, wrongly_labelled="leave_out").frame) == 46


def test_images_are_found_by_hash_or_by_address(miniature: Miniature) -> None:
    root = miniature("fitzpatrick17k")
    frame = found("fitzpatrick17k", root).frame
    assert frame["image"][7] == "images/httpswwwdermaamincomsiteimagesclinicalpic8jpg.jpg"
    assert frame["image"][0] == f"images/{frame['patient_id'][0]}.jpg"
    for path in (root / "images").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"none of the images of fitzpatrick17k.csv is there"):
        found("fitzpatrick17k", root)


def test_ddi_does_not_tell_3_from_4(miniature: Miniature) -> None:
    root = miniature("ddi")
    result = found("ddi", root)
    assert result.frame.drop_duplicates("skin_tone3")[["skin_tone3", "skin_tone"]].fillna("-").to_numpy().tolist() == [
        ["I-II", "light"], ["III-IV", "-"], ["V-VI", "dark"],
    ]
    assert any("16 images of types III-IV count as missing" in note for note in result.notes)
    frame = found("ddi", root, middle="light").frame
    assert frame["skin_tone"].value_counts().to_dict() == {"light": 32, "dark": 16}
    assert frame[["malignant", "melanoma", "disease"]][:4].to_numpy().tolist() == [
        ["0", "0", "melanocytic-nevi"], ["1", "1", "melanoma-in-situ"], ["0", "0", "seborrheic-keratosis"],
        ["1", "0", "basal-cell-carcinoma"],
    ]


def test_ddi_moved_older_and_foreign(miniature: Miniature) -> None:
    root = miniature("ddi", moved=True)
    assert found("ddi", root).frame["image"][0] == "images/000001.png"
    path = root / "ddi_metadata.csv"
    text = path.read_text()
    path.write_text(text.replace("malignant", "malignancy(malig=1)").replace("True", "1").replace("False", "0"))
    assert found("ddi", root).counts["malignant"] == 24
    path.write_text(text.replace(",34,", ",3,"))
    with pytest.raises(InputError, match=r"column 'skin_tone' has words .*'3'.* known are 12, 34, 56"):
        found("ddi", root)


def test_pad_ufes_20_keeps_patients_together_and_unknown_is_missing(miniature: Miniature) -> None:
    result = found("pad_ufes_20", miniature("pad_ufes_20"))
    frame = result.frame
    assert frame[["image", "patient_id", "lesion_id"]][:2].to_numpy().tolist() == [
        ["images/imgs_part_1/PAT_0_100_300.png", "PAT_0", "100"], ["images/imgs_part_2/PAT_0_100_301.png", "PAT_0", "100"],
    ]
    assert frame["fitzpatrick"][frame["patient_id"] == "PAT_3"].isna().all(), "type 0 is unknown"
    assert not [note for note in result.notes if "skin tone" in note]
    benign = frame["malignant"] == "0"
    assert frame["sex"].isna().any()
    assert not frame["sex"][~benign].isna().any()
    assert set(frame["diagnosis"][~benign]) == {"bcc", "scc", "mel"}
    assert frame.loc[2, ["sex", "fitzpatrick", "skin_tone", "age"]].tolist() == ["female", "2", "light", "33"]
    each = dict.fromkeys(("ack", "bcc", "mel", "nev", "scc", "sek"), 8)
    assert result.counts == {"images": 48, "patients": 24, "lesions": 36, **each}


def test_lesions_of_pad_ufes_20_are_counted_as_its_paper_counts_them(miniature: Miniature) -> None:
    """By lesion_id alone, though in the real table some stand under several patients."""
    root = miniature("pad_ufes_20")
    table = root / "metadata.csv"
    table.write_text(table.read_text().replace("PAT_1,102,", "PAT_1,100,"))
    assert found("pad_ufes_20", root).counts["lesions"] == 35


@pytest.mark.parametrize(("name", "prefix", "total"), [("isic2019", "training ", "training images"), ("pad_ufes_20", "", "images"),
                                                       ("ham10000", "", "images")])
def test_published_counts_of_the_diagnoses_add_up_to_the_published_images(name: str, prefix: str, total: str) -> None:
    source = find_source(name)
    published = {item.what: item.count for item in source.INFO.expected}
    assert sum(published[f"{prefix}{diagnosis}"] for diagnosis in source.COUNTS) == published[total]


def test_pad_ufes_20_spelled_right_is_offered_the_provider_s_spelling(miniature: Miniature) -> None:
    root = miniature("pad_ufes_20")
    path = root / "metadata.csv"
    path.write_text(path.read_text().replace("fitspatrick", "fitzpatrick"))
    with pytest.raises(InputError, match=r"'fitspatrick' is absent, .*fitzpatrick"):
        found("pad_ufes_20", root)


def test_the_real_words_are_known(pad_ufes: Path) -> None:
    with (pad_ufes / "metadata.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["diagnostic"] for row in rows} <= set(pad_ufes_20.CLASSES)
    assert {row["fitzpatrick"] for row in rows} <= {"", "1", "2", "3", "4", "5", "6"}
