"""Who runs which trial: one budget over all workers, signs of life, and the trials of workers that died.

A worker takes a trial while it holds the study's lock (`evenhand.search.storage.booking`): it looks for trials whose worker
is dead and queues them again, counts, and takes one where fewer than ``n_trials`` are finished or running. While the trial
runs, a thread of the worker raises a counter in the storage. A worker is dead where its process is gone from this machine,
or where its counter stood still for ``grace`` seconds by the clock of the one that looks; no two clocks are compared. So a
kill -9 costs the trial that was running, and it is run again, with the same values, under another number.

Journal, SQLite and PostgreSQL are treated alike: Optuna's own heartbeat needs a database, and never misses a worker that
died before its first beat.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from evenhand.errors import EvenhandError
from evenhand.search.records import ATTEMPTS, BEAT, COLLAPSED, FAILURE, KEY, LOST, OWNER, RESULT, is_counted, is_lost
from evenhand.search.storage import GONE, Address, booking, patiently

log = logging.getLogger(__name__)


class Turn(Enum):
    """Why there is no trial to take: all are finished, or others are running the rest."""

    DONE = "done"
    WAIT = "wait"


class TrialTakenAway(Exception):
    """Another worker took this one for dead and queued its trial again."""


@dataclass(frozen=True)
class Terms:
    """The conditions of a ledger.

    Attributes:
        n_trials: trials in all.
        heartbeat: seconds between signs of life.
        grace: seconds without one until a worker counts as dead.
        reruns: times a lost trial is run again.
        wait: seconds to wait for a storage that has gone away.
    """

    n_trials: int
    heartbeat: float = 10.0
    grace: float = 60.0
    reruns: int = 2
    wait: float = 300.0


class Ledger:
    """One worker's hold on a study.

    Args:
        study: with the sampler and the pruner.
        storage: it lives in.
        address: of the storage.
        terms: budget and patience.
    """

    def __init__(self, study: Study, storage: BaseStorage, address: Address, terms: Terms) -> None:
        self.study, self.storage, self.address, self.terms = study, storage, address, terms
        self.owner = f"{_place()}:{os.getpid()}:{_start_time(os.getpid())}:{uuid.uuid4().hex[:8]}"
        self._seen: dict[int, tuple[Any, float]] = {}
        self._pulse: _Pulse | None = None

    def take(self, suggest: Callable[[Trial], Mapping[str, Any]], key: Callable[[Mapping[str, Any], int], str]) -> Trial | Turn:
        """A trial to run, with its values chosen; or why there is none.

        Args:
            suggest: asks a trial for its values.
            key: (values, number) -> the hash of its training.

        Raises:
            RunError: the storage stayed away.
        """

        def attempt() -> Trial | Turn:
            with booking(self.address, self.storage, self.study.study_name):
                return self._take(suggest, key)

        return patiently(attempt, self.address, self.terms.wait, self._forget)

    def _take(self, suggest: Callable[[Trial], Mapping[str, Any]], key: Callable[[Mapping[str, Any], int], str]) -> Trial | Turn:
        self._rescue()
        trials = self.study.get_trials(deepcopy=False)
        counted = sum(map(is_counted, trials))
        if counted >= self.terms.n_trials:
            return Turn.DONE
        if counted + sum(trial.state == TrialState.RUNNING for trial in trials) >= self.terms.n_trials:
            return Turn.WAIT
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = self.study.ask()
        self.storage.set_trial_system_attr(trial._trial_id, OWNER, self.owner)
        self._pulse = _Pulse(self.storage, trial._trial_id, self.terms.heartbeat)
        # a file system without locks lets two workers in: the later one steps back
        others = [other for other in self.study.get_trials(deepcopy=False) if other.number < trial.number]
        if sum(is_counted(other) or other.state == TrialState.RUNNING for other in others) >= self.terms.n_trials:
            self._lose(self.storage.get_trial(trial._trial_id), f"one more than n_trials={self.terms.n_trials}", again=False)
            self._let_go()
            return Turn.WAIT
        trial.set_user_attr(KEY, key(suggest(trial), trial.number))
        return trial

    def rescue(self) -> None:
        """Queue the trials of dead workers again."""

        def attempt() -> None:
            with booking(self.address, self.storage, self.study.study_name):
                self._rescue()

        patiently(attempt, self.address, self.terms.wait, self._forget)

    def twin(self, trial: Trial) -> FrozenTrial | None:
        """An earlier trial of the same training that has ended or is running; None where there is none."""

        def attempt() -> FrozenTrial | None:
            key = trial.user_attrs[KEY]
            for other in self.study.get_trials(deepcopy=False):
                live = is_counted(other) or other.state == TrialState.RUNNING
                if other.number < trial.number and other.user_attrs.get(KEY) == key and live:
                    return other
            return None

        return patiently(attempt, self.address, self.terms.wait)

    def report(self, trial: Trial, step: int, value: float) -> bool:
        """Tell the study of an epoch; whether the trial should be stopped.

        A pruner compares trials at the same epoch, and one that was ahead there may have ended lower. So a trial that is better
        than every complete one, collapsed ones left out, is never stopped, whatever the pruner says.

        Args:
            trial: one that was taken.
            step: epochs so far.
            value: the objective.

        Raises:
            TrialTakenAway: another worker runs it by now.
        """

        def attempt() -> bool:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trial.report(value, step)
                return bool(trial.should_prune()) and not self._leads(value)

        return bool(self._own(trial, attempt))

    def _leads(self, value: float) -> bool:
        """Whether a value is better than that of every complete trial; false while there is none."""
        done = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
        values = [trial.value for trial in done if trial.value is not None and not trial.constraints.get(COLLAPSED, 0.0) > 0]
        if not values:
            return False
        return value > max(values) if self.study.direction == StudyDirection.MAXIMIZE else value < min(values)

    def check(self, trial: Trial) -> None:
        """Make sure that the trial is still this worker's.

        Raises:
            TrialTakenAway: it is not.
        """
        if self._pulse is not None and self._pulse.taken:
            raise TrialTakenAway(f"trial {trial.number} is run by another worker by now")

    def finish(
        self, trial: Trial, state: TrialState, values: list[float] | None, result: Mapping[str, Any], constraint: float | None
    ) -> bool:
        """Write how a trial ended.

        Args:
            trial: one that was taken.
            state: COMPLETE or PRUNED.
            values: of a complete trial.
            result: what `TrialRecord` has beyond Optuna's own fields.
            constraint: above 0: collapsed.

        Returns:
            Whether it counts: false where another worker runs it by now.
        """

        def attempt() -> None:
            trial.set_user_attr(RESULT, dict(result))
            if constraint is not None and COLLAPSED not in self.storage.get_trial(trial._trial_id).constraints:
                trial.set_constraint(COLLAPSED, float(constraint))
            self.study.tell(trial, values, state)

        return self._end(trial, attempt)

    def fail(self, trial: Trial, reason: str, result: Mapping[str, Any] | None = None) -> bool:
        """Write that a trial failed for a reason of its own; it counts, and the study goes on."""

        def attempt() -> None:
            trial.set_user_attr(FAILURE, reason)
            if result is not None:
                trial.set_user_attr(RESULT, dict(result))
            self.study.tell(trial, None, TrialState.FAIL)

        return self._end(trial, attempt)

    def give_back(self, trial: Trial | None, why: str) -> None:
        """Queue a trial again that was interrupted; it does not count as lost by a worker's death.

        Where the storage is away too, that is left to whoever looks next: no sign of life comes from here any more.

        Args:
            trial: one that was taken; None: what may have been half taken.
            why: for the log.
        """
        self._let_go()
        try:
            if trial is None:
                self._rescue()
            else:
                self._lose(self.storage.get_trial(trial._trial_id), why, died=False)
        except (*GONE, EvenhandError) as error:
            log.warning("%s, and the storage could not be told (%s)", why, error)

    def _end(self, trial: Trial, attempt: Callable[[], None]) -> bool:
        try:
            self._own(trial, attempt)
        except TrialTakenAway as error:
            log.warning("%s; what this worker found is dropped", error)
            return False
        finally:
            self._let_go()
        return True

    def _own(self, trial: Trial, attempt: Callable[[], Any]) -> Any:
        try:
            return patiently(attempt, self.address, self.terms.wait, self._forget_others)
        except (UpdateFinishedTrialError, ValueError) as error:
            now = self.storage.get_trial(trial._trial_id)
            if not now.state.is_finished():
                raise
            if is_lost(now):
                raise TrialTakenAway(f"trial {trial.number} is run by another worker by now") from error
            return None

    def _let_go(self) -> None:
        if self._pulse is not None:
            self._pulse.stop()
            self._pulse = None

    def _forget_others(self) -> None:
        """While the storage was away nobody's counter could be read."""
        self._seen.clear()

    def _forget(self) -> None:
        """A trial that was half taken when the storage went away is this worker's no more, and so is queued again."""
        self._let_go()
        self._forget_others()

    def _rescue(self) -> None:
        now = time.monotonic()
        own = None if self._pulse is None else self._pulse.trial_id
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial._trial_id == own:
                continue
            beat = trial.system_attrs.get(BEAT)
            first = self._seen.get(trial._trial_id)
            if first is None or first[0] != beat:
                first = self._seen[trial._trial_id] = (beat, now)
            owner = str(trial.system_attrs.get(OWNER, ""))
            if owner == self.owner or is_gone(owner) or now - first[1] > self.terms.grace:
                self._lose(trial, f"its worker ({owner.rsplit(':', 1)[0] or 'unknown'}) died")

    def _lose(self, trial: FrozenTrial, why: str, *, again: bool = True, died: bool = True) -> None:
        """Fail a running trial that did not end by itself, and queue its values; once, whoever is first."""
        lost = int(trial.system_attrs.get(ATTEMPTS, 0)) + int(died)
        final = again and lost > self.terms.reruns
        try:
            said = f"{why}; it was run {lost} times, and its worker died each time" if final else why
            self.storage.set_trial_user_attr(trial._trial_id, FAILURE if final else LOST, said)
            if not self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL):
                return
        except UpdateFinishedTrialError:
            return
        log.warning("trial %d: %s%s", trial.number, said, "" if final or not again else "; it is run again")
        if again and not final:
            waiting = create_trial(
                state=TrialState.WAITING, params=trial.params, distributions=trial.distributions, system_attrs={ATTEMPTS: lost}
            )
            self.study.add_trial(waiting)


class _Pulse:
    """Signs of life of one trial, from a thread."""

    def __init__(self, storage: BaseStorage, trial_id: int, seconds: float) -> None:
        self.storage, self.trial_id, self.seconds = storage, trial_id, seconds
        self.taken = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"trial-{trial_id}", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        count = 0
        while not self._over.wait(self.seconds if count else 0):
            count += 1
            try:
                self.storage.set_trial_system_attr(self.trial_id, BEAT, count)
            except UpdateFinishedTrialError:
                self.taken = not self._over.is_set()
                return
            except GONE as error:
                log.debug("no sign of life could be written (%s)", error)

    def stop(self) -> None:
        """No more of them; waits for one that is being written."""
        self._over.set()
        self._thread.join()


def _place() -> str:
    """This machine, this boot and these process numbers; empty where a process cannot be looked up by its number."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
        space = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        return f"{platform.node()}/"
    return f"{platform.node()}/{boot}-{space}"


def _start_time(pid: int) -> str:
    """When a process began, in ticks since the boot; "0" where it is gone, a zombie, or cannot be looked up."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return "0"
    return "0" if fields[0] in "ZX" else fields[19]


def is_gone(owner: str) -> bool:
    """Whether the process of an owner's name ran on this machine and is no more; False where that cannot be known."""
    place, _, rest = owner.partition(":")
    pid, _, rest = rest.partition(":")
    here = _place()
    if place != here or here.endswith("/") or not pid.isdigit():
        return False
    return _start_time(int(pid)) != rest.partition(":")[0]
