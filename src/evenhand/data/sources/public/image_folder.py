"""Your own images in one folder a class, with a table of patients and attributes beside them."""

from __future__ import annotations

from pathlib import PurePosixPath

import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Choice, Found, Info, Option
from evenhand.data.sources.public._own_table import (
    CLASS,
    COLUMNS,
    PATIENT,
    PATIENTS,
    POSITIVE,
    SPLITS,
    pick_column,
    positive_label,
    with_columns,
)
from evenhand.data.sources.raw import IMAGES, RawFolder
from evenhand.errors import InputError

_TABLES = (".csv", ".tsv", ".xlsx", ".parquet")
_FILES = ("image", "file", "file_name", "filename", "image_path", "path", "image_id", "name")

INFO = Info(
    name="image_folder",
    title="Your own images in one folder a class",
    modality="photograph",
    version="any",
    layout=(
        "CLASS/image.png ..., or train/CLASS/image.png ..., val/CLASS/..., test/CLASS/... (deeper folders are read too)\n"
        "attributes.csv (the one .csv, .tsv, .xlsx or .parquet file beside the folders): the file's path or name, patients, attributes"
    ),
    documentation=("https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.ImageFolder.html",),
    tasks=(CLASS, POSITIVE, COLUMNS),
    attributes=(),
    default_attributes=(),
    split="the folders train, val and test where there are such, else by patient; patient: by patient in any case",
    splits=("published", "patient"),
    options=(
        Option("positive", (), "the class that counts as 1, for the task positive"),
        Option("table", (), "file name of the table; default: the only one beside the folders; 'none': there is none"),
        Option("file", (), "the table's column of files; default: image, file, file_name, filename, image_path, path, image_id or name"),
        PATIENT,
    ),
    licence="your own",
    link="your own files",
    citation="your own",
    traps=(
        "a file is joined with its row by its path, else by its name, else by its name without the ending; a name that several files have "
        "must be given with its folder",
        "without a column of patients every image is its own patient: images of one patient may then be in two splits",
        "every column of the table can be an attribute: name them, as --attributes sex",
    ),
    aliases=("imagefolder",),
)


def read(raw: RawFolder, choice: Choice) -> Found:
    """One row an image file."""
    paths = [path for path in raw.walk(".", IMAGES) if path.count("/") >= 1]
    if not paths:
        advice = "give the folder that holds one folder a class"
        raise InputError(f"{raw.root} has no images in folders of classes; {advice}", INFO.layout.splitlines())
    found = Found(pd.DataFrame())
    tops = {path.split("/")[0] for path in paths}
    in_splits = all(top.lower() in SPLITS for top in tops) and all(path.count("/") >= 2 for path in paths)
    classes = pd.Series([path.split("/")[1 if in_splits else 0] for path in paths], dtype="string")
    table, where = _table(raw, choice.options["table"])
    rows = table.iloc[_rows_of(paths, table, choice.options["file"], where, found.notes)] if len(table.columns) else table
    patient = pick_column([str(name) for name in table.columns], choice.options["patient"], PATIENTS, "patient")
    frame = pd.DataFrame({"image": paths, "class": classes})
    frame["patient_id"] = _patients(rows, patient, paths, found.notes)
    positive = positive_label(classes, choice.options["positive"], choice.task.name)
    if positive is not None:
        frame["positive"] = positive
    if choice.split == "published" and in_splits:
        frame["split"] = [SPLITS[path.split("/")[0].lower()] for path in paths]
    elif choice.split == "published":
        found.notes.append("there are no folders train, val and test: split by patient")
    if len(rows.columns):
        frame = with_columns(frame, rows.reset_index(drop=True), [patient], found.notes, where)
    found.frame = frame
    found.counts = {"images": len(frame), "patients": int(frame["patient_id"].nunique()), "classes": int(classes.nunique())}
    return found


def _table(raw: RawFolder, given: str) -> tuple[pd.DataFrame, str]:
    """The table beside the folders, every cell as text, and its name; without columns where there is none."""
    names = sorted(path.name for path in raw.root.iterdir() if path.suffix.lower() in _TABLES and path.is_file())
    if given == "none" or (not given and not names):
        return pd.DataFrame(), ""
    if not given and len(names) > 1:
        raise InputError(f"{raw.root} holds {len(names)} tables ({', '.join(names[:5])}); name one: --option table={names[0]}")
    name = given or names[0]
    return raw.table(name, columns=(), separator="\t" if name.lower().endswith(".tsv") else ","), name


def _rows_of(paths: list[str], table: pd.DataFrame, given: str, where: str, notes: list[str]) -> list[int]:
    """The table's row of every file; -1, a row of missing cells, is appended for files without one."""
    columns = [str(name) for name in table.columns]
    column = pick_column(columns, given, _FILES, "file")
    if column is None:
        raise InputError(f"{where} has no column of files; name it: --option file=COLUMN (the columns are {', '.join(columns[:20])})")
    cells = table[column].astype("string").str.strip().str.replace("\\", "/").str.removeprefix("./")
    repeated = cells[cells.notna()].duplicated()
    if repeated.any():
        rows_again = counted(int(repeated.sum()), "row", "rows")
        raise InputError(f"{where} has {rows_again} whose file stands in an earlier row; one row is one image")
    known = {str(cell): row for row, cell in enumerate(cells) if isinstance(cell, str)}
    spellings = [_spellings(path) for path in paths]
    rows, used = [], set()
    for names in spellings:
        row = next((known[name] for name in names if name in known), -1)
        if row >= 0 and row in used:
            raise InputError(f"a row of {where} fits several files of one name; write the files with their folders in the column {column}")
        used.add(row)
        rows.append(row)
    unmatched, spare = rows.count(-1), len(known) - len(used - {-1})
    if unmatched == len(paths):
        raise InputError(f"no file has a row in {where}: its column {column} holds other names; name another: --option file=COLUMN")
    if unmatched:
        notes.append(f"{counted(unmatched, 'image has', 'images have')} no row in {where}: attributes are missing there")
    if spare:
        notes.append(f"{counted(spare, f'row of {where} has', f'rows of {where} have')} no image")
    table.loc[len(table)] = pd.NA
    return [len(table) - 1 if row < 0 else row for row in rows]


def _spellings(path: str) -> list[str]:
    """What a table may call a file: its path, ever fewer folders, its name, and the name without the ending."""
    parts = PurePosixPath(path).parts
    return ["/".join(parts[k:]) for k in range(len(parts))] + [PurePosixPath(path).stem]


def _patients(rows: pd.DataFrame, column: str | None, paths: list[str], notes: list[str]) -> list[str]:
    own = [f"image-{k + 1}" for k in range(len(paths))]
    if column is None:
        notes.append("there is no column of patients: each image is taken as its own patient")
        return own
    cells = rows[column].astype("string").str.strip()
    absent = int((cells.isna() | (cells == "")).sum())
    if absent:
        notes.append(f"{counted(absent, 'image has', 'images have')} no patient: each is taken as its own")
    return [str(cell) if isinstance(cell, str) and cell else name for cell, name in zip(cells, own, strict=True)]
