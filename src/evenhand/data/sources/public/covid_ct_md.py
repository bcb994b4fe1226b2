"""COVID-CT-MD: chest CT of 169 patients with COVID-19, 60 with community acquired pneumonia (CAP) and 76 without either."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Attribute, Choice, Expected, Found, Info, Option, Task
from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.values import AGES, clean_age, clean_sex, with_ages
from evenhand.errors import ImageError

FOLDERS = {
    "COVID-19": ("COVID-19 Cases", "COVID-19 subjects", "COVID-19"),
    "CAP": ("Cap Cases", "CAP Cases", "CAP subjects", "CAP"),
    "Normal": ("Normal Cases", "Normal subjects", "Normal"),
}
"""Diagnosis -> the names of its folder: of the archive, of the repository's sample, and as Index.csv has it."""
WINDOW = "-600,1500"
"""Centre and width in HU: the usual one for lungs."""
SLICES = 9
_README = "the provider's README"

INFO = Info(
    name="covid_ct_md",
    title="COVID-CT-MD",
    modality="ct",
    version="the Figshare archive COVID-CT-MD.zip of 2021",
    layout=(
        "Clinical-data.csv: Diagnosis, Folder, Patient Gender, Patient Age (061Y)\n"
        "COVID-19 Cases/P001/*.dcm ... P169\n"
        "Cap Cases/cap001/*.dcm ... cap060\n"
        "Normal Cases/normal001/*.dcm ... normal076"
    ),
    documentation=("https://doi.org/10.1038/s41597-021-00900-3", "https://github.com/ShahinSHH/COVID-CT-MD"),
    tasks=(
        Task("covid", ("COVID-19",), "1 for COVID-19, 0 for CAP and normal (MEDFAIR)"),
        Task("diagnosis", ("diagnosis",), "COVID-19, CAP, Normal (the provider)", "multiclass"),
        Task("disease", ("disease",), "1 for COVID-19 and CAP, 0 for normal"),
    ),
    attributes=(
        Attribute("sex", "female, male"),
        *AGES,
    ),
    default_attributes=("sex", "age60"),
    split="none is published; split by patient",
    expected=(
        Expected("patients", 305, _README), Expected("COVID-19", 169, _README), Expected("CAP", 60, _README),
        Expected("Normal", 76, _README), Expected("women", 122, _README), Expected("men", 183, _README),
    ),
    options=(
        Option("view", ("middle", "mean", "max", "slices"), "what of a volume: its middle slice (default), the mean or the maximum along "
               f"the body, or {SLICES} slices spread evenly over its middle half, all of the one patient"),
    ),
    licence="as stated on Figshare (CC BY 4.0; not confirmed)",
    link="https://doi.org/10.6084/m9.figshare.12991592",
    citation="Afshar et al., COVID-CT-MD, Scientific Data 8:121, 2021, doi:10.1038/s41597-021-00900-3",
    channels=1,
    traps=(
        "file names do not give the order of the slices: they are sorted by their position along the body, from the DICOM headers",
        f"values are in HU and are shown in one window for all (centre {WINDOW.replace(',', ', width ')}), never each in its own",
        "the three groups were collected in different years: scanner settings may tell the diagnosis",
        "without Clinical-data.csv sex and age are read from one DICOM header of each patient",
        "Index.csv names the folders otherwise than they are called (./CAP/ for Cap Cases) and leaves an index out: it is not needed here",
        "slice and lobe labels (*.npy, 54 COVID-19 and 25 CAP patients) are not read: they follow SliceLocation, whose direction was not "
        "checked against ours",
        "the preprint speaks of 171 patients with COVID-19, the archive holds 169",
        "not confirmed: the licence",
    ),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row a patient, or one a slice where several are asked for."""
    found = Found(pd.DataFrame())
    patients = _patients(raw)
    people = _people(raw, patients, found.notes)
    frame = with_ages(pd.DataFrame({
        "patient_id": patients["patient_id"],
        "COVID-19": patients["diagnosis"].eq("COVID-19").map({True: "1", False: "0"}),
        "disease": patients["diagnosis"].ne("Normal").map({True: "1", False: "0"}),
        "diagnosis": patients["diagnosis"],
        "sex": clean_sex(people["sex"], found.notes),
        "age": clean_age(people["age"], found.notes),
        "slices": patients["slices"],
    }))
    found.counts = {"patients": len(frame), **{name: int(frame["diagnosis"].eq(name).sum()) for name in FOLDERS}}
    found.counts |= {word: int(frame["sex"].eq(sex).sum()) for word, sex in (("women", "female"), ("men", "male"))}
    cuts = pd.Series([_cuts(int(count), choice.options["view"]) for count in patients["slices"]], index=frame.index)
    found.frame = frame.assign(image=patients["folder"], cut=cuts).explode("cut", ignore_index=True)
    found.frame["image"] += "/#axis=0&" + found.frame["cut"].fillna("slice=middle") + f"&window={WINDOW}"
    found.leave_out(found.frame["slices"].eq(0).to_numpy(bool), "its folder holds no .dcm files")
    found.frame = found.frame.drop(columns="cut")
    return found


def _cuts(slices: int, view: str) -> list[str]:
    """What is taken of a volume, in the words of a reference."""
    if view != "slices":
        return ["slice=middle" if view == "middle" else f"project={view}"]
    places = {int(slices * (0.25 + 0.5 * (k + 0.5) / SLICES)) for k in range(SLICES)}
    return [f"slice={place}" for place in sorted(places)]


def _patients(raw: RawFolder) -> pd.DataFrame:
    """Diagnosis, folder and number of slices of every patient's folder."""
    rows = []
    for diagnosis, names in FOLDERS.items():
        folder = raw.folder(*names)
        for patient in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "_"))):
            slices = sum(name.lower().endswith(".dcm") for name in os.listdir(patient))
            rows.append((f"{diagnosis} {patient.name}", patient.name, diagnosis, f"{folder.name}/{patient.name}", slices))
    return pd.DataFrame(rows, columns=["patient_id", "name", "diagnosis", "folder", "slices"])


def _people(raw: RawFolder, patients: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Sex and age of each patient, from the clinical table, else from the headers."""
    if not raw.has("Clinical-data.csv"):
        notes.append("Clinical-data.csv is not in the raw folder: sex and age are read from the DICOM headers")
        return pd.DataFrame([_header(raw.root / folder) for folder in patients["folder"]], columns=["sex", "age"], dtype="str")
    table = raw.table("Clinical-data.csv", columns=("Folder", "Patient Gender", "Patient Age"))
    table = table.assign(key=table["Folder"].str.strip().str.lower()).drop_duplicates("key").set_index("key")
    keys = patients["name"].str.lower()
    rowless, folderless = int((~keys.isin(table.index)).sum()), int((~table.index.isin(keys)).sum())
    if rowless:
        who = counted(rowless, "patient has", "patients have")
        notes.append(f"{who} a folder and no row in Clinical-data.csv: sex and age are missing there")
    if folderless:
        rows = counted(folderless, "row of Clinical-data.csv has no folder and is", "rows of Clinical-data.csv have no folder and are")
        notes.append(f"{rows} left out")
    return pd.DataFrame({"sex": keys.map(table["Patient Gender"]), "age": keys.map(table["Patient Age"])})


def _header(folder: Path) -> tuple[str | None, str | None]:
    """PatientSex and PatientAge of the first file that can be read."""
    from evenhand.data.dicom import quiet, read_dataset

    for path in sorted(folder.glob("*.[dD][cC][mM]")):
        try:
            with quiet(), open(path, "rb") as stream:
                header = read_dataset(stream, pixels=False)
        except (ImageError, OSError):
            continue
        return str(header.get("PatientSex") or "") or None, str(header.get("PatientAge") or "") or None
    return None, None
