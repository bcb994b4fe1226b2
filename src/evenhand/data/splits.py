"""Splits by patient, stratified and seeded, and the check that nothing leaks across them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.data.amounts import counted
from evenhand.errors import InputError
from evenhand.random import generator

SPLITS = ("train", "val", "test")
IntArray = npt.NDArray[np.integer[Any]]
StrArray = npt.NDArray[np.str_]


def make_splits(patients: IntArray, strata: IntArray, fractions: Sequence[float] = (0.7, 0.1, 0.2), seed: int = 0) -> StrArray:
    """Give every patient one of train, val and test, so that each stratum is spread in the same shares.

    A patient belongs to the rarest stratum among the own rows. Patients of a stratum are shuffled and dealt out; what rounding
    leaves over is carried to the next stratum, so that the shares hold in each stratum and in the whole to within one patient.

    Args:
        patients: int (n,), equal for rows of one patient.
        strata: int (n,), for example label x group; any coding.
        fractions: shares of train, val and test, adding to 1.
        seed: of the shuffle.

    Returns:
        str (n,): "train", "val" or "test".

    Raises:
        InputError: the fractions are negative or do not add to 1.

    Example:
        >>> split = make_splits(np.arange(10), np.repeat([0, 1], 5), (0.6, 0.2, 0.2), seed=0)
        >>> [int((split == name).sum()) for name in SPLITS]
        [6, 2, 2]
    """
    codes = _deal(patients, strata, split_shares(fractions), generator(seed, "split"))
    return np.asarray(SPLITS)[codes]


def split_shares(fractions: Sequence[float]) -> npt.NDArray[np.float64]:
    """The shares of train, val and test as an array.

    Raises:
        InputError: they are not three, one is negative, or they do not add to 1.
    """
    shares = np.asarray(fractions, dtype=float)
    if len(shares) != 3 or not (shares >= 0).all() or abs(shares.sum() - 1) > 1e-6:
        raise InputError(f"split fractions are {list(fractions)}, but must be three shares (train, val, test) that add to 1")
    return shares


def redraw_validation(split: StrArray, patients: IntArray, strata: IntArray, fraction: float, seed: int) -> StrArray:
    """Re-draw train and val among the patients outside the test split; the test rows stay as they are.

    Args:
        split: str (n,), the present splits.
        patients: int (n,), equal for rows of one patient.
        strata: int (n,), kept in the same shares.
        fraction: share of the non-test patients that goes to val.
        seed: of the draw.

    Returns:
        str (n,), a new array.

    Raises:
        InputError: the fraction is not in [0, 1).
    """
    if not 0 <= fraction < 1:
        raise InputError(f"validation fraction is {fraction}, but must be in [0, 1)")
    rows = np.flatnonzero(split != "test")
    drawn = np.array(split, dtype="<U5")
    if len(rows):
        codes = _deal(patients[rows], strata[rows], np.array([1 - fraction, fraction]), generator(seed, "redraw validation"))
        drawn[rows] = np.asarray(["train", "val"])[codes]
    return drawn


def fold_validation(split: StrArray, patients: IntArray, strata: IntArray, folds: int, fold: int, seed: int) -> StrArray:
    """Splits of one fold of a cross-validation: its patients are val, the other patients outside the test split are train.

    Every row outside the test split is validation of one fold.

    Args:
        split: str (n,), the present splits; the test rows stay as they are.
        patients: int (n,), equal for rows of one patient.
        strata: int (n,), kept in the same shares.
        folds: number of folds.
        fold: which of them, from 0.
        seed: of the draw.

    Returns:
        str (n,), a new array.

    Raises:
        InputError: fewer than two folds, or more than there are patients to share out.

    Example:
        >>> fold_validation(np.array(["train"] * 4), np.arange(4), np.zeros(4, int), 2, 0, seed=0).tolist().count("val")
        2
    """
    rows = np.flatnonzero(split != "test")
    known = len(np.unique(patients[rows]))
    if not 2 <= folds <= known:
        raise InputError(f"{folds} folds were asked for, but must be at least 2 and at most the {known} patients outside the test split")
    drawn = np.array(split, dtype="<U5")
    codes = _deal(patients[rows], strata[rows], np.full(folds, 1 / folds), generator(seed, "folds"))
    drawn[rows] = np.where(codes == fold, "val", "train")
    return drawn


def _deal(patients: IntArray, strata: IntArray, shares: npt.NDArray[np.float64], rng: np.random.Generator) -> IntArray:
    _, codes = np.unique(strata, return_inverse=True)
    sizes = np.bincount(codes)
    order = np.lexsort((sizes[codes], patients))
    names, first = np.unique(np.asarray(patients)[order], return_index=True)
    stratum = codes[order][first]  # rows are sorted by how rare their stratum is: the first one is the patient's
    target = np.zeros(len(names), dtype=np.int64)
    owed = np.zeros(len(shares))
    for code in np.argsort(-sizes, kind="stable"):
        members = rng.permutation(np.flatnonzero(stratum == code))
        owed += shares * len(members)
        counts = np.floor(np.maximum(owed, 0) + 1e-9).astype(np.int64)
        while counts.sum() > len(members):
            counts[np.argmax(counts - owed)] -= 1
        while counts.sum() < len(members):
            counts[np.argmax(owed - counts)] += 1
        owed -= counts
        target[members] = np.repeat(np.arange(len(shares)), counts)
    return np.asarray(target[np.searchsorted(names, patients)])


@dataclass(frozen=True)
class Leaks:
    """What occurs in more than one split.

    Attributes:
        patients: rows of each such patient.
        images: rows of each such image content.
    """

    patients: tuple[tuple[int, ...], ...]
    images: tuple[tuple[int, ...], ...]

    def __bool__(self) -> bool:
        return bool(self.patients or self.images)

    def sentences(self) -> list[str]:
        """One sentence for each kind, with row numbers counted from 1."""
        texts = []
        for what, found in (("patient", self.patients), ("image content", self.images)):
            if found:
                shown = "; ".join("rows " + ", ".join(str(row + 1) for row in rows[:4]) for rows in found[:5])
                are = counted(len(found), f"{what} is", f"{what}s are")
                texts.append(f"{are} in more than one split ({shown}{'; …' if len(found) > 5 else ''})")
        return texts


def find_leaks(split: StrArray, patients: IntArray, hashes: npt.NDArray[np.uint8] | None = None) -> Leaks:
    """Look for patients, and for images of equal content, that are in more than one split.

    Args:
        split: str (n,).
        patients: int (n,), equal for rows of one patient.
        hashes: uint8 (n, k), the content hash of every image; None: images are not compared.
    """
    images = () if hashes is None else _across(split, content_codes(hashes))
    return Leaks(_across(split, patients), images)


def content_codes(hashes: npt.NDArray[np.uint8]) -> IntArray:
    """int64 (n,), equal for rows of equal hash."""
    keys = np.ascontiguousarray(hashes).view([("", np.uint8, hashes.shape[1])]).ravel() if len(hashes) else np.zeros(0, np.int64)
    return np.asarray(np.unique(keys, return_inverse=True)[1], dtype=np.int64)


def join_units(patients: IntArray, contents: IntArray) -> IntArray:
    """Units that must stay in one split: patients, joined where they share an image content.

    Example:
        >>> join_units(np.array([0, 0, 1, 2]), np.array([5, 6, 6, 7])).tolist()
        [0, 0, 0, 1]
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    _, rows = np.unique(patients, return_inverse=True)
    _, columns = np.unique(contents, return_inverse=True)
    n_rows, n_columns = int(rows.max(initial=-1)) + 1, int(columns.max(initial=-1)) + 1
    total = n_rows + n_columns
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns + n_rows)), shape=(total, total))
    parts = connected_components(graph, directed=False)[1][:n_rows]
    return np.asarray(np.unique(parts, return_inverse=True)[1][rows], dtype=np.int64)


def _across(split: StrArray, units: IntArray) -> tuple[tuple[int, ...], ...]:
    order = np.argsort(units, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(np.asarray(units)[order])) + 1) if len(order) else []
    return tuple(tuple(int(row) for row in rows) for rows in groups if len(set(split[rows])) > 1)
