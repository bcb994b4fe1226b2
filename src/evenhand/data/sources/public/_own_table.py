"""What sources of the user's own files share: which column of a table is what, and names of classes as labels."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from evenhand.data.sources.base import Option, Task
from evenhand.errors import InputError, nearest

CLASS = Task("class", ("class",), "the class, by its name", "multiclass")
POSITIVE = Task("positive", ("positive",), "1 for the class that --option positive=NAME names, 0 for the others")
COLUMNS = Task("columns", (), "label columns of your own, named with --labels: 0 and 1, or one column of class names")
PATIENT = Option("patient", (), "column of patient ids; default: patient_id, patient, PatientID, subject_id or subject")
PATIENTS = ("patient_id", "patient", "patientid", "subject_id", "subject", "subjectid")
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test",
          "testing": "test"}
"""Names that splits go by -> ours."""


def pick_column(columns: Sequence[str], given: str, usual: Sequence[str], option: str) -> str | None:
    """The column that an option names, else the first with a usual name (without regard to case); None where there is none.

    Raises:
        InputError: the option names a column that is not there.

    Example:
        >>> pick_column(["File", "PatientID"], "", ["patient_id", "patientid"], "patient")
        'PatientID'
    """
    if given and given not in columns:
        raise InputError(f"option {option} is '{given}', but there is no such column; {nearest(given, list(columns))}")
    lower = {str(name).lower(): str(name) for name in reversed(list(columns))}
    return given or next((lower[name] for name in usual if name in lower), None)


def positive_label(classes: pd.Series, positive: str, task: str) -> pd.Series | None:
    """1 for one class and 0 for the others; None where no class is named and none is needed.

    Raises:
        InputError: the task needs a class and none was named, or there is no such class.
    """
    if not positive:
        if task == POSITIVE.name:
            known = ", ".join(sorted(classes.dropna().unique())[:20])
            raise InputError(f"the task 'positive' needs the class that counts as 1: --option positive=NAME; the classes are {known}")
        return None
    known_classes = sorted(str(name) for name in classes.dropna().unique())
    if positive not in known_classes:
        raise InputError(f"option positive is '{positive}', but there is no such class; {nearest(positive, known_classes)}")
    return (classes.astype("string") == positive).map({True: "1", False: "0"}, na_action="ignore").astype("string")


def with_columns(frame: pd.DataFrame, table: pd.DataFrame, taken: Sequence[str | None], notes: list[str], where: str) -> pd.DataFrame:
    """The frame with the table's other columns; one that has a name which is in use is left and said.

    Args:
        frame: what is there already.
        table: of the same rows.
        taken: columns of the table that were used otherwise.
        notes: added to.
        where: what the table is called.
    """
    rest = [name for name in table.columns if name not in taken]
    clash = [name for name in rest if name in frame]
    if clash:
        notes.append(f"columns of {where} whose names are in use were not taken over: {', '.join(clash)}; rename them to use them")
    return frame.assign(**{name: table[name].to_numpy(object) for name in rest if name not in clash})
