"""DFR: refit the last layer on group-balanced held-out rows.

1. Held-out rows: the validation rows (published), or a share of the training patients.
2. Draw a subset with the same number of rows, that of the smallest cell, from every group x label cell.
3. Fit the L2-regularised logistic head on it, on features standardised by the training rows.
4. Repeat 2-3 ``n_models`` times and average weights and intercepts: one affine map.

scope=head takes the frozen encoder's embeddings; scope=full first fine-tunes the network (ERM), takes its features and
puts the averaged head into it. Any number of groups. Rows whose attribute is missing are in no cell and are left out, as
are cells without rows (said in the notes). Multi-label: every label has subsets of its own.

References:
    Kirichenko, Izmailov, Wilson, "Last layer re-training is sufficient for robustness to spurious correlations", ICLR
    2023, arXiv 2204.02937 (DFR-Val). The paper's head has an L1 penalty tuned on half of the validation rows; ours has an
    L2 penalty that is not tuned. When validation rows are used, thresholds chosen on them are no longer independent.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from evenhand.config.methods import DFRConfig
from evenhand.errors import MethodError
from evenhand.methods.base import Images, Result, Split, Task
from evenhand.methods.baselines.erm import take_rows, train_network
from evenhand.methods.baselines.linear_probe import head_result, head_spec
from evenhand.methods.cells import Cells, choose_attribute, split_cells
from evenhand.methods.fitting import FittedHead, average, fit_head
from evenhand.methods.heads import Array, Embeddings, Standardizer
from evenhand.methods.predictors import ModelPredictor
from evenhand.methods.registry import register
from evenhand.random import generator

USED_VALIDATION = "validation rows refitted the last layer; thresholds chosen on them are no longer independent"


def balanced_subset(cells: Cells, rng: np.random.Generator) -> Array:
    """1 for the rows drawn, 0 for the others: as many of every cell, without replacement, as the smallest has.

    Example:
        >>> cells = Cells(np.array([0, 0, 0, 1, -1]), ("a", "b"), np.array([0, 1]))
        >>> float(balanced_subset(cells, np.random.default_rng(0)).sum())
        2.0
    """
    chosen = np.zeros(len(cells.codes))
    smallest = int(cells.counts.min(initial=len(cells.codes)))
    for cell in range(len(cells.names)):
        chosen[rng.choice(np.flatnonzero(cells.codes == cell), smallest, replace=False)] = 1.0
    return chosen


def hold_out(patients: npt.NDArray[Any], share: float, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Which rows are held out: all rows of a random share of the patients, at least one patient."""
    unique = np.unique(patients)
    chosen = rng.permutation(unique)[: max(1, round(share * len(unique)))]
    return np.isin(patients, chosen)


@register("dfr")
class DFR:
    """Last-layer retraining on balanced held-out rows.

    Args:
        config: its options; see `DFRConfig`.
    """

    def __init__(self, config: DFRConfig | None = None) -> None:
        self.config = config or DFRConfig()

    def fit(self, task: Task) -> Result:
        """Fit on the held-out rows; the subsets derive from the task's seed.

        Raises:
            MethodError: no held-out row, or the attribute is unknown or has fewer than two groups there.
        """
        attribute = choose_attribute(task, self.config.attribute)
        held = np.zeros(len(task.train), dtype=bool)
        if self.config.held_out == "train":
            held = hold_out(task.train.patient, self.config.share, generator(task.seed, "dfr", "held out"))
        elif len(task.val) == 0:
            raise MethodError("dfr refits the head on validation rows, but there are none; set method.held_out=train or make a val split")
        cells = split_cells(take_rows(task.train, np.flatnonzero(held)) if held.any() else task.val, task, attribute)
        notes = (*_cell_notes(cells, attribute, task), *((USED_VALIDATION,) if self.config.held_out == "val" else ()))
        if self.config.scope == "full":
            return self._full(task, held, cells, notes)
        x = task.embed(task.train.x)
        refit = x[held] if held.any() else task.embed(task.val.x)
        y = task.train.y[held] if held.any() else task.val.y
        return head_result(task, self._refit(task, Standardizer.fit(x[~held]), refit, y, cells), notes)

    def _refit(self, task: Task, standard: Standardizer, x: Embeddings, y: npt.NDArray[Any], cells: list[Cells]) -> FittedHead:
        spec = head_spec(task, self.config)
        heads = []
        for number in range(self.config.n_models):
            rng = generator(task.seed, "dfr", number)
            weights = [balanced_subset(item, rng) for item in cells]
            heads.append(fit_head(x, y, spec, weights=weights, standardizer=standard))
            heads[-1] = replace(heads[-1], history=tuple({"subset": number, **record} for record in heads[-1].history))
        return average(heads)

    def _full(self, task: Task, held: npt.NDArray[np.bool_], cells: list[Cells], notes: tuple[str, ...]) -> Result:
        train = take_rows(task.train, np.flatnonzero(~held)) if held.any() else task.train
        refit: Split = take_rows(task.train, np.flatnonzero(held)) if held.any() else task.val
        result = train_network(task, train)
        predictor = result.predictor
        assert isinstance(predictor, ModelPredictor)
        features = features_of(predictor, train.x)
        head = self._refit(task, Standardizer.fit(features), features_of(predictor, refit.x), refit.y, cells)
        put_head(predictor.model, head)
        history = [*result.history, *head.history]
        return Result(predictor, history=history, notes=(*result.notes, *head.notes, *notes))


def _cell_notes(cells: list[Cells], attribute: str, task: Task) -> tuple[str, ...]:
    notes = []
    groups = len({name.split(", ")[0] for item in cells for name in item.names})
    for label, item in zip(task.labels, cells, strict=True):
        if not item.names:
            continue
        wanted = groups * (len(task.classes) if task.kind == "multiclass" else 2)
        absent = f"; {wanted - len(item.names)} of {wanted} cells have no held-out row" if len(item.names) < wanted else ""
        smallest = int(item.counts.argmin())
        if absent or item.counts[smallest] < 10:
            notes.append(f"'{label}' by '{attribute}': each cell gives {item.counts[smallest]} rows ({item.names[smallest]}){absent}")
    return tuple(notes)


def features_of(predictor: ModelPredictor, images: Images) -> Embeddings:
    """What the head of a trained network sees, float32 (n, d), without gradients and in evaluation mode."""
    model: Any = predictor.model
    model.to(predictor.device).eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), predictor.batch_size):
            batch = images.batch(slice(start, min(start + predictor.batch_size, len(images))))
            parts.append(model.embed(batch.to(predictor.device)).float().cpu().numpy())
    return np.concatenate(parts)


def linear_head(model: torch.nn.Module) -> torch.nn.Linear:
    """A network's last layer.

    Raises:
        MethodError: it is not linear with a bias, so no fitted head can be written into it.
    """
    network: Any = getattr(model, "network", model)
    last = network.get_classifier()
    if not isinstance(last, torch.nn.Linear) or last.bias is None:
        raise MethodError(f"this method replaces a linear last layer, but this network ends in {last}; use another model, or scope=head")
    return last


def put_head(model: torch.nn.Module, head: FittedHead) -> None:
    """Write an affine head into a network's last layer.

    Raises:
        MethodError: the last layer is not linear, or of another shape.
    """
    last = linear_head(model)
    if tuple(last.weight.shape) != head.weight.shape:
        raise MethodError(f"a head of shape {head.weight.shape} does not fit the last layer, {last}; use a model with that many outputs")
    with torch.no_grad():
        last.weight.copy_(torch.from_numpy(head.weight))
        last.bias.copy_(torch.from_numpy(head.bias))
