"""What a patch is compared with, behind the signature of `make_patched` and at the same number of passes over the same rows.

The passes of both steps together (``impair_epochs + repair_epochs``) are given to those that have one step. Each starts
from the classifier as delivered, keeps its head where it trains it, descends at ``whole_lr`` (the head alone at ``repair_lr``),
and with ``stop="val"`` leaves the pass that the same rule chooses.

    none                as delivered
    last_layer          the head, on balanced rows
    full_reweighted     all weights, on balanced rows                        min L
    full_regularised    all weights, on the rows as they are                 min L + beta B
    full_both           all weights, on balanced rows                        min L + beta B
    random_mask         both steps of the method, a mask at random of the same size
    all_weights         both steps of the method, every weight in the mask
    dfr                 heads fitted to convergence on balanced subsets, averaged
    fairprune           weights set to zero by group-wise saliency
    adversarial         all weights, against a critic that estimates the bias
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from evenhand.config.methods import FairPruneConfig
from evenhand.errors import MethodError, nearest
from evenhand.methods.baselines.dfr import balanced_subset
from evenhand.methods.baselines.fairprune import FairPrune
from evenhand.methods.fitting import average, fit_head
from evenhand.methods.patching.adversarial import fine_tune_against_critic
from evenhand.methods.patching.descent import descend
from evenhand.methods.patching.heads import Body, HeadFit, head_names, write_head
from evenhand.methods.patching.method import make_patched
from evenhand.methods.patching.outcome import PatchOutcome
from evenhand.methods.patching.setting import Setting, network_parameters
from evenhand.random import generator

if TYPE_CHECKING:
    from torch import nn

    from evenhand.config.patch_methods import PatchComparisonConfig, PatchMethodConfig
    from evenhand.methods.base import Task

SUBSETS = 10
"""Balanced subsets whose heads `dfr` averages, as published."""


def make_comparison(task: Task, model: nn.Module, config: PatchComparisonConfig) -> PatchOutcome:
    """One of `evenhand.config.patch_methods.COMPARISONS`, by ``config.kind``; arguments and result as for `make_patched`.

    Raises:
        MethodError: no comparison of this name, or what `make_patched` refuses.

    Example:
        >>> from evenhand.config.patch_methods import PatchComparisonConfig
        >>> make_comparison(task, model, PatchComparisonConfig(kind="last_layer")).cost.passes  # doctest: +SKIP
        2.9
    """
    if config.kind in ("random_mask", "all_weights"):
        # a soft mask has no size, so that of chance is hard
        soft = config.soft_mask and config.kind == "all_weights"
        return make_patched(task, model, replace(config, mask_type=config.kind.split("_")[0], soft_mask=soft))
    if config.kind not in _KINDS:
        raise MethodError(f"comparison '{config.kind}' is not known; {nearest(config.kind, [*_KINDS, 'random_mask', 'all_weights'])}")
    setting = Setting.of(task, model, config)
    _KINDS[config.kind](setting)
    return setting.outcome()


def _epochs(config: PatchMethodConfig) -> int:
    return config.impair_epochs + config.repair_epochs


def _none(setting: Setting) -> None:
    """Nothing is changed."""


def _last_layer(setting: Setting) -> None:
    names = head_names(setting.model)
    options = {"name": "last_layer", "epochs": _epochs(setting.config), "balanced": True}
    descend(setting, names, setting.objective(0.0, 1.0), body=Body.of(setting.model), **options)  # type: ignore[arg-type]


def _full(bias: bool, balanced: bool) -> Callable[[Setting], None]:
    def train(setting: Setting) -> None:
        config = setting.config
        # as in step two: SWiFT weighs loss and bias against each other
        prediction = 1.0 - config.beta if config.convex and bias else 1.0
        objective = setting.objective(config.beta if bias else 0.0, prediction)
        descend(setting, set(network_parameters(setting.model)), objective, name="full", epochs=_epochs(config), balanced=balanced)

    return train


def _dfr(setting: Setting) -> None:
    task, body = setting.task, Body.of(setting.model)
    if body.linear is None:
        raise MethodError("dfr fits a linear last layer on pooled features, which this classifier does not have; leave dfr out")
    train = body.features(task.train.x, task.batch_size, task.device, setting.cost).numpy()
    val = body.features(task.val.x, task.batch_size, task.device, setting.cost).numpy() if len(task.val) else train[:0]
    fit = HeadFit(task, setting.rows, balanced=True, term=None)
    l2, said = fit.choose_l2(train, task.val, val)
    heads = []
    for number in range(SUBSETS):
        rng = generator(task.seed, "patch", "dfr", number)
        weights = [balanced_subset(cells, rng) for cells in setting.rows.label_cells()]
        heads.append(fit_head(train, np.asarray(task.train.y), fit.spec(l2), weights=weights))
    head = average(heads)
    write_head(body.linear, head)
    setting.notes += [said, *head.notes]


def _fairprune(setting: Setting) -> None:
    """Of the first attribute; nothing is trained, and rounds take the place of passes."""
    task, config = setting.task, setting.config
    picks = "gap" if setting.compares else "last"
    method = FairPrune(FairPruneConfig(attribute=setting.attributes[0], pick=picks, tolerance=config.auc_tolerance))
    finished = replace(task, build_model=lambda n_outputs, **_: setting.model, trainer=replace(task.trainer, max_epochs=0))
    result = method.fit(finished)
    rounds = [record for record in result.history if "round" in record]
    setting.history += [{"step": "fairprune", "epoch": record["round"], **record} for record in rounds]
    setting.notes += result.notes
    counts = np.bincount(setting.rows.split.groups[setting.attributes[0]].codes + 1)[1:]
    images = int(np.minimum(counts, method.config.images).sum()) * (len(rounds) - 1)
    setting.cost.add(forward=images + len(rounds) * len(task.val), backward=images)


def _adversarial(setting: Setting) -> None:
    body = Body.of(setting.model)
    fine_tune_against_critic(setting, body, epochs=_epochs(setting.config), balanced=True)


_KINDS: dict[str, Callable[[Setting], None]] = {
    "none": _none,
    "last_layer": _last_layer,
    "full_reweighted": _full(bias=False, balanced=True),
    "full_regularised": _full(bias=True, balanced=False),
    "full_both": _full(bias=True, balanced=True),
    "dfr": _dfr,
    "fairprune": _fairprune,
    "adversarial": _adversarial,
}
