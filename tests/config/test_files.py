"""A saved configuration reads back as the same object, or says what is wrong with it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from evenhand.config import compose, load_config, save_config
from evenhand.config.methods import METHOD_CONFIGS
from evenhand.errors import ConfigError, DiskFullError


@pytest.mark.parametrize("method", sorted(METHOD_CONFIGS))
def test_round_trip(method: str, tmp_path: Path) -> None:
    config = compose("train", ["data.path=ä b=c", f"method={method}", "data.attributes=sex,sex*age", "seeds=1,2", "trainer.lr=3e-4"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_round_trip_of_another_command(tmp_path: Path) -> None:
    config = compose("evaluate", ["model=run", "sets.a=b"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", "evaluate") == config


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data: {path: d}\nmethod: {name: nothing}\n", "method.name is 'nothing'"),
        ("data: {path: d}\nmethod: {name: dfr}\ntrainer: {max_epoch: 3}\n", "did you mean 'trainer.max_epochs'?"),
        ("data: {path: d}\nmethod: {name: dfr}\ntrainer: {optimizer: lion}\n", "must be one of"),
        ("- 1\n", "NAME: VALUE"),
        ("a: [\n", "cannot be read"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=says.replace("?", r"\?")):
        load_config(tmp_path / "config.yaml")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "config.yaml").write_text("before")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiskFullError):
        save_config(compose("predict", ["model=a", "data=b"]), tmp_path / "config.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text() == "before"
