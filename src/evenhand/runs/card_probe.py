"""What can be read from the images of a data card's rows: attributes from embeddings, and both attributes and labels without any."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.config.card import CardConfig
from evenhand.data.datasets import PreparedData
from evenhand.data.groups import Groups
from evenhand.evaluation.data_counts import LabelColumn
from evenhand.evaluation.readability import ReadRows, folds_of, indicators, read, read_within, standardised, with_squares
from evenhand.models import EmbeddingCache
from evenhand.random import derive_seed, generator
from evenhand.runs.task import Encoder, embeddings_folder, pick_device

log = logging.getLogger(__name__)
Json = dict[str, Any]
IntArray = npt.NDArray[np.int64]

MOST_WITHIN = 6
"""Labels within which attributes are read; the first ones."""


@dataclass(frozen=True)
class Factor:
    """A label as the values that rows are compared within.

    Attributes:
        name: the label.
        names: of its values.
        codes: int (n,), -1 where unlabelled.
    """

    name: str
    names: tuple[str, ...]
    codes: IntArray


def factors(labels: npt.NDArray[Any], kind: str, names: Sequence[str], classes: Sequence[str]) -> list[Factor]:
    """Labels as `PreparedData.labels` gives them, as factors."""
    if kind == "multiclass":
        return [Factor(names[0], tuple(classes), labels.astype(np.int64))]
    return [Factor(name, ("0", "1"), np.nan_to_num(labels[:, k], nan=-1).astype(np.int64)) for k, name in enumerate(names)]


@dataclass(frozen=True)
class ProbeRows:
    """The rows that readers see.

    Attributes:
        rows: int64, of the table, ascending.
        outside: bool, which of them are outside the test split.
        patients: int64.
        seed: of folds, permutations and bootstrap.
    """

    rows: IntArray
    outside: npt.NDArray[np.bool_]
    patients: IntArray
    seed: int

    @classmethod
    def draw(cls, data: PreparedData, most: int, seed: int) -> ProbeRows:
        """At most so many rows outside the test split, and as many in it, of patients drawn at random."""
        outside = np.asarray(data.split != "test")
        chosen = [_draw(data.patients, np.flatnonzero(part), most, seed, name) for part, name in ((outside, "outside"), (~outside, "test"))]
        rows = np.sort(np.concatenate(chosen)).astype(np.int64)
        return cls(rows, outside[rows], data.patients[rows], seed)

    def seen(
        self, x: npt.NDArray[Any], codes: IntArray, n_groups: int, strata: IntArray, name: str
    ) -> tuple[ReadRows, npt.NDArray[np.bool_]]:
        """What a reader sees of features (n, d) and codes (n,): rows of known code; and which they are."""
        known = codes >= 0
        outside = self.outside & known
        fold = np.full(len(codes), -1, dtype=np.int64)
        if outside.any():
            fold[outside] = folds_of(self.patients[outside], codes[outside] * 64 + strata[outside], derive_seed(self.seed, "folds", name))
            x = standardised(x, outside)
        return ReadRows(x[known], codes[known], self.patients[known], fold[known], n_groups), known


def _draw(patients: IntArray, rows: IntArray, most: int, seed: int, name: str) -> IntArray:
    """Rows of whole patients, as many as fit."""
    if len(rows) <= most:
        return rows
    own, sizes = np.unique(patients[rows], return_counts=True)
    order = generator(seed, "card", name).permutation(len(own))
    taken = order[np.cumsum(sizes[order]) <= most]
    return rows[np.isin(patients[rows], own[taken])]


def embed(data: PreparedData, place: ProbeRows, config: CardConfig, seed: int, progress: bool) -> tuple[npt.NDArray[np.float32], Json]:
    """Embeddings of the rows, and what the encoder is; kept in the data set's folder where all rows or paid answers are embedded."""
    encoder = Encoder(config.model, seed, pick_device(config.accelerator), None, progress=progress)
    images = data.images(place.rows)
    folder = embeddings_folder(data.root) if len(place.rows) == len(data) or config.model.url else None
    z = encoder.embed(images) if folder is None else EmbeddingCache(folder).get(encoder.embedder, images, None, progress=progress)
    return z, {"fingerprint": encoder.fingerprint, **encoder.architecture, "dim": int(z.shape[1])}


def read_attributes(
    place: ProbeRows, features: Mapping[str, npt.NDArray[Any]], groups: Mapping[str, Groups], labels: Sequence[Factor], permutations: int
) -> Json:
    """Every attribute from every kind of features, overall and within labels.

    Args:
        place: which rows.
        features: name -> (n, d) of these rows.
        groups: attribute -> groups of all rows of the table.
        labels: of all rows of the table.
        permutations: readers of permuted groups.
    """
    out: Json = {}
    first = labels[0].codes[place.rows] + 1 if labels else np.zeros(len(place.rows), np.int64)
    for name, own in groups.items():
        codes = own.codes[place.rows]
        out[name] = {}
        for kind, x in features.items():
            rows, known = place.seen(x, codes, len(own.keys), first, name)
            seed = derive_seed(place.seed, "read", name) % (1 << 31)
            out[name][kind] = read(rows, seed, permutations, own.keys)
            out[name][kind]["labels"] = {
                factor.name: _within(rows, factor, factor.codes[place.rows][known], seed) for factor in labels[:MOST_WITHIN]
            }
    return out


def _within(rows: ReadRows, factor: Factor, values: IntArray, seed: int) -> Json:
    labelled = values >= 0
    if not (labelled & (rows.fold >= 0)).any():
        none = {"value": None, "lower": None, "upper": None, "reason": "no labelled rows"}
        return {"given_label": {"folds": none, "test": none}, "within": {}}
    return read_within(rows.take(labelled), values[labelled], factor.names, seed)


def read_labels(
    place: ProbeRows, columns: Sequence[LabelColumn], statistics: npt.NDArray[Any], groups: Mapping[str, Groups], permutations: int
) -> Json:
    """Every label from grey level, contrast and sharpness alone, and from every attribute alone: what a shortcut is worth.

    Args:
        place: which rows.
        columns: yes-or-no labels of all rows of the table.
        statistics: (n, k) of the rows read.
        groups: attribute -> groups of all rows of the table.
        permutations: readers of permuted labels.
    """
    out: Json = {}
    for column in columns:
        codes = np.where(column.known, column.values, -1)[place.rows].astype(np.int64)
        seed = derive_seed(place.seed, "read label", column.name) % (1 << 31)
        flat = np.zeros(len(codes), np.int64)
        rows, _ = place.seen(with_squares(statistics), codes, 2, flat, column.name)
        found: Json = {"statistics": read(rows, seed, permutations), "attributes": {}}
        for name, own in groups.items():
            x = indicators(own.codes[place.rows] + 1, max(len(own.keys) + 1, 3))
            rows, _ = place.seen(x, codes, 2, flat, column.name)
            found["attributes"][name] = read(rows, seed)
        out[column.name] = found
    return out
