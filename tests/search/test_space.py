"""From a trial to a mask and back, and which trial wins."""

from __future__ import annotations

import copy
import json

import numpy as np
import optuna
import pytest
import torch
from timm import create_model

from evenhand.config.search import SearchConfig
from evenhand.errors import ConfigError, MethodError, RunError
from evenhand.models.masks import Mask, apply_mask
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


def network(kind):
    small = {"num_classes": 2, "embed_dim": 24}
    if kind == "swin":
        return create_model("swinv2_tiny_window8_256", img_size=64, window_size=4, depths=(1, 1, 1, 1), **small | {"embed_dim": 12})
    names = {"beit": "beit_base_patch16_224", "vit": "vit_tiny_patch16_224"}
    return create_model(names[kind], img_size=32, depth=2, num_heads=2, **small)


def space_in(model, **options):
    return SearchSpace.of_network(SearchConfig(**{"space": "norms|attention|mlp", "lora_ranks": [0, 4, 8]} | options), model)


@pytest.mark.parametrize("kind", ["swin", "beit"])
def test_no_rank_is_offered_where_a_network_reads_weights_past_their_layers(kind):
    model = network(kind)
    model.train()
    next(iter(model.children())).eval()
    before = copy.deepcopy(model)
    space = space_in(model)
    offered = {part.role: space.choices_of(part) for part in space.parts}
    assert offered == {"norms": (0, -1), "attention": (0, -1), "mlp": (0, 4, 8)}
    assert space.rankless == tuple(part.name for part in space.parts if part.role == "attention")
    (note,) = space.notes
    assert note.startswith(f"{len(space.rankless)} of {len(space.parts)} parts can have no LoRA rank")
    assert "block0.attention" in note
    # the network is as it was
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.state_dict().items())
    assert [module.training for module in model.modules()] == [module.training for module in before.modules()]
    assert not any(module._forward_pre_hooks for module in model.modules())
    # the greatest rank wherever one is offered: training can begin
    params = {part.name: max(space.choices_of(part), key=abs) for part in space.parts}
    assert apply_mask(model, space.mask(params | {"lr": 1e-4}, FACTS))


def test_of_tensors_only_those_read_past_their_layers_lose_their_rank():
    space = space_in(network("swin"), space="attention_tensors")
    offered = {part.role: space.choices_of(part) for part in space.parts}
    assert offered == {"qkv.weight": (0, -1), "proj.weight": (0, 4, 8), "proj.bias": (0, -1)}


@pytest.mark.parametrize("space", ["norms|attention|mlp", "blocks", "attention"])
def test_a_plain_transformer_keeps_its_ranks(space):
    model = network("vit")
    found = space_in(model, space=space)
    plain = SearchSpace.of(SearchConfig(space=space, lora_ranks=[0, 4, 8]), make_parts(model, space))
    assert found == plain
    assert found.describe() == plain.describe()
    assert found.notes == ()


def test_a_study_that_offered_ranks_where_none_can_be_is_another_one():
    model = network("beit")
    config = SearchConfig(lora_ranks=[0, 4])
    assert SearchSpace.of_network(config, model).describe() != SearchSpace.of(config, make_parts(model, config.space)).describe()


@pytest.mark.parametrize(
    ("kind", "space", "why"),
    [
        ("swin", "blocks", r"reads layers\.0\.blocks\.0\.attn\.qkv\.weight without calling its layer"),
        ("beit", "attention", r"reads blocks\.0\.attn\.qkv\.weight without calling its layer"),
        ("swin", "norms", "they have no matrices"),
    ],
)
def test_ranks_that_no_part_can_have_are_refused_with_the_spaces_that_can(kind, space, why):
    said = rf"lora_ranks=0,4,8 needs parts .* none of '{space}' can \(.*{why}\); choose a space with parts that can: mlp, norms\+mlp, "
    said += r"norms\|attention\|mlp \(its mlp\), .*attention_tensors \(its proj\.weight\); or leave lora_ranks out"
    with pytest.raises(MethodError, match=said):
        space_in(network(kind), space=space)
    assert space_in(network(kind), space=space, lora_ranks=[0, -1]).rankless == ()


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
