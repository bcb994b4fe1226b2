"""OASIS-1: cross-sectional brain MR of 416 people aged 18 to 96, 100 of them with a clinical dementia rating above 0."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Attribute, Choice, Expected, Found, Info, Option, Task
from evenhand.data.sources.public._brain import PLANE, PLANES, VIEW, picture
from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.values import AGES, clean_age, clean_sex, with_ages
from evenhand.errors import InputError

_PAPER = "Marcus et al., J Cogn Neurosci 19(9), 2007"
_SESSION = re.compile(r"^(OAS1_\d{4})_MR(\d+)$")
_VOLUMES = ("_t88_masked_gfc.img", "_t88_masked_gfc.img.gz", "_t88_masked_gfc.nii", "_t88_masked_gfc.nii.gz")
_TABLE = "oasis_cross-sectional"

INFO = Info(
    name="oasis1",
    title="OASIS-1 (cross-sectional)",
    modality="mri",
    version="2007 release, twelve discs",
    layout=(
        "oasis_cross-sectional.csv (or oasis_cross-sectional-….xlsx): ID, M/F, Hand, Age, Educ, SES, MMSE, CDR, eTIV, nWBV, ASF, Delay\n"
        "disc1/OAS1_0001_MR1/PROCESSED/MPRAGE/T88_111/OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc.hdr and .img ... disc12/\n"
        "    (the folders of the discs may lie at any depth)"
    ),
    documentation=("https://sites.wustl.edu/oasisbrains/home/oasis-1/", "https://doi.org/10.1162/jocn.2007.19.9.1498"),
    tasks=(
        Task("dementia", ("dementia",), "1: clinical dementia rating (CDR) 0.5, 1 or 2; 0: CDR 0 (the provider; FairTune's two classes)"),
        Task("cdr", ("cdr",), "the CDR itself: 0, 0.5, 1 or 2", "multiclass"),
    ),
    attributes=(
        Attribute("sex", "female, male"),
        *AGES,
        Attribute("ses", "socioeconomic status by Hollingshead, 1 (highest) to 5"),
        Attribute("education", "1 less than high school, 2 high school, 3 some college, 4 college, 5 beyond college"),
    ),
    default_attributes=("sex", "age60"),
    split="none is published; split by patient",
    expected=(
        Expected("patients", 416, _PAPER), Expected("sessions", 436, f"{_PAPER}: 416 people and 20 repeated sessions"),
        Expected("CDR above 0", 100, _PAPER),
    ),
    options=(
        Option("no_cdr", ("left_out", "zero"),
               "sessions without a CDR (the young, who were not rated, and repeated sessions): left out, or counted as CDR 0"),
        PLANE, VIEW,
    ),
    licence="OASIS data use terms (registration; acknowledgement)",
    link="https://sites.wustl.edu/oasisbrains/",
    citation=f"{_PAPER}, doi:10.1162/jocn.2007.19.9.1498",
    resize="pad",
    channels=1,
    traps=(
        "CDR is empty for people under about 60, who were not rated: with no_cdr=zero age alone tells most of the label",
        "repeated sessions (_MR2) have no CDR of their own and are the same patient",
        "the number after mpr_n differs between sessions (how many scans were averaged): files are found by their ending",
        "of each session the atlas-registered, brain-masked volume (T88_111) is read, 176 x 208 x 176 at 1 mm",
        "some numbers between OAS1_0001 and OAS1_0457 are not used",
        "Analyze files do not tell how they lie in the patient: pictures are in stored order, axial ones lie on their side, all alike",
        "not confirmed: that the stored axes are sagittal, coronal and transverse (176 x 208 x 176); FairTune's choice of a slice",
    ),
    aliases=("oasis", "oasis-1"),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row a session."""
    names = [path.name for path in sorted(raw.root.glob(f"{_TABLE}*")) if path.suffix in (".csv", ".xlsx")]
    table = raw.table(*names, f"{_TABLE}.csv", columns=("ID", "M/F", "Age", "CDR"), optional=("Educ", "SES", "MMSE", "eTIV", "nWBV"))
    sessions = table["ID"].astype("string").str.strip()
    matches = [_SESSION.match(text) if isinstance(text, str) else None for text in sessions]
    odd = sum(match is None for match in matches)
    if odd:
        cells = counted(odd, "cells in the column ID is", "cells in the column ID are", of=len(table))
        raise InputError(f"{cells} not of the form OAS1_0001_MR1; is it the table of OASIS-1?")
    patients = pd.Series([match.group(1) for match in matches if match], index=table.index)
    found = Found(pd.DataFrame())
    rated = pd.to_numeric(table["CDR"], errors="coerce").astype("Float64")
    cdr = rated.fillna(0) if choice.options["no_cdr"] == "zero" else rated
    volumes = {PurePosixPath(path).name[:13]: path for path in reversed(raw.walk(".", _VOLUMES))}
    axis = PLANES[choice.options["plane"]]
    found.frame = with_ages(pd.DataFrame({
        "image": [
            picture(volumes.get(name, f"disc*/{name}/T88_111.img"), axis, choice.options["view"], upright=False) for name in sessions
        ],
        "patient_id": patients,
        "session": sessions.str[10:],
        "dementia": (cdr > 0).map({True: "1", False: "0"}, na_action="ignore").astype("string"),
        "cdr": cdr.map(lambda value: f"{value:g}", na_action="ignore").astype("string"),
        "sex": clean_sex(table["M/F"], found.notes),
        "age": clean_age(table["Age"], found.notes),
        "ses": _whole(table["SES"]),
        "education": _whole(table["Educ"]),
        "mmse": _whole(table["MMSE"]),
    }))
    found.counts = {"patients": int(patients.nunique()), "sessions": len(table), "CDR above 0": int((rated > 0).sum())}
    found.leave_out(cdr.isna().to_numpy(bool), "no clinical dementia rating")
    return found


def _whole(values: pd.Series) -> pd.Series:
    """``3.0`` as ``3``."""
    numbers = pd.to_numeric(values, errors="coerce").astype("Float64")
    return numbers.map(lambda value: f"{value:g}" if np.isfinite(value) else "", na_action="ignore").astype("string")
