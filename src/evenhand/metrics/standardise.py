r"""Direct standardisation: every group's metric as it would be if the group had the pooled mix of cases.

Rows lie in strata (a cell of the case-mix columns and, for metrics within a class, the label). With :math:`N_{gs}` the rows
of group g in stratum s, :math:`\pi_s = \sum_g N_{gs} / N` the pooled mix and :math:`p_{gs} = N_{gs} / N_g` the group's own, each
row of g in s gets the weight :math:`\pi_s / p_{gs}`; both mixes are taken over the common support, the strata in which every
group has rows. For a rate that is :math:`\sum_s \pi_s \, v_{gs}`, the mean of the group's stratum values under the pooled mix.

Standardising describes; it does not say why the mixes differ or what would happen if they were changed.

References:
    Keiding and Clayton, Statistical Science 29 (2014) 529 (standardisation); Janes and Pepe, Biometrika 96 (2009) 371
    (the covariate-adjusted ROC curve, which compares within cells instead; see `standard_weights`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Standard:
    """Weights of the rows by group and stratum, for each of b weightings of the patients.

    Attributes:
        ratio: (g, s, b), what a row of this group and stratum counts; 0 outside the common support.
        shared: (s, b) of 0 and 1, the common support.
        coverage: (blocks, b), the share of each block's pooled rows that lies on the common support.
    """

    ratio: FloatArray
    shared: FloatArray
    coverage: FloatArray


def standard_weights(counts: FloatArray, block: IntArray) -> Standard:
    r"""Weights that give every group the pooled mix.

    Within a *block* the mix is standardised; between blocks nothing is changed. One block: the mix of all rows, for
    accuracy, Brier score, positive rate and the like. Two blocks, positive and negative rows: the mix given the label, for
    TPR, FPR and AUC. The AUC under these weights is :math:`P(S_1 > S_0)` for a positive drawn from the pooled mix of
    positives and a negative from that of negatives, so that raw and standardised AUC measure the same thing. The
    covariate-adjusted AUC of Janes and Pepe compares positives with negatives of their own cell only; it answers another
    question and cannot be set against the raw AUC.

    With strata that are the label itself, in one block, the groups get the pooled prevalence.

    Args:
        counts: (g, s, b) rows of each group and stratum.
        block: (s,) block of each stratum, from 0.

    Returns:
        The weights; all 0 in a block without common support.

    Example:
        >>> counts = np.array([[[8.0], [2.0]], [[2.0], [8.0]]])
        >>> standard_weights(counts, np.zeros(2, int)).ratio[:, :, 0]
        array([[0.625, 2.5  ],
               [2.5  , 0.625]])
    """
    shared = (counts > 0).all(axis=0).astype(float)
    member = (block[:, None] == np.arange(block.max(initial=0) + 1)).astype(float)
    pooled = counts.sum(axis=0)
    total, kept = member.T @ pooled, member.T @ (pooled * shared)
    own = np.einsum("sk,gsb->gkb", member, counts * shared)
    with np.errstate(divide="ignore", invalid="ignore"):
        mix = np.where(shared > 0, pooled / (member @ kept), 0.0)
        share = counts * shared / np.einsum("sk,gkb->gsb", member, own)
        ratio = np.where(shared > 0, mix / share, 0.0)
        coverage = np.where(total > 0, kept / total, 0.0)
    return Standard(ratio, shared, coverage)


def effective_units(weight: FloatArray) -> float:
    """Kish's effective number: (sum of weights)^2 / sum of squares, over the units' total weights.

    Example:
        >>> effective_units(np.array([1.0, 1.0, 1.0, 1.0])), round(effective_units(np.array([9.0, 1.0, 1.0, 1.0])), 2)
        (4.0, 1.71)
    """
    square = float((weight**2).sum())
    return float(weight.sum() ** 2 / square) if square > 0 else 0.0
