"""What is allowed in a table but must be said: counts of what is missing, small groups, labels with one class in a split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from evenhand.data.amounts import counted
from evenhand.data.table import TableSpec, attribute_groups, is_number, label_array, missing_rows


def table_notes(frame: pd.DataFrame, spec: TableSpec) -> list[str]:
    """One sentence for everything that is reported and not refused; for a table that `validate` accepts.

    Args:
        frame: a valid table, with ``patient_id`` and ``split`` filled.
        spec: how it is read.
    """
    notes = _label_notes(frame, spec)
    patients = frame[spec.patient] if spec.patient in frame else pd.Series(np.arange(len(frame)), index=frame.index)
    for name, groups in attribute_groups(frame, spec).items():
        n_missing = int((groups.codes < 0).sum())
        if n_missing:
            notes.append(f"attribute '{name}' is missing in {n_missing} of {len(frame)} rows ({spec.missing})")
        present = groups.codes >= 0
        counts = patients[present].groupby(groups.codes[present]).nunique()
        single = [groups.keys[int(code)] for code in counts.index[counts == 1]]
        if single:
            advice = f"; cut it into few groups, as --bins {name}={_edges(name, groups.keys)}" if _uncut(groups.keys, name, spec) else ""
            some = ", ".join(single[:8]) + (f", … ({len(single)} in all)" if len(single) > 8 else "")
            notes.append(f"attribute '{name}' has groups of one patient: {some}{advice}")
        if "*" not in name:
            several = int((pd.Series(groups.codes[present]).groupby(patients[present].to_numpy()).nunique() > 1).sum())
            if several:
                notes.append(f"{counted(several, 'patient is', 'patients are')} in more than one group of '{name}'")
    if spec.split in frame:
        absent = [split for split in ("train", "val", "test") if split not in set(frame[spec.split])]
        notes += [f"no row is in the split '{split}'" for split in absent]
    return notes


def _uncut(keys: Sequence[str], name: str, spec: TableSpec) -> bool:
    """Whether the groups are the values of a number that nobody has given edges for."""
    return "*" not in name and name not in spec.bins and len(keys) > 5 and all(is_number(key) for key in keys)


def _edges(name: str, keys: Sequence[str]) -> str:
    """Edges that a number can be cut at: 60 for ages, else its middle.

    Example:
        >>> _edges("age", ["4", "61", "80"]), _edges("fitzpatrick", ["1", "2", "5", "6"])
        ('0,60,200', '1,5,7')
    """
    numbers = sorted(float(key) for key in keys)
    if name.lower().startswith("age") and numbers[0] >= 0 and numbers[-1] < 200:
        return "0,60,200"
    return ",".join(f"{np.floor(edge):g}" for edge in (numbers[0], numbers[len(numbers) // 2], numbers[-1] + 1))


def _label_notes(frame: pd.DataFrame, spec: TableSpec) -> list[str]:
    notes = []
    labels = label_array(frame, spec)
    columns = [labels] if spec.kind == "multiclass" else list(labels.T)
    splits = frame[spec.split].to_numpy(str) if spec.split in frame else np.full(len(frame), "")
    for name, values in zip(spec.labels, columns, strict=True):
        known = values >= 0 if spec.kind == "multiclass" else ~np.isnan(values)
        if not known.all():
            notes.append(f"label '{name}' is empty in {int((~known).sum())} of {len(frame)} rows (unlabelled)")
        if len(np.unique(values[known])) < 2:
            notes.append(f"label '{name}' has one class in the whole table; it cannot be assessed")
            continue
        inside = {split: splits == split for split in ("train", "val", "test")}
        short = [split for split, rows in inside.items() if rows.any() and len(np.unique(values[known & rows])) < 2]
        if short:
            notes.append(f"label '{name}' has one class only in {', '.join(short)}")
    return notes


def drop_missing(frame: pd.DataFrame, spec: TableSpec) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Apply the policy ``drop``: rows with every attribute present, and the dropped ones with their ``reason``."""
    gone = pd.Series("", index=frame.index)
    for name in spec.columns:
        where = missing_rows(frame, name) & (gone == "").to_numpy()
        gone[where] = f"attribute '{name}' is missing"
    dropped = frame[gone != ""].assign(reason=gone[gone != ""])
    return frame[gone == ""].reset_index(drop=True), dropped
