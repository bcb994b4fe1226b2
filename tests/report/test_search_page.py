"""The page of a search, from a dictionary made by hand: every kind of ending, ranks and scales, two objectives, nothing tested."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from evenhand.report.leakage_table import table_lines
from evenhand.report.search_page import finalist_sentences, finalist_table, search_facts, trials_table, write_search_page
from evenhand.report.search_pictures import MOST_TRIALS, front_picture, history_picture, mask_pictures, usable

ROLES = ("norms", "attention", "mlp")
PARTS = [{"name": f"block{k}.{role}", "role": role, "depth": k, "parameters": 2} for k in range(2) for role in ROLES]


def trial(number: int, *values: float, bits: int = 0, **more: Any) -> dict[str, Any]:
    params = {part["name"]: bits >> k & 1 for k, part in enumerate(PARTS)} | {"lr": 1e-4 * (number + 1)}
    plain = {"state": "complete", "reported": [], "collapsed": "", "seconds": 2.0, "epochs": 3, "share": 0.25, "same_as": None}
    return {"number": number, "values": list(values), "params": params, "failure": "", **plain, **more}


def run_of(value: float, test: float, **more: Any) -> dict[str, Any]:
    both = {"val": {"auc": value, "auc_gap": 0.1}, "test": {"auc": test, "auc_gap": 0.2}}
    return {"kind": "finalist", **both, "searched": value, "drop": test - value, **more}


RECORD: dict[str, Any] = {
    "objectives": [{"name": "auc", "means": "AUC of all rows", "maximised": True}],
    "attributes": ["sex"],
    "labels": ["ill"],
    "data": {"name": "ham <10000>", "hash": "0123456789abcdef0123", "n_images": {}},
    "model": {"name": "vit", "hash": "fedcba9876543210"},
    "space": {"name": "norms|attention|mlp", "parts": PARTS, "choices": [0, 1], "lr": [1e-5, 1e-3]},
    "options": {"n_trials": 6, "sampler": "tpe", "pruner": "halving", "outer": "cv", "seed": 3},
    "epochs": 5,
    "study": {"name": "search", "storage": "study.journal"},
    "trials": [
        trial(0, 0.7, bits=0b000011),
        trial(1, 0.9, bits=0b101010, collapsed="AUC 0.499 is below 0.52"),
        trial(2, state="pruned", reported=[[1, 0.6]], epochs=1),
        trial(3, state="failed", failure="the loss is NaN"),
        trial(4, 0.8, bits=0b111000),
        trial(5, 0.8, bits=0b111000, same_as=4, seconds=0.0, epochs=0),
    ],
    "best": 4,
    "pick": "best",
    "front": [],
    "mask": {
        "lr": 5e-4,
        "share": 0.25,
        "parts": [{"name": part["name"], "train": k > 2, "lora_rank": 8 * (k == 3), "lr_scale": 0.1 if k == 4 else 1.0}
                  for k, part in enumerate(PARTS)],
    },
    "importance": {"lr": 0.6, "block0.norms": 0.4},
    "effects": {"block0.norms": {"trained": 0.7, "n_trained": 1, "frozen": None, "n_frozen": 0}},
    "summary": "trial 4 was chosen",
    "notes": ["sex: old left out of the objective"],
    "tested": {
        "reference": "full",
        "compare": "compare/report.html",
        "runs": {
            "full": {**run_of(0.78, 0.75), "kind": "baseline"},
            "lora": {"kind": "baseline", "failed": "peft is not installed"},
            "trial-4": run_of(0.8, 0.77, difference={"value": 0.02, "lower": 0.01, "upper": 0.03, "draws": 100}),
            "trial-0": run_of(0.7, 0.76, difference={"value": 0.01, "lower": None, "upper": None, "draws": 3}),
        },
    },
}


def record(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(RECORD), **changes}


def written(found: dict[str, Any], folder: Path) -> str:
    return write_search_page(found, folder / "report.html").read_text(encoding="utf-8")


def test_the_page_names_every_ending_and_escapes_names(tmp_path: Path) -> None:
    page = written(RECORD, tmp_path)
    for text in ("collapsed: AUC 0.499 is below 0.52", "the loss is NaN", "as trial 4", "peft is not installed", "ham &lt;10000&gt;",
                 "r8", "×0.1", "sex: old left out of the objective", "by cross-validation"):
        assert text in page
    assert "<script" not in page
    assert written(RECORD, tmp_path) == page


def test_a_collapsed_trial_is_in_no_mask_picture_and_never_best_so_far() -> None:
    assert [one["number"] for one in usable(RECORD)] == [4, 5, 0]
    numbers = history_picture(RECORD)[0].numbers
    assert numbers is not None
    assert [(row.name, row.cells[1].text) for row in numbers.rows][:3] == [
        ("0", "complete"), ("1", "collapsed: AUC 0.499 is below 0.52"), ("2", "pruned"),
    ]


def test_the_facts_count_how_trials_ended() -> None:
    facts = dict(search_facts(RECORD))
    ends, collapsed, same = facts["trials"].split("; ")
    assert ends == "4 complete, 1 stopped early, 1 failed"
    assert (collapsed, same) == ("1 collapsed, which can never win", "1 looked up instead of trained again")
    assert facts["trained"] == "13 epochs of at most 30, 10 s over all workers"
    again = record(trials=[*RECORD["trials"], trial(6, state="lost", epochs=0, seconds=0.0)])
    assert dict(search_facts(again))["trained"] == facts["trained"], "a trial that is run again is not one more"


def test_what_the_test_rows_say_is_said_in_words() -> None:
    better, drop = finalist_sentences(RECORD)
    assert better.startswith("the chosen mask is 0.020 better than full in auc on test rows")
    assert better.endswith("the difference is +0.020 (0.010 to 0.030), and its interval excludes 0")
    assert drop == "its auc is 0.030 worse on test than on validation rows"
    open_ = record()
    open_["tested"]["runs"]["trial-4"]["difference"] = {"value": -0.01, "lower": -0.03, "upper": 0.02, "draws": 100}
    assert finalist_sentences(open_)[0].endswith("(−0.030 to 0.020), but its interval holds 0, so that this is open")
    assert "0.010 worse than full" in finalist_sentences(open_)[0]


def test_the_table_of_runs_marks_the_chosen_one() -> None:
    rows = {row.name: row for row in finalist_table(RECORD).rows}
    assert [cell.text for cell in rows["trial-4 (chosen)"].cells] == ["0.800", "0.770", "−0.030", "+0.020", "0.200"]
    assert rows["trial-4 (chosen)"].cells[3].small == "0.010 to 0.030"
    assert rows["lora"].merged == "peft is not installed"
    assert [cell.text for cell in rows["trial-0"].cells][2] == "+0.060"
    shown = table_lines(finalist_table(RECORD))
    assert [line.split()[0] for line in shown] == ["run", "full", "lora", "trial-4", "trial-0"]
    assert shown[2].split(maxsplit=1)[1] == "peft is not installed"


@pytest.mark.parametrize(
    ("chosen", "mark", "said", "unsaid"),
    [
        ({"rates": [[1e-3, 0.8], [1e-2, 0.7]]}, "full (at 0.001, the best of 2 rates)", "the best on validation rows is shown", "fold"),
        ({"rates": [[1e-3, 0.8], [1e-2, 0.7]], "rate": 1e-3, "rates_on": "val"}, "full (at 0.001, the best of 2 rates)",
         "the best on validation rows is shown", "fold"),
        ({"rates": [[1e-3, 0.8], [1e-2, 0.7]], "rate": 1e-3, "rates_on": "fold"}, "full (at 0.001, the best of 2 rates)",
         "first fold did, and the best rate was trained once more", "the best on validation rows is shown"),
        ({"rates": [], "rate": 1e-2, "rates_on": None}, "full (at 0.01, untuned)", "The comparison is with an untuned one",
         "the best of 2 rates"),
        ({"rates": []}, "full", "Finalists are the best masks", "learning rate for fixed choices"),
    ],
)
def test_the_page_says_what_chose_the_rate_of_a_fixed_choice(
    chosen: dict[str, Any], mark: str, said: str, unsaid: str, tmp_path: Path
) -> None:
    found = record()
    found["tested"]["runs"]["full"] |= chosen
    assert mark in [row.name for row in finalist_table(found).rows]
    page = written(found, tmp_path)
    tested = page[page.index("On test rows") : page.index("What was tried</h2>")]
    assert said in tested
    assert unsaid not in tested


def test_a_run_that_has_collapsed_on_test_rows_is_called_so(tmp_path: Path) -> None:
    found = record()
    found["tested"]["runs"]["trial-4"] |= {"collapsed": True, "collapse": ["ill: the scores are not shown to be better than chance."]}
    assert "trial-4 (chosen, collapsed)" in [row.name for row in finalist_table(found).rows]
    said = "trial-4 has collapsed on test rows: ill: the scores are not shown to be better than chance."
    assert finalist_sentences(found)[-1] == said
    assert said[1:] in written(found, tmp_path)


def test_two_objectives_have_a_front(tmp_path: Path) -> None:
    aims = [*RECORD["objectives"], {"name": "auc_gap", "means": "gap", "maximised": False}]
    two = record(objectives=aims, front=[0, 4], pick="utopia", trials=[trial(0, 0.9, 0.3), trial(4, 0.8, 0.1), trial(6, 0.7, 0.2)])
    assert front_picture(RECORD) == []
    (shown,) = front_picture(two)
    assert shown.numbers is not None
    assert [row.name for row in shown.numbers.rows] == ["trial 4", "trial 0"]
    assert "nearest to the best of both" in shown.caption
    assert [cell.text for cell in trials_table(two).rows[0].cells[:2]] == ["0.900", "0.300"]
    assert "Pareto front" in written(two, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"tested": {}}, {"importance": {}}, {"trials": [trial(4, 0.8)]}, {"notes": []},
     {"tested": {"reference": None, "compare": None, "runs": {"trial-4": run_of(0.8, 0.7)}}}],
)
def test_what_is_missing_is_left_out(changes: dict[str, Any], tmp_path: Path) -> None:
    assert "The chosen mask" in written(record(**changes), tmp_path)


def test_many_masks_are_cut_to_the_best() -> None:
    many = record(trials=[trial(k, k / 1000, bits=k) for k in range(MOST_TRIALS + 40)])
    (shown,) = mask_pictures(many)
    assert "The 40 worse masks are not shown" in shown.caption
