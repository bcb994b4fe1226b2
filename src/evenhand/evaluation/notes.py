"""What is reported and not refused: small groups, one class, duplicates, patients in two groups. Counts only, no ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from evenhand.data.groups import Groups

Ints = npt.NDArray[np.int64]
MOST_NAMES = 6
"""Groups or labels named in one sentence; the others are counted."""


def cohort_notes(
    frame: pd.DataFrame, truths: Mapping[str, npt.NDArray[np.float64]], groups: Mapping[str, Groups], patient: Ints
) -> list[str]:
    """Sentences about the judged rows, for the report.

    Args:
        frame: the judged rows.
        truths: label -> 0, 1 or NaN of each row.
        groups: attribute -> groups of the same rows.
        patient: int64 (n,) patient codes.
    """
    notes = _duplicates(frame)
    single = [name for name, truth in truths.items() if _one_class(truth)]
    if single:
        what = f"labels {_some(single)} have" if len(single) > 1 else f"label '{single[0]}' has"
        notes.append(f"{what} one class in the judged rows, so that no AUC can be said")
    for name, item in groups.items():
        notes += _group_notes(name, item, {label: truth for label, truth in truths.items() if label not in single}, patient)
    return notes


def _duplicates(frame: pd.DataFrame) -> list[str]:
    """Exact copies of rows, and images that stand in several rows."""
    notes = []
    scores = [name for name in frame.columns if str(name).startswith("y_score")]
    # rows can only be copies where their scores are, which is cheap to see and rare
    alike = frame[frame.duplicated(subset=scores, keep=False)] if scores else frame
    copies = int(alike.astype("string").duplicated().sum()) if len(alike) else 0
    if copies:
        said = "1 row is an exact copy" if copies == 1 else f"{copies} rows are exact copies"
        notes.append(f"{said} of another row; judged as the table has them, so remove them if that is a mistake")
    if "image" in frame.columns:
        images = frame["image"].dropna()
        twice = images.duplicated(keep=False)
        if twice.any():
            notes.append(f"{images[twice].nunique()} image names stand in several judged rows ({int(twice.sum())} rows)")
    return notes


def _group_notes(name: str, groups: Groups, truths: Mapping[str, npt.NDArray[np.float64]], patient: Ints) -> list[str]:
    present = groups.codes >= 0
    codes, people = groups.codes[present], patient[present]
    n_keys = max(len(groups.keys), 1)
    # sorted, as numpy's own unique hashes integers, which takes ten times as long
    pairs = np.sort(people * n_keys + codes)
    pairs = pairs[np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)]]
    n_patients = np.bincount(pairs % n_keys, minlength=len(groups.keys))
    notes = []
    lonely = [key for key, n in zip(groups.keys, n_patients, strict=True) if n == 1]
    if lonely:
        notes.append(f"'{name}' has {len(lonely)} group{'s' * (len(lonely) > 1)} of one patient: {_some(lonely)}")
    if "*" not in name:
        several = int((np.bincount(pairs // n_keys) > 1).sum())
        if several:
            notes.append(f"{several} patients are in more than one group of '{name}'; their images count where they belong")
    notes += _one_class_notes(name, groups, truths)
    return notes


def _one_class_notes(name: str, groups: Groups, truths: Mapping[str, npt.NDArray[np.float64]]) -> list[str]:
    found: dict[str, int] = {}
    for truth in truths.values():
        use = (groups.codes >= 0) & ~np.isnan(truth)
        n_rows = np.bincount(groups.codes[use], minlength=len(groups.keys))
        n_positive = np.bincount(groups.codes[use], weights=truth[use], minlength=len(groups.keys))
        for code in np.flatnonzero((n_rows > 0) & ((n_positive == 0) | (n_positive == n_rows))):
            found[groups.keys[code]] = found.get(groups.keys[code], 0) + 1
    if not found:
        return []
    keys = [f"{key} ({n} label{'s' * (n > 1)})" if len(truths) > 1 else key for key, n in found.items()]
    return [f"{len(keys)} group{'s' * (len(keys) > 1)} of '{name}' {'have' if len(keys) > 1 else 'has'} one class only: {_some(keys)}"]


def _one_class(truth: npt.NDArray[np.float64]) -> bool:
    known = truth[~np.isnan(truth)]
    return len(known) == 0 or bool((known == known[0]).all())


def _some(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
