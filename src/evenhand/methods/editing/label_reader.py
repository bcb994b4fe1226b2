"""Fresh heads that read an attribute given the value of a label.

Two kinds are fitted, because neither reads more than the other everywhere:

    one   a head on [z, indicators of the label]: one slope for all values of the label; it learns from all rows
    own   a head for every value of the label, on the rows that have it; it reads what shows under one value only

For every value of the label the one with the lower log loss on that value's validation rows is taken, each with an L2 strength
chosen on validation rows too. Test rows have no say, so taking the better one does not favour either. Without validation rows
the first is used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evenhand.methods.editing.attribute_head import Array, Codes, Embeddings, fit_reader
from evenhand.methods.editing.refitted import DUMMY_SCALE
from evenhand.methods.fitting import FittedHead
from evenhand.methods.heads import Standardizer
from evenhand.methods.predictors import probabilities
from evenhand.methods.regularisation import MIN_ROWS, log_loss


@dataclass(frozen=True)
class LabelledRows:
    """Embeddings with the groups and one label of their rows.

    Attributes:
        z: (n, d).
        codes: (n,) groups, -1 where missing.
        values: (n,) values of the label, anything where unlabelled.
        labelled: (n,).
    """

    z: Embeddings
    codes: Codes
    values: Codes
    labelled: npt.NDArray[np.bool_]

    def usable(self, value: int | None = None) -> npt.NDArray[np.bool_]:
        """Rows with a group and a label, of one value where that is given."""
        rows: npt.NDArray[np.bool_] = (self.codes >= 0) & self.labelled
        return rows if value is None else rows & (self.values == value)

    def take(self, rows: npt.NDArray[np.bool_]) -> LabelledRows:
        """Some of the rows."""
        return LabelledRows(self.z[rows], self.codes[rows], self.values[rows], self.labelled[rows])


def read_given_label(
    train: LabelledRows, val: LabelledRows, test: LabelledRows, n_groups: int, n_values: int, *, standardize: bool = True
) -> tuple[Array, dict[int, str]]:
    """Scores (n, K) of the test rows, and which head ("one" or "own") gave those of every value of the label.

    Args:
        train: rows that heads are fitted on; at least two groups among the usable ones.
        val: rows to choose on; may be empty.
        test: rows to score; those without the label get the scores of the common head.
        n_groups: K.
        n_values: values of the label.
        standardize: standardise the columns by the training rows; off where a rotation of such columns is given.
    """
    fit = train.usable()
    standard = Standardizer.fit(train.z[fit], standardize)
    columns = {id(rows): _with_label(standard, rows, n_values) for rows in (train, val, test)}
    seen = np.where(val.labelled, val.codes, -1)
    common, _ = fit_reader(columns[id(train)][fit], train.codes[fit], n_groups, (columns[id(val)], seen), standardize=False)
    scores, used = _scores(common, columns[id(test)]), dict.fromkeys(range(n_values), "one")
    for value in range(n_values):
        rows, judged = train.usable(value), val.usable(value)
        if judged.sum() < MIN_ROWS or len(np.unique(train.codes[rows])) < 2:
            continue
        own, _ = fit_reader(train.z[rows], train.codes[rows], n_groups, (val.z[judged], val.codes[judged]), standardize=standardize)
        losses = [
            log_loss(head, x[judged], val.codes[judged], "multiclass") for head, x in ((own, val.z), (common, columns[id(val)]))
        ]
        if losses[0] < losses[1]:
            used[value] = "own"
            here = test.labelled & (test.values == value)
            scores[here] = _scores(own, test.z[here])
    return scores, used


def _with_label(standard: Standardizer, rows: LabelledRows, n_values: int) -> Embeddings:
    """(n, d + n_values) standardised embeddings, and indicators of the label that a penalty hardly touches."""
    dummies = (rows.values[:, None] == np.arange(n_values)).astype(np.float32) * DUMMY_SCALE
    return np.ascontiguousarray(np.hstack([standard.apply(rows.z), dummies]))


def _scores(head: FittedHead, z: Embeddings) -> Array:
    return probabilities(z.astype(np.float64) @ head.weight.T + head.bias, "multiclass")
