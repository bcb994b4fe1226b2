"""One trial: train the network as a mask says, judge it on validation rows after every epoch, and say what it is worth.

    holdout   one training; the objective of its validation predictions
    cv        one training a fold; the objective of all folds' validation predictions together, each row once
    seeds     one training a seed, train and validation re-drawn; the mean of their objectives

The predictions are those of the epoch that training keeps (``trainer.monitor``), so that a model which is trained later
with the mask is the one that was judged. After each epoch a pruner is told the objective of that epoch's predictions, in
which trainings before it enter as they ended; a collapsed epoch is told as the worst value there is, because the gap of a
model that says the same of everybody is 0.
"""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from evenhand.config.search import SearchConfig
from evenhand.data.augment import Augmenter
from evenhand.data.groups import Groups
from evenhand.errors import ConfigError, InputError, NonFiniteLossError
from evenhand.methods.base import Split, Task
from evenhand.models.masks import Mask
from evenhand.optional import require
from evenhand.search.objectives import Scored, Scorer, worst_value
from evenhand.search.study import objectives_of
from evenhand.training.loop import TrainOutcome
from evenhand.training.predicting import probabilities
from evenhand.training.settings import Setup, check_trainer, resolve_precision
from evenhand.training.watching import EpochFacts, StopTraining, Watch

Array = npt.NDArray[np.float64]
TaskFactory = Callable[[int], Task]
"""Number of a training within a trial (0 for holdout) -> its task. Called in every worker process, so it is picklable: a
function of a module, or `functools.partial` of one. For ``cv`` the validation rows of the trainings are disjoint."""

OnEpoch = Callable[[int, float], bool]
"""(step, value) -> whether to stop the trial."""


class TrainMasked(Protocol):
    """How a network is trained with a mask; `evenhand.training.prefixed.train_masked` is one."""

    def __call__(
        self,
        model: nn.Module,
        mask: Mask,
        train: Split,
        val: Split,
        setup: Setup,
        *,
        prefix: bool = True,
        views: int = 0,
        cache: Any = None,
        watch: Watch | None = None,
    ) -> TrainOutcome: ...


class Scratch:
    """A store that keeps nothing: a trial that is cut short is run again from its start."""

    def get(self, key: str) -> Any | None:
        """Nothing."""
        return None

    def put(self, key: str, value: Any) -> None:
        """Dropped."""

    def append(self, key: str, record: Mapping[str, Any]) -> None:
        """Dropped."""


@dataclass(frozen=True)
class Ended:
    """What a trial is worth.

    Attributes:
        scored: its objectives, and whether it has collapsed.
        pruned: it was stopped by the pruner.
        seconds: of its training.
        epochs: that were trained.
        best_epochs: the kept epoch of each training.
        share: of the network's parameters that were trained.
        batch_size: images a step where memory ran out at the usual size.
    """

    scored: Scored
    pruned: bool
    seconds: float
    epochs: int
    best_epochs: tuple[int, ...]
    share: float | None
    batch_size: int | None = None

    def result(self) -> dict[str, Any]:
        """What a study keeps of it, as JSON."""
        told = {"collapsed": self.scored.collapsed, "metrics": self.scored.values, "seconds": round(self.seconds, 3), "epochs": self.epochs}
        more = {"best_epochs": list(self.best_epochs), "share": self.share, "batch_size": self.batch_size}
        return told | {name: value for name, value in more.items() if value is not None}


@dataclass
class Workbench:
    """What a worker trains its trials with: tasks and judges, made when first needed and kept.

    Args:
        factory: makes the tasks.
        config: the search's options.
        train: trains a network with a mask.
    """

    factory: TaskFactory
    config: SearchConfig
    train: TrainMasked | None = None
    _tasks: dict[int, Task] = field(default_factory=dict)
    _scorers: dict[int, Scorer] = field(default_factory=dict)
    _heads: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    _cache: Any = None

    @property
    def repeats(self) -> int:
        """Trainings of a trial."""
        return 1 if self.config.outer == "holdout" else self.config.folds

    def task(self, k: int) -> Task:
        """The task of training k."""
        if k not in self._tasks:
            self._tasks[k] = self.factory(k)
        return self._tasks[k]

    def scorer(self, k: int) -> Scorer:
        """The judge of training k's validation rows; of cv's last one and later: of all folds' rows together."""
        if k not in self._scorers:
            folds = range(self.repeats) if self.config.outer == "cv" and k == self.repeats else (k,)
            splits = [self.task(fold).val for fold in folds]
            wanted = objectives_of(self.config) if self.config.outer != "cv" or k == self.repeats else ()
            self._scorers[k] = make_scorer(self.config, self.task(0), splits, wanted)
        return self._scorers[k]

    def check(self) -> list[str]:
        """Refuse, before any trial, rows on which the objective cannot be estimated; sentences on groups that are left out.

        Raises:
            InputError: no validation rows, one group only, a group without validation rows, or rows that overlap over folds.
            ConfigError: an option of the trainer that leaves validation rows out, or one that no training can use.
            DependencyError: LoRA ranks are asked for, and peft is not installed.
        """
        for name in ("limit_batches", "overfit_batches"):
            if getattr(self.config.trainer, name):
                raise ConfigError(
                    f"trainer.{name} leaves validation rows out, but a search judges its trials on all of them; leave the option out, and "
                    "prepare a smaller table for a quick look"
                )
        check_training(self.task(0), self.config)
        notes: list[str] = []
        judged = self.repeats if self.config.outer == "cv" else 0
        for k in range(self.repeats if self.config.outer != "holdout" else 1):
            check_split(self.task(k), self.config)
        if self.config.outer == "cv":
            check_folds([self.task(k).val for k in range(self.repeats)])
        for k in [judged] if self.config.outer != "seeds" else range(self.repeats):
            notes += self.scorer(k).notes()
        return list(dict.fromkeys(notes))

    def fit(self, model: nn.Module, mask: Mask, task: Task, watch: Watch) -> None:
        """Train a network with a mask; what lies before its first trained part is kept for the next trials."""
        from evenhand.training.activations import ActivationCache
        from evenhand.training.prefixed import train_masked

        config = self.config
        if self._cache is None:
            folder = config.activations or (os.path.join(config.out, "activations") if config.out else None)
            self._cache = ActivationCache(Path(folder) if folder else None)
        train: TrainMasked = self.train or train_masked
        train(model, mask, task.train, task.val, task, prefix=config.prefix, views=config.views, cache=self._cache, watch=watch)

    def model(self, k: int) -> nn.Module:
        """A new network for training k, with the head that training starts from."""
        task = self.task(k)
        model = task.build_model(task.n_outputs)
        if self.config.warm_head:
            if k not in self._heads:
                from evenhand.methods.warm import warm_head

                warm_head(model, task)
                self._heads[k] = {name: value.detach().clone() for name, value in model.state_dict().items() if is_head(model, name)}
            model.load_state_dict(self._heads[k], strict=False)
        return model


def is_head(model: nn.Module, name: str) -> bool:
    """Whether an entry of a model's state belongs to its head."""
    from evenhand.models.parameters import head_prefixes

    return name.removeprefix("network.").startswith(head_prefixes(model))


def make_scorer(config: SearchConfig, task: Task, splits: Sequence[Split], wanted: Sequence[str]) -> Scorer:
    """The judge of one or several splits' rows, one after the other."""
    names = task.classes if task.kind == "multiclass" else task.labels
    y = np.concatenate([np.asarray(split.y) for split in splits])
    patient = np.concatenate([np.asarray(split.patient) for split in splits])
    groups = {
        name: Groups(name, splits[0].groups[name].keys, np.concatenate([split.groups[name].codes for split in splits]))
        for name in task.attributes
    }
    return Scorer(
        y, groups, patient, task.kind, wanted, labels=names, threshold=config.threshold, min_patients=config.min_patients,
        tolerance=config.collapse_tolerance, over_labels="worst" if config.over_labels == "worst" else "mean",
    )


def check_training(task: Task, config: SearchConfig) -> None:
    """Refuse options that the first trial would refuse, before there is a study of them.

    Raises:
        ConfigError: an option of the trainer or an augmentation that cannot be used, or no epoch at all.
        DependencyError: LoRA ranks are asked for, and peft is not installed.
    """
    trainer = task.trainer
    check_trainer(trainer)
    resolve_precision(trainer.precision, task.device)
    if trainer.max_epochs < 1:
        raise ConfigError(f"trainer.max_epochs is {trainer.max_epochs}, but a trial is judged after an epoch; give at least one")
    options = {name: getattr(trainer, name) for name in ("rand_augment", "random_erasing", "mixup", "cutmix")}
    Augmenter(task.augment, task.train.x.shape, task.seed, **options)
    if any(rank > 0 for rank in config.lora_ranks):
        require("peft", "lora", "a search of LoRA ranks")


def check_split(task: Task, config: SearchConfig) -> None:
    """Refuse validation rows that cannot judge a trial.

    Raises:
        InputError: there are none, none has a label, or a group of the training rows has none (each is named).
    """
    y = np.asarray(task.val.y)
    if len(task.val) == 0:
        raise InputError(
            "a search judges trials on validation rows, and the data set has none; prepare it with a val split, or judge by outer=cv"
        )
    if not ((y >= 0).any() if y.ndim == 1 else (~np.isnan(y)).any()):
        raise InputError(f"none of the {len(y)} validation rows has a label; a search needs labelled validation rows")
    absent, without = [], []
    for name in task.attributes:
        groups = task.val.groups[name]
        if not (groups.codes >= 0).any():
            without.append(name)
            continue
        here = np.bincount(groups.codes[groups.codes >= 0], minlength=len(groups.keys))
        codes = task.train.groups[name].codes
        there = np.bincount(codes[codes >= 0], minlength=len(groups.keys))
        absent += [f"{name}={key} ({there[k]} training rows)" for k, key in enumerate(groups.keys) if there[k] and not here[k]]
    if without:
        raise InputError(f"attribute {', '.join(without)} is missing in every validation row; choose others with data.attributes=")
    if absent and config.outer != "cv":
        raise InputError(
            f"{len(absent)} groups have training rows and no validation rows, so a search could not see them: {absent[0]}; re-draw the "
            "split, widen the bins, or judge by outer=cv", absent if len(absent) > 1 else (),
        )


def check_folds(splits: Sequence[Split]) -> None:
    """Refuse folds that judge a row twice.

    Raises:
        InputError: a row is validation of two folds.
    """
    index = np.concatenate([np.asarray(split.index) for split in splits])
    twice = len(index) - len(np.unique(index))
    if twice:
        raise InputError(f"{twice} rows are validation rows of two folds; with outer=cv each row is judged once")


def run_trial(bench: Workbench, mask: Mask, on_epoch: OnEpoch) -> Ended:
    """Train and judge one mask; where memory runs out, once more with half the images a step.

    Args:
        bench: the worker's tasks.
        mask: with its learning rate.
        on_epoch: told (step, objective) after every epoch; true stops the trial, unless that was the last one.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
        MemoryError: memory ran out twice.
    """
    start = time.perf_counter()
    try:
        return _Trial(bench, mask, on_epoch, 1).run(start)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        first = str(error).splitlines()[0]
    free_memory()
    try:
        return _Trial(bench, mask, on_epoch, 2).run(start)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        half = -(-bench.task(0).batch_size // 2)
        raise MemoryError(f"memory ran out, with {half} images a step too ({first})") from error


class _Trial:
    """The trainings of one trial.

    Args:
        bench, mask, on_epoch: as in `run_trial`.
        parts: into how many a batch is cut; the optimiser steps after all of them.
    """

    def __init__(self, bench: Workbench, mask: Mask, on_epoch: OnEpoch, parts: int) -> None:
        self.bench, self.mask, self.on_epoch, self.parts = bench, mask, on_epoch, parts
        self.objective = bench.config.objective
        self.ended: list[Scored] = []
        self.kept: list[Array] = []
        self.pruned = False
        self.epochs = self.bad = 0
        self.best: list[int] = []
        self.share: float | None = None

    def run(self, start: float) -> Ended:
        """All of them, until the pruner stops one."""
        for k in range(self.bench.repeats):
            self._train(k)
            if self.pruned:
                break
        batch = None if self.parts == 1 else -(-self.bench.task(0).batch_size // self.parts)
        return Ended(self._scored(), self.pruned, time.perf_counter() - start, self.epochs, tuple(self.best), self.share, batch)

    def _train(self, k: int) -> None:
        task, model = self.bench.task(k), self.bench.model(k)
        if self.share is None:
            self.share = self.mask.share(model)
        last: dict[str, Any] = {}
        self.bad = 0

        def watch(facts: EpochFacts) -> None:
            if facts.val_logits is None:
                return
            self.epochs += 1
            scores = probabilities(facts.val_logits, task.kind)
            if facts.best_epoch == facts.epoch or "scores" not in last:
                last.update(scores=scores, epoch=facts.epoch)
            self._tell(k, facts.epoch, scores)

        self.bench.fit(model, self.mask, self._options(task), watch)
        if "scores" not in last:
            raise InputError(f"a trial ended without an epoch (trainer.max_epochs={task.trainer.max_epochs}); give at least one")
        self.best.append(int(last["epoch"]))
        self.kept.append(last["scores"])
        if self.bench.config.outer != "cv":
            self.ended.append(self.bench.scorer(k)(last["scores"]))

    def _options(self, task: Task) -> Task:
        """The task with the mask's learning rate, smaller batches where memory ran out, and nothing kept on disk."""
        trainer = replace(task.trainer, lr=self.mask.lr, progress=False, accumulate=task.trainer.accumulate * self.parts)
        return replace(task, trainer=trainer, batch_size=-(-task.batch_size // self.parts), store=Scratch(), report=lambda text: None)

    def _tell(self, k: int, epoch: int, scores: Array) -> None:
        """Report an epoch to the pruner; stop the training where it says so or the trial stays collapsed."""
        config = self.bench.config
        scored = self.bench.scorer(k)(scores, (self.objective,))
        self.bad = self.bad + 1 if scored.collapsed else 0
        value = worst_value(self.objective) if scored.collapsed else scored.values.get(self.objective, math.nan)
        if self.ended:
            value = float(np.mean([part.values[self.objective] for part in self.ended] + [value]))
        step = k * config.trainer.max_epochs + epoch
        final = k == self.bench.repeats - 1 and epoch == config.trainer.max_epochs
        stop = self.on_epoch(step, value) if config.second_objective is None and not math.isnan(value) else False
        if stop and not final:
            self.pruned = True
            raise StopTraining("it fell behind the other trials")
        if 0 < config.stop_collapsed <= self.bad and not final:
            raise StopTraining(f"it has been collapsed for {self.bad} epochs")

    def _scored(self) -> Scored:
        """All trainings together."""
        bench = self.bench
        if bench.config.outer == "cv" and len(self.kept) == bench.repeats:
            return bench.scorer(bench.repeats)(np.concatenate(self.kept))
        found = self.ended or [bench.scorer(k)(scores) for k, scores in enumerate(self.kept)]
        names = set.intersection(*(set(part.values) for part in found))
        values = {name: float(np.mean([part.values[name] for part in found])) for name in found[0].values if name in names}
        worst = max(found, key=lambda part: part.constraint)
        return Scored(values, worst.constraint, worst.collapsed)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of a GPU or of the machine."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def free_memory() -> None:
    """Give back what a failed training held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


__all__ = ["Ended", "NonFiniteLossError", "TaskFactory", "TrainMasked", "Workbench", "is_out_of_memory", "run_trial"]
