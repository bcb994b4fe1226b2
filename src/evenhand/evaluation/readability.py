r"""How well an attribute or a label can be read from features of images: a linear reader, cross-validated by patient.

The reader is ridge regression on group indicators, in closed form: its scores rank images as a regularised linear discriminant does.

    W = (X'X + n s I)^-1 X'Y      X, Y centred by the rows that it is fitted on, s one of `STRENGTHS`

Rows outside the test split are cut into folds of whole patients. Every fold is scored by a reader of the others, whose strength was
chosen by the others alone, as the one with the lowest squared error when each of them is left out in turn. Sums of products are
kept by fold, so that a hundred readers of permuted groups cost little more than one. Test rows are scored once, by a
reader of all folds.

The AUC is taken within folds: pairs of one fold are compared, as scores of different readers have different zeros. Within a
label, pairs have the same label too, and the reader is fitted on features and groups centred within the label's values, so
that it cannot live on what the label shows. Intervals are made on the logit scale with the deviation of a patient bootstrap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.metrics.auc import RankedRows, rank_rows, stratified_auc
from evenhand.metrics.bootstrap import bootstrap_blocks
from evenhand.metrics.intervals import logit_limits, student
from evenhand.random import generator

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Json = dict[str, Any]

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridge strengths in units of the standardised features' variance."""
FOLDS = 5
LEAST = 10
"""Patients that a group and the rows beside it need."""
MOST_FEATURES = 768
"""Wider features are cut to their leading principal components."""
REPLICATES = 200
"""Of the bootstrap, which gives a deviation and no quantiles."""


def standardised(x: npt.NDArray[Any], fit: BoolArray) -> Array:
    """Features with mean 0 and deviation 1 over the rows ``fit``; constant ones are left out, wide ones cut to leading components."""
    z = np.asarray(x, dtype=np.float64)
    mean, spread = z[fit].mean(axis=0), z[fit].std(axis=0)
    varies = spread > 1e-9 * np.maximum(np.abs(mean), 1e-9)
    z = (z[:, varies] - mean[varies]) / spread[varies]
    if z.shape[1] > MOST_FEATURES:
        _, vectors = np.linalg.eigh(z[fit].T @ z[fit])
        z = z @ vectors[:, ::-1][:, :MOST_FEATURES]
    return np.asarray(z)


def with_squares(x: npt.NDArray[Any]) -> Array:
    """A few features with their squares and products, so that a linear reader can tell a middle group too.

    Example:
        >>> with_squares(np.array([[1.0, 3.0], [3.0, 5.0]])).shape
        (2, 5)
    """
    z = np.asarray(x, np.float64)
    z = (z - z.mean(axis=0)) / np.maximum(z.std(axis=0), 1e-9)
    i, j = np.triu_indices(z.shape[1])
    return np.hstack([z, z[:, i] * z[:, j]])


class FoldedRidge:
    """Ridge readers of one set of features that leave folds out.

    Args:
        x: (n, d) standardised features.
        fold: int (n,), from 0; every fold has rows.
        y: (n, t) targets.
    """

    def __init__(self, x: Array, fold: IntArray, y: Array) -> None:
        self.x, self.y = x, y
        self.rows = [np.flatnonzero(fold == k) for k in range(int(fold.max()) + 1)]
        self.n = np.array([len(rows) for rows in self.rows])
        self.sums = np.stack([x[rows].sum(axis=0) for rows in self.rows])
        self.gram = np.stack([x[rows].T @ x[rows] for rows in self.rows])
        self.target = np.stack([y[rows].sum(axis=0) for rows in self.rows])
        self.cross = np.stack([x[rows].T @ y[rows] for rows in self.rows])

    def without(self, *left_out: int) -> Iterator[tuple[Array, Array]]:
        """(W, intercepts) of every strength, fitted on the other folds."""
        keep = np.setdiff1d(np.arange(len(self.rows)), left_out)
        n = self.n[keep].sum()
        mean, centre = self.sums[keep].sum(axis=0) / n, self.target[keep].sum(axis=0) / n
        values, vectors = np.linalg.eigh(self.gram[keep].sum(axis=0) - n * np.outer(mean, mean))
        turned = vectors.T @ (self.cross[keep].sum(axis=0) - n * np.outer(mean, centre))
        for strength in STRENGTHS:
            weight = vectors @ (turned / (np.maximum(values, 0) + n * strength)[:, None])
            yield weight, centre - mean @ weight

    def errors(self, fold: int, readers: Sequence[tuple[Array, Array]]) -> Array:
        """(strengths, t) squared errors of readers on a fold."""
        rows = self.rows[fold]
        return np.stack([((self.x[rows] @ weight + bias - self.y[rows]) ** 2).sum(axis=0) for weight, bias in readers])

    def held_out(self, sets: IntArray) -> tuple[Array, Array]:
        """Scores of every row by readers that know neither its fold nor, for the strength, its target.

        Args:
            sets: int (t,), targets of one number share a strength.

        Returns:
            (n, t) scores; (d + 1, t) weights of readers of all folds, the intercepts last.
        """
        folds = range(len(self.rows))
        chosen = np.zeros((len(self.rows), len(STRENGTHS), self.y.shape[1]))
        for k, j in combinations(folds, 2):
            readers = list(self.without(k, j)) if len(self.rows) > 2 else []
            if readers:
                chosen[k] += self.errors(j, readers)
                chosen[j] += self.errors(k, readers)
        scores, total = np.empty_like(self.y), np.zeros(chosen.shape[1:])
        for k in folds:
            rows = self.rows[k]
            each = [self.x[rows] @ weight + bias for weight, bias in self.without(k)]
            total += np.stack([((found - self.y[rows]) ** 2).sum(axis=0) for found in each])
            pick = _best(chosen[k], sets)  # of two folds nothing is left to choose by: the weakest strength
            scores[rows] = np.stack(each)[pick, :, np.arange(self.y.shape[1])].T
        pick = _best(total, sets)
        fitted = list(self.without())
        columns = np.arange(self.y.shape[1])
        weight = np.stack([item[0] for item in fitted])[pick, :, columns].T
        bias = np.stack([item[1] for item in fitted])[pick, columns]
        return scores, np.vstack([weight, bias])


def _best(errors: Array, sets: IntArray) -> IntArray:
    """The strength with the lowest error, summed over the targets of a set, for every target."""
    summed = np.stack([np.bincount(sets, row) for row in errors])
    return np.asarray(summed.argmin(axis=0)[sets])


@dataclass(frozen=True)
class Comparison:
    """Rows that are compared with each other.

    Attributes:
        truth: int (n,) group codes, all known.
        stratum: int (n,), rows of one number are compared.
        patients: int (n,).
        n_groups: K.
    """

    truth: IntArray
    stratum: IntArray
    patients: IntArray
    n_groups: int

    @property
    def groups(self) -> tuple[int, ...]:
        """The groups that can be told from the rest: of two groups the second alone stands for both."""
        asked = range(1, 2) if self.n_groups == 2 else range(self.n_groups)
        return tuple(group for group in asked if self._enough(group))

    def _enough(self, group: int) -> bool:
        usable = [rows for rows in (self.stratum == s for s in np.unique(self.stratum)) if len(np.unique(self.truth[rows] == group)) == 2]
        if not usable:
            return False
        rows = np.logical_or.reduce(usable)
        sides = [len(np.unique(self.patients[rows & side])) for side in (self.truth == group, self.truth != group)]
        return min(sides) >= LEAST

    def value(self, scores: Array) -> float:
        """The mean over groups of the AUC of each against the rest, of scores (n, K) or (n, 1); NaN where no group has enough patients."""
        found = []
        strata = [np.flatnonzero(self.stratum == stratum) for stratum in np.unique(self.stratum)]
        for group in self.groups:
            column = scores[:, 0 if scores.shape[1] == 1 else group]
            won = np.array([_pairs_won(self.truth[rows] == group, column[rows]) for rows in strata]).sum(axis=0)
            found.append(won[0] / won[1])
        return float(np.mean(found)) if found else float("nan")

    def estimate(self, scores: Array, seed: int, only: int | None = None) -> Json:
        """The AUC with its interval, JSON; null with a reason where no group has enough patients.

        Args:
            scores: (n, K), or (n, 1) for two groups.
            seed: of the bootstrap.
            only: one group; default: the mean over all of them.
        """
        chosen = self.groups if only is None else tuple(group for group in self.groups if group == only)
        n = {"n": len(self.truth), "n_patients": len(np.unique(self.patients))}
        if not chosen:
            return {"value": None, "lower": None, "upper": None, **n, "reason": f"fewer than {LEAST} patients in a group or beside it"}
        statistic = self._auc(scores, chosen)
        units, first = np.unique(self.patients, return_index=True)
        value = float(statistic(np.ones((len(units), 1)))[0])
        draws = np.concatenate(list(bootstrap_blocks(statistic, self.truth[first], REPLICATES, seed, "readability")))
        error = float(np.nanstd(draws, ddof=1))
        smaller = min(
            min(len(np.unique(self.patients[self.truth == group])), len(np.unique(self.patients[self.truth != group]))) for group in chosen
        )
        lower, upper = logit_limits(value, error, student(0.975, len(units) - 1), smaller) if error or not 0 < value < 1 else (value, value)
        return {"value": value, "lower": min(lower, value), "upper": max(upper, value), **n}

    def _auc(self, scores: Array, chosen: Sequence[int]) -> Any:
        """Weights (u, b) of patients -> (b,)."""
        unit = np.unique(self.patients, return_inverse=True)[1].astype(np.int64)
        parts: dict[int, list[tuple[RankedRows, IntArray]]] = {group: [] for group in chosen}
        for group in chosen:
            column = 0 if scores.shape[1] == 1 else group
            for stratum in np.unique(self.stratum):
                rows = self.stratum == stratum
                positive = self.truth[rows] == group
                if 0 < positive.sum() < len(positive):
                    ranked = rank_rows(positive.astype(np.int64), scores[rows, column], unit[rows])
                    parts[group].append((ranked, np.arange(ranked.positive.shape[0])))

        def statistic(weights: Array) -> Array:
            return np.asarray(np.mean([stratified_auc(strata, weights) for strata in parts.values()], axis=0))

        return statistic


def _pairs_won(positive: BoolArray, scores: Array) -> tuple[float, float]:
    """Pairs in which the positive row has the higher score (a tie is half), and all pairs.

    Example:
        >>> _pairs_won(np.array([True, False, False]), np.array([0.5, 0.5, 0.1]))
        (1.5, 2.0)
    """
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    n = int(positive.sum())
    return float(ranks[positive].sum() - n * (n + 1) / 2), float(n * (len(positive) - n))


def folds_of(patients: IntArray, strata: IntArray, seed: int, folds: int = FOLDS) -> IntArray:
    """Folds of whole patients with the strata spread evenly: int (n,)."""
    from evenhand.data.splits import fold_validation

    out = np.zeros(len(patients), dtype=np.int64)
    number = min(folds, len(np.unique(patients)))
    split = np.full(len(patients), "train")
    for k in range(number if number > 1 else 0):
        out[fold_validation(split, patients, strata, number, k, seed) == "val"] = k
    return out


def indicators(codes: IntArray, n_groups: int) -> Array:
    """Targets of the reader: (n, K), or (n, 1) for two groups."""
    return np.asarray((codes == 1)[:, None] if n_groups == 2 else codes[:, None] == np.arange(n_groups), dtype=np.float64)


def permuted(codes: IntArray, patients: IntArray, rng: np.random.Generator) -> IntArray:
    """Groups given out anew among patients; a patient of several groups takes part with the first."""
    _, first, unit = np.unique(patients, return_index=True, return_inverse=True)
    return np.asarray(rng.permutation(codes[first])[unit])


@dataclass(frozen=True)
class ReadRows:
    """Features and groups of the rows that a reader sees, those of unknown group left out.

    Attributes:
        x: (n, d) standardised features.
        codes: int (n,).
        patients: int (n,).
        fold: int (n,), -1 for test rows.
        n_groups: K.
    """

    x: Array
    codes: IntArray
    patients: IntArray
    fold: IntArray
    n_groups: int

    def take(self, rows: BoolArray) -> ReadRows:
        """Some of the rows, folds without rows closed up."""
        fold = self.fold[rows]
        fold[fold >= 0] = np.unique(fold[fold >= 0], return_inverse=True)[1]
        return ReadRows(self.x[rows], self.codes[rows], self.patients[rows], fold, self.n_groups)

    def comparison(self, rows: BoolArray, stratum: IntArray | None = None) -> Comparison:
        """The rows as they are compared, within folds and within strata."""
        place = self.fold if stratum is None else self.fold * (int(stratum.max()) + 1) + stratum
        return Comparison(self.codes[rows], place[rows], self.patients[rows], self.n_groups)


def read(rows: ReadRows, seed: int, permutations: int = 0, keys: Sequence[str] = ()) -> Json:
    """How well groups are read: over folds, on test rows, and what chance gives.

    Args:
        rows: what the reader sees.
        seed: of permutations and bootstrap.
        permutations: readers of groups that were given out anew among patients.
        keys: names of the groups, for an estimate of each where there are more than two.

    Returns:
        JSON: ``folds`` and ``test`` estimates; ``groups`` key -> folds estimate; ``chance``: ``lower, upper, mean, n`` of the folds'
        AUC under permuted groups, and ``above``, whether the AUC is above all but 2.5% of them.
    """
    outside, test = rows.fold >= 0, rows.fold < 0
    seen = rows.comparison(outside)
    if not seen.groups or len(np.unique(rows.fold[outside])) < 2:
        reason = {"value": None, "lower": None, "upper": None, "reason": f"fewer than {LEAST} patients in a group or beside it"}
        return {"folds": reason, "test": reason, "groups": {}, "chance": None}
    draws = [generator(seed, "permuted", k) for k in range(permutations)]
    codes = [rows.codes[outside], *(permuted(rows.codes[outside], rows.patients[outside], rng) for rng in draws)]
    width = 1 if rows.n_groups == 2 else rows.n_groups
    y = np.hstack([indicators(own, rows.n_groups) for own in codes])
    scores, fitted = FoldedRidge(rows.x[outside], rows.fold[outside], y).held_out(np.repeat(np.arange(len(codes)), width))
    own = scores[:, :width]
    out: Json = {"folds": seen.estimate(own, seed), "groups": {}, "chance": None}
    out["test"] = rows.comparison(test).estimate(rows.x[test] @ fitted[:-1, :width] + fitted[-1, :width], seed)
    if rows.n_groups > 2:
        out["groups"] = {key: seen.estimate(own, seed, only=k) for k, key in enumerate(keys)}
    if permutations:
        each = np.array(
            [
                Comparison(codes[k], seen.stratum, seen.patients, rows.n_groups).value(scores[:, k * width : (k + 1) * width])
                for k in range(1, permutations + 1)
            ]
        )
        each = each[np.isfinite(each)]
        if len(each):
            lower, upper = np.quantile(each, [0.025, 0.975])
            above = bool((1 + (each >= out["folds"]["value"]).sum()) / (1 + len(each)) <= 0.025)
            out["chance"] = {"lower": float(lower), "upper": float(upper), "mean": float(each.mean()), "n": len(each), "above": above}
    return out


def read_within(rows: ReadRows, values: IntArray, names: Sequence[str], seed: int) -> Json:
    """The same within every value of a label, and over all values (pairs of one value compared).

    Args:
        rows: what the reader sees.
        values: int (n,) value of the label, all known.
        names: of the values.
        seed: of the bootstrap.

    Returns:
        JSON: ``given_label``: ``folds`` and ``test``; ``within``: value -> folds estimate.
    """
    outside = rows.fold >= 0
    scores = np.zeros((len(values), 1 if rows.n_groups == 2 else rows.n_groups))
    y = indicators(rows.codes, rows.n_groups)
    for fold in np.unique(rows.fold):
        fit, held = outside & (rows.fold != fold), rows.fold == fold
        if fit.any():
            scores[held] = rows.x[held] @ _centred_fit(rows.x[fit], y[fit], values[fit])
    found = {
        "folds": rows.comparison(outside, values).estimate(scores[outside], seed),
        "test": rows.comparison(~outside, values).estimate(scores[~outside], seed),
    }
    within = {}
    for code, name in enumerate(names):
        own = outside & (values == code)
        within[name] = rows.comparison(own).estimate(scores[own], seed)
    return {"given_label": found, "within": within}


def _centred_fit(x: Array, y: Array, values: IntArray) -> Array:
    """Ridge weights of features and targets that are centred within the label's values; a strength of 0.1."""
    x, y = x.copy(), y.copy()
    for value in np.unique(values):
        rows = values == value
        x[rows] -= x[rows].mean(axis=0)
        y[rows] -= y[rows].mean(axis=0)
    gram = x.T @ x
    gram[np.diag_indices(len(gram))] += 0.1 * len(x)
    return np.asarray(np.linalg.solve(gram, x.T @ y))
