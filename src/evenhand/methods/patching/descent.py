"""Passes over the rows that train some weights in full: step two by steps, and full fine-tuning to compare with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from evenhand.methods.patching.heads import Body, FeatureImages
from evenhand.methods.patching.judging import Judgement
from evenhand.methods.patching.setting import Setting
from evenhand.methods.patching.steps import Objective, run_epoch, trainable_only

if TYPE_CHECKING:
    from evenhand.config.patch_methods import PatchMethodConfig


def descend(
    setting: Setting, names: set[str], objective: Objective, *, name: str, epochs: int, balanced: bool, body: Body | None = None
) -> None:
    """Passes of the optimiser at ``repair_lr`` (the head) or ``whole_lr`` over some weights, in place, resumed after a kill.

    With ``stop="val"`` the state after the pass that `pick` chooses is left, else the last one.

    Args:
        setting: rows, options, checkpoints.
        names: of the weights that move.
        objective: what is descended.
        name: of the step, in the history and in random streams.
        epochs: passes.
        balanced: draw every group x label cell equally often.
        body: given where the names are the head's: its features are made once, unless images are augmented or the body is not
            held in evaluation mode.
    """
    model, config, task = setting.model, setting.config, setting.task
    update = setting.update(trainable_only(model, names))
    lr = config.repair_lr if body is not None else whole_rate(config)
    passes = setting.passes(name, epochs, lr, balanced)
    network: Any = model
    inputs = val = None
    if body is not None and body.split is not None and config.hold_norms and setting.augmenter is None:
        network = body.split.suffix
        inputs = FeatureImages(body.features(task.train.x, task.batch_size, task.device, setting.cost))
        val = FeatureImages(body.features(task.val.x, task.batch_size, task.device, setting.cost)) if setting.selects else None
    kept = setting.kept()
    state = setting.saved(name)
    done = setting.restore(state, update, objective, kept) if state is not None else 0
    for epoch in range(done + 1, epochs + 1):
        trainable_only(model, names)
        record = run_epoch(
            epoch, network, model, setting.rows, objective, update, passes, setting.cost, inputs=inputs, augmenter=setting.augmenter
        )
        if setting.selects:
            judgement = _judge(setting, network, val)
            record |= setting.judged(judgement)
            kept.add(judgement, model)
        setting.history.append(record)
        if inputs is None:
            setting.save(name, epoch, update, objective, kept)
        setting.report(record, epochs)
    if setting.selects and kept.state:
        model.load_state_dict(kept.state)


def whole_rate(config: PatchMethodConfig) -> float:
    """Learning rate where the whole network is trained."""
    return config.repair_lr if config.whole_lr is None else config.whole_lr


@torch.no_grad()
def _judge(setting: Setting, network: Any, val: FeatureImages | None) -> Judgement:
    if val is None:
        return setting.judge_model()
    return setting.judge_logits(network(val.values.to(setting.task.device)).float().cpu().numpy())
