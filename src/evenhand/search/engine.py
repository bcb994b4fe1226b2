"""The search: one study, one or several workers, one budget, and what came of it.

    run_search(task_factory, config, report=…) -> SearchResult

With ``workers=1`` trials run in this process. With more, each worker is a process of its own (started afresh, so that a GPU
can be used), and this one tells what they find, starts a worker again that was killed, and stops them all when one meets
an error that others would meet too. The same call on other machines with the same storage joins the study.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any

import torch

from evenhand import errors
from evenhand.config.search import SearchConfig
from evenhand.errors import EvenhandError, RunError
from evenhand.files import check_folder
from evenhand.models.masks import Mask, network_hash
from evenhand.search.pick import pareto_front, pick, ranked
from evenhand.search.records import TrialRecord, records_of
from evenhand.search.space import SearchSpace
from evenhand.search.storage import Address, close_storage, find_address, patiently
from evenhand.search.study import OpenStudy, data_hash, identity_of, objectives_of, open_study
from evenhand.search.trial import TaskFactory, TrainMasked, Workbench
from evenhand.search.worker import Orders, Worker, process_main

log = logging.getLogger(__name__)
RESTARTS = 3
"""Times a worker process is started again that was killed."""
LOOK = 0.3
"""Seconds between looks at what the workers found."""


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        mask: of the winner, with its learning rate.
        best: the winner.
        trials: every trial of the study, lost ones included.
        objectives: what it aimed at.
        space: what it chose from.
        facts: fields of every mask.
        study: name of the study.
        storage: where it lives, without a password.
        seconds: of this call.
        notes: sentences for the report.
    """

    mask: Mask
    best: TrialRecord
    trials: tuple[TrialRecord, ...]
    objectives: tuple[str, ...]
    space: SearchSpace
    facts: Mapping[str, Any]
    study: str
    storage: str
    seconds: float
    notes: tuple[str, ...] = ()

    def mask_of(self, trial: TrialRecord) -> Mask:
        """The mask of a trial whose values were all chosen."""
        return self.space.mask(trial.params, {**self.facts, "trial": trial.number})

    @property
    def front(self) -> tuple[TrialRecord, ...]:
        """The Pareto front of two objectives; of one, the best trial."""
        return pareto_front(self.trials, self.objectives)

    def finalists(self, n: int) -> tuple[TrialRecord, ...]:
        """The n best trials by the first objective, the winner first.

        Args:
            n: at most so many.
        """
        others = [trial for trial in ranked(self.trials, self.objectives) if trial.number != self.best.number]
        return (self.best, *others)[:n]


def run_search(
    task_factory: TaskFactory,
    config: SearchConfig,
    *,
    report: Callable[[str], None] = lambda text: None,
    train: TrainMasked | None = None,
    watch: Callable[[Sequence[TrialRecord]], None] = lambda trials: None,
) -> SearchResult:
    """Search which parts of a network to fine-tune, and how fast; continue where an earlier call of the same search ended.

    Args:
        task_factory: number of a training within a trial (0 for ``outer=holdout``) -> its task; called in every worker
            process, so picklable where there are several.
        config: the search's options; ``trainer.lr`` is not read, the learning rate is searched.
        report: called with a line when a trial ended: its value, the best so far, and how many of the budget are done.
        train: how a network is trained with a mask; default: `evenhand.training.prefixed.train_masked`.
        watch: called with all trials whenever one has ended, for a display.

    Returns:
        The winner's mask and every trial.

    Raises:
        InputError: validation rows that cannot judge, a space that the network lacks, or a study of another search.
        RunError: no trial can be used, the storage stayed away, or the workers were killed again and again; finished
            trials are kept, and the same call goes on.
        KeyboardInterrupt: after all workers stopped and the trials they were running were queued again.
    """
    start = time.monotonic()
    bench = Workbench(task_factory, config, train)
    address = find_address(config.storage, Path(config.out) if config.out else None)
    if address.path is not None:
        check_folder(address.path.parent)
    objectives = objectives_of(config)
    notes = bench.check()
    space, facts, identity = _prepare(bench)
    for note in space.notes:
        report(note)
    notes += space.notes
    opened = open_study(config, address, identity)
    announcer = _Announcer(opened, config, objectives, report, watch)
    announcer.begin()
    try:
        if config.workers == 1:
            with _threads(config.threads):
                Worker(opened, bench, space, facts, after=announcer.look).work()
        else:
            _Crew(Orders(task_factory, config, address, identity, space, facts, train, _threads_each(config)), announcer).run()
    finally:
        announcer.end()
    trials = announcer.trials
    best = pick(trials, objectives, config.pick, config.pick_within)
    mask = space.mask(best.params, {**facts, "trial": best.number})
    seconds = time.monotonic() - start
    return SearchResult(mask, best, trials, objectives, space, facts, config.study, address.shown, seconds, tuple(notes))


def _prepare(bench: Workbench) -> tuple[SearchSpace, dict[str, Any], dict[str, Any]]:
    """The space of the network, the fields of its masks, and what makes the search itself."""
    task, config = bench.task(0), bench.config
    model = task.build_model(task.n_outputs)
    space = SearchSpace.of_network(config, model)
    name = getattr(model, "name", None)
    known = network_hash(model)
    facts = {"seed": config.seed, "model_hash": known, "data_hash": data_hash(task), "study": config.study}
    facts["architecture"] = name if isinstance(name, str) else None
    return space, facts, identity_of(config, space, task, known)


@dataclass
class _Announcer:
    """Says what trials come to, each once."""

    opened: OpenStudy
    config: SearchConfig
    objectives: tuple[str, ...]
    report: Callable[[str], None]
    watch: Callable[[Sequence[TrialRecord]], None]
    trials: tuple[TrialRecord, ...] = ()
    told: set[int] = field(default_factory=set)

    def begin(self) -> None:
        """What is there already."""
        self._read()
        done = [trial for trial in self.trials if trial.state in _COUNTED]
        self.told = {trial.number for trial in self.trials if trial.state not in ("running", "waiting")}
        if done:
            self.report(f"study '{self.config.study}' goes on: {len(done)} of {self.config.n_trials} trials are done{self._best()}")

    def look(self) -> None:
        """Tell of the trials that ended since the last look."""
        self._read()
        new = [trial for trial in self.trials if trial.number not in self.told and trial.state not in ("running", "waiting")]
        for trial in new:
            self.told.add(trial.number)
            self.report(self._line(trial))
        if new:
            self.watch(self.trials)

    def end(self) -> None:
        """The last look, and an end to the connection; what ended the search is not hidden by a storage that is away."""
        try:
            self._read(0.0)
            self.look()
        except RunError as error:
            log.warning("%s", error)
        close_storage(self.opened.storage)

    def _read(self, wait: float | None = None) -> None:
        self.trials = patiently(
            lambda: records_of(self.opened.study.get_trials(deepcopy=False)),
            self.opened.address,
            self.config.storage_wait if wait is None else wait,
        )

    def _line(self, trial: TrialRecord) -> str:
        done = sum(other.state in _COUNTED for other in self.trials)
        value = ", ".join(f"{name} {number:.4f}" for name, number in zip(self.objectives, trial.values, strict=False))
        said = {
            "complete": value + (f" (collapsed: {trial.collapsed})" if trial.collapsed else ""),
            "pruned": f"stopped after {trial.epochs} epochs, {value or 'no value'}",
            "failed": f"failed: {trial.failure}",
            "lost": "lost, and queued again",
        }[trial.state]
        same = f", as trial {trial.same_as}" if trial.same_as is not None else ""
        return f"trial {trial.number}: {said}{same}; {done} of {self.config.n_trials} done{self._best()}"

    def _best(self) -> str:
        front = pareto_front(self.trials, self.objectives)
        if not front:
            return ""
        if len(self.objectives) > 1:
            return f"; {len(front)} on the Pareto front"
        return f"; best {self.objectives[0]} {front[0].values[0]:.4f} (trial {front[0].number})"


_COUNTED = ("complete", "pruned", "failed")


class _Crew:
    """The worker processes of this call."""

    def __init__(self, orders: Orders, announcer: _Announcer) -> None:
        self.orders, self.announcer = orders, announcer
        self.context = multiprocessing.get_context("spawn")
        self.problems: Any = self.context.Queue()
        self.restarts = 0

    def run(self) -> None:
        """Until all have ended."""
        slots = {slot: self._start(slot) for slot in range(self.orders.config.workers)}
        try:
            while slots:
                self._raise_problem()
                for slot, process in list(slots.items()):
                    if process.is_alive():
                        continue
                    del slots[slot]
                    if process.exitcode != 0:
                        self._raise_problem(wait=1.0)
                        slots[slot] = self._again(slot, process.exitcode)
                self.announcer.look()
                time.sleep(LOOK)
        finally:
            self._stop(list(slots.values()))
            self.problems.close()

    def _start(self, slot: int) -> Any:
        orders = _for_gpu(self.orders, slot)
        process = self.context.Process(target=process_main, args=(orders, self.problems), name=f"search-{slot}", daemon=True)
        with _environment(OMP_NUM_THREADS=str(orders.threads)):
            process.start()
        return process

    def _again(self, slot: int, code: int | None) -> Any:
        """A worker that was killed is started again; its trial is queued by whoever looks first."""
        self.restarts += 1
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        if self.restarts > RESTARTS:
            raise RunError(
                f"worker processes were lost {self.restarts} times (the last one {how}); the machine may have too little memory for "
                f"workers={self.orders.config.workers}. Finished trials are kept: the same command with fewer workers goes on"
            )
        log.warning("a worker %s; it is started again", how)
        return self._start(slot)

    def _raise_problem(self, wait: float = 0.0) -> None:
        try:
            name, summary, details = self.problems.get(timeout=wait) if wait else self.problems.get_nowait()
        except Empty:
            return
        kind = getattr(errors, name, RunError)
        raise kind(summary, details) if issubclass(kind, EvenhandError) else RunError(summary, details)

    def _stop(self, processes: Sequence[Any]) -> None:
        """Ask each once; who does not come to an end in time is killed, and its trial is queued by whoever comes next."""
        for process in processes:
            process.terminate()
        end = time.monotonic() + 20.0
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()


def _for_gpu(orders: Orders, slot: int) -> Orders:
    """The orders of one worker: with several GPUs it sees one of them."""
    from dataclasses import replace

    wants = orders.config.trainer.accelerator in ("auto", "gpu")
    n = torch.cuda.device_count() if wants else 0
    if n < 2:
        return orders
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = seen.split(",") if seen else [str(k) for k in range(n)]
    return replace(orders, gpu=names[slot % len(names)])


def _threads_each(config: SearchConfig) -> int:
    """Processor threads of each worker."""
    return config.threads or max(1, _processors() // config.workers)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _threads(n: int) -> Any:
    """Torch's threads inside the block; 0 leaves them as they are."""
    before = torch.get_num_threads()
    if n:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _environment(**values: str) -> Any:
    """Environment variables for the processes started inside the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


__all__ = ["Address", "SearchResult", "run_search"]
