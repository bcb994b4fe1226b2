"""What making a patch and making what it is compared with share: rows, bias term, judging, checkpoints, and the outcome."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from evenhand.config.patch_methods import PatchMethodConfig
from evenhand.data.augment import Augmenter
from evenhand.errors import InputError, MethodError
from evenhand.methods.base import Task
from evenhand.methods.patching.bias import RATES, BiasTerm
from evenhand.methods.patching.heads import check_labels
from evenhand.methods.patching.judging import Judgement, judge, pick
from evenhand.methods.patching.outcome import Cost, PatchOutcome
from evenhand.methods.patching.rows import PatchRows, absent_cells, bias_attributes
from evenhand.methods.patching.selection import check_choice
from evenhand.methods.patching.steps import Objective, Passes
from evenhand.methods.patching.updates import MaskedUpdate
from evenhand.models.parameters import _unwrap, state_fingerprint
from evenhand.training.checkpointing import to_cpu
from evenhand.training.predicting import predict_logits

STATE = "patching"


@dataclass
class Kept:
    """States of a model that were judged, and the one that is kept so far.

    Attributes:
        delivered: the classifier as it came.
        tolerance: see `pick`.
        found: one judgement a state.
        best: position of the one kept.
        state: its state dictionary on the CPU.
    """

    delivered: Judgement
    tolerance: float
    found: list[Judgement] = field(default_factory=list)
    best: int = -1
    state: dict[str, Tensor] = field(default_factory=dict)

    def add(self, judgement: Judgement, model: nn.Module) -> bool:
        """Judge one more state; True where it is the one to keep."""
        self.found.append(judgement)
        chosen = pick(self.found, self.delivered, self.tolerance)
        better = chosen == len(self.found) - 1
        if better:
            self.best, self.state = chosen, to_cpu(model.state_dict())
        return better

    def record(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"found": [dataclasses.astuple(item) for item in self.found], "best": self.best, "state": self.state}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Continue from `record`."""
        self.found = [Judgement(*item) for item in record["found"]]
        self.best, self.state = int(record["best"]), dict(record["state"])


@dataclass
class Setting:
    """See the module.

    Attributes:
        task: the external set.
        model: the classifier, on the task's device; changed in place.
        config: options.
        attributes: of the bias.
        rows: the training rows.
        term: the bias term.
        before: the state as delivered, on the CPU.
        delivered: how validation rows judge it.
        digest: identifies rows, options and weights; a checkpoint of another one is refused.
        cost: counted here.
        history: one record an epoch.
        notes: sentences for the report.
    """

    task: Task
    model: nn.Module
    config: PatchMethodConfig
    attributes: tuple[str, ...]
    rows: PatchRows
    term: BiasTerm
    before: dict[str, Tensor]
    delivered: Judgement
    digest: str
    cost: Cost
    started: float
    history: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, task: Task, model: nn.Module, config: PatchMethodConfig) -> Setting:
        """Check what was given, before any work.

        Raises:
            MethodError: options that cannot be, no attribute, one group, no label with two classes, no rate of the bias that two
                groups share, or another number of logits than the task has labels or classes.
            InputError: the model's weights are not finite.
        """
        started = time.perf_counter()
        check_options(config)
        attributes = bias_attributes(task, config.attributes)
        rows = PatchRows.of(task.train, task, attributes)
        check_labels(task, rows)
        term = BiasTerm(
            config.bias, config.bias_mode, task.kind, config.over_attributes, config.min_cell,
            raw=config.bias_scores == "logit",
        )
        _check_comparable(task, attributes, term)
        check_finite(model)
        model.to(task.device).eval()
        before = to_cpu(model.state_dict())
        setting = cls(
            task, model, config, attributes, rows, term, before, Judgement(None, None), _digest(task, config, before), Cost(rows=len(rows)),
            started,
        )
        setting._check_outputs()
        setting.delivered = setting.judge_model()
        setting.history.append({"step": "delivered", "epoch": 0, **setting.judged(setting.delivered)})
        setting.notes += setting._notes()
        return setting

    @property
    def selects(self) -> bool:
        """Whether validation rows choose what is kept: by the gap, or, where they are too few for one, by the AUC alone."""
        return self.config.stop == "val" and self.delivered.auc is not None

    @property
    def compares(self) -> bool:
        """Whether validation rows are enough to compare groups."""
        return self.selects and self.delivered.bias is not None

    @property
    def augmenter(self) -> Augmenter | None:
        """The task's augmentation; None where there is none."""
        return None if self.task.augment == "none" else Augmenter(self.task.augment, self.task.train.x.shape, self.task.seed)

    def judge_model(self, counted: bool = True) -> Judgement:
        """The model as it is now, on validation rows; ``counted``: as part of the cost."""
        if len(self.task.val) == 0:
            return Judgement(None, None)
        self.cost.add(forward=len(self.task.val) if counted else 0)
        return self.judge_logits(predict_logits(self.model, self.task.val.x, self.task.batch_size, self.task.device))

    def judge_logits(self, logits: npt.NDArray[np.floating[Any]]) -> Judgement:
        """Logits of the validation rows."""
        return judge(logits, self.task.val, self.attributes, self.task.kind, self.config.bias, self.config.over_attributes)

    @staticmethod
    def judged(judgement: Judgement) -> dict[str, float | None]:
        """As fields of a record."""
        return {"val_bias": judgement.bias, "val_auc": judgement.auc}

    def kept(self) -> Kept:
        """A fresh list of judged states."""
        return Kept(self.delivered, self.config.auc_tolerance)

    def passes(self, name: str, epochs: int, lr: float, balanced: bool) -> Passes:
        """How a step's passes are made."""
        config, task = self.config, self.task
        return Passes(name, epochs, lr, config.schedule, task.batch_size, balanced, config.hold_norms, task.seed, task.device)

    def update(self, parameters: Mapping[str, nn.Parameter], mask: Mapping[str, Tensor] | None = None) -> MaskedUpdate:
        """The optimiser of a step."""
        config = self.config
        options = {"optimizer": config.optimizer, "momentum": config.momentum, "weight_decay": config.weight_decay}
        return MaskedUpdate(parameters, mask, l1=config.l1, exact=config.exact, **options)  # type: ignore[arg-type]

    def objective(self, bias: float, prediction: float) -> Objective:
        """b B + p L, rates over the set or the batch as the options say."""
        over = "batch" if self.term.mode == "released" else self.config.bias_over
        return Objective(self.term, self.task.kind, bias, prediction, over)

    def save(self, stage: str, epoch: int, update: MaskedUpdate, objective: Objective, kept: Kept, **extras: Any) -> None:
        """The state after an epoch, from which `restore` goes on."""
        state = {
            "digest": self.digest, "notes": self.notes, "stage": stage, "epoch": epoch, "model": self.model.state_dict(),
            "update": update.state_dict(), "logits": objective.logits, "kept": kept.record(), "history": self.history,
            "cost": [self.cost.forward, self.cost.backward], "seconds": time.perf_counter() - self.started, **extras,
        }
        self.task.store.put(STATE, to_cpu(state))

    def saved(self, stage: str) -> dict[str, Any] | None:
        """The stored state of a stage, where there is one.

        Raises:
            InputError: it is of other rows, options or weights.
        """
        state = self.task.store.get(STATE)
        if state is None:
            return None
        self.check_digest(state)
        return dict(state) if state["stage"] == stage else None

    def check_digest(self, state: Mapping[str, Any]) -> None:
        """Refuse what was stored for another patch.

        Raises:
            InputError: it was.
        """
        if state.get("digest") != self.digest:
            raise InputError(
                "the state found here belongs to a patch of another classifier, external set or other options; choose another out= "
                "folder or delete this one"
            )

    def restore(self, state: Mapping[str, Any], update: MaskedUpdate, objective: Objective, kept: Kept) -> int:
        """Go on from a stored state; the number of its epoch."""
        self.model.load_state_dict(state["model"])
        update.load_state_dict(state["update"])
        objective.logits = None if state["logits"] is None else state["logits"].to(self.task.device, copy=True)
        kept.restore(state["kept"])
        self.history[:], self.notes[:] = [dict(record) for record in state["history"]], list(state["notes"])
        self.cost.forward, self.cost.backward = (int(number) for number in state["cost"])
        self.started = time.perf_counter() - float(state["seconds"])
        return int(state["epoch"])

    def report(self, record: Mapping[str, Any], epochs: int) -> None:
        """One line about an epoch."""
        names = [name for name in ("loss", "bias", "val_bias", "val_auc") if record.get(name) is not None]
        shown = [f"{name.replace('_', ' ')} {record[name]:.4f}" for name in names]
        self.task.report(f"{record['step']} {record['epoch']}/{epochs}: {', '.join(shown)}")

    def outcome(self, mask: Mapping[str, Any] | None = None) -> PatchOutcome:
        """The model as it is now, and how it came to be.

        Raises:
            MethodError: its weights are not finite.
        """
        self.model.eval()
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        check_finite(self.model)
        # no part of a patch, and nothing reads them in evaluation: as delivered, so that taking a patch off gives every bit back
        counters = {name: value for name, value in self.before.items() if name.endswith("num_batches_tracked")}
        self.model.load_state_dict(counters, strict=False)
        if len(self.task.val):
            now = self.judge_model(counted=False)
            self.notes += _verdict(self.delivered, now, len(self.task.val))
        self.cost.seconds = time.perf_counter() - self.started
        after, notes = to_cpu(self.model.state_dict()), tuple(dict.fromkeys(self.notes))
        return PatchOutcome(self.model, self.before, after, tuple(self.history), notes, self.cost, dict(mask or {}))

    def _check_outputs(self) -> None:
        image = self.task.train.x.batch(np.array([0])).to(self.task.device)
        with torch.inference_mode():
            logits = self.model(image)
        if tuple(logits.shape[1:]) != (self.task.n_outputs,):
            what = f"{self.task.n_outputs} {'classes' if self.task.kind == 'multiclass' else 'labels'}"
            raise MethodError(
                f"the classifier gives {logits.shape[-1]} logits an image, but the external set has {what}; choose data.labels so that "
                "they are the classifier's"
            )

    def _notes(self) -> Iterable[str]:
        missing = int((self.rows.groups < 0).any(dim=1).sum())
        if missing:
            yield f"{missing} of {len(self.rows)} rows lack an attribute of the bias; they are in no group and in no balanced draw"
        absent = absent_cells(self.rows)
        if absent:
            more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
            yield f"no row of the external set is in {'; '.join(absent[:3])}{more}: their rates are left out of the bias"
        if self.config.stop == "val" and not self.selects:
            n = len(self.task.val)
            why = f"{n} validation rows are too few to judge a state by" if n else "there are no validation rows"
            yield f"{why}; of several passes the last is kept, unjudged"


def check_options(config: PatchMethodConfig) -> None:
    """Refuse options that contradict each other, before any work.

    Raises:
        MethodError: they do.
    """
    check_choice(config.mask_type, config.mask_scale, config.rate, config.ratio_threshold, config.ratio, config.soft_mask)
    if config.convex and config.beta > 1:
        raise MethodError(
            f"beta is {config.beta:g}, but must be at most 1 where step two descends (1 - beta) * L + beta * B (convex), or the prediction "
            "would be made worse on purpose; use method.beta=0.5, or method.convex=false"
        )


def check_finite(model: nn.Module) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        InputError: names the first tensor.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            what = f"'{name}' of the classifier has {bad} of {value.numel()} entries that are NaN or infinite"
            raise InputError(f"{what}; use a sound checkpoint")


def _check_comparable(task: Task, attributes: tuple[str, ...], term: BiasTerm) -> None:
    """Refuse an external set in which a rate of the bias cannot be compared between any two groups, for any label."""
    from evenhand.methods.fitting import label_columns

    columns = label_columns(np.asarray(task.train.y), task.kind)
    values = range(len(task.classes)) if task.kind == "multiclass" else (1,)
    for name in attributes:
        groups = task.train.groups[name]
        for rate in term.rates:
            wanted = {"label 1": (True,), "label 0": (False,)}.get(RATES[rate], (True, False))
            counts = [
                np.bincount(groups.codes[known & (groups.codes >= 0) & np.isin(codes == value, wanted)], minlength=len(groups.keys))
                for codes, known in columns for value in values
            ]
            if not any((count >= term.least_rows).sum() > 1 for count in counts):
                best = max(counts, key=lambda count: int((count > 0).sum()))
                shown = ", ".join(f"{key} {number}" for key, number in zip(groups.keys, best, strict=True))
                raise MethodError(
                    f"{rate.upper()} of '{name}' cannot be compared: two groups need {term.least_rows} rows with {RATES[rate]} each, but "
                    f"the external set has {shown}; add such rows, or choose another method.bias"
                )


def _digest(task: Task, config: PatchMethodConfig, before: dict[str, Tensor]) -> str:
    """sha256 of all that decides the result."""
    options: list[Any] = ["evenhand.patching/1", dataclasses.asdict(config), list(task.attributes)]
    options += [task.kind, task.batch_size, task.seed, task.augment]
    images = [getattr(split.x, "source_fingerprint", split.x.fingerprint) for split in (task.train, task.val)]
    digest = hashlib.sha256(json.dumps([options, images, state_fingerprint(before)], default=str).encode())
    for split in (task.train, task.val):
        arrays = [split.index, np.asarray(split.y), *(split.groups[name].codes for name in sorted(split.groups))]
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _verdict(before: Judgement, after: Judgement, n: int) -> tuple[str, ...]:
    """What validation rows say of the change."""
    if before == after or before.bias is None or after.bias is None or before.auc is None or after.auc is None:
        return ()
    gaps = f"the gap over thresholds went from {before.bias:.3f} to {after.bias:.3f}"
    said = f"on {n} validation rows {gaps}, AUC from {before.auc:.3f} to {after.auc:.3f}"
    worse = "; the patch does not narrow it there" if after.bias >= before.bias else ""
    collapsed = "; the patched classifier ranks no better than chance" if after.auc <= 0.5 else ""
    return (f"{said}{worse}{collapsed}",)


def network_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name in the timm network -> parameter."""
    return dict(_unwrap(model).named_parameters())
