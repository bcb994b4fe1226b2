"""The pages say what the code says: links lead somewhere, the reference is fresh, and the commands shown are understood."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from evenhand.cli.app import COMMANDS
from evenhand.config import compose_yaml
from evenhand.config.compose import SCHEMAS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
SETS = ("ham", "chexpert", "external", "isic2020", "fitzpatrick17k", "ddi")
"""Prepared sets that pages speak of."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_on_the_pages_exist_and_their_options_are_understood(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page.read_text()
    monkeypatch.chdir(tmp_path)
    for name in ("encoder.pth", "classifier.pth", "runs/finetune", "runs/isic", *(f"prepared/{name}" for name in SETS)):
        (tmp_path / name).mkdir(exist_ok=True, parents=True)
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in re.findall(r"^evenhand (?:.*\\\n)*.*", block, re.MULTILINE):
            words = shlex.split(line.replace("\\\n", " "), comments=True)
            assert words[1] in COMMANDS, line
            command = " ".join(words[1:3]) if " ".join(words[1:3]) in SCHEMAS else words[1]
            if command in SCHEMAS and "--config-dir" not in words and "…" not in line:
                compose_yaml(command, [word for word in words[2:] if "=" in word and not word.startswith("-")])


def test_the_reference_is_as_the_code_says() -> None:
    done = subprocess.run([sys.executable, "docs/make_reference.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_citation_names_the_three_papers_and_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    papers = {item["identifiers"][0]["value"] for item in citation["references"]}
    assert papers == {"arXiv:2403.06104", "arXiv:2310.05055", "arXiv:2408.06890"}
    assert citation["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_one_version() -> None:
    import evenhand

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == evenhand.__version__
