"""What the sources share that read metadata already prepared by others: where the images lie, and the groups as those files code them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from evenhand.data.sources.public._eyes import view_keys
from evenhand.data.sources.raw import RawFolder

_PATIENT = re.compile(r"(patient\d+)")


def column(table: pd.DataFrame, *names: str) -> pd.Series:
    """The first of these columns that is there; all missing where none is."""
    for name in names:
        if name in table:
            return table[name]
    return pd.Series(pd.NA, index=table.index, dtype="string")


def located(raw: RawFolder, paths: pd.Series, prefixes: Sequence[str]) -> pd.Series:
    """Paths under the first of these prefixes that has one of the first thousand files; as they are where none has."""
    clean = paths.astype("string").str.strip().str.replace("\\", "/", regex=False)
    some = list(clean.dropna().head(1000))
    for prefix in prefixes:
        if any((raw.root / f"{prefix}{path}").is_file() for path in some):
            return prefix + clean
    return prefixes[0] + clean


def patients_in(paths: pd.Series) -> pd.Series:
    """``patient00001`` out of CheXpert's paths, missing where there is none."""
    return paths.astype("string").str.extract(_PATIENT, expand=False)


def with_views(raw: RawFolder, paths: pd.Series, view: str, axis: int) -> tuple[pd.Series, bool]:
    """References into NumPy volumes where the first file is one, else the paths as they are; and whether they are volumes."""
    first = next((path for path in paths.dropna() if path.lower().endswith(".npy") and (raw.root / path).is_file()), None)
    if first is None:
        return paths, False
    try:
        shape = np.load(raw.root / first, mmap_mode="r", allow_pickle=False).shape
    except (OSError, ValueError):
        return paths, False
    if len(shape) != 3 or 3 in (shape[0], shape[2]):
        return paths, False
    return paths + f"#{view_keys(view, axis)}&scale=percentile", True
