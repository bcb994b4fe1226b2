"""Adversarial fine-tuning of a finished classifier: a critic estimates the bias of a batch, the classifier lowers the estimate.

    critic      min  (c(h_1, …, h_b) - B_hard)^2
    classifier  min  max(1, lambda (|c| - epsilon + margin) + 1) * L

h_i are the features that the last layer sees, with the row's labels and groups; B_hard is the bias of the batch's decisions
at probability 1/2, which has no gradient: that is why there is a critic. A batch whose estimated bias is below epsilon -
margin is learnt from as it is. The critic pools over the rows of a batch, so that it takes batches of any size and order
(the authors' takes the features of one size of batch in a row), and knows labels and groups, without which the bias cannot
be told. One step of the critic goes before each of the classifier, on the same rows.

References:
    Savani, White, Govindarajulu, "Intra-processing methods for debiasing neural networks", NeurIPS 2020, arXiv 2006.08564.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from evenhand.errors import NonFiniteLossError
from evenhand.methods.patching.bias import BiasTerm
from evenhand.methods.patching.descent import whole_rate
from evenhand.methods.patching.heads import Body
from evenhand.methods.patching.losses import batch_balanced_loss
from evenhand.methods.patching.rows import PatchBatch
from evenhand.methods.patching.setting import Setting, network_parameters
from evenhand.methods.patching.steps import _mode, trainable_only
from evenhand.random import derive_seed

LAMBDA, EPSILON, MARGIN, CRITIC_LR, WIDTH = 20.0, 0.05, 0.01, 1e-3, 32
"""As in the authors' settings for images; the critic's learning rate is their optimiser's default."""
HARD = 1e-3
"""Temperature at which decisions are hard."""


class Critic(nn.Module):
    """Bias of a batch from its rows: an MLP of each row, their mean, an MLP of that.

    Args:
        n_features: numbers a row has.
        width: hidden units.
    """

    def __init__(self, n_features: int, width: int = WIDTH) -> None:
        super().__init__()
        self.rows = nn.Sequential(nn.Linear(n_features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.whole = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, rows: Tensor) -> Tensor:
        """A scalar, of rows (b, n_features) in any order."""
        value: Tensor = self.whole(self.rows(rows).mean(dim=0)).squeeze(0)
        return value


def fine_tune_against_critic(setting: Setting, body: Body, *, epochs: int, balanced: bool) -> None:
    """Passes over the rows, in place; the state that validation rows choose, else the last, is left.

    Args:
        setting: rows, options; the learning rate is ``whole_lr``.
        body: the cut at which the critic looks; without one it sees the logits.
        epochs: passes.
        balanced: draw every group x label cell equally often.

    Raises:
        NonFiniteLossError: a loss is NaN or infinite.
    """
    model, config, task = setting.model, setting.config, setting.task
    parameters = network_parameters(model)
    update = setting.update(trainable_only(model, set(parameters)))
    passes = setting.passes("adversarial", epochs, whole_rate(config), balanced)
    hard = BiasTerm(config.bias, "corrected", task.kind, config.over_attributes, config.min_cell, temperature=HARD)
    objective, kept = setting.objective(0.0, 1.0), setting.kept()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(task.seed, "patch", "critic"))
        seen = _seen(setting, body, next(iter(setting.rows.batches(setting.rows.eligible[:2], 2, task.device))))[0]
        critic = Critic(seen.shape[1]).to(task.device)
    optimizer = torch.optim.Adam(critic.parameters(), lr=CRITIC_LR)
    state = setting.saved("adversarial")
    done = 0
    if state is not None:
        done = setting.restore(state, update, objective, kept)
        critic.load_state_dict(state["critic"])
        optimizer.load_state_dict(state["critic_optimizer"])
    for epoch in range(done + 1, epochs + 1):
        trainable_only(model, set(parameters))
        totals = torch.zeros(3, dtype=torch.float64)
        order = setting.rows.order(derive_seed(task.seed, "patch", "adversarial"), epoch, balanced)
        with _mode(model, training=not config.hold_norms):
            for batch in setting.rows.batches(order, task.batch_size, task.device, epoch=epoch, augmenter=setting.augmenter):
                rows, logits = _seen(setting, body, batch)
                wanted = hard(logits.detach(), batch.y, batch.groups)
                optimizer.zero_grad()
                (critic(rows.detach()) - wanted).square().backward()
                optimizer.step()
                loss = batch_balanced_loss(logits, batch.y, task.kind)
                estimate = critic(rows).abs()
                whole = torch.clamp(LAMBDA * (estimate - EPSILON + MARGIN) + 1.0, min=1.0) * loss
                if not bool(torch.isfinite(whole)):
                    raise NonFiniteLossError(f"the loss became {float(whole.detach()):g} in epoch {epoch}; lower method.whole_lr")
                update.clear()
                whole.backward()  # type: ignore[no-untyped-call]
                update.step(passes.rate(epoch))
                totals += len(batch.x) * torch.stack([loss.detach(), estimate.detach(), wanted]).double().cpu()
                setting.cost.add(forward=len(batch.x), backward=len(batch.x))
        update.clear()
        loss_value, guess, bias = (totals / max(len(order), 1)).tolist()
        record: dict[str, Any] = {"step": "adversarial", "epoch": epoch, "loss": loss_value, "bias": bias, "critic": guess}
        if setting.selects:
            judgement = setting.judge_model()
            record |= setting.judged(judgement)
            kept.add(judgement, model)
        setting.history.append(record)
        extras = {"critic": critic.state_dict(), "critic_optimizer": optimizer.state_dict()}
        setting.save("adversarial", epoch, update, objective, kept, **extras)
        setting.report(record, epochs)
    if setting.selects and kept.state:
        model.load_state_dict(kept.state)


def _seen(setting: Setting, body: Body, batch: PatchBatch) -> tuple[Tensor, Tensor]:
    """What the critic sees of every row, (b, d), and the logits."""
    if body.split is None:
        logits = setting.model(batch.x).float()
        features = logits
    else:
        features = body.split.prefix(batch.x)
        logits = body.split.suffix(features).float()
        features = features.float().flatten(1)
    labels = batch.y[:, None].float() if batch.y.ndim == 1 else torch.nan_to_num(batch.y, nan=0.5)
    return torch.cat([features, labels, batch.groups.float()], dim=1), logits
