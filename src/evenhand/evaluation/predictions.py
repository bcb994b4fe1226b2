"""The table of predictions: read, checked, written. Everything the evaluation room knows about a model is in it."""

from __future__ import annotations

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

from evenhand.data.amounts import counted
from evenhand.data.groups import Groups, cell
from evenhand.errors import TableError
from evenhand.files import write_atomic, write_text

Kind = Literal["binary", "multiclass", "multilabel"]
GROUP_SUFFIX = "__group"

ROUNDING = 1e-6
"""So far outside [0, 1] a score is a rounding error: a softmax in single precision gives 1.0000001."""


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
    wrong = values.notna().to_numpy() & ~((numbers == 0) | (numbers == 1))
    if wrong.any():
        wrong &= ~(values.astype("string").str.strip() == "").fillna(True).to_numpy(bool)
    if wrong.any():
        rows = np.flatnonzero(wrong)
        first = ", ".join(sorted({str(value) for value in values.iloc[rows]})[:3])
        odd = counted(len(rows), "value that is", "values that are")
        raise TableError(
            f"column '{name}' has {odd} not 0 or 1 ({first}); code the label as 0 and 1, "
            "empty where unknown, or name the positive value with --pos-label",
            [f"row {row + 1}: {name} is {cell(values.iloc[row])}" for row in rows],
        )
    return numbers


def score_column(values: pd.Series, name: str) -> npt.NDArray[np.float64]:
    """A column of probabilities; what rounding left outside [0, 1], at most `ROUNDING`, is moved to its end.

    Raises:
        TableError: empty, infinite or text values, or values outside [0, 1] (logits and percentages are named as such).
    """
    numbers = finite_column(values, name)
    outside = beyond(numbers)
    if outside.any():
        rows = np.flatnonzero(outside)
        raise TableError(
            f"column '{name}' has {len(rows)} scores outside [0, 1] (from {numbers.min():g} to {numbers.max():g}); {_advice(numbers)}",
            [f"row {row + 1}: {name} is {numbers[row]:g}" for row in rows],
        )
    return np.clip(numbers, 0, 1)


def beyond(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which numbers are no probabilities: outside [0, 1] by more than single precision explains.

    Example:
        >>> beyond(np.array([-0.1, -1e-9, 1.0000001, 1.1])).tolist()
        [True, False, False, True]
    """
    found: npt.NDArray[np.bool_] = (numbers < -ROUNDING) | (numbers > 1 + ROUNDING)
    return found


def finite_column(values: pd.Series, name: str) -> npt.NDArray[np.float64]:
    """A column of finite numbers.

    Raises:
        TableError: empty, infinite or text values, each with its row.
    """
    numbers = _numbers(values)
    bad = ~np.isfinite(numbers)
    if bad.any():
        rows = np.flatnonzero(bad)
        raise TableError(
            f"column '{name}' has {len(rows)} scores that are empty or not finite numbers; every row needs a score in [0, 1]",
            [f"row {row + 1}: {name} is {cell(values.iloc[row])}" for row in rows],
        )
    return numbers


def looks_like_logits(numbers: npt.NDArray[np.float64]) -> bool:
    """Whether scores lie on both sides of 0, as logits do."""
    return bool((numbers < 0).any() and (numbers > 0).any())


def _advice(numbers: npt.NDArray[np.float64]) -> str:
    """What scores outside [0, 1] seem to be, and what to do."""
    if looks_like_logits(numbers) and numbers.max() <= 1 and numbers.min() > -1:
        return "correct them, or add --logits (Python: logits=True) if they are logits"
    if looks_like_logits(numbers):
        return "they look like logits: add --logits (Python: logits=True) to turn them into probabilities"
    if (numbers < 0).any():
        return "they look like logits or log-probabilities: add --logits (Python: logits=True) for logits, or take their exponential first"
    if numbers.max() <= 2:
        return "correct them, or add --logits (Python: logits=True) if they are logits"
    if numbers.max() <= 100:
        return "they look like percentages: divide them by 100"
    return "scale them to [0, 1], or add --logits (Python: logits=True) if they are logits"


def _numbers(values: pd.Series) -> npt.NDArray[np.float64]:
    return pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
