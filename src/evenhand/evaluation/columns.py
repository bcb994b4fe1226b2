"""From columns of any name to the contract's columns: which column is the label, the score, the patient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from evenhand.errors import ConfigError
from evenhand.evaluation.predictions import find_labels, need_column

Names = str | Sequence[str] | None


def names_of(value: Names) -> list[str]:
    """One name, several, or none as a list."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(name) for name in value]


def audit_frame(
    frame: pd.DataFrame, labels: list[str], scores: list[str], preds: list[str], patient: str | None, split: str | None
) -> tuple[pd.DataFrame, list[str], list[str]]:
    """The contract's columns from columns of any name: (table, labels, classes).

    Raises:
        TableError: an unknown column.
        ConfigError: numbers of labels, scores and decisions that do not fit.
    """
    taken: dict[str, Any] = {}
    for target, name in (("patient_id", patient), ("split", split)):
        if name is not None:
            taken[target] = need_column(frame, name, f"given as {target.removesuffix('_id')}")
    if not labels and not scores:
        found, known = find_labels(frame)
        return frame.assign(**taken), list(found), list(known)
    if not labels or not scores:
        raise ConfigError(
            f"--{'score' if labels else 'label'} is missing; give both, or columns y_true and y_score"
        )
    classes: list[str] = []
    if len(labels) == 1 and len(scores) > 1:
        truth = need_column(frame, labels[0], "label").astype("string")
        classes = _classes(truth, scores)
        taken["y_true"] = truth
        taken.update({f"y_score_{name}": need_column(frame, score, "score") for name, score in zip(classes, scores, strict=True)})
        if preds:
            taken["y_pred"] = need_column(frame, preds[0], "decision").astype("string")
    elif len(labels) != len(scores) or (preds and len(preds) != len(labels)):
        raise ConfigError(
            f"{len(labels)} labels, {len(scores)} scores and {len(preds)} decisions do not fit; give one score (and decision) a label"
        )
    else:
        for position, (name, column) in enumerate(zip(labels, scores, strict=True)):
            ending = f"_{name}" if len(labels) > 1 else ""
            taken[f"y_true{ending}"] = need_column(frame, name, "label")
            taken[f"y_score{ending}"] = need_column(frame, column, "score")
            if preds:
                taken[f"y_pred{ending}"] = need_column(frame, preds[position], "decision")
    stale = [name for name in frame.columns if str(name).startswith(("y_true", "y_score", "y_pred")) and name not in taken]
    return frame.drop(columns=stale).assign(**taken), labels, classes


def _classes(truth: pd.Series, scores: Sequence[str]) -> list[str]:
    """The class of each score column: its name, or what follows its last underscore prefix."""
    present = sorted(set(truth.dropna()))
    classes = []
    for column in scores:
        fits = [name for name in present if column == name or column.endswith(f"_{name}")]
        if not fits and column.startswith("y_score_"):
            fits = [column.removeprefix("y_score_")]
        if not fits:
            raise ConfigError(
                f"score column '{column}' names no class of the label (classes: {', '.join(present[:12])}); "
                "name score columns like the classes, as p_CLASS, or give one --score for each --label"
            )
        classes.append(max(fits, key=len))
    if len(set(classes)) < len(classes):
        raise ConfigError(f"the score columns {', '.join(scores)} name a class twice ({', '.join(classes)}); give one score column a class")
    return classes


def parse_bins(texts: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Bins from ``age=0,60,200`` texts.

    Raises:
        ConfigError: not of that form.

    Example:
        >>> parse_bins(["age=0,60,200"])
        {'age': (0.0, 60.0, 200.0)}
    """
    found = {}
    for text in texts:
        name, sign, edges = text.partition("=")
        try:
            numbers = tuple(float(edge) for edge in edges.split(","))
        except ValueError:
            numbers = ()
        if not sign or len(numbers) < 2 or not np.isfinite(numbers).all():
            raise ConfigError(f"bins '{text}' are not of the form column=edge,edge,…; for example --bins age=0,60,200")
        found[name.strip()] = numbers
    return found
