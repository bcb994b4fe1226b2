"""Sex, age and the published ways to bin it, the same for every source: what is unknown is missing, what is odd is said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Attribute
from evenhand.data.sources.raw import recode

SEX = {"f": "female", "female": "female", "woman": "female", "m": "male", "male": "male", "man": "male"}
_YEARS = re.compile(r"^\s*0*(\d+(?:\.\d+)?)\s*(?:y|yr|yrs|year|years)?\s*$", re.IGNORECASE)
_SHORT = re.compile(r"^\s*(?P<count>\d{1,3})(?P<unit>[MWD])\s*$")
_A_YEAR = {"M": 12.0, "W": 365.25 / 7, "D": 365.25}
"""How many of DICOM's months, weeks and days make a year."""
OLDEST = 120
AGE_EDGES: dict[str, tuple[float, ...]] = {
    "age60": (60,),
    "age4": (40, 60, 80),
    "age5": (20, 40, 60, 80),
}
"""Attribute -> inner edges of half-open bins; ``age60`` is under 60 against 60 and over, in every set."""
OVER_60 = "age_over60"
"""The one other name for two groups, the same in every set: 60 with the younger, as the code of MEDFAIR, DNE and FairTune has it."""
AGES = (
    Attribute("age60", "under 60; 60 and over"),
    Attribute(OVER_60, "60 and under; over 60 (the code of MEDFAIR and DNE puts 60 with the younger)"),
    Attribute("age4", "under 40; 40 to 59; 60 to 79; 80 and over"),
    Attribute("age5", "under 20; 20 to 39; 40 to 59; 60 to 79; 80 and over (MEDFAIR)"),
)
"""The age groups that every set with ages offers; `with_ages` makes their columns."""


def clean_sex(values: pd.Series, notes: list[str], names: dict[str, str] | None = None) -> pd.Series:
    """``female``, ``male`` or missing; anything else is missing and said, never put into a group.

    Example:
        >>> notes = []
        >>> clean_sex(pd.Series(["F", "Male", "Unknown", None]), notes).tolist(), notes
        (['female', 'male', <NA>, <NA>], ["sex: 1 value is neither female nor male ('Unknown' 1) and counts as missing"])
    """
    sex = recode(values, names or SEX)
    odd = values[sex.isna() & values.notna() & (values.astype("string").str.strip() != "")]
    if len(odd):
        words = ", ".join(f"'{word}' {count}" for word, count in odd.value_counts().head(5).items())
        counts = "counts" if len(odd) == 1 else "count"
        notes.append(f"sex: {counted(len(odd), 'value is', 'values are')} neither female nor male ({words}) and {counts} as missing")
    return sex


def clean_age(values: pd.Series, notes: list[str], *, zero_is_unknown: bool = False) -> pd.Series:
    """Ages in years as text, missing where there is none; 0 and over 100 are said, over 120 (and 0, if told so) are missing.

    ``058Y``, ``58 years`` and ``58.0`` are read as 58; DICOM's months, weeks and days (``018M``) as whole years.

    Example:
        >>> notes = []
        >>> clean_age(pd.Series(["058Y", "018M", "0", "101", "411", "?"]), notes).tolist()
        ['58', '1', '0', '101', <NA>, <NA>]
        >>> len(notes)
        4
    """
    text = values.astype("string")
    years = pd.to_numeric(text.str.extract(_YEARS, expand=False), errors="coerce").astype("Float64")
    short = text.str.extract(_SHORT)
    years = years.fillna(pd.to_numeric(short["count"], errors="coerce").astype("Float64") // short["unit"].map(_A_YEAR).astype("Float64"))
    unread = int((years.isna() & text.notna() & (text.str.strip() != "")).sum())
    zero, old, impossible = years.eq(0).fillna(False), years.gt(100).fillna(False), years.gt(OLDEST).fillna(False)
    if unread:
        notes.append(f"age: {counted(unread, 'value is no age in years and counts', 'values are not ages in years and count')} as missing")
    if zero.any():
        one, many, what = ("counts", "count", "as missing (this set writes 0 for unknown)") if zero_is_unknown else ("is", "are", "kept")
        notes.append(f"age: {counted(int(zero.sum()), f'row has age 0 and {one}', f'rows have age 0 and {many}')} {what}")
    if (old & ~impossible).any():
        what = "an age over 100 and"
        notes.append(f"age: {counted(int((old & ~impossible).sum()), f'row has {what} is', f'rows have {what} are')} kept")
    if impossible.any():
        what = f"an age over {OLDEST} and"
        notes.append(f"age: {counted(int(impossible.sum()), f'row has {what} counts', f'rows have {what} count')} as missing")
    years = years.mask(impossible | (zero if zero_is_unknown else impossible))
    return years.map(lambda age: f"{age:g}", na_action="ignore").astype("string")


def bin_ages(ages: pd.Series, edges: Sequence[float]) -> pd.Series:
    """Ages -> names of half-open bins, missing where the age is.

    Example:
        >>> bin_ages(pd.Series(["59", "60", None]), (60,)).tolist()
        ['under 60', '60 and over', <NA>]
        >>> bin_ages(pd.Series(["19", "20", "85"]), (20, 80)).tolist()
        ['under 20', '20 to 79', '80 and over']
    """
    years = pd.to_numeric(ages, errors="coerce").astype("Float64")
    codes = np.digitize(years.fillna(-1).to_numpy(float), edges)
    middle = [f"{low:g} to {high - 1:g}" for low, high in pairwise(edges)]
    names = [f"under {edges[0]:g}", *middle, f"{edges[-1]:g} and over"]
    return pd.Series(np.asarray(names, object)[codes], index=ages.index, dtype="string").mask(years.isna())


def with_ages(frame: pd.DataFrame, schemes: Sequence[str] = (OVER_60, *AGE_EDGES)) -> pd.DataFrame:
    """The frame with a column for each age scheme of `AGES`, made from its column ``age``."""
    ages = frame["age"]
    return frame.assign(**{name: over(ages, 60) if name == OVER_60 else bin_ages(ages, AGE_EDGES[name]) for name in schemes})


def over(ages: pd.Series, edge: int) -> pd.Series:
    """``60 and under``, ``over 60`` or missing, in whole years: as MEDFAIR's code cuts ages.

    Example:
        >>> over(pd.Series(["60", "60.9", "61", None]), 60).tolist()
        ['60 and under', '60 and under', 'over 60', <NA>]
    """
    names = {f"under {edge + 1}": f"{edge} and under", f"{edge + 1} and over": f"over {edge}"}
    return bin_ages(ages, (edge + 1,)).map(names).astype("string")
