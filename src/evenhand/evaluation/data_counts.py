"""Who is in a prepared data set, and how often each label occurs in each group: counts, prevalences and odds ratios by split.

Patients are what is independent: intervals take all images of a patient together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.data.groups import Groups
from evenhand.evaluation.small_cells import shown_count, withhold
from evenhand.metrics.intervals import clustered_wilson, student
from evenhand.metrics.means import make_value_cell

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
Json = dict[str, Any]

ALL = "all"
MISSING = "(missing)"
OVERALL = "(everyone)"
SMALL = "small counts are not shown"
LEAST_PATIENTS = 10
"""Patients that an interval or a mean needs."""


@dataclass(frozen=True)
class LabelColumn:
    """One yes-or-no question about every image.

    Attributes:
        name: a label, or ``label = class`` of a multi-class one.
        values: bool (n,), anything where unknown.
        known: bool (n,), whether the row is labelled.
    """

    name: str
    values: BoolArray
    known: BoolArray


@dataclass(frozen=True)
class CardRows:
    """The rows of a data set as the card reads them.

    Attributes:
        split: str (n,).
        patients: int64 (n,).
        groups: attribute -> groups.
        least: counts of patients below this are not shown.
    """

    split: npt.NDArray[np.str_]
    patients: IntArray
    groups: Mapping[str, Groups]
    least: int = 5

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have rows, in order; all rows together last, where there are several."""
        found = tuple(name for name in ("train", "val", "test") if (self.split == name).any())
        return (*found, ALL) if len(found) > 1 else found

    def inside(self, split: str) -> BoolArray:
        """Rows of a split, or all."""
        return np.ones(len(self.split), bool) if split == ALL else np.asarray(self.split == split)

    def members(self, attribute: str) -> dict[str, BoolArray]:
        """Group key -> its rows; those without the attribute, where there are any; everyone last."""
        groups = self.groups[attribute]
        rows = {key: groups.codes == code for code, key in enumerate(groups.keys)}
        missing = groups.codes < 0
        return {**rows, **({MISSING: missing} if missing.any() else {}), OVERALL: np.ones(len(self.split), bool)}


def label_columns(labels: npt.NDArray[Any], kind: str, names: Sequence[str], classes: Sequence[str]) -> list[LabelColumn]:
    """Labels as `PreparedData.labels` gives them, as yes-or-no columns: one a label, or one a class."""
    if kind == "multiclass":
        return [LabelColumn(f"{names[0]} = {name}", labels == code, labels >= 0) for code, name in enumerate(classes)]
    return [LabelColumn(name, labels[:, k] == 1, ~np.isnan(labels[:, k])) for k, name in enumerate(names)]


def n_patients(patients: IntArray, rows: BoolArray) -> int:
    """How many patients the rows are of."""
    return len(np.unique(patients[rows]))


def size_table(rows: CardRows, attribute: str) -> Json:
    """Images and patients of every group and split: group -> split -> ``n``, ``n_patients``; small cells are words."""
    members, splits = rows.members(attribute), rows.splits
    images = np.array([[int((own & rows.inside(split)).sum()) for split in splits] for own in members.values()])
    people = np.array([[n_patients(rows.patients, own & rows.inside(split)) for split in splits] for own in members.values()])
    hidden = withhold(people, (people > 0) & (people < rows.least), _without_group(members), rows.least)
    return {
        key: {
            split: {
                "n": shown_count(images[i, j], hidden[i, j], rows.least),
                "n_patients": shown_count(people[i, j], hidden[i, j], rows.least),
            }
            for j, split in enumerate(splits)
        }
        for i, key in enumerate(members)
    }


def _without_group(members: Mapping[str, BoolArray]) -> list[int]:
    return [k for k, key in enumerate(members) if key == MISSING]


def prevalence_table(rows: CardRows, column: LabelColumn, attribute: str) -> Json:
    """How often a label occurs in every group and split, with patient-clustered intervals; small cells are words.

    A cell is small where fewer patients than ``least`` have the label, or do not have it, but some do.

    Returns:
        group -> split -> ``n, n_patients, n_positive, value, lower, upper`` (and ``reason`` where there is no value).
    """
    members, splits = rows.members(attribute), rows.splits
    shape = (len(members), len(splits))
    cells = [[own & rows.inside(split) & column.known for split in splits] for own in members.values()]
    sizes, positives, sensitive = np.zeros(shape, int), np.zeros(shape, int), np.zeros(shape, bool)
    for i, line in enumerate(cells):
        for j, cell in enumerate(line):
            sizes[i, j], positives[i, j] = cell.sum(), (cell & column.values).sum()
            sides = [n_patients(rows.patients, cell & side) for side in (column.values, ~column.values)]
            sensitive[i, j] = any(0 < side < rows.least for side in sides)
    hidden = withhold(sizes, sensitive, _without_group(members))
    return {
        key: {split: _prevalence(rows, column, cells[i][j], int(positives[i, j]), bool(hidden[i, j])) for j, split in enumerate(splits)}
        for i, key in enumerate(members)
    }


def _prevalence(rows: CardRows, column: LabelColumn, cell: BoolArray, positive: int, hidden: bool) -> Json:
    n, people = int(cell.sum()), n_patients(rows.patients, cell)
    none = {"value": None, "lower": None, "upper": None}
    if not n:
        return {"n": 0, "n_patients": 0, "n_positive": 0, **none, "reason": "no rows"}
    if hidden:
        small = rows.least > people
        return {
            "n": shown_count(n, small, rows.least),
            "n_patients": shown_count(people, small, rows.least),
            "n_positive": shown_count(positive, True, rows.least),
            **none,
            "reason": SMALL,
        }
    return {"n": n, "n_patients": people, "n_positive": positive, **share(column.values[cell], rows.patients[cell])}


def share(values: BoolArray, patients: IntArray) -> Json:
    """A share of rows with Wilson's interval, patients as clusters.

    Example:
        >>> found = share(np.arange(20) < 5, np.arange(20))
        >>> found["value"], round(found["lower"], 3), round(found["upper"], 3)
        (0.25, 0.104, 0.49)
    """
    cell = make_value_cell(values.astype(np.float64), np.unique(patients, return_inverse=True)[1].astype(np.int64))
    value, variance = (float(item[0]) for item in cell.moments(("mean",))["mean"])
    if cell.n_units < 2:
        return {"value": value, "lower": None, "upper": None}
    lower, upper = clustered_wilson(value, variance, cell.n_units)
    return {"value": value, "lower": min(lower, value), "upper": max(upper, value)}


def mean(values: npt.NDArray[np.floating[Any]], patients: IntArray) -> Json:
    """A mean over rows with Student's interval, patients as clusters; null with a reason below 10 patients."""
    cell = make_value_cell(values.astype(np.float64), np.unique(patients, return_inverse=True)[1].astype(np.int64))
    base = {"n": cell.n, "n_patients": cell.n_units}
    if cell.n_units < LEAST_PATIENTS:
        return {**base, "value": None, "lower": None, "upper": None, "reason": f"fewer than {LEAST_PATIENTS} patients"}
    value, variance = (float(item[0]) for item in cell.moments(("mean",))["mean"])
    half = student(0.975, cell.n_units - 1) * float(np.sqrt(variance))
    return {**base, "value": value, "lower": value - half, "upper": value + half}


def association_table(rows: CardRows, column: LabelColumn, attribute: str, prevalences: Json) -> Json:
    """The odds of the label in a group over those in the other groups, by split: group -> split -> estimate.

    Of two groups the first alone is given, as the other's is its inverse. Where a prevalence is withheld there is no ratio.
    """
    members = {key: own for key, own in rows.members(attribute).items() if key not in (MISSING, OVERALL)}
    keys = list(members)[:1] if len(members) == 2 else list(members)
    out: Json = {key: {} for key in keys if len(members) > 1}
    for key in out:
        for split in rows.splits:
            others = [other for other in members if other != key]
            withheld = [name for name in (key, *others) if prevalences[name][split].get("reason") == SMALL]
            if key in withheld or (withheld and len(others) == 1):
                out[key][split] = {"value": None, "lower": None, "upper": None, "reason": SMALL}
                continue
            inside = rows.inside(split) & column.known
            rest = np.logical_or.reduce([members[other] for other in others]) & inside
            out[key][split] = odds_ratio(column.values, members[key] & inside, rest, rows.patients)
    return out


def odds_ratio(values: BoolArray, group: BoolArray, rest: BoolArray, patients: IntArray) -> Json:
    r"""The odds ratio of a label between two sets of rows, with a patient-clustered interval on the logarithmic scale.

    To first order the log odds of a share p of n rows moves with a patient by :math:`\sum (y - p) / (n p (1 - p))`; the variance
    is the sum of squares over patients of what they do to both sides, times u / (u - 1): that of a logistic regression on the group
    with cluster-robust errors. Where a cell is empty, half a patient is added to each of the four (Haldane and Anscombe), and
    Woolf's variance over patients is taken; ``note`` says so.

    Args:
        values: bool (n,).
        group, rest: rows of the two sides.
        patients: int (n,).

    Example:
        >>> y = np.r_[np.ones(30), np.zeros(10), np.ones(10), np.zeros(30)].astype(bool)
        >>> found = odds_ratio(y, np.arange(80) < 40, np.arange(80) >= 40, np.arange(80))
        >>> round(found["value"], 6), round(found["lower"], 2), round(found["upper"], 2)
        (9.0, 3.2, 25.32)

    References:
        Woolf, Annals of Human Genetics 19 (1955) 251; Liang and Zeger, Biometrika 73 (1986) 13.
    """
    from scipy.special import stdtr

    people = [n_patients(patients, side) for side in (group, rest)]
    if min(people) < LEAST_PATIENTS:
        return {"value": None, "lower": None, "upper": None, "reason": f"fewer than {LEAST_PATIENTS} patients in or beside the group"}
    cells = [side & part for side in (group, rest) for part in (values, ~values)]
    _, unit = np.unique(patients, return_inverse=True)
    note = {}
    if all(cell.any() for cell in cells):
        a, b, c, d = (float(cell.sum()) for cell in cells)
        log_ratio = np.log(a * d / (b * c))
        influence = np.zeros(len(values))
        for side, sign in ((group, 1.0), (rest, -1.0)):
            p, n = values[side].mean(), side.sum()
            influence[side] += sign * (values[side] - p) / (n * p * (1 - p))
        pulls = np.bincount(unit, influence)
        units = n_patients(patients, group | rest)
        variance = float(pulls @ pulls) * units / (units - 1)
    else:
        a, b, c, d = (n_patients(patients, cell) + 0.5 for cell in cells)
        log_ratio, variance = np.log(a * d / (b * c)), 1 / a + 1 / b + 1 / c + 1 / d
        note = {"note": "a cell is empty: half a patient was added to each"}
    freedom, error = sum(people) - 1, float(np.sqrt(variance))
    half = student(0.975, freedom) * error
    p = 2 * float(stdtr(freedom, -abs(log_ratio) / error)) if error > 0 else 1.0
    limits = {"value": float(np.exp(log_ratio)), "lower": float(np.exp(log_ratio - half)), "upper": float(np.exp(log_ratio + half))}
    return {**limits, "p": p, **note}


def ages(values: npt.NDArray[np.float64], patients: IntArray, least: int, width: float = 5.0) -> Json | None:
    """Patients by age in bins of five years (one age a patient, the first), joined where they are few; None without numbers."""
    first = np.unique(patients, return_index=True)[1]
    known = values[first][np.isfinite(values[first])]
    if len(known) < LEAST_PATIENTS:
        return None
    low, high = np.floor(known.min() / width), np.floor(known.max() / width) + 1
    narrow = width * np.arange(low, high + 1)
    counts, edges = _joined(np.histogram(known, narrow)[0], narrow, least)
    missing = len(first) - len(known)
    return {
        "edges": [float(edge) for edge in edges],
        "patients": [int(count) for count in counts],
        "quartiles": [float(value) for value in np.quantile(known, [0.25, 0.5, 0.75])],
        "n_patients": len(known),
        "n_missing": shown_count(missing, 0 < missing < least, least),
    }


def _joined(counts: npt.NDArray[np.integer[Any]], edges: npt.NDArray[np.float64], least: int) -> tuple[list[int], list[float]]:
    """Counts and edges of bins, those with few patients joined with the next (the last with the one before).

    Example:
        >>> _joined(np.array([2, 9, 0, 7, 1]), np.arange(6.0), 5)
        ([11, 8], [0.0, 2.0, 5.0])
    """
    found: list[int] = []
    ends: list[float] = [float(edges[0])]
    own = 0
    for count, end in zip(counts, edges[1:], strict=True):
        own += int(count)
        if own >= least:
            found.append(own)
            ends.append(float(end))
            own = 0
    if own or ends[-1] < edges[-1]:
        if found:
            found[-1] += own
            ends[-1] = float(edges[-1])
        else:
            found, ends = [own], [float(edges[0]), float(edges[-1])]
    return found, ends
