"""Fixed choices beside the finalists of a search: from random weights, and at a learning rate that rows could choose."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from evenhand.config import compose
from evenhand.data.sources.csv import prepare_csv
from evenhand.data.synthetic import SyntheticConfig, make_cohort, write_cohort
from evenhand.errors import ConfigError
from evenhand.models import build_classifier
from evenhand.runs.finalists import _rates_on, baseline_method
from evenhand.runs.folder import RunFolder
from evenhand.runs.search import rows_of, search_mask

SEARCH = [
    "model=test_vit", "model.input_size=[32,32]", "model.precision=fp32", "trainer.accelerator=cpu", "trainer.progress=false",
    "trainer.max_epochs=1", "data.attributes=group", "audit.bootstrap=40", "audit.permutations=99", "space=blocks", "min_patients=3",
    "lr_low=1e-3", "lr_high=1e-2", "n_trials=1", "finalists=1",
]
CV = ["outer=cv", "folds=2", "lr_low=2e-3", "lr_high=2e-3", "trainer.lr=1e-7", "baselines=full,linear_probe"]


def prepared(root: Path, fractions: tuple[float, float, float]) -> Path:
    config = SyntheticConfig(size=32, n_patients=400, signal=2.5, prevalence={"A": 0.5, "B": 0.5}, fractions=fractions)
    write_cohort(make_cohort(config), root / "images")
    out = root / "prepared"
    prepare_csv(root / "images" / "metadata.csv", out, images=root / "images", labels=["label"], attributes=["group"], size=32)
    return out


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("with-validation"), (0.6, 0.15, 0.25))


@pytest.fixture(scope="module")
def no_validation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("without-validation"), (0.7, 0.0, 0.3))


def record_of(run: RunFolder) -> dict:
    return json.loads((run.root / "search.json").read_text())


def weights_of(run: RunFolder, one: dict) -> dict[str, torch.Tensor]:
    return load_file(run.root / one["folder"] / "model.safetensors")


def test_scratch_is_a_baseline_without_a_warm_head_and_its_misspelling_is_refused() -> None:
    method = baseline_method("scratch", Path("m.json"), warm_head=True, other_weights=True)
    assert (method.from_scratch, method.mask, method.warm_head) == (True, None, False)
    with pytest.raises(ConfigError, match=r"baselines=scrach is neither a fixed mask nor a method nor scratch.*'?scratch'?"):
        baseline_method("scrach", Path("m.json"))


def test_scratch_begins_at_random_weights_and_is_tried_at_the_rates_of_fixed_masks(cohort: Path, tmp_path: Path) -> None:
    """At rates that move no weight: what is trained ends where it began."""
    words = [f"data={cohort}", *SEARCH]
    source = build_classifier(compose("search", words).model, 1, seed=5).network.state_dict()
    torch.save(source, tmp_path / "weights.pth")
    more = [f"model.checkpoint={tmp_path / 'weights.pth'}", "trainer.min_lr=0", "warm_head=true", "baselines=full,scratch"]
    run = search_mask(compose("search", [*words, *more, "baseline_rates=1e-12,1e-11", f"out={tmp_path / 'run'}"]))
    tested = record_of(run)["tested"]
    assert list(tested["runs"]) == ["full", "scratch", "trial-0"]
    full, scratch = tested["runs"]["full"], tested["runs"]["scratch"]
    assert {rate for rate, _ in scratch["rates"]} == {rate for rate, _ in full["rates"]} == {1e-12, 1e-11}
    assert scratch["rates_on"] == "val"
    assert scratch["difference"]["lower"] is not None
    began = weights_of(run, full)
    key = next(name for name in began if name.endswith("blocks.0.attn.qkv.weight"))
    stored = source[next(name for name in source if name.endswith("blocks.0.attn.qkv.weight"))]
    torch.testing.assert_close(began[key], stored, atol=1e-6, rtol=0)
    apart = (weights_of(run, scratch)[key] - stored).abs().mean()
    assert apart > 0.5 * stored.abs().mean()
    page = (run.root / "report.html").read_text()
    assert re.search(rf"scratch \((collapsed, )?at {scratch['rates'][0][0]:.2g}, the best of 2 rates\)", page)
    assert record_of(run)["notes"] == []


def test_without_validation_rows_the_first_fold_of_the_search_chooses_the_rate(no_validation: Path, tmp_path: Path) -> None:
    words = [f"data={no_validation}", *SEARCH, *CV, f"out={tmp_path / 'run'}"]
    run = search_mask(compose("search", words))
    record = record_of(run)
    full, probe = (record["tested"]["runs"][name] for name in ("full", "linear_probe"))
    assert sorted(rate for rate, _ in full["rates"]) == [1e-7, 2e-3]
    values = [value for _, value in full["rates"]]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[1]
    assert (full["rate"], full["rates_on"]) == (full["rates"][0][0], "fold")
    assert (probe["rates"], "rates_on" in probe) == ([], False)
    # judged on a training without the fold's rows, and trained on all of them at the best rate only
    folds = {rate: RunFolder(run.root / "runs" / f"full{lr}-fold=0") for rate, lr in ((1e-7, ""), (2e-3, "-lr=0.002"))}
    rows = rows_of(compose("search", words), 0)
    for rate, value in full["rates"]:
        assert folds[rate].info["split_hash"] == rows.split_hash
        table = pd.read_parquet(folds[rate].root / "predictions.parquet").query("split == 'val'")
        assert len(table) == (rows.split == "val").sum()
        assert value == pytest.approx(min(roc_auc_score(own["y_true"], own["y_score"]) for _, own in table.groupby("group")))
    shown = RunFolder(run.root / full["folder"])
    assert shown.info["n_images"]["val"] == 0
    assert shown.info["n_images"]["train"] == (rows.split != "test").sum()
    assert len([path for path in (run.root / "runs").glob("full*") if not path.name.endswith("fold=0")]) == 1
    (note,) = record["notes"]
    assert note.startswith("full: the data set has no validation rows that could choose a learning rate by worst_auc")
    page = (run.root / "report.html").read_text()
    assert re.search(rf"full \((collapsed, )?at {full['rate']:.2g}, the best of 2 rates\)", page)
    assert "validation rows that could choose one, so those of the search's first fold did" in html.unescape(page)
    # finished anew, nothing of it is trained again
    before = {path: path.stat().st_mtime_ns for path in (run.root / "runs").glob("full*/results.csv")}
    again = search_mask(compose("search", [*words, "baselines=full"]))
    assert record_of(again)["tested"]["runs"]["full"] == full
    assert len(before) == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_where_no_rows_can_choose_a_rate_the_comparison_is_called_untuned(no_validation: Path, tmp_path: Path) -> None:
    """Groups of which both folds together have enough patients, and the first alone has not."""
    words = [f"data={no_validation}", *SEARCH, *CV, "min_patients=50", f"out={tmp_path / 'run'}"]
    run = search_mask(compose("search", words))
    record = record_of(run)
    full = record["tested"]["runs"]["full"]
    assert (full["rates"], full["rate"], full["rates_on"], full["folder"]) == ([], 1e-7, None, "runs/full")
    assert sorted(path.name for path in (run.root / "runs").glob("full*")) == ["full"]
    (note,) = [note for note in record["notes"] if "no validation rows could choose" in note]
    assert note.startswith("full: ")
    assert note.endswith("the comparison is with an untuned one")
    page = (run.root / "report.html").read_text()
    assert re.search(r"full \((collapsed, )?at 1e-07, untuned\)", page)
    assert "No validation rows could choose a learning rate for fixed choices" in page
    assert "the best of" not in page


@pytest.mark.parametrize(("outer", "chosen"), [("holdout", "val"), ("seeds", "val"), ("cv", "val")])
def test_validation_rows_of_the_data_set_choose_where_they_can(cohort: Path, outer: str, chosen: str) -> None:
    assert _rates_on(compose("search", [f"data={cohort}", *SEARCH, f"outer={outer}", "folds=2"])) == chosen


def test_too_few_validation_rows_leave_the_choice_to_a_fold(cohort: Path) -> None:
    assert _rates_on(compose("search", [f"data={cohort}", *SEARCH, "outer=cv", "folds=2", "min_patients=25"])) == "fold"
