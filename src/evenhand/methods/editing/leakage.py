"""What an edit hides and what it only fools, beside its two controls.

- fooled: how well the *old* head reads edited embeddings, the one fitted on unedited ones. Any disturbance fools it.
- hidden: how well a *fresh* head does, fitted on edited training embeddings, on rows that no head has seen: overall; within
  each value of a label; and given the label, the mean of the latter weighted by rows. The heads behind the numbers within
  a label know the label (`evenhand.methods.editing.label_reader`), so that what remains above 0.5 is in the embedding beyond
  it. Two groups have one AUC; with more it is the mean over groups of each against the rest.
- controls: no edit at all, and Gaussian noise of the edit's size (`evenhand.methods.editing.noise`).

- unseen: the same as hidden, by heads fitted on the measured rows themselves, crosswise: patients are dealt into `FOLDS` parts,
  and every part is read by heads fitted on the others; an AUC is over the pairs of rows in one part, since heads of different
  parts have different scales, and pairs across them come out below 0.5 where nothing can be read. The fresh head of *hidden*
  learns from the training rows, as a disease head does; an edit that was trained on these very rows may hide the attribute
  better in them than in others, and somebody who fits a head on images that the edit has never seen can then read more. Claims
  should stand on both.

L2 strengths are chosen on validation rows. Intervals are percentiles of a patient-clustered bootstrap of the measured rows
with the heads as they are; all conditions share the draws, so ``change`` (edit minus no edit) is a paired difference.
On few rows an AUC can lie far below 0.5 with its whole interval, because scores do not carry over from the rows that heads were fitted
on: such an attribute has a ``doubt``, a sentence, and no change where that AUC is in it.
With another encoder, or the labels of another task, the same function measures transfer: the edit is applied, everything
else is fitted anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.data.groups import Groups
from evenhand.edits.base import Edit
from evenhand.edits.images import EditedImages
from evenhand.edits.quality import visibility
from evenhand.errors import MethodError
from evenhand.methods.base import Images, Split
from evenhand.methods.editing.attribute_head import AttributeHead, fit_attribute_head, fit_reader, measure_head, needs_two_groups
from evenhand.methods.editing.group_auc import GroupAUC, difference, doubt, null
from evenhand.methods.editing.label_reader import LabelledRows, read_given_label
from evenhand.methods.editing.noise import NoiseControl
from evenhand.methods.fitting import label_columns
from evenhand.methods.predictors import probabilities
from evenhand.random import generator

Array = npt.NDArray[np.float64]
Embeddings = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int64]
VISIBILITY_IMAGES = 256
FOLDS = 3
WORDS = {"none": "no edit", "edit": "edit", "noise": "noise"}


@dataclass(frozen=True)
class LeakageRows:
    """Where leakage is measured.

    Attributes:
        embed: images -> (n, d) float32.
        train: rows that fresh heads are fitted on.
        val: rows that their L2 strength is chosen on; may be empty.
        test: rows that are measured.
        kind: kind of the labels.
        labels: their names.
        classes: multi-class: the class names.
    """

    embed: Callable[[Images], Embeddings]
    train: Split
    val: Split
    test: Split
    kind: str
    labels: tuple[str, ...]
    classes: tuple[str, ...] = ()

    def embeddings(self, edit: Edit | None) -> tuple[Embeddings, Embeddings, Embeddings]:
        """Of train, val and test images under an edit."""
        splits = (self.train, self.val, self.test)
        train, val, test = (self.embed(split.x if edit is None else EditedImages(split.x, edit)) for split in splits)
        return train, val, test


def measure_leakage(
    rows: LeakageRows,
    edit: Edit,
    attributes: tuple[str, ...],
    *,
    heads: Mapping[str, AttributeHead] | None = None,
    head_config: Any = None,
    seed: int = 0,
    n_bootstrap: int = 1000,
    controls: bool = True,
    unseen: bool = True,
) -> dict[str, Any]:
    """Fooled, hidden and unseen, for the edit and its controls.

    Args:
        rows: where it is measured.
        edit: what is measured.
        attributes: which attributes.
        heads: old heads by attribute, fitted on unedited images of this encoder; default: they are fitted here.
        head_config: options of heads fitted here; default: those of `EditMethodConfig`.
        seed: of the noise control and the bootstrap.
        n_bootstrap: replicates.
        controls: also measure no edit and noise.
        unseen: also fit heads crosswise on the measured rows.

    Returns:
        JSON: ``n_train, n, n_patients, visibility`` and ``attributes.<name>.<none | edit | noise>.{fooled, hidden, unseen}``, with
        ``change`` and, where there is one, ``doubt`` beside them, and under a label ``slopes``, which head read each of its values.
        An AUC is ``{value, lower, upper, n}``, null with a reason where a class has fewer than 10 patients.

    Raises:
        MethodError: nothing to measure on, or one group among the training rows.
    """
    from evenhand.config.editing import EditMethodConfig

    if not len(rows.test):
        raise MethodError("leakage needs rows to be measured on, but the split has none; choose another split")
    for attribute in attributes:
        needs_two_groups(rows.train, attribute)
    config = head_config or EditMethodConfig(name="measure")
    noise = NoiseControl(edit, seed)
    conditions: dict[str, Edit | None] = {"none": None, "edit": edit, "noise": noise}
    wanted = ("none", "edit", "noise") if controls else ("edit",)
    z = {name: rows.embeddings(conditions[name]) for name in wanted}
    shown = np.unique(np.linspace(0, len(rows.test) - 1, VISIBILITY_IMAGES).astype(np.int64))
    out: dict[str, Any] = {"n_train": len(rows.train), "n": len(rows.test), "n_patients": len(np.unique(rows.test.patient))}
    out["visibility"] = {
        name: visibility(what, rows.test.x, shown).to_json() for name in wanted if (what := conditions[name]) is not None
    }
    out["noise"] = "one pattern for all images" if noise.fixed else "drawn for every image"
    out["attributes"] = {}
    for attribute in attributes:
        old = (heads or {}).get(attribute)
        if old is None:
            plain = z.get("none") or rows.embeddings(None)
            old = fit_attribute_head((plain[0], rows.train), (plain[1], rows.val), attribute, config, seed)
        found = {name: _Condition(rows, z[name], attribute, seed, n_bootstrap) for name in wanted}
        crosswise = {name: item.unseen() for name, item in found.items()} if unseen else {}
        codes = rows.test.groups[attribute].codes
        record: dict[str, Any] = {
            name: {"fooled": measure_head(old, z[name][2], codes, rows.test.patient), "hidden": item.record} for name, item in found.items()
        }
        for name, (said, _) in crosswise.items():
            record[name]["unseen"] = said
        if controls:
            record["change"] = _change(found["edit"].auc, found["none"].auc)
            if crosswise:
                record["change_unseen"] = _change(crosswise["edit"][1], crosswise["none"][1])
        out["attributes"][attribute] = record | _doubt(record)
    return out


def _doubt(record: Mapping[str, Any]) -> dict[str, str]:
    """``doubt``, where there is one about a condition's hidden or unseen AUC."""
    read = {f"{words}, {kind}": record[name][kind] for name, words in WORDS.items() if name in record for kind in ("hidden", "unseen")
            if kind in record[name]}
    keys = (("overall", "overall"), ("given_label", "given the label"))
    said = doubt({f"{name} {words}": found[key] for name, found in read.items() for key, words in keys})
    return {"doubt": said} if said else {}


def _change(after: GroupAUC, before: GroupAUC) -> dict[str, Any]:
    return {name: difference(after.draws.get(name), before.draws.get(name)) for name in ("overall", "given_label")}


class _Condition:
    """Fresh heads of one attribute under one condition, and what they read on the test rows."""

    def __init__(
        self, rows: LeakageRows, z: tuple[Embeddings, Embeddings, Embeddings], attribute: str, seed: int, n_bootstrap: int
    ) -> None:
        self.rows, self.z, self.attribute, self.seed, self.n_bootstrap = rows, z, attribute, seed, n_bootstrap
        self.n_groups = len(rows.train.groups[attribute].keys)
        self.codes, self.val_codes = rows.train.groups[attribute].codes, rows.val.groups[attribute].codes
        self.auc = GroupAUC(rows.test, attribute, seed, n_bootstrap)
        scores, self.l2 = self._marginal()
        self.record: dict[str, Any] = {"l2": self.l2, "overall": self.auc.overall(scores)}
        self.record["labels"] = {name: self._label(column, name) for column, name in enumerate(rows.labels)}
        self.record["given_label"] = self.auc.over_labels(rows.labels)

    def _marginal(self) -> tuple[Array, float]:
        fit = self.codes >= 0
        head, l2 = fit_reader(self.z[0][fit], self.codes[fit], self.n_groups, (self.z[1], self.val_codes))
        return probabilities(self.z[2].astype(np.float64) @ head.weight.T + head.bias, "multiclass"), l2

    def _label(self, column: int, name: str) -> dict[str, Any]:
        """AUC within every value of one label, by heads that know the label, and their mean weighted by rows."""
        names = self.rows.classes or ("0", "1")
        train, val, test = (self._labelled(split, z, column) for split, z in zip(self._splits, self.z, strict=True))
        if len(np.unique(train.codes[train.usable()])) < 2:
            return {"within": {}, "given_label": null(0, "one group among the labelled training rows")}
        scores, used = read_given_label(train, val, test, self.n_groups, len(names))
        found = self.auc.within(scores, self.rows.kind, column, name, names)
        return {**found, "slopes": {names[value]: kind for value, kind in used.items()}}

    def unseen(self) -> tuple[dict[str, Any], GroupAUC]:
        """JSON as `record`, by heads fitted crosswise on the measured rows, and what it was measured with."""
        test, codes = self.rows.test, self.rows.test.groups[self.attribute].codes
        part = deal_patients(test.patient, self.seed, _cells(codes, test.y))
        auc = GroupAUC(test, self.attribute, self.seed, self.n_bootstrap, part)
        columns = [self._labelled(test, self.z[2], column) for column in range(len(self.rows.labels))]
        needed = [codes[(part != fold) & (codes >= 0)] for fold in range(FOLDS)]
        needed += [rows.codes[(part != fold) & rows.usable()] for fold in range(FOLDS) for rows in columns]
        if any(len(np.unique(seen)) < 2 for seen in needed):
            reason = "one group among the rows of some folds"
            return {"overall": null(0, reason), "labels": {}, "given_label": null(0, reason)}, auc
        names = self.rows.classes or ("0", "1")
        overall = np.full((len(test), self.n_groups), 1.0 / self.n_groups)
        given = [overall.copy() for _ in columns]
        for fold in range(FOLDS):
            fit, read = (part != fold) & (codes >= 0), part == fold
            head, _ = fit_reader(self.z[2][fit], codes[fit], self.n_groups, (self.z[1], self.val_codes))
            overall[read] = probabilities(self.z[2][read].astype(np.float64) @ head.weight.T + head.bias, "multiclass")
            for column, rows in enumerate(columns):
                val = self._labelled(self.rows.val, self.z[1], column)
                scores, _ = read_given_label(rows.take(part != fold), val, rows.take(read), self.n_groups, len(names))
                given[column][read] = scores
        said: dict[str, Any] = {"folds": FOLDS, "overall": auc.overall(overall)}
        said["labels"] = {
            name: auc.within(given[column], self.rows.kind, column, name, names) for column, name in enumerate(self.rows.labels)
        }
        return {**said, "given_label": auc.over_labels(self.rows.labels)}, auc

    @property
    def _splits(self) -> tuple[Split, Split, Split]:
        return self.rows.train, self.rows.val, self.rows.test

    def _labelled(self, split: Split, z: Embeddings, column: int) -> LabelledRows:
        return LabelledRows(z, split.groups[self.attribute].codes, *label_columns(split.y, self.rows.kind)[column])


def deal_patients(patient: npt.NDArray[np.integer[Any]], seed: int, cells: Codes | None = None) -> npt.NDArray[np.int64]:
    """(n,) the part, 0 to `FOLDS` - 1, of every row; a patient's rows are in one part, and parts differ by at most one patient.

    Args:
        patient: (n,) whose row it is.
        seed: of the deal.
        cells: (n,) what the parts should have alike; a patient counts in the cell of their first row.

    Example:
        >>> len(set(deal_patients(np.array([7, 7, 7]), 0)))
        1
    """
    unique, first, own = np.unique(patient, return_index=True, return_inverse=True)
    order = generator(seed, "unseen").permutation(len(unique))
    if cells is not None:
        order = order[np.argsort(cells[first][order], kind="stable")]
    part = np.empty(len(unique), dtype=np.int64)
    part[order] = np.arange(len(unique)) % FOLDS
    return np.asarray(part[own], dtype=np.int64)


def _cells(codes: Codes, y: npt.NDArray[Any]) -> Codes:
    """(n,) one number for every combination of group and labels; a missing label is a value of its own."""
    columns = np.column_stack([codes, np.nan_to_num(np.asarray(y, dtype=np.float64), nan=-1.0)])
    return np.asarray(np.unique(columns, axis=0, return_inverse=True)[1].ravel(), dtype=np.int64)


def summary(report: Mapping[str, Any]) -> list[str]:
    """One sentence an attribute: fooled and hidden side by side, no edit and noise in brackets."""
    out = []
    for attribute, record in report.get("attributes", {}).items():
        edit = record["edit"]
        others = [f"{WORDS[key]} {_shown(record[key]['hidden']['given_label'])}" for key in ("none", "noise") if key in record]
        beside = f" ({', '.join(others)})" if others else ""
        fooled = edit["fooled"]["accuracy"]
        out.append(
            f"{attribute}: fooled, the old head's accuracy {'not measured' if fooled is None else format(fooled, '.3f')}; hidden, a fresh "
            f"head's AUC given the label {_shown(edit['hidden']['given_label'])}{beside}, overall {_shown(edit['hidden']['overall'])}; "
            f"{_unseen_words(record)}"
            f"n = {edit['hidden']['overall']['n']}" + (f"; {record['doubt']}" if "doubt" in record else "")
        )
    return out


def _unseen_words(record: Mapping[str, Any]) -> str:
    if "unseen" not in record["edit"]:
        return ""
    before = f" (no edit {_shown(record['none']['unseen']['given_label'])})" if "none" in record else ""
    return f"by heads fitted on rows the edit has not seen {_shown(record['edit']['unseen']['given_label'])}{before}; "


def _shown(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return "not estimable"
    return f"{estimate['value']:.3f} [{estimate['lower']:.3f}, {estimate['upper']:.3f}]"


def with_labels(split: Split, y: npt.NDArray[Any], groups: Mapping[str, Groups] | None = None) -> Split:
    """The same rows under other labels: how an edit made for one finding is measured for another."""
    return Split(split.x, y, split.groups if groups is None else groups, split.patient, split.index)
