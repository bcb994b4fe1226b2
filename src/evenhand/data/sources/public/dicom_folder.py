"""Your own DICOM files: sex and age from the headers, labels from a table beside them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.building import files_key
from evenhand.data.sources.base import Attribute, Choice, Found, Info, Option, Task
from evenhand.data.sources.public._dicom_headers import as_frame, candidates, hashed, read_headers
from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.values import AGES, SEX, clean_age, clean_sex, with_ages
from evenhand.data.table import read_table
from evenhand.errors import InputError

KEYS = {
    "SOPInstanceUID": ("sopinstanceuid", "sopuid", "instanceuid"),
    "file": ("image", "file", "filename", "filepath", "path", "imagepath", "dicompath", "dicom"),
    "AccessionNumber": ("accessionnumber", "accession", "accessionno"),
    "PatientID": ("patientid", "patient", "subjectid", "mrn"),
}
"""What a row is about -> spellings of the column, without regard to case and punctuation; the first that is there is taken."""
_PERSONAL = re.compile(
    r"name$|birth|^dob$|^patient$|patientid|^mrn$|accession|instanceuid|address|phone|(study|series|acquisition|content)date"
)
_SEX, _AGE = ("sex", "patientsex", "gender", "patientgender"), ("age", "patientage")
RECIPES = {
    "CR": "chest_film", "DX": "chest_film", "CT": "ct", "MR": "mri", "OP": "fundus", "OPT": "oct", "XC": "photograph", "DMS": "dermoscopy",
}
"""Modality of the header -> what `evenhand.data.datasets` calls the kind of images."""
_TABLES = (".csv", ".tsv", ".parquet")
IntArray = npt.NDArray[np.int64]
MANY_FOR_ONE = 50
"""Images of one PatientID alone above which it is said that there may be more people."""

INFO = Info(
    name="dicom_folder",
    title="Your own folder of DICOM files",
    modality="chest_film",
    version="any",
    layout=(
        "any folders and names; files are told from their content\n"
        "labels.csv (one .csv, .tsv or .parquet file in the folder itself, or anywhere with --option table=FILE): your label columns, and\n"
        "    one column of SOPInstanceUID, image or file (path or file name), AccessionNumber or PatientID;\n"
        "    any further columns can be attributes; a column split (train, val, test) is used with --split published"
    ),
    documentation=(
        "https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.7.1.html",
        "https://dicom.nema.org/medical/dicom/current/output/chtml/part15/chapter_E.html",
    ),
    tasks=(Task("own", (), "label columns of your table: 0 and 1, or one column of class names"),),
    attributes=(
        Attribute("sex", "female, male: PatientSex, else a column sex of the table; O and anything else is missing"),
        Attribute("age", "years: PatientAge, else PatientBirthDate to StudyDate, else a column age of the table; cut it with --bins"),
        *AGES,
        Attribute("manufacturer", "Manufacturer of the device, as written"),
        Attribute("device", "ManufacturerModelName, as written"),
        Attribute("view", "ViewPosition, as written"),
        Attribute("laterality", "ImageLaterality, else Laterality: L, R or B"),
        Attribute("dicom_modality", "Modality, as DX or CR"),
        Attribute("body_part", "BodyPartExamined, as written"),
    ),
    default_attributes=("sex", "age60"),
    split="a column split of your table; without it, split by patient",
    splits=("patient", "published"),
    options=(
        Option("table", (), "path of the table of labels, from where the command runs or from the folder; default: the one in the folder"),
        Option("key", ("auto", *KEYS), "the column that joins table and files; auto: the first of these that the table has"),
        Option("patient_ids", ("hashed", "kept"), "hashed: patient_id is a keyed hash of PatientID; kept: it is PatientID itself"),
        Option(
            "patients", ("patient_id", "study"),
            "who is one patient: who has one PatientID; or each study, where a de-identifier wrote one PatientID for all",
        ),
        Option(
            "frames", ("refuse", "first", "middle", "all"),
            "files of several frames: refuse; take the first or the middle one; or all, each an image of its own",
        ),
    ),
    licence="yours",
    link="your own files",
    citation="DICOM: the standard is NEMA PS3 / ISO 12052",
    traps=(
        "names, birth dates, dates, accession numbers and UIDs of headers never come into the table, nor such columns of your table; "
        "paths of files do, so rename folders that are named after patients",
        "PatientIdentityRemoved and BurnedInAnnotation are read and said, not trusted: look at your images for burned-in names",
        "ages in months, weeks and days are whole years; a de-identifier may write 090Y for all of 90 and over",
        "files without a PatientID: each study counts as a patient of its own",
        "the header's Modality picks the augmentation recipe (CR and DX: chest film); give --modality where it does not fit",
    ),
    aliases=("dicom",),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row an image file (or frame) that the table has a row for."""
    headers, others, odd = read_headers(str(raw.root))
    if not headers:
        what = f"{others} DICOM files without an image" if others else "no DICOM file"
        raise InputError(f"{raw.root} holds {what}; give the folder that your DICOM files lie in, at any depth")
    frame = as_frame(headers)
    found = Found(pd.DataFrame())
    notes = found.notes
    notes += _header_notes(frame, others, odd, choice.options["patients"])
    table, name = _table(raw, choice.options["table"])
    joined = _joined(frame, table, choice.options["key"], name, notes)
    extra = _columns(table, notes)
    values = {column: table[column].astype("string").reindex(joined).reset_index(drop=True) for column in extra}
    patient = frame["study"] if choice.options["patients"] == "study" else frame["patient"].fillna(frame["study"])
    sex, age = frame["sex"], frame["age"]
    for own, column in ((_SEX, "sex"), (_AGE, "age")):
        given = next((values.pop(name) for name in list(values) if _plain(name) in own), None)
        if given is not None:
            sex, age = (_filled(sex, given, column, notes), age) if column == "sex" else (sex, _filled(age, given, column, notes))
    found.frame = with_ages(pd.DataFrame({
        "image": frame["image"],
        "patient_id": hashed(patient) if choice.options["patient_ids"] == "hashed" else patient,
        "sex": clean_sex(sex, notes), "age": clean_age(age, notes), "manufacturer": frame["manufacturer"], "device": frame["model"],
        "view": frame["view"], "laterality": frame["laterality"], "dicom_modality": frame["modality"], "body_part": frame["body_part"],
        "frames": frame["frames"],
    }))
    taken = [column for column in values if column in found.frame]
    if taken:
        notes.append(f"columns of {name} that are named as what headers hold were not copied: {', '.join(taken)}; rename them to use them")
    found.frame = found.frame.assign(**{column: value for column, value in values.items() if column not in (*taken, "split")})
    if choice.split == "published":
        found.frame["split"] = _split(values, name)
    found.modality = _recipe(frame["modality"], notes)
    found.counts = {"images": len(frame), "patients": int(patient.nunique())}
    found.leave_out(pd.Series(joined < 0), f"no row in {name}")
    if not len(found.frame):
        raise InputError(f"none of the {len(frame)} DICOM images has a row in {name}; is it their table, and the key the right one?")
    _pick_frames(found, choice.options["frames"])
    return found


def state(raw: RawFolder, choice: Choice) -> str | None:
    """A text that changes with the names, sizes and times of all files that may be read; None where there is no table."""
    try:
        files = [*(str(raw.root / name) for name in candidates(str(raw.root))), str(_table_file(raw, choice.options["table"]))]
    except InputError:  # said by `read`
        return None
    return files_key(files)


def _header_notes(frame: pd.DataFrame, others: int, odd: list[str], patients: str) -> list[str]:
    n = len(frame)
    notes = []
    if others:
        what = "no image (reports, structures) and"
        notes.append(f"{counted(others, f'DICOM file holds {what} was', f'DICOM files hold {what} were')} passed over")
    if odd:
        files = counted(len(odd), "file cannot be read as DICOM and was", "files cannot be read as DICOM and were")
        notes.append(f"{files} passed over, as {', '.join(odd[:10])}")
    removed = frame["removed"].fillna("")
    yes, no = int((removed == "YES").sum()), int((removed == "NO").sum())
    if yes < n:
        notes.append(
            f"PatientIdentityRemoved is YES in {yes} of {n} headers, NO in {no}, absent in {n - yes - no}; "
            "names and birth dates were not copied"
        )
    if frame["burned"].any():
        headers = counted(int(frame["burned"].sum()), "header says", "headers say")
        notes.append(f"{headers} that the pixels hold burned-in annotation; look at these images before use")
    if frame["age_from_dates"].any():
        ages = counted(int(frame["age_from_dates"].sum()), "age is", "ages are")
        notes.append(f"age: {ages} from the birth date and the date of the study")
    lacking = frame["patient"].isna()
    if patients == "study":
        notes.append(f"each study counts as a patient of its own (--option patients=study): {frame['study'].nunique():,} studies")
    elif n > MANY_FOR_ONE and frame["patient"].nunique() == 1 and not lacking.any():
        studies = counted(frame["study"].nunique(), "study", "studies")
        notes.append(
            f"all {n:,} images (of {studies}) have one and the same PatientID and count as ONE patient, whom no split, interval or test "
            "can divide: a de-identifier may have written it for all; where each study is another person, use --option patients=study"
        )
    elif lacking.any():
        notes.append(f"{counted(int(lacking.sum()), 'image has', 'images have')} no PatientID: each study counts as a patient of its own")
    several = int((frame["windows"] > 1).sum())
    if several:
        images = counted(several, "image has several windows in the header", "images have several windows in their header")
        notes.append(f"{images}; the first is used unless --dicom-window names another")
    return notes


def _recipe(modalities: pd.Series, notes: list[str]) -> str | None:
    """The kind of images that most headers name; that it is a choice is said where others are there."""
    kinds = modalities.dropna().value_counts()
    if not len(kinds):
        return None
    if len(kinds) > 1:
        notes.append("headers are of several modalities: " + ", ".join(f"{name} {count}" for name, count in kinds.items()))
    return RECIPES.get(str(kinds.index[0]).upper())


def _table(raw: RawFolder, given: str) -> tuple[pd.DataFrame, str]:
    """The user's table, and its name."""
    path = _table_file(raw, given)
    return read_table(path).rename(columns=lambda name: str(name).strip()).reset_index(drop=True), path.name


def _table_file(raw: RawFolder, given: str) -> Path:
    if given:
        places = [place for place in (Path(given), raw.root / given) if place.is_file()]
        if not places:
            raise InputError(f"option table is '{given}', but there is no such file; give the path of your table of labels")
        return places[0]
    beside = sorted(path for path in raw.root.iterdir() if path.name.lower().endswith(_TABLES) and not path.name.startswith("."))
    if len(beside) != 1:
        what = f"holds {len(beside)} tables ({', '.join(path.name for path in beside[:5])})" if beside else "holds no table of labels"
        raise InputError(f"{raw.root} {what}; say which it is with --option table=FILE", INFO.layout.splitlines())
    return beside[0]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def _joined(frame: pd.DataFrame, table: pd.DataFrame, key: str, name: str, notes: list[str]) -> IntArray:
    """Row of the table for every file, -1 where there is none."""
    kinds = list(KEYS) if key == "auto" else [key]
    pairs = [(kind, column) for kind in kinds for column in table.columns if _plain(str(column)) in KEYS[kind]]
    if not pairs:
        columns = ", ".join(map(str, table.columns[:20]))
        raise InputError(f"{name} has no column of {', '.join(kinds)} to join by; its columns are {columns}")
    kind, column = pairs[0]
    values = table[column].astype("string").str.strip()
    if kind == "file":
        return _joined_by_file(frame["image"], values, str(column), name, notes)
    ids = {"SOPInstanceUID": frame["sop"], "AccessionNumber": frame["accession"], "PatientID": frame["patient"]}[kind]
    row_of = _unique(values, str(column), name)
    joined = np.asarray([row_of.get(text, -1) for text in ids.fillna("")], np.int64)
    _say_unused(values, joined, str(column), kind, name, notes, show=False)
    return joined


def _unique(values: pd.Series, column: str, name: str) -> dict[str, int]:
    given = values.dropna()
    given = given[given != ""]
    again = given.duplicated(keep=False)
    if again.any():
        rows = ", ".join(str(row + 1) for row in given[again].index[:10])
        several = counted(given[again].nunique(), "value", "values")
        raise InputError(f"column '{column}' of {name} has {several} in several rows (rows {rows}); each may have one")
    return dict(zip(given.astype(str), np.flatnonzero(values.index.isin(given.index)).tolist(), strict=True))


def _joined_by_file(images: pd.Series, values: pd.Series, column: str, name: str, notes: list[str]) -> IntArray:
    """By the path from the folder; else by the file's name, with or without its ending, where only one file has it."""
    row_of = _unique(values.str.replace("\\", "/").str.removeprefix("./"), column, name)
    names = images.str.rsplit("/", n=1).str[-1]
    joined = np.full(len(images), -1, np.int64)
    for spelling in (images, names, names.str.replace(r"\.[^.]{1,5}$", "", regex=True)):
        times = spelling.value_counts()
        wanted = spelling.isin(row_of) & (joined < 0)
        several = int(times[spelling[wanted].unique()].gt(1).sum()) if wanted.any() else 0
        if several:
            raise InputError(f"{several} names in column '{column}' of {name} are those of several files; write paths from the folder")
        joined = np.where(wanted, [row_of.get(text, -1) for text in spelling], joined)
    _say_unused(values, joined, column, "file", name, notes, show=True)
    return joined


def _say_unused(values: pd.Series, joined: IntArray, column: str, kind: str, name: str, notes: list[str], *, show: bool) -> None:
    """Which column joined, and how many rows of the table found no file; ids are not shown, file names are."""
    notes.append(f"{name} was joined by its column '{column}' ({kind}): {int((joined >= 0).sum())} of {len(joined)} images have a row")
    unused = values[~np.isin(np.arange(len(values)), joined)]
    if len(unused):
        shown = f", as {', '.join(unused.dropna().head(10))}" if show else ""
        notes.append(f"{counted(len(unused), f'row of {name} has', f'rows of {name} have')} no image here{shown}")


def _columns(table: pd.DataFrame, notes: list[str]) -> list[str]:
    """Columns of the table that may be kept."""
    keys = {spelling for spellings in KEYS.values() for spelling in spellings}
    names = [str(name) for name in table.columns if _plain(str(name)) not in keys]
    personal = [name for name in names if _PERSONAL.search(_plain(name))]
    if personal:
        notes.append(f"columns that may tell who somebody is were not copied: {', '.join(personal)}")
    return [name for name in names if name not in personal]


def _filled(header: pd.Series, given: pd.Series, column: str, notes: list[str]) -> pd.Series:
    """The header's value, else the table's; where both are there and differ, the header's, and it is said."""
    both = header.notna() & given.notna()
    if column == "age":
        first, second = (pd.to_numeric(values.str.strip("Yy "), errors="coerce") // 1 for values in (header, given))
        both &= first.notna() & second.notna()
    else:
        first, second = (values.str.lower().map(lambda text: SEX.get(text, text), na_action="ignore") for values in (header, given))
    differ = int((both & (first != second).fillna(False)).sum())
    if differ:
        notes.append(f"{column}: header and table differ in {counted(differ, 'image', 'images')}; the header's value is taken")
    filled = int((header.isna() & given.notna()).sum())
    if filled:
        notes.append(f"{column}: {counted(filled, 'image has', 'images have')} it from the table, as the header lacks it")
    return header.fillna(given)


def _split(values: dict[str, pd.Series], name: str) -> pd.Series:
    if "split" not in values:
        raise InputError(f"{name} has no column split; leave out --split published, and patients are drawn")
    return values["split"].str.strip().str.lower()


def _pick_frames(found: Found, how: str) -> None:
    """Files of several frames, as the option says; what is done is said with numbers."""
    counts = found.frame.pop("frames").astype(int)
    several = counts > 1
    if not several.any():
        return
    low, high = int(counts[several].min()), int(counts[several].max())
    span = f"{low} frames" if low == high else f"{low} to {high} frames"
    if how == "refuse":
        hold = counted(int(several.sum()), "DICOM file holds", "DICOM files hold")
        raise InputError(
            f"{hold} {span}, and one row is one image; choose with --option frames=first, middle or all",
            list(found.frame["image"][several]),
        )
    frame, repeats = found.frame, counts.where(several, 1) if how == "all" else pd.Series(1, index=counts.index)
    rows = frame.index.repeat(repeats)
    within = pd.Series(rows).groupby(rows).cumcount().to_numpy()
    n = counts.loc[rows].to_numpy()
    picked = within if how == "all" else n // 2 if how == "middle" else np.zeros(len(rows), np.int64)
    frame = frame.loc[rows].reset_index(drop=True)
    frame["image"] = [f"{path}#frame={k}" if total > 1 else path for path, k, total in zip(frame["image"], picked, n, strict=True)]
    found.frame = frame
    what = {"all": "each frame is an image", "first": "the first frame is taken", "middle": "the middle frame is taken"}[how]
    found.notes.append(f"{counted(int(several.sum()), 'file holds', 'files hold')} {span}: {what}")
