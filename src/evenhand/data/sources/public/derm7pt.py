"""Interactive Atlas of Dermoscopy (derm7pt): 1,011 lesions, each with a dermoscopic image and a clinical photograph."""

from __future__ import annotations

from pathlib import PurePosixPath

import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Choice, Expected, Found, Info, Option, Task
from evenhand.data.sources.public._skin import PICTURES, SEX, is_one_of, known_words
from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.values import clean_sex
from evenhand.errors import InputError

MELANOMAS = (
    "melanoma", "melanoma (in situ)", "melanoma (less than 0.76 mm)", "melanoma (0.76 to 1.5 mm)", "melanoma (more than 1.5 mm)",
    "melanoma metastasis",
)
GROUPS = {
    "basal cell carcinoma": "bcc",
    **dict.fromkeys((
        "blue nevus", "clark nevus", "combined nevus", "congenital nevus", "dermal nevus", "recurrent nevus", "reed or spitz nevus",
    ), "nevus"),
    **dict.fromkeys(MELANOMAS, "melanoma"),
    **dict.fromkeys(("dermatofibroma", "lentigo", "melanosis", "miscellaneous", "vascular lesion"), "misc"),
    "seborrheic keratosis": "sk",
}
_LISTS = {"training cases": 413, "validation cases": 203, "test cases": 395}
_NOTEBOOK = "notebooks/example.ipynb of github.com/jeremykawahara/derm7pt"
_META = ("meta/meta.csv", "meta.csv")
_FOLDERS = ("images", ".")
_PAPER = (
    "Kawahara et al., Seven-Point Checklist and Skin Lesion Classification Using Multitask Multimodal Neural Nets, "
    "IEEE JBHI 23(2):538-546, 2019"
)

INFO = Info(
    name="derm7pt",
    title="Interactive Atlas of Dermoscopy (derm7pt)",
    modality="dermoscopy",
    version="release_v0",
    layout=(
        "meta/meta.csv: case_num, diagnosis, seven_point_score, ..., location, sex, management, clinic, derm, case_id, notes\n"
        "meta/train_indexes.csv, meta/valid_indexes.csv, meta/test_indexes.csv: indexes (for the published split)\n"
        "images/NEL/NEL025.JPG, images/NEL/Nel026.jpg ... (give the folder release_v0)"
    ),
    documentation=("https://derm.cs.sfu.ca/", "https://github.com/jeremykawahara/derm7pt"),
    tasks=(
        Task("malignant", ("malignant",), "1: melanoma of any kind, its metastases, basal cell carcinoma; 0: the rest"),
        Task(
            "malignant_melanoma", ("malignant",),
            "1: melanoma and its metastases; 0: the rest, basal cell carcinoma among them (target of Bevan and Atapour-Abarghouei's table)",
        ),
        Task("melanoma", ("melanoma",), "the same, under its own name (Kawahara et al.)"),
        Task("diagnosis", ("diagnosis",), "the authors' five groups: bcc, nevus, melanoma, misc, sk", "multiclass"),
    ),
    attributes=(SEX,),
    default_attributes=("sex",),
    split="the authors' lists of indexes: 413 cases for training, 203 for validation, 395 for test",
    splits=("published", "patient"),
    expected=(
        Expected("cases", 1011, _PAPER), Expected("melanomas", 252, "meta.csv as others count it"),
        *(Expected(name, count, _NOTEBOOK) for name, count in _LISTS.items()),
    ),
    licence="granted with the download after registration, for research; not confirmed",
    link="https://derm.cs.sfu.ca/",
    citation=f"{_PAPER}, doi:10.1109/JBHI.2018.2824327",
    channels=3,
    options=(Option("image", ("derm", "clinic"), "derm: the dermoscopic image of each case; clinic: its clinical photograph"),),
    aliases=("atlas",),
    traps=(
        "ages and skin types are not published: sex is the only attribute",
        "file names in the table and on disk differ in case (NEL025.JPG, Nel026.jpg): found without regard to case",
        "the indexes count rows of meta.csv from 0, not case_num",
        "many images have a dark border; the authors' code cuts 25 pixels, which is not done here",
        "with image=clinic the images are no dermoscopic ones: train with data=photograph, whose augmentation fits them",
        "not confirmed: whether case_id, empty for nearly all, links cases of one patient; each case counts as a patient",
    ),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row a case: the image of the kind that was asked for."""
    column = choice.options.get("image", "derm")
    table = raw.table(*_META, columns=("case_num", "diagnosis", "sex", column), optional=("location", "seven_point_score"))
    found = Found(pd.DataFrame(), {"cases": len(table)})
    diagnosis = table["diagnosis"].str.strip()
    groups = known_words(diagnosis, GROUPS, "diagnosis", "meta.csv")
    found.counts["melanomas"] = int(groups.eq("melanoma").sum())
    malignant = ("melanoma",) if choice.task.name == "malignant_melanoma" else ("melanoma", "bcc")
    found.frame = pd.DataFrame({
        "image": _files(raw, table[column]),
        "patient_id": "case " + table["case_num"].str.strip(),
        "malignant": is_one_of(groups, malignant),
        "melanoma": is_one_of(groups, ("melanoma",)),
        "diagnosis": groups,
        "sex": clean_sex(table["sex"], found.notes),
        "diagnosis_given": diagnosis,
        "site": table["location"],
        "seven_point_score": table["seven_point_score"],
    })
    if choice.split == "published":
        found.frame["split"] = _published(raw, len(table))
        sizes = [int(found.frame["split"].eq(name).sum()) for name in ("train", "val", "test")]
        found.counts |= dict(zip(_LISTS, sizes, strict=True))
    return found


def _files(raw: RawFolder, given: pd.Series) -> pd.Series:
    """Paths under the folder of images, without regard to case; by the bare name where the folders were flattened."""
    folder = next(name for name in _FOLDERS if (raw.root / name).is_dir())
    found = raw.walk(folder, PICTURES)
    inside = {path.removeprefix(f"{folder}/").lower(): path for path in found}
    bare = {PurePosixPath(path).name.lower(): path for path in found}
    prefix = "" if folder == "." else f"{folder}/"

    def place(cell: str) -> str:
        name = cell.strip().replace("\\", "/")
        return inside.get(name.lower()) or bare.get(PurePosixPath(name).name.lower()) or prefix + name

    return given.map(place, na_action="ignore").astype("string")


def _published(raw: RawFolder, n_rows: int) -> pd.Series:
    names: dict[int, str] = {}
    for file, name in (("train_indexes.csv", "train"), ("valid_indexes.csv", "val"), ("test_indexes.csv", "test")):
        rows = pd.to_numeric(raw.table(f"meta/{file}", file, columns=("indexes",))["indexes"], errors="coerce")
        if rows.isna().any() or not rows.between(0, n_rows - 1).all():
            raise InputError(f"{file} has indexes that are not rows of meta.csv (0 to {n_rows - 1}); the files are of different releases")
        twice = sum(int(row) in names for row in rows)
        if twice:
            raise InputError(f"{file} has {counted(twice, 'index', 'indexes')} that another list has, too; download the lists again")
        names |= {int(row): name for row in rows}
    if len(names) < n_rows:
        cases = counted(n_rows - len(names), "case is", "cases are")
        raise InputError(f"{cases} in none of the three lists of indexes; use --split patient, or get them again")
    return pd.Series([names[row] for row in range(n_rows)], dtype="string")
