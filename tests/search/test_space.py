"""From a trial to a mask and back, and which trial wins."""

from __future__ import annotations

import json

import numpy as np
import optuna
import pytest
from timm import create_model

from evenhand.config.search import SearchConfig
from evenhand.errors import ConfigError, RunError
from evenhand.models.masks import Mask
from evenhand.models.parts import make_parts
from evenhand.search.pick import pareto_front, pick, ranked
from evenhand.search.records import TrialRecord
from evenhand.search.samplers import SeededSampler, make_pruner, make_sampler
from evenhand.search.space import SearchSpace, training_key

FACTS = {"seed": 3, "model_hash": "m", "data_hash": "d", "study": "s", "trial": 1}


@pytest.fixture(scope="module")
def parts():
    return make_parts(create_model("vit_tiny_patch16_224", img_size=32, depth=2), "norms|attention|mlp")


def space_of(parts, **options):
    return SearchSpace.of(SearchConfig(space="norms|attention|mlp", **options), parts)


def asked(space, seed=0):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    return trial, space.suggest(trial)


@pytest.mark.parametrize("options", [{}, {"lora_ranks": [0, 4, 8, -1]}, {"lr_scales": [0.1, 1.0]}, {"lr_low": 1e-4, "lr_high": 1e-4}])
@pytest.mark.parametrize("seed", range(4))
def test_a_mask_holds_what_the_trial_chose_and_gives_it_back(parts, options, seed):
    space = space_of(parts, **options)
    trial, params = asked(space, seed)
    assert params == trial.params
    mask = space.mask(params, FACTS)
    assert [part.name for part in mask.parts] == [part.name for part in parts]
    for part in mask.parts:
        chosen = params[part.name]
        assert part.train == (chosen != 0)
        assert part.lora_rank == (chosen if "lora_ranks" in options and chosen > 0 else 0)
        assert part.lr_scale == (params[f"{part.name}.lr_scale"] if "lr_scales" in options and chosen else 1.0)
    assert mask.lr == params.get("lr", 1e-4)
    assert Mask.from_json(mask.to_json()) == mask
    assert space.mask(space.params(mask), FACTS) == mask


def test_learning_rates_are_log_uniform(parts):
    space = space_of(parts)
    rates = np.log10([asked(space, seed)[1]["lr"] for seed in range(200)])
    assert rates.min() >= -5
    assert rates.max() <= -3
    assert abs(rates.mean() + 4) < 0.15


def test_what_a_training_does_not_depend_on_is_not_in_its_key(parts):
    space = space_of(parts, lr_scales=[0.1, 1.0])
    params = {part.name: 0 for part in parts} | {f"{part.name}.lr_scale": 0.1 for part in parts} | {"lr": 1e-4, parts[0].name: 1}
    other = params | {f"{parts[1].name}.lr_scale": 1.0}
    assert training_key(space.mask(params, FACTS)) == training_key(space.mask(other, {**FACTS, "trial": 9}))
    for change in ({f"{parts[0].name}.lr_scale": 1.0}, {"lr": 2e-4}, {parts[1].name: 1}):
        assert training_key(space.mask(params | change, FACTS)) != training_key(space.mask(params, FACTS))


def test_spaces_are_told_apart(parts):
    several = ({}, {"lr_high": 1e-2}, {"lora_ranks": [0, 4]}, {"lr_scales": [1.0, 2.0]})
    described = [space_of(parts, **options).describe() for options in several]
    assert len({json.dumps(item) for item in described}) == 4
    assert SearchSpace.of(SearchConfig(), parts[:-1]).describe()["parts_hash"] != described[0]["parts_hash"]


def test_samplers_and_pruners_by_name():
    config = SearchConfig(pruner="hyperband")
    assert type(make_pruner(config, 10)).__name__ == "HyperbandPruner"
    with pytest.raises(ConfigError, match="sampler=grid is not one of"):
        make_sampler("grid", 0)
    with pytest.raises(ConfigError, match="pruner=patient is not one of"):
        make_pruner(SearchConfig(pruner="patient"), 10)


def test_no_draw_is_repeated_under_hyperband():
    """Optuna shows a sampler the trials of one bracket only; a seed by their count would come twice."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(study_name="h", sampler=SeededSampler("random", 0), pruner=make_pruner(SearchConfig(pruner="hyperband"), 9))
    for _ in range(30):
        trial = study.ask()
        value = trial.suggest_float("x", 0, 1)
        study.tell(trial, value)
    assert len({trial.params["x"] for trial in study.trials}) == 30


def record(number, *values, state="complete", **fields):
    return TrialRecord(number, state, values, {}, **fields)


def test_the_winner_is_the_best_that_may_win():
    trials = [record(0, 0.7), record(1, 0.9, constraint=0.1, collapsed="x"), record(2, 0.95, state="pruned"), record(3, 0.8, share=0.5),
              record(4, 0.8, share=0.1), record(5, 0.8, share=0.1, same_as=4), record(6, float("nan"))]
    assert [trial.number for trial in ranked(trials, ["worst_auc"])] == [4, 3, 0]
    assert pick(trials, ["worst_auc"]).number == 4
    assert pick(trials, ["auc_gap"]).number == 0
    with pytest.raises(RunError, match=r"\(1 collapsed, 1 were pruned\)"):
        pick(trials[1:3], ["worst_auc"])


def test_the_front_against_optunas():
    rng = np.random.default_rng(0)
    values = np.round(rng.random((60, 2)), 2)
    study = optuna.create_study(directions=["maximize", "minimize"])
    for pair in values:
        study.add_trial(optuna.create_trial(values=list(pair)))
    front = pareto_front([record(k, *pair) for k, pair in enumerate(values)], ["auc", "auc_gap"])
    assert {trial.values for trial in front} == {tuple(trial.values) for trial in study.best_trials}


def test_the_rules_of_a_pick_by_hand():
    front = [record(0, 0.90, 0.30), record(1, 0.88, 0.10), record(2, 0.80, 0.08), record(3, 0.60, 0.00), record(4, 0.5, 0.5)]
    names = ["auc", "auc_gap"]
    # scaled to [0, 1]: (0, 1), (0.067, 0.333), (0.333, 0.267), (1, 0): distances 1, 0.340, 0.427, 1
    assert pick(front, names).number == 1
    assert [pick(front, names, "within", within).number for within in (0.0, 0.02, 0.1, 1.0)] == [0, 1, 2, 3]
    assert pick(front[:1], names).number == 0
