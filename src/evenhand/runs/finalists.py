"""The best masks of a search, trained once more and tested, beside fixed choices: what is left on test rows.

    drop        = objective(test) - objective(validation), signed so that below 0 is a loss
    difference  = objective(test, run) - objective(test, first baseline), paired: both on the same patients

The validation value of a mask that was chosen for it is too good; the drop is the paper's "fairness generalisation gap".

A fixed choice is shown at the best of several learning rates by validation rows: those of the data set, else, with
``outer=cv``, those of the search's first fold; where neither can estimate the objective, it is trained at one rate and called untuned.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from evenhand.config.methods import METHOD_CONFIGS, FinetuneConfig
from evenhand.config.schema import MethodConfig, TrainConfig
from evenhand.config.search import SearchConfig
from evenhand.data.groups import Groups
from evenhand.errors import ConfigError, EvenhandError, nearest
from evenhand.methods.base import Split
from evenhand.models.fixed_masks import FIXED_MASKS
from evenhand.random import generator
from evenhand.runs.compare import compare
from evenhand.runs.folder import RunFolder
from evenhand.runs.results import stored_thresholds
from evenhand.runs.task import Rows, read_rows
from evenhand.runs.train import train, train_fold
from evenhand.search import MAXIMISED, Scorer, TrialRecord, objectives_of
from evenhand.training.settings import peak_lr

log = logging.getLogger(__name__)

MEASURES: Mapping[str, tuple[str, ...]] = {
    "worst_auc": ("auc",), "auc_gap": ("auc",), "utopia": ("auc",), "worst_accuracy": ("accuracy",), "accuracy_gap": ("accuracy",),
    "worst_loss": ("loss",), "equalized_odds": ("tpr", "fpr"), "demographic_parity": ("positive_rate",),
}
"""Objective over groups -> what it is made of."""
DECIDED = ("worst_accuracy", "accuracy_gap", "equalized_odds", "demographic_parity", "accuracy")
"""Objectives that depend on a threshold."""
SHOWN = ("auc", "worst_auc", "auc_gap", "equalized_odds")
"""Objectives that are shown of every run, beside those of the search."""

SCRATCH = "scratch"
"""The baseline that trains everything from random weights; no mask, since what a mask freezes is the checkpoint's."""
FIXED = (*FIXED_MASKS, SCRATCH)
"""Baselines that are tried at several learning rates."""

Array = npt.NDArray[np.float64]


def baseline_method(name: str, mask: Path, warm_head: bool = False, other_weights: bool = False) -> MethodConfig:
    """The method of a baseline: a fixed mask's name, ``scratch``, or a method's.

    Args:
        name: its name; a random mask has the size of the search's.
        mask: the mask that the search chose.
        warm_head: a fixed mask begins with a fitted head, as the search's trials did: else they would not be comparable.
            Not from scratch: that head is fitted on embeddings of the checkpoint.
        other_weights: the network may begin with other weights than the search's mask is of.

    Raises:
        ConfigError: neither.
    """
    if name in FIXED_MASKS:
        if name != "random":
            return FinetuneConfig(mask=name, warm_head=warm_head)
        return FinetuneConfig(mask=name, mask_like=str(mask), mask_other_weights=other_weights, warm_head=warm_head)
    if name == SCRATCH:
        return FinetuneConfig(from_scratch=True)
    if name not in METHOD_CONFIGS:
        known = [*FIXED, *METHOD_CONFIGS]
        raise ConfigError(f"baselines={name} is neither a fixed mask nor a method nor {SCRATCH}; {nearest(name, known)}")
    return METHOD_CONFIGS[name]()


def judge_finalists(run: RunFolder, base: TrainConfig, config: SearchConfig, finalists: Sequence[TrialRecord]) -> dict[str, Any]:
    """Train and test the finalists of a search and its baselines.

    Args:
        run: the search's folder, with masks/trial-N.json of the finalists.
        base: options of a training.
        config: the search's options.
        finalists: the best trials, the chosen one first.

    Returns:
        ``runs``: name -> folder, kind, validation and test values of every objective shown, drop, paired difference,
        whether it has collapsed on test rows, and of a fixed mask ``rates``: each learning rate that was tried with its
        validation value (None where it failed), the best first, which is the run shown (empty where there was no choice);
        where there was one to make, ``rate`` is the run's and ``rates_on`` the rows that made it: ``val``, ``fold``, or None
        where none could; ``reference``; ``compare``: the page with all metrics; ``notes``: sentences. A baseline that failed
        at every rate has ``failed`` instead.
    """
    seeds = [config.seed + k for k in range(config.folds)] if config.outer == "seeds" else None
    trainings = _trainings(run, base, config, finalists, seeds)
    searched = {f"trial-{trial.number}": trial.values[0] for trial in finalists}
    found: dict[str, Any] = {}
    done: dict[str, _Candidate] = {}
    rates_on = _rates_on(config)
    for name, alternatives in trainings.items():
        kind = "baseline" if name in config.baselines else "finalist"
        found[name] = {"kind": kind}
        try:
            done[name] = _best_of(name, alternatives, config, rates_on)
        except EvenhandError as error:
            if kind == "finalist":
                raise
            log.warning("baseline %s: %s", name, error.summary)
            found[name]["failed"] = error.summary
    names = tuple(dict.fromkeys([*objectives_of(config), *SHOWN]))
    reference = next((name for name in config.baselines if name in done), None)
    for name, one in done.items():
        found[name] |= {"folder": one.run.root.relative_to(run.root).as_posix(), **collapse_of(one.run)}
        found[name] |= {"rates": one.rates, **one.judged.values(names, searched.get(name))}
        if len(trainings[name]) > 1:
            found[name] |= {"rate": one.rate, "rates_on": rates_on}
        if reference is not None and name != reference:
            found[name]["difference"] = one.judged.difference(done[reference].judged, config)
    page = _compare(run, {name: one.run for name, one in done.items()}, reference, base)
    return {"runs": found, "reference": reference, "compare": page, "notes": _rate_notes(found, config)}


@dataclass(frozen=True)
class _Candidate:
    """A trained finalist or baseline.

    Attributes:
        run: its folder.
        judged: its predictions.
        rate: learning rate of a fixed mask.
        rates: (learning rate, value) of all that were tried, this one first; empty where there was no choice.
    """

    run: RunFolder
    judged: _Judged
    rate: float | None
    rates: tuple[tuple[float | None, float | None], ...] = ()


def _best_of(name: str, alternatives: Sequence[TrainConfig], config: SearchConfig, rates_on: str | None) -> _Candidate:
    """Train one network at the best of its rates by the first objective on validation rows; at the first one where no rows can choose.

    Args:
        name: of the finalist or baseline.
        alternatives: its options at every rate.
        config: the search's options.
        rates_on: the rows that choose, as `_rates_on` says.

    Raises:
        EvenhandError: none of them could be trained; the first one's.
    """
    if len(alternatives) < 2 or rates_on is None:
        log.info("train and test: %s", name)
        run = train(alternatives[0])
        return _Candidate(run, _Judged(run, config), _rate(alternatives[0]))
    fold = (0, config.folds) if rates_on == "fold" else None
    tried: list[tuple[float | None, float | None, TrainConfig, RunFolder]] = []
    failed: list[tuple[float | None, EvenhandError]] = []
    for options in alternatives:
        rate = _rate(options)
        log.info("train and %s: %s at %.3g", "judge on the first fold" if fold else "test", name, rate)
        try:
            run = train_fold(replace(options, out=f"{options.out}-fold=0"), fold) if fold else train(options)
        except EvenhandError as error:
            failed.append((rate, error))
            continue
        value = _Judged(run, config, fold).values((config.objective,))["val"][config.objective]
        tried.append((rate, value, options, run))
    if not tried:
        raise failed[0][1]
    for rate, why in failed:
        log.warning("%s at %.3g: %s", name, rate, why.summary)
    sign = 1 if config.objective in MAXIMISED else -1
    tried.sort(key=lambda one: -math.inf if one[1] is None else sign * one[1], reverse=True)
    rates = (*((rate, value) for rate, value, *_ in tried), *((rate, None) for rate, _ in failed))
    best, _, options, run = tried[0]
    if fold:
        log.info("train and test: %s at %.3g", name, best)
        run = train(options)
    return _Candidate(run, _Judged(run, config), best, rates)


def _rates_on(config: SearchConfig) -> str | None:
    """The validation rows that choose a learning rate: ``val``, the data set's; ``fold``, those of the search's first fold; None can."""
    if config.outer != "cv":
        return "val"  # a search without them was refused
    known = {"val": None, "fold": (0, config.folds)}
    rows = {name: read_rows(config.data, config.seed, redraw=False, fold=fold) for name, fold in known.items()}
    return next((name for name, one in rows.items() if _can_judge(one, config)), None)


def _can_judge(rows: Rows, config: SearchConfig) -> bool:
    """Whether the first objective can be estimated on validation rows, of whatever model."""
    split = rows.take("val")
    names = rows.data.spec.classes if rows.kind == "multiclass" else rows.labels
    same = pd.DataFrame(np.full((len(split), len(names)), 0.5), columns=[f"y_score_{name}" for name in names])
    return _Part(rows, split, same, {}, config).value(config.objective) is not None


def _rate_notes(found: Mapping[str, Mapping[str, Any]], config: SearchConfig) -> list[str]:
    """Sentences on fixed choices whose learning rate was not chosen on the data set's validation rows."""
    said = {
        "fold": f"the data set has no validation rows that could choose a learning rate by {config.objective}, so those of the search's "
                "first fold did, and the best rate was trained once more",
        None: f"no validation rows could choose a learning rate by {config.objective}, not even those of the search's first fold, so each "
              "was trained at one: the comparison is with an untuned one",
    }
    of = {rows: [name for name, one in found.items() if one.get("rates_on", "val") == rows] for rows in said}
    return [f"{', '.join(of[rows])}: {text}" for rows, text in said.items() if of[rows]]


def _rate(options: TrainConfig) -> float | None:
    """The learning rate of a fixed mask or from scratch; None of another method."""
    method = options.method
    fixed = isinstance(method, FinetuneConfig) and (method.mask in FIXED_MASKS or method.from_scratch)
    return peak_lr(options.trainer, options.data.batch_size) if fixed else None


def _trainings(
    run: RunFolder, base: TrainConfig, config: SearchConfig, finalists: Sequence[TrialRecord], seeds: list[int] | None
) -> dict[str, list[TrainConfig]]:
    """Baselines, then finalists: name -> the options of its trainings, each with a folder of its own; of a fixed mask one a rate."""
    # a network without a checkpoint begins with other weights under every seed, in the search too
    other_weights = seeds is not None
    best = run.root / "masks" / f"trial-{finalists[0].number}.json"
    found = {}
    for name in config.baselines:
        method = baseline_method(name, best, config.warm_head, other_weights)
        # a random mask is of the size of the one chosen, which may be another one after more trials
        folder = run.root / "runs" / (f"{name}-as-{best.stem}" if name == "random" else name)
        own = replace(base, method=method, seeds=seeds, out=str(folder))
        found[name] = _at_rates(own, config, finalists[0]) if name in FIXED else [own]
    for trial in finalists:
        name = f"trial-{trial.number}"
        path = str(run.root / "masks" / f"{name}.json")
        tuned = FinetuneConfig(mask=path, warm_head=config.warm_head, mask_other_weights=other_weights)
        options = replace(base, method=tuned, seeds=seeds, trainer=replace(base.trainer, lr=None), out=str(run.root / "runs" / name))
        if trial.batch_size is not None:
            # memory ran out in the search: as many parts of a batch a step as there
            parts = -(-options.data.batch_size // trial.batch_size)
            trainer = replace(options.trainer, accumulate=options.trainer.accumulate * parts)
            options = replace(options, data=replace(options.data, batch_size=trial.batch_size), trainer=trainer)
        found[name] = [options]
    return found


def _at_rates(options: TrainConfig, config: SearchConfig, chosen: TrialRecord) -> list[TrainConfig]:
    """A fixed mask's training at every rate of ``baseline_rates``, else at its own and at that of the chosen mask."""
    own = _rate(options)
    rates = dict.fromkeys(config.baseline_rates or (own, chosen.params.get("lr", config.lr_low)))
    at = {rate: replace(options, out=f"{options.out}-lr={rate:g}", trainer=replace(options.trainer, lr=rate)) for rate in rates}
    return [options if rate == own else at[rate] for rate in rates]


def collapse_of(run: RunFolder) -> dict[str, Any]:
    """Whether a model has collapsed, by its audit on test rows: ``collapsed`` (in some seed, for every label), ``collapse`` (sentences)."""
    whole, said = False, []
    for one in run.seeds:
        audit = json.loads((one.root / "audit.json").read_text(encoding="utf-8"))
        verdicts = [verdict for verdict in audit["verdicts"] if verdict["code"] == "collapsed"]
        whole = whole or {verdict["label"] for verdict in verdicts} >= set(audit["labels"])
        prefix = f"seed {one.info['seed']}: " if len(run.seeds) > 1 else ""
        said += [f"{prefix}{verdict['text']}" for verdict in verdicts]
    return {"collapsed": whole, "collapse": said}


def _compare(run: RunFolder, done: Mapping[str, RunFolder], reference: str | None, base: TrainConfig) -> str | None:
    """The comparison page of all runs, its path in the search's folder; None where there is one run only."""
    order = sorted(done, key=lambda name: name != reference)
    if len(order) < 2:
        return None
    page = run.root / "compare" / "report.html"
    title = "Finalists of a search against fixed choices" if reference else "Finalists of a search"
    compare([f"{name}={done[name].root}" for name in order], page, config=base.audit, seed=base.seed, title=title)
    return "compare/report.html"


class _Judged:
    """One run, judged as the search judges: on validation and on test rows, at the threshold of the validation rows."""

    def __init__(self, run: RunFolder, config: SearchConfig, fold: tuple[int, int] | None = None) -> None:
        self.config = config
        self.parts: dict[str, list[_Part]] = {"val": [], "test": []}
        for one in run.seeds:
            seed = int(one.info["seed"])
            rows = read_rows(config.data, seed, redraw=len(run.seeds) > 1, fold=fold)
            table = pd.read_parquet(one.root / "predictions.parquet")
            for split, parts in self.parts.items():
                parts.append(_Part(rows, rows.take(split), table[table["split"] == split], stored_thresholds(one), config))

    def values(self, names: Sequence[str], searched: float | None = None) -> dict[str, Any]:
        """Mean over seeds of every objective on both splits, and the first one's drop: from what the search found, where it judged."""
        found = {split: {name: _mean([part.value(name) for part in parts]) for name in names} for split, parts in self.parts.items()}
        first = names[0]
        ends = found["val"][first] if searched is None else searched, found["test"][first]
        sign = 1 if first in MAXIMISED else -1
        drop = None if ends[0] is None or ends[1] is None else sign * (ends[1] - ends[0])
        return {**found, "searched": ends[0], "drop": drop, "n_test": sum(part.n for part in self.parts["test"])}

    def difference(self, reference: _Judged, config: SearchConfig) -> dict[str, Any]:
        """The first objective on test rows, this run's minus the reference's, with the bootstrap interval over patients."""
        name = config.objective
        own, other = self.parts["test"], reference.parts["test"]
        value = _less(_mean([part.value(name) for part in own]), _mean([part.value(name) for part in other]))
        draws = []
        rng = generator(config.seed, "finalists")
        for _ in range(config.audit.bootstrap):
            patients = own[0].draw(rng)
            pairs = [(part.again(name, patients), base.again(name, patients)) for part, base in zip(own, other, strict=True)]
            one = _less(_mean([a for a, _ in pairs]), _mean([b for _, b in pairs]))
            if one is not None:
                draws.append(one)
        tail = (1 - config.audit.confidence) / 2
        enough = value is not None and len(draws) >= max(20, config.audit.bootstrap // 2)
        lower, upper = (float(np.quantile(draws, q)) for q in (tail, 1 - tail)) if enough else (None, None)
        return {"value": value, "lower": lower, "upper": upper, "draws": len(draws), "better_above": name in MAXIMISED}


class _Part:
    """Predictions of one split of one run."""

    def __init__(self, rows: Rows, split: Split, table: pd.DataFrame, thresholds: Mapping[str, float], config: SearchConfig) -> None:
        columns = [name for name in table.columns if name == "y_score" or name.startswith("y_score_")]
        self.scores: Array = table[columns].to_numpy(dtype=np.float64)
        self.kind, self.config, self.split = rows.kind, config, split
        self.names = tuple(rows.data.spec.classes) if rows.kind == "multiclass" else rows.labels
        at = [0.5 if rows.kind == "multiclass" else thresholds.get(name, 0.5) for name in self.names]
        self.decided = self.scores - np.asarray(at) + 0.5
        own = [name for name in table.columns if name == "y_pred" or name.startswith("y_pred_")]
        if own and rows.kind != "multiclass":
            # a method with decisions of its own, by group: they count, as in the audit
            self.decided = table[own].to_numpy(dtype=np.float64)
        self.n = len(split)
        self.patient: npt.NDArray[np.int64] = np.asarray(split.patient, dtype=np.int64)
        self.scorer = self._scorer(np.arange(self.n), self.patient, split.groups, config.min_patients) if self.n else None
        self._rows_of: dict[int, npt.NDArray[np.int64]] = {}

    def value(self, name: str) -> float | None:
        """An objective on all rows; None where it cannot be estimated."""
        return None if self.scorer is None else self._of(self.scorer, name, np.arange(self.n))

    def draw(self, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """As many patients as there are, with replacement."""
        known = np.unique(self.patient)
        return np.asarray(rng.choice(known, size=len(known)))

    def again(self, name: str, patients: npt.NDArray[np.int64]) -> float | None:
        """An objective on the rows of drawn patients, over the groups that counted on all rows."""
        if self.scorer is None:
            return None
        if not self._rows_of:
            order = np.argsort(self.patient, kind="stable")
            known, first = np.unique(self.patient[order], return_index=True)
            self._rows_of = dict(zip(known.tolist(), np.split(order, first[1:]), strict=True))
        rows = np.concatenate([self._rows_of[int(patient)] for patient in patients])
        groups = {attribute: self._counted(name, attribute).take(rows) for attribute in self.split.groups}
        return self._of(self._scorer(rows, self.patient[rows], groups, 1), name, rows)

    def _counted(self, name: str, attribute: str) -> Groups:
        """The groups of an attribute that an objective is over; rows of others have no group."""
        groups, assert_scorer = self.split.groups[attribute], self.scorer
        small: set[str] = set()
        for where, keys in (assert_scorer.left_out if assert_scorer is not None else {}).items():
            measure, _, _ = where.partition(" of ")
            if where.endswith(f" by {attribute}") and measure in MEASURES.get(name, ()):
                small |= keys
        out = [code for code, key in enumerate(groups.keys) if key in small]
        return Groups(groups.attribute, groups.keys, np.where(np.isin(groups.codes, out), -1, groups.codes)) if out else groups

    def _scorer(
        self, rows: npt.NDArray[np.int64], patient: npt.NDArray[np.int64], groups: Mapping[str, Groups], least: int
    ) -> Scorer:
        over: Any = self.config.over_labels
        y = np.asarray(self.split.y)[rows]
        return Scorer(y, groups, patient, self.kind, labels=self.names, threshold="0.5", min_patients=least, over_labels=over)  # type: ignore[arg-type]

    def _of(self, scorer: Scorer, name: str, rows: npt.NDArray[np.int64]) -> float | None:
        scores = self.decided if name in DECIDED and self.kind != "multiclass" else self.scores
        return scorer(scores[rows], (name,)).values.get(name)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other
