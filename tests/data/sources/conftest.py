"""What the tests of every source share: a miniature raw folder, and the story from it to a trained probe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from evenhand.config import compose
from evenhand.config.schema import TrainConfig
from evenhand.data.datasets import PreparedData
from evenhand.data.sources.prepare import prepare_source
from evenhand.data.sources.registry import find_source
from evenhand.runs.train import train

TINY = [
    "model=test_vit", "model.input_size=[32,32]", "model.precision=fp32", "trainer.accelerator=cpu", "trainer.progress=false",
    "audit.bootstrap=20", "audit.permutations=20", "method=linear_probe",
]


@cache
def _config() -> TrainConfig:
    """A quick linear probe; composed once, since that takes as long as the probe."""
    return compose("train", ["data.path=elsewhere", *TINY])


@pytest.fixture
def miniature(tmp_path: Path) -> Callable[..., Path]:
    """``miniature(NAME, **options of its write)``: a raw folder of that data set, as its provider lays it out."""

    def make(name: str, **options: Any) -> Path:
        root = tmp_path / f"raw {name}"
        root.mkdir()
        import_module(f"tests.data.sources.miniatures.{name}").write(root, **options)
        return root

    return make


@pytest.fixture
def story(tmp_path: Path) -> Callable[..., PreparedData]:
    """``story(NAME, raw_folder, **options of prepare_source)``: raw -> prepared -> trained probe, with what holds for every source."""

    def tell(name: str, raw: Path, **options: Any) -> PreparedData:
        before = _state(raw)
        out = tmp_path / f"prepared {Path(name).stem}"
        options = {"size": 32, "workers": 1, **options}
        data = prepare_source(name, raw, out, **options)
        _check(data)
        assert {item.name for item in find_source(name).INFO.attributes} <= set(data.table.columns)
        written = _state(out)
        assert prepare_source(name, raw, out, **options).fingerprint == data.fingerprint
        assert _state(out) == written, "a second call does nothing"
        run = train(replace(_config(), data=replace(_config().data, path=str(out)), out=str(tmp_path / "runs" / Path(name).stem)))
        assert (Path(run) / "audit.json").is_file()
        assert _state(raw) == before, "the raw folder is only read"
        return data

    return tell


def _check(data: PreparedData) -> None:
    splits_of = data.table.groupby("patient_id")["split"].nunique()
    assert (splits_of == 1).all(), "a patient belongs in one split"
    assert set(data.split) == {"train", "val", "test"}
    assert set(data.spec.columns) <= set(data.table.columns)
    for groups in data.groups().values():
        assert (groups.codes >= 0).any()
    patients = {text for text in data.table["patient_id"] if len(text) > 3}
    told = "\n".join(data.description["notes"])
    assert not [text for text in patients if text in told], "no patient ids in notes"


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}
