"""Samplers and pruners, seeded by trial: what a trial proposes depends on the seed and on the trials before it alone.

Optuna's samplers draw from one stream a process, so that a study that was interrupted, or run by other numbers of workers,
repeats draws or makes others. Here each trial gets a sampler of its own seed, ``derive_seed(seed, "sampler", k)``, k being
the number of trials before it without those whose worker died (they are run again under another number). With one worker a
study that was killed and continued ends with the very trials of one that was not.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from evenhand.config.search import SearchConfig
from evenhand.errors import ConfigError
from evenhand.random import derive_seed
from evenhand.search.records import is_lost


class SeededSampler(BaseSampler):
    """A sampler of its own seed for every trial; see the module.

    Args:
        name: tpe, random, nsga2 or gp.
        seed: the study's.
        startup: random trials of tpe and gp; population of nsga2.
    """

    def __init__(self, name: str, seed: int, startup: int = 10) -> None:
        self.name, self.seed, self.startup = name, seed, startup
        self._number: int | None = None
        self._inner: BaseSampler | None = None

    def _of(self, study: Study, trial: FrozenTrial) -> BaseSampler:
        if self._inner is None or self._number != trial.number:
            # of the storage: under Hyperband a sampler is shown the trials of one bracket only
            trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
            before = sum(other.number < trial.number and not is_lost(other) for other in trials)
            self._inner = make_sampler(self.name, derive_seed(self.seed, "sampler", before) % 2**32, self.startup)
            self._number = trial.number
        return self._inner

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the sampler of this trial does."""
        return self._of(study, trial).infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """As the sampler of this trial does."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._of(study, trial).sample_relative(study, trial, search_space)

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """As the sampler of this trial does."""
        return self._of(study, trial).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """As the sampler of this trial does."""
        self._of(study, trial).before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """As the sampler of this trial does."""
        self._of(study, trial).after_trial(study, trial, state, values)


def make_sampler(name: str, seed: int, startup: int = 10) -> BaseSampler:
    """An Optuna sampler.

    Args:
        name: tpe (all parts jointly, aware of trials that are running), random, nsga2 or gp.
        seed: in [0, 2**32).
        startup: random trials of tpe and gp; population of nsga2.

    Raises:
        ConfigError: no sampler of this name.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if name == "tpe":
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=startup, constant_liar=True)
        if name == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        if name == "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(startup, 2))
        if name == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup, deterministic_objective=False)
    raise ConfigError(f"sampler={name} is not one of tpe, random, nsga2, gp")


def make_pruner(config: SearchConfig, steps: int) -> BasePruner:
    """An Optuna pruner that is asked after every epoch.

    Args:
        config: its options.
        steps: epochs of a whole trial, over all its trainings.

    Raises:
        ConfigError: pruning with two objectives, or no pruner of this name.
    """
    name = config.pruner
    if name != "none" and config.second_objective is not None:
        raise ConfigError(
            f"pruner={name} compares trials by one objective, but second_objective={config.second_objective} is given too; use pruner=none"
        )
    if name == "none":
        return optuna.pruners.NopPruner()
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=config.prune_startup, n_warmup_steps=config.prune_after)
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=config.prune_after, reduction_factor=config.reduction)
    if name == "hyperband":
        first = min(config.prune_after, steps)
        return optuna.pruners.HyperbandPruner(min_resource=first, max_resource=steps, reduction_factor=config.reduction)
    raise ConfigError(f"pruner={name} is not one of none, median, halving, hyperband")
