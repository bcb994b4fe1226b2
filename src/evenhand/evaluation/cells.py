"""The numbers of one table of an audit: all groups of one attribute (or everybody), for every label, with replicates."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.evaluation.cohort import Cohort, Question
from evenhand.metrics.bootstrap import bootstrap_blocks
from evenhand.metrics.cells import BY_CLASS, METRICS, Cell, make_cell
from evenhand.metrics.intervals import Spread, acceleration_of, interval, leave_out
from evenhand.metrics.rates import Estimate

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """One group's numbers for one label.

    Attributes:
        n, n_positive, n_patients: its size, labelled rows only.
        n_unlabelled: rows without this label.
        values: metric -> point estimate, NaN where not defined.
        replicates: metric -> (B,) bootstrap replicates; (0,) of a metric that was not bootstrapped.
        counts: metric -> (rows, patients) in the denominator.
        reasons: metric -> why it is not estimable; absent where it is.
        variances: metric -> clustered variance, NaN where there is none.
        centres: metric -> (value, variance) of a less biased form that its studentised interval is centred on.
        accelerations: metric -> BCa's acceleration; empty unless ``interval`` is ``bca``.
        interval: kind of `evenhand.metrics.intervals`.
    """

    n: int
    n_positive: int
    n_patients: int
    n_unlabelled: int
    values: dict[str, float]
    replicates: dict[str, FloatArray]
    counts: dict[str, tuple[int, int]]
    reasons: dict[str, str]
    variances: dict[str, float] = field(default_factory=dict)
    centres: dict[str, tuple[float, float]] = field(default_factory=dict)
    accelerations: dict[str, float] = field(default_factory=dict)
    interval: str = "auto"

    def estimate(self, metric: str, confidence: float) -> Estimate:
        """The metric with its interval, or the reason why there is none."""
        rows = self.counts[metric][0]
        if metric in self.reasons:
            return Estimate(None, None, None, rows, self.n_positive, self.reasons[metric])
        lower, upper = self.limits(metric, confidence)
        return Estimate(self.values[metric], lower, upper, rows, self.n_positive)

    def limits(self, metric: str, confidence: float) -> tuple[float | None, float | None]:
        """Limits of an estimable metric, of the kind ``interval``; None where there are none."""
        units = self.counts[metric][1]
        centre, variance = self.centres.get(metric, (None, self.variances.get(metric, np.nan)))
        spread = Spread(
            variance=variance,
            units=units,
            patients=self.n_patients,
            acceleration=self.accelerations.get(metric, 0.0),
            centre=centre,
        )
        return interval(metric, self.values[metric], spread, self.replicates[metric], self.interval, confidence) or (None, None)

    @property
    def n_failed(self) -> int:
        """Replicates in which an estimable metric was not defined, summed over metrics."""
        return sum(int((~np.isfinite(self.replicates[name])).sum()) for name in self.values if name not in self.reasons)


def reason_for(metric: str, units: int, value: float, min_patients: int) -> str:
    """Why a metric is not estimable; empty where it is."""
    if units < min_patients:
        where = "of the smaller class" if metric in BY_CLASS else "in the denominator"
        return f"{units} patient{'s' * (units != 1)} {where}, at least {min_patients} are needed"
    return "" if np.isfinite(value) else "not defined on these rows"


def group_cell(question: Question, unit: npt.NDArray[np.int64], rows: npt.NDArray[np.bool_]) -> Cell:
    """The compiled labelled rows among ``rows``."""
    use = rows & ~np.isnan(question.y_true)
    return make_cell(
        question.y_true[use],
        question.y_score[use],
        question.decision[use],
        unit[use],
        threshold=question.threshold["value"],
        ece_bins=question.ece_bins,
    )


def measure(
    cohort: Cohort,
    codes: npt.NDArray[np.int64],
    keys: Sequence[int],
    name: str,
    *,
    metrics: Sequence[str] = METRICS,
    n_bootstrap: int,
    min_patients: int,
    seed: int,
    threads: int,
    kind: str = "auto",
    resampled: Collection[str] | None = None,
) -> list[dict[int, Measured]]:
    """Measure every group of one attribute for every label.

    Args:
        cohort: the judged rows.
        codes: (n,) group of each row; -1 is a group of its own.
        keys: the codes to measure.
        name: names the random stream.
        metrics: which to compute.
        n_bootstrap: replicates; patients are drawn within their (lowest) group.
        min_patients: needed in a denominator.
        seed: the audit's seed.
        threads: blocks of replicates at a time; does not change the result.
        kind: of interval, one of `evenhand.metrics.intervals.KINDS`.
        resampled: metrics that are bootstrapped; None: all.

    Returns:
        For each question: group code -> `Measured`.
    """
    wanted = tuple(metrics)
    drawn = tuple(name for name in wanted if resampled is None or name in resampled)
    cells = [{key: group_cell(item, cohort.patient, codes == key) for key in keys} for item in cohort.questions]
    strata = np.full(cohort.patient.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(strata, cohort.patient, codes)

    def statistic(weights: FloatArray) -> list[dict[int, dict[str, FloatArray]]]:
        return [{key: cell.values(drawn, weights) for key, cell in by_group.items()} for by_group in cells]

    asked = n_bootstrap if drawn else 0
    blocks = list(bootstrap_blocks(statistic, strata, asked, seed, name, threads=threads)) if asked else []
    return [
        {
            key: _measured(cell, [block[q][key] for block in blocks], wanted, int((codes == key).sum()), min_patients, kind)
            for key, cell in by_group.items()
        }
        for q, by_group in enumerate(cells)
    ]


def _measured(
    cell: Cell, blocks: Sequence[dict[str, FloatArray]], metrics: tuple[str, ...], n_rows: int, min_patients: int, kind: str
) -> Measured:
    values = {name: float(value[0]) for name, value in cell.values(metrics).items()}
    counts = {name: cell.denominator(name) for name in metrics}
    reasons = {}
    for name in metrics:
        reason = cell.why_undefined(name) if counts[name][1] >= min_patients else ""
        reasons[name] = reason or reason_for(name, counts[name][1], values[name], min_patients)
    return Measured(
        n=cell.n,
        n_positive=cell.n_positive,
        n_patients=cell.n_units,
        n_unlabelled=n_rows - cell.n,
        values=values,
        replicates={name: np.concatenate([np.zeros(0), *(block[name] for block in blocks if name in block)]) for name in metrics},
        counts=counts,
        reasons={name: reason for name, reason in reasons.items() if reason},
        variances={name: float(variance[0]) for name, (_, variance) in cell.moments(metrics).items()},
        centres={"ece": _moments(cell, "ece_corrected")} if "ece" in metrics else {},
        accelerations=_accelerations(cell, metrics) if kind == "bca" else {},
        interval=kind,
    )


def _moments(cell: Cell, metric: str) -> tuple[float, float]:
    value, variance = cell.moments((metric,))[metric]
    return float(value[0]), float(variance[0])


def _accelerations(cell: Cell, metrics: tuple[str, ...]) -> dict[str, float]:
    own = replace(cell, units=np.arange(cell.n_units))
    return {name: acceleration_of(found) for name, found in leave_out(lambda weights: own.values(metrics, weights), cell.n_units).items()}


def average(parts: Sequence[Measured], over: str) -> Measured:
    """The mean of every metric over classes (one-vs-rest) or seeds; estimable where it is in every part.

    Args:
        parts: numbers of the same group.
        over: ``classes`` or ``seeds``, for the reason's sentence.
    """
    reasons, metrics = {}, tuple(parts[0].values)
    for name in metrics:
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
        values={name: float(np.mean([part.values[name] for part in parts])) for name in metrics},
        replicates={name: np.mean([part.replicates[name] for part in parts], axis=0) for name in metrics},
        counts={name: (first.counts[name][0], min(part.counts[name][1] for part in parts)) for name in metrics},
        reasons=reasons,
        variances=first.variances if len(parts) == 1 else {name: _replicate_variance(parts, name) for name in metrics},
        centres=first.centres if len(parts) == 1 else _mean_centres(parts),
        accelerations={name: float(np.mean([part.accelerations[name] for part in parts])) for name in first.accelerations},
        interval=first.interval,
    )


def _mean_centres(parts: Sequence[Measured]) -> dict[str, tuple[float, float]]:
    """The mean of the calibration error's corrected form, with the variance of its replicates where these are at hand."""
    if not all("ece" in part.centres and "ece_corrected" in part.replicates for part in parts):
        return {}
    return {"ece": (float(np.mean([part.centres["ece"][0] for part in parts])), _replicate_variance(parts, "ece_corrected"))}


def _replicate_variance(parts: Sequence[Measured], metric: str) -> float:
    """Of the mean over parts, which share their patients: the bootstrap's, times u / (u - 1) for the u patients drawn from."""
    draws = np.mean([part.replicates[metric] for part in parts], axis=0)
    draws, units = draws[np.isfinite(draws)], max(parts[0].n_patients, 2)
    return float(draws.var(ddof=1)) * units / (units - 1) if len(draws) > 1 else float("nan")


def row_json(measured: Measured, confidence: float) -> dict[str, Any]:
    """A group's row of audit.json."""
    sizes = {"n": measured.n, "n_positive": measured.n_positive, "n_patients": measured.n_patients, "n_unlabelled": measured.n_unlabelled}
    return {**sizes, **{name: measured.estimate(name, confidence).to_json() for name in measured.values}}
