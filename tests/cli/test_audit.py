"""`evenhand audit` and `evenhand compare` as typed: files, exit codes, one readable line on an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evenhand.cli.app import main

FEW = ["--bootstrap", "60", "--permutations", "60"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    frame = pd.DataFrame(
        {
            "image": np.arange(200),
            "y": y,
            "p": 0.3 * y + 0.7 * rng.random(200),
            "sex": np.tile(["f", "m"], 100),
            "age": 20 + np.arange(200) % 60,
        }
    )
    frame.to_csv(tmp_path / "scores.csv", index=False)
    frame.rename(columns={"y": "y_true", "p": "y_score"}).to_csv(tmp_path / "run.csv", index=False)
    return tmp_path / "scores.csv"


def test_audit(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = table.parent / "out"
    typed = [
        "audit",
        str(table),
        "--label",
        "y",
        "--score",
        "p",
        "--groups",
        "sex,age,sex*age",
        "--bins",
        "age=0,50,200",
        "--out",
        str(out),
        *FEW,
    ]
    assert main(typed) == 0
    assert (out / "report.html").exists()
    assert "Report:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--fail-if", "sex.auc.worst < 0.999"], 3, "gate condition"),
        (["--fail-if", "sexx.auc < 0.9"], 2, "did you mean 'sex'"),
        (["--groups", "sez"], 2, "did you mean 'sex'"),
        (["--bins", "age"], 2, "not of the form"),
        (["--groups", "image", "--max-groups", "20"], 2, "at most 20 are allowed"),
        (["--primary", "aucc"], 2, "did you mean 'auc'"),
    ],
)
def test_exit_codes(table: Path, capsys: pytest.CaptureFixture[str], more: list[str], code: int, words: str) -> None:
    problems = table.parent / "problems.txt"
    typed = [
        "audit",
        str(table),
        "--label",
        "y",
        "--score",
        "p",
        "--groups",
        "sex",
        "--out",
        str(table.parent / "out"),
        "--problems",
        str(problems),
        *FEW,
    ]
    assert main([*typed, *more]) == code
    assert words in capsys.readouterr().err
    assert words in problems.read_text()
    assert (table.parent / "out").exists() == (code == 3)


def test_compare(table: Path) -> None:
    run, page = table.parent / "run.csv", table.parent / "page.html"
    assert main(["compare", f"a={run}", f"b={run}", "-o", str(page), "--groups", "sex", "--bootstrap", "60"]) == 0
    assert {page.with_suffix(end).exists() for end in (".html", ".json", ".csv")} == {True}
    assert main(["compare", str(run), "-o", str(page)]) == 2
