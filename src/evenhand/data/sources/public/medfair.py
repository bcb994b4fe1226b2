"""Metadata already prepared for MEDFAIR: its three split tables, with images as files, as NumPy volumes, or in its pickles."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Attribute, Choice, Found, Info, Option, Task
from evenhand.data.sources.public._eyes import SEX, VIEW, people, plain_numbers
from evenhand.data.sources.public._given import column, located, patients_in, with_views
from evenhand.data.sources.raw import RawFolder, recode
from evenhand.data.sources.safe_pickle import open_pickled
from evenhand.data.sources.values import AGES
from evenhand.errors import ImageError, InputError

PARTS = ("train", "val", "test")
TABLES = ("split/new_{}.csv", "new_{}.csv", "split/{}.csv", "{}.csv")
PICKLES = ("pkls/{}_images.pkl", "pkls/{}.pkl", "pickles/{}_images.pkl", "{}_images.pkl")
PREFIXES = ("", "images/", "data/", "FundusImages/")


class _Set(NamedTuple):
    """One of MEDFAIR's data sets, told by the column of its people and of its label."""

    title: str
    modality: str
    patient: str
    label: str


SETS = (
    _Set("HAM10000", "dermoscopy", "lesion_id", "binaryLabel"),
    _Set("Fitzpatrick17k", "photograph", "md5hash", "binary_label"),
    _Set("MIMIC-CXR", "chest_film", "subject_id", "No Finding"),
    _Set("CheXpert", "chest_film", "Path", "No Finding"),
    _Set("PAPILA", "fundus", "ID", "Diagnosis"),
    _Set("ADNI", "mri", "Subject", "label"),
    _Set("COVID-CT-MD", "ct", "Folder", "binary_label"),
    _Set("OCT", "oct", "Path", "label"),
)
LABELS = tuple(dict.fromkeys(item.label for item in SETS))

INFO = Info(
    name="medfair",
    title="Metadata prepared for MEDFAIR",
    modality="photograph",
    version="as MEDFAIR's notebooks write them (repository ys-zong/MEDFAIR, 2023)",
    layout=(
        "split/new_train.csv, split/new_val.csv, split/new_test.csv: Path; binaryLabel, binary_label, No Finding, Diagnosis or label;\n"
        "    Sex, Age_binary, Age_multi, Age_multi4, Race, skin_binary, skin_type; the provider's columns\n"
        "pkls/train_images.pkl, pkls/val_images.pkl, pkls/test_images.pkl: a list of arrays, row by row as the tables; or the files that\n"
        "    Path names (pictures, or NumPy volumes), under the folder or its images/, data/ or FundusImages/"
    ),
    documentation=("https://github.com/ys-zong/MEDFAIR", "https://github.com/ys-zong/MEDFAIR/blob/main/docs/quickstart.md"),
    tasks=(Task("label", ("label",), "1 where the set's label column is above 0, as MEDFAIR's loaders take it; 0 else"),),
    attributes=(
        SEX,
        Attribute("age_binary", "younger (0), older (1) as in Age_binary: over 60, in OCT over 70, in ADNI over 75"),
        Attribute("age_multi", "0 to 4 as in Age_multi: under 20, 20 to 39, 40 to 59, 60 to 79, 80 and over (ADNI: other edges)"),
        Attribute("age_multi4", "0 to 3 as in Age_multi4"),
        *AGES,
        Attribute("race_white", "White, Other (Race; unknown race may be among the others: MEDFAIR's tables do not tell)"),
        Attribute("skin_tone", "light: Fitzpatrick I to III (skin_binary 0); dark: IV to VI (1)"),
        Attribute("fitzpatrick", "1 to 6 (skin_type 0 to 5)"),
    ),
    default_attributes=("sex", "age_binary", "race_white", "skin_tone"),
    split="the three tables are train, val and test",
    splits=("published", "patient"),
    licence="that of the data set they were made from",
    link="https://github.com/ys-zong/MEDFAIR",
    citation="Zong et al., MEDFAIR: Benchmarking Fairness for Medical Imaging, ICLR 2023 (arXiv:2210.01725); and the data set's own paper",
    options=(
        Option("images", ("told", "pickles", "files"), "where images are; told: the pickles where all three are there, else the files"),
        Option("colours", ("bgr", "rgb"), "order of colours in the pickles: MEDFAIR's notebook stores what OpenCV reads, blue first"),
        VIEW,
        Option("axis", ("2", "0", "1"), "the axis of a NumPy volume along which the picture is taken"),
    ),
    resize="stretch",
    traps=(
        "the data set is told from its columns, and said; its modality goes into the prepared set",
        "nothing in a pickle is run: only the bytes of its arrays are read, anything else is refused by its name",
        "MEDFAIR's notebook stores pictures blue first and its loader takes them for red first: here they are put right (--option colours)",
        "MEDFAIR's loaders count every sex but M as female; here it is missing",
        "CheXpert and MIMIC-CXR: an empty or uncertain 'No Finding' is 0, as in MEDFAIR",
        "OCT: label 1 is the control group, as MEDFAIR writes it",
        "PAPILA: suspicious eyes (2) are left out",
        "HAM10000 and Fitzpatrick17k are split by lesion and by image: no patients are known",
        "not confirmed: the columns of the CheXpert and MIMIC-CXR tables, whose notebooks are not in the repository",
    ),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row a row of the three tables."""
    table = pd.concat([_table(raw, part) for part in PARTS], ignore_index=True)
    data = _recognised(table)
    found = Found(pd.DataFrame(), modality=data.modality)
    found.notes.append(f"the tables are taken for MEDFAIR's {data.title}: label '{data.label}'")
    numbers = pd.to_numeric(table[data.label], errors="coerce").astype("Float64")
    positive = numbers.gt(0).map({True: "1", False: "0"}, na_action="ignore").astype("string")
    found.frame = pd.DataFrame({
        "image": _images(raw, table, choice, found.notes),
        "patient_id": _patients(table, data),
        "label": positive.fillna("0") if data.label == "No Finding" else positive,
        **people(column(table, "Sex", "sex"), column(table, "Age", "age", "Patient Age", "anchor_age"), found.notes),
        "age_binary": plain_numbers(column(table, "Age_binary")).map({"0": "younger", "1": "older"}),
        "age_multi": plain_numbers(column(table, "Age_multi")),
        "age_multi4": plain_numbers(column(table, "Age_multi4")),
        "race_white": recode(column(table, "Race", "race"), {"white": "White", "non-white": "Other"}),
        "skin_tone": plain_numbers(column(table, "skin_binary")).map({"0": "light", "1": "dark"}),
        "fitzpatrick": (pd.to_numeric(column(table, "skin_type"), errors="coerce").astype("Int64") + 1).astype("string"),
    })
    if choice.split == "published":
        found.frame["split"] = table["part"]
    found.counts = {"images": len(table), "patients": int(found.frame["patient_id"].nunique())}
    if data.title == "PAPILA":
        found.leave_out(numbers.eq(2).fillna(False).to_numpy(bool), "suspicious, neither healthy nor glaucoma")
    found.leave_out(found.frame["label"].isna().to_numpy(), f"no number in '{data.label}'")
    return found


def _table(raw: RawFolder, part: str) -> pd.DataFrame:
    frame = raw.table(*(name.format(part) for name in TABLES), columns=())
    if not len(frame):
        raise InputError(f"{raw.file(*(name.format(part) for name in TABLES))} has no rows")
    return frame.assign(part=part, row=[str(row) for row in range(len(frame))])


def _recognised(table: pd.DataFrame) -> _Set:
    for data in SETS:
        if data.label in table and data.patient in table:
            return data
    label = next((name for name in LABELS if name in table), None)
    if label is None:
        known = ", ".join(str(name) for name in table.columns[:30])
        raise InputError(f"the tables have none of MEDFAIR's label columns ({', '.join(LABELS)}); their columns are {known}")
    return _Set("own data", "photograph", "", label)


def _patients(table: pd.DataFrame, data: _Set) -> pd.Series:
    """The set's people; rows of their own where it has none."""
    own = table["part"].astype("string") + "-" + table["row"]
    if data.title == "CheXpert":
        return patients_in(table["Path"]).fillna(own)
    return table[data.patient].astype("string").fillna(own) if data.patient else own


def _images(raw: RawFolder, table: pd.DataFrame, choice: Choice, notes: list[str]) -> pd.Series:
    pickles = {part: next((name.format(part) for name in PICKLES if raw.has(name.format(part))), None) for part in PARTS}
    wanted = choice.options["images"]
    if wanted == "pickles" or (wanted == "told" and all(pickles.values())):
        return _pickled(raw, table, pickles, choice.options["colours"], notes)
    if wanted == "told" and any(pickles.values()):
        absent = ", ".join(PICKLES[0].format(part) for part, name in pickles.items() if name is None)
        raise InputError(
            f"{raw.root} has pickles of some tables alone, and lacks {absent}; put them there, or have the pictures themselves read: "
            "--option images=files"
        )
    if "Path" not in table and "path" not in table:
        raise InputError("the tables have no column 'Path', and there are no pickles of the images for all three of them")
    paths = column(table, "Path", "path")
    npy = paths.str.replace(r"\.nii(\.gz)?$", ".npy", regex=True)
    for candidate in (paths, npy):
        placed = located(raw, candidate, PREFIXES)
        if any((raw.root / path).is_file() for path in placed.dropna().head(1000)):
            break
    images, volumes = with_views(raw, placed, choice.options["view"], int(choice.options["axis"]))
    if volumes:
        notes.append(f"images are NumPy volumes: one picture of each ({choice.options['view']}, along axis {choice.options['axis']})")
    return images


def _pickled(raw: RawFolder, table: pd.DataFrame, pickles: dict[str, str | None], colours: str, notes: list[str]) -> pd.Series:
    """References into the pickles, which must have as many images as the tables have rows."""
    for part, name in pickles.items():
        path = raw.file(*(pattern.format(part) for pattern in PICKLES)) if name is None else raw.root / name
        try:
            images = len(open_pickled(path))
        except ImageError as error:
            advice = "write it again with MEDFAIR's notebook, or have the pictures themselves read: --option images=files"
            raise ImageError(f"{path}: {error.summary}; {advice}") from error
        rows = int(table["part"].eq(part).sum())
        if images != rows:
            has, lines = counted(images, "image", "images"), counted(rows, "row", "rows")
            raise InputError(f"{path} has {has} and the table of {part} {lines}; they belong together row by row")
    order = "blue first, turned to red first" if colours == "bgr" else "red first"
    notes.append(f"images are read from MEDFAIR's pickles; colours are taken as {order}")
    tail = "&colours=bgr" if colours == "bgr" else ""
    return table["part"].map(pickles).astype("string") + "#row=" + table["row"] + tail
