"""A whole search with stand-ins for data, network and training, in this process."""

from __future__ import annotations

import json
import re
import threading
import warnings
from dataclasses import replace
from itertools import pairwise

import optuna
import pytest
import torch
from timm import create_model

from evenhand.errors import ConfigError, DiskFullError, InputError, MethodError, RunError
from evenhand.models.masks import apply_mask
from evenhand.search import load_study, run_search
from evenhand.search.storage import find_address, open_storage


@pytest.fixture
def search(lab, tmp_path):
    """Run a search in ``tmp_path/NAME``; returns (result, lines reported, trainings, epochs)."""

    def run(name="a", mishaps=None, factory=None, **options):
        log = tmp_path / f"{name}.log"
        lines: list[str] = []
        config = lab.make_config(tmp_path / name, **options)
        result = run_search(factory or lab.make_task, config, report=lines.append, train=lab.Trainer(str(log), mishaps=mishaps))
        return result, lines, *lab.read_log(log)

    return run


def summary(result):
    """What two equal searches have in common."""
    return [(trial.state, trial.values, dict(trial.params)) for trial in result.trials if trial.state != "lost"]


def test_a_search_finds_the_good_mask_and_says_what_it_did(search, lab):
    result, lines, trained, epochs = search(n_trials=30)
    assert len(trained) == 30
    assert len(epochs) == 120
    assert [trial.state for trial in result.trials] == ["complete"] * 30
    best = max(result.trials, key=lambda trial: trial.values)
    assert result.best.values == best.values
    assert result.mask.trial == result.best.number
    assert result.mask.lr == result.best.params["lr"]
    assert {part.name: int(part.train) for part in result.mask.parts} == {name: result.best.params[name] for name in lab.GOOD}
    assert (result.mask.seed, result.mask.study) == (0, "search")
    assert len(result.mask.model_hash) == len(result.mask.data_hash) == 64
    wrong = sum(part.train != bool(lab.GOOD[part.name]) for part in result.mask.parts)
    assert wrong <= 1, "thirty trials find the mask, or one bit beside it"
    assert lines[-1].startswith("trial 29: worst_auc ")
    assert f"30 of 30 done; best worst_auc {result.best.values[0]:.4f} (trial {result.best.number})" in lines[-1]
    assert result.finalists(3)[0] == result.best
    assert set(result.best.metrics) >= {"worst_auc", "auc", "auc_gap", "equalized_odds", "worst_loss"}
    assert 0 < result.best.share < 1


def test_the_same_call_continues_and_ends_as_if_never_stopped(search):
    whole, *_ = search("whole", n_trials=12)
    search("parts", n_trials=5)
    resumed, lines, trained, _ = search("parts", n_trials=12)
    assert lines[0].startswith("study 'search' goes on: 5 of 12 trials are done; best worst_auc")
    assert len(trained) == 12
    assert summary(resumed) == summary(whole)
    again, lines, trained, _ = search("parts", n_trials=12)
    assert len(trained) == 12, "nothing is left to do"
    assert summary(again) == summary(whole)


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2", "gp"])
def test_every_sampler_is_repeatable(search, sampler):
    options = {"sampler": sampler, "n_trials": 7, "startup_trials": 3}
    assert summary(search("a", **options)[0]) == summary(search("b", **options)[0])
    other = summary(search("c", **options, seed=1)[0])
    assert other != summary(search("a", **options)[0])


def test_ctrl_c_leaves_a_usable_study(search, lab, tmp_path):
    class Interrupted(lab.Trainer):
        def __call__(self, model, mask, *arguments, **options):
            if mask.trial == 3:
                raise KeyboardInterrupt
            return super().__call__(model, mask, *arguments, **options)

    whole, *_ = search("whole", n_trials=8)
    config = lab.make_config(tmp_path / "a", n_trials=8)
    with pytest.raises(KeyboardInterrupt):
        run_search(lab.make_task, config, train=Interrupted(str(tmp_path / "a.log")))
    study = load_study(str(tmp_path / "a" / "study.journal"))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3 + ["FAIL", "WAITING"]
    resumed, *_ = search("a", n_trials=8)
    assert summary(resumed) == summary(whole)
    assert [trial.state for trial in resumed.trials].count("lost") == 1


@pytest.mark.parametrize("pruner", ["median", "halving", "hyperband"])
def test_pruning_saves_epochs(search, pruner):
    pruned, lines, trained, epochs = search(n_trials=20, seed=3, pruner=pruner, prune_startup=3, sampler="random")
    stopped = [trial for trial in pruned.trials if trial.state == "pruned"]
    assert stopped
    assert len(trained) == 20
    assert len(epochs) == sum(trial.epochs for trial in pruned.trials)
    assert len(epochs) <= 70 < 80 == 4 * len(trained)
    assert all(trial.epochs < 4 for trial in stopped)
    assert any(f"stopped after {stopped[0].epochs} epochs" in line for line in lines)
    assert pruned.best.state == "complete"


def test_without_pruning_every_trial_reports_every_epoch_and_the_last_is_its_value(search):
    result, *_ = search(n_trials=4)
    for trial in result.trials:
        assert [step for step, _ in trial.reported] == [1, 2, 3, 4]
        assert trial.reported[-1][1] == trial.values[0]


def test_identical_masks_are_trained_once_and_the_study_is_the_same(search):
    options = {"lr_low": 1e-4, "lr_high": 1e-4, "space": "attention", "n_trials": 9, "sampler": "random"}
    options["space"] = "norms"
    looked_up, lines, trained, _ = search("once", **options)
    trained_all, _, everything, _ = search("all", **options, reuse=False)
    assert summary(looked_up) == summary(trained_all)
    assert len(everything) == 9
    assert len(trained) == len({line["key"] for line in trained}) <= 4
    copies = [trial for trial in looked_up.trials if trial.same_as is not None]
    assert len(copies) == 9 - len(trained)
    assert all(copy.params == looked_up.trials[copy.same_as].params for copy in copies)
    assert all(copy.reported == looked_up.trials[copy.same_as].reported for copy in copies)
    assert f", as trial {copies[0].same_as};" in "\n".join(lines)


def test_another_learning_rate_is_another_training(search):
    _, _, trained, _ = search(space="norms", n_trials=8, sampler="random")
    assert len(trained) == 8


def test_a_trial_with_nan_fails_and_the_study_goes_on(search):
    result, lines, trained, _ = search(mishaps={"1": "nan", "2": "not finite"}, n_trials=5)
    assert [trial.state for trial in result.trials] == ["complete", "failed", "failed", "complete", "complete"]
    said = r"the loss became nan in epoch 1 at lr=[\d.e-]+; lower lr_high, or set trainer\.clip_norm=1"
    assert re.fullmatch(said, result.trials[1].failure)
    assert "validation predictions are NaN" in result.trials[2].failure
    assert len(trained) == 5
    assert any("failed: the loss became nan" in line for line in lines)


def test_out_of_memory_is_tried_once_more_with_half_the_batch(search):
    result, _, trained, _ = search(mishaps={"1": "memory", "2": "memory twice"}, n_trials=4)
    assert [trial.state for trial in result.trials] == ["complete", "complete", "failed", "complete"]
    sizes = [(line["trial"], line["batch"], line["accumulate"]) for line in trained]
    assert sizes == [(0, 16, 1), (1, 16, 1), (1, 8, 2), (2, 16, 1), (2, 8, 2), (3, 16, 1)]
    assert result.trials[1].batch_size == 8
    assert result.trials[0].batch_size is None
    assert "memory ran out, with 8 images a step too" in result.trials[2].failure


def test_an_error_that_every_trial_would_meet_ends_the_search_and_its_trial_is_run_again(search, lab, tmp_path):
    class Broken(lab.Trainer):
        def __call__(self, model, mask, *arguments, **options):
            if mask.trial == 1:
                raise MethodError("peft cannot do this")
            return super().__call__(model, mask, *arguments, **options)

    before = threading.active_count()
    with pytest.raises(MethodError, match="peft cannot do this"):
        run_search(lab.make_task, lab.make_config(tmp_path / "a", n_trials=3), train=Broken(str(tmp_path / "a.log")))
    assert threading.active_count() == before, "no sign of life comes from a trial that nobody runs"
    study = load_study(str(tmp_path / "a" / "study.journal"))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "WAITING"]
    result, *_ = search(n_trials=3)
    assert [trial.state for trial in result.trials] == ["complete", "lost", "complete", "complete"]


def test_ctrl_c_while_a_trial_is_taken_leaves_a_usable_study(search, lab, tmp_path, monkeypatch):
    from evenhand.search.space import SearchSpace

    real, calls = SearchSpace.suggest, []

    def suggest(self, trial):
        calls.append(trial.number)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, trial)

    monkeypatch.setattr(SearchSpace, "suggest", suggest)
    with pytest.raises(KeyboardInterrupt):
        search(n_trials=3)
    study = load_study(str(tmp_path / "a" / "study.journal"))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "WAITING"]
    result, *_ = search(n_trials=3)
    assert [trial.state for trial in result.trials] == ["complete", "lost", "complete", "complete"]


def test_collapsed_trials_never_win(search):
    mishaps = {str(number): "collapse" if number % 2 else "one class" for number in range(9)}
    result, lines, *_ = search(mishaps=mishaps, n_trials=10, objective="equalized_odds", threshold="0.5")
    gaps = [trial.values[0] for trial in result.trials]
    assert min(gaps[:9]) < gaps[9], "the collapsed ones have the smaller gap"
    assert result.best.number == 9
    assert [trial.feasible for trial in result.trials] == [False] * 9 + [True]
    study = load_study(result.storage)
    assert study.best_trial.number == 9, "Optuna agrees, and so does its dashboard"
    assert any("(collapsed: one class is predicted for 100.0% of rows)" in line for line in lines)


def test_nothing_but_collapsed_trials_is_an_error_that_says_how_they_ended(search):
    mishaps = {"0": "collapse", "1": "nan", "2": "one class"}
    with pytest.raises(RunError, match=r"no trial of this search can be used \(2 collapsed, 1 failed\)") as error:
        search(mishaps=mishaps, n_trials=3, threshold="0.5")
    assert error.value.details[1].startswith("trial 1: the loss became nan in epoch 1 at lr=")


def test_a_pruner_compares_a_collapsed_epoch_as_the_worst(search):
    result, *_ = search(mishaps={"5": "collapse"}, n_trials=7, objective="auc_gap", pruner="median", prune_startup=3)
    assert result.trials[5].state == "pruned"
    assert result.trials[5].reported == ((1, 1.0),)


def test_hopeless_trials_are_stopped_where_that_is_asked_for(search):
    result, *_ = search(mishaps={"1": "collapse"}, n_trials=3, stop_collapsed=2)
    assert [trial.epochs for trial in result.trials] == [4, 2, 4]
    assert not result.trials[1].feasible
    again, *_ = search("seeds", mishaps={"1": "collapse"}, n_trials=3, stop_collapsed=2, outer="seeds", folds=2)
    assert [trial.epochs for trial in again.trials] == [8, 4, 8], "every training may be collapsed for one epoch"


def test_two_objectives_give_a_front_and_a_rule_takes_one(search):
    result, lines, *_ = search(objective="auc", second_objective="auc_gap", n_trials=20, sampler="nsga2", startup_trials=6)
    values = [trial.values for trial in result.front]
    assert values == sorted(values, reverse=True)
    assert all(a[0] > b[0] and a[1] > b[1] for a, b in pairwise(values))
    assert result.best in result.front
    assert "on the Pareto front" in lines[-1]
    greedy, *_ = search("b", objective="auc", second_objective="auc_gap", n_trials=20, sampler="nsga2", startup_trials=6,
                        pick="within", pick_within=0.0)
    assert greedy.best.number == greedy.front[0].number
    with pytest.raises(ConfigError, match="pruner=median compares trials by one objective"):
        search("c", objective="auc", second_objective="auc_gap", pruner="median")
    with pytest.raises(InputError, match="objective and second_objective are both auc"):
        search("d", objective="auc", second_objective="auc")


@pytest.mark.parametrize("change", [{"objective": "auc_gap"}, {"space": "norms"}, {"seed": 5}, {"lr_high": 1e-2}, {"min_patients": 6}])
def test_a_study_of_another_search_is_refused(search, change):
    search(n_trials=1)
    with pytest.raises(InputError, match=r"study 'search' in .* belongs to another search: its .* is "):
        search(n_trials=2, **change)
    other, *_ = search(n_trials=2, study="another", **change)
    assert len(other.trials) == 2


def test_what_may_change_between_calls(search):
    search(n_trials=1)
    result, *_ = search(n_trials=3, sampler="random", pruner="median", heartbeat=0.2, reuse=False, prefix=False)
    assert len(result.trials) == 3


def test_a_study_that_others_made_is_refused(search, tmp_path):
    storage = open_storage(find_address(str(tmp_path / "a" / "study.journal"), None))
    study = optuna.create_study(study_name="search", storage=storage, direction="maximize")
    study.add_trial(optuna.create_trial(value=1.0))
    with pytest.raises(InputError, match="that no search of evenhand made"):
        search()


def test_cross_validation_judges_every_row_once(search, lab):
    import functools

    result, _, trained, epochs = search(outer="cv", folds=3, n_trials=2, factory=functools.partial(lab.make_task, outer="cv"))
    assert len(trained) == 6
    assert len(epochs) == 24
    assert [step for step, _ in result.trials[0].reported] == list(range(1, 13))
    assert len(result.best.best_epochs) == 3
    with pytest.raises(InputError, match="240 rows are validation rows of two folds"):
        search("b", outer="cv", folds=2, n_trials=2)


def test_seeds_are_averaged(search, lab):
    result, _, trained, _ = search(outer="seeds", folds=2, n_trials=2)
    assert [line["seed"] for line in trained] == [0, 1, 0, 1]
    single = []
    for seed in (0, 1):
        scorer_task = lab.make_task(seed)
        logits = lab.logits_of(scorer_task.val, "binary", lab.quality(result.mask))
        from evenhand.search.trial import make_scorer
        from evenhand.training.predicting import probabilities

        scorer = make_scorer(lab.make_config("x"), scorer_task, [scorer_task.val], ("worst_auc",))
        single.append(scorer(probabilities(logits, "binary")).values["worst_auc"])
    assert result.best.values[0] == pytest.approx(sum(single) / 2)


def test_bad_input_is_refused_before_any_trial(search, lab):
    import numpy as np

    from evenhand.data.groups import Groups

    def with_val(**fields):
        task = lab.make_task()
        return lambda k: replace(task, val=replace(task.val, **fields))

    split = lab.make_split(240, 2)
    with pytest.raises(InputError, match="search space 'anything' is not known"):
        search(space="anything")
    with pytest.raises(MethodError, match=r"search space 'conv\|norm' .* has no parts in TinyViT; the spaces it has are blocks"):
        search(space="conv|norm")
    with pytest.raises(InputError, match="none of the 240 validation rows has a label"):
        search(factory=with_val(y=np.full((240, 1), np.nan, dtype=np.float32)))
    with pytest.raises(InputError, match=r"1 groups have training rows and no validation rows.*sex=m \(120 training rows\)"):
        search(factory=with_val(groups={"sex": Groups("sex", ("f", "m"), np.zeros(240, dtype=np.int64))}))
    with pytest.raises(InputError, match="attribute sex is missing in every validation row"):
        search(factory=with_val(groups={"sex": Groups("sex", ("f", "m"), np.full(240, -1))}))
    alone = Groups("sex", ("f",), np.zeros(240, dtype=np.int64))
    one = replace(lab.make_task(), val=replace(split, groups={"sex": alone}), train=replace(split, groups={"sex": alone}))
    with pytest.raises(InputError, match=r"objective=worst_auc needs two groups of at least 5 patients of each class.*sex: f 240"):
        search(factory=lambda k: one)
    for options, said in (({"lr_low": 0.1, "lr_high": 0.01}, "the first not above the second"), ({"lora_ranks": [4]}, "nothing to choose")):
        with pytest.raises(ConfigError, match=said):
            search(**options)


def small_beit(n_outputs, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_model("beit_base_patch16_224", num_classes=n_outputs, img_size=32, depth=2, embed_dim=24, num_heads=2)


def test_ranks_are_searched_only_where_the_network_can_have_them(lab, tmp_path):
    class Applying(lab.Trainer):
        def __call__(self, model, mask, *arguments, **options):
            apply_mask(model, mask)
            return super().__call__(model, mask, *arguments, **options)

    def factory(k):
        return replace(lab.make_task(k), build_model=small_beit)

    lines = []
    config = lab.make_config(tmp_path / "a", n_trials=6, lora_ranks=[0, 4, 8])
    result = run_search(factory, config, report=lines.append, train=Applying(str(tmp_path / "a.log")))
    note = "2 of 6 parts can have no LoRA rank, since the network reads a matrix of theirs without calling its layer (block0.attention"
    assert lines[0].startswith(note)
    assert [text for text in result.notes if text.startswith(note)] == [lines[0]]
    assert [trial.state for trial in result.trials] == ["complete"] * 6
    chosen = {name.split(".")[1]: set() for name in lab.GOOD}
    for trial in result.trials:
        for name in lab.GOOD:
            chosen[name.split(".")[1]].add(trial.params[name])
    assert chosen["attention"] | chosen["norms"] <= {0, -1}
    assert chosen["mlp"] & {4, 8}


def test_ranks_that_no_part_can_have_are_refused_before_there_is_a_study(search, lab, tmp_path):
    with pytest.raises(MethodError, match=r"none of 'blocks' can .*choose a space with parts that can: mlp"):
        search(factory=lambda k: replace(lab.make_task(k), build_model=small_beit), space="blocks", lora_ranks=[0, 4])
    assert not list(tmp_path.iterdir())


def test_a_full_disk_ends_the_search_and_leaves_the_study_readable(search, tmp_path, monkeypatch):
    import errno
    import os

    search(n_trials=2)
    real = os.fsync

    def full(descriptor):
        raise OSError(errno.ENOSPC, "no space left on device")

    path = tmp_path / "a" / "study.journal"
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="no space left"):
        search(n_trials=4)
    monkeypatch.setattr(os, "fsync", real)
    assert path.read_bytes() == before
    result, *_ = search(n_trials=4)
    assert len(result.trials) == 4


def test_the_dashboard_reads_the_journal(search, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dashboard = pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is for development only")
        search(n_trials=4, mishaps={"1": "collapse"})
        # as the dashboard opens a file it is given
        backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "a" / "study.journal"))
        app = dashboard.wsgi(optuna.storages.JournalStorage(backend))

        def get(path):
            environment = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "SERVER_NAME": "x", "SERVER_PORT": "80", "wsgi.url_scheme": "http"}
            status = []
            import io

            environment |= {"wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO(), "QUERY_STRING": ""}
            body = b"".join(app(environment, lambda line, headers, exc=None: status.append(line)))
            assert status[0].startswith("200"), body[:200]
            return json.loads(body)

        studies = get("/api/studies")["study_summaries"]
        assert [study["study_name"] for study in studies] == ["search"]
        detail = get(f"/api/studies/{studies[0]['study_id']}")
    assert [trial["state"] for trial in detail["trials"]] == ["Complete"] * 4
    assert {param["name"] for param in detail["trials"][0]["params"]} >= {"lr", "block0.attention"}
