"""The rows of every step of an edit's training, and the rows that its heads are fitted on before it.

Plain: an epoch is all training rows in a new order; every ``refit_every`` steps heads are fitted on reference rows drawn
from all of them, so most rows of a step are among those that the heads have seen.

Crosswise (``cross_fit``): an epoch is two halves of the patients, drawn anew,

    steps on half 1 with heads fitted on half 2, then steps on half 2 with heads fitted on half 1

so the loss that the edit lowers is one of images that the heads have not seen, as it is wherever the edit is used.

References:
    The splitting is that of V. Chernozhukov et al., "Double/debiased machine learning for treatment and structural
    parameters", The Econometrics Journal 21, 2018, with two folds; there it is of a nuisance model, here of the heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.errors import MethodError
from evenhand.random import derive_seed, generator
from evenhand.training.sampling import epoch_order, even_batches

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        rows: (b,) positions of its training rows.
        heads: (m,) positions that reference rows of a re-fit before it are drawn from; None: no re-fit here.
        progress: share of the training that lies before it, in [0, 1).
    """

    rows: IntArray
    heads: IntArray | None
    progress: float


@dataclass(frozen=True)
class Steps:
    """All steps of a training; they depend on these numbers and the epoch only.

    Attributes:
        seed: of order and halves.
        patient: (n,) equal for images of one patient.
        epochs: of the whole training.
        batch_size: most rows a step.
        refit_every: steps between re-fits.
        cross_fit: see the module.
    """

    seed: int
    patient: npt.NDArray[np.integer[Any]]
    epochs: int
    batch_size: int
    refit_every: int
    cross_fit: bool

    def epoch(self, number: int) -> list[Step]:
        """The steps of epoch 1, 2, …"""
        order = epoch_order(np.arange(len(self.patient)), derive_seed(self.seed, "edit"), number)
        return list(self._crosswise(order, number) if self.cross_fit else self._plain(order, number))

    def _plain(self, order: IntArray, number: int) -> Iterator[Step]:
        batches = even_batches(len(order), self.batch_size)
        every = np.arange(len(order))
        for k, cut in enumerate(batches):
            step = (number - 1) * len(batches) + k
            yield Step(order[cut], None if step % self.refit_every else every, step / (self.epochs * len(batches)))

    def _crosswise(self, order: IntArray, number: int) -> Iterator[Step]:
        first = patient_half(self.patient, derive_seed(self.seed, "edit halves"), number)
        halves = [order[first[order]], order[~first[order]]]
        cuts = [even_batches(len(half), self.batch_size) for half in halves]
        total, k = len(cuts[0]) + len(cuts[1]), 0
        for half, other, batches in zip(halves, halves[::-1], cuts, strict=True):
            for n, cut in enumerate(batches):
                heads = None if n % self.refit_every else np.sort(other)
                yield Step(half[cut], heads, ((number - 1) * total + k) / (self.epochs * total))
                k += 1


def patient_half(patient: npt.NDArray[np.integer[Any]], seed: int, number: int) -> npt.NDArray[np.bool_]:
    """(n,) the rows of patients drawn until they have half of all rows; both sides have at least one patient.

    Example:
        >>> half = patient_half(np.array([0, 0, 1, 1, 2, 2, 3, 3]), seed=0, number=1)
        >>> int(half.sum()), bool((half[::2] == half[1::2]).all())
        (4, True)

    Raises:
        MethodError: one patient.
    """
    names, codes, counts = np.unique(patient, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise MethodError(
            f"method.cross_fit=true fits heads on one half of the training patients and the edit on the other, but there is "
            f"{len(names)} patient; leave it off, or train on more patients"
        )
    drawn = generator(seed, "half", number).permutation(len(names))
    enough = int(np.searchsorted(np.cumsum(counts[drawn]), len(patient) / 2)) + 1
    chosen = np.zeros(len(names), dtype=bool)
    chosen[drawn[: min(enough, len(names) - 1)]] = True
    return np.asarray(chosen[codes], dtype=np.bool_)
