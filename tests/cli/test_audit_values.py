"""`evenhand audit --value` and `--pred-mask`: from a table to the page, and every refusal in one line with nothing written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import evenhand as eh
from evenhand.cli.app import main

QUICK = ["--bootstrap", "40", "--permutations", "40"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    sex = np.tile(["f", "m"], 60)
    frame = pd.DataFrame({"patient_id": np.arange(120), "dice": rng.beta(8, 2, 120) - 0.3 * (sex == "f"), "los": 3.0, "sex": sex})
    frame["age"] = rng.integers(20, 90, 120)
    frame.to_csv(tmp_path / "cases.csv", index=False)
    return tmp_path / "cases.csv"


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """24 cases with 5 x 5 squares; those of group f are 2 pixels off."""
    folder = tmp_path / "masks"
    folder.mkdir()
    rows = []
    for i in range(24):
        true = np.zeros((20, 20), np.uint8)
        true[5:10, 5:10] = 1
        Image.fromarray(true * 255).save(folder / f"t{i}.png")
        np.save(folder / f"p{i}.npy", np.roll(true, 2 * (i % 2), axis=1))
        rows.append((f"p{i}.npy", f"t{i}.png", "mf"[i % 2]))
    pd.DataFrame(rows, columns=["pred", "true", "sex"]).to_csv(tmp_path / "masks.csv", index=False)
    return tmp_path / "masks.csv"


def mask_arguments(table: Path, out: Path) -> list[str]:
    folder = str(table.parent / "masks")
    columns = ["--pred-mask", "pred", "--true-mask", "true", "--images", folder]
    return ["audit", str(table), *columns, "--groups", "sex", "-o", str(out), *QUICK]


def test_from_a_table_of_values_to_the_page(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["audit", str(table), "--value", "dice,los", "--groups", "sex,age", "--bins", "age=0,60,200", "-o", str(out), *QUICK]
    assert main([*arguments, "--lower-is-better"]) == 0
    printed = capsys.readouterr().out
    assert "overall mean" in printed
    assert "dice: the mean differs between groups of sex" in printed
    found = json.loads((out / "audit.json").read_text())
    assert (found["kind"], found["labels"]["los"]["lower_is_better"], found["labels"]["dice"]["lower_is_better"]) == ("value", True, False)
    assert list(found["labels"]["dice"]["attributes"]["age"]["groups"]) == ["[0,60)", "[60,200)"]
    gaps = pd.read_csv(out / "tables" / "gaps.csv")
    assert sorted(set(gaps["metric"])) == ["mean", "median"]
    page = (out / "report.html").read_text()
    assert "Audit of dice, los" in page
    for word in ("median", "lower is better", "<svg"):
        assert word in page.lower()


def test_python_takes_the_same(table: Path) -> None:
    found = eh.audit(pd.read_csv(table), value="dice", groups=["sex"], bootstrap=40, permutations=40)
    assert found.to_json()["labels"]["dice"]["attributes"]["sex"]["gaps"]["mean"]["worst"]["group"] == "f"


def test_a_gate_on_a_mean_fails_with_3_and_the_page_is_there(table: Path, tmp_path: Path) -> None:
    arguments = ["audit", str(table), "--value", "dice", "--groups", "sex", "-o", str(tmp_path / "out"), *QUICK]
    assert main([*arguments, "--fail-if", "sex.mean.lower > 0.05"]) == 3
    assert (tmp_path / "out" / "report.html").exists()
    assert main([*arguments, "--fail-if", "sex.mean.value > 0.9"]) == 0
    assert main([*arguments, "--fail-if", "sex.auc.value > 0.9"]) == 2


def test_plain_values_never_load_torch(table: Path, tmp_path: Path) -> None:
    arguments = ["audit", str(table), "--value", "dice", "--groups", "sex", "-o", str(tmp_path / "out"), *QUICK]
    program = f"import sys\nfrom evenhand.cli.app import main\nassert main({arguments!r}) == 0\n"
    program += "sys.stderr.write(' '.join(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "monai", "nibabel", "sklearn", "matplotlib"} & set(done.stderr.split())


def test_from_masks_to_the_page_and_again_from_the_cases(masks: Path, tmp_path: Path) -> None:
    pytest.importorskip("monai")
    out = tmp_path / "out"
    assert main(mask_arguments(masks, out)) == 0
    found = json.loads((out / "audit.json").read_text())
    groups = {name: found["labels"][name]["attributes"]["sex"]["groups"] for name in ("dice", "hd95")}
    assert groups["dice"]["f"]["mean"]["value"] == pytest.approx(0.6)
    assert groups["hd95"]["f"]["mean"]["value"] == pytest.approx(2)
    assert groups["hd95"]["m"]["mean"]["value"] == 0
    assert found["labels"]["hd95"]["unit"] == "pixels"
    assert found["labels"]["hd95"]["lower_is_better"]
    assert "distances are in pixels" in (out / "report.html").read_text()
    again = tmp_path / "again"
    assert main(["audit", str(out / "cases.csv"), "--value", "dice,hd95", "--groups", "sex", "-o", str(again), *QUICK]) == 0
    second = json.loads((again / "audit.json").read_text())
    for name in ("dice", "hd95"):
        assert second["labels"][name]["attributes"] == found["labels"][name]["attributes"]


def refused(arguments: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    assert not out.exists()
    shown = capsys.readouterr().err.strip()
    assert len(shown.splitlines()) <= 12
    return shown.splitlines()[0]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--value", "sex", "--groups", "age"], "column 'sex' has 120 values that are not numbers"),
        (["--value", "dise"], "did you mean 'dice'?"),
        (["--value", "dice", "--label", "sex"], "value and label are given together"),
        (["--value", "dice", "--pred-mask", "a", "--true-mask", "b"], "value and masks are given together"),
        (["--value", "dice", "--adjust", "site"], "adjust is for labels and scores"),
        (["--value", "dice", "--metrics", "auc"], "metrics is for labels and scores"),
        (["--value", "dice", "--threshold", "f1"], "threshold is for labels and scores"),
        (["--value", "dice", "--no-finding", "x"], "no_finding is for labels and scores"),
        (["--value", "dice", "--groups", "dice"], "column 'dice' is among the groups, but is the value that is judged"),
        (["--value", "dice", "--lower-is-better"], "lower_is_better is said of 'dice'"),
        (["--value", "dice", "--images", "."], "images and spacing are for masks"),
        (["--lower-is-better"], "lower_is_better is for continuous values"),
        (["--pred-mask", "dice"], "true_mask is missing"),
        (["--pred-mask", "dice", "--true-mask", "los"], "has a column 'dice' already"),
        (["--value", "dice", "--primary", "auc"], "primary gap 'auc' is not one of a continuous value"),
        (["--value", "dice", "--fail-if", "sex.auc > 0.1"], "names the metric 'auc', which is unknown"),
        (["--value", "dice", "--groups", "hospital"], "there is no column 'hospital'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], text: str
) -> None:
    out = tmp_path / "out"
    groups = [] if "--groups" in more else ["--groups", "sex"]
    assert text in refused(["audit", str(table), *more, *groups, "-o", str(out), *QUICK], out, capsys)


def test_a_mask_file_that_is_not_there_is_named_with_its_row(masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks.write_text(masks.read_text().replace("p3.npy", "p33.npy"))
    assert main(mask_arguments(masks, tmp_path / "out")) == 2
    shown = capsys.readouterr().err
    assert "column 'pred' names 1 file that cannot be found" in shown
    assert "row 4: p33.npy" in shown
    assert not (tmp_path / "out").exists()


def test_masks_of_another_shape_are_refused_before_any_is_scored(
    masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("monai")
    np.save(masks.parent / "masks" / "p5.npy", np.ones((20, 21), np.uint8))
    assert main(mask_arguments(masks, tmp_path / "out")) == 2
    assert not (tmp_path / "out").exists()
    shown = capsys.readouterr().err
    # no empty line of a progress bar before it
    assert shown.startswith("error: ")
    assert "1 of 24 pairs of masks cannot be scored" in shown


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("--pred-mask pred", "--pred-mask prd", "did you mean 'pred'?"),
        ("--images", "--spacing 1,x --images", "--spacing 1,x is not one number"),
        ("--groups sex", "--groups sx", "there is no column 'sx'"),
    ],
)
def test_wrong_options_of_masks_are_refused(
    masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, text: str
) -> None:
    arguments = " ".join(mask_arguments(masks, tmp_path / "out")).replace(old, new).split(" ")
    assert text in refused(arguments, tmp_path / "out", capsys)
