"""What is judged: the test rows with their outcomes, decisions, patients and groups, and where thresholds came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from evenhand.config.schema import AuditConfig
from evenhand.data.groups import Groups
from evenhand.errors import TableError
from evenhand.evaluation.attributes import audit_groups, rows_kept
from evenhand.evaluation.notes import cohort_notes
from evenhand.evaluation.predictions import Kind, Outcome, outcomes_of
from evenhand.metrics.thresholds import choose_threshold, parse_rule


@dataclass(frozen=True)
class Question:
    """One outcome on the judged rows.

    Attributes:
        name: label or class.
        y_true: float64 (n,), NaN where unlabelled.
        y_score: float64 (n,).
        decision: float64 (n,) in {0, 1}.
        threshold: the JSON record of how decisions were made.
        ece_bins: equal-width bins of the calibration error.
    """

    name: str
    y_true: npt.NDArray[np.float64]
    y_score: npt.NDArray[np.float64]
    decision: npt.NDArray[np.float64]
    threshold: dict[str, Any]
    ece_bins: int = 10


@dataclass(frozen=True)
class Cohort:
    """The judged rows.

    Attributes:
        kind: binary, multiclass or multilabel.
        questions: one for each label or class.
        groups: attribute -> groups of the judged rows.
        patient: int64 (n,) patient codes, in sorted order of the ids.
        n_dropped: rows left out by missing=drop.
        notes: sentences for the report.
        frame: the judged rows of the table.
    """

    kind: Kind
    questions: tuple[Question, ...]
    groups: dict[str, Groups]
    patient: npt.NDArray[np.int64]
    n_dropped: int
    notes: tuple[str, ...]
    frame: pd.DataFrame

    @property
    def n_patients(self) -> int:
        return len(np.unique(self.patient))


def make_cohort(
    frame: pd.DataFrame,
    *,
    labels: Sequence[str],
    classes: Sequence[str],
    attributes: Sequence[str],
    bins: Mapping[str, Sequence[float]],
    missing: str,
    config: AuditConfig,
    thresholds: Mapping[str, float] | None,
) -> Cohort:
    """Check a table of predictions and take out what is judged; see `evenhand.evaluation.evaluate` for the arguments."""
    parse_rule(config.threshold)
    frame = frame.reset_index(drop=True)
    one_seed(frame)
    kind, outcomes = outcomes_of(frame, labels, classes)
    groups = audit_groups(frame, attributes, bins, config.max_groups)
    kept = rows_kept(groups, missing, len(frame))
    test, val, notes = split_rows(frame, kept)
    questions = tuple(_question(item, test, val, config, (thresholds or {}).get(item.name)) for item in outcomes)
    if all(len(np.unique(item.y_true[~np.isnan(item.y_true)])) < 2 for item in questions):
        first = questions[0].y_true
        what = "no labelled row" if np.isnan(first).all() else f"only the value {first[~np.isnan(first)][0]:g}"
        raise TableError(
            f"every label has one class in the {len(first)} judged rows ('{questions[0].name}' has {what}); "
            "an audit needs cases and non-cases"
        )
    patient, note = patient_ids(frame)
    judged = {name: item.take(test) for name, item in groups.items()}
    for name, item in judged.items():
        if (item.codes < 0).all():
            raise TableError(f"attribute '{name}' is missing in all {len(item)} judged rows; fill the column or leave the attribute out")
    dropped = int((~kept).sum())
    notes += note + ([f"{dropped} rows with a missing attribute were left out (missing=drop)"] if dropped else [])
    codes = np.unique(patient[test], return_inverse=True)[1].astype(np.int64)
    notes += _threshold_notes(questions)
    notes += cohort_notes(frame[test], {item.name: item.y_true for item in questions}, judged, codes)
    return Cohort(kind, questions, judged, codes, dropped, tuple(notes), frame[test])


def _threshold_notes(questions: Sequence[Question]) -> list[str]:
    """Why thresholds were not chosen: once where it is the same for all labels, else with the labels."""
    said: dict[str, list[str]] = {}
    for item in questions:
        if item.threshold["note"]:
            said.setdefault(str(item.threshold["note"]), []).append(item.name)
    return [note if len(names) == len(questions) else f"{', '.join(names)}: {note}" for note, names in said.items()]


def judged_rows(frame: pd.DataFrame, groups: Mapping[str, Groups], missing: str) -> npt.NDArray[np.bool_]:
    """Which rows of a checked table are judged: the test rows, less those that ``missing=drop`` leaves out."""
    return split_rows(frame, rows_kept(groups, missing, len(frame)))[0]


def one_seed(frame: pd.DataFrame) -> None:
    """Refuse a table that holds several seeds, where every image occurs several times."""
    if "seed" in frame.columns and frame["seed"].nunique() > 1:
        raise TableError(
            f"the table holds {frame['seed'].nunique()} seeds, so every image occurs several times; "
            "audit one seed at a time, or use `evenhand compare`"
        )


def split_rows(frame: pd.DataFrame, kept: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], list[str]]:
    """(judged rows, validation rows, notes): test rows are judged, all rows where there is no split; rows not kept never are."""
    if "split" not in frame.columns or frame["split"].isna().all():
        return kept, np.zeros(len(frame), dtype=bool), []
    split = frame["split"].astype("string").str.strip().str.lower().fillna("").to_numpy(object)
    val = np.isin(split, ["val", "valid", "validation"])
    if (split == "test").any():
        return kept & (split == "test"), kept & val, []
    names = sorted(set(split))
    if len(names) > 1 or val.any() or names == ["train"]:
        raise TableError(f"column 'split' has no row 'test' but {', '.join(map(repr, names))}; mark the rows to judge as 'test'")
    return kept, np.zeros(len(frame), dtype=bool), [f"all rows are of the split '{names[0]}'; they are judged as test rows"]


def patient_ids(frame: pd.DataFrame) -> tuple[npt.NDArray[Any], list[str]]:
    """(id of each row's patient, notes); a row without an id is a patient of its own."""
    if "patient_id" not in frame.columns:
        return np.arange(len(frame)), [
            "no patient column: every row is taken for a patient of its own, so intervals are too narrow if patients have several images"
        ]
    ids = frame["patient_id"].astype("string").str.strip()
    empty = ids.isna() | (ids == "")
    if not empty.any():
        return ids.to_numpy(str), []
    own = pd.Series([f"\x00row {row}" for row in range(len(frame))], index=frame.index, dtype="string")
    return ids.where(~empty, own).to_numpy(str), [f"{int(empty.sum())} rows have no patient id; each is taken for a patient of its own"]


def _question(
    outcome: Outcome, test: npt.NDArray[np.bool_], val: npt.NDArray[np.bool_], config: AuditConfig, given: float | None
) -> Question:
    truth, score = outcome.y_true[test], outcome.y_score[test]
    if outcome.decision is not None:
        record: dict[str, Any] = {"value": None, "rule": outcome.source, "source": "decisions", "n": 0, "n_positive": 0, "note": None}
        return Question(outcome.name, truth, score, outcome.decision[test], record, config.ece_bins)
    record = _threshold(outcome, val, config.threshold, given)
    threshold: float = record["value"]
    return Question(outcome.name, truth, score, (score >= threshold).astype(float), record, config.ece_bins)


def _threshold(outcome: Outcome, val: npt.NDArray[np.bool_], rule: str, given: float | None) -> dict[str, Any]:
    """How the threshold was found: source is given, fixed, val, or default (0.5, with a note)."""
    name, number = parse_rule(rule)
    if given is not None:
        return {"value": float(given), "rule": rule, "source": "given", "n": 0, "n_positive": 0, "note": None}
    if name == "fixed":
        return {"value": number, "rule": rule, "source": "fixed", "n": 0, "n_positive": 0, "note": None}
    rows = val & ~np.isnan(outcome.y_true)
    truth, score = outcome.y_true[rows], outcome.y_score[rows]
    record = {"rule": rule, "n": int(rows.sum()), "n_positive": int(truth.sum())}
    if not val.any():
        return {"value": 0.5, **record, "source": "default", "note": "there are no validation rows, so the threshold is 0.5"}
    if len(np.unique(truth)) < 2:
        note = f"the {len(truth)} labelled validation rows have one class, so the threshold falls back to 0.5"
        return {"value": 0.5, **record, "source": "default", "note": note}
    return {"value": choose_threshold(truth, score, rule), **record, "source": "val", "note": None}
