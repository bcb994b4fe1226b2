"""A prepared data set: ``dataset.yaml``, ``table.csv`` and ``cache/`` in one folder, which agree with each other.

Row i of the table is image i of the cache. ``dataset.yaml`` is written last; a folder without it is not a data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from evenhand.data.cache import CachedImages, ImageCache
from evenhand.data.groups import Groups, make_groups
from evenhand.data.table import TableSpec, label_array, nearest, read_table
from evenhand.errors import InputError

SCHEMA = "evenhand.dataset/1"
MODALITIES = ("chest_film", "dermoscopy", "photograph", "fundus", "oct", "ct", "mri")


@dataclass(frozen=True)
class PreparedData:
    """A prepared data set, opened for reading.

    Attributes:
        root: its folder.
        name: the folder's name.
        table: one row an image, every cell as text; columns ``image``, ``patient_id``, ``split`` and the source's others.
        spec: labels, attributes, bins, kind, classes and policies.
        modality: what the images are (picks augmentation recipes).
        cache: the images.
        fingerprint: the data hash: sha256 over the table's bytes and every image's content.
        patients: int64 (n,), equal for images of one patient.
        description: the whole of ``dataset.yaml``.
    """

    root: Path
    name: str
    table: pd.DataFrame
    spec: TableSpec
    modality: str
    cache: ImageCache
    fingerprint: str
    patients: npt.NDArray[np.int64]
    description: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> PreparedData:
        """Open a folder written by ``evenhand prepare``; images stay on disk and torch is not imported.

        Raises:
            InputError: not a prepared folder, an unfinished one, or table and cache do not agree with ``dataset.yaml``.
        """
        root = Path(folder)
        description = read_description(root)
        try:
            spec, expected = TableSpec.from_dict(description["spec"]), description["hashes"]
            modality = str(description["modality"])
        except (KeyError, TypeError) as error:
            raise InputError(f"{root / 'dataset.yaml'} is damaged ({error}); prepare the data set again") from error
        if not (root / "table.csv").is_file():
            raise InputError(f"prepared data set {root} has lost its table.csv; prepare it again")
        cache = ImageCache.open(root / "cache")
        table_hash = hashlib.sha256((root / "table.csv").read_bytes()).hexdigest()
        if table_hash != expected["table"]:
            raise InputError(f"{root / 'table.csv'} was changed after it was prepared; change the source table and prepare it anew")
        if cache.fingerprint != expected["images"]:
            raise InputError(f"{root / 'cache'} does not belong to {root / 'dataset.yaml'}; prepare the data set again")
        table = read_table(root / "table.csv")
        if len(table) != len(cache):
            raise InputError(f"{root} has {len(table)} rows in its table and {len(cache)} images in its cache; prepare it again")
        patients = pd.factorize(table[spec.patient])[0].astype(np.int64)
        name = root.resolve().name
        return cls(root, name, table, spec, modality, cache, data_hash(table_hash, cache.fingerprint), patients, description)

    def __len__(self) -> int:
        return len(self.table)

    def images(self, rows: npt.NDArray[np.integer[Any]] | None = None) -> CachedImages:
        """The images of some rows, of all by default."""
        return self.cache.images(rows)

    def labels(self, names: Sequence[str] | None = None) -> npt.NDArray[Any]:
        """Labels as numbers: float32 (n, L) with NaN where unlabelled, or int64 (n,) with -1 for multi-class.

        Args:
            names: label columns, all that were prepared by default.

        Raises:
            InputError: a name is not a label of this data set.
        """
        chosen = self.spec.labels if names is None else tuple(names)
        for name in chosen:
            if name not in self.spec.labels:
                raise InputError(f"'{name}' is not a label of {self.root}; {_offer(name, self.spec.labels)}")
        return label_array(self.table, replace(self.spec, labels=chosen))

    def groups(self, attributes: Sequence[str] | None = None) -> dict[str, Groups]:
        """Groups of every row by attribute, all that were prepared by default; any joint of prepared columns may be asked for.

        Raises:
            InputError: a name is not an attribute of this data set.
        """
        chosen = self.spec.attributes if attributes is None else tuple(attributes)
        for name in chosen:
            for part in name.split("*"):
                if part not in self.spec.columns:
                    raise InputError(f"'{part}' is not an attribute of {self.root}; {_offer(part, self.spec.columns)}")
        return {name: make_groups(self.table, name, self.spec.bins) for name in chosen}

    @property
    def split(self) -> npt.NDArray[np.str_]:
        """str (n,): train, val or test."""
        return self.table[self.spec.split].to_numpy(str)

    def rows(self, split: str) -> npt.NDArray[np.int64]:
        """int64: the rows of one split."""
        return np.flatnonzero(self.split == split).astype(np.int64)


def read_description(root: Path) -> dict[str, Any]:
    """``dataset.yaml`` as a dict.

    Raises:
        InputError: absent, unreadable, or of another schema.
    """
    import yaml

    path = root / "dataset.yaml"
    if not path.is_file():
        if (root / "cache").is_dir():
            raise InputError(f"the preparation of {root} was not finished; run the same 'evenhand prepare' command again to go on")
        what = "has no dataset.yaml" if root.is_dir() else "does not exist"
        raise InputError(f"{root} is not a prepared data set ({what}); make one: evenhand prepare csv TABLE OUT --images DIR --label NAME")
    try:
        description = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable YAML ({str(error).splitlines()[0]}); prepare the data set again") from error
    if not isinstance(description, dict) or description.get("schema") != SCHEMA:
        found = description.get("schema") if isinstance(description, dict) else None
        raise InputError(f"{path} has schema {found!r}, but {SCHEMA!r} is read; prepare the data set again")
    return description


def data_hash(table_hash: str, images_hash: str) -> str:
    """The fingerprint of a data set from those of its table and its images."""
    return hashlib.sha256(f"{table_hash} {images_hash}".encode()).hexdigest()


def _offer(name: str, known: Sequence[str]) -> str:
    return nearest(name, known).replace("the columns are", "known are") if known else "none were prepared"
