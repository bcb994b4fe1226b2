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
from evenhand.data.sources.describe import describe_source
from evenhand.data.sources.registry import list_sources
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
    assert main(command(source, "--label", "yy", "--attributes", "sexx", "--problems", str(source / "problems.txt"))) == 2
    assert "the table has 2 problems" in capsys.readouterr().err
    assert len((source / "problems.txt").read_text().splitlines()) == 3
    assert not (source / "out").exists()


def test_the_list_names_every_public_set(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["prepare", "--list"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    words = " ".join(shown.split())
    for info in list_sources():
        facts = "your own data" if info.own else f"{info.modality}; verified: {'yes' if info.verified else 'no'}; licence: {info.licence}"
        assert f"{info.name} {info.title} {facts}" in words
    assert "csv Your own table and folder of images" in words
    assert "verified: the layout was checked against a real download" in words


def test_a_set_is_described_in_plain_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    assert main(["prepare", "--describe", "nih"]) == 0
    shown = capsys.readouterr().out
    info = next(info for info in list_sources() if info.name == "nih")
    words = " ".join(shown.split())
    for text in (info.title, info.version, info.split, info.licence, info.link, info.citation, *info.documentation, *info.traps):
        assert text in words
    for item in (*info.tasks, *info.attributes):
        assert item.name in words
        assert item.text in words
    assert "images: 112,120" in words
    layout = {f"    {line}" for line in info.layout.splitlines()}
    assert max(len(line) for line in shown.splitlines() if line not in layout) <= 70
    assert main(["prepare", "--describe", "nhi"]) == 2
    assert "source 'nhi' is not known; did you mean 'nih'?" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "says"), [
    ([], "no source was given; evenhand prepare --list shows the public data sets"),
    (["nih"], "give what to read and the folder to write: evenhand prepare nih RAW_FOLDER OUT"),
    (["csv", "table.csv"], "evenhand prepare csv TABLE OUT"),
    (["csv", "table.csv", "out"], "the source csv needs --images DIR"),
    (["csv", "table.csv", "out", "--images", ".", "--label", "y", "--task", "a"], "--task is of public data sets"),
    (["csv", "table.csv", "out", "--images", ".", "--label", "y", "--option", "a=b"], "--option is of public data sets"),
    (["nih", "raw", "out", "--split-column", "part"], "--split-column is of the source csv; a public data set brings it itself"),
    (["nih", "raw", "out", "--patient-column", "id"], "--patient-column is of the source csv"),
    (["nih", "raw", "out", "--option", "uncertain"], "option is 'uncertain', but must be NAME=VALUE"),
    (["nih", "raw", "out", "--option", "a=b", "--option", "a=c"], "option a is given twice"),
    (["chexprt", "raw", "out", "--images", "c"], "source 'chexprt' is not known; did you mean 'chexpert'?"),
    (["MIMIC-CXR", "raw", "out"], "source 'MIMIC-CXR' is not known; did you mean 'mimic_cxr'?"),
    (["ISIC", "raw", "out"], "source 'ISIC' is not known; known are isic2017, isic2018, isic2019, isic2020"),
    (["HAM", "raw", "out"], "source 'HAM' is not known; did you mean 'ham10000'?"),
    (["zzz", "raw", "out"], "source 'zzz' is not known; known sources are: csv, adni, brset"),
    (["nih", "raw", "out", "--images", "c"], "--images is of the source csv"),
])
def test_what_was_typed_is_checked_first(words: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["prepare", *words]) == 2
    assert says in capsys.readouterr().err


def test_every_set_is_described() -> None:
    for info in list_sources():
        text = describe_source(info.name, width=90)
        assert text.startswith(f"{info.name}: {info.title}")
        assert info.citation.split()[0] in text


def test_lists_and_bins() -> None:
    assert split_names(["a,b", " c "]) == ["a", "b", "c"]
    assert parse_bins(["age=0,60,200", "bmi=10,25"]) == {"age": (0, 60, 200), "bmi": (10, 25)}
    for bad in (["age"], ["=1,2"], ["age=a,b"], ["age=0,1", "age=0,2"]):
        with pytest.raises(InputError):
            parse_bins(bad)
