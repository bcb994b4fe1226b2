r"""The studentised maximum test of large groups, without permutations.

With thousands of patients in every group each value is as good as normal around its truth, so that without a gap the
statistic is the largest :math:`|\sigma_i Z_i - \sigma_j Z_j| / \sqrt{\sigma_i^2 + \sigma_j^2}` of independent normal
:math:`Z_i`, with :math:`\sigma_i` the clustered standard errors: the limit that the studentised permutation distribution has
as well (Chung and Romano). Drawing it costs nothing, while permuting a million patients a thousand times takes minutes.

References:
    Chung and Romano, Exact and asymptotically robust permutation tests, Annals of Statistics 41 (2013) 484.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from evenhand.metrics.cells import Cell
from evenhand.metrics.gaps import GroupValue
from evenhand.metrics.intervals import ERRORS, SHARES
from evenhand.metrics.permutation import MIRRORS, largest_difference

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

LARGE = 5_000
"""Patients in the denominator that every group needs."""

EVENTS = 500
"""Of shares also: patients times share times (1 - share)."""


def is_large(metric: str, value: float, units: int) -> bool:
    """Whether a group's value is as good as normal. A calibration error, an absolute value, never is.

    Example:
        >>> is_large("auc", 0.9, 5000), is_large("fpr", 0.01, 5000), is_large("ece", 0.02, 10**6)
        (True, False, False)
    """
    if metric in ERRORS or units < LARGE:
        return False
    return metric not in SHARES or units * value * (1 - value) >= EVENTS


def normal_maxima(
    members: Mapping[str, Sequence[GroupValue]], n_draws: Mapping[str, int], rng: np.random.Generator, *, shared: Mapping[str, float]
) -> dict[str, FloatArray]:
    """Studentised maxima without a gap, drawn from the normal limit; a drop-in for `evenhand.metrics.permutation.null_maxima`.

    TPR and FPR of one group are drawn jointly, as equalized odds tests both. On the logarithmic scale
    (``log_positive_rate``) standard errors are those of the delta method.

    Args:
        members: metric -> the groups that enter its gap.
        n_draws: metric -> number of draws.
        rng: source of randomness.
        shared: group -> correlation of its TPR and FPR; absent: 0.

    Returns:
        Metric -> (its number of draws,).
    """
    tested = {name: inside for name, inside in members.items() if len(inside) >= 2 and n_draws[name] > 0}
    normal: dict[str, dict[str, FloatArray]] = {}
    found = {}
    for name in tested:
        if MIRRORS.get(name) in tested:
            continue
        normal[name] = {item.group: rng.standard_normal(n_draws[name]) for item in tested[name]}
        if name == "fpr" and "tpr" in normal:
            for group, other in normal["tpr"].items():
                if shared.get(group) and group in normal[name]:
                    r = shared[group]
                    normal[name][group] = r * other + np.sqrt(1 - r**2) * normal[name][group]
        found[name] = _maxima(tested[name], normal[name], [1.0] * len(tested[name]))
        if name == "positive_rate":
            found["log_positive_rate"] = _maxima(tested[name], normal[name], [item.value for item in tested[name]])
    found.update({name: found[MIRRORS[name]] for name in tested if name not in found})
    return found


def _maxima(inside: Sequence[GroupValue], normal: Mapping[str, FloatArray], scale: Sequence[float]) -> FloatArray:
    spread = np.array([np.sqrt(item.variance) / by for item, by in zip(inside, scale, strict=True)])[:, None]
    draws = np.array([normal[item.group] for item in inside])
    return largest_difference(spread * draws, np.broadcast_to(spread**2, draws.shape))


def shared_by_rates(cell: Cell, codes: IntArray, groups: Mapping[str, int]) -> dict[str, float]:
    r"""Correlation of each group's TPR and FPR over its patients: 0 where no patient has rows of both classes.

    From :math:`4 \, \mathrm{Var}((\mathrm{TPR} + \mathrm{TNR}) / 2) = \mathrm{Var}(\mathrm{TPR}) + \mathrm{Var}(\mathrm{FPR}) -
    2 \, \mathrm{Cov}(\mathrm{TPR}, \mathrm{FPR})`.

    Args:
        cell: all rows, units being (patient, group) pairs.
        codes: (u,) group of each unit.
        groups: group -> its code.
    """
    if (cell.label_patterns() < 3).all():
        return {}
    found = {}
    for name, code in groups.items():
        moments = cell.moments(("tpr", "fpr", "balanced_accuracy"), (codes == code).astype(float)[:, None])
        tpr, fpr, mean = (float(moments[metric][1][0]) for metric in ("tpr", "fpr", "balanced_accuracy"))
        found[name] = float(np.clip((tpr + fpr - 4 * mean) / (2 * np.sqrt(tpr * fpr)), -1.0, 1.0))
    return found
