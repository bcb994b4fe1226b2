"""One worker: takes trials until the study's budget is spent, in this process or in one of its own.

A worker of its own process obeys its parent alone: Ctrl-C reaches the parent, which asks each worker once, by SIGTERM, to
stop; the trial that a worker was running is queued again. A worker whose parent is gone stops after its epoch.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from optuna.trial import FrozenTrial, Trial, TrialState

from evenhand.config.search import SearchConfig
from evenhand.errors import EvenhandError, NonFiniteLossError
from evenhand.search.ledger import Ledger, TrialTakenAway, Turn
from evenhand.search.records import FAILURE, RESULT, record_of
from evenhand.search.space import SearchSpace, training_key
from evenhand.search.storage import Address, close_storage
from evenhand.search.study import OpenStudy, objectives_of, open_study
from evenhand.search.trial import Ended, TaskFactory, TrainMasked, Workbench, is_out_of_memory, run_trial

log = logging.getLogger(__name__)
STOPPED = 128 + signal.SIGTERM
"""Exit code of a worker that was asked to stop."""
POLL = 0.25
"""Seconds between looks at a study whose last trials others are running."""


class Stop(KeyboardInterrupt):
    """The parent asked this worker to stop, or is gone."""


@dataclass
class Worker:
    """Runs trials.

    Args:
        opened: the study.
        bench: tasks and judges.
        space: what trials choose from.
        facts: fields of every mask: seed, model_hash, data_hash, study, architecture.
        after: called when a trial of this worker ended.
        orphan: whether the process that started this one is gone.
    """

    opened: OpenStudy
    bench: Workbench
    space: SearchSpace
    facts: Mapping[str, Any]
    after: Callable[[], None] = lambda: None
    orphan: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.opened.study, self.opened.storage, self.opened.address, self.opened.terms)
        self.config: SearchConfig = self.bench.config

    def work(self) -> None:
        """Trials until the budget is spent.

        Raises:
            KeyboardInterrupt: after the trial that was running was queued again, as it is after every other error.
            RunError: the storage stayed away, or the disk is full.
        """
        while True:
            self._alive()
            try:
                turn = self.ledger.take(self.space.suggest, self._key)
            except BaseException:
                self.ledger.give_back(None, "interrupted")
                raise
            if turn is Turn.DONE:
                return
            if isinstance(turn, Turn):
                time.sleep(POLL)
                continue
            try:
                self._run(turn)
            except TrialTakenAway as error:
                log.warning("%s; what this worker found is dropped", error)
            except BaseException as error:
                why = "interrupted" if isinstance(error, KeyboardInterrupt) else f"cut short by {type(error).__name__}"
                self.ledger.give_back(turn, why)
                raise
            self.after()

    def _alive(self) -> None:
        if self.orphan():
            raise Stop("the process that started this worker is gone")

    def _key(self, params: Mapping[str, Any], number: int) -> str:
        return training_key(self.space.mask(params, {**self.facts, "trial": number}))

    def _run(self, trial: Trial) -> None:
        twin = self._twin(trial) if self.config.reuse else None
        if twin is not None:
            self._copy(trial, twin)
            return
        mask = self.space.mask(trial.params, {**self.facts, "trial": trial.number})
        told = set(self.opened.study._storage.get_trial(trial._trial_id).intermediate_values)

        def on_epoch(step: int, value: float) -> bool:
            self._alive()
            self.ledger.check(trial)
            if step in told:
                return False
            told.add(step)
            return self.ledger.report(trial, step, value)

        try:
            ended = run_trial(self.bench, mask, on_epoch)
        except NonFiniteLossError as error:  # its advice is for a training of one's own, with trainer.lr and a checkpoint
            self.ledger.fail(trial, f"{str(error).split(';', 1)[0]} at lr={mask.lr:.3g}; lower lr_high, or set trainer.clip_norm=1")
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.ledger.fail(trial, str(error))
        else:
            self._finish(trial, ended)

    def _finish(self, trial: Trial, ended: Ended) -> None:
        constraint = ended.scored.constraint
        if ended.pruned:
            self.ledger.finish(trial, TrialState.PRUNED, None, ended.result(), constraint)
            return
        objectives = objectives_of(self.config)
        missing = [name for name in objectives if name not in ended.scored.values]
        if missing:
            self.ledger.fail(trial, f"{missing[0]} cannot be estimated from its predictions", ended.result())
            return
        values = [ended.scored.values[name] for name in objectives]
        self.ledger.finish(trial, TrialState.COMPLETE, values, ended.result(), constraint)

    def _twin(self, trial: Trial) -> FrozenTrial | None:
        """The trial that had this mask and learning rate before, once it has ended."""
        while True:
            twin = self.ledger.twin(trial)
            if twin is None or twin.state != TrialState.RUNNING:
                return twin
            time.sleep(POLL)
            self._alive()
            self.ledger.check(trial)
            self.ledger.rescue()

    def _copy(self, trial: Trial, twin: FrozenTrial) -> None:
        """End a trial as its twin ended, without training."""
        found = record_of(twin)
        same_as = twin.number if found.same_as is None else found.same_as
        result = {**dict(twin.user_attrs.get(RESULT) or {}), "same_as": same_as, "seconds": 0.0, "epochs": 0}
        if twin.state == TrialState.FAIL:
            self.ledger.fail(trial, str(twin.user_attrs[FAILURE]), result)
            return
        if len(self.opened.study.directions) == 1:
            for step, value in found.reported:
                self.ledger.report(trial, step, value)
        pruned = twin.state == TrialState.PRUNED
        self.ledger.finish(trial, twin.state, None if pruned else list(twin.values or ()), result, found.constraint)


@dataclass(frozen=True)
class Orders:
    """What a worker process is told.

    Attributes:
        factory: makes its tasks.
        config: the search's options.
        address: where the study lives.
        identity: what makes it this search.
        space: what trials choose from.
        facts: fields of every mask.
        train: trains a network with a mask; None: as the package does.
        threads: processor threads.
        gpu: the entry of CUDA_VISIBLE_DEVICES that it sees; None: all.
    """

    factory: TaskFactory
    config: SearchConfig
    address: Address
    identity: Mapping[str, Any]
    space: SearchSpace
    facts: Mapping[str, Any]
    train: TrainMasked | None
    threads: int
    gpu: str | None = None


def process_main(orders: Orders, problems: Any) -> None:
    """The life of a worker process.

    Args:
        orders: what it is told.
        problems: a queue; an error that ends it is put there as (summary, details, whether the input is wrong).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    if orders.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = orders.gpu
    torch.set_num_threads(orders.threads)
    parent = multiprocessing.parent_process()
    try:
        opened = open_study(orders.config, orders.address, orders.identity)
        bench = Workbench(orders.factory, orders.config, orders.train)
        worker = Worker(opened, bench, orders.space, orders.facts, orphan=lambda: parent is not None and not parent.is_alive())
        try:
            worker.work()
        finally:
            close_storage(opened.storage)
    except KeyboardInterrupt:
        # not 0: a worker that somebody else asked to stop is missing, and is started again
        os._exit(STOPPED)
    except EvenhandError as error:
        problems.put((type(error).__name__, error.summary, error.details))
        raise SystemExit(1) from None
    except Exception as error:
        where = traceback.format_exc().strip().splitlines()[-9:]
        problems.put(("RunError", f"a worker met an error that is not foreseen, {type(error).__name__}: {error}", where))
        raise SystemExit(1) from None


def _stop(number: int, frame: FrameType | None) -> None:
    """Once: what is done on the way out is not disturbed."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Stop("asked to stop")
