"""What a study keeps of its trials, and what counts: the words in Optuna's attributes, and a trial as a plain record.

A trial counts towards the budget when it ended by itself: complete, pruned, or failed for a reason of its own (written as
``failure`` before it ends). A failed trial without a reason is lost: its worker died or was interrupted, and its values are
run again under another number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState

FAILURE, LOST, KEY, RESULT = "failure", "lost", "training", "result"
"""User attributes of a trial: why it failed, why it is run again, the hash of its training, and what came of it."""
OWNER, BEAT, ATTEMPTS = "evenhand:owner", "evenhand:beat", "evenhand:attempts"
"""System attributes: who runs it, the count of signs of life, and how often it was lost before."""
COLLAPSED = "collapsed"
"""Optuna's name of the constraint: above 0 a trial is infeasible."""


def is_counted(trial: FrozenTrial) -> bool:
    """Whether a trial has used up one of the budget's."""
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or (trial.state == TrialState.FAIL and FAILURE in trial.user_attrs)


def is_lost(trial: FrozenTrial) -> bool:
    """Whether a trial's worker died or was interrupted."""
    return trial.state == TrialState.FAIL and FAILURE not in trial.user_attrs


@dataclass(frozen=True)
class TrialRecord:
    """One trial of a study.

    Attributes:
        number: its number; trials that were lost have numbers too.
        state: complete, pruned, failed, lost, running or waiting.
        values: the objectives; of a pruned trial, the last one reported; empty where there are none.
        params: what was chosen, by name.
        reported: (step, value) after each epoch, in order; steps count epochs over all trainings of the trial.
        constraint: above 0: collapsed.
        collapsed: in what way it has collapsed; empty where it has not.
        metrics: every objective that could be estimated on the validation rows.
        seconds: time of its training; 0 where the result was looked up.
        epochs: epochs that were trained.
        share: share of the network's parameters that were trained.
        best_epochs: the kept epoch of each of its trainings.
        same_as: number of the trial with the same mask and learning rate whose result it has.
        failure: why it failed.
        batch_size: images a step where it differs from the configuration's, after memory ran out.
        worker: who ran it.
    """

    number: int
    state: str
    values: tuple[float, ...]
    params: Mapping[str, Any]
    reported: tuple[tuple[int, float], ...] = ()
    constraint: float = 0.0
    collapsed: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    epochs: int = 0
    share: float | None = None
    best_epochs: tuple[int, ...] = ()
    same_as: int | None = None
    failure: str = ""
    batch_size: int | None = None
    worker: str = ""

    @property
    def feasible(self) -> bool:
        """Whether it may win: complete, and not collapsed."""
        return self.state == "complete" and self.constraint <= 0 and not self.collapsed

    def to_json(self) -> dict[str, Any]:
        """Plain containers, for a file."""
        return {
            **vars(self),
            "values": list(self.values), "params": dict(self.params), "metrics": dict(self.metrics),
            "reported": [list(pair) for pair in self.reported], "best_epochs": list(self.best_epochs),
        }


def record_of(trial: FrozenTrial) -> TrialRecord:
    """An Optuna trial as a record."""
    told: dict[str, Any] = dict(trial.user_attrs.get(RESULT) or {})
    names = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.RUNNING: "running", TrialState.WAITING: "waiting"}
    known = {name: told[name] for name in ("collapsed", "metrics", "seconds", "epochs", "share", "same_as", "batch_size") if name in told}
    return TrialRecord(
        trial.number,
        "lost" if is_lost(trial) else names.get(trial.state, "failed"),
        tuple(trial.values or ()),
        dict(trial.params),
        tuple(sorted(trial.intermediate_values.items())),
        constraint=max(trial.constraints.values(), default=0.0),
        failure=str(trial.user_attrs.get(FAILURE, "")),
        best_epochs=tuple(told.get("best_epochs", ())),
        worker=str(trial.system_attrs.get(OWNER, "")),
        **known,
    )


def records_of(trials: Iterable[FrozenTrial]) -> tuple[TrialRecord, ...]:
    """Optuna trials as records, in the order of their numbers."""
    return tuple(record_of(trial) for trial in sorted(trials, key=lambda trial: trial.number))
