"""DNE, white box: an image edit trained with the gradient of the encoder with respect to its images.

    theta <- theta - lr / sqrt(p) * s * Adam(s * dL / dtheta),      L of `evenhand.methods.editing.objectives`

s are the natural steps of the family's p parameters, and lr / sqrt(p) makes all of them together move by lr of these, so
that one learning rate serves a gain of 16 numbers and a filter of 5,000 (``natural_steps``; published: lr * Adam). The
encoder is frozen: only the gradient of its input is computed, no weight's. Heads that follow the edit are re-fitted every
``refit_every`` steps on other training images each time, embedded under the present edit. With ``data.augment`` every image
is augmented anew before the edit is put on it, so that a filter of many parameters does not learn the training images by heart;
heads are fitted on images as they are. With ``cross_fit`` no row of a step is among those that its heads were fitted on
(`evenhand.methods.editing.steps`).

References:
    "Debiased Noise Editing on Foundation Models for Fair Medical Image Classification", MICCAI 2024, arXiv 2403.06104.
    Its two-group loss is used for K groups as it stands (softmax cross-entropy); several attributes are added up.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evenhand.config.editing import DNEConfig
from evenhand.data.augment import Augmenter
from evenhand.edits.base import Edit
from evenhand.edits.build import build_edit
from evenhand.errors import InputError, MethodError, NonFiniteLossError
from evenhand.methods.base import Images, Result, Task
from evenhand.methods.editing.attribute_head import AttributeHead
from evenhand.methods.editing.facts import RowFacts
from evenhand.methods.editing.objectives import edit_norm
from evenhand.methods.editing.outcome import EditOutcome, edit_report, finish
from evenhand.methods.editing.processes import Processes
from evenhand.methods.editing.setup import EditSetup, draw_reference, needs_embedder, prepare
from evenhand.methods.editing.steps import Steps
from evenhand.methods.registry import register
from evenhand.training.checkpointing import to_cpu
from evenhand.training.predicting import read_ahead

SCHEMA = "evenhand.edit-training/1"
KEY = "edit"


@register("dne")
class DNE:
    """An image edit trained by gradient, then a linear probe on edited embeddings.

    Args:
        config: its options; see `DNEConfig`.
    """

    def __init__(self, config: DNEConfig | None = None) -> None:
        self.config = config or DNEConfig()

    def fit(self, task: Task) -> Result:
        """Train the edit, then a linear probe on edited training images.

        Raises:
            MethodError: no differentiable encoder, an unknown attribute, or one group.
            NonFiniteLossError: the objective stopped being a number; the state of the last epoch is kept.
        """
        return finish(task, self.fit_edit(task), self.config)

    def fit_edit(
        self,
        task: Task,
        heads: Mapping[str, AttributeHead] | None = None,
        start: Tensor | None = None,
        peers: Processes | None = None,
    ) -> EditOutcome:
        """Train the edit; a second call with the same store continues where a kill left it, to the same bits.

        Args:
            task: what a method is given; ``task.embedder`` must give gradients.
            heads: attribute heads fitted before; default: they are fitted here.
            start: (p,) parameters to begin with (`Edit.vector`); default: those of the identity.
            peers: the processes that share every batch; default: those of the process group, where there is one.
        """
        embedder = needs_embedder(task)
        if not embedder.differentiable:
            raise MethodError("this encoder gives embeddings but no gradients, which method=dne needs; use method=gezo")
        if not len(task.train):
            raise MethodError("there are no training rows; check the split column")
        setup = prepare(task, self.config, heads)
        training = _Training(self.config, task, setup, start, peers)
        training.run()
        edit = training.finished()
        report = edit_report(task, setup, edit, self.config)
        report["training"] = {"epochs": training.epoch, "best_epoch": training.best_epoch, "images_sent": training.sent}
        return EditOutcome(edit, tuple(training.history), report, setup.notes, setup.heads)


class _Training:
    """The loop, and everything that a checkpoint holds."""

    def __init__(
        self, config: DNEConfig, task: Task, setup: EditSetup, start: Tensor | None = None, peers: Processes | None = None
    ) -> None:
        self.config, self.task, self.setup, self.start = config, task, setup, start
        self.embedder = needs_embedder(task)
        self.objective = setup.objective
        self.peers = peers or Processes.current()
        self.edit: Edit = build_edit(config, task.train.x.shape, task.seed).to(task.device)
        if start is not None:
            self.edit.load_vector(start.to(task.device))
        settle = getattr(self.embedder, "settle", None)
        if settle is not None:
            settle(task.train.x)
        steps = self.edit.natural_steps().to(task.device)
        self.scale = steps if config.natural_steps else torch.ones_like(steps)
        self.peak = config.lr / math.sqrt(self.edit.n_parameters) if config.natural_steps else config.lr
        self.u = torch.nn.Parameter(self.edit.vector() / self.scale)
        self.optimizer = self._new_optimizer()
        self.steps = Steps(task.seed, task.train.patient, config.epochs, config.batch_size, config.refit_every, config.cross_fit)
        trainer = task.trainer
        self.augmenter = Augmenter(
            task.augment, task.train.x.shape, task.seed, rand_augment=trainer.rand_augment, random_erasing=trainer.random_erasing
        )
        self.epoch, self.step, self.refits, self.sent = 0, 0, 0, 0
        self.history: list[dict[str, Any]] = []
        self.best: tuple[float, Tensor] | None = None
        self.best_epoch = 0
        self.digest = self._digest()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([self.u], lr=self.peak)

    def _digest(self) -> str:
        """sha256 of what decides the result."""
        task = self.task
        said: dict[str, Any] = {"config": asdict(self.config), "seed": task.seed, "encoder": self.embedder.fingerprint}
        said |= {"augment": [task.augment, task.trainer.rand_augment, task.trainer.random_erasing]}
        said |= {"data": task.train.x.fingerprint, "val": task.val.x.fingerprint, "attributes": self.setup.attributes}
        digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
        for head in self.setup.heads:
            digest.update(head.weight.tobytes())
        if self.start is not None:
            digest.update(self.start.cpu().numpy().tobytes())
        for tensor in (self.setup.train.codes, self.setup.train.y):
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    def run(self) -> None:
        """All epochs that are left."""
        self._resume()
        while self.epoch < self.config.epochs and not self._ran_out():
            self.epoch += 1
            record = {"epoch": self.epoch, **self._train_epoch()}
            if self.config.patience:
                record["val_objective"] = self._validate()
                if self.best is None or record["val_objective"] < self.best[0]:
                    self.best, self.best_epoch = (record["val_objective"], self.u.detach().clone()), self.epoch
            self.history.append(record)
            self._save()
            parts = ", ".join(f"{name} {value:.4f}" for name, value in record.items() if name != "epoch")
            self.task.report(f"edit, epoch {self.epoch} of {self.config.epochs}: {parts}")

    def _ran_out(self) -> bool:
        return bool(self.config.patience) and self.epoch - self.best_epoch >= self.config.patience

    def finished(self) -> Edit:
        """The best edit by the validation objective where there is patience, else the last; on the CPU, frozen."""
        u = self.best[1] if self.best is not None else self.u.detach()
        self.edit.load_vector(u * self.scale)
        return self.edit.cpu().requires_grad_(False)

    def _train_epoch(self) -> dict[str, float]:
        """Mean of every part over the epoch's steps."""
        if self.config.reset_optimizer:
            self.optimizer = self._new_optimizer()
        steps = self.steps.epoch(self.epoch)
        slots = np.split(np.arange(len(self.task.train)), np.cumsum([len(step.rows) for step in steps])[:-1])
        feed = read_ahead(self.task.train.x, [self.peers.share(step.rows) for step in steps], pin=self.task.device.type == "cuda")
        sums: dict[str, float] = {}
        for step, images, slot in zip(steps, feed, slots, strict=True):
            own = self.peers.share(slot).tolist()
            images = self.augmenter.images(images, self.epoch, own) if own else images
            if self.objective.needs_refit and step.heads is not None:
                self._refit(step.heads)
            parts = self._step(images, self.setup.train.take(torch.from_numpy(step.rows).to(self.task.device)), step.progress)
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value
        return {name: value / len(steps) for name, value in sums.items()}

    def _step(self, images: Tensor, rows: RowFacts, progress: float) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(progress)
        for parameter in self.edit.parameters():
            parameter.grad = None
        z, norm = self._embed(images.to(self.task.device, non_blocking=True), len(rows))
        loss, parts = self.objective(z, rows, norm=norm)
        if not math.isfinite(parts["objective"]):
            raise self._non_finite("objective", parts)
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        gradient = self.peers.add(self._gradient())
        if not bool(torch.isfinite(gradient).all()):
            raise self._non_finite("gradient", parts)
        self.u.grad = gradient * self.scale
        self.optimizer.step()
        self.edit.load_vector(self.u.detach() * self.scale)
        self.step += 1
        return parts

    def _gradient(self) -> Tensor:
        """(p,), zeros where a process had no row of the batch."""
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.edit.parameters()]
        return torch.cat([part.flatten() for part in parts])

    def _embed(self, images: Tensor, n: int) -> tuple[Tensor, Tensor | None]:
        """Embeddings of the whole batch, and the norm of the edit where it counts."""
        self.sent += n
        edited = self.edit(images)
        own = self.embedder(edited) if len(edited) else torch.zeros(0, self.embedder.dim, device=images.device)
        z = self.peers.gather(own, n)
        norm = None
        if self.config.norm_weight > 0:
            norm = edit_norm(self.edit, images, edited, lambda squares: self.peers.gather(squares, n))
            norm = self.peers.own_part(norm) if self.edit.kind == "pixel" else norm
        return z, norm

    def _learning_rate(self, progress: float) -> float:
        if self.config.schedule == "constant":
            return self.peak
        return self.peak * 0.5 * (1 + math.cos(math.pi * progress))

    def _refit(self, among: npt.NDArray[np.int64]) -> None:
        chosen = draw_reference(self.task.seed, self.refits, len(among), self.config.reference_images).numpy()
        self.refits += 1
        rows = among[chosen]
        z = self._embed_all(self.task.train.x, rows)
        self.objective.refit(z, self.setup.train.take(torch.from_numpy(rows).to(self.task.device)))

    @torch.no_grad()
    def _embed_all(self, images: Images, rows: npt.NDArray[np.int64]) -> Tensor:
        """(m, d) embeddings of some images under the present edit, a batch at a time, shared out."""
        size = self.config.batch_size
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        found = []
        for batch, own in zip(batches, read_ahead(images, [self.peers.share(batch) for batch in batches]), strict=True):
            found.append(self._embed(own.to(self.task.device), len(batch))[0])
        return torch.cat(found)

    @torch.no_grad()
    def _validate(self) -> float:
        """The objective of all validation images, with heads fitted for this edit; of training images where there are none."""
        images, facts = (self.task.val.x, self.setup.val) if len(self.task.val) else (self.task.train.x, self.setup.train)
        if self.objective.needs_refit:
            self._refit(np.arange(len(self.task.train)))
        z = self._embed_all(images, np.arange(len(facts)))
        norm = None
        if self.config.norm_weight > 0:
            first = images.batch(np.arange(min(len(facts), self.config.batch_size))).to(self.task.device)
            norm = edit_norm(self.edit, first, self.edit(first))
        value = self.objective(z, facts, norm=norm, pooled=False)[1]["objective"]
        if not math.isfinite(value):
            raise self._non_finite("validation objective", {"objective": value})
        return value

    def _non_finite(self, what: str, parts: Mapping[str, float]) -> NonFiniteLossError:
        said = ", ".join(f"{name} {value:g}" for name, value in parts.items())
        return NonFiniteLossError(
            f"the {what} of the edit stopped being finite in epoch {self.epoch}, step {self.step} ({said}); lower method.lr or set "
            f"model.precision=fp32; the state of epoch {self.epoch - 1} is kept"
        )

    def _save(self) -> None:
        """Everything that the next epoch needs."""
        state: dict[str, Any] = {"schema": SCHEMA, "digest": self.digest, "epoch": self.epoch, "step": self.step}
        state |= {"refits": self.refits, "sent": self.sent, "history": self.history, "best_epoch": self.best_epoch}
        state |= {"u": self.u, "optimizer": self.optimizer.state_dict(), "objective": self.objective.state()}
        state["best"] = None if self.best is None else list(self.best)
        if self.peers.rank == 0:
            self.task.store.put(KEY, to_cpu(state))

    def _resume(self) -> None:
        state = self.peers.first(self.task.store.get(KEY))
        if state is None:
            return
        if state.get("schema") != SCHEMA or state.get("digest") != self.digest:
            raise InputError(
                "the state of an edit's training found here belongs to other data, options or another encoder; "
                "choose another out= folder or delete this one"
            )
        device = self.task.device
        self.epoch, self.step, self.refits, self.sent = (int(state[name]) for name in ("epoch", "step", "refits", "sent"))
        self.history, self.best_epoch = [dict(record) for record in state["history"]], int(state["best_epoch"])
        with torch.no_grad():
            self.u.copy_(state["u"].to(device))
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = None if state["best"] is None else (float(state["best"][0]), state["best"][1].to(device))
        self.edit.load_vector(self.u.detach() * self.scale)
        self.objective.load_state(state["objective"])
        self.task.report(f"edit: continued after epoch {self.epoch} of {self.config.epochs}")
