"""The table of predictions: read, checked, written. Everything the evaluation room knows about a model is in it."""

from __future__ import annotations

import csv
import difflib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from evenhand.data.groups import Groups
from evenhand.errors import InputError, TableError
from evenhand.files import write_atomic, write_text

Kind = Literal["binary", "multiclass", "multilabel"]
GROUP_SUFFIX = "__group"


@dataclass(frozen=True)
class Outcome:
    """One yes-or-no question of the audit: a label, or one class against the rest.

    Attributes:
        name: the label's or the class's name.
        y_true: float64 (n,) in {0, 1}, NaN where unlabelled.
        y_score: float64 (n,) in [0, 1].
        decision: float64 (n,) in {0, 1} where the table brings decisions (or the kind implies them), else None.
        source: where decisions come from: ``y_pred``, ``argmax``, or empty.
    """

    name: str
    y_true: npt.NDArray[np.float64]
    y_score: npt.NDArray[np.float64]
    decision: npt.NDArray[np.float64] | None = None
    source: str = ""


def read_predictions(path: str | os.PathLike[str], *, text: Sequence[str] = ("image", "patient_id", "split")) -> pd.DataFrame:
    """Read a CSV, TSV or parquet file of predictions, or a run folder's predictions.parquet.

    Only an empty field is missing; "NA" is a value.

    Args:
        path: a file, or a folder holding predictions.parquet.
        text: columns kept as text (so that patient 007 stays 007).

    Raises:
        InputError: no such file, or not a table.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "predictions.parquet"
    if not file.exists():
        raise InputError(f"there is no file {file}; give a CSV, TSV or parquet file, or a run folder with predictions.parquet")
    try:
        frame = pd.read_parquet(file) if file.suffix.lower() in (".parquet", ".pq") else _read_text(file, text)
    except (ValueError, OSError, csv.Error) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{file} cannot be read as a table ({first}); expected UTF-8 CSV, TSV or parquet with a header line") from error
    if frame.empty:
        raise InputError(f"{file} has no rows below its header; predictions need at least one row an image")
    return frame


def _read_text(file: Path, text: Sequence[str]) -> pd.DataFrame:
    with file.open("rb") as stream:
        start = stream.read(4096)
    if not start.strip():
        raise InputError(f"{file} is empty; expected a header line and one row an image")
    if b"\0" in start:
        raise InputError(f"{file} is not text (it has zero bytes); expected UTF-8 CSV or TSV, or a .parquet file")
    header = start.decode("utf-8", errors="replace").splitlines()[0]
    separator = max(("\t", ";", ","), key=header.count)
    return pd.read_csv(
        file, sep=separator, dtype=dict.fromkeys(text, "string"), keep_default_na=False, na_values=[""], encoding="utf-8-sig"
    )


def write_predictions(frame: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write a table as parquet (``.parquet``), TSV or CSV, by the name's ending; atomic.

    Raises:
        DiskFullError: no space left; nothing is left behind.
        RunError: the file cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() in (".parquet", ".pq"):
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        write_atomic(target, buffer.getvalue())
    else:
        separator = "\t" if target.suffix.lower() == ".tsv" else ","
        write_text(target, frame.to_csv(index=False, sep=separator, lineterminator="\n"))


def make_predictions(
    *,
    image: Sequence[str],
    patient: Sequence[Any],
    split: Sequence[str],
    seed: int,
    y_true: npt.NDArray[Any],
    y_score: npt.NDArray[Any],
    labels: Sequence[str],
    classes: Sequence[str] = (),
    decisions: npt.NDArray[Any] | None = None,
    attributes: Mapping[str, Sequence[Any]] | None = None,
    groups: Mapping[str, Groups] | None = None,
) -> pd.DataFrame:
    """A table of predictions in the contract's columns.

    Args:
        image, patient, split: (n,) each.
        seed: the run's seed.
        y_true: binary and multi-label (n, L) in {0, 1}, NaN unlabelled; multi-class (n,) class positions, -1 unlabelled.
        y_score: (n, L), or (n, C) for multi-class; probabilities.
        labels: label names; one gives ``y_true`` and ``y_score``, several give ``y_true_LABEL`` and ``y_score_LABEL``.
        classes: multi-class: the C class names; ``y_true`` holds names and scores are ``y_score_CLASS``.
        decisions: the method's own decisions, int (n, L), or class positions (n,) or (n, 1); None: thresholds decide.
        attributes: raw attribute columns.
        groups: attribute -> `Groups`, written as ``<attribute>__group``.
    """
    columns: dict[str, Any] = {"image": list(image), "patient_id": list(patient), "split": list(split), "seed": seed}
    score = np.asarray(y_score, float).reshape(len(columns["image"]), -1)
    if classes:
        names = np.array([*classes, None], dtype=object)
        columns["y_true"] = names[np.asarray(y_true, int).reshape(-1)]
        columns.update({f"y_score_{name}": score[:, j] for j, name in enumerate(classes)})
        if decisions is not None:
            columns["y_pred"] = names[np.asarray(decisions, int).reshape(-1)]
    else:
        truth = np.asarray(y_true, float).reshape(len(score), -1)
        for j, name in enumerate(labels):
            ending = f"_{name}" if len(labels) > 1 else ""
            columns[f"y_true{ending}"], columns[f"y_score{ending}"] = truth[:, j], score[:, j]
            if decisions is not None:
                columns[f"y_pred{ending}"] = np.asarray(decisions).reshape(len(score), -1)[:, j]
    columns.update(attributes or {})
    columns.update({f"{name}{GROUP_SUFFIX}": group.names() for name, group in (groups or {}).items()})
    return pd.DataFrame(columns)


def need_column(frame: pd.DataFrame, name: str, purpose: str) -> pd.Series:
    """A column, or an error that offers the nearest name.

    Raises:
        TableError: there is no such column.
    """
    if name in frame.columns:
        return frame[name]
    near = difflib.get_close_matches(name, [str(column) for column in frame.columns], n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"the columns are: {', '.join(map(str, frame.columns[:12]))}"
    raise TableError(f"there is no column '{name}' ({purpose}); {hint}")


def find_labels(frame: pd.DataFrame) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(labels, classes) of a table in the contract's columns; one label without a name is called ``label``.

    Raises:
        TableError: there are no ``y_true`` and ``y_score`` columns.
    """
    names = [str(column) for column in frame.columns]
    if "y_true" in names and "y_score" in names:
        return ("label",), ()
    scored = [name.removeprefix("y_score_") for name in names if name.startswith("y_score_")]
    if "y_true" in names and scored:
        return ("label",), tuple(scored)
    several = tuple(name for name in scored if f"y_true_{name}" in names)
    if several:
        return several, ()
    raise TableError(
        f"the table has no columns y_true and y_score (or y_true_LABEL and y_score_LABEL), but {', '.join(names[:8])}; "
        "name the columns with --label and --score"
    )


def outcomes_of(frame: pd.DataFrame, labels: Sequence[str], classes: Sequence[str] = ()) -> tuple[Kind, list[Outcome]]:
    """The yes-or-no questions a table of predictions answers, checked.

    Args:
        frame: the contract's columns.
        labels: label names; one label reads ``y_true``/``y_score`` where ``y_true_LABEL`` is absent.
        classes: multi-class: class names.

    Raises:
        TableError: an unknown column, labels other than 0 and 1, scores that are no probabilities.
    """
    if classes:
        return "multiclass", _class_outcomes(frame, [str(name) for name in classes])
    found = []
    for label in labels:
        ending = f"_{label}" if len(labels) > 1 or f"y_true_{label}" in frame.columns else ""
        truth = binary_column(need_column(frame, f"y_true{ending}", "true label"), f"y_true{ending}")
        score = score_column(need_column(frame, f"y_score{ending}", "score"), f"y_score{ending}")
        name = f"y_pred{ending}"
        decision = binary_column(frame[name], name) if name in frame.columns and frame[name].notna().any() else None
        if decision is not None and np.isnan(decision).any():
            raise TableError(
                f"column '{name}' has {int(np.isnan(decision).sum())} empty values; give a decision for every row or leave the column out"
            )
        found.append(Outcome(label, truth, score, decision, "y_pred" if decision is not None else ""))
    return ("binary" if len(found) == 1 else "multilabel"), found


def _class_outcomes(frame: pd.DataFrame, classes: list[str]) -> list[Outcome]:
    truth = need_column(frame, "y_true", "true class").astype("string")
    known = truth.isna() | truth.isin(classes)
    if not known.all():
        rows = np.flatnonzero(~known.to_numpy(bool))
        raise TableError(
            f"column 'y_true' has {len(rows)} values that are none of the classes {', '.join(classes)}; "
            "add their score columns or correct them",
            [f"row {row + 1}: y_true is '{truth.iloc[row]}'" for row in rows],
        )
    score = np.stack([score_column(need_column(frame, f"y_score_{name}", "class score"), f"y_score_{name}") for name in classes], axis=1)
    own = "y_pred" in frame.columns and frame["y_pred"].notna().all()
    chosen = frame["y_pred"].astype("string").to_numpy(object) if own else np.array(classes, dtype=object)[score.argmax(axis=1)]
    return [
        Outcome(
            name,
            np.where(truth.isna(), np.nan, (truth == name).fillna(False).to_numpy(float)),
            score[:, j],
            (chosen == name).astype(float),
            "y_pred" if own else "argmax",
        )
        for j, name in enumerate(classes)
    ]


def binary_column(values: pd.Series, name: str) -> npt.NDArray[np.float64]:
    """A 0/1 column as floats, NaN where empty.

    Raises:
        TableError: other values, each with its row.
    """
    numbers = _numbers(values)
    wrong = values.notna().to_numpy() & ~np.isin(numbers, (0.0, 1.0))
    wrong &= ~(values.astype("string").str.strip() == "").fillna(True).to_numpy(bool)
    if wrong.any():
        rows = np.flatnonzero(wrong)
        first = ", ".join(sorted({str(value) for value in values.iloc[rows]})[:3])
        raise TableError(
            f"column '{name}' has {len(rows)} values that are not 0 or 1 ({first}); code the label as 0 and 1, empty where unknown",
            [f"row {row + 1}: {name} is {values.iloc[row]!r}" for row in rows],
        )
    return numbers


def score_column(values: pd.Series, name: str) -> npt.NDArray[np.float64]:
    """A column of probabilities.

    Raises:
        TableError: empty, infinite or text values, or values outside [0, 1] (logits are named as such).
    """
    numbers = _numbers(values)
    bad = ~np.isfinite(numbers)
    if bad.any():
        rows = np.flatnonzero(bad)
        raise TableError(
            f"column '{name}' has {len(rows)} scores that are empty or not finite numbers; every row needs a score in [0, 1]",
            [f"row {row + 1}: {name} is {values.iloc[row]!r}" for row in rows],
        )
    outside = (numbers < 0) | (numbers > 1)
    if outside.any():
        rows = np.flatnonzero(outside)
        what = "they look like logits: apply a sigmoid first" if (numbers < 0).any() else "divide percentages by 100"
        raise TableError(
            f"column '{name}' has {len(rows)} scores outside [0, 1] (from {numbers.min():g} to {numbers.max():g}); {what}",
            [f"row {row + 1}: {name} is {numbers[row]:g}" for row in rows],
        )
    return numbers


def _numbers(values: pd.Series) -> npt.NDArray[np.float64]:
    return pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
