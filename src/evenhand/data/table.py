"""The table contract: one row an image; every problem is found at once, with its row.

Columns: ``image`` (a path), ``patient_id``, ``split`` (train, val or test), label columns (0/1, or one column of class names) and
attribute columns. Empty is missing. Rows are counted from 1 without the header, so row 1 is the second line of a CSV file.
"""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.groups import Groups, make_groups
from evenhand.data.references import is_there
from evenhand.errors import InputError, TableError

Kind = Literal["binary", "multiclass", "multilabel"]
KINDS = ("binary", "multiclass", "multilabel")
MISSING_POLICIES = ("own_group", "drop", "error")
SPLITS = ("train", "val", "test")
MISSING_WORDS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "<NA>")
_ODD_PATH = r"/\.{0,2}/|^\.{0,2}/|/\.{0,2}$"
"""What `posixpath.normpath` may change."""
_TRUTH = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}


@dataclass(frozen=True)
class TableSpec:
    """How a table is read.

    Attributes:
        labels: label columns; one for binary and multi-class.
        attributes: sensitive attributes, joint ones written ``sex*age``.
        bins: numeric attribute -> increasing edges of half-open bins [lo, hi).
        kind: ``binary``, ``multiclass`` or ``multilabel``.
        classes: multi-class: the class names in code order; else empty.
        missing: rows with a missing attribute: ``own_group`` (kept, shown apart, in no gap), ``drop`` or ``error``.
        max_groups: most groups one attribute may have, joint ones included.
        image: column of image paths.
        patient: column of patient ids; a table without it has one patient an image.
        split: column of splits; a table without it is split by patient.
    """

    labels: tuple[str, ...]
    attributes: tuple[str, ...] = ()
    bins: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    kind: Kind = "binary"
    classes: tuple[str, ...] = ()
    missing: str = "own_group"
    max_groups: int = 50
    image: str = "image"
    patient: str = "patient_id"
    split: str = "split"

    def __post_init__(self) -> None:
        if not self.labels:
            raise InputError("no label column was given; name at least one, as --label malignant")
        if self.kind not in KINDS:
            raise InputError(f"kind is '{self.kind}', but must be one of {', '.join(KINDS)}")
        if self.kind != "multilabel" and len(self.labels) > 1:
            raise InputError(f"kind '{self.kind}' takes one label column, got {len(self.labels)}; use multilabel")
        if self.missing not in MISSING_POLICIES:
            raise InputError(f"missing is '{self.missing}', but must be one of {', '.join(MISSING_POLICIES)}")
        if self.max_groups < 1:
            raise InputError(f"max_groups is {self.max_groups}, but must be at least 1")

    @property
    def columns(self) -> tuple[str, ...]:
        """The attribute columns behind ``attributes``, joint ones taken apart, each once."""
        return tuple(dict.fromkeys(name for attribute in self.attributes for name in attribute.split("*")))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and dicts, for YAML."""
        plain = asdict(self)
        plain["bins"] = {name: [float(edge) for edge in edges] for name, edges in self.bins.items()}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> TableSpec:
        """The inverse of `to_dict`."""
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}
        values["bins"] = {name: tuple(float(edge) for edge in edges) for name, edges in plain.get("bins", {}).items()}
        return cls(**values)


def read_table(path: str | Path) -> pd.DataFrame:
    """Read CSV, TSV or parquet with every cell as text; empty cells and NA, NaN, N/A, null are missing.

    Numbers keep the characters they were written with (``007`` stays ``007``), because ids are not numbers.

    Raises:
        InputError: the file is absent, empty, or not a table.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"table {path} is not a file; give a CSV, TSV or parquet file with one row an image")
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            frame = pd.read_parquet(path)
            return pd.DataFrame({str(name): _as_text(frame[name]) for name in frame.columns})
        frame = pd.read_csv(
            path, sep="\t" if path.suffix.lower() in (".tsv", ".tab") else ",", dtype="str", keep_default_na=False,
            na_values=list(MISSING_WORDS), encoding="utf-8-sig",
        )
    except pd.errors.EmptyDataError as error:
        raise InputError(f"table {path} is empty; it needs a header line and one row an image") from error
    except (ValueError, OSError, pd.errors.ParserError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise InputError(f"table {path} cannot be read ({reason}); it must be CSV, TSV or parquet in UTF-8") from error
    if not len(frame):
        raise InputError(f"table {path} has no rows; it needs one row an image")
    return frame.rename(columns=lambda name: str(name).strip())


def _as_text(values: pd.Series) -> pd.Series:
    if pd.api.types.is_float_dtype(values):
        values = values.map(lambda number: f"{number:.15g}", na_action="ignore")
    return values.astype("str").where(values.notna() & ~values.astype("str").isin(MISSING_WORDS))


def nearest(name: str, known: Iterable[str]) -> str:
    """Words that offer the nearest known name, or list the known ones.

    Example:
        >>> nearest("malignnt", ["malignant", "sex"])
        "did you mean 'malignant'?"
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6) or [k for k in known if k.lower() == name.lower()]
    if close:
        return f"did you mean '{close[0]}'?"
    shown = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
    return f"the columns are {shown}"


def infer_kind(frame: pd.DataFrame, labels: Sequence[str]) -> Kind:
    """Several labels: multi-label. One label of words only, three or more: multi-class. Else binary.

    Two words ("benign", "malignant") are refused, because which of them is 1 is not ours to guess.

    Raises:
        InputError: the column holds exactly two words, or numbers beyond 0 and 1 only.
    """
    if len(labels) != 1 or labels[0] not in frame:
        return "multilabel" if len(labels) > 1 else "binary"
    values = sorted(set(frame[labels[0]].dropna().astype(str).str.strip()) - {""})
    if not values or any(value.lower() in _TRUTH or is_number(value) for value in values):
        return "binary"
    if len(values) == 2:
        raise InputError(
            f"label '{labels[0]}' is not 0/1 but holds the words '{values[0]}' and '{values[1]}'; write 0 and 1, "
            "or give kind multiclass to treat them as two classes"
        )
    return "multiclass" if len(values) > 2 else "binary"


def class_names(frame: pd.DataFrame, label: str) -> tuple[str, ...]:
    """The distinct class names of a column, sorted (numbers as numbers)."""
    values = set(frame[label].dropna().astype(str).str.strip()) - {""}
    return tuple(sorted(values, key=lambda v: (0, float(v), v) if is_number(v) else (1, 0.0, v)))


def is_number(text: str) -> bool:
    """Whether a cell's text reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def parse_label(values: pd.Series) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """A 0/1 column -> (float32 with NaN where empty, positions of cells that are neither 0, 1, true, false nor empty)."""
    text = values.astype("string").str.strip().str.lower().fillna("")
    numbers = text.map(_TRUTH).to_numpy(np.float32, na_value=np.nan)
    wrong = np.isnan(numbers) & (text != "").to_numpy(bool)
    return numbers, np.flatnonzero(wrong)


def label_array(frame: pd.DataFrame, spec: TableSpec) -> npt.NDArray[Any]:
    """The labels as numbers.

    Returns:
        Binary and multi-label: float32 (n, L) in {0, 1}, NaN where unlabelled. Multi-class: int64 (n,), the position in
        ``spec.classes``, -1 where unlabelled.

    Raises:
        TableError: a cell is not 0/1, or not one of the classes.

    Example:
        >>> label_array(pd.DataFrame({"y": ["0", "1", None]}), TableSpec(("y",))).ravel().tolist()
        [0.0, 1.0, nan]
    """
    if spec.kind == "multiclass":
        text = frame[spec.labels[0]].astype("string").str.strip().fillna("")
        codes = {name: code for code, name in enumerate(spec.classes)} | {"": -1}
        bad = np.flatnonzero(~text.isin(codes).to_numpy(bool))
        if len(bad):
            cells = _cells(frame, spec.labels[0], bad)
            odd = counted(len(cells), "value that is", "values that are")
            raise TableError(f"label '{spec.labels[0]}' has {odd} not one of its classes", cells)
        return text.map(codes).to_numpy(np.int64)
    columns = []
    for name in spec.labels:
        numbers, wrong = parse_label(frame[name])
        if len(wrong):
            odd = counted(len(wrong), "value that is", "values that are")
            raise TableError(f"label '{name}' has {odd} not 0 or 1", _cells(frame, name, wrong))
        columns.append(numbers)
    return np.stack(columns, axis=1)


def missing_rows(frame: pd.DataFrame, column: str) -> npt.NDArray[np.bool_]:
    """Where a cell is empty."""
    text = frame[column].astype("string").str.strip()
    return cast(npt.NDArray[np.bool_], (text.isna() | (text == "")).to_numpy(bool))


def _cells(frame: pd.DataFrame, column: str, rows: Iterable[int]) -> list[str]:
    return [f"row {row + 1}: {column} is {str(frame[column].iloc[row])!r}" for row in rows]


def rows_text(rows: Sequence[int] | npt.NDArray[np.integer[Any]], limit: int = 8) -> str:
    """``rows 1, 5, 9`` from positions, cut after ``limit``.

    Example:
        >>> rows_text([0, 4])
        'rows 1, 5'
    """
    shown = ", ".join(str(int(row) + 1) for row in rows[:limit])
    return f"row{'s' if len(rows) > 1 else ''} {shown}" + (f", … ({len(rows)} in all)" if len(rows) > limit else "")


def image_keys(frame: pd.DataFrame, column: str = "image") -> pd.Series:
    """Image paths in one spelling, so that ``./a.png`` and ``a.png`` are the same image."""
    paths = frame[column].astype("string").str.strip().fillna("")
    odd = paths.str.contains(_ODD_PATH).to_numpy(bool)
    return paths.where(~odd, paths[odd].map(posixpath.normpath)) if odd.any() else paths


def attribute_groups(frame: pd.DataFrame, spec: TableSpec) -> dict[str, Groups]:
    """Groups of every attribute of the specification."""
    return {name: make_groups(frame, name, spec.bins) for name in spec.attributes}


def validate(frame: pd.DataFrame, spec: TableSpec, images: str | Path | None = None) -> list[str]:
    """Every breach of the table contract, each with its rows; an empty list means the table can be prepared.

    What is allowed but worth knowing (one class in one label of many, groups of one patient, …) comes from
    `evenhand.data.notes.table_notes`. Patient ids are never part of a message.

    Args:
        frame: one row an image, from `read_table`.
        spec: how it is read.
        images: folder the image paths are relative to; None: whether the files exist is not looked at.
    """
    problems = _column_problems(frame, spec)
    if spec.image in frame:
        problems += _image_problems(frame, spec, None if images is None else Path(images))
    problems += _label_problems(frame, spec)
    for name in spec.attributes:
        if all(part in frame for part in name.split("*")):
            problems += _attribute_problems(frame, spec, name)
    problems += _patient_problems(frame, spec)
    return problems


def check_table(frame: pd.DataFrame, spec: TableSpec, images: str | Path | None = None) -> None:
    """Raise what `validate` finds.

    Raises:
        TableError: the table breaks the contract; one problem is the summary itself, several are its details.
    """
    problems = validate(frame, spec, images)
    if len(problems) == 1:
        raise TableError(problems[0])
    if problems:
        raise TableError(f"the table has {len(problems)} problems; correct them, or leave the rows out", problems)


def _column_problems(frame: pd.DataFrame, spec: TableSpec) -> list[str]:
    known = [str(name) for name in frame.columns]
    wanted = {spec.image: "image", **dict.fromkeys(spec.labels, "label"), **dict.fromkeys(spec.columns, "attribute")}
    absent = [(name, role) for name, role in wanted.items() if name not in known]
    problems = [f"column '{name}' ({role}) is not in the table; {nearest(name, known)}" for name, role in absent]
    for name in (name for name in spec.bins if name not in spec.columns):
        offer = nearest(name, spec.columns).replace("the columns are", "they are")
        problems.append(f"bins were given for '{name}', which is not among the attributes; {offer}")
    return problems


def _image_problems(frame: pd.DataFrame, spec: TableSpec, folder: Path | None) -> list[str]:
    keys = image_keys(frame, spec.image)
    empty = np.flatnonzero(keys == "")
    problems = [f"column '{spec.image}' is empty in {rows_text(empty)}; every row needs an image"] if len(empty) else []
    twice = keys[keys.duplicated(keep=False) & (keys != "")]
    for name in twice.unique():
        positions = np.flatnonzero(keys == name)
        problems.append(f"image '{name}' is listed {len(positions)} times ({rows_text(positions)}); one row is one image")
    if folder is not None:
        absent = [(row, name) for row, name in enumerate(keys) if name and not is_there(folder / name)]
        problems += [f"row {row + 1}: image '{name}' is missing in {folder}" for row, name in absent]
    return problems


def _label_problems(frame: pd.DataFrame, spec: TableSpec) -> list[str]:
    problems: list[str] = []
    constant: list[str] = []
    for name in (label for label in spec.labels if label in frame):
        if spec.kind == "multiclass":
            text = frame[name].astype("string").str.strip().fillna("")
            if spec.classes:
                unknown = np.flatnonzero(~text.isin([*spec.classes, ""]).to_numpy(bool))
                problems += [f"{cell}, but the classes are {', '.join(spec.classes)}" for cell in _cells(frame, name, unknown)]
            n_classes = text[text != ""].nunique()
        else:
            numbers, wrong = parse_label(frame[name])
            problems += [f"{cell}, but a label is 0, 1 or empty (unlabelled)" for cell in _cells(frame, name, wrong)]
            n_classes = len(np.unique(numbers[~np.isnan(numbers)])) + (1 if len(wrong) else 0)
        if n_classes < 2:
            constant.append(name)
    present = [label for label in spec.labels if label in frame]
    if present and len(constant) == len(present):
        names = ", ".join(f"'{name}'" for name in constant)
        empty = all(missing_rows(frame, name).all() for name in constant)
        what = "is empty in every row" if empty else "has one class only in the whole table"
        problems.append(f"label {names} {what}; there is nothing to learn or to audit")
    return problems


def _attribute_problems(frame: pd.DataFrame, spec: TableSpec, name: str) -> list[str]:
    problems: list[str] = []
    single = "*" not in name
    gone = np.logical_or.reduce([missing_rows(frame, part) for part in name.split("*")])
    if gone.all():
        return [f"attribute '{name}' is missing in all {len(frame)} rows; leave it out, or fill the column"]
    if single and spec.missing == "error" and gone.any():
        problems.append(f"attribute '{name}' is missing in {rows_text(np.flatnonzero(gone))}; fill it, or use missing own_group or drop")
    try:
        n_groups = len(make_groups(frame, name, spec.bins).keys)
    except TableError as error:
        return [*problems, *(f"{line}, outside its bins {_edges(spec, name)}" for line in error.details)] if single else problems
    except InputError as error:
        return [*problems, error.summary] if single else problems
    if n_groups > spec.max_groups:
        binnable = single and name not in spec.bins and all(is_number(text) for text in frame[name].dropna().astype(str))
        advice = f"give edges, as --bins {name}=0,60,200" if binnable else "merge values, or raise --max-groups"
        problems.append(f"attribute '{name}' has {n_groups} groups, more than max_groups = {spec.max_groups}; {advice}")
    return problems


def _edges(spec: TableSpec, name: str) -> str:
    return f"[{spec.bins[name][0]:g}, {spec.bins[name][-1]:g})"


def _patient_problems(frame: pd.DataFrame, spec: TableSpec) -> list[str]:
    problems: list[str] = []
    if spec.patient in frame:
        empty = np.flatnonzero(missing_rows(frame, spec.patient))
        if len(empty):
            advice = "fill it, or remove the column (each image is then its own patient)"
            problems.append(f"column '{spec.patient}' is empty in {rows_text(empty)}; {advice}")
    if spec.split not in frame:
        return problems
    text = frame[spec.split].astype("string").str.strip().fillna("")
    wrong = np.flatnonzero(~text.isin(SPLITS).to_numpy(bool))
    problems += [f"{cell}, but a split is train, val or test" for cell in _cells(frame, spec.split, wrong)]
    if spec.patient in frame:
        known = ~missing_rows(frame, spec.patient)
        patients = frame[spec.patient].astype("string").str.strip()[known]
        n_splits = text[known].groupby(patients, sort=False).transform("nunique").to_numpy()
        several = np.flatnonzero(known)[n_splits > 1]
        for _, rows in pd.Series(several).groupby(patients.to_numpy()[n_splits > 1], sort=False):
            where = ", ".join(sorted(set(text.iloc[rows.to_numpy()])))
            problems.append(f"one patient is in the splits {where} ({rows_text(rows.to_numpy())}); a patient belongs in one split")
    return problems
