"""What the eye sets share: sex, age and race with the published edges, numbers written as 1 or 1.0, the picture of an OCT volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Attribute, Found, Option
from evenhand.data.sources.public._race import white_or_other
from evenhand.data.sources.values import clean_age, clean_sex, with_ages

SEX = Attribute("sex", "female, male")
RACES = {"0": "Asian", "1": "Black", "2": "White", "asian": "Asian", "black": "Black", "white": "White",
         "black or african american": "Black", "white or caucasian": "White"}
VIEW = Option(
    "view", ("middle", "max", "mean"),
    "the picture of a volume: its middle B-scan, or the maximum or mean over all B-scans; the same rule for every patient",
)


def view_keys(view: str, axis: int) -> str:
    """The part of a reference that takes one picture out of a volume.

    Example:
        >>> view_keys("middle", 2), view_keys("max", 0)
        ('axis=2&slice=middle', 'axis=0&project=max')
    """
    return f"axis={axis}&" + ("slice=middle" if view == "middle" else f"project={view}")


def plain_numbers(values: pd.Series) -> pd.Series:
    """Numbers as text without a point where they are whole; what is no number is missing.

    Example:
        >>> plain_numbers(pd.Series(["1.0", "2", "0.5", "?", None])).tolist()
        ['1', '2', '0.5', <NA>, <NA>]
    """
    numbers = pd.to_numeric(values, errors="coerce").astype("Float64")
    return numbers.map(lambda value: f"{value:g}", na_action="ignore").astype("string")


def people(sex: pd.Series, age: pd.Series, notes: list[str], names: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Columns ``sex``, ``age`` and the age schemes.

    Args:
        sex: as the provider writes it.
        age: in years.
        notes: what is odd is added.
        names: the provider's words for sex -> ``female``, ``male``; None: the usual ones.
    """
    frame = pd.DataFrame({"sex": clean_sex(sex, notes, dict(names) if names else None), "age": clean_age(age, notes)}, index=sex.index)
    return with_ages(frame)


def known_races(values: pd.Series, notes: list[str]) -> pd.DataFrame:
    """Columns ``race`` (Asian, Black, White) and ``race_white`` (White, Other); anything else is missing and said."""
    words = values.astype("string").str.strip().str.lower()
    race = words.map(RACES).astype("string")
    odd = int((race.isna() & words.notna() & ~words.isin(["", "-1", "unknown"])).sum())
    if odd:
        what = "none of Asian, Black, White and"
        notes.append(f"race: {counted(odd, f'value is {what} counts', f'values are {what} count')} as missing")
    return pd.DataFrame({"race": race, "race_white": white_or_other(race)}, index=values.index)


def leave_out_each(found: Found, reasons: Mapping[str, Sequence[bool]]) -> None:
    """Leave out rows by several reasons, each row by the first that holds for it."""
    first = [next((reason for reason, rows in reasons.items() if rows[place]), "") for place in range(len(found.frame))]
    state = pd.Series(first, dtype="string")
    for reason in reasons:
        found.leave_out(state.eq(reason).to_numpy(bool), reason)
        state = state[state.ne(reason)].reset_index(drop=True)
