"""Opening a study: made where there is none, continued where it is the same search, refused where it is another one."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection

from evenhand.config.search import SearchConfig
from evenhand.errors import InputError
from evenhand.methods.base import Split, Task
from evenhand.search.ledger import Terms
from evenhand.search.objectives import MAXIMISED
from evenhand.search.samplers import SeededSampler, make_pruner
from evenhand.search.space import SearchSpace
from evenhand.search.storage import Address, booking, open_storage, patiently, quiet

SCHEMA = "evenhand.search/1"
IDENTITY = "evenhand"
_FREE = frozenset({"progress", "accelerator"})
"""Options of the trainer that do not change a trial's value."""
_WORDS = {
    "space": "search space", "parts": "number of parts", "parts_hash": "parts of the network", "lr": "bounds of the learning rate",
    "objective": "objective", "second_objective": "second objective", "model_hash": "network", "data_hash": "data", "trainer": "trainer",
    "rankless": "list of parts without a LoRA rank",
}


@dataclass(frozen=True)
class OpenStudy:
    """A study that workers share.

    Attributes:
        study: Optuna's, with sampler and pruner.
        storage: where it lives.
        address: how that is called.
        identity: what makes it this search and no other.
        terms: of its ledgers.
    """

    study: Study
    storage: BaseStorage
    address: Address
    identity: Mapping[str, Any]
    terms: Terms


def objectives_of(config: SearchConfig) -> tuple[str, ...]:
    """The one or two objectives of a search.

    Raises:
        InputError: the two are the same.
    """
    second = config.second_objective
    if second == config.objective:
        raise InputError(f"objective and second_objective are both {second}; leave the second one out, or choose another")
    return (config.objective,) if second is None else (config.objective, second)


def steps_of(config: SearchConfig) -> int:
    """Epochs of a whole trial."""
    return config.trainer.max_epochs * (1 if config.outer == "holdout" else config.folds)


def identity_of(config: SearchConfig, space: SearchSpace, task: Task, model_hash: str) -> dict[str, Any]:
    """What two calls of one search have in common: a study is continued only where all of it is equal.

    Budget, workers, sampler, pruner and the savings are not in it: they may change between calls.

    Args:
        config: the search's options.
        space: what it chooses from.
        task: of the first training.
        model_hash: of the network without its head.
    """
    trainer = {name: value for name, value in asdict(config.trainer).items() if name not in _FREE}
    judged = ("objective", "second_objective", "over_labels", "threshold", "min_patients", "collapse_tolerance", "outer", "seed")
    return {
        "schema": SCHEMA,
        **space.describe(),
        **{name: getattr(config, name) for name in judged},
        "folds": None if config.outer == "holdout" else config.folds,
        "model_hash": model_hash,
        "data_hash": data_hash(task),
        "attributes": list(task.attributes),
        "labels": list(task.labels),
        "batch_size": task.batch_size,
        "augment": task.augment,
        "views": config.views,
        "warm_head": config.warm_head,
        "trainer": trainer,
    }


def data_hash(task: Task) -> str:
    """sha256 of what a search is trained and judged on: images, labels, groups and patients of train and validation rows."""
    digest = hashlib.sha256()
    for split in (task.train, task.val):
        _add(digest, split)
    return digest.hexdigest()


def _add(digest: Any, split: Split) -> None:
    digest.update(f"{split.x.fingerprint}\0{len(split)}\0".encode())
    digest.update(np.ascontiguousarray(split.y).tobytes() + np.ascontiguousarray(split.patient).tobytes())
    for name, groups in split.groups.items():
        digest.update(f"{name}\0{groups.keys}\0".encode() + np.ascontiguousarray(groups.codes).tobytes())


def open_study(config: SearchConfig, address: Address, identity: Mapping[str, Any]) -> OpenStudy:
    """Make the study of a search, or continue it.

    Args:
        config: its options.
        address: where it lives.
        identity: from `identity_of`.

    Raises:
        InputError: the storage holds a study of this name for another search; what differs is named.
        RunError: the storage cannot be reached.
        ConfigError: sampler or pruner cannot be used here.
    """
    quiet()
    pruner = make_pruner(config, steps_of(config))
    sampler = SeededSampler(config.sampler, config.seed, config.startup_trials)
    directions = [StudyDirection.MAXIMIZE if name in MAXIMISED else StudyDirection.MINIMIZE for name in objectives_of(config)]
    storage = open_storage(address)

    def make() -> Study:
        with booking(address, storage, config.study):
            return _agreed(storage, config.study, directions, identity, address, sampler, pruner)

    study = patiently(make, address, config.storage_wait)
    terms = Terms(config.n_trials, config.heartbeat, config.grace, config.reruns, config.storage_wait)
    return OpenStudy(study, storage, address, identity, terms)


def _agreed(
    storage: BaseStorage,
    name: str,
    directions: list[StudyDirection],
    identity: Mapping[str, Any],
    address: Address,
    sampler: BaseSampler,
    pruner: BasePruner,
) -> Study:
    there = name in optuna.get_all_study_names(storage)
    if there:
        study = optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=pruner)
        held = study.user_attrs.get(IDENTITY)
        if held is None and study.get_trials(deepcopy=False):
            raise InputError(f"{address.shown} holds a study '{name}' that no search of evenhand made; choose another study= or storage=")
        if held is not None:
            _compare(held, identity, name, address)
            return study
        if study.directions != directions:
            raise InputError(f"{address.shown} holds an empty study '{name}' of other directions; choose another study= or storage=")
    else:
        study = optuna.create_study(study_name=name, storage=storage, directions=directions, sampler=sampler, pruner=pruner)
        names = [str(identity[key]) for key in ("objective", "second_objective") if identity[key]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(names)
    study.set_user_attr(IDENTITY, dict(identity))
    return study


def _compare(held: Mapping[str, Any], wanted: Mapping[str, Any], name: str, address: Address) -> None:
    for key in [*wanted, *(key for key in held if key not in wanted)]:
        before, now = held.get(key), wanted.get(key)
        if before == now:
            continue
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            inner = next(k for k in [*now, *before] if before.get(k) != now.get(k))
            key, before, now = f"{key}.{inner}", before.get(inner), now.get(inner)
        what = _WORDS.get(key, key)
        difference = f"its {what} is another one" if key.endswith("_hash") else f"its {what} is {before}, this command's is {now}"
        raise InputError(
            f"study '{name}' in {address.shown} belongs to another search: {difference}; choose another study= or out=, or repeat the "
            "first command"
        )


def load_study(storage: str, name: str = "search") -> Study:
    """A study that a search made, for looking at it; nothing is changed.

    Args:
        storage: as in `SearchConfig`.
        name: the study's.

    Raises:
        InputError: there is no such study.
        RunError: the storage cannot be reached.
    """
    from evenhand.search.storage import find_address

    quiet()
    address = find_address(storage, None)
    if address.path is not None and not address.path.exists():
        raise InputError(f"{address.shown} does not exist; give the storage that a search wrote")
    opened = open_storage(address)
    names = optuna.get_all_study_names(opened)
    if name not in names:
        raise InputError(f"{address.shown} holds no study '{name}'; it holds: {', '.join(names) or 'none'}")
    return optuna.load_study(study_name=name, storage=opened)
