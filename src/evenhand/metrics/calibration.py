r"""Calibration: expected calibration error, its bias-corrected form, and Cox recalibration (slope and intercept).

All are made of sums over patients, so that any weighting of patients is a matrix product: by bin the residuals and rows
for the calibration error; scores and informations of the two logistic fits for the slope and the intercept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Moments = tuple[FloatArray, FloatArray]

CLIP = 1e-6
"""Scores are cut to [CLIP, 1 - CLIP] before their logit is taken: at most 13.8 away from 0."""

GRID = 2.0**-30
"""What rows add is rounded to multiples of this, so that sums are exact and do not depend on the order of rows."""


@dataclass(frozen=True)
class BinnedRows:
    """Residuals (y - s) and counts of rows, by unit and bin of score.

    Attributes:
        moments: sparse (k * bins, n_units): residuals r, rows n, r^2, and where a unit may have several rows in a bin
            also r n and n^2; k is 3 or 5.
        bins: how many.
    """

    moments: Any
    bins: int

    @cached_property
    def alone(self) -> bool:
        """Whether every unit has one row."""
        count = self.moments[self.bins : 2 * self.bins]
        return bool(count.sum() == count.nnz == self.moments.shape[1])

    def sums(self, weights: FloatArray, *, second: bool) -> FloatArray:
        """(5 or 2, bins, b): r, n, and with ``second`` also r^2, r n, n^2, summed under each column of weights."""
        if not second:
            return np.asarray((self.moments[: 2 * self.bins] @ weights).reshape(2, self.bins, -1))
        found = np.asarray((self.moments @ weights).reshape(-1, self.bins, weights.shape[1]))
        return found if len(found) == 5 else np.concatenate([found, found[:2]])


def bin_rows(y_true: npt.NDArray[Any], y_score: npt.NDArray[Any], unit: IntArray, bins: int) -> BinnedRows:
    """Sum the residuals of every unit by bin; the bins are [0, 1/k), …, [(k-1)/k, 1].

    Args:
        y_true: (n,) in {0, 1}.
        y_score: (n,) in [0, 1].
        unit: (n,) position of each row's unit in the weights that will be given.
        bins: k.
    """
    from scipy.sparse import coo_array, csr_array, vstack

    place = np.searchsorted(np.arange(1, bins) / bins, y_score, side="right")
    shape = (bins, int(unit.max(initial=-1)) + 1)
    apart = np.round(((y_true == 1) - y_score) / GRID) * GRID
    residual, rows = (csr_array(coo_array((column, (place, unit)), shape=shape)) for column in (apart, np.ones(len(place))))
    parts = [residual, rows, residual.power(2)]
    if rows.nnz < len(place):
        parts += [csr_array((residual.data * rows.data, rows.indices, rows.indptr), shape=shape), rows.power(2)]
    return BinnedRows(csr_array(vstack(parts)), bins)


def binned_error(sums: FloatArray) -> FloatArray:
    r"""Expected calibration error :math:`\sum_b |R_b| / N` from sums (>= 2, bins, b): (b,), NaN without rows."""
    rows = sums[1].sum(axis=0)
    return np.asarray(np.divide(np.abs(sums[0]).sum(axis=0), rows, out=np.full(len(rows), np.nan), where=rows > 0))


def corrected_error(sums: FloatArray) -> FloatArray:
    r"""The bias-corrected error from sums (5, bins, b), at least 0; see `expected_calibration_error`."""
    mean, spread = _bin_moments(sums)
    rows = sums[1].sum(axis=0)
    total = (sums[1] * (2 * np.abs(mean) - _folded(mean, spread))).sum(axis=0)
    return np.asarray(np.divide(np.maximum(total, 0.0), rows, out=np.full(len(rows), np.nan), where=rows > 0))


def _bin_moments(sums: FloatArray) -> Moments:
    """Mean residual of each bin and its clustered standard error, both (bins, b).

    The finite-sample factor counts N^2 / sum n^2 units, which is the number of patients where each has as many rows. A
    bin with one patient has no spread to see; there the residual itself stands in for its standard error.
    """
    residual, rows, square, cross, size = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(rows > 0, residual / rows, 0.0)
        units = np.where(size > 0, rows**2 / size, 0.0)
        centred = np.maximum(square - 2 * mean * cross + mean**2 * size, 0.0) * units / (units - 1)
        variance = np.where(units > 1 + 1e-9, centred, square) / rows**2
    return mean, np.sqrt(np.where(rows > 0, variance, 0.0))


def _folded(mean: FloatArray, spread: FloatArray) -> FloatArray:
    """E|X| of a normal X."""
    from scipy.special import erf

    ratio = np.divide(mean, spread, out=np.zeros_like(mean), where=spread > 0)
    folded = spread * np.sqrt(2 / np.pi) * np.exp(-0.5 * ratio**2) + mean * erf(ratio / np.sqrt(2))
    return np.asarray(np.where(spread > 0, folded, np.abs(mean)))


def error_with_variance(rows: BinnedRows, member: FloatArray, *, corrected: bool, sums: FloatArray | None = None) -> Moments:
    r"""Calibration error and its linearised variance with units as clusters, for each column of memberships.

    The absolute value has no derivative at 0, so in a well calibrated group the linearised variance is only a rough
    guide. The tests of gaps permute groups with it, which does not need it to be right, only the same in every group.

    Args:
        rows: from `bin_rows`.
        member: (n_units, b) in {0, 1}.
        corrected: of the bias-corrected error.
        sums: ``rows.sums(member, second=True)`` where it is at hand.

    Returns:
        Two arrays (b,); NaN with fewer than two units.
    """
    from scipy.special import erf

    sums = rows.sums(member, second=True) if sums is None else sums
    total = sums[1].sum(axis=0)
    mean, spread = _bin_moments(sums)
    value, slope, part = binned_error(sums), np.sign(mean), np.abs(mean)
    if corrected:
        ratio = np.divide(mean, spread, out=np.full_like(mean, np.inf), where=spread > 0)
        value, slope, part = corrected_error(sums), 2 * np.sign(mean) - erf(ratio / np.sqrt(2)), 2 * part - _folded(mean, spread)
    shift = part - slope * mean - np.nan_to_num(value)
    if rows.alone:
        squares = (slope**2 * sums[2] + 2 * slope * shift * sums[0] + shift**2 * sums[1]).sum(axis=0)
        units, squares = total, np.maximum(squares, 0.0)  # rows that are all alike leave rounding, also below 0
    else:
        residual, count = rows.moments[: rows.bins], rows.moments[rows.bins : 2 * rows.bins]
        pull = residual.T @ slope + count.T @ shift
        pull *= member
        units, squares = (np.diff(count.tocsc().indptr) > 0) @ member, np.einsum("ub,ub->b", pull, pull)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = units / (units - 1) * squares / total**2
    return value, np.where(units >= 2, variance, np.nan)


def expected_calibration_error(
    y_true: npt.ArrayLike,
    y_score: npt.ArrayLike,
    *,
    bins: int = 10,
    corrected: bool = False,
    weight: npt.ArrayLike | None = None,
    patient: npt.ArrayLike | None = None,
) -> float:
    r"""How far scores lie from the share of positive cases among cases with such scores.

    :math:`\mathrm{ECE} = \sum_b P(S \in b) \, |E[Y \mid S \in b] - E[S \mid S \in b]|` over k bins of equal width,
    closed to the left, the last one to both sides.

    In small samples chance alone makes it positive: with a perfectly calibrated score each bin adds about
    :math:`\sigma_b \sqrt{2/\pi}`. The corrected form takes off the expected excess of each bin (debiasing by normal
    resampling, in closed form): with :math:`m_b` the mean residual of a bin and :math:`\sigma_b` its standard error with
    patients as clusters,

    .. math:: \sum_b P(S \in b) \, (2 |m_b| - E|X_b|), \quad X_b \sim N(m_b, \sigma_b^2)

    and 0 where that is negative. Groups differ in size, and so in the bias: compare them by the corrected form.

    More than two groups: the gap is the largest minus the smallest group's error. Other libraries: torchmetrics'
    ``BinaryCalibrationError(norm="l1")`` is the uncorrected form; many papers bin P(the predicted class) instead of P(Y=1),
    or use bins with equally many rows; scikit-learn has a curve only.

    Args:
        y_true: (n,) in {0, 1}.
        y_score: (n,) probabilities in [0, 1].
        bins: k.
        corrected: take off the expected excess.
        weight: (n,) not negative; default: all 1. Where patients are given, all rows of one have the same weight.
        patient: (n,) ids; default: every row is a patient of its own. Matters to the correction only.

    Returns:
        A number in [0, 1], NaN without rows.

    Example:
        >>> round(expected_calibration_error([0, 1, 1, 0], [0.1, 0.9, 0.6, 0.6]), 3)
        0.1

    References:
        Naeini et al., AAAI 2015 (binned error); Kumar et al., Verified uncertainty calibration, arXiv:1909.10155 (debiasing).
    """
    truth, score = np.asarray(y_true), np.asarray(y_score, float)
    unit, weights = _units(len(truth), weight, patient)
    sums = bin_rows(truth, score, unit, bins).sums(weights[:, None], second=corrected)
    return float((corrected_error if corrected else binned_error)(sums)[0])


def _units(n: int, weight: npt.ArrayLike | None, patient: npt.ArrayLike | None) -> tuple[IntArray, FloatArray]:
    """(unit of each row, weight of each unit)."""
    rows = np.ones(n) if weight is None else np.asarray(weight, float)
    if patient is None:
        return np.arange(n), rows
    _, first, unit = np.unique(np.asarray(patient), return_index=True, return_inverse=True)
    return unit, rows[first]
