r"""Many groups, each against everybody else: which differences are larger than the largest that chance makes?

Student's t with the Welch-Satterthwaite degrees of freedom is too bold for small groups (measured: with eight groups of
40 patients a false claim in 23% of the audits, after Holm). So t only brings tests of different sizes to one scale; the
p-values come from permutation. Patients are shuffled among the groups of all attributes at once (within equal label
patterns for metrics within a class), which keeps how attributes overlap; every draw recomputes all tests, and the adjusted
p-value of a test is the share of draws whose smallest p among the tests not yet rejected is as small (Westfall and Young's
step-down). In the draws the AUC is linearised: each row keeps its placement among all rows of the other class.

References:
    Westfall and Young, Resampling-Based Multiple Testing (1993), algorithm 2.8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt

from evenhand.metrics.auc import FloatArray, IntArray
from evenhand.metrics.bootstrap import in_threads
from evenhand.metrics.cells import variance_floor
from evenhand.metrics.influence import Rows
from evenhand.metrics.permutation import permute_groups
from evenhand.metrics.rates import GIVEN_LABEL, RATES

_BLOCK_ENTRIES = 1_000_000


@dataclass(frozen=True)
class Part:
    """One ratio of sums over units, sum of ``top`` / sum of ``bottom``; a metric is a weighted sum of such ratios."""

    top: FloatArray
    bottom: FloatArray
    weight: float


@dataclass(frozen=True)
class Contrast:
    """One test: a group against everybody else whose attribute is known.

    Attributes:
        metric: its name.
        group: row of the group in the membership.
        known: row of everybody whose attribute is known.
    """

    metric: str
    group: int
    known: int


def parts_of(rows: Rows, metrics: Sequence[str]) -> dict[str, tuple[Part, ...]]:
    """Every metric as ratios of sums over the units of ``rows``; for the AUC with placements among all rows."""

    def by_unit(values: FloatArray) -> FloatArray:
        return np.bincount(rows.unit, values, minlength=rows.n_units).astype(np.float64)

    sums = np.stack([by_unit(column) for column in rows.sums.T], axis=1)
    found = {}
    for name in metrics:
        if name != "auc":
            ratios = RATES[name]
            found[name] = tuple(Part(sums @ np.asarray(u, float), sums @ np.asarray(v, float), 1 / len(ratios)) for u, v in ratios)
            continue
        positive = rows.y_true == 1
        low, high = (np.bincount(rows.level[kind], minlength=int(rows.level.max()) + 1).astype(float) for kind in (~positive, positive))
        below = ((np.cumsum(low) - 0.5 * low) / max(low.sum(), 1))[rows.level]
        above = (1 - (np.cumsum(high) - 0.5 * high) / max(high.sum(), 1))[rows.level]
        found[name] = (
            Part(by_unit(below * positive), by_unit(positive.astype(float)), 1.0),
            Part(by_unit(above * ~positive), by_unit((~positive).astype(float)), 1.0),
        )
    return found


def null_p_values(
    parts: Mapping[str, tuple[Part, ...]],
    membership: npt.NDArray[np.bool_],
    tests: Sequence[Contrast],
    n_draws: int,
    rng: np.random.Generator,
    threads: int = 1,
) -> FloatArray:
    """p of Student's t of every test under shuffled units: (tests, n_draws).

    Args:
        parts: metric -> its ratios.
        membership: (groups, units) of all attributes, one below the other, and of everybody known.
        tests: what is compared.
        n_draws: permutations.
        rng: source of randomness; every block of draws has a stream of its own, spawned from it.
        threads: blocks computed at a time; does not change the result.
    """
    found = np.ones((len(tests), n_draws))
    size = int(np.clip(_BLOCK_ENTRIES // max(membership.shape[1], 1), 8, 256))
    for inside in (True, False):
        metrics = {test.metric for test in tests if (test.metric in GIVEN_LABEL) == inside}
        strata = _patterns(parts, metrics, membership.shape[1]) if inside else np.zeros(membership.shape[1], np.int64)
        if not metrics:
            continue
        shuffled = _Shuffled(membership, strata, _columns({name: parts[name] for name in sorted(metrics)}))
        asked = {name: [k for k, test in enumerate(tests) if test.metric == name] for name in sorted(metrics)}
        blocks = [(start, min(size, n_draws - start)) for start in range(0, n_draws, size)]
        block_of = partial(_block, shuffled, {name: (places, [tests[k] for k in places]) for name, places in asked.items()})
        made = in_threads(block_of, zip(blocks, rng.spawn(len(blocks)), strict=True), threads)
        for (start, number), block in zip(blocks, made, strict=True):
            for places, values in block:
                found[places, start : start + number] = values
    return found


def _block(
    shuffled: _Shuffled, asked: Mapping[str, tuple[list[int], list[Contrast]]], job: tuple[tuple[int, int], np.random.Generator]
) -> list[tuple[list[int], FloatArray]]:
    """(positions of a metric's tests, their p) of one block of draws."""
    (_, number), rng = job
    totals = shuffled.draw(number, rng)
    return [(places, _p_values(*shuffled.columns.moments(name, totals, tests))) for name, (places, tests) in asked.items()]


def _patterns(parts: Mapping[str, tuple[Part, ...]], metrics: set[str], n_units: int) -> IntArray:
    """Which denominators each unit has rows in: units of one pattern can be shuffled and leave every group its cases."""
    pattern = np.zeros(n_units, np.int64)
    for bottom in {part.bottom.tobytes(): part.bottom for name in sorted(metrics) for part in parts[name]}.values():
        pattern = 2 * pattern + (bottom > 0)
    return np.unique(pattern, return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True)
class _Columns:
    """What is summed over every group: the parts and their products, each once, as many metrics share them.

    Attributes:
        values: (units, c).
        place: content of a column -> its position.
        parts: metric -> its ratios.
    """

    values: FloatArray
    place: dict[bytes, int]
    parts: Mapping[str, tuple[Part, ...]]

    def moments(self, metric: str, totals: FloatArray, tests: Sequence[Contrast]) -> tuple[FloatArray, FloatArray, FloatArray]:
        """(value, variance, units) of the group and of the others in each test, each (2, tests, n); ``totals`` (n, groups, c)."""
        own, known = ([getattr(test, name) for test in tests] for name in ("group", "known"))

        def total(values: FloatArray) -> FloatArray:
            column = totals[:, :, self.place[values.tobytes()]].T
            return np.stack([column[own], column[known] - column[own]])

        parts = self.parts[metric]
        tops, bottoms = ([total(getattr(part, name)) for part in parts] for name in ("top", "bottom"))
        units = [total((part.bottom > 0).astype(float)) for part in parts]
        smallest = np.asarray(np.min(units, axis=0))
        counted = units if metric == "auc" else [smallest] * len(units)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = [top / bottom for top, bottom in zip(tops, bottoms, strict=True)]
            factors = [np.sqrt(count / np.maximum(count - 1, 1)) for count in counted]
            scale = [part.weight * factor / bottom for part, factor, bottom in zip(parts, factors, bottoms, strict=True)]
            variance = np.zeros_like(ratios[0])
            for a, b, products in _products(parts):
                tt, tb, bt, bb = (total(product) for product in products)
                variance += scale[a] * scale[b] * (tt - ratios[b] * tb - ratios[a] * bt + ratios[a] * ratios[b] * bb)
        value = np.sum([part.weight * ratio for part, ratio in zip(parts, ratios, strict=True)], axis=0)
        return np.asarray(value), np.asarray(np.maximum(variance, variance_floor(metric, smallest))), smallest


def _products(parts: tuple[Part, ...]) -> Iterator[tuple[int, int, tuple[FloatArray, ...]]]:
    """(a, b, products of tops and bottoms of parts a and b)."""
    for a, one in enumerate(parts):
        for b, other in enumerate(parts):
            yield a, b, (one.top * other.top, one.top * other.bottom, one.bottom * other.top, one.bottom * other.bottom)


def _columns(parts: Mapping[str, tuple[Part, ...]]) -> _Columns:
    found: dict[bytes, FloatArray] = {}
    for ratios in parts.values():
        for part in ratios:
            found.update({values.tobytes(): values for values in (part.top, part.bottom, (part.bottom > 0).astype(float))})
        found.update({values.tobytes(): values for *_, products in _products(ratios) for values in products})
    return _Columns(np.stack(list(found.values()), axis=1), {key: place for place, key in enumerate(found)}, parts)


@dataclass(frozen=True)
class _Shuffled:
    """Sums of the columns over groups whose units are shuffled within strata."""

    membership: npt.NDArray[np.bool_]
    strata: IntArray
    columns: _Columns

    @cached_property
    def kinds(self) -> tuple[FloatArray, IntArray]:
        """((groups, kinds) whether units of a kind are in a group, kind of each unit): units of the same groups form one kind."""
        kinds, kind = np.unique(np.packbits(self.membership, axis=0), axis=1, return_inverse=True)
        return np.unpackbits(kinds, axis=0, count=len(self.membership)).astype(float), kind.ravel().astype(np.int64)

    def draw(self, n: int, rng: np.random.Generator) -> FloatArray:
        """(n, groups, c): one draw after another; sums over kinds are added up to groups."""
        from scipy.sparse import csc_array

        groups, kind = self.kinds
        shuffled = np.ascontiguousarray(permute_groups(kind, self.strata, n, rng).T)
        ones, ends, shape = np.ones(len(kind)), np.arange(len(kind) + 1, dtype=np.int32), (groups.shape[1], len(kind))
        moved = (csc_array((ones, kinds, ends), shape=shape) for kinds in shuffled)
        return np.stack([groups @ (one @ self.columns.values) for one in moved])


def _p_values(value: FloatArray, variance: FloatArray, units: FloatArray) -> FloatArray:
    """Two-sided p of Welch's t; 1 where a draw leaves a group without a value."""
    from scipy.special import stdtr

    with np.errstate(divide="ignore", invalid="ignore"):
        total = variance.sum(axis=0)
        free = total**2 / (variance**2 / np.maximum(units - 1, 1)).sum(axis=0)
        found = 2 * stdtr(free, -np.abs(value[0] - value[1]) / np.sqrt(total))
    return np.asarray(np.where(np.isfinite(found), found, 1.0))


def step_down(observed: FloatArray, null: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(p, adjusted p) of every test by permutation.

    Args:
        observed: (k,) p of each test on its own scale.
        null: (k, draws) the same under shuffled groups.

    Example:
        >>> null = np.array([[0.2, 0.5, 0.9], [0.6, 0.01, 0.4]])
        >>> step_down(np.array([0.1, 0.5]), null)
        (array([0.25, 0.75]), array([0.5 , 0.75]))
    """
    n_draws = null.shape[1]
    slack = 1 + 1e-9
    single = (1 + (null <= observed[:, None] * slack).sum(axis=1)) / (1 + n_draws)
    order = np.argsort(observed, kind="stable")
    smallest = np.minimum.accumulate(null[order][::-1], axis=0)[::-1]
    adjusted = (1 + (smallest <= observed[order][:, None] * slack).sum(axis=1)) / (1 + n_draws)
    found = np.empty(len(observed))
    found[order] = np.maximum.accumulate(adjusted)
    return single, found
