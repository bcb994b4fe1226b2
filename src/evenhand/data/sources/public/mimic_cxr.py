"""MIMIC-CXR-JPG: 377,110 chest films of 65,379 patients of Beth Israel Deaconess, with sex, age and race from MIMIC-IV."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Attribute, Choice, Expected, Found, Info, Option
from evenhand.data.sources.public._chexpert_labels import LABELS, TASKS, UNCERTAIN, UNMENTIONED, VIEW, add_labels, leave_views
from evenhand.data.sources.public._race import conflict_note, one_value, race_groups, white_or_other
from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.values import AGES, clean_age, clean_sex, with_ages
from evenhand.errors import InputError

PLACES = ("", "physionet.org/files/mimic-cxr-jpg/2.1.0/", "physionet.org/files/mimic-cxr-jpg/2.0.0/")
MODULES = ("", "hosp", "core", "*/hosp", "*/core")
"""Where, below a folder of MIMIC-IV, its tables patients and admissions may lie: core in version 1.0, hosp since 2.0."""
RADIOLOGIST = {"No Findings": "No Finding", "Airspace Opacity": "Lung Opacity"}
FRONTAL, LATERAL = ("PA", "AP"), ("LATERAL", "LL")
_PAGE = "physionet.org/content/mimic-cxr-jpg"

INFO = Info(
    name="mimic_cxr",
    title="MIMIC-CXR-JPG",
    modality="chest_film",
    version="2.0.0 and 2.1.0, with MIMIC-IV 1.0 to 3.1 for sex, age and race",
    layout=(
        "mimic-cxr-2.0.0-metadata.csv.gz: dicom_id, subject_id, study_id, ViewPosition, StudyDate\n"
        "mimic-cxr-2.0.0-chexpert.csv.gz, mimic-cxr-2.0.0-negbio.csv.gz: subject_id, study_id and the 14 labels\n"
        "mimic-cxr-2.0.0-split.csv.gz: dicom_id, split (train, validate, test; for the published split)\n"
        "mimic-cxr-2.1.0-test-set-labeled.csv (version 2.1.0; option test_labels=radiologist)\n"
        "    (each packed or not; in the folder itself or in physionet.org/files/mimic-cxr-jpg/2.1.0/ below it)\n"
        "files/p10/p10000032/s50414267/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.jpg ...\n"
        "patients.csv.gz: subject_id, gender, anchor_age, anchor_year; admissions.csv.gz: subject_id, race (or ethnicity):\n"
        "    MIMIC-IV, a download of its own: in the folder, in its hosp/ or core/, in mimic-iv*/hosp/ or mimiciv/3.1/hosp/ in or\n"
        "    beside it, or option mimic_iv"
    ),
    documentation=(
        "https://physionet.org/content/mimic-cxr-jpg/2.1.0/", "https://physionet.org/content/mimiciv/", "https://mimic.mit.edu/docs/iv/",
    ),
    tasks=TASKS,
    attributes=(
        Attribute("sex", "female, male (MIMIC-IV gender)"),
        *AGES,
        Attribute("race", "White, Black, Asian, Native American, Pacific Islander, Hispanic, Other, by the beginning of the word (WHITE - "
                  "RUSSIAN is White, PORTUGUESE and MULTIPLE RACE/ETHNICITY are Other); UNKNOWN, UNABLE TO OBTAIN and PATIENT DECLINED TO "
                  "ANSWER are missing; a patient whose known entries fall into several groups is missing"),
        Attribute("race_white", "White, Other (MEDFAIR; unknown is missing)"),
        Attribute("view", "PA, AP, lateral, or the word of ViewPosition"),
    ),
    default_attributes=("sex", "age60"),
    split="the provider's split table (train, validate, test by patient)",
    splits=("published", "patient"),
    expected=(
        Expected("images", 377110, _PAGE), Expected("patients", 65379, "Johnson et al., Sci Data 2019"),
        Expected("labelled studies", 227827, _PAGE),
    ),
    options=(
        UNCERTAIN, UNMENTIONED, VIEW,
        Option("labeller", ("chexpert", "negbio"), "which program read the reports"),
        Option("test_labels", ("labeller", "radiologist"), "labels of the test studies: the program's, or the radiologist's of version "
               "2.1.0 (test studies without them are left out)"),
        Option("mimic_iv", (), "folder of MIMIC-IV, or of its tables patients and admissions; without it they are looked for in and beside "
               "the raw folder"),
    ),
    licence="PhysioNet Credentialed Health Data License 1.5.0: credentialed users, no sharing",
    link="https://physionet.org/content/mimic-cxr-jpg/2.1.0/ and https://physionet.org/content/mimiciv/",
    citation="Johnson et al., MIMIC-CXR-JPG, arXiv:1901.07042, doi:10.13026/jsn5-t979; MIMIC-IV, doi:10.1038/s41597-022-01899-x",
    channels=1,
    traps=(
        "the images' tables hold no sex, age or race: without MIMIC-IV they are missing, and so they are for patients it does not hold",
        "anchor_age is the age in anchor_year, not at the study: age is anchor_age + year of StudyDate - anchor_year; ages over 89 are "
        "written as 91 there, so ages from 90 up are not exact",
        "race stands at each admission, in many spellings, and differs between admissions of some patients",
        "labels are of studies, not images: a finding seen in the lateral film only counts for the frontal one too",
        "a few studies have no labels: their images are left out",
        "labels are read from reports by a program; the radiologist's labels of 2.1.0 are of reports too",
        "published code takes race from a patient's first admission in the table: here entries that differ make it missing",
        "not confirmed: the column names of mimic-cxr-2.1.0-test-set-labeled.csv ('No Findings' and 'Airspace Opacity' are read as No "
        "Finding and Lung Opacity)",
    ),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row an image of the metadata table."""
    found = Found(pd.DataFrame())
    meta = raw.table(
        *_names("mimic-cxr-2.0.0-metadata.csv"), columns=("dicom_id", "subject_id", "study_id"), optional=("ViewPosition", "StudyDate")
    )
    needs_split = choice.split == "published" or choice.options["test_labels"] == "radiologist"
    split = _published(raw, meta["dicom_id"]) if needs_split else pd.Series(pd.NA, index=meta.index, dtype="string")
    labels, labelled = _labels(raw, choice, meta["study_id"], split, found)
    people = _people(raw, choice.options["mimic_iv"], meta, found.notes)
    view = meta["ViewPosition"].str.strip().str.upper().replace(dict.fromkeys(LATERAL, "lateral"))
    found.frame = with_ages(pd.DataFrame({
        "image": _images(raw, meta),
        "patient_id": meta["subject_id"],
        **{name: labels[name] for name in LABELS},
        "sex": clean_sex(people["gender"], found.notes),
        "age": clean_age(people["age"], found.notes),
        "race": people["race"], "race_white": white_or_other(people["race"]),
        "view": view, "study_id": meta["study_id"],
    }))
    if choice.split == "published":
        found.frame["split"] = split
    found.counts |= {"images": len(meta), "patients": int(meta["subject_id"].nunique())}
    kept = leave_views(found, choice.options["view"], view.isin(FRONTAL).to_numpy(bool))
    found.leave_out(~labelled[kept], "its study has no labels")
    add_labels(found, choice)
    return found


def _labels(
    raw: RawFolder, choice: Choice, studies: pd.Series, split: pd.Series, found: Found
) -> tuple[pd.DataFrame, npt.NDArray[np.bool_]]:
    """The 14 labels of each image's study, and whether it has any."""
    table = raw.table(*_names(f"mimic-cxr-2.0.0-{choice.options['labeller']}.csv"), columns=("study_id", *LABELS))
    found.counts["labelled studies"] = int(table["study_id"].nunique())
    labels, labelled = _of_studies(table, studies)
    if choice.options["test_labels"] == "radiologist":
        own = raw.table(*_names("mimic-cxr-2.1.0-test-set-labeled.csv"), columns=("study_id",)).rename(columns=RADIOLOGIST)
        absent = [name for name in LABELS if name not in own]
        if absent:
            raise InputError(f"the radiologist's table of the test set has no column {', '.join(absent)}; use test_labels=labeller")
        read_labels, known = _of_studies(own, studies)
        test = split.eq("test").fillna(False).to_numpy(bool)
        labels.loc[test], labelled = read_labels.loc[test], np.where(test, known, labelled)
    return labels, labelled


def _of_studies(table: pd.DataFrame, studies: pd.Series) -> tuple[pd.DataFrame, npt.NDArray[np.bool_]]:
    by_study = table.drop_duplicates("study_id").set_index("study_id")[list(LABELS)]
    return by_study.reindex(studies).reset_index(drop=True), studies.isin(by_study.index).to_numpy(bool)


def _names(name: str) -> list[str]:
    """A table unpacked or packed, at every place."""
    return [f"{place}{name}{end}" for place in PLACES for end in ("", ".gz")]


def _images(raw: RawFolder, meta: pd.DataFrame) -> pd.Series:
    """files/p10/p10000032/s50414267/DICOM_ID.jpg, below the place that has a folder files."""
    place = next((place for place in PLACES if (raw.root / place / "files").is_dir()), "")
    subject = meta["subject_id"]
    return f"{place}files/p" + subject.str[:2] + "/p" + subject + "/s" + meta["study_id"] + "/" + meta["dicom_id"] + ".jpg"


def _published(raw: RawFolder, images: pd.Series) -> pd.Series:
    table = raw.table(*_names("mimic-cxr-2.0.0-split.csv"), columns=("dicom_id", "split"))
    split = images.map(table.drop_duplicates("dicom_id").set_index("dicom_id")["split"]).replace({"validate": "val"})
    odd = ~split.isin(["train", "val", "test"])
    if odd.any():
        have = counted(int(odd.sum()), "image has", "images have")
        raise InputError(f"{have} no split in the provider's table; use --split patient, or download it again")
    return split


def _people(raw: RawFolder, given: str, meta: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Gender, age at the study and race for each image's patient; all missing where MIMIC-IV is not found."""
    folder = _mimic_iv(raw, given)
    subject = meta["subject_id"]
    empty = pd.Series(pd.NA, index=meta.index, dtype="string")
    if folder is None:
        notes.append("MIMIC-IV's tables patients and admissions were not found in or beside the raw folder (option mimic_iv): sex, age and "
                     "race are missing")
        return pd.DataFrame({"gender": empty, "age": empty, "race": empty})
    notes.append(f"sex, age and race are read from {folder.root}")
    patients = folder.table(
        "patients.csv", "patients.csv.gz", columns=("subject_id", "gender", "anchor_age", "anchor_year")
    ).drop_duplicates("subject_id").set_index("subject_id")
    known = subject.isin(patients.index)
    if not known.all():
        who = counted(int(subject[~known].nunique()), "patient is", "patients are")
        notes.append(f"{who} not in MIMIC-IV: sex, age and race are missing there")
    years = {name: pd.to_numeric(subject.map(patients[name]), errors="coerce") for name in ("anchor_age", "anchor_year")}
    study = pd.to_numeric(meta["StudyDate"].str.strip().str[:4], errors="coerce")
    age = years["anchor_age"] + study - years["anchor_year"]
    admissions = folder.table("admissions.csv", "admissions.csv.gz", columns=("subject_id",), optional=("race", "ethnicity"))
    agreed, conflicts = one_value(admissions["subject_id"], race_groups(admissions["race"].fillna(admissions["ethnicity"])))
    if conflicts:
        notes.append(conflict_note("race", conflicts))
    return pd.DataFrame({
        "gender": subject.map(patients["gender"]), "age": age.map("{:g}".format, na_action="ignore").astype("string"),
        "race": subject.map(agreed).astype("string"),
    })


def _mimic_iv(raw: RawFolder, given: str) -> RawFolder | None:
    """The folder with the tables patients and admissions; of several versions the last.

    Raises:
        InputError: the given folder has no such tables.
    """
    near = [raw.root, raw.root / "physionet.org/files", *list(raw.root.absolute().parents)[:3]]
    beside = [path for place in near for path in sorted(place.glob("mimic*iv*"), reverse=True)]
    for root in [Path(given).expanduser()] if given else [raw.root, *beside]:
        for module in MODULES:
            for folder in sorted(root.glob(module), reverse=True) if module else [root]:
                if all(any((folder / f"{name}.csv{end}").is_file() for end in ("", ".gz")) for name in ("patients", "admissions")):
                    return RawFolder(folder)
    if given:
        raise InputError(f"option mimic_iv: {given} has no tables patients.csv.gz and admissions.csv.gz, nor have its hosp or core")
    return None
