"""The command line's frame: exit codes, one-line errors, --problems, and help that is complete."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

import evenhand
from evenhand.cli import app as frame
from evenhand.cli.app import COMMANDS, load_command, main
from evenhand.cli.options import help_lines
from evenhand.cli.problems import with_problems_option
from evenhand.config import list_options
from evenhand.config.compose import SCHEMAS
from evenhand.config.methods import METHOD_CONFIGS
from evenhand.errors import ConfigError, DiskFullError, GateError, NonFiniteLossError, TableError


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Make ``evenhand version`` raise."""

    def plan(error: BaseException) -> None:
        def command() -> None:
            """Fails on purpose."""
            raise error

        holder = typer.Typer(add_completion=False)
        holder.command("version")(with_problems_option(command))
        loaded = typer.main.get_command(holder)
        monkeypatch.setattr(frame, "load_command", lambda name: loaded)

    return plan


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ConfigError("'x' is unknown"), 2, "error: 'x' is unknown\n"),
        (GateError("a gate failed"), 3, "error: a gate failed\n"),
        (NonFiniteLossError("the loss is NaN"), 4, "error: the loss is NaN\n"),
        (DiskFullError("no space"), 4, "error: no space\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "cache.bin"), 4, "error: no space is left on the device: cache.bin"),
        (
            PermissionError(errno.EACCES, "Permission denied", "out"), 4,
            "error: permission denied: out; give yourself the right to it, or choose another place\n",
        ),
        (MemoryError(), 4, "error: memory ran out"),
        (KeyboardInterrupt(), 130, "interrupted; the last complete state is saved"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_exit_codes(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str], error: BaseException, code: int, says: str
) -> None:
    failing(error)
    assert main(["version"]) == code
    shown = capsys.readouterr()
    assert says in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_an_unexpected_error_is_one_line_and_its_traceback_a_file(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    failing(RuntimeError("first line\nsecond line"))
    assert main(["version"]) == 4
    shown = capsys.readouterr().err
    assert shown.startswith("error: unexpected RuntimeError: first line (traceback: ")
    assert len(shown.splitlines()) == 1
    (log,) = tmp_path.glob("evenhand-*.log")
    assert "second line" in log.read_text()


def test_debugging_shows_the_traceback(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENHAND_DEBUG", "1")
    failing(ConfigError("wrong"))
    assert main(["version"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_ten_details_on_the_terminal_and_all_in_the_file(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    failing(TableError("the table has 25 problems", [f"row {k}" for k in range(25)]))
    assert main(["version", "--problems", str(tmp_path / "all.txt")]) == 2
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 1 + 10 + 1
    assert shown[-1].strip() == "… and 15 more"
    assert (tmp_path / "all.txt").read_text().splitlines() == ["the table has 25 problems", *(f"row {k}" for k in range(25))]


@pytest.mark.parametrize("arguments", [["nonsense"], ["train", "--nonsense"]])
def test_usage_errors_are_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "nonsense" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"{evenhand.__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)
    assert "Exit codes" in shown


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    command = load_command(name)
    assert command.help
    for inner in getattr(command, "commands", {}):
        assert main([name, inner, "--help"]) == 0
        assert "--problems" in capsys.readouterr().out
    assert hasattr(command, "commands") or "--problems" in shown


@pytest.mark.parametrize("schema", sorted(SCHEMAS))
def test_help_lists_every_option_with_type_default_unit_and_choices(schema: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*schema.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    for option in list_options(SCHEMAS[schema]):
        if option.name == "method.name":
            continue
        assert f"  {option.name}" in shown
        assert option.help in shown
    assert "\n".join(help_lines(schema, markup=False)) in shown


def test_help_of_train_in_detail() -> None:
    text = "\n".join(help_lines("train", markup=False))
    assert "  trainer.max_epochs  integer, default 10, epochs\n      passes over the training rows" in text
    assert "  trainer.optimizer  adamw|adam|sgd, default adamw" in text
    assert "  seeds  list of integer, default null" in text
    assert "  data.path  text, required" in text
    assert "  trainer=cpu|ddp|debug|debug_limit|debug_overfit|debug_profiler|gpu|mps" in text
    assert all(f"method={name}  " in text for name in METHOD_CONFIGS)


def test_print_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "method=group_dro", "trainer.max_epochs=3", "--print-config"]) == 0
    shown = capsys.readouterr().out
    assert "max_epochs: 3" in shown
    assert "name: group_dro" in shown


def test_a_wrong_override_is_one_line_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "data.path=d", "trainer.max_epoch=3"]) == 2
    assert capsys.readouterr().err == "error: unknown option 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?\n"
    assert list(tmp_path.iterdir()) == []


def test_the_installed_command(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "evenhand.cli.app", "export"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: missing: model=…")
