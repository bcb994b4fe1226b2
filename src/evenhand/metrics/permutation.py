"""Studentised maximum test: is the largest difference between groups larger than chance would make it?

The groups of patients are permuted; every permutation computes each group's value and clustered variance anew and takes
the largest difference in units of its standard error. Studentising keeps the test right where groups differ in size and
spread; permuting patients, not images, keeps it right where a patient has many images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.metrics.bootstrap import in_threads
from evenhand.metrics.cells import LINEAR, Cell
from evenhand.metrics.rates import GIVEN_LABEL

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Moments = dict[str, tuple[FloatArray, FloatArray]]

_BLOCK_ENTRIES = 400_000
_MOST_BITS = 10  # of a 32-bit key that may carry a code; the rest is random
REACH = 40
"""Permutations a test of the corrected family needs at least, so that Holm's smallest threshold can be reached."""

MIRRORS = {"tnr": "fpr", "fnr": "tpr"}
"""Metrics that are 1 minus another one: their differences, and so their tests, are the same."""


def largest_difference(values: FloatArray, variances: FloatArray) -> FloatArray:
    """max over pairs of |v_i - v_j| / sqrt(var_i + var_j): (k, b) -> (b,). Pairs that are not defined are left out.

    Example:
        >>> largest_difference(np.array([[0.9], [0.5]]), np.array([[0.02], [0.02]])).round(6)
        array([2.])
    """
    largest = np.zeros(values.shape[1])
    for i in range(len(values)):
        for j in range(i):
            with np.errstate(invalid="ignore", divide="ignore"):
                t = np.abs(values[i] - values[j]) / np.sqrt(variances[i] + variances[j])
            np.fmax(largest, t, out=largest)
    return largest


def log_moments(value: FloatArray, variance: FloatArray, units: FloatArray | int) -> tuple[FloatArray, FloatArray]:
    """A share on the logarithmic scale, by the delta method; a share of 0 counts as half a unit of ``units``."""
    kept = np.maximum(value, 0.5 / np.maximum(units, 1))
    return np.log(kept), variance / kept**2


def permute_groups(codes: IntArray, strata: IntArray, n_permutations: int, rng: np.random.Generator) -> npt.NDArray[np.int32]:
    """Group codes shuffled among the units of each stratum: (u, n_permutations).

    Codes are shuffled by sorting random keys that carry them (several times faster than a shuffle). Two keys of equal random
    bits would come in the order of their codes; as the sorted codes are given to the units in a random order, every
    column is a uniform shuffle all the same.
    """
    bits = int(codes.max(initial=0)).bit_length()
    kind: Any = np.uint32 if bits <= _MOST_BITS else np.uint64
    carried = kind((1 << bits) - 1)
    shuffled = np.empty((len(codes), n_permutations), np.int32)
    for stratum in np.unique(strata):
        units = np.flatnonzero(strata == stratum)
        keys = rng.integers(0, np.iinfo(kind).max, (n_permutations, len(units)), dtype=kind, endpoint=True)
        keys &= ~carried
        keys |= codes[units].astype(kind)
        keys.sort(axis=1)
        keys &= carried
        shuffled[rng.permutation(units)] = keys.T
    return shuffled


def null_maxima(
    cell: Cell,
    codes: IntArray,
    estimable: Mapping[str, IntArray],
    n_permutations: Mapping[str, int],
    rng: np.random.Generator,
    threads: int = 1,
) -> dict[str, FloatArray]:
    """The studentised maximum of every metric under permuted groups.

    Metrics defined within a class (AUC, TPR, …) permute within patients of equal label pattern (only negative rows, only
    positive, both), which keeps each group's number of cases; the others permute freely. Metrics that permute alike share
    their permutations: one that asks for fewer takes the first of them. ``log_positive_rate`` is the positive rate on the
    logarithmic scale, for ratios.

    Args:
        cell: all rows of one label, units being (patient, group) pairs.
        codes: (u,) group of each of the cell's units.
        estimable: metric -> codes of the groups that enter its gap.
        n_permutations: metric -> number of permutations.
        rng: source of randomness; every block of permutations has a stream of its own, spawned from it.
        threads: blocks computed at a time; does not change the result.

    Returns:
        Metric -> (its number of permutations,).
    """
    tested = {name: groups for name, groups in estimable.items() if len(groups) >= 2 and n_permutations[name] > 0}
    direct = [name for name in tested if MIRRORS.get(name) not in tested]
    patterns = cell.label_patterns()
    found: dict[str, FloatArray] = {}
    size = int(np.clip(_BLOCK_ENTRIES // max(cell.n, 1), 8, 1000))
    for inside in (False, True):
        wanted = {name: n_permutations[name] for name in direct if (name in GIVEN_LABEL) == inside}
        number = max(wanted.values(), default=0)
        starts = range(0, number, size)
        blocks = [(min(size, number - start), tuple(name for name in wanted if wanted[name] > start)) for start in starts]
        plan = _Plan(cell, codes, patterns if inside else patterns * 0, {name: tested[name] for name in wanted})
        parts = list(in_threads(plan.moments, zip(blocks, rng.spawn(len(blocks)), strict=True), threads))
        found.update({key: maxima[: wanted.get(key, number)] for key, maxima in plan.maxima(parts, wanted).items()})
    found.update({name: found[MIRRORS[name]] for name in tested if name not in found and MIRRORS.get(name) in found})
    return found


@dataclass(frozen=True)
class _Plan:
    """Metrics that are permuted alike.

    Attributes:
        cell: all rows of one label.
        codes: (u,) group of each unit.
        strata: (u,) units are shuffled within these.
        tested: metric -> codes of the groups that enter its gap.
    """

    cell: Cell
    codes: IntArray
    strata: IntArray
    tested: Mapping[str, IntArray]

    @cached_property
    def needed(self) -> IntArray:
        """The rows of the cell's additive table that the rates among the metrics are made of."""
        return self.cell.additive_rows(tuple(self.tested))

    @cached_property
    def table(self) -> FloatArray:
        """These rows."""
        return self.cell.additive[self.needed]

    def moments(self, job: tuple[tuple[int, tuple[str, ...]], np.random.Generator]) -> dict[int, tuple[FloatArray, Moments]]:
        """Of one block: group -> (totals of the table, moments of the metrics that are not rates)."""
        (number, metrics), rng = job
        shuffled = permute_groups(self.codes, self.strata, number, rng)
        found = {}
        for group in sorted({int(code) for groups in self.tested.values() for code in groups}):
            others = tuple(name for name in metrics if name not in LINEAR and group in self.tested[name])
            member = (shuffled == group).astype(float)
            found[group] = (self.table @ member, self.cell.moments(others, member))
        return found

    def maxima(self, blocks: Sequence[dict[int, tuple[FloatArray, Moments]]], wanted: Mapping[str, int]) -> dict[str, FloatArray]:
        """Metric -> studentised maxima, of all blocks; each at least as many as wanted."""
        moments: dict[int, Moments] = {}
        for group in blocks[0] if blocks else ():
            totals = np.zeros((len(self.cell.additive), sum(block[group][0].shape[1] for block in blocks)))
            totals[self.needed] = np.concatenate([block[group][0] for block in blocks], axis=1)
            rates = tuple(name for name in self.tested if name in LINEAR and group in self.tested[name])
            moments[group] = self.cell.rate_moments(rates, totals)
            for name in blocks[0][group][1]:
                pairs = [block[group][1][name] for block in blocks if name in block[group][1]]
                moments[group][name] = np.concatenate([v for v, _ in pairs]), np.concatenate([s for _, s in pairs])
        found = {}
        for name in wanted:
            pairs = [moments[int(group)][name] for group in self.tested[name]]
            found[name] = largest_difference(np.array([v for v, _ in pairs]), np.array([s for _, s in pairs]))
            if name == "positive_rate":
                logs = [log_moments(*pair, np.bincount(self.codes)[group]) for pair, group in zip(pairs, self.tested[name], strict=True)]
                maxima = largest_difference(np.array([v for v, _ in logs]), np.array([s for _, s in logs]))
                found["log_positive_rate"] = maxima[: wanted[name]]
        return found


def p_value(observed: float, null: FloatArray) -> float:
    """(1 + number of permutations at least as extreme) / (1 + permutations).

    Example:
        >>> p_value(3.0, np.array([1.0, 2.0, 4.0]))
        0.5
    """
    return (1 + int(np.count_nonzero(null >= observed - 1e-12))) / (1 + len(null))


def critical_value(null: FloatArray, confidence: float) -> float:
    """The largest statistic whose p-value is at least 1 - confidence; infinite where no permutation count can reach it.

    Example:
        >>> null = np.arange(1.0, 100.0)
        >>> c = critical_value(null, 0.95)
        >>> p_value(c, null) >= 0.05 > p_value(c + 0.5, null)
        True
    """
    rank = int(np.ceil((1 - confidence) * (len(null) + 1) - 1e-9)) - 1
    if rank < 1:
        return float("inf")
    return float(np.sort(null)[-rank])


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = running
    return adjusted
