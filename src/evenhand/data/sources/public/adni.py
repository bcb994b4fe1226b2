"""ADNI brain MR, as the archive (LONI IDA) gives a collection: the table of the collection and NIfTI files or DICOM series."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Attribute, Choice, Found, Info, Option, Task
from evenhand.data.sources.public._brain import PLANE, PLANES, VIEW, picture
from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.values import AGES, clean_age, clean_sex, over, with_ages
from evenhand.errors import InputError

COLUMNS = ("Image Data ID", "Subject", "Group", "Sex", "Age")
_NIFTI = re.compile(r"(?:^|_)I?(\d+)\.nii(?:\.gz)?$")
_SERIES = re.compile(r"^I?(\d+)$")
_ACROSS = {"sagittal": 0, "axial": 1, "coronal": 2}
"""Plane -> axis of a DICOM series of sagittal slices, as ADNI's MPRAGE is acquired."""
_GROUPS = {"CN": "CN", "NL": "CN", "MCI": "MCI", "EMCI": "MCI", "LMCI": "MCI", "AD": "AD"}

INFO = Info(
    name="adni",
    title="ADNI brain MR, 1.5T or 3T",
    modality="mri",
    version="a collection of LONI's Image and Data Archive, as ADNI1 Complete 1Yr 1.5T, ADNI1 Screening 1.5T or ADNI1 Baseline 3T",
    layout=(
        "ADNI1_Complete_1Yr_1.5T_1_31_2022.csv (the table of the collection, under any name): Image Data ID, Subject, Group, Sex, Age,\n"
        "    Visit, Modality, Description, Type, Acq Date, Format, Downloaded\n"
        "ADNI/002_S_0295/MPR__GradWarp__B1_Correction__N3__Scaled/2006-04-18_08_20_30.0/I118671/ADNI_002_S_0295_MR_…_I118671.nii\n"
        "    or a DICOM series in the folder I118671/*.dcm; also flat folders of files whose names end in the image's number"
    ),
    documentation=("https://adni.loni.usc.edu/data-samples/adni-data/", "https://ida.loni.usc.edu"),
    tasks=(
        Task("ad", ("ad",), "1: Alzheimer's disease, 0: cognitively normal; other groups are left out (MEDFAIR)"),
        Task("diagnosis", ("diagnosis",), "CN, MCI (EMCI and LMCI among them) or AD", "multiclass"),
        Task("impaired", ("impaired",), "1: MCI or AD, 0: cognitively normal"),
    ),
    attributes=(
        Attribute("sex", "female, male"),
        Attribute("age_over75", "75 and under; over 75 (MEDFAIR)"),
        *AGES,
        Attribute("age5_adni", "54 and under; 55 to 65; 66 to 75; 76 to 85; over 85 (MEDFAIR)"),
    ),
    default_attributes=("sex", "age_over75"),
    split="none is published; split by patient",
    options=(
        Option("table", (), "file name of the collection's table; default: the one .csv file of the raw folder that is such a table"),
        Option("scans", ("all", "first"), "all scans of a patient, or the earliest only (MEDFAIR takes screening and baseline scans)"),
        PLANE, VIEW,
    ),
    licence="ADNI data use agreement",
    link="https://adni.loni.usc.edu/data-samples/adni-data/#AccessData",
    citation="Petersen et al., Alzheimer's Disease Neuroimaging Initiative (ADNI): clinical characterization, Neurology 74(3), 2010",
    resize="pad",
    channels=1,
    traps=(
        "Group is the group at enrolment, the same for all visits (not confirmed for every phase)",
        "a visit often has several images of one scan (other corrections, or scanned twice): --option scans=first takes one a patient",
        "1.5T and 3T are told from the table's name only; the table has no column for it",
        "some image numbers of tables lack the leading I",
        "DICOM series are taken as sagittal slices (rows from top to bottom, columns from front to back), as MPRAGE is acquired; "
        "NIfTI files say their axes themselves",
        "voxels need not be cubes, and no skull is removed and no volume registered here: do that before, where a study needs it",
        "MEDFAIR trains on volumes it has preprocessed to arrays; here a picture of each volume is taken",
        "file names hold the subject's number, which is ADNI's own pseudonym",
        "not confirmed: the table's columns in later phases (ADNI2, GO, 3), and how many scans the collections hold now",
    ),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row a scan of the collection's table."""
    name = choice.options["table"] or _table_name(raw)
    table = raw.table(name, columns=COLUMNS, optional=("Visit", "Modality", "Description", "Acq Date"))
    found = Found(pd.DataFrame())
    keys = table["Image Data ID"].astype("string").str.strip().str.upper().str.removeprefix("I")
    repeated = keys.duplicated()
    if repeated.any():
        rows = counted(int(repeated.sum()), f"row of {name} repeats an image and was", f"rows of {name} repeat an image and were")
        found.notes.append(f"{rows} taken once")
        table, keys = table[~repeated].reset_index(drop=True), keys[~repeated].reset_index(drop=True)
    images = _images(raw, choice.options["plane"], choice.options["view"])
    group = table["Group"].astype("string").str.strip().str.upper().map(_GROUPS).astype("string")
    age = clean_age(_floor(table["Age"]), found.notes)
    years = pd.to_numeric(age, errors="coerce").astype("Float64")
    found.frame = with_ages(pd.DataFrame({
        "image": [images.get(key, f"ADNI/I{key}.nii") for key in keys],
        "patient_id": table["Subject"],
        "diagnosis": group,
        "ad": group.map({"AD": "1", "CN": "0"}).astype("string"),
        "impaired": group.map({"AD": "1", "MCI": "1", "CN": "0"}).astype("string"),
        "sex": clean_sex(table["Sex"], found.notes),
        "age": age,
        "age_over75": over(age, 75),
        "age5_adni": _bins(years),
        "visit": table["Visit"],
        "description": table["Description"],
    }))
    found.counts = {"images": len(table), "patients": int(table["Subject"].nunique())}
    dates = pd.to_datetime(table["Acq Date"], errors="coerce", format="%m/%d/%Y").fillna(pd.Timestamp.max)
    other = _is_other(table["Modality"])
    unused = found.frame[choice.task.labels[0]].isna() & ~other
    order = dates[~other & ~unused].sort_values(kind="stable").index
    later = table["Subject"].loc[order].duplicated().reindex(table.index, fill_value=False)
    reasons = pd.Series("", index=table.index).mask(other, "not an MR image").mask(unused, "a group that the task leaves out")
    if choice.options["scans"] == "first":
        reasons = reasons.mask(later, "a later scan of the same patient")
    for reason in sorted(set(reasons) - {""}):
        found.leave_out((reasons == reason).to_numpy(bool), reason)
        reasons = reasons[reasons != reason]
    return found


def _table_name(raw: RawFolder) -> str:
    """The one table of a collection in the raw folder."""
    names = []
    for path in sorted(raw.root.glob("*.csv")):
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            if "Image Data ID" in file.readline():
                names.append(path.name)
    if len(names) > 1:
        listed = ", ".join(names[:5])
        raise InputError(f"{raw.root} holds {len(names)} tables of collections ({listed}); name one: --option table={names[0]}")
    return names[0] if names else "ADNI1_Complete_1Yr_1.5T_1_31_2022.csv"


def _images(raw: RawFolder, plane: str, view: str) -> dict[str, str]:
    """Image number -> reference: of its NIfTI file, else of its DICOM series."""
    found: dict[str, str] = {}
    for path in raw.walk(".", (".dcm",)):
        folder = PurePosixPath(path).parent
        match = _SERIES.match(folder.name)
        if match:
            found.setdefault(match.group(1), picture(f"{folder}/", _ACROSS[plane], view, upright=False))
    for path in raw.walk(".", (".nii", ".nii.gz")):
        match = _NIFTI.search(PurePosixPath(path).name)
        if match:
            found[match.group(1)] = picture(path, PLANES[plane], view)
    return found


def _is_other(modality: pd.Series) -> pd.Series:
    """Rows that are said to be something else than MR."""
    text = modality.astype("string").str.strip().str.upper().fillna("")
    return ~text.isin(["", "MRI", "MR"])


def _floor(ages: pd.Series) -> pd.Series:
    """Ages in whole years, as MEDFAIR cuts them; what is no number stays."""
    years = pd.to_numeric(ages, errors="coerce").astype("Float64")
    whole = years.map(lambda age: f"{age // 1:g}", na_action="ignore").astype("string")
    return whole.fillna(ages.astype("string"))


def _bins(years: pd.Series) -> pd.Series:
    names = np.asarray(["54 and under", "55 to 65", "66 to 75", "76 to 85", "over 85"], object)
    codes = np.digitize(years.fillna(0).to_numpy(float), (55, 66, 76, 86))
    return pd.Series(names[codes], index=years.index, dtype="string").mask(years.isna())
