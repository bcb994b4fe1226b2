"""The one training loop.

    train_model(model, train, val, setup, *, loss=None, cells=None, balance=False, sample_weight=None, watch=None) -> TrainOutcome
    predict_model(model, images, batch_size, device, kind) -> probabilities

``setup`` is a method's `Task`, or a `TrainSetup`. An epoch's order, augmentation and dropout are functions of the run's
seed and the epoch's number alone, so that the state between epochs is a checkpoint of tensors and numbers, and a run
that was killed ends, on a CPU, with the very numbers of one that was not.

On several processes every batch is shared out, the logits are gathered before the loss, and each process takes the
gradient of the whole batch's loss through its own share: one process or eight, the loss is the same function.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast, broadcast_object_list
from rich.console import Console
from rich.progress import Progress
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]
from torch import Tensor, nn

from evenhand.config.schema import TrainerConfig
from evenhand.data.augment import Augmenter, seeded
from evenhand.errors import ConfigError, NonFiniteLossError
from evenhand.random import derive_seed
from evenhand.training.checkpointing import KEY, SCHEMA, check_digest, run_digest, to_cpu
from evenhand.training.debugging import StepProfiler, narrowed
from evenhand.training.losses import Loss, make_loss
from evenhand.training.optim import make_optimizer, set_learning_rate
from evenhand.training.predicting import as_format, predict_logits, predict_model, probabilities, read_ahead
from evenhand.training.rows import Batch, TrainingRows, share_of
from evenhand.training.sampling import even_batches
from evenhand.training.schedules import Plateau, learning_rate
from evenhand.training.selection import Best, pooled_auc, resolve_monitor
from evenhand.training.settings import Setup, TrainSetup, check_trainer, peak_lr, resolve_precision
from evenhand.training.watching import EpochFacts, StopTraining, Watch

if TYPE_CHECKING:
    from evenhand.methods.base import Split

__all__ = ["TrainOutcome", "TrainSetup", "predict_model", "train_model"]
log = logging.getLogger(__name__)
_PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


@dataclass(frozen=True)
class TrainOutcome:
    """What training ends with.

    Attributes:
        model: the model that was given, with the best epoch's weights (their moving average where that was on).
        history: one record an epoch: epoch (from 1), lr, train_loss, val_loss, val_auc (None where not estimable).
        stopped_epoch: number of the last epoch that ran.
        best_epoch: number of the epoch whose weights these are; 0 where no epoch ran.
        notes: sentences for the report.
        artifacts: file name -> content, for the run folder.
    """

    model: nn.Module
    history: list[dict[str, Any]]
    stopped_epoch: int
    best_epoch: int
    notes: tuple[str, ...] = ()
    artifacts: dict[str, bytes] = field(default_factory=dict)


def train_model(
    model: nn.Module,
    train: Split,
    val: Split,
    setup: Setup,
    *,
    loss: Loss | None = None,
    cells: npt.NDArray[Any] | None = None,
    balance: bool = False,
    sample_weight: npt.NDArray[Any] | None = None,
    watch: Watch | None = None,
) -> TrainOutcome:
    """Train a classifier, keep the best epoch, and leave a checkpoint after every epoch.

    Rows without any label are left out. Called again with the same arguments and store after a kill, training goes on
    after the last finished epoch; after the end it returns the same outcome without training.

    Args:
        model: images (n, c, h, w) in [0, 1] -> logits (n, L), or (n, C) for multi-class. Changed in place.
        train: rows to learn from.
        val: rows that pick the epoch; may be empty (then the last one is taken).
        setup: kind, trainer options, batch size, seed, device, augmentation, store and report: a `Task` is one.
        loss: ``loss(logits, y, cells, weight) -> scalar``; a module's buffers are checkpointed. Default: `MaskedLoss`
            with the trainer's class weights and label smoothing.
        cells: (n,) or (n, L) integer group x label cell of every training row, -1 for none; given to the loss.
        balance: draw rows so that every cell of ``cells`` (n,) is seen equally often; rows without a cell are left out.
        sample_weight: (n,) or (n, L) weight of every training row in the loss, of mean 1 to keep its scale.
        watch: called with the `EpochFacts` of every epoch; may raise `StopTraining`, any other exception passes on. Epochs
            that a resumed run finds done are not told of again.

    Raises:
        InputError: no labelled training row, or the store holds a checkpoint of another run.
        ConfigError: a trainer option that cannot be used.
        NonFiniteLossError: the loss became NaN or infinite; the checkpoint of the last finished epoch is kept.
    """
    check_trainer(setup.trainer)
    arrays = {"cells": cells, "sample_weight": sample_weight, "balance": np.array([balance])}
    digest = run_digest(model, train, val, setup, arrays)
    run = _Run(model, train, val, setup, TrainingRows.of(train, cells, sample_weight, balance), loss)
    with run.closing():
        run.restore(digest)
        with run.bar() as advance:
            while not run.finished:
                run.train_epoch(advance)
                run.tell(watch)
                run.save(digest)
                run.announce()
    return run.outcome()


def _make_accelerator(setup: Setup) -> Accelerator:
    """A fresh accelerator; its library keeps the first one's settings for the whole process unless they are dropped."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    AcceleratorState._reset_state(reset_partial_state=not distributed)
    precision = resolve_precision(setup.trainer.precision, setup.device)
    return Accelerator(cpu=setup.device.type == "cpu", mixed_precision=_PRECISIONS[precision])


class _Run:
    """The state of one training run."""

    def __init__(self, model: nn.Module, train: Split, val: Split, setup: Setup, rows: TrainingRows, loss: Loss | None) -> None:
        trainer = setup.trainer
        self.setup, self.trainer, self.train = setup, trainer, train
        self.rows, self.val, debug_notes = narrowed(train, val, rows, setup)
        self.accelerator = _make_accelerator(setup)
        self.device: torch.device = self.accelerator.device
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.model = model.to(self.device)
        if trainer.channels_last:
            model.to(memory_format=torch.channels_last)
        self.n_outputs = _count_outputs(model, train, self.device) if setup.kind == "multiclass" else int(train.y.shape[1])
        wanted = (setup.kind, trainer.class_weights, np.asarray(train.y), self.n_outputs)
        self.plain_loss = make_loss(*wanted).to(self.device)
        self.loss: Loss = loss if loss is not None else make_loss(*wanted, trainer.label_smoothing)
        if isinstance(self.loss, nn.Module):
            self.loss.to(self.device)
        self.augmenter = _make_augmenter(setup, train.x.shape)
        if self.augmenter.mixes and getattr(self.loss, "needs_cells", False):
            raise ConfigError("mixup and cutmix mix groups, which a loss by group cannot use; set trainer.mixup=0 and trainer.cutmix=0")
        self.peak = peak_lr(trainer, setup.batch_size)
        self.ema = ModelEmaV3(model, decay=trainer.ema_decay) if trainer.ema_decay > 0 else None
        self.optimizer = self.accelerator.prepare_optimizer(make_optimizer(model, trainer, self.peak))
        self.own_attributes = set(vars(model))
        self.wrapped = self.accelerator.prepare_model(model)
        monitor, note = resolve_monitor(trainer.monitor, np.asarray(self.val.y), setup.kind)
        self.notes = (*debug_notes, *([note] if note else []))
        self.best = Best(monitor)
        self.watched = monitor
        if trainer.plateau_monitor in ("val_auc", "val_loss"):
            self.watched, _ = resolve_monitor(trainer.plateau_monitor, np.asarray(self.val.y), setup.kind)
        elif trainer.plateau_monitor == "train_loss":
            self.watched = "train_loss"
        self.plateau = Plateau(trainer.gamma, trainer.plateau_patience, maximise=self.watched == "val_auc")
        self.artifacts: dict[str, bytes] = {}
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        self.val_logits: npt.NDArray[np.float32] | None = None
        self.stopped: str | None = None

    @property
    def finished(self) -> bool:
        """All epochs are done, or early stopping or who watches says so."""
        patience = self.trainer.early_stopping
        return self.stopped is not None or self.epoch >= self.trainer.max_epochs or 0 < patience <= self.best.bad_epochs

    @property
    def selected(self) -> nn.Module:
        """The module that is validated and kept: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def train_epoch(self, advance: Callable[[], None]) -> None:
        """One pass over the training rows, the validation, and the bookkeeping of both."""
        epoch = self.epoch + 1
        order = self.rows.order(self.setup.seed, epoch)
        with seeded(derive_seed(self.setup.seed, "epoch", epoch, self.rank), [self.device]):
            train_loss, lr = self._pass(epoch, order, advance)
        self._share_buffers()
        val_loss, val_auc = self._validate()
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters()):
            raise _non_finite("weights", "NaN or infinite", f"after epoch {epoch}", epoch, self.trainer)
        record = {"epoch": epoch, "lr": lr, "train_loss": train_loss, "val_loss": val_loss, "val_auc": val_auc}
        self.history.append(record)
        self.epoch = epoch
        value = {"val_auc": val_auc, "val_loss": val_loss}.get(self.best.monitor)
        if self.best.update(epoch, value) and self.best.monitor != "last":
            self.best.weights = to_cpu(self.selected.state_dict())
        if self.trainer.schedule == "plateau":
            watched = record.get(self.watched)
            self.plateau.update(train_loss if watched is None else watched)

    def _pass(self, epoch: int, order: npt.NDArray[np.int64], advance: Callable[[], None]) -> tuple[float, float]:
        """All optimiser steps of an epoch; the mean training loss and the last learning rate."""
        batches = self._batches(order)
        shares = [share_of(batch, self.rank, self.world) for batch in batches]
        sizes = [batch.stop - batch.start for batch in batches]
        self.wrapped.train()
        if isinstance(self.loss, nn.Module):
            self.loss.train()
        losses: list[Tensor] = []
        lr = 0.0
        # images in fixed views, or activations of these, have others in every epoch
        images_at = getattr(self.train.x, "at_epoch", lambda number: self.train.x)
        feed = read_ahead(images_at(epoch), [order[share] for share in shares], pin=self.device.type == "cuda")
        profiler = StepProfiler(self.trainer.profile and not self.artifacts, self.device, len(batches))
        with profiler.running():
            for k, share in enumerate(shares):
                first = k - k % self.trainer.accumulate
                group = sizes[first : first + self.trainer.accumulate]
                if k == first:
                    lr = learning_rate(epoch - 1 + k / len(batches), self.trainer, self.peak) * self.plateau.factor
                    set_learning_rate(self.optimizer, lr)
                with profiler.stage("read"):
                    images = self.augmenter.images(next(feed), epoch, share.tolist())
                    batch = self.rows.batch(images, order[share], self.device)
                # the check waits for the step before, so that a GPU is still busy while the next batch is made ready
                self._check_finite(epoch, losses)
                batch = batch.mixed(self.augmenter, self.n_outputs, epoch, int(share[0]))
                last = k == first + len(group) - 1
                with profiler.stage("forward and backward"):
                    losses.append(self._backward(batch, sizes[k], sizes[k] / sum(group), last))
                if last:
                    with profiler.stage("optimiser"):
                        self._step()
                advance()
                profiler.step()
        self.artifacts.update(profiler.artifacts)
        self._check_finite(epoch, losses)
        means = torch.stack(losses).cpu().double()
        return float((means * torch.tensor(sizes, dtype=torch.float64)).sum() / sum(sizes)), lr

    def _batches(self, order: npt.NDArray[np.int64]) -> list[slice]:
        """The batches of an epoch, only the first ones where there is a limit."""
        return even_batches(len(order), self.setup.batch_size)[: self.trainer.limit_batches or None]

    def _backward(self, batch: Batch, size: int, scale: float, last: bool) -> Tensor:
        """Gradient of one batch, ``last`` of those of a step; the loss of the whole batch."""
        with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
            logits = self.wrapped(as_format(batch.x, self.trainer.channels_last)).float()
            whole = self._whole(Batch(logits, batch.y, batch.cells, batch.weight), size)
            loss = self.loss(whole.x, whole.y, whole.cells, whole.weight)
            # the processes' gradients are averaged, but each holds only its own rows' part of the sum
            self.accelerator.backward(loss * (scale * self.world))
        return loss.detach()

    def _step(self) -> None:
        """The optimiser's step, and the moving average's."""
        if self.trainer.clip_norm > 0:
            self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.trainer.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.model)

    def _whole(self, own: Batch, size: int) -> Batch:
        """All processes' rows of a batch, the ones filled in left out; only the own logits carry a gradient."""
        if self.world == 1:
            return own
        count, start = len(own.x), len(own.x) * self.rank
        logits = self.accelerator.gather(own.x.detach())
        logits = torch.cat([logits[:start], own.x, logits[start + count :]])
        cells, weight = (None if part is None else self.accelerator.gather(part)[:size] for part in (own.cells, own.weight))
        return Batch(logits[:size], self.accelerator.gather(own.y)[:size], cells, weight)

    def _check_finite(self, epoch: int, losses: list[Tensor]) -> None:
        if losses and not math.isfinite(value := float(losses[-1])):
            raise _non_finite("loss", str(value), f"in epoch {epoch}, step {len(losses)}", epoch, self.trainer)

    def _share_buffers(self) -> None:
        """Batch-norm statistics of the first process for all, so that each scores with the same network."""
        if self.world > 1:
            modules = [self.model] if self.ema is None else [self.model, self.ema.module]
            broadcast([buffer for module in modules for buffer in module.buffers()])

    def _validate(self) -> tuple[float | None, float | None]:
        """Loss and AUC, pooled over the validation rows; None where not estimable."""
        if len(self.val) == 0:
            return None, None
        options = (self.setup.batch_size, self.device, self.accelerator.autocast, self.trainer.channels_last)
        self.val_logits = logits = predict_logits(self.selected, self.val.x, *options)
        y = np.asarray(self.val.y)
        auc = pooled_auc(y, probabilities(logits, self.setup.kind), self.setup.kind)
        if self.best.monitor == "last" and not (y >= 0).any():
            return None, auc
        target = torch.from_numpy(y.astype(np.int64) if y.ndim == 1 else y.astype(np.float32))
        loss = float(self.plain_loss(torch.from_numpy(logits).to(self.device), target.to(self.device)))
        if not math.isfinite(loss):
            raise _non_finite("validation loss", str(loss), f"after epoch {self.epoch + 1}", self.epoch + 1, self.trainer)
        return loss, auc

    def tell(self, watch: Watch | None) -> None:
        """Tell who watches of the epoch that ended, and remember where they end the run."""
        if watch is not None and self.accelerator.is_main_process:
            try:
                watch(EpochFacts(self.epoch, dict(self.history[-1]), self.val_logits, self.best.epoch))
            except StopTraining as stop:
                self.stopped = stop.reason
        if self.world > 1:
            self.stopped = broadcast_object_list([self.stopped])[0]

    def save(self, digest: str) -> None:
        """Put the state after this epoch into the store; plain dicts of tensors, numbers, strings and lists."""
        if self.accelerator.is_main_process:
            state = {"schema": SCHEMA, "digest": digest, "epoch": self.epoch, "history": self.history, "stopped": self.stopped}
            parts = {name: part.state_dict() for name, part in self._parts().items()}
            self.setup.store.put(KEY, to_cpu({**state, "parts": parts}))
        self.accelerator.wait_for_everyone()

    def restore(self, digest: str) -> None:
        """Continue from the store's checkpoint, where it holds one."""
        state = self.setup.store.get(KEY) if self.accelerator.is_main_process else None
        if self.world > 1:
            state = broadcast_object_list([state])[0]
        if state is None:
            return
        check_digest(state, digest)
        for name, part in self._parts().items():
            part.load_state_dict(state["parts"][name])
        self.epoch, self.history = int(state["epoch"]), [dict(record) for record in state["history"]]
        self.stopped = state.get("stopped")
        log.info("training goes on after epoch %d", self.epoch)

    def _parts(self) -> dict[str, Any]:
        parts = {"model": self.model, "ema": self.ema, "optimizer": self.optimizer, "scaler": self.accelerator.scaler}
        parts |= {"loss": self.loss if isinstance(self.loss, nn.Module) else None, "best": self.best, "plateau": self.plateau}
        return {name: part for name, part in parts.items() if part is not None}

    def announce(self) -> None:
        """One line about the epoch that ended."""
        if self.accelerator.is_main_process:
            record = self.history[-1]
            self.setup.log(dict(record))
            names = [name for name in ("train_loss", "val_loss", "val_auc") if record[name] is not None]
            shown = [f"{name.replace('_', ' ')} {record[name]:.4f}" for name in names]
            self.setup.report(f"epoch {self.epoch}/{self.trainer.max_epochs}: {', '.join(shown)}; best epoch {self.best.epoch}")

    @contextmanager
    def bar(self) -> Iterator[Callable[[], None]]:
        """A progress bar over the steps of all epochs, where it is wanted; yields what moves it."""
        if not (self.trainer.progress and self.accelerator.is_main_process):
            yield lambda: None
            return
        steps = len(self._batches(self.rows.order(self.setup.seed, 1)))
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("training", total=steps * self.trainer.max_epochs, completed=steps * self.epoch)
            yield lambda: progress.advance(task)

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Give the model back without the accelerator's wrappers, however training ends."""
        try:
            yield
        finally:
            self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
            for name in {"forward", "_original_forward"} - self.own_attributes:
                vars(self.model).pop(name, None)
            self.optimizer.zero_grad()
            if self.trainer.channels_last:
                self.model.to(memory_format=torch.contiguous_format)

    def outcome(self) -> TrainOutcome:
        """The model with the selected weights, and how it came to be."""
        self.model.load_state_dict(self.best.weights or self.selected.state_dict())
        self.model.eval()
        stop = f"training was stopped after epoch {self.epoch} of {self.trainer.max_epochs}: {self.stopped}"
        notes = self.notes if self.stopped is None else (*self.notes, stop)
        return TrainOutcome(self.model, self.history, self.epoch, self.best.epoch, notes, self.artifacts)


def _make_augmenter(setup: Setup, shape: tuple[int, int, int]) -> Augmenter:
    trainer = setup.trainer
    if trainer.overfit_batches > 0:
        return Augmenter("none", shape, setup.seed)
    return Augmenter(
        setup.augment,
        shape,
        setup.seed,
        rand_augment=trainer.rand_augment,
        random_erasing=trainer.random_erasing,
        mixup=trainer.mixup,
        cutmix=trainer.cutmix,
    )


def _count_outputs(model: nn.Module, train: Split, device: torch.device) -> int:
    """Number of logits, from scoring one image."""
    model.eval()
    with torch.inference_mode():
        return int(model(train.x.batch(np.array([0])).to(device)).shape[1])


def _non_finite(what: str, value: str, where: str, epoch: int, trainer: TrainerConfig) -> NonFiniteLossError:
    exact = "" if trainer.precision == "fp32" else f" or use trainer.precision=fp32 instead of {trainer.precision},"
    return NonFiniteLossError(
        f"the {what} became {value} {where}; lower trainer.lr (or trainer.base_lr),{exact} or set trainer.clip_norm=1; "
        f"the checkpoint of epoch {epoch - 1} is kept"
    )
