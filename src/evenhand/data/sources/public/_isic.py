"""What the ISIC challenges share: one-hot diagnoses, archives that unpack into a folder of their own, skin tones estimated by others."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.sources.base import Attribute
from evenhand.data.sources.public._skin import SEX, TONES, tones
from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.values import AGES
from evenhand.errors import InputError

LINK = "https://challenge.isic-archive.com/data/"
TONE_TABLE = "isic_train_20-19-18-17.csv"
ATTRIBUTES = (
    SEX,
    *AGES,
    *(Attribute(tone.name, f"{tone.text}; only estimated, and only where {TONE_TABLE} lies beside") for tone in TONES),
)
TONE_TRAP = (
    f"no skin tones are published; where {TONE_TABLE} of Bevan and Atapour-Abarghouei (github.com/pbevan1/Detecting-Melanoma-Fairly) lies "
    "in the raw folder, its column fitzpatrick is joined: types estimated from the colour of the pixels around the lesion, not judged by "
    "a person (not confirmed: that BMFT's and SWiFT's own tables of ISIC, which are not published, hold these)"
)
OVERLAP_TRAP = (
    "the challenges share images: 2019's training part holds HAM10000 (2018's) and images of 2017; a model trained on one is not tested "
    "out of distribution on another"
)


def beside(name: str, *folders: str) -> tuple[str, ...]:
    """Where a file of a challenge may lie: loose, or in a folder that its archive was unpacked to.

    Example:
        >>> beside("a.csv", "data")
        ('a.csv', 'a/a.csv', 'data/a.csv', 'data/data/a.csv')
    """
    stem = name.rsplit(".", 1)[0]
    return (name, f"{stem}/{name}", *(path for folder in folders for path in (f"{folder}/{name}", f"{folder}/{folder}/{name}")))


def one_hot(truth: pd.DataFrame, classes: Sequence[str], file: str) -> pd.Series:
    """The class, in lower case, of each row of a table with a 0/1 column for every class.

    Raises:
        InputError: a row with no class, or with several.
    """
    numbers = truth[list(classes)].apply(pd.to_numeric, errors="coerce")
    chosen = numbers.eq(1)
    wrong = ~(chosen.sum(axis=1).eq(1) & numbers.isin([0, 1]).all(axis=1))
    if wrong.any():
        first = str(truth["image"][wrong].iloc[0])
        rows = counted(int(wrong.sum()), "row does", "rows do")
        raise InputError(f"{file}: {rows} not name exactly one diagnosis (first: {first}); download it again")
    classes_found: pd.Series = chosen.idxmax(axis=1).str.lower().astype("string")
    return classes_found


def estimated_tones(raw: RawFolder, names: pd.Series, notes: list[str]) -> pd.DataFrame:
    """Columns of skin tone, joined by image name from the table of estimates; all missing where it is not there."""
    found = pd.Series(pd.NA, index=names.index, dtype="string")
    if raw.has(TONE_TABLE):
        table = raw.table(TONE_TABLE, columns=("image_name", "fitzpatrick"))
        plain = table["image_name"].str.removesuffix(".jpg").str.removesuffix("_downsampled")
        known = table["fitzpatrick"].groupby(plain).first()
        found = names.str.removesuffix("_downsampled").map(known).astype("string")
        have = counted(int(found.notna().sum()), "images has", "images have", of=len(found))
        notes.append(f"skin tone: {have} a type, estimated from pixels ({TONE_TABLE})")
    return tones(found, notes)


def lone_images(n: int) -> str:
    """The sentence about images whose lesion is not known.

    Example:
        >>> lone_images(9)
        '9 images of the training part have no lesion id: each counts as a lesion of its own'
    """
    part = "of the training part"
    images = counted(n, f"image {part} has no lesion id: it counts", f"images {part} have no lesion id: each counts")
    return f"{images} as a lesion of its own"
