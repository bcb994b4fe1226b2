"""CheXpert: 224,316 chest films of 65,240 adults of Stanford Health Care, 14 labels read from reports."""

from __future__ import annotations

import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Attribute, Choice, Expected, Found, Info, Option
from evenhand.data.sources.public._chexpert_labels import LABELS, TASKS, UNCERTAIN, UNMENTIONED, VIEW, add_labels, leave_views
from evenhand.data.sources.public._race import conflict_note, one_value, race_groups, white_or_other
from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.values import AGES, clean_age, clean_sex, with_ages
from evenhand.errors import InputError

BATCHES = (
    "CheXpert-v1.0 batch 1 (validate & csv)", "CheXpert-v1.0 batch 2 (train 1)", "CheXpert-v1.0 batch 3 (train 2)",
    "CheXpert-v1.0 batch 4 (train 3)",
)
PLACES = ("", "CheXpert-v1.0-small/", "CheXpert-v1.0/", f"{BATCHES[0]}/", "CheXpert/", "chexlocalize/CheXpert/")
"""Where, below the folder that the user names, tables and the folders train, valid and test may lie."""
TABLES = {"chexpert": "train.csv", "chexbert": "train_cheXbert.csv", "visualchexbert": "train_visualCheXbert.csv"}
DEMO = "CHEXPERT DEMO.xlsx"
TEST_TABLES = ("test_labels.csv", "test.csv", "groundtruth.csv")
_PATH = r"(?P<part>train|valid|val|test)/(?P<patient>patient\d+)/(?P<study>study\d+)(?:/(?P<file>[^/]+))?\s*$"
_PAPER = "Irvin et al., AAAI 2019"
_CSV = "rows of train.csv and valid.csv"

INFO = Info(
    name="chexpert",
    title="CheXpert",
    modality="chest_film",
    version="v1.0, small (11 GB) or full (440 GB; also as the four batch folders of the Stanford AIMI download of 2021)",
    layout=(
        "train.csv, valid.csv: Path, Sex, Age, Frontal/Lateral, AP/PA, and the 14 labels\n"
        "train/patient00001/study1/view1_frontal.jpg ..., valid/patient64541/study1/view1_frontal.jpg ...\n"
        "    (the folder itself, or CheXpert-v1.0-small/ or CheXpert-v1.0/ in it)\n"
        "or, as the AIMI download unpacks: CheXpert-v1.0 batch 1 (validate & csv)/train.csv, valid.csv, valid/patient64541/...,\n"
        "    CheXpert-v1.0 batch 2 (train 1)/patient00001/..., CheXpert-v1.0 batch 3 (train 2)/..., CheXpert-v1.0 batch 4 (train 3)/...\n"
        "CHEXPERT DEMO.xlsx (a download of its own, for race and ethnicity): PATIENT, GENDER, AGE_AT_CXR, PRIMARY_RACE, ETHNICITY\n"
        "test/patient64741/study1/view1_frontal.jpg ... with test_labels.csv (Path and labels; CheXlocalize download) or\n"
        "    groundtruth.csv (Study and labels; github.com/rajpurkarlab/cheXpert-test-set-labels), for the public test set\n"
        "train_cheXbert.csv, train_visualCheXbert.csv (of the AIMI download; option labeller)"
    ),
    documentation=(
        "https://stanfordmlgroup.github.io/competitions/chexpert/", "https://arxiv.org/abs/1901.07031", "https://arxiv.org/abs/2105.03020",
        "https://github.com/rajpurkarlab/cheXpert-test-set-labels",
    ),
    tasks=TASKS,
    attributes=(
        Attribute("sex", "female, male"),
        *AGES,
        Attribute("race", "White, Black, Asian, Native American, Pacific Islander, Hispanic, Other, by the beginning of PRIMARY_RACE "
                  "('White, Hispanic' is White); unknown and refused are missing"),
        Attribute("race_white", "White, Other (MEDFAIR, DNE; theirs count unknown race as not White, here it is missing)"),
        Attribute("ethnicity", "Hispanic or Latino; not Hispanic or Latino, from ETHNICITY, else from the ending of PRIMARY_RACE"),
        Attribute("view", "PA, AP, lateral"),
    ),
    default_attributes=("sex", "age60"),
    split="published: train.csv, valid.csv and the public test set; where that is not in the folder, valid.csv is the test split and val "
    "is drawn by patient from train.csv. By default all rows are split by patient, because valid and test are small",
    splits=("patient", "published"),
    expected=(
        Expected("training images", 223414, _CSV), Expected("training patients", 64540, _CSV),
        Expected("validation images", 234, _CSV), Expected("validation patients", 200, _PAPER),
        Expected("test images", 668, "CheXlocalize"), Expected("test patients", 500, _PAPER),
        Expected("images", 224316, f"{_PAPER}: with the test set"), Expected("patients", 65240, f"{_PAPER}: with the test set"),
    ),
    options=(
        UNCERTAIN, UNMENTIONED, VIEW,
        Option("labeller", tuple(TABLES), "who read the training reports: chexpert (train.csv), chexbert or visualchexbert (tables of the "
               "AIMI download)"),
    ),
    licence="Stanford University Dataset Research Use Agreement: research only, no sharing",
    link="https://stanfordaimi.azurewebsites.net/datasets/8cbd9ed4-2eb9-4565-affc-111cf4f7ebe2 (demographics: "
    "https://stanfordaimi.azurewebsites.net/datasets/192ada7c-4d43-466e-b8bb-b81992bb80cf)",
    citation=f"{_PAPER}, arXiv:1901.07031",
    channels=1,
    traps=(
        "one patient's sex is Unknown and an age of 0 stands in the tables: both are missing, never female or a newborn",
        "training labels are read from reports by a program; validation and test labels are radiologists': --split patient mixes them",
        "the training table has no 0 for No Finding, only 1 and blank: blank is 0",
        "test labels come without sex and age: they are taken from CHEXPERT DEMO.xlsx, and missing without it",
        "Path begins with the name of the archive, whatever the folder is called now: only what follows it counts",
        "the loaders of MEDFAIR and DNE count unknown sex as female and unknown race as not White: here they are missing",
        "not confirmed: all spellings in CHEXPERT DEMO.xlsx (those known from published code are read), the columns of the cheXbert "
        "tables, whether the demographics cover the test set",
    ),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row an image of the training, validation and (where it is there) test tables."""
    found = Found(pd.DataFrame())
    columns = ("Path", "Sex", "Age", "Frontal/Lateral", *LABELS)
    names = {"train": TABLES[choice.options["labeller"]], "val": "valid.csv"}
    parts = [
        raw.table(*_places(name), columns=columns, optional=("AP/PA",))[[*columns, "AP/PA"]].assign(split=split)
        for split, name in names.items()
    ]
    test = _test_table(raw, found.notes)
    table = pd.concat([*parts, *([] if test is None else [test])], ignore_index=True)
    places = table["Path"].str.extract(_PATH)
    odd = int(places["file"].isna().sum())
    if odd:
        cells = counted(odd, "cell of column 'Path' is", "cells of column 'Path' are")
        raise InputError(f"{cells} not of the form .../train/patient00001/study1/view1_frontal.jpg; download the tables again")
    demo = _demographics(raw, places["patient"], found.notes)
    frontal = table["Frontal/Lateral"].str.strip().str.lower().eq("frontal").fillna(False).to_numpy(bool)
    frame = pd.DataFrame({
        "image": _images(raw, places),
        "patient_id": places["patient"],
        **{name: table[name] for name in LABELS},
        "sex": clean_sex(table["Sex"].fillna(demo["sex"]), found.notes),
        "age": clean_age(table["Age"].fillna(demo["age"]), found.notes, zero_is_unknown=True),
        "race": demo["race"], "race_white": white_or_other(demo["race"]), "ethnicity": demo["ethnicity"],
        "view": table["AP/PA"].str.strip().str.upper().where(frontal, "lateral"),
    })
    found.frame = with_ages(frame).assign(split=table["split"])
    found.counts = _counts(found.frame)
    _split(found, choice)
    leave_views(found, choice.options["view"], frontal)
    add_labels(found, choice)
    return found


def _places(name: str) -> list[str]:
    return [f"{place}{name}" for place in PLACES]


def _folder(raw: RawFolder, *names: str) -> str | None:
    """The first of these folders that exists under one of the places."""
    return next((path for name in names for path in _places(name) if (raw.root / path).is_dir()), None)


def _test_table(raw: RawFolder, notes: list[str]) -> pd.DataFrame | None:
    """The public test set's labels, one row an image; None where labels or images are absent."""
    known = [path for name in TEST_TABLES for path in _places(name) if (raw.root / path).is_file()]
    folder = _folder(raw, "test")
    if not known or folder is None:
        if known or folder:
            lacking = "its images (the folder test)" if known else f"its labels ({' or '.join(TEST_TABLES)})"
            notes.append(f"the public test set was left out: {lacking} are not in the raw folder")
        return None
    if known[0].endswith("groundtruth.csv"):
        studies = raw.table(known[0], columns=("Study", *LABELS))
        images = pd.DataFrame({"Path": pd.Series(raw.walk(folder, (".jpg", ".png")), dtype="str")})
        images["Study"] = images["Path"].str.extract(r"(test/patient\d+/study\d+)/", expand=False)
        studies["Study"] = studies["Study"].str.extract(r"(test/patient\d+/study\d+)\s*$", expand=False)
        table = images.merge(studies, on="Study", how="inner")
    else:
        table = raw.table(known[0], columns=("Path", *LABELS))
    view = table["Path"].str.extract(r"_(frontal|lateral)\.", expand=False).str.capitalize()
    empty = pd.Series(pd.NA, index=table.index, dtype="string")
    return table[["Path", *LABELS]].assign(split="test", Sex=empty, Age=empty, **{"Frontal/Lateral": view, "AP/PA": empty})


def _demographics(raw: RawFolder, patients: pd.Series, notes: list[str]) -> pd.DataFrame:
    """Sex, age, race and ethnicity for each image's patient, missing where the demographics file is absent."""
    files = [path for name in (DEMO, DEMO.replace("xlsx", "csv")) for path in _places(name) if (raw.root / path).is_file()]
    if not files:
        notes.append(f"{DEMO} is not in the raw folder: race and ethnicity are missing; it is a download of its own (see --describe)")
        empty = pd.Series(pd.NA, index=patients.index, dtype="string")
        return pd.DataFrame(dict.fromkeys(("sex", "age", "race", "ethnicity"), empty))
    table = raw.table(files[0], columns=("PATIENT", "PRIMARY_RACE"), optional=("GENDER", "AGE_AT_CXR", "ETHNICITY"))
    values = {
        "sex": table["GENDER"], "age": table["AGE_AT_CXR"], "race": race_groups(table["PRIMARY_RACE"]),
        "ethnicity": _ethnicity(table["ETHNICITY"], table["PRIMARY_RACE"]),
    }
    found = {}
    for name, column in values.items():
        agreed, conflicts = one_value(table["PATIENT"].str.strip(), column)
        found[name] = patients.map(agreed).astype("string")
        if conflicts and name in ("race", "ethnicity"):
            notes.append(conflict_note(name, conflicts))
    return pd.DataFrame(found)


def _ethnicity(words: pd.Series, races: pd.Series) -> pd.Series:
    """From ETHNICITY; where that is unknown, from the race's ending (", Hispanic", ", non-Hispanic")."""

    def group(text: str) -> str | None:
        lower = text.strip().lower()
        if not ("hispanic" in lower or "latino" in lower) or "unknown" in lower:
            return None
        return "not Hispanic or Latino" if lower.startswith(("non", "not")) else "Hispanic or Latino"

    endings = races.str.extract(r",\s*((?:non-)?hispanic)\s*$", flags=2, expand=False)
    known = [column.map({text: group(text) for text in column.dropna().unique()}).astype("string") for column in (words, endings)]
    return known[0].fillna(known[1])


def _images(raw: RawFolder, places: pd.DataFrame) -> pd.Series:
    """Where each image lies, relative to the raw folder."""
    tails = places["patient"] + "/" + places["study"] + "/" + places["file"]
    folders = pd.Series("", index=places.index, dtype="str")
    for part in places["part"].unique():
        folder = _folder(raw, part, *(["val"] if part == "valid" else []))
        rows = places["part"].eq(part)
        if folder is None and part == "train" and any(raw.has(name) for name in BATCHES[1:]):
            folders[rows] = places["patient"][rows].map(_batch_of(raw)).fillna(BATCHES[1])
        else:
            folders[rows] = folder or part
    return folders + "/" + tails


def _batch_of(raw: RawFolder) -> dict[str, str]:
    """Patient -> the batch folder that holds the patient's images."""
    return {path.name: name for name in BATCHES[1:] if raw.has(name) for path in (raw.root / name).iterdir()}


def _counts(frame: pd.DataFrame) -> dict[str, int]:
    words = {"train": "training", "val": "validation", "test": "test"}
    counts: dict[str, int] = {}
    for split, word in words.items():
        rows = frame["split"].eq(split)
        if rows.any() or split == "train":
            counts |= {f"{word} images": int(rows.sum()), f"{word} patients": int(frame["patient_id"][rows].nunique())}
    if "test images" in counts:
        counts |= {"images": len(frame), "patients": int(frame["patient_id"].nunique())}
    return counts


def _split(found: Found, choice: Choice) -> None:
    """Keep the published split, without a test set as train (val drawn from it) and test; or drop it for a split by patient."""
    if choice.split == "patient":
        found.frame = found.frame.drop(columns="split")
    elif not found.frame["split"].eq("test").any():
        found.frame["split"] = found.frame["split"].map({"train": "rest", "val": "test"})
        found.notes.append("the public test set is not there: the validation table is the test split, and val is drawn from training")
