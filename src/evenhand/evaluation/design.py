"""The design effect: how much less certain an audit is because images of one patient are alike."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from evenhand.evaluation.cohort import Question
from evenhand.metrics.cells import make_cell

DESIGNED = ("auc", "tpr", "fpr", "accuracy", "brier")
"""Metrics whose design effect is told."""


def design_effects(question: Question, patient: npt.NDArray[np.int64], estimable: Collection[str]) -> dict[str, float | None]:
    r"""Variance with patients as clusters over the variance with every image taken for a patient of its own.

    .. math:: \mathrm{deff} = \frac{\widehat{\mathrm{Var}}_\text{patients}(\hat\theta)}{\widehat{\mathrm{Var}}_\text{images}(\hat\theta)}

    Both are the linearised variances of `evenhand.metrics.cells.Cell.moments`. Intervals are :math:`\sqrt{\mathrm{deff}}`
    times as wide as if images were independent; it is below 1 where what is alike
    in a patient's images cancels, as in an AUC that compares images of the same patient.

    Args:
        question: a label and its decisions.
        patient: (n,) patient code of each row.
        estimable: metrics that are estimable on these rows.

    Returns:
        Metric -> ratio, None where the metric is not estimable; empty where no patient has two labelled images.

    References:
        Kish, Survey Sampling (1965), section 5.4.
    """
    use = ~np.isnan(question.y_true)
    units = patient[use]
    if len(np.unique(units)) == len(units):
        return {}
    # sums must not depend on the table's order
    order = np.lexsort((units, question.decision[use], question.y_score[use], question.y_true[use]))
    units = units[order]
    rows = (question.y_true[use][order], question.y_score[use][order], question.decision[use][order])
    names = tuple(name for name in DESIGNED if name in estimable)
    clustered = make_cell(*rows, units).moments(names)
    alone = make_cell(*rows, np.arange(len(units))).moments(names)
    found: dict[str, float | None] = dict.fromkeys(DESIGNED)
    for name in names:
        wide, narrow = float(clustered[name][1][0]), float(alone[name][1][0])
        found[name] = wide / narrow if narrow > 0 and np.isfinite(wide) else None
    return found
