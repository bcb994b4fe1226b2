"""The AUC with which scores tell the groups of an attribute apart, overall or within labels, with patient-clustered intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.methods.base import Split
from evenhand.methods.editing.attribute_head import LEAST
from evenhand.methods.fitting import label_columns
from evenhand.metrics.auc import RankedRows, rank_rows, stratified_auc
from evenhand.metrics.bootstrap import bootstrap_blocks, percentile_interval

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.bool_]
Stratum = tuple[RankedRows, npt.NDArray[np.int64]]
CONFIDENCE = 0.95
BELOW_HALF = "below 0.5 with the whole interval"
"""Of an AUC that no head can have by reading nothing: scores that come out the wrong way round on rows that no head was fitted on."""
MARGIN = 0.05


@dataclass(frozen=True)
class Draws:
    """A value with its bootstrap replicates."""

    value: float
    replicates: Array

    @property
    def interval(self) -> tuple[float, float] | None:
        """Lower and upper limit, None without replicates."""
        lower, upper, _ = percentile_interval(self.replicates, CONFIDENCE)
        return (lower, upper) if bool(np.isfinite(lower) and np.isfinite(upper)) else None

    @property
    def below_half(self) -> bool:
        """Whether the value lies more than `MARGIN` and the whole interval below 0.5; see `BELOW_HALF`.

        On thousands of rows one interval in forty of an attribute that is truly hidden ends just below 0.5: that is not meant.
        """
        return self.interval is not None and self.interval[1] < 0.5 and self.value < 0.5 - MARGIN


class GroupAUC:
    """AUCs of one attribute on the rows of one split.

    Two groups have one AUC; of more it is the mean over the groups of each against the rest. A group counts where at
    least 10 patients are in it and 10 are not. All instances with one seed share the bootstrap's draws, so that
    differences between their replicates are paired.

    Args:
        split: the rows.
        attribute: whose groups are told apart.
        seed: of the bootstrap.
        n_bootstrap: replicates; with 0 there are values and no intervals.
        part: (n,) which heads read a row; scores of one head are not on the scale of another's, so only pairs of rows in one
            part are compared. Default: one head read all rows.

    Attributes:
        draws: name -> value and replicates, of every estimate that could be made.
    """

    def __init__(
        self, split: Split, attribute: str, seed: int, n_bootstrap: int, part: npt.NDArray[np.int64] | None = None
    ) -> None:
        self.split = split
        self.part = np.zeros(len(split), dtype=np.int64) if part is None else part
        self.codes = split.groups[attribute].codes
        self.known: Rows = self.codes >= 0
        _, self.unit = np.unique(split.patient, return_inverse=True)
        self.seed, self.n_bootstrap = seed, n_bootstrap
        self.draws: dict[str, Draws] = {}

    def overall(self, scores: Array) -> dict[str, Any]:
        """JSON estimate over all rows, of scores (n, K)."""
        return self.estimate("overall", [(self.known, scores)])

    def within(self, scores: Array, kind: str, column: int, label: str, names: Sequence[str]) -> dict[str, Any]:
        """JSON: ``within``, the AUC within every value of a label, and ``given_label``, their mean weighted by rows."""
        values, labelled = label_columns(self.split.y, kind)[column]
        parts = [(self.known & labelled & (values == value), scores) for value in range(len(names))]
        found = {names[value]: self.estimate(f"{label}={names[value]}", [part]) for value, part in enumerate(parts)}
        usable = [part for part, estimate in zip(parts, found.values(), strict=True) if estimate["value"] is not None]
        if not usable:
            n = int(sum(part[0].sum() for part in parts))
            return {"within": found, "given_label": null(n, "no value of the label has enough rows")}
        return {"within": found, "given_label": self.estimate(f"given {label}", usable)}

    def over_labels(self, labels: Sequence[str]) -> dict[str, Any]:
        """JSON: the mean over labels of what was found given each."""
        found = [self.draws[key] for name in labels if (key := f"given {name}") in self.draws]
        if not found:
            return null(0, "no label has enough rows")
        draws = Draws(float(np.mean([item.value for item in found])), np.mean([item.replicates for item in found], axis=0))
        return self._record("given_label", draws, int(self.known.sum()))

    def estimate(self, name: str, parts: Sequence[tuple[Rows, Array]]) -> dict[str, Any]:
        """The mean of the parts' AUCs weighted by their rows, each from scores (n, K) of all rows; kept under a name."""
        ranked: list[tuple[list[Stratum], float]] = []
        n = int(sum(rows.sum() for rows, _ in parts))
        for rows, scores in parts:
            several = self._ranked(rows, scores)
            ranked += [(strata, float(rows.sum()) / len(several)) for strata in several]
        if not ranked:
            return null(n, f"fewer than {LEAST} patients in a group or beside it")
        weight = np.array([w for *_, w in ranked])

        def value(weights: Array) -> Array:
            each = np.stack([stratified_auc(strata, weights) for strata, _ in ranked])
            return np.asarray(weight @ each / weight.sum())

        strata = self._strata()
        blocks = bootstrap_blocks(value, strata, self.n_bootstrap, self.seed, "leakage")
        return self._record(name, Draws(float(value(np.ones((len(strata), 1)))[0]), np.concatenate([np.empty(0), *blocks])), n)

    def _ranked(self, rows: Rows, scores: Array) -> list[list[Stratum]]:
        """Of every group that can be told from the rest: its rows and the others with their patients, part by part."""
        codes, unit, p, part = self.codes[rows], self.unit[rows], scores[rows], self.part[rows]
        out = []
        for group in range(1, 2) if p.shape[1] == 2 else range(p.shape[1]):
            truth = codes == group
            if min(len(np.unique(unit[truth])), len(np.unique(unit[~truth]))) < LEAST:
                continue
            both = [k for k in np.unique(part) if 0 < truth[part == k].sum() < (part == k).sum()]
            if both:
                out.append([_stratum(truth[part == k], p[part == k, group], unit[part == k]) for k in both])
        return out

    def _strata(self) -> npt.NDArray[np.int64]:
        """Patients are drawn within their (last known) group, so that a small group keeps its size."""
        strata = np.full(int(self.unit.max()) + 1, -1, dtype=np.int64)
        strata[self.unit[self.known]] = self.codes[self.known]
        return strata

    def _record(self, name: str, draws: Draws, n: int) -> dict[str, Any]:
        self.draws[name] = draws
        return {**_with_interval(draws), "n": n, **({"note": BELOW_HALF} if draws.below_half else {})}


def _stratum(truth: Rows, scores: Array, unit: npt.NDArray[np.int64]) -> Stratum:
    patients, place = np.unique(unit, return_inverse=True)
    return rank_rows(truth.astype(np.int64), scores, place), patients


def null(n: int, reason: str) -> dict[str, Any]:
    """JSON of what cannot be estimated."""
    return {"value": None, "lower": None, "upper": None, "n": n, "reason": reason}


def difference(after: Draws | None, before: Draws | None) -> dict[str, Any]:
    """JSON: after minus before, paired by the draws; null where one of them is `BELOW_HALF`, which is no less readable than 0.5."""
    if after is None or before is None:
        return {"value": None, "lower": None, "upper": None, "reason": "not estimable"}
    if after.below_half or before.below_half:
        return {"value": None, "lower": None, "upper": None, "reason": f"an AUC {BELOW_HALF}"}
    return _with_interval(Draws(after.value - before.value, after.replicates - before.replicates))


def _with_interval(draws: Draws) -> dict[str, Any]:
    lower, upper = draws.interval or (None, None)
    return {"value": draws.value, "lower": lower, "upper": upper}


def doubt(estimates: Mapping[str, Mapping[str, Any]]) -> str | None:
    """A sentence on the estimates that lie below 0.5 with their whole interval, None where none does.

    Args:
        estimates: what it is -> JSON estimate of an AUC.

    Example:
        >>> doubt({"edit": {"value": 0.3, "lower": 0.2, "upper": 0.4, "n": 50, "note": BELOW_HALF}})[:69]
        'below 0.5 with the whole interval: edit 0.300 [0.200, 0.400], n = 50;'
    """
    found = [
        f"{name} {item['value']:.3f} [{item['lower']:.3f}, {item['upper']:.3f}], n = {item['n']}"
        for name, item in estimates.items() if item.get("note") == BELOW_HALF
    ]
    if not found:
        return None
    return (
        f"{BELOW_HALF}: {'; '.join(found)}; the scores of heads do not carry over to rows they were not fitted on, as where there are "
        "too few: this is no evidence that anything is hidden, and no change is computed from it"
    )
