"""What looks like something else: words and numbers that stand for a missing value, and a split that nobody took for one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from evenhand.data.groups import LEADING_ZERO
from evenhand.evaluation.coding import value_texts
from evenhand.evaluation.predictions import GROUP_SUFFIX
from evenhand.evaluation.recognise import IMAGES, MAYBE_TEST_FLAGS, PATIENTS, SPLITS, TEST_FLAGS, is_flag, says_split, squeeze

WORDS = frozenset({
    "na", "n/a", "#n/a", "<na>", "nan", "none", "null", "nil", "unknown", "unk", "u", "?", ".", "missing", "not reported", "not available",
    "not known", "not recorded", "not specified", "unspecified", "undetermined", "refused", "declined", "patient refused",
    "patient declined", "declined to answer", "prefer not to say", "unable to obtain",
})  # fmt: skip
"""Texts that mean a missing value in many tables, compared without case."""

CODES = frozenset({"-1", "-9", "-99", "-999", "99", "999", "9999"})
"""Numbers that do so among codes (99 not where 98 is a code as well); of measurements only those below 0, and 999 and 9999."""

EMPTY = frozenset({"NA", "NaN", "nan", "null", "NULL", "N/A", "."})
"""Texts that R, pandas, SQL and SAS write for an empty cell; among numbers they can mean nothing else."""

_IDS = frozenset(name for tiers in (PATIENTS, SPLITS, IMAGES) for tier in tiers for name in tier)


def emptied(frame: pd.DataFrame, ids: Collection[str | None] = ()) -> tuple[pd.DataFrame, list[str]]:
    """The table with the words of `EMPTY` as empty cells where all other cells of a column are numbers, and a sentence about it.

    Text columns ("NA" among races), ids and codes with leading zeros stay as they are.

    Args:
        frame: the table.
        ids: columns that are no numbers whatever they look like; those named as patients, splits and images are never touched.

    Example:
        >>> emptied(pd.DataFrame({"age": ["61", "NA"], "race": ["NA", "b"]}))[1]
        ["'NA' counts as empty in columns where all other cells are numbers: 'age' (1 cell)"]
    """
    made: dict[str, Any] = {}
    shown, words = [], set()
    for name in frame.columns:
        if name in ids or squeeze(name) in _IDS or pd.api.types.is_numeric_dtype(frame[name]):
            continue
        try:
            codes, distinct = pd.factorize(frame[name])
        except TypeError:  # lists or objects in the cells of a DataFrame
            continue
        texts = pd.Series(np.asarray(distinct, dtype=object)).map(lambda value: value.strip() if isinstance(value, str) else value)
        empty = texts.isin(EMPTY)
        others = texts[~empty & (texts != "")].astype("string")
        if not empty.any() or others.empty or pd.to_numeric(others, errors="coerce").isna().any() or others.str.match(LEADING_ZERO).any():
            continue
        numbers = pd.to_numeric(texts.where(~empty & (texts != ""), None)).astype(float).to_numpy()
        made[name] = np.append(numbers, np.nan)[codes]
        n = int(np.isin(codes, np.flatnonzero(empty)).sum())
        words |= set(texts[empty])
        shown.append(f"'{name}' ({n} cell{'s' * (n > 1)})")
    if not made:
        return frame, []
    quoted = ", ".join(f"'{word}'" for word in sorted(words))
    listed = ", ".join(shown[:8]) + (f", … ({len(shown)} columns in all)" if len(shown) > 8 else "")
    counts = "count" if len(words) > 1 else "counts"
    return frame.assign(**made), [f"{quoted} {counts} as empty in columns where all other cells are numbers: {listed}"]


def doubtful(
    frame: pd.DataFrame, attributes: Iterable[str], edges: Mapping[str, Any], measured: Collection[str], patient: str | None
) -> list[str]:
    """Sentences about values that may mean "missing"; they are judged as they stand, because only the user can know.

    Args:
        frame: the table.
        attributes: attributes, joint ones as ``sex*age``.
        edges: attributes with bins, whose edges refuse what is outside.
        measured: attributes that are cut at their quantiles.
        patient: the column of patient ids.

    Example:
        >>> doubtful(pd.DataFrame({"sex": ["f", "m", "U"]}), ["sex"], {}, (), None)[0][:56]
        "attribute 'sex': 'U' (1 row) may stand for a missing val"
    """
    said = []
    for name in dict.fromkeys(part for attribute in attributes for part in attribute.split("*")):
        column = name if name in measured else f"{name}{GROUP_SUFFIX}"
        column = column if column in frame.columns else name
        if name in edges or column not in frame.columns:
            continue
        if found := _found(frame[column], name in measured):
            what = "is cut into bins as a number" if name in measured else "is a group like any other and enters gaps"
            said.append(f"attribute '{name}': {found} may stand for a missing value, but {what}; empty cells count as missing")
    if patient is not None and (found := _found(frame[patient], False, frozenset())):
        said.append(f"column '{patient}': {found} may stand for an unknown patient, but counts as one; leave such cells empty")
    return said


def _found(values: pd.Series, measured: bool, codes: Collection[str] = CODES) -> str:
    """The doubtful values with their rows, as a text."""
    counts = values.value_counts()
    texts = value_texts(pd.Series(counts.index))
    lone = {code for code in codes if str(int(code) - 1) not in set(texts)}
    shown = [f"'{text}' ({n} row{'s' * (n > 1)})" for text, n in zip(texts, counts, strict=True) if _is_doubtful(str(text), measured, lone)]
    return ", ".join(shown[:4]) + (", …" if len(shown) > 4 else "")


def _is_doubtful(text: str, measured: bool, codes: Collection[str]) -> bool:
    if measured:
        return text in ("999", "9999") or text.startswith("-")
    return text.casefold() in WORDS or text in codes


def unused_splits(frame: pd.DataFrame, unused: Sequence[str]) -> list[str]:
    """Columns that hold train, val and test, but whose name does not say that they are a split: training rows would be judged.

    Also columns of 0 and 1 that may mark test rows.
    """
    flags = [name for name in unused if squeeze(name) in TEST_FLAGS | MAYBE_TEST_FLAGS and is_flag(frame[name])]
    texts = [name for name in unused if not pd.api.types.is_numeric_dtype(frame[name])]
    return [
        f"column '{name}' reads like a split, but is not used, so that all rows are judged; to judge test rows only say --split {name}"
        for name in texts
        if name not in flags and says_split(frame[name])
    ] + [
        f"column '{name}' may mark the test rows, but is not used, so that all rows are judged; if it does, say --split {name}"
        for name in flags
    ]
