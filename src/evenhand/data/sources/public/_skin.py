"""What the skin sets share: Fitzpatrick types and the published ways to split them, sex and age, and images found by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Attribute
from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.values import clean_age, clean_sex, with_ages
from evenhand.errors import InputError

PICTURES = (".jpg", ".jpeg", ".png")
SEX = Attribute("sex", "female, male")
TONES = (
    Attribute("skin_tone", "light: Fitzpatrick I to III; dark: IV to VI (MEDFAIR; SWiFT's repository has the same edge)"),
    Attribute("skin_tone3", "I-II; III-IV; V-VI (the authors of Fitzpatrick17k and of DDI)"),
    Attribute("fitzpatrick", "1 to 6"),
)
_LIGHT = {"1": "light", "2": "light", "3": "light", "4": "dark", "5": "dark", "6": "dark"}
_PAIRS = {"1": "I-II", "2": "I-II", "3": "III-IV", "4": "III-IV", "5": "V-VI", "6": "V-VI"}
_UNKNOWN = (-1, 0)


def people(sex: pd.Series, age: pd.Series, notes: list[str]) -> pd.DataFrame:
    """Columns ``sex``, ``age`` and the age schemes."""
    return with_ages(pd.DataFrame({"sex": clean_sex(sex, notes), "age": clean_age(age, notes)}, index=sex.index))


def tones(types: pd.Series, notes: list[str]) -> pd.DataFrame:
    """Fitzpatrick types as they are written (``3``, ``3.0``; -1 and 0 for unknown) -> ``fitzpatrick``, ``skin_tone`` and ``skin_tone3``.

    Example:
        >>> notes = []
        >>> tones(pd.Series(["3.0", "4", "-1", "7"]), notes).skin_tone.tolist(), notes
        (['light', 'dark', <NA>, <NA>], ['skin tone: 1 row has no type from 1 to 6 and counts as missing'])
    """
    numbers = pd.to_numeric(types, errors="coerce").astype("Float64")
    clean = numbers.map(lambda value: f"{value:g}", na_action="ignore").astype("string")
    clean = clean.where(clean.isin(list(_LIGHT)))
    odd = int((clean.isna() & types.notna() & ~numbers.isin(_UNKNOWN).fillna(False)).sum())
    if odd:
        rows = counted(odd, "row has no type from 1 to 6 and counts", "rows have no type from 1 to 6 and count")
        notes.append(f"skin tone: {rows} as missing")
    halves, pairs = (clean.map(names).astype("string") for names in (_LIGHT, _PAIRS))
    return pd.DataFrame({"fitzpatrick": clean, "skin_tone": halves, "skin_tone3": pairs}, index=types.index)


def image_paths(raw: RawFolder, names: pd.Series, folders: Sequence[str], endings: Sequence[str] = PICTURES) -> pd.Series:
    """Path of each image, found by its name without ending anywhere under some folders; what is not there gets the path it should have.

    Raises:
        InputError: none of the folders is there.
    """
    raw.folder(*folders)
    first = next(name for name in folders if (raw.root / name).is_dir())
    files = raw.by_stem(folders, endings)
    # of a set in parts (…_part_1, …_part_2), what is not there belongs into the part that is not there
    part = next((name for name in folders if name[:-1] == first[:-1] and not (raw.root / name).is_dir()), first)
    prefix = "" if part == "." else f"{part}/"
    return names.map(lambda name: files.get(name, f"{prefix}{name}{endings[0]}")).astype("string")


def is_one_of(words: pd.Series, chosen: Sequence[str]) -> pd.Series:
    """``1`` where a word is one of those chosen, ``0`` where it is another one, missing where there is none."""
    return words.isin(list(chosen)).map({True: "1", False: "0"}).astype("string").mask(words.isna())


def known_words(words: pd.Series, names: Mapping[str, str], column: str, file: str) -> pd.Series:
    """Words of a column in our spelling, without regard to case.

    Raises:
        InputError: a word that this release does not have.
    """
    lower = {key.lower(): value for key, value in names.items()}
    plain = words.astype("string").str.strip().str.lower()
    odd = sorted(set(plain.dropna()) - set(lower))
    if odd:
        shown = ", ".join(f"'{word}'" for word in odd[:5])
        known = ", ".join(sorted(set(lower)))
        raise InputError(f"{file}: column '{column}' has words that this release does not have ({shown}); known are {known}")
    return plain.map(lower).astype("string")
