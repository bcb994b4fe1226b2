"""ISIC 2018, task 3: 10,015 dermoscopic images for training (HAM10000), 193 for validation, 1,512 for test; seven diagnoses."""

from __future__ import annotations

import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Choice, Expected, Found, Info, Option, Task
from evenhand.data.sources.public import ham10000
from evenhand.data.sources.public._isic import ATTRIBUTES, LINK, OVERLAP_TRAP, TONE_TRAP, beside, estimated_tones, lone_images, one_hot
from evenhand.data.sources.public._skin import image_paths, is_one_of, people
from evenhand.data.sources.raw import RawFolder
from evenhand.errors import InputError

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
PARTS = {"Training": "train", "Validation": "val", "Test": "test"}
UNSCORED = "ISIC_0035068"
_GROUPINGS = "ISIC2018_Task3_Training_LesionGroupings.csv"
_PAPER = "Codella et al., Skin Lesion Analysis Toward Melanoma Detection 2018 (arXiv 1902.03368)"

INFO = Info(
    name="isic2018",
    title="ISIC 2018 Challenge, task 3 (lesion diagnosis)",
    modality="dermoscopy",
    version="the challenge's archives, ground truth of all three parts",
    layout=(
        "ISIC2018_Task3_Training_Input/ISIC_0024306.jpg ...\n"
        "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv: image, MEL, NV, BCC, AKIEC, BKL, DF, VASC\n"
        "ISIC2018_Task3_Training_LesionGroupings.csv: image, lesion_id, diagnosis_confirm_type\n"
        "HAM10000_metadata.csv (or .tab; from Harvard Dataverse): sex and age, which the challenge's archives do not have\n"
        "the same folders and tables with Validation and Test in place of Training (for the published split)"
    ),
    documentation=("https://challenge.isic-archive.com/landing/2018/47", LINK),
    tasks=(
        Task("malignant", ("malignant",), "1: MEL, BCC, AKIEC; 0: the rest (as in ham10000; the challenge publishes no grouping)"),
        Task("malignant_medfair", ("malignant",), "1: MEL, AKIEC; 0: the rest, BCC included (MEDFAIR's notebook for the same images)"),
        Task("melanoma", ("melanoma",), "1: MEL; 0: the rest"),
        Task("diagnosis", ("diagnosis",), "the challenge's seven: mel, nv, bcc, akiec, bkl, df, vasc", "multiclass"),
    ),
    attributes=ATTRIBUTES,
    default_attributes=("sex", "age60"),
    split=(
        "patient: the training part, drawn by lesion; published: training, validation and test parts (the latter two have no sex, age or "
        "lesion, so groups cannot be compared on them)"
    ),
    splits=("patient", "published"),
    expected=(Expected("training images", 10015, _PAPER), Expected("validation images", 193, LINK), Expected("test images", 1512, _PAPER)),
    licence="CC BY-NC 4.0",
    link=LINK,
    citation=f"{_PAPER}; Tschandl et al., Scientific Data 5:180161, 2018",
    channels=3,
    options=(
        Option(
            "demographics", ("ham10000", "none"),
            "ham10000: sex and age are joined from HAM10000_metadata, which must lie in the raw folder; none: they are missing",
        ),
    ),
    traps=(
        "the archives hold neither sex nor age: they come from HAM10000's metadata, which covers the training part alone",
        "no patient id is published: patient_id is the lesion in training, the image in validation and test",
        f"{UNSCORED} of the test part is not scored by the challenge (its scoring code gives it weight 0): left out",
        "Dataverse has a test table with lesion_id, dx, age and sex under the same name as the challenge's: read where it is the one there",
        TONE_TRAP,
        OVERLAP_TRAP,
        "not confirmed: the words of diagnosis_confirm_type, and Dataverse's test table",
    ),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row an image of the ground truth."""
    found = Found(pd.DataFrame())
    wanted = list(PARTS) if choice.split == "published" else ["Training"]
    parts = [_part(raw, part) for part in wanted]
    table = pd.concat(parts, ignore_index=True)
    if choice.options.get("demographics", "ham10000") == "ham10000":
        _join_people(raw, table, found)
    else:
        found.notes.append(f"sex and age of all {len(table):,} images are missing: the archives do not have them (demographics=none)")
    table["patient_id"] = _lesions(raw, table, found)
    persons = people(table["sex"], table["age"], found.notes)
    malignant = ham10000.MEDFAIR if choice.task.name == "malignant_medfair" else ham10000.CANCER
    found.frame = pd.DataFrame({
        "image": table["image"],
        "patient_id": table["patient_id"],
        "malignant": is_one_of(table["diagnosis"], malignant),
        "melanoma": is_one_of(table["diagnosis"], ("mel",)),
        "diagnosis": table["diagnosis"],
        **{name: persons[name] for name in persons},
        **dict(estimated_tones(raw, table["name"], found.notes)),
    })
    if choice.split == "published":
        found.frame["split"] = table["split"]
        found.leave_out(table["name"] == UNSCORED, "not scored by the challenge")
    words = {"Training": "training images", "Validation": "validation images", "Test": "test images"}
    found.counts = {words[part]: len(rows) for part, rows in zip(wanted, parts, strict=True)}
    return found


def _part(raw: RawFolder, part: str) -> pd.DataFrame:
    """Columns name, image, diagnosis, lesion, sex, age and split of one part."""
    file = f"ISIC2018_Task3_{part}_GroundTruth.csv"
    places = beside(file, f"ISIC2018_Task3_{part}_Input")
    truth = raw.table(*places, columns=(), optional=("image", "image_id", "dx", "lesion_id", "sex", "age", *CLASSES))
    if truth["dx"].notna().any():
        names = truth["image_id"].str.strip()
        diagnosis = truth["dx"].str.strip().str.lower()
    else:
        truth = raw.table(*places, columns=("image", *CLASSES), optional=("lesion_id", "sex", "age"))
        names, diagnosis = truth["image"].str.strip(), one_hot(truth, CLASSES, file)
    folders = (f"ISIC2018_Task3_{part}_Input", f"ISIC2018_Task3_{part}_Images")
    return pd.DataFrame({
        "name": names, "image": image_paths(raw, names, folders, (".jpg", ".jpeg")), "diagnosis": diagnosis.astype("string"),
        "lesion": truth["lesion_id"], "sex": truth["sex"].astype("string"), "age": truth["age"].astype("string"), "split": PARTS[part],
    })


def _join_people(raw: RawFolder, table: pd.DataFrame, found: Found) -> None:
    """Fill sex, age and lesion from HAM10000's metadata, by image name."""
    if not any(raw.has(name) for name in ham10000.METADATA):
        raise InputError(
            f"{raw.root} has no HAM10000_metadata.csv: the challenge's archives hold neither sex nor age; put that file there "
            "(Harvard Dataverse, doi:10.7910/DVN/DBW86T), or use --option demographics=none",
            raw.layout.splitlines(),
        )
    known = ham10000.metadata(raw).drop_duplicates("image_id").set_index("image_id")
    for column, name in (("sex", "sex"), ("age", "age"), ("lesion", "lesion_id")):
        table[column] = table[column].fillna(table["name"].map(known[name]).astype("string"))
    matched = int(table["name"].isin(known.index).sum())
    found.notes.append(f"sex and age come from HAM10000's metadata: {counted(matched, 'images is', 'images are', of=len(table))} in it")


def _lesions(raw: RawFolder, table: pd.DataFrame, found: Found) -> pd.Series:
    """Lesion ids, from the groupings or HAM10000's metadata; the image's own name where there is none."""
    places = beside(_GROUPINGS, "ISIC2018_Task3_Training_GroundTruth", "ISIC2018_Task3_Training_Input")
    lesions = table["lesion"].astype("string")
    if any(raw.has(name) for name in places):
        groups = raw.table(*places, columns=("image", "lesion_id"))
        lesions = table["name"].map(groups.drop_duplicates("image").set_index("image")["lesion_id"]).astype("string").fillna(lesions)
    alone = lesions.isna() & (table["split"] == "train")
    if alone.all():
        raise InputError(
            f"{raw.root} has no {_GROUPINGS}: without it, images of one lesion could fall into two splits; download it "
            "(supplement to task 3), or put HAM10000_metadata.csv there",
            raw.layout.splitlines(),
        )
    if alone.any():
        found.notes.append(lone_images(int(alone.sum())))
    return lesions.fillna(table["name"])
