"""A source in a file of one's own: the one that the guide shows, and files that are none."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evenhand.cli.app import main
from evenhand.data.datasets import PreparedData
from evenhand.data.sources.registry import find_source
from evenhand.errors import InputError


@pytest.fixture
def mine(repository: Path, tmp_path: Path) -> Path:
    """The guide's file, and the folder that it reads beside it."""
    page = (repository / "docs" / "guide" / "public_data.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if block.startswith("# mine.py"))
    (tmp_path / "mine.py").write_text(code)
    folder = tmp_path / "raw" / "scans"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["scan,person,tumour,sex,age"]
    for k in range(30):
        Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8)).save(folder / f"{k:03d}.png", compress_level=1)
        lines.append(f"{k:03d}.png,{k // 2},{k // 2 % 3 > 0:d},{'FMU'[k // 2 % 3]},{30 + 2 * k}")
    (tmp_path / "raw" / "visits.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "mine.py"


def test_the_source_of_the_guide(mine: Path, story: Callable[..., PreparedData]) -> None:
    data = story(str(mine), mine.parent / "raw", attributes=["sex", "sex*age60"])
    notes = data.description["notes"]
    assert "images: 30 here, the provider says 24 (the data book)" in notes
    assert "sex: 10 values are neither female nor male ('U' 10) and count as missing" in notes
    assert data.description["source"]["name"] == "mine"
    assert data.modality == "ct"


def test_a_source_of_ones_own_on_the_command_line(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = mine.parent / "prepared"
    words = ["prepare", str(mine), str(mine.parent / "raw"), str(out), "--attributes", "sex", "--size", "16", "--workers", "1"]
    assert main(words) == 0
    assert PreparedData.open(out).spec.labels == ("tumour",)
    assert main(["prepare", "--describe", str(mine)]) == 0
    assert "mine: Scans of our clinic" in capsys.readouterr().out


@pytest.mark.parametrize(("code", "says"), [
    ("INFO = 3", "is no source of data; it needs INFO, an Info, and read"),
    ("import nothing_of_that_name", "cannot be loaded (ModuleNotFoundError: No module named 'nothing_of_that_name')"),
    ("def read(:", "cannot be loaded (SyntaxError"),
])
def test_files_that_are_no_sources(tmp_path: Path, code: str, says: str) -> None:
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(InputError) as caught:
        find_source(str(tmp_path / "mine.py"))
    assert says in str(caught.value)


def test_names_of_evenhands_sources_are_taken(mine: Path) -> None:
    mine.write_text(mine.read_text().replace('name="mine"', 'name="nih"'))
    with pytest.raises(InputError, match="calls itself 'nih', which is a source of evenhand"):
        find_source(str(mine))
    with pytest.raises(InputError, match="is not a file; give a Python file with INFO"):
        find_source("elsewhere/mine.py")
