"""What a perfect, an optimal and a fully biased model achieve on a synthetic cohort: closed form, no images needed.

A patient is four discrete variables, group g, disease d, trace s and label y, with

    P(g, d, s, y) = share_g * P(d | g) * P(s | g) * P(y | d, g)

so the performance of any model whose score is a function of (d, s) is a finite sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evenhand.data.synthetic import SyntheticConfig

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ExpectedPerformance:
    """What one idealised model has in expectation; NaN where a class has probability 0.

    Attributes:
        auc: overall area under the ROC curve.
        group_auc: the same within each group.
        tpr, fpr: per group, of the decision score >= threshold.
        equalized_odds: max over TPR and FPR of the largest difference between two groups.
        flip_rate: share of images whose decision differs from their counterfactual twin's.
        score_shift: mean absolute difference of the scores of twins.
    """

    auc: float
    group_auc: Mapping[str, float]
    tpr: Mapping[str, float]
    fpr: Mapping[str, float]
    equalized_odds: float
    flip_rate: float
    score_shift: float


def joint_distribution(config: SyntheticConfig, split: str) -> Array:
    """P(g, d, s, y) in one split, shape (K, 2, 2, 2), sums to 1."""
    p, s, e = config.split_prevalence(split), config.trace_probability(), config.noise
    disease = np.stack([1 - p, p], axis=1)
    trace = np.stack([1 - s, s], axis=1)
    label = np.stack([np.stack([1 - e, e], axis=1), np.stack([e, 1 - e], axis=1)], axis=1)  # (g, d, y)
    return np.asarray(np.einsum("g,gd,gs,gdy->gdsy", config.shares, disease, trace, label))


def expected_performance(config: SyntheticConfig, split: str = "test") -> dict[str, ExpectedPerformance]:
    """Expected AUC, gap and twin dependence of three idealised models, in closed form.

    - ``perfect``: the score is the disease itself, d. It never reads the trace; only label noise keeps it from AUC 1.
    - ``optimal``: the score is P_train(y = 1 | d, s), the best that can be learned from train when disease and trace are both
      seen exactly. It equals ``perfect`` in its decisions unless labels are noisy or the trace outweighs the disease.
    - ``shortcut``: the score is P_train(y = 1 | s): fully biased, it sees the trace and not the disease.

    Decisions are score >= 0.5, for ``shortcut`` at the higher of its two scores. For the shortcut model in a split whose
    label does not depend on the group, AUC = 0.5 and the equalized-odds difference is ``|2 * fidelity - 1|``; for the perfect
    model without label noise AUC = 1 and the difference is 0; its flip rate is 0, the shortcut model's is 1.

    Args:
        config: the cohort.
        split: "train", "val" or "test": the split that is scored (the models always learn from train).

    Example:
        >>> found = expected_performance(SyntheticConfig(fidelity=0.9))
        >>> round(found["perfect"].auc, 3), round(found["shortcut"].auc, 3), round(found["shortcut"].equalized_odds, 3)
        (1.0, 0.5, 0.8)
    """
    train, scored = joint_distribution(config, "train"), joint_distribution(config, split)
    seen = train.sum(axis=0)  # (d, s, y)
    by_trace = seen.sum(axis=0)  # (s, y)
    optimal = _posterior(seen)
    shortcut = np.broadcast_to(_posterior(by_trace), (2, 2))
    perfect = np.array([[0.0, 0.0], [1.0, 1.0]])
    names = config.groups
    return {
        "perfect": _performance(perfect, 0.5, scored, names),
        "optimal": _performance(optimal, 0.5, scored, names),
        "shortcut": _performance(shortcut, float(np.max(shortcut)), scored, names),
    }


def _posterior(counts: Array) -> Array:
    """P(y = 1 | the other axes); 0.5 for what never occurs."""
    total = counts.sum(axis=-1)
    return np.asarray(np.divide(counts[..., 1], total, out=np.full(total.shape, 0.5), where=total > 0))


def _performance(score: Array, threshold: float, joint: Array, names: tuple[str, ...]) -> ExpectedPerformance:
    """Performance of the score table (d, s) under P(g, d, s, y)."""
    decision = (score >= threshold).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = np.einsum("gdsy,ds->gy", joint, decision) / joint.sum(axis=(1, 2))  # (g, y)
    trace = joint.sum(axis=(0, 3))  # (d, s)
    return ExpectedPerformance(
        auc=_auc(score, joint.sum(axis=0)),
        group_auc={name: _auc(score, joint[g]) for g, name in enumerate(names)},
        tpr={name: float(rates[g, 1]) for g, name in enumerate(names)},
        fpr={name: float(rates[g, 0]) for g, name in enumerate(names)},
        equalized_odds=float(np.max(rates.max(axis=0) - rates.min(axis=0))),
        flip_rate=float(np.sum(trace * np.abs(decision - decision[:, ::-1]))),
        score_shift=float(np.sum(trace * np.abs(score - score[:, ::-1]))),
    )


def _auc(score: Array, joint: Array) -> float:
    """P(score of a positive > score of a negative) + half the ties, from P(d, s, y)."""
    negative, positive = joint[..., 0].ravel(), joint[..., 1].ravel()
    if not negative.sum() or not positive.sum():
        return float("nan")
    a = np.round(score.ravel(), 12)
    wins = (a[:, None] > a[None, :]) + 0.5 * (a[:, None] == a[None, :])
    return float(positive @ wins @ negative / (positive.sum() * negative.sum()))
