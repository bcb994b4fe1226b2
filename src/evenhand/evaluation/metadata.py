"""A second table joined to the table of scores: attributes that stand elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from evenhand.errors import ConfigError, TableError
from evenhand.evaluation.coding import value_texts
from evenhand.evaluation.predictions import need_column


@dataclass(frozen=True)
class Joined:
    """A table with its metadata.

    Attributes:
        frame: the rows of the table, in their order, with the further columns of the metadata.
        notes: sentences about what did not match.
        record: for the provenance: the key, the columns that came, the counts.
    """

    frame: pd.DataFrame
    notes: tuple[str, ...]
    record: dict[str, Any]


def key_columns(on: str | None, table: list[str], other: list[str]) -> tuple[str, str]:
    """The key's column in both tables: ``ID``, ``LEFT=RIGHT``, or the only column that both have.

    Raises:
        ConfigError: no column, or several, are in both tables and none was named.
    """
    if on is not None:
        left, sign, right = on.partition("=")
        return (left.strip(), right.strip()) if sign and on not in table else (on, on)
    both = [name for name in table if name in other]
    if len(both) == 1:
        return both[0], both[0]
    found = f"{len(both)} columns are in both ({', '.join(both[:8])})" if both else "no column is in both"
    raise ConfigError(f"the table and its metadata need a key, and {found}; name it with --on ID, or --on LEFT=RIGHT where names differ")


def join_metadata(frame: pd.DataFrame, metadata: pd.DataFrame, on: str | None = None) -> Joined:
    """Add the columns of a second table by a key; every row of the first table stays, in its order.

    The metadata has one row a key; the table may have many rows of one key (several images of a patient). Keys are
    compared as text without blanks around. A row whose key the metadata does not have gets empty cells, and is counted.
    A column that is in both tables is the table's own; the metadata's is left out, and said.

    Args:
        frame: the table of scores.
        metadata: one row a key.
        on: the key, ``ID`` or ``LEFT=RIGHT``; None: the only column that both have.

    Raises:
        TableError: no such column, a key twice in the metadata, or no key in common.
        ConfigError: no key named, and none or several in both.

    Example:
        >>> scores = pd.DataFrame({"id": ["a", "b", "a"], "p": [0.1, 0.2, 0.3]})
        >>> join_metadata(scores, pd.DataFrame({"id": ["b", "a"], "sex": ["f", "m"]}), "id").frame.sex.tolist()
        ['m', 'f', 'm']
    """
    left, right = key_columns(on, [str(name) for name in frame.columns], [str(name) for name in metadata.columns])
    own = value_texts(need_column(frame, left, "key of the join"))
    keys = value_texts(need_column(metadata, right, "key of the metadata"))
    known = (keys != "").to_numpy(bool)
    twice = np.flatnonzero(keys.duplicated(keep=False).to_numpy(bool) & known)
    if len(twice):
        raise TableError(
            f"column '{right}' of the metadata has {keys.iloc[twice].nunique()} values that stand in several rows; "
            "the metadata needs one row a key",
            [f"row {row + 1} of the metadata repeats a key" for row in twice[1:]],
        )
    position = pd.Index(keys[known]).get_indexer(pd.Index(own))
    position[(own == "").to_numpy(bool)] = -1
    absent = position < 0
    if absent.all():
        raise TableError(
            f"none of the {own[own != ''].nunique()} values of column '{left}' is in column '{right}' of the metadata; "
            "check --on, and that both spell the keys alike"
        )
    both = [str(name) for name in metadata.columns if name in frame.columns and name != right]
    added = [name for name in metadata.columns if name not in frame.columns and name != right]
    # a position of -1 is in no index, so those rows come back empty
    values = metadata.loc[known, added].reset_index(drop=True).reindex(position).reset_index(drop=True)
    unused = int(known.sum() - len(np.unique(position[~absent])))
    record = {"on": [left, right], "columns": [str(name) for name in added], "own_columns_kept": both,
              "rows_without": int(absent.sum()), "keys_unused": unused}
    return Joined(pd.concat([frame.reset_index(drop=True), values], axis=1), tuple(_notes(own, absent, both, left)), record)


def _notes(own: pd.Series, absent: np.ndarray[Any, Any], both: list[str], key: str) -> list[str]:
    notes = []
    if absent.any():
        n_keys = own[absent & (own != "").to_numpy(bool)].nunique()
        notes.append(f"{int(absent.sum())} rows ({n_keys} values of '{key}') have no row in the metadata; their attributes are missing")
    if both:
        notes.append(f"columns {', '.join(both)} are in the table and in the metadata; the table's own were used")
    return notes
