"""PAPILA: fundus photographs of both eyes of 244 patients, graded healthy, glaucoma or suspicious."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Attribute, Choice, Expected, Found, Info, Task
from evenhand.data.sources.public._eyes import SEX, people, plain_numbers
from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.sheet import sheet_rows
from evenhand.data.sources.values import AGES
from evenhand.errors import InputError, nearest

CLASSES = {"0": "healthy", "1": "glaucoma", "2": "suspicious"}
COLUMNS = ("Age", "Gender", "Diagnosis")
_PAPER = "Kovalyk et al., PAPILA, Scientific Data 9:291, 2022"
_ID = re.compile(r"^#?0*\d+$")

INFO = Info(
    name="papila",
    title="PAPILA",
    modality="fundus",
    version="figshare 14798004 (PapilaDB)",
    layout=(
        "ClinicalData/patient_data_od.xlsx (right eyes), patient_data_os.xlsx (left eyes): header rows above each other, then a row\n"
        "    an eye: ID (#002), Age, Gender, Diagnosis, ...; the same as .csv with one header row (as MEDFAIR needs them) is read, too\n"
        "FundusImages/RET002OD.jpg, RET002OS.jpg ..."
    ),
    documentation=("https://doi.org/10.1038/s41597-022-01388-1", "https://figshare.com/articles/dataset/PAPILA/14798004"),
    tasks=(
        Task("glaucoma", ("glaucoma",), "1: glaucoma, 0: healthy; suspicious eyes are left out (MEDFAIR)"),
        Task("glaucoma_or_suspicious", ("glaucoma",), "1: glaucoma or suspicious, 0: healthy"),
        Task("diagnosis", ("diagnosis",), "healthy, glaucoma, suspicious (the provider)", "multiclass"),
    ),
    attributes=(SEX, *AGES, Attribute("eye", "right, left")),
    default_attributes=("sex", "age60"),
    split="none is published; drawn by patient (MEDFAIR draws 7:1:2 by patient)",
    expected=(
        Expected("images", 488, _PAPER), Expected("patients", 244, _PAPER), Expected("healthy", 333, _PAPER),
        Expected("glaucoma", 87, _PAPER), Expected("suspicious", 68, _PAPER),
    ),
    licence="CC BY 4.0 (figshare)",
    link="https://figshare.com/articles/dataset/PAPILA/14798004",
    citation=f"{_PAPER}, doi:10.1038/s41597-022-01388-1",
    resize="pad",
    channels=3,
    traps=(
        "the unpacked folder is called PapilaDB-PAPILA- and a commit's name: give the one that holds FundusImages",
        "a plain reader takes the second header row of the sheets for a patient",
        "Gender is 0 for male and 1 for female (the provider)",
        "Diagnosis is of the eye, not of the patient: the two eyes of a patient may differ, and stay in one split",
        "MEDFAIR's age groups put 60 with the younger: attribute age_over60",
        "not confirmed: the order of the header rows below the first; a row counts as an eye where its first cell is an id",
    ),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row an eye of the two clinical tables."""
    table = pd.concat([_eyes(raw, "od", "right"), _eyes(raw, "os", "left")], ignore_index=True)
    found = Found(pd.DataFrame())
    number = table["ID"].str.lstrip("#").str.strip()
    code = plain_numbers(table["Diagnosis"])
    diagnosis = code.map(CLASSES).astype("string")
    positive = ("1", "2") if choice.task.name == "glaucoma_or_suspicious" else ("1",)
    found.frame = pd.DataFrame({
        "image": "FundusImages/RET" + number + table["eye"].map({"right": "OD", "left": "OS"}) + ".jpg",
        "patient_id": number,
        "glaucoma": code.isin(positive).map({True: "1", False: "0"}).astype("string").mask(diagnosis.isna()),
        "diagnosis": diagnosis,
        **people(plain_numbers(table["Gender"]), plain_numbers(table["Age"]), found.notes, {"0": "male", "1": "female"}),
        "eye": table["eye"],
    })
    found.counts = {
        "images": len(table), "patients": int(number.nunique()), **{name: int(diagnosis.eq(name).sum()) for name in CLASSES.values()},
    }
    for column, values in (("Gender", found.frame["sex"]), ("Age", found.frame["age"])):
        differing = int((values.groupby(number).nunique() > 1).sum())
        if differing:
            have = counted(differing, "patient has", "patients have")
            found.notes.append(f"{column}: {have} another value for the left eye than for the right one; each is kept")
    found.leave_out(diagnosis.isna().to_numpy(), "no diagnosis")
    if choice.task.name == "glaucoma":
        found.leave_out(found.frame["diagnosis"].eq("suspicious").to_numpy(), "suspicious, neither healthy nor glaucoma")
    return found


def _eyes(raw: RawFolder, side: str, eye: str) -> pd.DataFrame:
    """ID, Age, Gender, Diagnosis and eye of one table."""
    name = f"ClinicalData/patient_data_{side}"
    path = raw.file(f"{name}.xlsx", f"{name}.csv")
    frame = raw.table(f"{name}.csv", columns=("ID", *COLUMNS)) if path.suffix == ".csv" else _from_sheet(path)
    return frame[["ID", *COLUMNS]].assign(eye=eye)


def _from_sheet(path: Path) -> pd.DataFrame:
    try:
        rows = sheet_rows(path)
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as a table ({error}); download it again") from error
    eyes = [row for row in rows if _ID.match((row.get(0) or "").strip())]
    heads = [row for row in rows[:4] if row not in eyes]
    places: Mapping[str, int] = {(name or "").strip(): column for row in heads for column, name in row.items()}
    absent = [name for name in COLUMNS if name not in places]
    if absent:
        known = [name for name in places if name]
        otherwise = f"the columns are {', '.join(known[:30])}"
        words = "; ".join(f"'{name}' is absent, {nearest(name, known, otherwise=otherwise)}" for name in absent)
        raise InputError(f"{path.name} has other columns than this release of the set: {words}. Is it the file of this data set?")
    if not eyes:
        raise InputError(f"{path.name} has no row whose first cell is an id as '#002'. Is it the file of this data set?")
    cells = {name: [row.get(places[name]) for row in eyes] for name in COLUMNS}
    return pd.DataFrame({"ID": [row[0] for row in eyes], **cells}, dtype="string")
