"""The four ISIC challenges, from tiny copies of the downloads to trained probes: layouts, joins, splits, and what is odd about each."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from evenhand.data.datasets import PreparedData
from evenhand.data.sources.base import Found
from evenhand.data.sources.prepare import make_choice
from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.registry import find_source
from evenhand.errors import InputError

Miniature = Callable[..., Path]
Story = Callable[..., PreparedData]


def found(name: str, root: Path, task: str | None = None, split: str | None = None, **options: str) -> Found:
    source = find_source(name)
    result: Found = source.read(RawFolder(root, source.INFO.layout), make_choice(source.INFO, task, split, options))
    return result


def shares(data: PreparedData) -> dict[str, int]:
    counted: dict[str, int] = data.table["split"].value_counts().to_dict()
    return counted


@pytest.mark.parametrize("name", ["isic2017", "isic2018", "isic2019", "isic2020"])
def test_from_raw_to_a_trained_probe(name: str, miniature: Miniature, story: Story) -> None:
    data = story(name, miniature(name))
    rows = {"isic2017": 24, "isic2018": 32, "isic2019": 69, "isic2020": 48}[name]
    assert (len(data), data.spec.labels, data.spec.attributes) == (rows, ("malignant",), ("sex", "age60"))
    assert any("the provider says" in note for note in data.description["notes"])
    if name == "isic2017":
        assert shares(data) == {"train": 12, "val": 6, "test": 6}
    if name == "isic2019":
        assert shares(data)["test"] == 33, "the challenge's test part without its UNK images"


def test_2017_joins_people_and_leaves_masks_alone(miniature: Miniature) -> None:
    frame = found("isic2017", miniature("isic2017")).frame.set_index("patient_id")
    assert frame.loc["ISIC_0000001", ["image", "diagnosis", "malignant", "split", "age", "sex"]].tolist() == [
        "ISIC-2017_Training_Data/ISIC_0000001.jpg", "melanoma", "1", "train", "25", "female",
    ]
    assert frame["diagnosis"]["ISIC_0000002"] == "seborrheic_keratosis"
    assert frame["diagnosis"]["ISIC_0000003"] == "nevus"
    assert frame["sex"].isna()["ISIC_0000004"], "sex 'unknown' is missing"
    assert frame["age"].isna()["ISIC_0000006"], "age 'unknown' is missing"
    assert frame["image"]["ISIC_0000018"].startswith("ISIC-2017_Test_v2_Data/")


def test_2017_unpacked_twice_without_metadata_or_in_part(miniature: Miniature) -> None:
    root = miniature("isic2017", nested=True)
    frame = found("isic2017", root).frame
    assert frame["image"][0] == "ISIC-2017_Training_Data/ISIC-2017_Training_Data/ISIC_0000000.jpg"
    (root / "ISIC-2017_Test_v2_Data" / "ISIC-2017_Test_v2_Data" / "ISIC-2017_Test_v2_Data_metadata.csv").unlink()
    result = found("isic2017", root)
    assert result.frame["sex"][result.frame["split"] == "test"].isna().all()
    assert "ISIC-2017_Test_v2_Data_metadata.csv is not there: sex and age of the 6 images of this part are missing" in result.notes
    (root / "ISIC-2017_Validation_Part3_GroundTruth.csv").unlink()
    with pytest.raises(InputError, match=r"no ground truth of the part Validation, .* or use --split patient"):
        found("isic2017", root)
    assert len(found("isic2017", root, split="patient").frame) == 18


def test_2018_keeps_lesions_together_and_takes_people_from_ham10000(miniature: Miniature) -> None:
    result = found("isic2018", miniature("isic2018"))
    first = result.frame.set_index("patient_id").loc["HAM_0000000"]
    assert first["image"].tolist() == [f"ISIC2018_Task3_Training_Input/ISIC_00243{k}.jpg" for k in ("06", "07")]
    assert first[["diagnosis", "malignant", "sex", "age"]].drop_duplicates().to_numpy().tolist() == [["mel", "1", "female", "20"]]
    assert result.frame["sex"].isna().sum() == 1, "sex 'unknown' is missing"
    assert "sex and age come from HAM10000's metadata: 32 of 32 images are in it" in result.notes


def test_2018_published_split_has_no_people_outside_training(miniature: Miniature) -> None:
    result = found("isic2018", miniature("isic2018"), split="published")
    assert result.frame["split"].value_counts().to_dict() == {"train": 32, "val": 7, "test": 6}
    assert result.frame["sex"][result.frame["split"] != "train"].isna().all()
    assert result.left_out is not None
    assert result.left_out[["image", "reason"]].to_numpy().tolist() == [
        ["ISIC2018_Task3_Test_Input/ISIC_0035068.jpg", "not scored by the challenge"],
    ]
    assert result.counts == {"training images": 32, "validation images": 7, "test images": 7}


def test_2018_without_people_or_lesions(miniature: Miniature) -> None:
    root = miniature("isic2018")
    lesions = root / "ISIC2018_Task3_Training_LesionGroupings.csv"
    with_groupings = found("isic2018", root).frame["patient_id"]
    lesions.rename(root / "ISIC2018_Task3_Training_GroundTruth" / lesions.name)
    assert with_groupings.equals(found("isic2018", root).frame["patient_id"])
    (root / "ISIC2018_Task3_Training_GroundTruth" / lesions.name).unlink()
    assert with_groupings.equals(found("isic2018", root).frame["patient_id"]), "HAM10000's metadata has the lesions, too"
    (root / "HAM10000_metadata.csv").unlink()
    with pytest.raises(InputError, match=r"no HAM10000_metadata.csv.*demographics=none"):
        found("isic2018", root)
    with pytest.raises(InputError, match="images of one lesion could fall into two splits"):
        found("isic2018", root, demographics="none")


def test_2018_test_table_of_dataverse(miniature: Miniature) -> None:
    root = miniature("isic2018")
    folder = root / "ISIC2018_Task3_Test_GroundTruth"
    shutil.rmtree(folder)
    words = ("mel", "nv", "bcc", "nv", "df", "nv", "nv")
    rows = [f"HAM_100{k},ISIC_{35065 + k:07d},{dx},histo,{50 + k},male,back" for k, dx in enumerate(words)]
    (root / f"{folder.name}.csv").write_text("\n".join(["lesion_id,image_id,dx,dx_type,age,sex,localization", *rows]) + "\n")
    frame = found("isic2018", root, split="published").frame
    test = frame[frame["split"] == "test"]
    assert test[["patient_id", "diagnosis", "sex", "age"]].to_numpy().tolist()[:2] == [
        ["HAM_1000", "mel", "male", "50"], ["HAM_1001", "nv", "male", "51"],
    ]


def test_2019_lesions_names_and_unknown_diagnoses(miniature: Miniature) -> None:
    result = found("isic2019", miniature("isic2019"))
    frame = result.frame
    assert frame["image"][2] == "ISIC_2019_Training_Input/ISIC_0000002_downsampled.jpg"
    assert frame["patient_id"][:4].tolist() == ["BCN_0000000", "BCN_0000000", "BCN_0000001", "ISIC_0000003"]
    assert frame["split"].value_counts().to_dict() == {"rest": 36, "test": 33}
    assert "9 images of the training part have no lesion id: each counts as a lesion of its own" in result.notes
    sizes = ("training images", "test images")
    counted = {name.removeprefix("training "): count for name, count in result.counts.items() if count and name not in sizes}
    assert counted == frame["diagnosis"][frame["split"] == "rest"].value_counts().to_dict()
    assert result.left_out is not None
    assert set(result.left_out["diagnosis"]) == {"unk"}
    assert len(result.left_out) == 3
    assert frame["sex"].isna()[6]
    assert frame["age"].isna()[8]


@pytest.mark.parametrize(
    ("task", "positive"), [("malignant", {"mel", "bcc", "scc", "ak"}), ("cancer", {"mel", "bcc", "scc"}), ("melanoma", {"mel"})],
)
def test_2019_groupings(miniature: Miniature, task: str, positive: set[str]) -> None:
    frame = found("isic2019", miniature("isic2019"), task, "patient").frame
    label = "melanoma" if task == "melanoma" else "malignant"
    assert set(frame["diagnosis"][frame[label] == "1"]) == positive


def test_2019_a_row_with_two_diagnoses_is_refused(miniature: Miniature) -> None:
    root = miniature("isic2019")
    path = root / "ISIC_2019_Training_GroundTruth.csv"
    path.write_text(path.read_text().replace("ISIC_0000000,1.0,0.0", "ISIC_0000000,1.0,1.0"))
    with pytest.raises(InputError, match=r"1 row does not name exactly one diagnosis \(first: ISIC_0000000\)"):
        found("isic2019", root)


def test_2020_patients_duplicates_and_what_is_empty(miniature: Miniature) -> None:
    root = miniature("isic2020")
    result = found("isic2020", root)
    assert result.counts == {"images": 49, "patients": 24, "melanomas": 12, "pairs of duplicates": 1}
    assert result.left_out is not None
    assert result.left_out["image"].tolist() == ["train/ISIC_0015767.jpg"]
    second = result.frame[result.frame["patient_id"] == "IP_1000002"]
    assert (len(second), second["sex"].isna().all(), second["age"].isna().all(), second["age60"].isna().all()) == (2, True, True, True)
    assert len(found("isic2020", root, duplicates="keep").frame) == 49
    (root / "ISIC_2020_Training_Duplicates.csv").unlink()
    assert any("425 pairs of equal images stay" in note for note in found("isic2020", root).notes)


def test_2020_from_kaggle_and_as_dicom(miniature: Miniature) -> None:
    root = miniature("isic2020", kaggle=True)
    result = found("isic2020", root)
    assert result.frame["image"][0] == "jpeg/train/ISIC_0015719.jpg"
    assert result.frame["lesion_id"].isna().all()
    (root / "train").mkdir()
    for path in (root / "jpeg" / "train").iterdir():
        path.rename(root / "train" / path.with_suffix(".dcm").name)
    assert found("isic2020", root).frame["image"][0] == "train/ISIC_0015719.dcm"


def test_2020_contradictory_targets_are_refused(miniature: Miniature) -> None:
    root = miniature("isic2020")
    path = root / "ISIC_2020_Training_GroundTruth_v2.csv"
    path.write_text(path.read_text().replace("melanoma,malignant,1", "melanoma,benign,1", 1))
    with pytest.raises(InputError, match="contradict each other in 1 row;"):
        found("isic2020", root)
    path.write_text(path.read_text().replace("benign,0", "benign,", 1))
    with pytest.raises(InputError, match="values other than 0 and 1"):
        found("isic2020", root)


def test_estimated_skin_tones_are_joined_where_they_lie_beside(miniature: Miniature) -> None:
    root = miniature("isic2020", skin_tones=True)
    result = found("isic2020", root)
    table = result.frame.drop_duplicates("patient_id")[["fitzpatrick", "skin_tone", "skin_tone3"]][:6]
    assert table.to_numpy().tolist() == [
        ["1", "light", "I-II"], ["2", "light", "I-II"], ["3", "light", "III-IV"], ["4", "dark", "III-IV"], ["5", "dark", "V-VI"],
        ["6", "dark", "V-VI"],
    ]
    assert "skin tone: 49 of 49 images have a type, estimated from pixels (isic_train_20-19-18-17.csv)" in result.notes
    (root / "isic_train_20-19-18-17.csv").unlink()
    assert found("isic2020", root).frame["skin_tone"].isna().all()


def test_a_folder_too_high_is_pointed_out(miniature: Miniature) -> None:
    root = miniature("isic2020")
    with pytest.raises(InputError, match="has it: give that folder"):
        found("isic2020", root.parent)
