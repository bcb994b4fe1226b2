"""Images that stand on a data card: a few of every group with and without a label, and near-duplicates side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.data.datasets import PreparedData
from evenhand.evaluation.data_counts import MISSING, OVERALL, CardRows, LabelColumn, n_patients
from evenhand.random import generator

Pixels = npt.NDArray[np.uint8]

SIDE = 104
PAIR_SIDE = 212
EACH = 4
MOST_STRIPS = 48
"""Strips of images on one page, so that it stays small."""
GAP = 4


def card_pictures(
    data: PreparedData, rows: CardRows, columns: Sequence[LabelColumn], pairs: Sequence[Mapping[str, Any]], seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Strips of examples and of pairs, as 8-bit pixels.

    Examples are training images (of the whole set where there are none), of different patients, and of groups large enough to
    be counted; labels and attributes are taken in turn until the page has enough.

    Returns:
        ``examples``: records of ``attribute, group, label, value, pixels``; ``pairs``: records of ``pixels``, in the order given.
    """
    return {
        "examples": _examples(data, rows, columns, seed),
        "pairs": [{"pixels": _strip(data, _positions(pair), PAIR_SIDE)} for pair in pairs],
    }


def _positions(pair: Mapping[str, Any]) -> npt.NDArray[np.int64]:
    return np.array(pair["rows"], dtype=np.int64) - 1


def _examples(data: PreparedData, rows: CardRows, columns: Sequence[LabelColumn], seed: int) -> list[dict[str, Any]]:
    inside = rows.inside("train") if (rows.split == "train").any() else np.ones(len(data), bool)
    single = [name for name in rows.groups if "*" not in name]
    out: list[dict[str, Any]] = []
    for column in columns:
        members = {name: rows.members(name) for name in single} or {"": {OVERALL: np.ones(len(data), bool)}}
        for attribute, groups in members.items():
            for key, own in groups.items():
                if key == MISSING or (attribute and key == OVERALL):
                    continue
                for value in (True, False):
                    chosen = inside & own & column.known & (column.values == value)
                    if len(out) >= MOST_STRIPS:
                        return out
                    if n_patients(rows.patients, chosen) >= max(rows.least, 1):
                        picked = _pick(chosen, rows.patients, generator(seed, "card example", column.name, attribute, key, str(value)))
                        strip = _strip(data, picked, SIDE)
                        group = "" if key == OVERALL else key
                        out.append({"attribute": attribute, "group": group, "label": column.name, "value": value, "pixels": strip})
    return out


def _pick(chosen: npt.NDArray[np.bool_], patients: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """A few rows of different patients."""
    rows = rng.permutation(np.flatnonzero(chosen))
    _, first = np.unique(patients[rows], return_index=True)
    return rows[np.sort(first)[:EACH]]


def _strip(data: PreparedData, rows: npt.NDArray[np.int64], side: int) -> Pixels:
    """Images side by side, white between them: (side, w) grey or (side, w, 3)."""
    from PIL import Image

    tiles = []
    for image in data.cache.raw(rows):
        levels = (image // 257).astype(np.uint8) if image.dtype == np.uint16 else image
        shown = levels[0] if len(levels) == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0))
        tiles.append(np.asarray(Image.fromarray(shown).resize((side, side), Image.Resampling.BOX)))
    gap = np.full((side, GAP, *tiles[0].shape[2:]), 255, np.uint8)
    parts = [part for tile in tiles for part in (tile, gap)][:-1]
    return np.ascontiguousarray(np.concatenate(parts, axis=1))
