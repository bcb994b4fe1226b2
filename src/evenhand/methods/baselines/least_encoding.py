"""Least attribute encoding: of several readings of the embeddings take the one that tells least of the attribute, at next to no cost.

The readings are the first m principal components of the embeddings, standardised by the training rows,

    x~ = (x - mean) / sd,     z_m = V_m' x~,     V_m (d, m) the leading eigenvectors of Cov(x~),     m in 8, 16, 32, … and d

each with a linear probe of its own, whose L2 strength is chosen on the validation rows. Two figures are read on those rows:

    A_m   the probe's AUC: mean over labels; several classes: mean of each against the rest
    E_m   the AUC with which fresh heads, fitted on the z_m of the training rows, tell the groups apart within every value of
          the label (`read_given_label`): mean over values weighted by rows, then over labels; K groups: mean of each against
          the rest. given_label=false: one head, all rows, whatever the label

    choose the m with the least max(E_m, 1/2) among those with A_m >= max A - tolerance; ties: the fewest components

An E under 1/2 counts as 1/2, since heads that err on rows they have not seen found nothing. All d components are always a
candidate, so the choice gives up at most ``tolerance`` of validation AUC against the plain probe. A rotation changes
neither the penalty nor the fit: at m = d this is `linear_probe`. Projection and probe fold into one affine map.

Only what the classifier reads gets smaller, not the embedding, and only linear heads have measured it. The heads' own strengths are
chosen on the rows that E is read on, for every candidate alike. Rows whose attribute is missing train the probe, but no
head of the attribute. Any number of groups; several labels share one m.

References:
    Yang, Zhang, Gichoya, Katabi, Ghassemi, "The limits of fair medical imaging AI in real-world generalization", Nature
    Medicine 30 (2024), arXiv 2312.10083: among trained networks those whose features predict the attribute least kept their gaps
    smallest on data from elsewhere. There the candidates are networks; here one encoder is frozen, so they are
    projections of its embeddings, and the label is given to the heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.config.methods import LeastEncodingConfig
from evenhand.errors import MethodError
from evenhand.methods.base import Images, Result, Task
from evenhand.methods.baselines.linear_probe import head_result, head_spec
from evenhand.methods.cells import choose_attribute, groups_of, missing_note
from evenhand.methods.editing.attribute_head import LEAST, fit_reader
from evenhand.methods.editing.group_auc import GroupAUC
from evenhand.methods.editing.label_reader import LabelledRows, read_given_label
from evenhand.methods.fitting import FittedHead, fit_head, label_columns
from evenhand.methods.heads import Array, Embeddings, Standardizer
from evenhand.methods.predictors import probabilities
from evenhand.methods.registry import register
from evenhand.metrics.auc import auc

CHUNK = 8192
SMALLEST = 8
"""Fewest components that are tried when none are given."""

USED_VALIDATION = "validation rows chose the components, so figures on them flatter the choice; judge it by other rows"


@dataclass(frozen=True)
class Axes:
    """The principal axes of standardised embeddings.

    Attributes:
        standard: mean and deviation of the rows they were fitted on.
        vectors: float64 (d, d), a column an axis, by falling variance.
    """

    standard: Standardizer
    vectors: Array

    @classmethod
    def fit(cls, x: Embeddings) -> Axes:
        """Of raw embeddings (n, d)."""
        standard = Standardizer.fit(x)
        data, d = standard.apply(x), x.shape[1]
        gram, mean = np.zeros((d, d)), data.mean(axis=0, dtype=np.float64)
        for start in range(0, len(data), CHUNK):
            block = data[start : start + CHUNK] - mean
            gram += block.T @ block
        return cls(standard, np.ascontiguousarray(np.linalg.eigh(gram)[1][:, ::-1]))

    def components(self, x: Embeddings) -> Embeddings:
        """All components (n, d) of raw embeddings, float32."""
        out = np.empty_like(x)
        for start in range(0, len(x), CHUNK):
            out[start : start + CHUNK] = self.standard.apply(x[start : start + CHUNK]).astype(np.float64) @ self.vectors
        return out

    def fold(self, head: FittedHead) -> FittedHead:
        """A head on the first m components as one on raw embeddings."""
        weight = head.weight @ self.vectors[:, : head.weight.shape[1]].T
        weight, bias = self.standard.fold(np.hstack([weight, head.bias[:, None]]))
        return replace(head, weight=weight, bias=bias)


@dataclass(frozen=True)
class Candidate:
    """The probe on the first components, and what can be read there.

    Attributes:
        components: m.
        l2: the probe's strength.
        auc: of the probe on validation rows.
        attribute_auc: of fresh heads of the attribute on validation rows.
        head: the probe, on the components.
    """

    components: int
    l2: float
    auc: float
    attribute_auc: float
    head: FittedHead

    def record(self, chosen: bool) -> dict[str, Any]:
        """JSON."""
        figures = {"val_auc": self.auc, "attribute_auc": self.attribute_auc}
        return {"components": self.components, "l2": self.l2, **figures, "chosen": chosen}


def candidate_sizes(asked: Sequence[int] | None, d: int) -> list[int]:
    """Rising numbers of components, the last of them d.

    Args:
        asked: numbers to try beside d; None: powers of two from 8.
        d: numbers in an embedding.

    Raises:
        MethodError: a number is not from 1 to d.

    Example:
        >>> candidate_sizes(None, 50), candidate_sizes([4, 2], 50)
        ([8, 16, 32, 50], [2, 4, 50])
    """
    if asked is None:
        return [m for power in range(d.bit_length()) if SMALLEST <= (m := 2**power) < d] + [d]
    wrong = [m for m in asked if not 1 <= m <= d]
    if wrong:
        raise MethodError(
            f"method.components holds {wrong[0]}, but an embedding has {d} numbers, so each must be from 1 to {d}; "
            "correct it, or leave it out for powers of two"
        )
    return sorted({*asked, d})


def probe_auc(head: FittedHead, z: Embeddings, y: npt.NDArray[Any], kind: str) -> float:
    """AUC of a head: mean over the labels (classes, each against the rest) that have both values; NaN where none has."""
    scores = probabilities(z.astype(np.float64) @ head.weight.T + head.bias, kind)
    found = []
    for column, (codes, labelled) in enumerate(label_columns(y, kind)):
        for output in range(scores.shape[1]) if kind == "multiclass" else (column,):
            truth = codes[labelled] == (output if kind == "multiclass" else 1)
            if 0 < truth.sum() < len(truth):
                found.append(auc(truth, scores[labelled, output]))
    return float(np.mean(found)) if found else float("nan")


def attribute_auc(task: Task, attribute: str, z: Embeddings, z_val: Embeddings, given_label: bool) -> float | None:
    """AUC with which fresh heads tell the groups apart on the validation rows; None where they are too few.

    Args:
        task: whose rows they are.
        attribute: which groups.
        z: (n, m) components of the training rows; columns are not scaled, so that those of all d cost what embeddings cost.
        z_val: (n_val, m), at least one row.
        given_label: whether the heads know the label and are judged within its values.
    """
    codes, seen = task.train.groups[attribute].codes, task.val.groups[attribute].codes
    n_groups = len(task.train.groups[attribute].keys)
    found = GroupAUC(task.val, attribute, task.seed, 0)
    if not given_label:
        known = codes >= 0
        head, _ = fit_reader(z[known], codes[known], n_groups, (z_val, seen), standardize=False)
        estimate = found.overall(probabilities(z_val.astype(np.float64) @ head.weight.T + head.bias, "multiclass"))
    else:
        names = task.classes or ("0", "1")
        columns = zip(label_columns(task.train.y, task.kind), label_columns(task.val.y, task.kind), strict=True)
        for column, (own, own_val) in enumerate(columns):
            train, val = LabelledRows(z, codes, *own), LabelledRows(z_val, seen, *own_val)
            if len(np.unique(codes[train.usable()])) > 1:
                scores, _ = read_given_label(train, val, val, n_groups, len(names), standardize=False)
                found.within(scores, task.kind, column, task.labels[column], names)
        estimate = found.over_labels(task.labels)
    return None if estimate["value"] is None else float(estimate["value"])


def choose(candidates: Sequence[Candidate], tolerance: float) -> Candidate:
    """The one that encodes least, not counting what is below chance, among those within ``tolerance`` of the best AUC."""
    best = max(item.auc for item in candidates)
    enough = [item for item in candidates if item.auc >= best - tolerance]
    return min(enough, key=lambda item: (max(item.attribute_auc, 0.5), item.components))


@register("least_encoding")
class LeastEncoding:
    """The probe on those leading components that tell least of the attribute.

    Args:
        config: its options; see `LeastEncodingConfig`.
    """

    def __init__(self, config: LeastEncodingConfig | None = None) -> None:
        self.config = config or LeastEncodingConfig()

    def fit(self, task: Task) -> Result:
        """Fit every candidate on the training rows and choose on the validation rows; deterministic.

        Raises:
            MethodError: the attribute is unknown or has fewer than two groups; there are too few validation rows for an AUC
                of the label or of the attribute; or ``components`` holds a number that is not from 1 to d.
        """
        attribute = choose_attribute(task, self.config.attribute)
        groups = groups_of(task.train, attribute)
        if len(task.val) == 0:
            raise MethodError("least_encoding chooses by validation rows, but there are none; make a val split, or use leace")
        x = task.embed(task.train.x)
        sizes = candidate_sizes(self.config.components, x.shape[1])
        axes = Axes.fit(x)
        z, z_val = axes.components(x), axes.components(task.embed(task.val.x))
        candidates = [self._candidate(task, attribute, z[:, :m], z_val[:, :m]) for m in sizes]
        chosen = choose(candidates, self.config.tolerance)
        notes = missing_note(groups, "train the probe, but no head of the attribute")
        notes = (*notes, self._words(attribute, chosen, candidates[-1]), USED_VALIDATION)
        records = tuple(item.record(item is chosen) for item in candidates)
        return head_result(task, replace(axes.fold(chosen.head), history=records), notes)

    def _candidate(self, task: Task, attribute: str, z: Embeddings, z_val: Embeddings) -> Candidate:
        encoded = attribute_auc(task, attribute, z, z_val, self.config.given_label)
        if encoded is None:
            where, else_what = (" with one value of a label", ", method.given_label=false") if self.config.given_label else ("", "")
            raise MethodError(
                f"how well '{attribute}' can be read is not estimable on {len(task.val)} validation rows: an AUC needs {LEAST} patients in "
                f"a group and {LEAST} outside it{where}; use a larger val split{else_what}, or leace"
            )

        def embed(images: Images) -> Embeddings:
            return z_val if images is task.val.x else z

        spec = head_spec(replace(task, embed=embed), self.config, standardize=False)
        head = fit_head(z, task.train.y, spec)
        found = probe_auc(head, z_val, task.val.y, task.kind)
        if np.isnan(found):
            raise MethodError(
                f"no label has two values among the {len(task.val)} validation rows, but least_encoding compares candidates by their AUC "
                "there; use a larger val split, or leace"
            )
        task.report(f"least encoding: {z.shape[1]} components, AUC {found:.3f}, of '{attribute}' {encoded:.3f}")
        return Candidate(z.shape[1], spec.l2, found, encoded, head)

    def _words(self, attribute: str, chosen: Candidate, full: Candidate) -> str:
        """What was chosen, beside all components."""
        given = " given the label" if self.config.given_label else ""
        figures = f"validation AUC {chosen.auc:.3f}, and fresh heads tell '{attribute}'{given} with AUC {chosen.attribute_auc:.3f}"
        if chosen is full:
            rule = f"no fewer components are within {self.config.tolerance:g} of the best validation AUC and tell less"
            return f"all {full.components} principal components are read: {figures}; {rule}"
        plain = f"all {full.components}: {full.auc:.3f} and {full.attribute_auc:.3f}"
        return f"the first {chosen.components} of {full.components} principal components are read: {figures} ({plain})"
