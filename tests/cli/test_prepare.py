"""The command line of `evenhand prepare`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evenhand.cli.app import main
from evenhand.cli.prepare import parse_bins, split_names
from evenhand.data.datasets import PreparedData
from evenhand.errors import InputError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for k in range(6):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / f"{k}.png")
    frame = pd.DataFrame({
        "image": [f"{k}.png" for k in range(6)], "patient_id": range(6), "split": ["train", "val", "test"] * 2, "y": [0, 0, 0, 1, 1, 1],
        "sex": ["f", "m"] * 3, "age": [0, 30, 60, 61, 90, 99],
    })
    frame.to_csv(tmp_path / "table.csv", index=False)
    return tmp_path


def command(source: Path, *more: str) -> list[str]:
    return ["prepare", "csv", str(source / "table.csv"), str(source / "out"), "--images", str(source), "--size", "8", *more]


def test_prepare_csv(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(source, "--label", "y", "--attributes", "sex,age,sex*age", "--bins", "age=0,60,200")) == 0
    data = PreparedData.open(source / "out")
    assert data.spec.attributes == ("sex", "age", "sex*age")
    assert data.spec.bins == {"age": (0, 60, 200)}
    assert "6 images (1 x 8 x 8, uint8), kind binary" in capsys.readouterr().out


def test_errors_have_exit_code_2_and_write_all_problems(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "chexpert", "a", "b", "--images", "c", "--label", "d"]) == 2
    assert "known sources are: csv" in capsys.readouterr().err
    assert main(command(source, "--label", "yy", "--attributes", "sexx", "--problems", str(source / "problems.txt"))) == 2
    assert "the table has 2 problems" in capsys.readouterr().err
    assert len((source / "problems.txt").read_text().splitlines()) == 3
    assert not (source / "out").exists()


def test_lists_and_bins() -> None:
    assert split_names(["a,b", " c "]) == ["a", "b", "c"]
    assert parse_bins(["age=0,60,200", "bmi=10,25"]) == {"age": (0, 60, 200), "bmi": (10, 25)}
    for bad in (["age"], ["=1,2"], ["age=a,b"], ["age=0,1", "age=0,2"]):
        with pytest.raises(InputError):
            parse_bins(bad)
