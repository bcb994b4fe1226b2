"""Pairs of images that show the same picture: copies that were saved, scaled, brightened or slightly cropped anew.

Two images are called near-duplicates where at most 7 of their 64 hash bits differ (`evenhand.data.image_features`) and the cosine
of their standardised frequencies is at least 0.85. Pairs within 7 bits are all found: cut into four pieces of 16 bits, two such
hashes have one piece that differs in at most one bit, so only images of equal or neighbouring pieces are compared, in blocks.
Mirrored and turned copies are not found. How often the rule is met by chance is measured on random pairs of patients.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.data.image_features import ImageFeatures
from evenhand.random import generator

IntArray = npt.NDArray[np.int64]

MOST_BITS = 7
LEAST_COSINE = 0.85
MOST_PAIRS = 200_000
"""Pairs after which the search ends: so many are a property of the images, not a list to go through."""
RANDOM_PAIRS = 2_000_000
_PIECES, _PIECE_BITS = 4, 16
_CHUNK = 1 << 21


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of rows whose images are nearly, not exactly, equal.

    Attributes:
        pairs: int64 (p, 2), rows, the first below the second: those across splits first, then those across patients, the closest first.
        cosine: float64 (p,), how close each pair is.
        bits: int64 (p,), hash bits that differ.
        across_splits: (p,) whether the two rows are in different splits.
        across_patients: (p,) whether they are of different patients.
        within: pairs of one patient in one split, which are not listed.
        complete: False where the search ended at `MOST_PAIRS`.
        n_random: random pairs of different patients and contents that the rule was tried on.
        random_hits: how many of these met it.
    """

    pairs: IntArray
    cosine: npt.NDArray[np.float64]
    bits: IntArray
    across_splits: npt.NDArray[np.bool_]
    across_patients: npt.NDArray[np.bool_]
    within: int
    complete: bool
    n_random: int
    random_hits: int


def find_near_duplicates(
    features: ImageFeatures, contents: IntArray, patients: IntArray, split: npt.NDArray[np.str_], seed: int = 0
) -> NearDuplicates:
    """Search all images for pairs that are nearly equal, and measure how often random pairs are.

    Args:
        features: of every image.
        contents: int (n,), equal for images of equal content; such pairs are not near-duplicates but copies.
        patients: int (n,), equal for images of one patient.
        split: str (n,).
        seed: draws the random pairs.
    """
    _, splits = np.unique(split, return_inverse=True)
    keys = np.stack([contents, patients, splits], axis=1)
    rows = np.sort(np.unique(keys, axis=0, return_index=True)[1]).astype(np.int64)
    kept: list[npt.NDArray[Any]] = []
    found, complete = 0, True
    for first, second, bits in _close(features.hashes[rows]):
        a, b = rows[first], rows[second]
        other = contents[a] != contents[b]
        a, b, bits = a[other], b[other], bits[other]
        cosine = _cosine(features, a, b)
        near = cosine >= LEAST_COSINE
        kept.append(np.stack([np.minimum(a, b)[near], np.maximum(a, b)[near], np.rint(1e6 * cosine[near]).astype(np.int64), bits[near]]))
        found += int(near.sum())
        if found >= 4 * MOST_PAIRS:  # a pair can be met once in each piece
            complete = False
            break
    table = np.unique(np.concatenate([*kept, np.zeros((4, 0), np.int64)], axis=1).T, axis=0)
    a, b = table[:, 0], table[:, 1]
    in_splits, in_patients = splits[a] != splits[b], patients[a] != patients[b]
    within = ~in_splits & ~in_patients
    order = np.lexsort((b, a, -table[:, 2], ~in_patients, ~in_splits))
    order = order[~within[order]]
    n_random, hits = _by_chance(features, contents, patients, seed)
    return NearDuplicates(
        table[order, :2],
        table[order, 2] / 1e6,
        table[order, 3],
        in_splits[order],
        in_patients[order],
        int(within.sum()),
        complete,
        n_random,
        hits,
    )


def _cosine(features: ImageFeatures, a: IntArray, b: IntArray) -> npt.NDArray[np.float64]:
    out = np.empty(len(a))
    for start in range(0, len(a), 1 << 15):
        part = slice(start, start + (1 << 15))
        x, y = (features.detail[rows[part]].astype(np.float32) for rows in (a, b))
        norms = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
        out[part] = np.divide((x * y).sum(axis=1), norms, out=np.zeros(len(x), np.float32), where=norms > 0)
    return out


def _close(hashes: npt.NDArray[np.uint64]) -> Iterator[tuple[IntArray, IntArray, IntArray]]:
    """Positions of pairs within `MOST_BITS`, in blocks; a pair may come several times."""
    pieces = hashes.view(np.uint16).reshape(len(hashes), _PIECES)
    for piece in range(_PIECES):
        keys = pieces[:, piece].astype(np.int64)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        starts = np.searchsorted(ordered, np.arange((1 << _PIECE_BITS) + 1))
        for mask in (0, *(1 << bit for bit in range(_PIECE_BITS))):
            partner = ordered ^ mask
            low, high = starts[partner], starts[partner + 1]
            if mask:
                high = np.where(ordered < partner, high, low)
            else:
                low = np.minimum(np.arange(len(ordered)) + 1, high)
            for first, second in _expanded(low, high):
                a, b = order[first], order[second]
                bits = popcount(hashes[a] ^ hashes[b])
                near = bits <= MOST_BITS
                if near.any():
                    yield a[near], b[near], bits[near]


def _expanded(low: IntArray, high: IntArray) -> Iterator[tuple[IntArray, IntArray]]:
    """Pairs (i, j) for every i and low[i] <= j < high[i], a few million at a time."""
    counts = np.maximum(high - low, 0)
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, before + _CHUNK, side="right")), start + 1)
        own = counts[start:stop]
        if own.sum():
            first = np.repeat(np.arange(start, stop), own)
            offset = np.arange(int(own.sum())) - np.repeat(np.cumsum(own) - own, own)
            yield first, low[first] + offset
        start = stop


def popcount(values: npt.NDArray[np.uint64]) -> IntArray:
    """How many bits are set.

    Example:
        >>> popcount(np.array([0, 7, 2**64 - 1], np.uint64)).tolist()
        [0, 3, 64]
    """
    if hasattr(np, "bitwise_count"):
        counts: IntArray = np.bitwise_count(values).astype(np.int64)
        return counts
    counts = np.unpackbits(values.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1).astype(np.int64)
    return counts


def _by_chance(features: ImageFeatures, contents: IntArray, patients: IntArray, seed: int) -> tuple[int, int]:
    """(pairs drawn, pairs that meet the rule) of rows of different patients and contents."""
    n, hits, tried = len(features), 0, 0
    if len(np.unique(patients)) < 2:
        return 0, 0
    rng = generator(seed, "near duplicates")
    wanted = min(RANDOM_PAIRS, 4 * n * (n - 1))
    for start in range(0, wanted, _CHUNK // 4):
        a, b = rng.integers(0, n, (2, min(_CHUNK // 4, wanted - start)))
        other = (patients[a] != patients[b]) & (contents[a] != contents[b])
        tried += int(other.sum())
        near = other & (popcount(features.hashes[a] ^ features.hashes[b]) <= MOST_BITS)
        hits += int((_cosine(features, a[near], b[near]) >= LEAST_COSINE).sum())
    return tried, hits
