"""The metadata that the authors of DNE give out: two tables of CheXpert films, "No Finding" against one of four findings."""

from __future__ import annotations

import pandas as pd

from evenhand.data.sources.base import Attribute, Choice, Found, Info, Task
from evenhand.data.sources.public._chexpert_labels import DNE, versus_name
from evenhand.data.sources.public._eyes import SEX, leave_out_each, people
from evenhand.data.sources.public._given import located, patients_in
from evenhand.data.sources.public._race import race_groups, white_or_other
from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.values import AGES
from evenhand.errors import InputError

UNCERTAIN_IS_ONE = ("Edema",)
TABLES = ("meta_data/{}.csv", "{}.csv")
PREFIXES = ("data/", "", "data/CheXpert-v1.0-small/", "CheXpert-v1.0-small/", "../data/", "../")
_REPOSITORY = "https://github.com/ubc-tea/DNE-foundation-model-fairness"

INFO = Info(
    name="dne_authors",
    title="CheXpert as the authors of DNE prepared it",
    modality="chest_film",
    version="train.csv and valid.csv of the repository's README (2024)",
    layout=(
        "meta_data/train.csv, meta_data/valid.csv: Path, Sex, Age, Race, No Finding, Pleural Effusion, Pneumonia, Lung Lesion, Edema, ...\n"
        "data/CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg ... (the films that Path names)"
    ),
    documentation=(_REPOSITORY,),
    tasks=tuple(
        Task(versus_name(finding), (finding,),
             f"1: {finding}, 0: No Finding; films with both or neither are left out (the authors, --disease)")
        for finding in DNE
    ),
    attributes=(
        SEX, *AGES, Attribute("race_white", "White, Other (the authors count unknown race as not White, here it is missing)"),
        Attribute("race", "White, Black, Asian, Native American, Pacific Islander, Hispanic, Other, by the beginning of Race; unknown and "
                  "refused are missing"),
    ),
    default_attributes=("sex", "age_over60", "race_white"),
    split="valid.csv is the test split, as the authors use it; val is drawn by patient from train.csv, which the authors do without",
    splits=("published", "patient"),
    licence="that of CheXpert: Stanford University Dataset Research Use Agreement",
    link=_REPOSITORY,
    citation="Debiased Noise Editing on Foundation Models for Fair Medical Image Classification, MICCAI 2024 (arXiv:2403.06104)",
    resize="stretch",
    channels=1,
    traps=(
        "the authors choose the epoch on valid.csv and report on it; here val is taken from train.csv",
        "an uncertain label (-1) is 1 for Edema and 0 for the others, an empty one 0, as in the authors' loader",
        "sex 'Unknown' is missing; the authors' loader counts it as female",
        "age over 60 is the authors' group (edge 61): attribute age_over60",
        "the tables hold a part of CheXpert's films: what is published of it is not known",
        "not confirmed: the columns beyond those that the authors' code reads",
    ),
    aliases=("dne",),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row a film of the two tables that has the finding, or none."""
    needed = ("Path", "Sex", "Age", "No Finding", *choice.task.labels)
    parts = {"rest": "train", "test": "valid"}
    table = pd.concat([
        raw.table(*(pattern.format(file) for pattern in TABLES), columns=needed, optional=("Race", *DNE)).assign(part=part)
        for part, file in parts.items()
    ], ignore_index=True)
    found = Found(pd.DataFrame())
    finding = choice.task.labels[0]
    ill, healthy = _present(table, finding), _present(table, "No Finding")
    paths = table["Path"].str.strip()
    patient = patients_in(paths)
    if patient.isna().any():
        raise InputError(f"{int(patient.isna().sum())} paths name no patient as 'patient00001'. Are these the authors' tables?")
    race = race_groups(table["Race"])
    found.frame = pd.DataFrame({
        "image": located(raw, paths, PREFIXES),
        "patient_id": patient,
        finding: ill.map({True: "1", False: "0"}),
        **people(table["Sex"], table["Age"], found.notes),
        "race_white": white_or_other(race),
        "race": race,
    })
    if choice.split == "published":
        found.frame["split"] = table["part"]
    found.counts = {"images": len(table), "patients": int(patient.nunique())}
    leave_out_each(found, {
        f"both {finding} and No Finding": list(ill & healthy), f"neither {finding} nor No Finding": list(~(ill | healthy)),
    })
    return found


def _present(table: pd.DataFrame, name: str) -> pd.Series:
    """Whether a finding is there, by the authors' rule for uncertain and empty labels."""
    values = pd.to_numeric(table[name], errors="coerce").fillna(0)
    return values.eq(1) | (values.eq(-1) & (name in UNCERTAIN_IS_ONE))
