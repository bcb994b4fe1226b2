"""The numbers of one table of an audit: all groups of one attribute (or everybody), for every label, with replicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.evaluation.cohort import Cohort, Question
from evenhand.metrics.bootstrap import bootstrap_blocks, percentile_interval
from evenhand.metrics.cells import METRICS, Cell, make_cell
from evenhand.metrics.rates import Estimate, wilson

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """One group's numbers for one label.

    Attributes:
        n, n_positive, n_patients: its size, labelled rows only.
        n_unlabelled: rows without this label.
        values: metric -> point estimate, NaN where not defined.
        replicates: metric -> (B,) bootstrap replicates.
        counts: metric -> (rows, patients) in the denominator.
        reasons: metric -> why it is not estimable; absent where it is.
    """

    n: int
    n_positive: int
    n_patients: int
    n_unlabelled: int
    values: dict[str, float]
    replicates: dict[str, FloatArray]
    counts: dict[str, tuple[int, int]]
    reasons: dict[str, str]

    def estimate(self, metric: str, confidence: float) -> Estimate:
        """The metric with its percentile interval, or the reason why there is none."""
        rows, units = self.counts[metric]
        if metric in self.reasons:
            return Estimate(None, None, None, rows, self.n_positive, self.reasons[metric])
        value = self.values[metric]
        lower, upper = limits(value, self.replicates[metric], units, confidence)
        return Estimate(value, lower, upper, rows, self.n_positive)

    @property
    def n_failed(self) -> int:
        """Replicates in which an estimable metric was not defined, summed over metrics."""
        return sum(int((~np.isfinite(self.replicates[name])).sum()) for name in self.values if name not in self.reasons)


def limits(value: float, replicates: FloatArray, units: int, confidence: float) -> tuple[float | None, float | None]:
    """Percentile limits; Wilson's where every replicate is the same share 0 or 1; None without replicates."""
    lower, upper, _ = percentile_interval(replicates, confidence)
    if not np.isfinite(lower):
        return None, None
    if lower == upper == value and value in (0.0, 1.0):
        return wilson(value, units, confidence)
    return min(lower, value), max(upper, value)


def reason_for(metric: str, units: int, value: float, min_patients: int) -> str:
    """Why a metric is not estimable; empty where it is."""
    if units < min_patients:
        where = "of the smaller class" if metric in ("auc", "balanced_accuracy") else "in the denominator"
        return f"{units} patient{'s' * (units != 1)} {where}, at least {min_patients} are needed"
    return "" if np.isfinite(value) else "not defined on these rows"


def group_cell(question: Question, unit: npt.NDArray[np.int64], rows: npt.NDArray[np.bool_]) -> Cell:
    """The compiled labelled rows among ``rows``."""
    use = rows & ~np.isnan(question.y_true)
    return make_cell(question.y_true[use], question.y_score[use], question.decision[use], unit[use])


def measure(
    cohort: Cohort,
    codes: npt.NDArray[np.int64],
    keys: Sequence[int],
    name: str,
    *,
    n_bootstrap: int,
    min_patients: int,
    seed: int,
    threads: int,
) -> list[dict[int, Measured]]:
    """Measure every group of one attribute for every label.

    Args:
        cohort: the judged rows.
        codes: (n,) group of each row; -1 is a group of its own.
        keys: the codes to measure.
        name: names the random stream.
        n_bootstrap: replicates; patients are drawn within their (lowest) group.
        min_patients: needed in a denominator.
        seed: the audit's seed.
        threads: blocks of replicates at a time; does not change the result.

    Returns:
        For each question: group code -> `Measured`.
    """
    cells = [{key: group_cell(item, cohort.patient, codes == key) for key in keys} for item in cohort.questions]
    strata = np.full(cohort.patient.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(strata, cohort.patient, codes)

    def statistic(weights: FloatArray) -> list[dict[int, dict[str, FloatArray]]]:
        return [{key: cell.values(METRICS, weights) for key, cell in by_group.items()} for by_group in cells]

    blocks = list(bootstrap_blocks(statistic, strata, n_bootstrap, seed, name, threads=threads)) if n_bootstrap else []
    return [
        {
            key: _measured(cell, [block[q][key] for block in blocks], int((codes == key).sum()), min_patients)
            for key, cell in by_group.items()
        }
        for q, by_group in enumerate(cells)
    ]


def _measured(cell: Cell, blocks: Sequence[dict[str, FloatArray]], n_rows: int, min_patients: int) -> Measured:
    values = {name: float(value[0]) for name, value in cell.values(METRICS).items()}
    counts = {name: cell.denominator(name) for name in METRICS}
    reasons = {name: reason_for(name, counts[name][1], values[name], min_patients) for name in METRICS}
    return Measured(
        n=cell.n,
        n_positive=cell.n_positive,
        n_patients=cell.n_units,
        n_unlabelled=n_rows - cell.n,
        values=values,
        replicates={name: np.concatenate([block[name] for block in blocks]) if blocks else np.zeros(0) for name in METRICS},
        counts=counts,
        reasons={name: reason for name, reason in reasons.items() if reason},
    )


def average(parts: Sequence[Measured], over: str) -> Measured:
    """The mean of every metric over classes (one-vs-rest) or seeds; estimable where it is in every part.

    Args:
        parts: numbers of the same group.
        over: ``classes`` or ``seeds``, for the reason's sentence.
    """
    reasons = {}
    for name in METRICS:
        lacking = [part.reasons[name] for part in parts if name in part.reasons]
        if lacking:
            reasons[name] = (
                f"not estimable in {len(lacking)} of {len(parts)} {over}: {lacking[0]}"
                if len(set(lacking)) > 1 or len(lacking) < len(parts)
                else lacking[0]
            )
    first = parts[0]
    return Measured(
        n=first.n,
        n_positive=sum(part.n_positive for part in parts) if over == "classes" else first.n_positive,
        n_patients=first.n_patients,
        n_unlabelled=first.n_unlabelled,
        values={name: float(np.mean([part.values[name] for part in parts])) for name in METRICS},
        replicates={name: np.mean([part.replicates[name] for part in parts], axis=0) for name in METRICS},
        counts={name: (first.counts[name][0], min(part.counts[name][1] for part in parts)) for name in METRICS},
        reasons=reasons,
    )


def row_json(measured: Measured, confidence: float) -> dict[str, Any]:
    """A group's row of audit.json."""
    sizes = {"n": measured.n, "n_positive": measured.n_positive, "n_patients": measured.n_patients, "n_unlabelled": measured.n_unlabelled}
    return {**sizes, **{name: measured.estimate(name, confidence).to_json() for name in METRICS}}
