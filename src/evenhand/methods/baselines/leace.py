"""LEACE: erase the attribute from the embeddings, then fit the linear probe; folded into one affine map.

The least-squares eraser is the affine map x' = x - W^+ U U' W (x - mean(x)) with W a whitening of x and U an orthonormal
basis of W Cov(x, z), z the one-hot group. Among all affine maps after which no linear classifier can tell the groups
better than a constant, it changes x least. Any number of groups K (rank at most K - 1).

given_label=true erases only what the label does not explain: with the residuals

    x~_i = x_i - mean(x | y = y_i),     z~_i = z_i - mean(z | y = y_i)          (means over the training rows)

the map is fitted on Cov(x~) and Cov(x~, z~), and then applied as x' = x - A (x - mean(x)) to every row. Afterwards the
pooled within-label covariance of x' and z is zero; that between labels, which prevalence explains, may stay.

The eraser is fitted on the training rows whose attribute is known; the others are transformed like all rows and train the
probe. With given_label the unlabelled rows are left out of the fit too. Multi-label: with given_label every label has an
eraser of its own. After erasure the group is gone from what a *linear* head can read on the training rows; a non-linear
reader, or other data, may still find it.

References:
    Belrose et al., "LEACE: Perfect linear concept erasure in closed form", NeurIPS 2023, arXiv 2306.03819 (the authors'
    package, without its covariance shrinkage and trace constraint, either of which gives up exactness, and with a
    singular-value tolerance of 1e-6 for 0.01). given_label is our use of it on residuals.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from evenhand.config.methods import LEACEConfig
from evenhand.methods.base import Result, Task
from evenhand.methods.baselines.linear_probe import head_result, head_spec
from evenhand.methods.cells import choose_attribute, groups_of, missing_note
from evenhand.methods.fitting import FittedHead, fit_head, label_columns
from evenhand.methods.heads import Array, Embeddings
from evenhand.methods.registry import register

CHUNK = 8192
TOLERANCE = 1e-6


def _fitter(dim: int, n_groups: int) -> Any:
    with warnings.catch_warnings():
        # the package compiles one function with an interface that torch has deprecated
        warnings.simplefilter("ignore")
        from concept_erasure import LeaceFitter
    options = {"constrain_cov_trace": False, "shrinkage": False, "svd_tol": TOLERANCE}
    return LeaceFitter(dim, n_groups, dtype=torch.float64, **options)


def _residuals(values: Array, labels: npt.NDArray[np.int64]) -> Array:
    """Each row less the mean of its label's rows."""
    out = values.copy()
    for label in np.unique(labels):
        rows = labels == label
        out[rows] -= values[rows].mean(axis=0)
    return out


def fit_eraser(
    x: Embeddings, groups: npt.NDArray[np.int64], n_groups: int, labels: npt.NDArray[np.int64] | None = None
) -> tuple[Array, Array]:
    """The affine map x' = M x + c that erases the group.

    Args:
        x: raw embeddings (n, d).
        groups: codes (n,), -1 where missing; such rows are left out.
        n_groups: K.
        labels: label codes (n,), -1 where unlabelled, to erase given the label; None to erase outright.

    Returns:
        M float64 (d, d) and c float64 (d,).
    """
    used = (groups >= 0) if labels is None else (groups >= 0) & (labels >= 0)
    rows, z = x[used].astype(np.float64), np.eye(n_groups)[groups[used]]
    centre = rows.mean(axis=0)
    scale = rows.std(axis=0)
    # a common scale only conditions the numbers: the map is equivariant under it
    scale = np.where(scale > 1e-7 * np.abs(centre), scale, 1.0)
    rows = (rows - centre) / scale
    if labels is not None:
        rows, z = _residuals(rows, labels[used]), _residuals(z, labels[used])
    fitter = _fitter(x.shape[1], n_groups)
    for start in range(0, len(rows), CHUNK):
        fitter.update(torch.from_numpy(rows[start : start + CHUNK]), torch.from_numpy(z[start : start + CHUNK]))
    eraser = fitter.eraser
    removed = (eraser.proj_left @ eraser.proj_right).numpy() * scale[:, None] / scale
    return np.eye(x.shape[1]) - removed, removed @ centre


def erase(x: Embeddings, matrix: Array, shift: Array) -> Embeddings:
    """M x + c for every row, float32."""
    out = np.empty_like(x)
    for start in range(0, len(x), CHUNK):
        out[start : start + CHUNK] = x[start : start + CHUNK].astype(np.float64) @ matrix.T + shift
    return out


def _through(head: FittedHead, matrix: Array, shift: Array) -> FittedHead:
    """The head on erased embeddings as a head on raw ones."""
    return replace(head, weight=head.weight @ matrix, bias=head.bias + head.weight @ shift)


@register("leace")
class LEACE:
    """Concept erasure of the attribute, then a linear probe.

    Args:
        config: its options; see `LEACEConfig`.
    """

    def __init__(self, config: LEACEConfig | None = None) -> None:
        self.config = config or LEACEConfig()

    def fit(self, task: Task) -> Result:
        """Fit on the training rows; deterministic, the seed is not used.

        Raises:
            MethodError: the attribute is unknown or has fewer than two groups.
        """
        attribute = choose_attribute(task, self.config.attribute)
        groups = groups_of(task.train, attribute)
        x = task.embed(task.train.x)
        spec = head_spec(task, self.config)
        notes = missing_note(groups, "do not fit the eraser, but are erased and train the probe")
        if not self.config.given_label or task.kind != "multilabel":
            labels = None
            if self.config.given_label:
                codes, labelled = label_columns(task.train.y, task.kind)[0]
                labels = np.where(labelled, codes, -1)
            matrix, shift = fit_eraser(x, groups.codes, len(groups.keys), labels)
            head = fit_head(erase(x, matrix, shift), task.train.y, spec)
            return head_result(task, _through(head, matrix, shift), notes)
        return head_result(task, self._per_label(task, x), notes)

    def _per_label(self, task: Task, x: Embeddings) -> FittedHead:
        """given_label with several labels: an eraser and a probe per label, stacked."""
        attribute = choose_attribute(task, self.config.attribute)
        groups = task.train.groups[attribute]
        heads = []
        for column, (name, (codes, labelled)) in enumerate(zip(task.labels, label_columns(task.train.y, task.kind), strict=True)):
            matrix, shift = np.eye(x.shape[1]), np.zeros(x.shape[1])
            if (labelled & (groups.codes >= 0)).any():
                matrix, shift = fit_eraser(x, groups.codes, len(groups.keys), np.where(labelled, codes, -1))
            spec = replace(head_spec(task, self.config), labels=(name,))
            heads.append(_through(fit_head(erase(x, matrix, shift), task.train.y[:, [column]], spec, refuse=False), matrix, shift))
        weight, bias = np.concatenate([head.weight for head in heads]), np.concatenate([head.bias for head in heads])
        return FittedHead(weight, bias, tuple(r for head in heads for r in head.history), tuple(n for head in heads for n in head.notes))
