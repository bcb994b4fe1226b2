r"""How many patients does it take to see a gap, and which gap can be seen with those there are?

A gap is seen when the studentised maximum test of the largest pairwise difference is significant after correction. Of
two groups whose true values lie ``gap`` apart, with standard errors :math:`s_i, s_j`, that happens with probability

.. math:: P \approx \Phi\left(\frac{gap}{\sqrt{s_i^2 + s_j^2}} - c\right)

(the other pairs, which can only add to it, are left out). The critical value is that of Tukey's studentised range of k
groups, :math:`c = q_{1 - \alpha / m}(k, \infty) / \sqrt 2`, with m the tests of the corrected family: the first step of
Holm, which is the hardest one. For two groups and one test it is the familiar 1.96. A gap may lie between any two
groups, so patients are counted for the hardest pair: the one that needs most.

Standard errors come from the data where there are data (`power_block`), else from a plan (`Plan`): a rate's from the
binomial, AUC's by Hanley and McNeil, both times the design effect 1 + (images - 1) * icc of several images a patient.

References:
    Hanley and McNeil, Radiology 143 (1982) 29; Tukey's range: Kramer, Biometrics 12 (1956) 307.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.errors import ConfigError
from evenhand.metrics.gaps import GroupValue
from evenhand.metrics.rates import LOWER_IS_BETTER

PLANNED = {"auc": "", "tpr": "positive", "fnr": "positive", "fpr": "negative", "tnr": "negative", "accuracy": "all", "positive_rate": "all"}
"""Metrics that a plan can be made for -> the images in their denominator."""

MOST_PATIENTS = 10**9
"""A search for a number of patients ends here."""


def hanley_mcneil_variance(auc: float, n_positive: float, n_negative: float) -> float:
    r"""Variance of an AUC by Hanley and McNeil's exponential approximation.

    .. math:: \frac{A(1-A) + (n_1-1)(Q_1 - A^2) + (n_0-1)(Q_2 - A^2)}{n_1 n_0}, \quad
              Q_1 = \frac{A}{2-A}, \quad Q_2 = \frac{2A^2}{1+A}

    Args:
        auc: A, in [0, 1].
        n_positive: :math:`n_1`, greater than 0; effective numbers may be fractions.
        n_negative: :math:`n_0`.

    Example:
        >>> round(hanley_mcneil_variance(0.893, 51, 58) ** 0.5, 4)
        0.0325
    """
    both_positive, both_negative = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    top = auc * (1 - auc) + max(n_positive - 1, 0) * (both_positive - auc**2) + max(n_negative - 1, 0) * (both_negative - auc**2)
    return top / (n_positive * n_negative)


def design_effect(images: float, icc: float) -> float:
    """Variance with ``images`` images a patient, in units of that with as many independent images: 1 + (images - 1) * icc.

    Example:
        >>> design_effect(3, 0.5)
        2.0
    """
    return 1 + (images - 1) * icc


@cache
def critical_value_of_range(n_groups: int, alpha: float = 0.05, n_tests: int = 1) -> float:
    """What the largest of all pairwise z-statistics exceeds by chance with probability ``alpha / n_tests``.

    Tukey's studentised range with endless degrees of freedom, divided by the root of 2. It is exact for groups of equal
    standard error and a little conservative otherwise (Tukey-Kramer).

    Args:
        n_groups: groups compared, at least 2.
        alpha: of the family, in (0, 1).
        n_tests: tests of the corrected family.

    Example:
        >>> [round(critical_value_of_range(k), 3) for k in (2, 3, 8)]
        [1.96, 2.344, 3.031]
    """
    from scipy.special import ndtr

    z, weights = _normal_nodes()

    def reached(c: float) -> bool:
        inside = n_groups * float(weights @ (ndtr(z) - ndtr(z - c * math.sqrt(2))) ** (n_groups - 1))
        return 1 - inside <= alpha / n_tests

    return _smallest(reached, 0.0, 12.0)


@cache
def _normal_nodes() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Points and weights for integrals over the standard normal."""
    nodes, weights = np.polynomial.legendre.leggauss(100)
    return 8.5 * nodes, weights * 8.5 * np.exp(-((8.5 * nodes) ** 2) / 2) / math.sqrt(2 * math.pi)


@dataclass(frozen=True)
class Plan:
    """A study before there are data.

    Attributes:
        metric: one of `PLANNED`.
        value: its value in the better group (tpr, auc, … the higher; fpr, fnr the lower).
        shares: each group's share of the patients; their sum is 1.
        prevalence: P(y=1) of an image, one number or one for each group.
        images: images a patient, on average.
        icc: correlation of two images of one patient, in the metric's sense; 1: further images add nothing.
        alpha: chance of a false claim in the whole family.
        n_tests: tests in the family.
        power: wanted chance of a claim when the gap is there.
    """

    metric: str
    value: float
    shares: tuple[float, ...] = (0.5, 0.5)
    prevalence: float | tuple[float, ...] = 0.5
    images: float = 1.0
    icc: float = 0.0
    alpha: float = 0.05
    n_tests: int = 1
    power: float = 0.8

    def __post_init__(self) -> None:
        if self.metric not in PLANNED:
            raise ConfigError(f"no plan can be made for the metric '{self.metric}'; it can for {', '.join(PLANNED)}")
        if len(self.shares) < 2 or min(self.shares) <= 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise ConfigError(f"shares of the groups are {_listed(self.shares)}, but must be two or more above 0 that sum to 1")
        if len(self.prevalences) != len(self.shares):
            raise ConfigError(f"{len(self.prevalences)} prevalences were given for {len(self.shares)} groups; give one, or one a group")
        within = {"value": (self.value,), "prevalence": self.prevalences, "alpha": (self.alpha,), "power": (self.power,)}
        for name, numbers in within.items():
            outside = [number for number in numbers if not 0 < number < 1]
            if outside:
                raise ConfigError(f"{name} is {outside[0]:g}, but must lie between 0 and 1")
        if self.metric == "auc" and self.value < 0.5:
            raise ConfigError(f"value is {self.value:g}, but the AUC of the better group must be at least 0.5")
        if self.images < 1 or not 0 <= self.icc <= 1 or self.n_tests < 1:
            given = f"images is {self.images:g}, icc is {self.icc:g}, n_tests is {self.n_tests}"
            raise ConfigError(f"{given}, but images and n_tests must be at least 1 and icc must lie in [0, 1]")

    @property
    def prevalences(self) -> tuple[float, ...]:
        """P(y=1) of every group."""
        return self.prevalence if isinstance(self.prevalence, tuple) else (self.prevalence,) * len(self.shares)

    @property
    def needed_z(self) -> float:
        """How many standard errors the gap must measure: the critical value and the normal quantile of the power."""
        return critical_value_of_range(len(self.shares), self.alpha, self.n_tests) + NormalDist().inv_cdf(self.power)

    def worse(self, gap: float) -> float:
        """The worse group's value.

        Raises:
            ConfigError: it would leave [0, 1].
        """
        worse = self.value + gap if self.metric in LOWER_IS_BETTER else self.value - gap
        if not (gap > 0 and 0 <= worse <= 1):
            raise ConfigError(
                f"a gap of {gap:g} from {self.metric} {self.value:g} ends at {worse:g}; it must be above 0 and end between 0 and 1"
            )
        return worse

    def variance(self, value: float, group: int, patients: float) -> float:
        """Variance of the metric in one group of so many patients."""
        images = patients * self.images / design_effect(self.images, self.icc)
        positive = images * self.prevalences[group]
        if self.metric == "auc":
            return hanley_mcneil_variance(value, positive, images - positive)
        rows = {"positive": positive, "negative": images - positive, "all": images}[PLANNED[self.metric]]
        return value * (1 - value) / rows

    def standard_error(self, gap: float, patients: Sequence[float]) -> float:
        """Of the difference of the hardest pair: any group may be the worse one, and any other the better."""
        worse = self.worse(gap)
        n = range(len(patients))
        pairs = [(low, high) for low in n for high in n if low != high]
        squared = max(self.variance(worse, low, patients[low]) + self.variance(self.value, high, patients[high]) for low, high in pairs)
        return math.sqrt(squared)


def needed_patients(gap: float, plan: Plan) -> tuple[int, ...]:
    """Patients of every group, so that a gap of this size between any two of them is seen with the plan's power.

    Args:
        gap: difference of the two groups furthest apart, above 0.
        plan: what is known beforehand.

    Returns:
        Patients of each group, in the proportions of ``plan.shares``, each rounded up.

    Raises:
        ConfigError: the worse group's value would leave [0, 1].

    Example:
        >>> needed_patients(0.1, Plan("tpr", 0.8, prevalence=0.25))
        (1162, 1162)
    """
    wanted = plan.needed_z
    plan.worse(gap)
    total = _smallest(lambda n: gap / plan.standard_error(gap, [n * share for share in plan.shares]) >= wanted, 1e-6, MOST_PATIENTS)
    return tuple(math.ceil(total * share - 1e-6) for share in plan.shares)


def detectable_gap(patients: Sequence[int], plan: Plan) -> float | None:
    """The smallest gap between any two groups that is seen with the plan's power; None where no gap up to the end is.

    Args:
        patients: of each group; they take the place of ``plan.shares``.
        plan: what is known beforehand.

    Example:
        >>> round(detectable_gap((1162, 1162), Plan("tpr", 0.8, prevalence=0.25)), 3)
        0.1
    """
    shares = tuple(n / sum(patients) for n in patients)
    plan = replace(plan, shares=shares)
    wanted = plan.needed_z
    largest = 1 - plan.value if plan.metric in LOWER_IS_BETTER else plan.value

    def seen(gap: float) -> bool:
        return gap / plan.standard_error(gap, patients) >= wanted

    return _smallest(seen, 1e-9, largest) if seen(largest) else None


def power_of_gap(gap: float, standard_error: float, critical: float) -> float:
    """P(|Z| > critical) with Z normal around gap / standard error.

    Example:
        >>> round(power_of_gap(0.1, 0.1 / 2.8016, 1.96), 3)
        0.8
    """
    normal, shift = NormalDist(), gap / standard_error
    return normal.cdf(shift - critical) + normal.cdf(-shift - critical)


def power_block(
    members: Sequence[GroupValue],
    alpha: float = 0.05,
    n_tests: int = 1,
    gaps: Sequence[float] = (0.05, 0.1, 0.2),
    power: float = 0.8,
    patients: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """What an audit's data can show of the gap of one share or AUC, as a block of audit.json.

    Variances are the audit's own, clustered by patient; with f times the patients they are a f-th. For equalized odds
    see `odds_power_block`.

    Args:
        members: the estimable groups of the metric.
        alpha: of the whole family.
        n_tests: tests in the family.
        gaps: sizes to report the needed patients for.
        power: wanted chance of a claim.
        patients: all patients of each group, so that needed numbers are of a whole cohort of the same mix; default: the
            patients in the metric's denominator (for TPR those with a positive image).

    Returns:
        ``n_patients`` (in the groups that enter), ``detectable`` (smallest gap seen with that power wherever it lies: the
        hardest pair; None where not even a gap of 1 is), ``pair`` (that pair), ``detectable_easiest`` (between the two best
        known groups), ``needed``
        (gap -> patients in all groups together, ``{"0.1": 812}``), ``times`` (gap -> the same as a multiple of what is
        there), ``critical``, ``alpha``, ``n_tests``, ``power``. With fewer than two groups all of it is None but the counts.

    Example:
        >>> groups = [GroupValue("f", 0.8, 0.001, 200, 200), GroupValue("m", 0.7, 0.001, 200, 200)]
        >>> block = power_block(groups)
        >>> round(block["detectable"], 3), block["needed"]["0.1"]
        (0.125, 628)
    """
    return _block({"": members}, alpha, n_tests, gaps, power, patients)


def odds_power_block(
    parts: Mapping[str, Sequence[GroupValue]],
    alpha: float = 0.05,
    n_tests: int = 1,
    gaps: Sequence[float] = (0.05, 0.1, 0.2),
    power: float = 0.8,
    patients: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """`power_block` of equalized odds: a gap in TPR or in FPR, whichever it is, is the gap.

    The joint test takes the larger of two studentised maxima; its critical value is taken as that of twice the tests.

    Args:
        parts: ``tpr`` and ``fpr`` -> estimable groups.
        alpha, n_tests, gaps, power, patients: as in `power_block`.

    Returns:
        The same keys and ``part``: the rate that is harder.
    """
    return _block(parts, alpha, n_tests, gaps, power, patients)


def _block(
    parts: Mapping[str, Sequence[GroupValue]],
    alpha: float,
    n_tests: int,
    gaps: Sequence[float],
    power: float,
    patients: Mapping[str, int] | None,
) -> dict[str, Any]:
    n = {member.group: (patients or {}).get(member.group, 0) for members in parts.values() for member in members}
    for member in (member for members in parts.values() for member in members if not (patients or {}).get(member.group)):
        n[member.group] = max(n[member.group], member.units)
    total, few = sum(n.values()), min((len(members) for members in parts.values()), default=0) < 2
    settings = {"alpha": alpha, "n_tests": n_tests, "power": power}
    empty: dict[str, Any] = {f"{gap:g}": None for gap in gaps}
    if few:
        nothing = {"detectable": None, "pair": None, "detectable_easiest": None, "needed": empty, "times": empty, "critical": None}
        return {"n_patients": total, **nothing, **settings}
    pairs = []
    for name, members in parts.items():
        critical = critical_value_of_range(len(members), alpha, n_tests * len(parts))
        needed_z = critical + NormalDist().inv_cdf(power)
        for i, one in enumerate(members):
            pairs += [(needed_z * (one.variance + two.variance) ** 0.5, one, two, critical, name) for two in members[:i]]
    hardest, easiest = max(pairs, key=lambda pair: pair[0]), min(pairs, key=lambda pair: pair[0])
    times = {f"{gap:g}": (hardest[0] / gap) ** 2 for gap in gaps}
    low, high = sorted(hardest[1:3], key=lambda member: member.units)
    return {
        "n_patients": total,
        "detectable": hardest[0] if hardest[0] <= 1 else None,
        "pair": [low.group, high.group],
        "detectable_easiest": easiest[0] if easiest[0] <= 1 else None,
        "needed": {gap: sum(math.ceil(factor * count - 1e-6) for count in n.values()) for gap, factor in times.items()},
        "times": times,
        "critical": hardest[3],
        **settings,
        **({"part": hardest[4]} if hardest[4] else {}),
    }


def _smallest(reached: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest number in (low, high] for which a monotone condition holds, to a relative error of 1e-10; else ``high``."""
    for _ in range(200):
        middle = (low + high) / 2 if high < 4 * max(low, 1e-9) or low == 0 else math.sqrt(low * high)
        low, high = (low, middle) if reached(middle) else (middle, high)
        if high - low <= 1e-10 * high:
            break
    return high


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)
