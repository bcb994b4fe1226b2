r"""What a search aims at: numbers from pooled validation predictions, and whether the model behind them has collapsed.

With A_g the AUC, C_g the accuracy, L_g the cross-entropy, T_g, F_g and P_g the true-positive, false-positive and
positive rate of group g:

    worst_auc            min_g A_g              worst_accuracy       min_g C_g            worst_loss   max_g L_g
    auc_gap              max_g A_g - min_g A_g  accuracy_gap         max_g C_g - min_g C_g
    equalized_odds       max(max_g T_g - min_g T_g, max_g F_g - min_g F_g)
    demographic_parity   max_g P_g - min_g P_g  utopia               sqrt(mean_g (1 - A_g)^2)
    auc, accuracy        of all rows

K groups; of several attributes the worst one counts. Multi-label: mean over labels (or the worst label). Multi-class: AUC
and rates of each class against the rest, decisions by the most probable class, then mean over classes (or the worst);
accuracy and cross-entropy are those of the classes together. Decisions of binary and multi-label tasks use a threshold
chosen on the same validation rows. Everything is computed on all rows at once; the released code of FairTune averages
metrics of shuffled batches, which gives a classifier without any gap one of 0.34.

A group counts where it has ``min_patients`` (AUC, TPR, FPR: of each class they are made of), which depends on labels and
groups alone, so every trial of a search is judged on the same groups.

A model has collapsed where its AUC is below 0.5 + tolerance, or where it predicts one class for over 99% of rows, for every
label. Its gaps are near 0, and mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from evenhand.config.search import OBJECTIVES
from evenhand.data.groups import Groups
from evenhand.errors import InputError, NonFiniteLossError
from evenhand.metrics.auc import auc
from evenhand.metrics.thresholds import choose_threshold

if TYPE_CHECKING:
    from evenhand.methods.base import Kind

MAXIMISED = frozenset({"worst_auc", "worst_accuracy", "auc", "accuracy"})
"""Objectives that are better when larger; the others are better when smaller."""

ONE_CLASS = 0.99
"""Share of rows with the commonest decision above which a model predicts one class; see `most_alike` for rare classes."""

LEAST = 1e-15
"""Least probability that a cross-entropy counts with."""

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]
_NEEDS = {
    "worst_auc": ("auc",), "auc_gap": ("auc",), "utopia": ("auc",), "worst_accuracy": ("accuracy",), "accuracy_gap": ("accuracy",),
    "worst_loss": ("loss",), "equalized_odds": ("tpr", "fpr"), "demographic_parity": ("positive_rate",),
}
_OF_CLASSES = frozenset({"accuracy", "loss"})


@dataclass(frozen=True)
class Scored:
    """What validation predictions are worth.

    Attributes:
        values: objective -> value, those that can be estimated.
        constraint: how far past the limit of collapse the model is; feasible at 0 and below.
        collapsed: in what way it has collapsed; empty where it has not.
    """

    values: dict[str, float]
    constraint: float
    collapsed: str


@dataclass(frozen=True)
class _Column:
    """One label, or one class against the rest: rows that are labelled, and their truth."""

    name: str
    rows: Rows
    truth: Bools


class Scorer:
    """Judges predictions of one set of validation rows.

    Args:
        y: labels as in `evenhand.methods.base.Split`.
        groups: attribute -> groups of the same rows.
        patient: (n,) equal for rows of one patient.
        kind: kind of the task.
        wanted: objectives that must be estimable.
        labels: names of the labels or classes, for messages.
        threshold: rule of `evenhand.metrics.choose_threshold`.
        min_patients: patients a group needs.
        tolerance: AUC above 0.5 that a model must have.
        over_labels: "mean" or "worst" over labels or classes.

    Raises:
        InputError: a wanted objective cannot be estimated on these rows.

    Example:
        >>> y = np.tile([[0.0], [1.0]], (20, 1))
        >>> sex = Groups("sex", ("f", "m"), np.repeat([0, 1], 20))
        >>> scorer = Scorer(y, {"sex": sex}, np.arange(40), "binary", ("auc_gap",))
        >>> found = scorer(np.where(y == 1, 0.8, 0.2))
        >>> found.values["auc_gap"], found.values["auc"], found.constraint < 0
        (0.0, 1.0, True)
    """

    def __init__(
        self,
        y: npt.NDArray[Any],
        groups: Mapping[str, Groups],
        patient: npt.NDArray[Any],
        kind: Kind,
        wanted: Sequence[str] = (),
        *,
        labels: Sequence[str] = (),
        threshold: str = "youden",
        min_patients: int = 10,
        tolerance: float = 0.02,
        over_labels: Literal["mean", "worst"] = "mean",
    ) -> None:
        self.kind, self.threshold, self.tolerance, self.over_labels = kind, threshold, tolerance, over_labels
        self.min_patients, self.patient, self.groups = min_patients, np.asarray(patient), groups
        self.columns, self.together = _columns(np.asarray(y), kind, labels)
        self.y = np.asarray(y)
        self.cells: dict[str, dict[tuple[int, str], tuple[Rows, ...]]] = {}
        self.left_out: dict[str, set[str]] = {}
        for measure in ("auc", "tpr", "fpr", "positive_rate", "accuracy", "loss"):
            self.cells[measure] = self._cells(measure)
        problems = [problem for name in dict.fromkeys(wanted) if (problem := self._problem(name))]
        if problems:
            raise InputError(problems[0], problems[1:])

    def __call__(self, scores: npt.NDArray[Any], names: Sequence[str] | None = None) -> Scored:
        """Judge probabilities (n, L), or (n, C) for multi-class.

        Args:
            scores: of the rows given at the start.
            names: objectives to compute; default: all that can be estimated.

        Raises:
            NonFiniteLossError: a probability is not finite.
        """
        scores = np.asarray(scores, dtype=np.float64)
        if not np.isfinite(scores).all():
            bad = int((~np.isfinite(scores)).sum())
            raise NonFiniteLossError(f"{bad} validation predictions are NaN or infinite; lower the learning rate")
        decided = self._decisions(scores)
        overall = self._overall(scores, decided)
        values = {}
        for name in OBJECTIVES if names is None else names:
            value = overall.get(name) if name in ("auc", "accuracy") else self._between(name, scores, decided)
            if value is not None:
                values[name] = value
        return Scored(values, *self._collapse(overall.get("auc"), decided))

    def notes(self) -> list[str]:
        """Sentences on groups that are too small to count."""
        return [f"{where}: {', '.join(sorted(names))} left out of the objective" for where, names in sorted(self.left_out.items())]

    def _decisions(self, scores: Array) -> list[Bools]:
        """One array of decisions a column, over its rows."""
        if self.kind == "multiclass":
            best = scores.argmax(axis=1)
            return [best[column.rows] == c for c, column in enumerate(self.columns)]
        found = []
        for k, column in enumerate(self.columns):
            own = scores[column.rows, k]
            two = column.truth.any() and not column.truth.all()
            found.append(own >= (choose_threshold(column.truth, own, self.threshold) if two else 0.5))
        return found

    def _overall(self, scores: Array, decided: list[Bools]) -> dict[str, float]:
        areas = [auc(c.truth, scores[c.rows, k]) for k, c in enumerate(self.columns) if c.truth.any() and not c.truth.all()]
        right = [self._rows_right(k, scores, decided) for k in range(len(self._sets("accuracy")))]
        found = {"accuracy": self._over(np.array([part.mean() for part in right]), maximise=True)}
        return found | ({"auc": self._over(np.array(areas), maximise=True)} if areas else {})

    def _collapse(self, area: float | None, decided: list[Bools]) -> tuple[float, str]:
        """How far past the limit, and why."""
        if self.kind == "multiclass":
            pairs = [(max(float(c.truth.mean()) for c in self.columns), max(float(part.mean()) for part in decided))]
        else:
            pairs = [(_commonest(c.truth), _commonest(part)) for c, part in zip(self.columns, decided, strict=True)]
        judged = [pair for pair in pairs if pair[0] < 1] or pairs
        common, share = min((found - most_alike(true), found) for true, found in judged)
        low = -1.0 if area is None else 0.5 + self.tolerance - area
        if low > 0:
            return low, f"AUC {area:.3f} is below {0.5 + self.tolerance:g}"
        return max(low, common), f"one class is predicted for {share:.1%} of rows" if common > 0 else ""

    def _between(self, name: str, scores: Array, decided: list[Bools]) -> float | None:
        """An objective over groups: worst over attributes, then over labels."""
        maximise = name in MAXIMISED
        by_column: dict[int, list[float]] = {}
        for k, attribute in self._places(name):
            for measure in _NEEDS[name]:
                groups = self.cells[measure][k, attribute]
                values = np.array([self._measure(measure, k, rows, scores, decided) for rows in groups])
                by_column.setdefault(k, []).append(_summary(name, values))
        if not by_column:
            return None
        worst = [min(found) if maximise else max(found) for found in by_column.values()]
        return self._over(np.array(worst), maximise)

    def _measure(self, measure: str, k: int, rows: Rows, scores: Array, decided: list[Bools]) -> float:
        if measure == "accuracy":
            return float(self._rows_right(k, scores, decided)[rows].mean())
        if measure == "loss":
            return float(self._rows_loss(k, scores)[rows].mean())
        column = self.columns[k]
        if measure == "auc":
            return auc(column.truth[rows], scores[column.rows[rows], k])
        flagged, truth = decided[k][rows], column.truth[rows]
        use = truth if measure == "tpr" else ~truth if measure == "fpr" else np.ones_like(truth)
        return float(flagged[use].mean())

    def _rows_right(self, k: int, scores: Array, decided: list[Bools]) -> Bools:
        """Whether each row's decision is right."""
        if self.kind == "multiclass":
            rows = self.together.rows
            return np.asarray(scores[rows].argmax(axis=1) == self.y[rows])
        return np.asarray(decided[k] == self.columns[k].truth)

    def _rows_loss(self, k: int, scores: Array) -> Array:
        """Cross-entropy of each row, probabilities cut at `LEAST` as in the audit."""
        if self.kind == "multiclass":
            rows = self.together.rows
            likely = scores[rows, self.y[rows]]
        else:
            column = self.columns[k]
            likely = np.where(column.truth, scores[column.rows, k], 1 - scores[column.rows, k])
        return np.asarray(-np.log(np.clip(likely, LEAST, 1.0)))

    def _over(self, values: Array, maximise: bool) -> float:
        if self.over_labels == "worst":
            return float(values.min() if maximise else values.max())
        return float(values.mean())

    def _sets(self, measure: str) -> list[_Column]:
        """The columns a measure is of: for accuracy and loss of a multi-class task, all classes together."""
        return [self.together] if self.kind == "multiclass" and measure in _OF_CLASSES else self.columns

    def _places(self, name: str) -> list[tuple[int, str]]:
        """The columns and attributes that have all measures of an objective."""
        first, *others = _NEEDS[name]
        return [place for place in self.cells[first] if all(place in self.cells[measure] for measure in others)]

    def _cells(self, measure: str) -> dict[tuple[int, str], tuple[Rows, ...]]:
        """(column, attribute) -> the rows of each group that counts, where at least two do."""
        found = {}
        for k, column in enumerate(self._sets(measure)):
            for attribute, groups in self.groups.items():
                codes, kept = groups.codes[column.rows], []
                for code, key in enumerate(groups.keys):
                    rows = np.flatnonzero(codes == code)
                    if self._enough(measure, column, rows):
                        kept.append(rows)
                    elif len(rows):
                        self.left_out.setdefault(f"{measure} of {column.name} by {attribute}", set()).add(key)
                if len(kept) >= 2:
                    found[k, attribute] = tuple(kept)
        return found

    def _enough(self, measure: str, column: _Column, rows: Rows) -> bool:
        def patients(use: Rows) -> int:
            return len(np.unique(self.patient[column.rows[use]]))

        positive, negative = rows[column.truth[rows]], rows[~column.truth[rows]]
        needed = {"auc": (positive, negative), "tpr": (positive,), "fpr": (negative,)}.get(measure, (rows,))
        return all(len(use) and patients(use) >= self.min_patients for use in needed)

    def _problem(self, name: str) -> str:
        """Why an objective cannot be estimated here; empty where it can."""
        if name == "auc":
            both = any(column.truth.any() and not column.truth.all() for column in self.columns)
            return "" if both else "objective=auc needs validation rows of both classes, but no label has them; check split and labels"
        if name == "accuracy":
            return "" if any(len(column.rows) for column in self.columns) else "objective=accuracy: no validation row has a label"
        if self._places(name):
            return ""
        if not self.groups:
            return f"objective={name} compares groups, but no attribute was chosen; give data.attributes="
        counts = []
        for attribute, groups in self.groups.items():
            sizes = np.bincount(groups.codes[groups.codes >= 0], minlength=len(groups.keys))
            said = ", ".join(f"{key} {size}" for key, size in zip(groups.keys, sizes, strict=True)) or "no group"
            counts.append(f"{attribute}: {said} validation rows")
        rule = f"{self.min_patients} patients" + (" of each class" if _NEEDS[name][0] in ("auc", "tpr") else "")
        return (
            f"objective={name} needs two groups of at least {rule} among the validation rows, and no attribute has them "
            f"({'; '.join(counts)}); choose other attributes or "
            "bins, more validation rows (data.val_fraction, outer=cv), or a lower min_patients"
        )


def _summary(name: str, values: Array) -> float:
    """Groups' values to the objective's number."""
    if name == "utopia":
        return float(np.sqrt(np.mean((1 - values) ** 2)))
    if name in ("worst_auc", "worst_accuracy"):
        return float(values.min())
    return float(values.max() if name == "worst_loss" else values.max() - values.min())


def _commonest(flags: Bools) -> float:
    return float(max(flags.mean(), 1 - flags.mean()))


def most_alike(share: float) -> float:
    """Share of equal decisions above which a model predicts one class, where the commonest class has that share of the rows.

    0.99; but a model that is right about a rare class decides alike for nearly all rows. So where the other classes have less
    than 2% of the rows, a model predicts one class if it finds fewer than half as many rows of the others as there are.

    Example:
        >>> most_alike(0.7), most_alike(0.995), most_alike(1.0)
        (0.99, 0.9975, 0.99)
    """
    return ONE_CLASS if share == 1 else max(ONE_CLASS, 1 - (1 - share) / 2)


def _columns(y: npt.NDArray[Any], kind: Kind, labels: Sequence[str]) -> tuple[list[_Column], _Column]:
    """One column a label or class, and the rows with a label as one column."""
    if kind == "multiclass":
        rows = np.flatnonzero(y >= 0)
        n = max(len(labels), int(y.max(initial=-1)) + 1)
        names = [*labels, *(f"class {k}" for k in range(len(labels), n))]
        return [_Column(names[k], rows, y[rows] == k) for k in range(n)], _Column("the classes", rows, np.ones(len(rows), dtype=bool))
    found = []
    for k, column in enumerate(y.T):
        rows = np.flatnonzero(~np.isnan(column))
        found.append(_Column(labels[k] if k < len(labels) else f"label {k}", rows, column[rows] == 1))
    return found, found[0]


def worst_value(name: str) -> float:
    """What a collapsed epoch counts as when a pruner compares trials: the worst an objective can be.

    Example:
        >>> worst_value("worst_auc"), worst_value("auc_gap"), round(worst_value("worst_loss"), 1)
        (0.0, 1.0, 34.5)
    """
    if name == "worst_loss":
        return float(-np.log(LEAST))
    return 0.0 if name in MAXIMISED else 1.0
