"""A finished search as one dictionary: what it chose from, every trial, what mattered, what was chosen. search.json is this."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from evenhand.config.search import OBJECTIVES, SearchConfig
from evenhand.search import MAXIMISED, SearchResult, TrialRecord, load_study
from evenhand.search.study import steps_of

SEARCH_SCHEMA = "evenhand.search/1"
JOURNAL = "study.journal"
LEAST_TRIALS = 4
"""Complete trials below which nothing is said on the importance of parts."""


def search_record(result: SearchResult, config: SearchConfig, storage: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the report shows of a search, as plain containers.

    Args:
        result: of the search.
        config: its options.
        storage: where the study can be read.
        about: the run's own facts.
    """
    first = result.objectives[0]
    parts = [{"name": p.name, "role": p.role, "depth": p.depth, "parameters": len(p.parameters)} for p in result.space.parts]
    return {
        "schema": SEARCH_SCHEMA,
        "objectives": [{"name": name, "means": OBJECTIVES[name], "maximised": name in MAXIMISED} for name in result.objectives],
        "attributes": list(about.get("attributes", ())),
        "labels": list(about.get("labels", ())),
        "data": {"name": about.get("data_name"), "hash": about.get("data_hash"), "n_images": about.get("n_images")},
        "model": {"name": (about.get("architecture") or {}).get("name"), "hash": result.facts.get("model_hash")},
        "space": {"name": result.space.name, "parts": parts, "choices": list(result.space.choices), "lr": list(result.space.lr)},
        "options": {
            name: getattr(config, name)
            for name in ("n_trials", "sampler", "pruner", "outer", "seed", "prefix", "views", "reuse", "warm_head", "workers", "threshold")
        },
        "epochs": steps_of(config),
        "study": {"name": result.study, "storage": result.storage if "://" in (config.storage or "") else config.storage or JOURNAL},
        "trials": [trial.to_json() for trial in result.trials],
        "best": result.best.number,
        "pick": config.pick if len(result.objectives) > 1 else "best",
        "front": [trial.number for trial in result.front] if len(result.objectives) > 1 else [],
        "mask": {
            "lr": result.mask.lr,
            "share": result.best.share,
            "parts": [{"name": p.name, "train": p.train, "lora_rank": p.lora_rank, "lr_scale": p.lr_scale} for p in result.mask.parts],
        },
        "importance": importance(storage, result.study, result.trials, first),
        "effects": effects(result.trials, [part.name for part in result.space.parts]),
        "summary": summary(result),
    }


def importance(storage: str, study: str, trials: Sequence[TrialRecord], objective: str) -> dict[str, float]:
    """Parameter -> its part in what sets the best tenth of the trials apart (PED-ANOVA); they add up to 1.

    Collapsed trials are left out, as their gaps of 0 would count as the best. Empty for too few trials.

    Args:
        storage: where the study can be read.
        study: its name.
        trials: of the study.
        objective: the first one.

    References:
        Watanabe, Bansal, Hutter. PED-ANOVA. IJCAI 2023, arXiv:2304.10255.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    usable = {trial.number: trial for trial in trials if trial.feasible and trial.values}
    if len(usable) < LEAST_TRIALS or len({trial.values[0] for trial in usable.values()}) < 2:
        return {}
    # with a target the evaluator takes the smallest values for the best, and leaves out what is not finite
    sign = -1.0 if objective in MAXIMISED else 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_param_importances(
            load_study(storage, study),
            evaluator=PedAnovaImportanceEvaluator(),
            target=lambda trial: sign * usable[trial.number].values[0] if trial.number in usable else float("nan"),
        )
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def effects(trials: Sequence[TrialRecord], parts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Part -> mean first objective over the feasible trials that trained it, and over those that froze it, with their numbers."""
    usable = [trial for trial in trials if trial.feasible and trial.values]
    found = {}
    for name in parts:
        on, off = ([trial.values[0] for trial in usable if bool(trial.params.get(name)) is bit] for bit in (True, False))
        found[name] = {
            "trained": float(np.mean(on)) if on else None, "n_trained": len(on),
            "frozen": float(np.mean(off)) if off else None, "n_frozen": len(off),
        }
    return found


def summary(result: SearchResult) -> str:
    """The chosen mask in a sentence."""
    bits = result.mask.bits
    values = ", ".join(f"{name} {value:.4f}" for name, value in zip(result.objectives, result.best.values, strict=True))
    share = "" if result.best.share is None else f", {result.best.share:.1%} of all parameters"
    return (
        f"trial {result.best.number} was chosen: {sum(bits)} of {len(bits)} parts of '{result.space.name}' are trained{share}, at a "
        f"learning rate of {result.mask.lr:.3g}; on validation rows {values}"
    )


def trials_csv(result: SearchResult) -> str:
    """One row a trial: how it ended, its values, every objective, and what was chosen."""
    rows = [
        {
            "trial": trial.number, "state": trial.state,
            **{f"value_{name}": value for name, value in zip(result.objectives, trial.values, strict=False)},
            "collapsed": trial.collapsed, "failure": trial.failure, "same_as": trial.same_as, "share": trial.share,
            "epochs": trial.epochs, "seconds": trial.seconds,
            **{f"val_{name}": value for name, value in trial.metrics.items()},
            **trial.params,
        }
        for trial in result.trials
    ]
    return str(pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
