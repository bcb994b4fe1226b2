"""ISIC 2017, part 3: 2,750 dermoscopic images; melanoma, seborrheic keratosis or nevus."""

from __future__ import annotations

import pandas as pd

from evenhand.data.sources.base import Choice, Expected, Found, Info, Task
from evenhand.data.sources.public._isic import ATTRIBUTES, LINK, OVERLAP_TRAP, TONE_TRAP, beside, estimated_tones
from evenhand.data.sources.public._skin import image_paths, is_one_of, people
from evenhand.data.sources.raw import RawFolder
from evenhand.errors import InputError

PARTS = {"Training": "train", "Validation": "val", "Test_v2": "test"}
_PAPER = "Codella et al., Skin Lesion Analysis toward Melanoma Detection, ISBI 2018 (arXiv 1710.05006)"
_PAGE = "https://challenge.isic-archive.com/landing/2017/44"

INFO = Info(
    name="isic2017",
    title="ISIC 2017 Challenge, part 3 (lesion classification)",
    modality="dermoscopy",
    version="the challenge's archives, test set v2",
    layout=(
        "ISIC-2017_Training_Data/ISIC_0000000.jpg, ISIC_0000000_superpixels.png ..., ISIC-2017_Training_Data_metadata.csv (image_id,\n"
        "    age_approximate, sex)\n"
        "ISIC-2017_Training_Part3_GroundTruth.csv: image_id, melanoma, seborrheic_keratosis\n"
        "the same with Validation and Test_v2 in place of Training (for the published split)"
    ),
    documentation=(_PAGE, LINK),
    tasks=(
        Task("malignant", ("malignant",), "1: melanoma; 0: seborrheic keratosis or nevus (the malignant ones of this set are melanomas)"),
        Task("melanoma", ("melanoma",), "1: melanoma; 0: seborrheic keratosis or nevus (the challenge's first classification)"),
        Task("seborrheic_keratosis", ("seborrheic_keratosis",), "1: seborrheic keratosis; 0: melanoma or nevus (its second)"),
        Task("diagnosis", ("diagnosis",), "melanoma, nevus, seborrheic_keratosis", "multiclass"),
    ),
    attributes=ATTRIBUTES,
    default_attributes=("sex", "age60"),
    split="the challenge's training, validation and test parts; patient: all parts that are there, drawn anew",
    splits=("published", "patient"),
    expected=(
        Expected("training images", 2000, _PAGE), Expected("validation images", 150, _PAPER), Expected("test images", 600, _PAPER),
        Expected("melanomas in training", 374, _PAGE),
    ),
    licence="CC-0 (not confirmed)",
    link=LINK,
    citation=_PAPER,
    channels=3,
    traps=(
        "no patient or lesion id is published: each image counts as a patient of its own, so images of one person can fall into two splits",
        "a superpixel mask lies beside each image (..._superpixels.png): not read",
        "sex and age are 'unknown' for part of the images: missing",
        TONE_TRAP,
        OVERLAP_TRAP,
        "not confirmed: that validation and test have a metadata table of the same form; where one is absent, sex and age are missing",
    ),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row an image of the ground truth of the parts that are there."""
    found = Found(pd.DataFrame())
    here = [part for part in PARTS if any(raw.has(name) for name in _truth_names(part))]
    wanted = list(PARTS) if choice.split == "published" else here or ["Training"]
    if choice.split == "published" and 0 < len(here) < len(PARTS):
        absent = ", ".join(part for part in PARTS if part not in here)
        raise InputError(
            f"{raw.root} has no ground truth of the part {absent}, which the published split needs; download it, or use --split patient",
            raw.layout.splitlines(),
        )
    parts = [_part(raw, part, found) for part in wanted]
    found.frame = pd.concat(parts, ignore_index=True)
    names, melanoma, keratosis = (found.frame[name] for name in ("patient_id", "melanoma", "seborrheic_keratosis"))
    diagnosis = pd.Series("nevus", index=names.index, dtype="string").mask(keratosis == "1", "seborrheic_keratosis")
    persons = people(found.frame.pop("sex_given"), found.frame.pop("age_given"), found.notes)
    found.frame = found.frame.assign(
        malignant=melanoma, diagnosis=diagnosis.mask(melanoma == "1", "melanoma"), **_columns(persons),
        **_columns(estimated_tones(raw, names, found.notes)),
    )
    if choice.split != "published":
        found.frame = found.frame.drop(columns="split")
    words = {"Training": "training images", "Validation": "validation images", "Test_v2": "test images"}
    found.counts = {words[part]: len(table) for part, table in zip(wanted, parts, strict=True)}
    if "Training" in wanted:
        found.counts["melanomas in training"] = int((parts[wanted.index("Training")]["melanoma"] == "1").sum())
    return found


def _columns(frame: pd.DataFrame) -> dict[str, pd.Series]:
    return {str(name): frame[name] for name in frame}


def _truth_names(part: str) -> tuple[str, ...]:
    return beside(f"ISIC-2017_{part}_Part3_GroundTruth.csv", f"ISIC-2017_{part}_Data")


def _part(raw: RawFolder, part: str, found: Found) -> pd.DataFrame:
    folder = f"ISIC-2017_{part}_Data"
    truth = raw.table(*_truth_names(part), columns=("image_id", "melanoma", "seborrheic_keratosis"))
    names = truth["image_id"].str.strip()
    sex = age = pd.Series(pd.NA, index=truth.index, dtype="string")
    given = beside(f"{folder}_metadata.csv", folder)
    if any(raw.has(name) for name in given):
        people_table = raw.table(*given, columns=("image_id", "age_approximate", "sex"))
        known = people_table.assign(image_id=people_table["image_id"].str.strip()).drop_duplicates("image_id").set_index("image_id")
        sex, age = (names.map(known[name]).astype("string") for name in ("sex", "age_approximate"))
    else:
        found.notes.append(f"{folder}_metadata.csv is not there: sex and age of the {len(truth)} images of this part are missing")
    return pd.DataFrame({
        "image": image_paths(raw, names, (folder,), (".jpg", ".jpeg")),
        "patient_id": names,
        "melanoma": is_one_of(_whole(truth["melanoma"]), ("1",)),
        "seborrheic_keratosis": is_one_of(_whole(truth["seborrheic_keratosis"]), ("1",)),
        "sex_given": sex,
        "age_given": age.mask(age == "unknown"),
        "split": PARTS[part],
    })


def _whole(numbers: pd.Series) -> pd.Series:
    """``1.0`` as ``1``."""
    return numbers.str.strip().str.removesuffix(".0")
