"""Passes of an optimiser over the rows of a patch: the masked step one, step two by steps, and full fine-tuning.

    step one, "impair"   descend  b B + p L  on the entries of the mask; the head stands still
    step two, "repair"   descend  p L + b B  on the head alone; the body stands still, so that its features are made once

L is cross-entropy with classes balanced in each batch, B a bias term. With ``over="set"`` the rates in B are over all
rows: the last logits of every row are kept, a batch replaces its own, and the gradient of B through the batch's rows,
scaled by how often they are drawn, estimates that of the whole set without rates of single batches.

An epoch's order and augmentation are functions of seed and epoch, so that the state between epochs is all that a run that
was killed needs to end with the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evenhand.data.augment import Augmenter, seeded
from evenhand.errors import MethodError, NonFiniteLossError
from evenhand.methods.base import Images, Kind
from evenhand.methods.patching.bias import BiasTerm
from evenhand.methods.patching.losses import batch_balanced_loss
from evenhand.methods.patching.outcome import Cost
from evenhand.methods.patching.rows import PatchBatch, PatchRows
from evenhand.methods.patching.updates import MaskedUpdate
from evenhand.models.parameters import _BATCH_NORMS
from evenhand.random import derive_seed

Network = Callable[[Tensor], Tensor]


@dataclass
class Objective:
    """prediction * L + bias * B of a batch.

    Attributes:
        term: the bias term; None: only L.
        kind: kind of the task.
        bias: weight of B.
        prediction: weight of L.
        over: "set" or "batch": rows that the rates in B are over.
        logits: over="set": last known logits of all rows, (n, K); NaN where none are known.
    """

    term: BiasTerm | None
    kind: Kind
    bias: float = 1.0
    prediction: float = 1.0
    over: str = "batch"
    logits: Tensor | None = None

    @property
    def needs_logits(self) -> bool:
        """Whether the logits of all rows must be known before the first step."""
        return self.over == "set" and self.logits is None and self.term is not None and self.bias != 0

    def __call__(self, logits: Tensor, batch: PatchBatch, rows: PatchRows) -> tuple[Tensor, Tensor, Tensor]:
        """The objective, L and B of a batch; the latter two detached."""
        loss = batch_balanced_loss(logits, batch.y, self.kind)
        bias = logits.sum() * 0.0 if self.term is None or self.bias == 0 else self._bias(self.term, logits, batch, rows)
        whole = self.prediction * loss + self.bias * bias if self.prediction else self.bias * bias
        return whole, loss.detach(), bias.detach()

    def _bias(self, term: BiasTerm, logits: Tensor, batch: PatchBatch, rows: PatchRows) -> Tensor:
        if self.over == "batch" or self.logits is None:
            return term(logits, batch.y, batch.groups)
        # a row that is drawn twice stands in the table once: the gradient of its copies adds up, as it should
        scale = batch.n_drawn / (len(logits) * batch.draws.clamp(min=1e-6)[:, None])
        pulling = logits.detach() + scale * (logits - logits.detach())
        table = self.logits.index_put((batch.positions,), pulling.to(self.logits.dtype))
        self.logits[batch.positions] = logits.detach().to(self.logits.dtype)
        known = torch.isfinite(table).all(dim=1)
        return term(table[known], rows.y.to(table.device)[known], rows.groups.to(table.device)[known])


@dataclass(frozen=True)
class Passes:
    """How passes are made.

    Attributes:
        name: "impair", "repair", …; part of every random stream.
        epochs: passes.
        lr: peak learning rate.
        schedule: "constant" or "cosine" over the epochs.
        batch_size: most rows of a step.
        balanced: draw every group x label cell equally often.
        hold_norms: the network in evaluation mode: batch statistics, dropout and stochastic depth as at use.
        seed: of the order and the augmentation.
        device: where.
    """

    name: str
    epochs: int
    lr: float
    schedule: str
    batch_size: int
    balanced: bool
    hold_norms: bool
    seed: int
    device: torch.device

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 1; the cosine falls from the peak in the first to nearly 0 in the last.

        Example:
            >>> passes = Passes("impair", 2, 0.1, "cosine", 8, False, True, 0, torch.device("cpu"))
            >>> passes.rate(1), round(passes.rate(2), 3)
            (0.1, 0.05)
        """
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / max(self.epochs, 1)))


def run_epoch(
    epoch: int,
    network: Network,
    module: nn.Module,
    rows: PatchRows,
    objective: Objective,
    update: MaskedUpdate,
    passes: Passes,
    cost: Cost,
    *,
    inputs: Images | None = None,
    augmenter: Augmenter | None = None,
) -> dict[str, Any]:
    """One pass; the record of it.

    Args:
        epoch: its number, from 1.
        network: inputs -> logits.
        module: what is put into training or evaluation mode.
        rows: what is drawn from.
        objective: what is descended.
        update: moves the parameters.
        passes: how.
        cost: images are counted here; those of ``inputs`` are not.
        inputs: features in place of images.
        augmenter: changes images.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
        MethodError: a batch norm in training mode met a batch of one row.
    """
    device = passes.device
    order = rows.order(derive_seed(passes.seed, "patch", passes.name), epoch, passes.balanced)
    lr = passes.rate(epoch)
    totals, count = torch.zeros(3, dtype=torch.float64), 0
    with _mode(module, training=not passes.hold_norms), seeded(derive_seed(passes.seed, "patch", passes.name, epoch), [device]):
        if objective.needs_logits:
            objective.logits = all_logits(network, rows, passes.batch_size, device, inputs)
            cost.add(forward=0 if inputs is not None else len(rows.eligible))
        feed = rows.batches(
            order, passes.batch_size, device, inputs=inputs, epoch=epoch, augmenter=augmenter, balanced=passes.balanced
        )
        for batch in feed:
            if len(batch.x) == 1 and not passes.hold_norms:
                check_batch_of_one(module)
            whole, loss, bias = objective(network(batch.x).float(), batch, rows)
            value = torch.stack([whole.detach(), loss, bias]).double().cpu()
            if not bool(torch.isfinite(value).all()):
                raise NonFiniteLossError(
                    f"the loss of step '{passes.name}' became {float(value[0]):g} in epoch {epoch}; lower method.{passes.name}_lr "
                    f"(it is {passes.lr:g}); the state of epoch {epoch - 1} is kept"
                )
            update.clear()
            whole.backward()  # type: ignore[no-untyped-call]
            update.step(lr)
            totals, count = totals + value * len(batch.x), count + len(batch.x)
            if inputs is None:
                cost.add(forward=len(batch.x), backward=len(batch.x))
    update.clear()
    means = (totals / max(count, 1)).tolist()
    return {"step": passes.name, "epoch": epoch, "lr": lr, "objective": means[0], "loss": means[1], "bias": means[2]}


@torch.no_grad()
def all_logits(network: Network, rows: PatchRows, batch_size: int, device: torch.device, inputs: Images | None = None) -> Tensor:
    """(n, K) logits of the rows that may be drawn, NaN for the others; without augmentation."""
    parts = [network(batch.x).float() for batch in rows.batches(rows.eligible, batch_size, device, inputs=inputs)]
    found = torch.cat(parts)
    out = torch.full((len(rows), found.shape[1]), torch.nan, device=device)
    out[torch.from_numpy(rows.eligible).to(device)] = found
    return out


@contextmanager
def _mode(module: nn.Module, training: bool) -> Iterator[None]:
    """A mode for the time of a pass; evaluation mode after it."""
    module.train(training)
    try:
        yield
    finally:
        module.eval()


def check_batch_of_one(module: nn.Module) -> None:
    """Refuse a batch of one row for batch norms that would take its statistics.

    Raises:
        MethodError: there is such a layer.
    """
    busy = [name for name, part in module.named_modules() if isinstance(part, _BATCH_NORMS) and part.training]
    if busy:
        raise MethodError(
            f"a step has one image, but {len(busy)} batch norms (first: {busy[0]}) would take its statistics (hold_norms=false); "
            "set data.batch_size to 2 or more, or method.hold_norms=true"
        )


def trainable_only(model: nn.Module, names: Mapping[str, Any] | set[str]) -> dict[str, nn.Parameter]:
    """Let only the named parameters of the timm network have gradients; they are returned by name.

    Raises:
        MethodError: a name that the network does not have.
    """
    network = getattr(model, "network", model)
    found = dict(network.named_parameters())
    unknown = sorted(set(names) - set(found))
    if unknown:
        raise MethodError(f"the network has no weight '{unknown[0]}' ({len(unknown)} of {len(names)} names); use a mask of this network")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name in names:
        found[name].requires_grad_(True)
    return {name: found[name] for name in found if name in names}
