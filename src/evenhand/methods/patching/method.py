"""BMFT and SWiFT: a patch for a finished classifier, from a small external set and without its training data.

    mask       m = 1 where importance for bias / importance for prediction is high (SWiFT: m = tanh of the ratio)
    step one   theta <- theta - lr m * d(b B + p L)/dtheta        on the body; the head stands still, where m = 0 bits are kept
    step two   a new head on the body, rows balanced by group and label:  min  L + beta B

B is a bias term (`evenhand.methods.patching.bias`), L class-balanced cross-entropy. The result is the model and its state
before and after; `evenhand.patches` makes a file of the difference.

With ``stop="val"`` the state after every pass of step one, and the one before the first, is given a head as in step two
and judged on validation rows; the one kept is that of the smallest gap among those within ``auc_tolerance`` of the AUC as
delivered (`evenhand.methods.patching.judging`). So a collapsed state is never kept, and where step one does not help the
patch is a head alone. With ``stop="last"``, as published, nothing is judged.

References:
    Xue, Yan, Dutt, et al. "BMFT: achieving fairness via bias-based weight masking fine-tuning". FAIMI at MICCAI 2024,
    arXiv 2408.06890; SWiFT, MELBA 2025, arXiv 2508.18826. The released code does not import; what it would do is in the
    presets ``…_released``, what the papers say in ``…_paper``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from evenhand.methods.fitting import FittedHead
from evenhand.methods.patching.descent import descend
from evenhand.methods.patching.heads import Body, Features, HeadFit, head_names, reinitialise, write_head
from evenhand.methods.patching.judging import Judgement
from evenhand.methods.patching.masking import MadeMask, least_alike, make_mask
from evenhand.methods.patching.outcome import PatchOutcome
from evenhand.methods.patching.setting import Setting
from evenhand.methods.patching.steps import run_epoch, trainable_only
from evenhand.methods.regularisation import FALL_BACK

if TYPE_CHECKING:
    from torch import nn

    from evenhand.config.patch_methods import PatchMethodConfig
    from evenhand.methods.base import Task

MASK = "patching-mask"
EMPTY = (
    "no weight is in the mask, since the importances of a tensor are all equal (ratio=released, as in the released code): step one moved "
    "weights by decay and momentum alone"
)

UNJUDGED = (
    "{n} validation rows are too few to compare groups on, so step one, which nothing could judge, is left out and the patch is a new "
    "head alone; method.stop=last makes it all the same"
)


def make_patched(task: Task, model: nn.Module, config: PatchMethodConfig) -> PatchOutcome:
    """Patch a finished classifier.

    Called again after a kill, with the same arguments and store, it goes on after the last finished pass and ends, on a CPU,
    with the same weights.

    Args:
        task: the external set: ``train`` is learnt from, ``val`` (other patients) stops and picks and may be empty; ``store``
            keeps the state, ``batch_size, augment, seed, device, report`` are as in training. ``embed, embedder, build_model``
            and ``trainer`` are not used.
        model: the finished `ImageClassifier` with its own head, one logit a label or class; changed in place.
        config: `BMFTConfig`, `SWiFTConfig`, or any with their options.

    Returns:
        The patched model, its state before and after, what was done and what it cost.

    Raises:
        MethodError: the external set has no attribute, one group, one class, or a rate of the bias that no two groups share; the
            classifier's outputs are not the task's; or no weight is in the mask.
        InputError: weights that are not finite, or a stored state of another patch.
        NonFiniteLossError: a step's loss is NaN or infinite; the state of the pass before is kept.

    Example:
        >>> from evenhand.config.patch_methods import BMFTConfig
        >>> outcome = make_patched(task, model, BMFTConfig(attributes=["sex"]))  # doctest: +SKIP
        >>> patch = make_patch(outcome.before, outcome.after)  # doctest: +SKIP
    """
    setting = Setting.of(task, model, config)
    body = Body.of(model)
    repair = _Repair(setting, body)
    mask = _mask(setting)
    if not mask.facts["selected"]:
        setting.notes.append(EMPTY)
    _impair(setting, repair, mask)
    repair.finish(mask.masks)
    return setting.outcome(mask.facts)


def _mask(setting: Setting) -> MadeMask:
    """The mask, from the store where it was made before."""
    stored = setting.task.store.get(MASK)
    if stored is not None:
        setting.check_digest(stored)
        setting.cost.forward, setting.cost.backward = (int(number) for number in stored["cost"])
        return MadeMask(dict(stored["masks"]), dict(stored["facts"]))
    made = make_mask(setting)
    cost = [setting.cost.forward, setting.cost.backward]
    setting.task.store.put(MASK, {"digest": setting.digest, "masks": made.masks, "facts": made.facts, "cost": cost})
    return made


def _impair(setting: Setting, repair: _Repair, mask: MadeMask) -> None:
    """Step one; the model is left as the state that is kept."""
    config, model = setting.config, setting.model
    if setting.saved("repair") is not None:
        return  # done before the kill; step two restores the model
    if config.stop == "val" and len(setting.task.val) and not setting.compares:
        setting.notes.append(UNJUDGED.format(n=len(setting.task.val)))
        return
    heads = head_names(model)
    body_masks = {name: value for name, value in mask.masks.items() if name not in heads}
    if config.exact:
        parameters = trainable_only(model, {name for name, value in body_masks.items() if bool((value != 0).any())})
    else:
        # the released code multiplies gradients and lets the optimiser move everything, the head included
        body_masks |= {name: torch.zeros_like(value) for name, value in model_parameters(model).items() if name in heads}
        parameters = trainable_only(model, set(body_masks))
    update = setting.update(parameters, body_masks)
    objective = setting.objective(1.0 - config.impair_beta, config.impair_beta)
    passes = setting.passes("impair", config.impair_epochs, config.impair_lr, config.impair_balanced)
    kept = setting.kept()
    # of the body as delivered, before a state of a killed run is restored
    rows = setting.rows if config.subset_ratio == 0 else setting.rows.only(least_alike(setting, repair.body))
    state = setting.saved("impair")
    done = 0
    if state is not None:
        done = setting.restore(state, update, objective, kept)
        repair.load_state_dict(state["repair"])
    elif setting.selects:
        judgement = repair.judge(delivered=True)
        setting.history.append({"step": "impair", "epoch": 0, **setting.judged(judgement)})
        repair.keep(kept.add(judgement, model))
    for epoch in range(done + 1, config.impair_epochs + 1):
        trainable_only(model, set(parameters))
        record = run_epoch(epoch, model, model, rows, objective, update, passes, setting.cost, augmenter=setting.augmenter)
        if setting.selects:
            judgement = repair.judge()
            record |= setting.judged(judgement)
            repair.keep(kept.add(judgement, model))
        setting.history.append(record)
        setting.save("impair", epoch, update, objective, kept, repair=repair.state_dict())
        setting.report(record, config.impair_epochs)
    if setting.selects:
        model.load_state_dict(kept.state)
        setting.notes.append(_kept_note(kept.best, config.impair_epochs))


def _kept_note(best: int, epochs: int) -> str:
    if best == 0:
        return "no pass of step one narrowed the gap on validation rows within the tolerance on AUC; the patch is a new head alone"
    return f"the state after pass {best} of {epochs} of step one was kept, by validation rows"


def model_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Name in the timm network -> values."""
    network = getattr(model, "network", model)
    return {name: value.detach() for name, value in network.named_parameters()}


class _Repair:
    """Step two, and the judging of a body by the head that step two would give it.

    The strength of L2 is chosen on features of the body as delivered, so that every state, and a run that goes on after a
    kill, has the same.
    """

    def __init__(self, setting: Setting, body: Body) -> None:
        self.setting, self.body = setting, body
        config = setting.config
        self.linear = body.linear if config.repair_fit == "lbfgs" or setting.selects else None
        self.strength = config.beta / (1.0 - config.beta) if config.convex and config.beta < 1 else config.beta
        self.fit = HeadFit(setting.task, setting.rows, balanced=True, term=None if setting.term.mode == "released" else setting.term)
        self.l2 = FALL_BACK
        self.last: FittedHead | None = None
        self.best: FittedHead | None = None
        self.delivered: tuple[Features, Features] | None = None
        if self.linear is not None:
            self.delivered = self._features()
            if config.repair_l2 is None:
                self.l2, said = self.fit.choose_l2(self.delivered[0], setting.task.val, self.delivered[1])
                setting.notes.append(said)
            else:
                self.l2 = config.repair_l2

    def judge(self, delivered: bool = False) -> Judgement:
        """The body as it is now, with a head fitted to convergence; with its own head where it cannot be fitted.

        Args:
            delivered: the body is as it was delivered, whose features are known.
        """
        if self.linear is None:
            return self.setting.judge_model()
        train, val = self.delivered if delivered and self.delivered is not None else self._features()
        self.delivered = None
        self.last = self.fit.fit(train, self.l2, self.strength)
        return self.setting.judge_logits(val.astype(np.float64) @ self.last.weight.T + self.last.bias)

    def keep(self, better: bool) -> None:
        """Whether the body last judged is the one to keep, so that its head is at hand."""
        if better:
            self.best = self.last

    def state_dict(self) -> dict[str, Any]:
        """The head of the state that is kept, for a checkpoint."""
        if self.best is None:
            return {}
        arrays = {name: torch.from_numpy(getattr(self.best, name)) for name in ("weight", "bias")}
        return {**arrays, "history": list(self.best.history), "notes": list(self.best.notes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        if state:
            history, notes = tuple(state["history"]), tuple(state["notes"])
            self.best = FittedHead(state["weight"].numpy(), state["bias"].numpy(), history, notes)

    def _features(self) -> tuple[Features, Features]:
        """Of the training and the validation rows."""
        setting = self.setting
        found = [
            self.body.features(split.x, setting.task.batch_size, setting.task.device, setting.cost).numpy()
            for split in (setting.task.train, setting.task.val) if len(split)
        ]
        return found[0], found[1] if len(found) > 1 else found[0][:0]

    def finish(self, masks: Mapping[str, Tensor]) -> None:
        """The head of the model as it is now, in place."""
        setting = self.setting
        if setting.config.repair_fit == "lbfgs" and self.linear is not None:
            head = self.best or self.fit.fit(self._features()[0], self.l2, self.strength)
            write_head(self.linear, head)
            setting.notes += head.notes
            setting.history.append({"step": "repair", "epoch": 1, "fit": list(head.history)})
            return
        if setting.config.repair_fit == "lbfgs":
            setting.notes.append("the head is not one linear layer on pooled features, so step two is made by passes of the optimiser")
        reset = reinitialise(setting.model, setting.config.reinit, masks)
        setting.notes.append(f"{reset} head weights were set to zero before step two")
        config = setting.config
        objective = setting.objective(config.beta, 1.0 - config.beta if config.convex else 1.0)
        names = head_names(setting.model)
        descend(setting, names, objective, name="repair", epochs=config.repair_epochs, balanced=True, body=self.body)
