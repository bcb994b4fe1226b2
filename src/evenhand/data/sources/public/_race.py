"""Race as hospitals of the United States write it: many spellings to a few groups, and one group a patient."""

from __future__ import annotations

import re

import pandas as pd

from evenhand.data.amounts import counted

_UNKNOWN = re.compile(r"unknown|refused|declin|unable to obtain|not asked|^\W*$", re.IGNORECASE)
_GROUPS = (
    ("Pacific Islander", re.compile(r"native hawaiian|pacific islander", re.IGNORECASE)),
    ("White", re.compile(r"^(white|caucasian)\b", re.IGNORECASE)),
    ("Black", re.compile(r"^black\b", re.IGNORECASE)),
    ("Asian", re.compile(r"^asian\b", re.IGNORECASE)),
    ("Native American", re.compile(r"^(native american|american indian)\b", re.IGNORECASE)),
    ("Hispanic", re.compile(r"^(hispanic|south american)\b", re.IGNORECASE)),
)
RACES = ("White", "Black", "Asian", "Native American", "Pacific Islander", "Hispanic", "Other")


def race_group(words: str) -> str | None:
    """One of `RACES`, None where it is not known.

    Example:
        >>> [race_group(word) for word in ("WHITE - RUSSIAN", "Black, non-Hispanic", "UNABLE TO OBTAIN", "PORTUGUESE", "?")]
        ['White', 'Black', None, 'Other', None]
    """
    if _UNKNOWN.search(words.strip()):
        return None
    return next((group for group, pattern in _GROUPS if pattern.search(words.strip())), "Other")


def race_groups(words: pd.Series) -> pd.Series:
    """Every word by `race_group`."""
    groups = {word: race_group(word) for word in words.dropna().unique()}
    return words.map(groups).astype("string")


def white_or_other(races: pd.Series) -> pd.Series:
    """``White``, ``Other`` or missing: the published binary attribute, without unknown race in "other"."""
    return races.where(races.isna() | races.eq("White"), "Other")


def one_value(patients: pd.Series, values: pd.Series) -> tuple[pd.Series, int]:
    """Patient -> the value that all known entries agree on, missing where they do not; and how many patients disagree with themselves.

    Example:
        >>> agreed, conflicts = one_value(pd.Series(["a", "a", "b", "b"]), pd.Series(["White", None, "White", "Asian"]))
        >>> agreed.to_dict(), conflicts
        ({'a': 'White'}, 1)
    """
    known = pd.DataFrame({"patient": patients, "value": values}).dropna().drop_duplicates()
    several = known["patient"].duplicated(keep=False)
    conflicts = int(known["patient"][several].nunique())
    return known[~several].set_index("patient")["value"], conflicts


def conflict_note(name: str, conflicts: int) -> str:
    """The sentence about patients who disagree with themselves.

    Example:
        >>> conflict_note("race", 1)
        'race: 1 patient has entries that differ; it is missing there'
    """
    return f"{name}: {counted(conflicts, 'patient has', 'patients have')} entries that differ; it is missing there"
