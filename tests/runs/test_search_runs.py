"""`evenhand search` as a whole: its folder, the way on, what it refuses, and finalists that are tested."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import create_trial

from evenhand.cli.app import main
from evenhand.config import compose
from evenhand.config.schema import TrainConfig
from evenhand.data.sources.csv import prepare_csv
from evenhand.data.synthetic import SyntheticConfig, make_cohort, write_cohort
from evenhand.errors import ConfigError, InputError, RunError
from evenhand.models.masks import Mask
from evenhand.runs.finalists import _Judged, _trainings, baseline_method
from evenhand.runs.folder import RunFolder
from evenhand.runs.predict import predict
from evenhand.runs.search import FREE, _identity, rows_of, search_lines, search_mask
from evenhand.runs.search_record import effects, importance
from evenhand.runs.train import train
from evenhand.search import TrialRecord, records_of
from evenhand.search.storage import find_address, open_storage

TINY = [
    "model=test_vit", "model.input_size=[32,32]", "model.precision=fp32", "trainer.accelerator=cpu", "trainer.progress=false",
    "trainer.max_epochs=1", "data.attributes=group", "audit.bootstrap=40", "audit.permutations=99",
]
SEARCH = [*TINY, "space=blocks", "min_patients=3", "lr_low=1e-3", "lr_high=1e-2", "n_trials=2", "finalists=1", "baselines=head"]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("search-cohort")
    write_cohort(make_cohort(SyntheticConfig(size=32, n_patients=400, signal=2.5, prevalence={"A": 0.5, "B": 0.5})), root / "images")
    out = root / "prepared"
    prepare_csv(root / "images" / "metadata.csv", out, images=root / "images", labels=["label"], attributes=["group"], size=32)
    return out


@pytest.fixture(scope="module")
def searched(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return search_mask(compose("search", [f"data={cohort}", *SEARCH, f"out={tmp_path_factory.mktemp('searched') / 'run'}"]))


def record_of(run: RunFolder) -> dict:
    return json.loads((run.root / "search.json").read_text())


def test_the_folder_explains_itself(searched: RunFolder) -> None:
    there = {path.name for path in searched.root.iterdir() if not path.name.startswith(".")}
    assert there >= {"config.yaml", "run.json", "search.json", "mask.json", "masks", "trials.csv", "report.html", "runs", "compare"}
    assert "activations" not in there
    assert searched.done
    record, mask = record_of(searched), Mask.from_json((searched.root / "mask.json").read_text())
    best = record["trials"][record["best"]]
    assert best["values"][0] == max(trial["values"][0] for trial in record["trials"] if not trial["collapsed"])
    assert (mask.trial, mask.study, mask.space) == (record["best"], "search", "blocks")
    assert mask.lr == best["params"]["lr"]
    assert [part.train for part in mask.parts] == [bool(best["params"][part.name]) for part in mask.parts]
    assert mask.model_hash
    assert mask.data_hash
    table = pd.read_csv(searched.root / "trials.csv")
    assert list(table["trial"]) == [0, 1]
    assert {"value_worst_auc", "val_auc_gap", "lr", "block0"} <= set(table.columns)


def test_the_page_tells_what_was_found_and_no_patient(searched: RunFolder, cohort: Path) -> None:
    page = (searched.root / "report.html").read_text()
    for heading in ("The chosen mask", "On test rows", "What was tried", "What mattered", "Every trial"):
        assert heading in page
    assert "Objective over time" in page
    assert "compare/report.html" in page
    patients = pd.read_csv(cohort / "table.csv")["patient_id"].astype(str)
    assert not any(f">{patient}<" in page for patient in patients[:50])
    lines = search_lines(searched)
    assert lines[0].startswith("trial ")
    assert any(line.startswith("head") for line in lines)


def test_a_finalist_trained_again_has_the_value_of_its_trial(searched: RunFolder) -> None:
    record = record_of(searched)
    one = record["tested"]["runs"][f"trial-{record['best']}"]
    assert one["val"]["worst_auc"] == pytest.approx(record["trials"][record["best"]]["values"][0], abs=1e-6)
    assert one["searched"] == record["trials"][record["best"]]["values"][0]
    assert one["drop"] == pytest.approx(one["test"]["worst_auc"] - one["searched"])
    gap, head = one["difference"], record["tested"]["runs"]["head"]
    assert gap["value"] == pytest.approx(one["test"]["worst_auc"] - head["test"]["worst_auc"])
    assert gap["lower"] <= gap["value"] <= gap["upper"]


def test_values_on_test_rows_are_those_of_the_audit(searched: RunFolder) -> None:
    record = record_of(searched)
    audit = json.loads((searched.root / "runs" / "head" / "audit.json").read_text())["labels"]["label"]
    groups = [item["auc"]["value"] for item in audit["attributes"]["group"]["groups"].values()]
    found = record["tested"]["runs"]["head"]["test"]
    assert found["worst_auc"] == pytest.approx(min(groups))
    assert found["auc_gap"] == pytest.approx(max(groups) - min(groups))
    assert found["auc"] == pytest.approx(audit["overall"]["auc"]["value"])
    assert found["equalized_odds"] == pytest.approx(audit["attributes"]["group"]["gaps"]["equalized_odds"]["value"])


def test_a_run_that_its_audit_calls_collapsed_is_called_so(searched: RunFolder) -> None:
    for name, one in record_of(searched)["tested"]["runs"].items():
        audit = json.loads((searched.root / "runs" / name / "audit.json").read_text())
        said = [verdict["text"] for verdict in audit["verdicts"] if verdict["code"] == "collapsed"]
        assert (one["collapsed"], one["collapse"]) == (bool(said), said)


def test_the_difference_of_a_run_to_itself_is_zero(searched: RunFolder, cohort: Path) -> None:
    config = compose("search", [f"data={cohort}", *SEARCH])
    judged = _Judged(RunFolder(searched.root / "runs" / "head"), config)
    gap = judged.difference(judged, config)
    assert (gap["value"], gap["lower"], gap["upper"]) == (0.0, 0.0, 0.0)


def test_stage_two_takes_the_folder_and_ends_where_the_search_did(searched: RunFolder, cohort: Path, tmp_path: Path) -> None:
    words = [f"data={cohort}", *TINY, "method=finetune", f"mask={searched.root}", f"out={tmp_path / 'tuned'}"]
    run = train(compose("train", words))
    record = record_of(searched)
    again = pd.read_parquet(run.root / "predictions.parquet")
    finalist = pd.read_parquet(searched.root / "runs" / f"trial-{record['best']}" / "predictions.parquet")
    assert np.allclose(again["y_score"], finalist["y_score"], atol=1e-6)
    assert (run.root / "results.csv").exists()
    shutil.copy(searched.root / "mask.json", tmp_path / "mask.json")
    changed = json.loads((tmp_path / "mask.json").read_text()) | {"lr": 0.02}
    (tmp_path / "mask.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match="mask was"):
        train(compose("train", [*words[:-2], f"mask={tmp_path / 'mask.json'}", words[-1]]))


def test_a_mask_for_random_weights_is_refused_before_the_first_of_several_seeds(
    searched: RunFolder, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every seed starts from other random weights, so the second one could not take the mask."""
    words = [f"data={cohort}", *TINY, "method=finetune", f"mask={searched.root}", f"out={tmp_path / 'tuned'}", "seeds=0,1"]
    trained: list[int | None] = []
    with pytest.raises(ConfigError, match="starts from random weights here, other ones for every seed"):
        train(compose("train", words))
    assert not (tmp_path / "tuned").exists()

    def stop(config: TrainConfig, *_: object, **__: object) -> RunFolder:
        trained.append(config.seed)
        raise RunError("enough")

    monkeypatch.setattr("evenhand.runs.train._train_one", stop)
    (tmp_path / "old.json").write_text(json.dumps(json.loads((searched.root / "mask.json").read_text()) | {"model_hash": ""}))
    for more in (["method.mask_other_weights=true"], [f"mask={tmp_path / 'old.json'}"], ["mask=full"], ["model.pretrained=true"]):
        with pytest.raises(RunError, match="enough"):
            train(compose("train", [*words, *more]))
    assert len(trained) == 4


def test_a_search_goes_on_with_its_activations_elsewhere_and_on_another_device(cohort: Path) -> None:
    first, second = (compose("search", [f"data={cohort}", *SEARCH, "out=o", *more]) for more in ([], ["activations=a"]))
    rows = rows_of(first, 0)
    assert _identity(first, rows) == _identity(second, rows)
    assert _identity(first, rows) == _identity(replace(first, trainer=replace(first.trainer, accelerator="auto")), rows)
    assert _identity(first, rows) != _identity(replace(first, trainer=replace(first.trainer, max_epochs=2)), rows)


def test_the_same_command_finds_it_finished_and_a_larger_budget_goes_on(cohort: Path, tmp_path: Path) -> None:
    words = [f"data={cohort}", *SEARCH, "finalists=0", "n_trials=1", f"out={tmp_path / 'run'}"]
    run = search_mask(compose("search", words))
    before = (run.root / "search.json").stat().st_mtime_ns
    assert search_mask(compose("search", words)).done
    assert (run.root / "search.json").stat().st_mtime_ns == before
    first = record_of(run)["trials"][0]
    further = search_mask(compose("search", [*words, "n_trials=2"]))
    trials = record_of(further)["trials"]
    assert len(trials) == 2
    assert trials[0]["values"] == first["values"]
    assert record_of(further)["tested"] == {}
    with pytest.raises(InputError, match=r"objective was worst_auc, now auc"):
        search_mask(compose("search", [*words, "objective=auc"]))


def test_other_baselines_finish_a_search_anew_and_are_judged_as_audited(cohort: Path, tmp_path: Path) -> None:
    words = [f"data={cohort}", *SEARCH, "objective=equalized_odds", "n_trials=1", "finalists=0", f"out={tmp_path / 'run'}"]
    first = record_of(search_mask(compose("search", words)))
    run = search_mask(compose("search", [*words, "finalists=1", "baselines=thresholds,random"]))
    record = record_of(run)
    assert list(record["tested"]["runs"]) == ["thresholds", "random", "trial-0"]
    assert record["trials"] == first["trials"]
    # decisions by group are the method's own, not those of a threshold
    audit = json.loads((run.root / "runs" / "thresholds" / "audit.json").read_text())["labels"]["label"]
    found = record["tested"]["runs"]["thresholds"]["test"]["equalized_odds"]
    assert found == pytest.approx(audit["attributes"]["group"]["gaps"]["equalized_odds"]["value"])
    drawn = Mask.from_json((run.root / record["tested"]["runs"]["random"]["folder"] / "mask.json").read_text())
    assert sum(drawn.bits) == sum(part["train"] for part in record["mask"]["parts"])
    # in a folder that was moved, what is trained is kept: a mask counts by what it holds, not by where it lies
    moved = tmp_path / "moved"
    run.root.rename(moved)
    before = {path: path.stat().st_mtime_ns for path in (moved / "runs").glob("*/results.csv")}
    assert len(before) == 4  # the random mask at two rates
    again = search_mask(compose("search", [*words[:-1], "finalists=1", "baselines=thresholds,random,head", f"out={moved}"]))
    assert set(record_of(again)["tested"]["runs"]) == {"thresholds", "random", "head", "trial-0"}
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_finalists_and_baselines_are_trained_as_trials_were(tmp_path: Path) -> None:
    config = compose("search", ["data.path=d", "outer=seeds", "folds=2", "baselines=full,random", "warm_head=true", "trainer.lr=0.1"])
    base = TrainConfig(data=config.data, trainer=config.trainer)
    run = RunFolder(tmp_path)
    trials = [TrialRecord(7, "complete", (0.8,), {"lr": 0.002}, batch_size=32), TrialRecord(3, "complete", (0.7,), {})]
    found = _trainings(run, base, config, trials, [0, 1])
    assert list(found) == ["full", "random", "trial-7", "trial-3"]
    assert [options.method.mask_other_weights for (options, *_) in found.values()] == [False, True, True, True]
    # of the chosen mask's size: after more trials another one may be chosen, and this training is another one
    assert found["random"][0].method.mask_like == str(tmp_path / "masks" / "trial-7.json")
    assert found["random"][0].out != _trainings(run, base, config, trials[::-1], [0, 1])["random"][0].out
    assert all(options.method.warm_head and options.seeds == [0, 1] for own in found.values() for options in own)
    # memory ran out in trial 7: half the images a pass, as many a step
    sizes = {name: [(options.data.batch_size, options.trainer.accumulate) for options in own] for name, own in found.items()}
    assert sizes == {"full": [(64, 1)] * 2, "random": [(64, 1)] * 2, "trial-7": [(32, 2)], "trial-3": [(64, 1)]}
    # fixed masks at trainer.lr and at the rate that the search chose, each in a folder of its own
    rates = {name: [options.trainer.lr for options in own] for name, own in found.items()}
    assert rates == {"full": [0.1, 0.002], "random": [0.1, 0.002], "trial-7": [None], "trial-3": [None]}
    assert len({options.out for own in found.values() for options in own}) == 6
    some = replace(config, baselines=["full", "reweight"], baseline_rates=[1e-3, 0.1])
    given = _trainings(run, base, some, trials, [0, 1])
    assert [options.trainer.lr for options in given["full"]] == [1e-3, 0.1]
    assert len(given["reweight"]) == 1


def test_a_baseline_is_shown_at_its_best_rate_on_validation_rows(cohort: Path, tmp_path: Path) -> None:
    words = [f"data={cohort}", *SEARCH, "n_trials=1", f"out={tmp_path / 'run'}"]
    first = search_mask(compose("search", [*words, "baselines=full", "baseline_rates=1e-7,1e-2"]))
    shown = record_of(first)["tested"]["runs"]["full"]
    assert sorted(rate for rate, _ in shown["rates"]) == [1e-7, 1e-2]
    assert shown["rates"][0][1] == shown["val"]["worst_auc"] == max(value for _, value in shown["rates"])
    assert shown["folder"] == f"runs/full-lr={shown['rates'][0][0]:g}"
    assert f"full (at {shown['rates'][0][0]:.2g}, the best of 2 rates)" in (first.root / "report.html").read_text()
    # one that cannot be trained at some rate is shown at another
    again = search_mask(compose("search", [*words, "baselines=full", "baseline_rates=1e-2,1e30"]))
    rates = record_of(again)["tested"]["runs"]["full"]["rates"]
    assert [rate for rate, _ in rates] == [1e-2, 1e30]
    assert rates[1][1] is None
    with pytest.raises(ConfigError, match=r"baseline_rates=0\.001,0 must be above 0"):
        search_mask(compose("search", [*words, "baseline_rates=1e-3,0"]))


def test_a_search_that_found_a_mask_has_something_to_lose(tmp_path: Path) -> None:
    assert not RunFolder(tmp_path).started
    (tmp_path / "mask.json").write_text("{}")
    assert RunFolder(tmp_path).started


def test_a_temporary_study_leaves_no_file(cohort: Path, tmp_path: Path) -> None:
    words = [f"data={cohort}", *SEARCH, "finalists=0", "n_trials=1", "storage=temporary", f"out={tmp_path / 'run'}"]
    run = search_mask(compose("search", words))
    assert not list(run.root.rglob("*.journal"))
    assert record_of(run)["study"]["storage"] == "temporary"


def test_what_is_refused_leaves_nothing(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def refused(*words: str) -> str:
        with pytest.raises(InputError) as caught:
            search_mask(compose("search", [f"data={cohort}", *SEARCH, f"out={out}", *words]))
        assert not out.exists()
        return str(caught.value)

    assert "the spaces it has are" in refused("space=conv|norm")
    assert "no attribute has them" in refused("min_patients=5000")
    assert "model.url is a server" in refused("model.url=http://127.0.0.1:9")
    assert "baselines=fulll is neither a fixed mask nor a method" in refused("baselines=fulll")
    assert "names one twice" in refused("baselines=full,full")
    assert "both auc" in refused("objective=auc", "second_objective=auc")
    assert "primary metric 'nonsense' is unknown" in refused("audit.primary=nonsense", "storage=temporary")
    assert "data.augment is 'chest', but must be one of" in refused("data.augment=chest")
    assert "trainer.precision=fp16 needs a GPU" in refused("trainer.precision=fp16")
    assert "trainer.max_epochs is 0" in refused("trainer.max_epochs=0")
    assert "threshold 'foo' is not one of" in refused("threshold=foo", "finalists=0")
    assert "none of 'norms' can (they have no matrices)" in refused("space=norms", "lora_ranks=0,4")
    for option in ("trainer.limit_batches=1", "trainer.overfit_batches=1"):
        assert "judges its trials on all of them" in refused(option)


def test_the_command_prints_the_mask_and_the_folder(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["search", f"data={cohort}", *SEARCH, "finalists=0", "n_trials=1", f"out={out}"]) == 0
    first, last = capsys.readouterr().out.strip().splitlines()
    assert first.startswith("trial 0 was chosen: ")
    assert last == str(out)
    assert main(["search", f"data={cohort}", *SEARCH, "finalists=0", "space=nothing", f"out={tmp_path / 'other'}"]) == 2


def test_a_search_scores_nothing_by_itself(searched: RunFolder, cohort: Path) -> None:
    with pytest.raises(InputError, match="holds a search, which scores nothing by itself"):
        predict(compose("predict", [f"model={searched.root}", f"data={cohort}"]))


def test_mask_is_short_for_the_methods_option() -> None:
    assert compose("train", ["data.path=d", "method=finetune", "mask=bitfit"]).method.mask == "bitfit"
    with pytest.raises(ConfigError, match="it belongs to: finetune"):
        compose("train", ["data.path=d", "method=linear_probe", "mask=bitfit"])


def test_folds_judge_every_row_outside_test_once(cohort: Path) -> None:
    config = compose("search", [f"data={cohort}", *SEARCH, "outer=cv", "folds=3"])
    splits = [rows_of(config, k) for k in range(3)]
    plain = rows_of(compose("search", [f"data={cohort}", *SEARCH]), 0)
    outside = plain.split != "test"
    assert ((np.array([rows.split == "val" for rows in splits]).sum(axis=0) == 1) == outside).all()
    for rows in splits:
        assert (rows.split[~outside] == "test").all()
        assert not set(rows.data.patients[rows.split == "val"]) & set(rows.data.patients[rows.split == "train"])


def test_options_that_are_free_exist() -> None:
    config = compose("search", ["data.path=d"])
    assert set(FREE) <= set(vars(config))


def test_baselines_are_fixed_masks_or_methods() -> None:
    assert baseline_method("bitfit", Path("m.json")).mask == "bitfit"
    assert [baseline_method("head", Path("m.json"), warm).warm_head for warm in (True, False)] == [True, False]
    assert baseline_method("random", Path("m.json")).mask_like == "m.json"
    assert baseline_method("linear_probe", Path("m.json")).name == "linear_probe"


def test_effects_are_means_over_trials_that_may_win() -> None:
    trials = [
        TrialRecord(0, "complete", (0.8,), {"a": 1}), TrialRecord(1, "complete", (0.6,), {"a": 1}),
        TrialRecord(2, "complete", (0.5,), {"a": 0}), TrialRecord(3, "complete", (0.1,), {"a": 0}, collapsed="AUC 0.5"),
        TrialRecord(4, "pruned", (), {"a": 0}),
    ]
    assert effects(trials, ["a"])["a"] == {"trained": pytest.approx(0.7), "n_trained": 2, "frozen": 0.5, "n_frozen": 1}
    assert importance("nowhere", "search", trials[:2], "auc") == {}


@pytest.mark.parametrize(("objective", "sign"), [("worst_auc", 1.0), ("auc_gap", -1.0)])
def test_importance_is_about_the_best_trials_and_no_collapsed_one(tmp_path: Path, objective: str, sign: float) -> None:
    """By hand: a alone decides who is best, b who is worst, and c who collapses with a value that would be the best."""
    study = optuna.create_study(
        study_name="search", storage=open_storage(find_address(str(tmp_path / "study.journal"), None)),
        direction="maximize" if sign > 0 else "minimize",
    )
    choices, rng = CategoricalDistribution([0, 1]), np.random.default_rng(0)
    for bits in rng.integers(0, 2, (120, 3)).tolist():
        a, b, c = bits
        value = sign * (0.9 if c else 0.6 + 0.01 * rng.random() if a else 0.2 - 0.1 * b)
        params = dict(zip("abc", bits, strict=True))
        known = dict.fromkeys("abc", choices)
        study.add_trial(create_trial(value=value, params=params, distributions=known, constraints={"collapsed": c - 0.5}))
    trials = records_of(study.get_trials())
    assert sum(trial.feasible for trial in trials) < 80
    found = importance(str(tmp_path / "study.journal"), "search", trials, objective)
    assert found["a"] > 0.8
    assert max(found["b"], found["c"]) < 0.15
