"""From columns of any name to the contract's columns: which column is the label, the score, the patient."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from evenhand.errors import ConfigError, TableError
from evenhand.evaluation.coding import code_label, code_scores, label_values, value_texts
from evenhand.evaluation.predictions import need_column
from evenhand.evaluation.recognise import MAYBE_TEST_FLAGS, SPLIT_WORDS, TEST_FLAGS, Outcome, is_flag, squeeze

Names = str | Sequence[str] | None


def names_of(value: Names) -> list[str]:
    """One name, several, or none as a list."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(name) for name in value]


def coded_frame(
    frame: pd.DataFrame, found: Outcome, *, logits: bool = False, guess: bool = False, pos_label: str | None = None
) -> tuple[pd.DataFrame, list[str], list[str]]:
    """The contract's columns ``y_true``, ``y_score`` and ``y_pred`` from columns of any name: (table, classes, what was done).

    Every error names the user's column.

    Args:
        frame: the table.
        found: which column is what.
        logits: scores are logits.
        guess: scores may be taken for logits where they look like them.
        pos_label: the positive value of text labels.

    Raises:
        TableError: an unknown column, or one that holds something else.
        ConfigError: an option that does not fit.
    """
    if len(found.labels) == 1 and len(found.scores) > 1:
        return _class_frame(frame, found, logits, guess, pos_label)
    taken: dict[str, Any] = {}
    said = []
    columns = {name: need_column(frame, name, "score") for name in found.scores}
    truths = {name: need_column(frame, name, "label") for name in found.labels}
    if len(columns) < len(found.scores):
        raise ConfigError(f"the scores {', '.join(found.scores)} name a column twice; give one score column a label")
    labels = {name: code_label(column, name, pos_label) for name, column in truths.items()}
    scores, note = code_scores(columns, logits=logits, guess=guess)
    said += [note] if note else []
    for name, label, score in zip(found.names, found.labels, scores, strict=True):
        ending = f"_{name}" if len(found.names) > 1 else ""
        taken[f"y_true{ending}"], positive = labels[label]
        taken[f"y_score{ending}"] = score
        said += [f"label '{label}': '{positive}' is the positive class"] if positive else []
        if name in found.preds:
            pred = need_column(frame, found.preds[name], "decision")
            taken[f"y_pred{ending}"], _ = code_label(pred, found.preds[name], pos_label if pos_label in label_values(pred) else None)
    return _replaced(frame, taken), [], said


def _class_frame(
    frame: pd.DataFrame, found: Outcome, logits: bool, guess: bool, pos_label: str | None
) -> tuple[pd.DataFrame, list[str], list[str]]:
    if pos_label is not None:
        own = next((name for name in found.scores if name == pos_label or name.endswith(f"_{pos_label}")), found.scores[0])
        raise ConfigError(
            f"--pos-label {pos_label} works with one --score column, but '{found.labels[0]}' has {len(found.scores)} "
            f"({', '.join(found.scores[:4])}{', …' if len(found.scores) > 4 else ''}), so that every class is judged against the rest; "
            f"leave it out, or name its score, as --label {found.labels[0]} --score {own}"
        )
    label = found.labels[0]
    truth = value_texts(need_column(frame, label, "label"))
    classes = list(found.classes) or class_names(sorted(set(truth) - {""}), found.scores)
    wrong = np.flatnonzero(~truth.isin([*classes, ""]).to_numpy(bool))
    if len(wrong):
        raise TableError(
            f"column '{label}' has {len(wrong)} values that are none of the classes {', '.join(classes)}; "
            "add their score columns or correct them",
            [f"row {row + 1}: {label} is '{truth.iloc[row]}'" for row in wrong],
        )
    scores, note = code_scores({name: need_column(frame, name, "score") for name in found.scores}, logits=logits, guess=guess, softmax=True)
    taken: dict[str, Any] = {"y_true": truth.where(truth != "", None)}
    taken.update({f"y_score_{name}": score for name, score in zip(classes, scores, strict=True)})
    if found.preds:
        taken["y_pred"] = value_texts(need_column(frame, next(iter(found.preds.values())), "decision")).replace("", None)
    return _replaced(frame, taken), classes, [note] if note else []


def _replaced(frame: pd.DataFrame, taken: dict[str, Any]) -> pd.DataFrame:
    """The table with its coded columns, and without others that would be taken for labels, scores or decisions."""
    stale = [name for name in frame.columns if str(name).startswith(("y_true", "y_score", "y_pred")) and name not in taken]
    return frame.drop(columns=stale).assign(**taken)


def split_column(values: pd.Series, name: str) -> pd.Series:
    """A split column with its usual words as train, val and test; of a column such as ``is_test`` 1 is test and 0 is train.

    Raises:
        TableError: several splits, none of which is a test split.
    """
    if squeeze(name) in TEST_FLAGS | MAYBE_TEST_FLAGS and is_flag(values):
        return value_texts(values).str.casefold().map({"1": "test", "true": "test"}).fillna("train").astype("string")
    text = values.astype("string").str.strip()
    split = text.str.casefold().map(lambda word: SPLIT_WORDS.get(word, word), na_action="ignore").astype("string")
    present = sorted(set(split.dropna()) - {""})
    if "test" not in present and (len(present) > 1 or present in (["train"], ["val"])):
        shown = ", ".join(repr(str(word)) for word in sorted(set(text.dropna()) - {""})[:8])
        raise TableError(f"column '{name}' has no row 'test' but {shown}; mark the rows to judge as 'test', or name another --split")
    return split


def class_names(present: Sequence[str], scores: Sequence[str]) -> list[str]:
    """The class of each score column: its name, or what follows its last underscore prefix."""
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
    for name, value in parse_bins_or_quantiles(texts).items():
        if isinstance(value, str):
            raise ConfigError(f"bins '{name}={value}' are quantiles, which only `evenhand audit` takes; give edges, as {name}=0,60,200")
        found[name] = value
    return found


def parse_bins_or_quantiles(texts: Sequence[str]) -> dict[str, tuple[float, ...] | str]:
    """Bins from ``age=0,60,200`` (edges) or ``age=q4`` (quantiles) texts.

    Raises:
        ConfigError: not of that form.

    Example:
        >>> parse_bins_or_quantiles(["age=q4"])
        {'age': 'q4'}
    """
    found: dict[str, tuple[float, ...] | str] = {}
    for text in texts:
        name, sign, edges = (part.strip() for part in text.partition("="))
        if sign and is_quantiles(edges):
            found[name] = edges.lower()
            continue
        try:
            numbers = tuple(float(edge) for edge in edges.split(","))
        except ValueError:
            numbers = ()
        if not sign or len(numbers) < 2 or not np.isfinite(numbers).all():
            raise ConfigError(
                f"bins '{text}' are not of the form column=edge,edge,… or column=q4; for example --bins age=0,60,200 or --bins age=q4"
            )
        found[name] = numbers
    return found


def is_quantiles(text: str) -> bool:
    """Whether a text asks for quantile bins: q2, q3, q4, …"""
    return re.fullmatch(r"[qQ]([2-9]|[1-4]\d|50)", text) is not None
