"""ISIC 2020 (SIIM-ISIC): 33,126 dermoscopic images of 2,056 patients, 584 melanomas."""

from __future__ import annotations

import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Attribute, Choice, Expected, Found, Info, Option, Task
from evenhand.data.sources.public._isic import ATTRIBUTES, LINK, OVERLAP_TRAP, TONE_TRAP, estimated_tones
from evenhand.data.sources.public._skin import image_paths, is_one_of, people
from evenhand.data.sources.raw import RawFolder
from evenhand.errors import InputError

TABLES = ("ISIC_2020_Training_GroundTruth_v2.csv", "ISIC_2020_Training_GroundTruth.csv", "train.csv")
DUPLICATES = "ISIC_2020_Training_Duplicates.csv"
FOLDERS = (
    "jpeg/train", "ISIC_2020_Training_JPEG", "ISIC_2020_Training_Input", "train", "ISIC_2020_Training_Dicom", "ISIC_2020_Training_DICOM",
)
_PAPER = "Rotemberg et al., A patient-centric dataset for identifying melanomas using clinical context, Scientific Data 8:34, 2021"

INFO = Info(
    name="isic2020",
    title="ISIC 2020 Challenge (SIIM-ISIC Melanoma Classification)",
    modality="dermoscopy",
    version="the challenge's archives (ground truth v2, with lesions), or Kaggle's (train.csv)",
    layout=(
        "ISIC_2020_Training_GroundTruth_v2.csv (or ISIC_2020_Training_GroundTruth.csv, or Kaggle's train.csv): image_name, patient_id,\n"
        "    lesion_id (v2), sex, age_approx, anatom_site_general_challenge, diagnosis, benign_malignant, target\n"
        "ISIC_2020_Training_Duplicates.csv: image_name_1, image_name_2\n"
        "train/ISIC_0015719.jpg ... (the JPEG or DICOM archive), or jpeg/train/ (Kaggle)"
    ),
    documentation=("https://challenge2020.isic-archive.com/", "https://www.kaggle.com/c/siim-isic-melanoma-classification/data"),
    tasks=(
        Task("malignant", ("malignant",), "1: target is 1; 0: it is 0 (the provider; all malignant lesions of this set are melanomas)"),
        Task("melanoma", ("melanoma",), "the same, under the name that other sets use for melanoma against the rest"),
    ),
    attributes=(*ATTRIBUTES, Attribute("site", "head/neck, lower extremity, oral/genital, palms/soles, torso, upper extremity")),
    default_attributes=("sex", "age60"),
    split="the provider's test part has no labels; drawn by patient",
    expected=(
        Expected("images", 33126, _PAPER), Expected("patients", 2056, _PAPER), Expected("melanomas", 584, _PAPER),
        Expected("pairs of duplicates", 425, LINK),
    ),
    licence="CC BY-NC 4.0 (not confirmed)",
    link=LINK,
    citation=f"{_PAPER}, doi:10.1038/s41597-021-00815-z",
    channels=3,
    options=(
        Option(
            "duplicates", ("leave_out", "keep"),
            "leave_out: the second image of each pair of the provider's list is left out (where the list is there); keep: all images stay",
        ),
    ),
    traps=(
        "425 pairs of images are equal, by the provider's own list",
        "under 2% are malignant: a small test split may hold few",
        "sex and age are empty for a few images, the site for some more: missing",
        "diagnosis is 'unknown' for four in five benign images: they were not biopsied",
        "where a folder holds both, JPEG is read before DICOM",
        "the test images have no published labels: not read",
        TONE_TRAP,
        OVERLAP_TRAP,
        "not confirmed: the name of the folder in the DICOM archive",
    ),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row an image of the training table."""
    found = Found(pd.DataFrame())
    table = raw.table(
        *TABLES, columns=("image_name", "patient_id", "sex", "age_approx", "target"),
        optional=("lesion_id", "anatom_site_general_challenge", "diagnosis", "benign_malignant"),
    )
    names, target = table["image_name"].str.strip(), table["target"].str.strip().str.removesuffix(".0")
    _check_target(table, target, raw.file(*TABLES).name)
    persons = people(table["sex"], table["age_approx"], found.notes)
    found.frame = pd.DataFrame({
        "image": image_paths(raw, names, FOLDERS, (".jpg", ".jpeg", ".png", ".dcm")),
        "patient_id": table["patient_id"],
        "malignant": is_one_of(target, ("1",)),
        "melanoma": is_one_of(target, ("1",)),
        **{name: persons[name] for name in persons},
        **dict(estimated_tones(raw, names, found.notes)),
        "site": table["anatom_site_general_challenge"],
        "diagnosis": table["diagnosis"],
        "lesion_id": table["lesion_id"],
    })
    found.counts = {
        "images": len(table), "patients": int(table["patient_id"].nunique()), "melanomas": int((target == "1").sum()),
    }
    _leave_out_duplicates(raw, choice, names, found)
    return found


def _check_target(table: pd.DataFrame, target: pd.Series, file: str) -> None:
    if not target.isin(["0", "1"]).all():
        raise InputError(f"{file}: column 'target' has values other than 0 and 1; it is the table of the training part that is read")
    words = table["benign_malignant"].astype("string").str.strip().str.lower()
    differing = int((words.notna() & (words == "malignant").ne(target == "1")).sum())
    if differing:
        rows = counted(differing, "row", "rows")
        raise InputError(f"{file}: target and benign_malignant contradict each other in {rows}; download it again")


def _leave_out_duplicates(raw: RawFolder, choice: Choice, names: pd.Series, found: Found) -> None:
    if not raw.has(DUPLICATES):
        found.notes.append(f"{DUPLICATES} is not there: the provider's 425 pairs of equal images stay in the set")
        return
    pairs = raw.table(DUPLICATES, columns=("image_name_1", "image_name_2"))
    found.counts["pairs of duplicates"] = len(pairs)
    if choice.options.get("duplicates", "leave_out") == "leave_out":
        twice = names.isin(pairs["image_name_2"].str.strip().str.removesuffix(".jpg"))
        found.leave_out(twice, "the provider lists it as a duplicate")
