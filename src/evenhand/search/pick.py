"""Which trial wins: never a collapsed one, never a pruned one.

One objective: the best value; of equal ones the mask that trains fewer parameters, then the earlier trial. Two objectives:
the Pareto front, and one of its points by a rule that is named before the search:

    utopia   argmin over the front of sqrt(sum_i ((v_i - best_i) / (worst_i - best_i))^2), best and worst over the front
    within   the best second objective among the points whose first is within ``within`` of the best first
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from evenhand.errors import RunError
from evenhand.search.objectives import MAXIMISED
from evenhand.search.records import TrialRecord


def losses(trials: Sequence[TrialRecord], objectives: Sequence[str]) -> npt.NDArray[np.float64]:
    """(n, k) values of trials, signed so that smaller is better."""
    signs = np.array([-1.0 if name in MAXIMISED else 1.0 for name in objectives])
    values = np.array([trial.values for trial in trials], dtype=np.float64).reshape(len(trials), len(objectives))
    return np.asarray(values * signs)


def ranked(trials: Sequence[TrialRecord], objectives: Sequence[str]) -> tuple[TrialRecord, ...]:
    """The trials that may win, best first objective first; looked-up twins of a trial are left out.

    Args:
        trials: of one study.
        objectives: one or two; only the first one orders.

    Example:
        >>> trials = [TrialRecord(0, "complete", (0.7,), {}), TrialRecord(1, "complete", (0.9,), {}, collapsed="AUC 0.5"),
        ...           TrialRecord(2, "complete", (0.8,), {}), TrialRecord(3, "pruned", (0.9,), {})]
        >>> [trial.number for trial in ranked(trials, ["worst_auc"])]
        [2, 0]
    """
    usable = [trial for trial in trials if trial.feasible and trial.same_as is None and np.isfinite(trial.values).all()]
    if not usable:
        return ()
    first = losses(usable, objectives)[:, 0]
    order = sorted(range(len(usable)), key=lambda k: (first[k], _share(usable[k]), usable[k].number))
    return tuple(usable[k] for k in order)


def pareto_front(trials: Sequence[TrialRecord], objectives: Sequence[str]) -> tuple[TrialRecord, ...]:
    """The trials that may win and that no other one beats in one objective without losing in another, by the first objective.

    Args:
        trials: of one study.
        objectives: two of them, or one (then the front is the best trial).
    """
    usable = ranked(trials, objectives)
    values = losses(usable, objectives)
    kept: list[int] = []
    for k in range(len(usable)):
        beaten = (values <= values[k]).all(axis=1) & (values < values[k]).any(axis=1)
        same = any(np.array_equal(values[k], values[j]) for j in kept)
        if not beaten.any() and not same:
            kept.append(k)
    return tuple(usable[k] for k in kept)


def pick(trials: Sequence[TrialRecord], objectives: Sequence[str], rule: str = "utopia", within: float = 0.02) -> TrialRecord:
    """The trial whose mask a search gives.

    Args:
        trials: of one study.
        objectives: one or two.
        rule: of two objectives: "utopia" or "within"; see the module.
        within: what "within" allows, in units of the first objective.

    Raises:
        RunError: no trial may win; how they ended is in the details.

    Example:
        >>> front = [TrialRecord(0, "complete", (0.90, 0.20), {}), TrialRecord(1, "complete", (0.89, 0.05), {}),
        ...          TrialRecord(2, "complete", (0.70, 0.04), {})]
        >>> pick(front, ["auc", "auc_gap"]).number, pick(front, ["auc", "auc_gap"], "within", 0.0).number
        (1, 0)
    """
    front = pareto_front(trials, objectives)
    if not front:
        raise RunError(_nothing(trials), _ends(trials))
    if len(objectives) == 1 or len(front) == 1:
        return front[0]
    values = losses(front, objectives)
    if rule == "within":
        near = np.flatnonzero(values[:, 0] <= values[:, 0].min() + within + 1e-12)
        return front[int(min(near, key=lambda k: (values[k, 1], values[k, 0])))]
    best, worst = values.min(axis=0), values.max(axis=0)
    spread = np.where(worst > best, worst - best, 1.0)
    return front[int(np.argmin(np.sqrt((((values - best) / spread) ** 2).sum(axis=1))))]


def _share(trial: TrialRecord) -> float:
    return 1.0 if trial.share is None else trial.share


def _nothing(trials: Sequence[TrialRecord]) -> str:
    counts = {
        "collapsed": sum(bool(trial.state == "complete" and not trial.feasible) for trial in trials),
        "failed": sum(trial.state == "failed" for trial in trials),
        "were pruned": sum(trial.state == "pruned" for trial in trials),
    }
    said = ", ".join(f"{n} {what}" for what, n in counts.items() if n) or "there are none"
    return (
        f"no trial of this search can be used ({said}), and a collapsed model is never the winner; widen lr_low and lr_high, train longer "
        "(trainer.max_epochs), or run more trials (n_trials): the same command with another budget goes on"
    )


def _ends(trials: Sequence[TrialRecord]) -> list[str]:
    said = [(trial.number, trial.failure or trial.collapsed) for trial in trials]
    return [f"trial {number}: {text}" for number, text in said if text]
