"""Labels and scores as they come, coded as the audit needs them: text labels as 0 and 1, logits as probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.groups import number_key
from evenhand.errors import ConfigError, TableError
from evenhand.evaluation.predictions import beyond, binary_column, finite_column, score_column

PAIRS = (
    ("yes", "no"), ("y", "n"), ("positive", "negative"), ("pos", "neg"), ("+", "-"), ("true", "false"), ("t", "f"), ("case", "control"),
    ("cases", "controls"), ("malignant", "benign"), ("m", "b"), ("abnormal", "normal"), ("disease", "healthy"), ("diseased", "healthy"),
    ("disease", "no disease"), ("disease", "normal"), ("sick", "healthy"), ("patient", "control"), ("present", "absent"),
)  # fmt: skip
"""(positive, negative): texts of a two-valued label whose meaning nobody doubts; compared without case."""

Floats = npt.NDArray[np.float64]


def value_texts(values: pd.Series) -> pd.Series:
    """Every cell as text, empty where missing; whole numbers without a decimal point, so that 1.0 is class "1"."""
    if pd.api.types.is_bool_dtype(values) or not pd.api.types.is_numeric_dtype(values):
        return values.astype("string").str.strip().fillna("")
    return values.map(lambda value: "" if pd.isna(value) else number_key(value)).astype("string")


def label_values(values: pd.Series) -> list[str]:
    """The distinct texts of a label column, without the empty one, sorted."""
    distinct = pd.Series(pd.factorize(values)[1])
    return sorted(set(value_texts(distinct)) - {""})


def positive_of(values: Sequence[str]) -> str | None:
    """Which of the values of a two-valued text label is the positive one, where nobody doubts it.

    Example:
        >>> positive_of(["Benign", "Malignant"]), positive_of(["a", "b"])
        ('Malignant', None)
    """
    folded = {value.casefold(): value for value in values}
    for positive, negative in PAIRS:
        if positive in folded and set(folded) <= {positive, negative}:
            return folded[positive]
    return None


def code_label(values: pd.Series, name: str, pos_label: str | None = None) -> tuple[Floats, str]:
    """A label column as 0, 1 and NaN (unlabelled), and what its positive class was taken to be (empty: it is coded 0/1).

    Args:
        values: 0/1, booleans, or text.
        name: the column, for messages.
        pos_label: the value that is the positive class; every other value is negative. None: 0/1, or a pair such as yes
            and no, positive and negative, malignant and benign.

    Raises:
        TableError: neither; the values are listed.
        ConfigError: ``pos_label`` is not among the values.

    Example:
        >>> code_label(pd.Series(["benign", "malignant", None]), "dx")
        (array([ 0.,  1., nan]), 'malignant')
    """
    if pd.api.types.is_bool_dtype(values):
        values = values.astype("Int64")
        pos_label = {"true": "1", "false": "0"}.get(str(pos_label).casefold(), pos_label)
    found = label_values(values)
    positive = positive_of(found) if pos_label is None else pos_label
    if pos_label is not None and found and pos_label not in found:
        raise ConfigError(f"--pos-label {pos_label} is not among the values of column '{name}' ({_listed(found)}); give one of them")
    negative_only = pos_label is None and len(found) == 1 and any(found[0].casefold() == negative for _, negative in PAIRS)
    if pos_label is None and "-1" in found and set(found) <= {"-1", "0", "1"}:
        raise _uncertain(values, name)
    if positive is None and not negative_only:
        if set(found) <= {"0", "1", "0.0", "1.0"} or not _words(found):
            return binary_column(values, name), ""
        texts = value_texts(values)
        odd = counted(int((texts != "").sum()), "value that is", "values that are")
        raise TableError(
            f"column '{name}' has {odd} not 0 or 1 ({_listed(found)}); "
            f"say which is the positive class, as --pos-label {' or --pos-label '.join(map(_shell, found[:2]))}, "
            "or code the label as 0 and 1"
        )
    texts = value_texts(values)
    coded: Floats = np.asarray(texts == positive, dtype=np.float64) if positive else np.zeros(len(texts))
    coded[(texts == "").to_numpy(bool)] = np.nan
    return coded, positive or ""


def _uncertain(values: pd.Series, name: str) -> TableError:
    """What -1 means in labels of radiology reports, and what to do about it."""
    rows = np.flatnonzero(np.asarray(value_texts(values) == "-1"))
    return TableError(
        f"column '{name}' is -1 in {len(rows)} rows, which CheXpert and MIMIC-CXR write for an uncertain label; an audit needs 0 and 1: "
        "empty these cells to leave the rows out, or make them 0 or 1 by a rule of your own (--pos-label 1 if -1 means negative)",
        [f"row {row + 1}: {name} is -1" for row in rows],
    )


def certain(values: Sequence[str]) -> list[str]:
    """The values of a label without the -1 that stands for "uncertain" beside 0 and 1.

    Example:
        >>> certain(["-1", "0", "1"]), certain(["-1", "1", "2"])
        (['0', '1'], ['-1', '1', '2'])
    """
    return ["0", "1"] if set(values) == {"-1", "0", "1"} else list(values)


def code_scores(columns: Mapping[str, pd.Series], *, logits: bool, guess: bool, softmax: bool = False) -> tuple[list[Floats], str]:
    """Score columns of one scale as probabilities, and a sentence about what was done (empty: nothing).

    - ``logits``: a sigmoid of every column; with ``softmax``, over the columns: exp(s_k) / sum_j exp(s_j).
    - ``guess``: the same where every column has scores outside [0, 1] and they reach from below -1 to above 1, or are named
      logits; nobody named the columns. A stray -0.2 among probabilities makes no logits of them.
    - neither: scores outside [0, 1] are refused, and named as logits where they look like them.

    Args:
        columns: name -> scores; several are the labels or the classes of one table.
        logits: the user says that they are logits.
        guess: the columns were recognised by their names.
        softmax: the columns are the classes of one label.

    Raises:
        TableError: empty or infinite scores, percentages, scores that are neither probabilities nor logits.
    """
    numbers = {name: finite_column(values, name) for name, values in columns.items()}
    beyonds = [bool(beyond(column).any()) for column in numbers.values()]
    outside = any(beyonds)
    together = np.concatenate(list(numbers.values()))
    named = guess and not logits and all("logit" in name.lower() for name in numbers)
    if named and not outside:
        first = next(iter(numbers))
        raise TableError(
            f"column '{first}' is named as logits but lies in [0, 1]; say --logits if it holds logits, or --score {first} if probabilities"
        )
    if not logits and not named and not (guess and all(beyonds) and together.min() < -1 and together.max() > 1):
        return [score_column(pd.Series(column), name) for name, column in numbers.items()], ""
    names = _listed([f"'{name}'" for name in numbers])
    said = f"scores in {names} (from {together.min():g} to {together.max():g}) {'are' if logits or named else 'look like'} logits"
    if softmax:
        scores = np.stack(list(numbers.values()), axis=1)
        power = np.exp(scores - scores.max(axis=1, keepdims=True))
        return list((power / power.sum(axis=1, keepdims=True)).T), f"{said}; a softmax over the classes was applied"
    done = f"{said}; a sigmoid was applied"
    if not outside:
        done += ", although all of them lie in [0, 1]: without --logits they are taken for probabilities"
    return [sigmoid(column) for column in numbers.values()], done


def sigmoid(logits: npt.NDArray[Any]) -> Floats:
    """1 / (1 + exp(-s)), without overflow."""
    half = np.exp(-np.abs(np.asarray(logits, float)))
    found: Floats = np.where(np.asarray(logits) >= 0, 1 / (1 + half), half / (1 + half))
    return found


def _words(values: Sequence[str]) -> bool:
    """Whether the values are classes that a user could mean: few, so that not one stray cell among numbers is taken for one."""
    return 2 <= len(values) <= 20 and not {"0", "1"} <= set(values)


def _listed(values: Sequence[str], limit: int = 8) -> str:
    return ", ".join(values[:limit]) + (", …" if len(values) > limit else "")


def _shell(value: str) -> str:
    return f'"{value}"' if " " in value else value
