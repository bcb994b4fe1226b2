"""`evenhand doctor` and the import guard: mismatched installs are said plainly."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from evenhand import optional
from evenhand.cli import doctor
from evenhand.cli.app import main
from evenhand.errors import DependencyError


def test_this_environment_fits_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "torch " in shown
    assert "everything fits together" in shown


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == []
    assert {"torch", "torchvision", "timm"} <= set(report["versions"])
    assert report["threads"]["processors"] >= 1
    assert "cpu" in report["devices"]


@pytest.mark.parametrize(
    ("torch", "vision", "built_for", "matches"),
    [
        ("2.6.0", "0.21.0", "2.6.0", True),
        ("2.6.0+cu124", "0.21.0+cu124", "2.6.0", True),
        ("2.6.0+cu124", "0.21.0", "2.6.0", True),
        ("2.6.0", "0.21.0", None, True),
        ("2.7.0", "0.21.0", "2.6.0", False),
        ("2.6.0+cpu", "0.21.0+cu124", "2.6.0", False),
    ],
)
def test_versions_tell_a_mismatch(torch: str, vision: str, built_for: str | None, matches: bool) -> None:
    problems = doctor.version_mismatches({"torch": torch, "torchvision": vision}, built_for)
    assert (problems == []) is matches
    assert all("one index" in text and torch in text for text in problems)


def test_a_mismatch_is_exit_code_4(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "torchvision_requirement", lambda: "1.0.0")
    assert main(["doctor"]) == 4
    assert "problem: torch " in capsys.readouterr().out


def _operator_is_missing(name: str) -> ModuleType:
    if name == "torchvision":
        raise RuntimeError("operator torchvision::nms does not exist")
    return importlib.import_module(name)


def test_the_import_guard_says_that_the_two_do_not_match(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional.importlib, "import_module", _guarded(_operator_is_missing))
    with pytest.raises(DependencyError, match=r"do not match .operator torchvision::nms does not exist."):
        optional.require_torch()


def test_train_with_a_mismatch_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    def broken() -> ModuleType:
        raise DependencyError("torch 2.7.0 and the installed torchvision do not match (…)")

    monkeypatch.setattr(optional, "require_torch", broken)
    assert main(["train", "data.path=d"]) == 4
    assert capsys.readouterr().err == "error: torch 2.7.0 and the installed torchvision do not match (…)\n"
    assert list(tmp_path.iterdir()) == []


def test_doctor_tells_what_the_import_guard_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> ModuleType:
        raise DependencyError("torch cannot be imported (no such library)")

    monkeypatch.setattr(optional, "require_torch", broken)
    report = doctor.examine()
    assert report.problems == ["torch cannot be imported (no such library)"]
    assert report.devices == []


def test_little_disk_is_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "LOW_DISK_GB", 1e9)
    assert "GB are free" in doctor.examine(tmp_path).notes[0]


def test_missing_and_outdated_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["no-such-package-here>=1", "numpy>=99", "torch>=1", 'mlflow>=1; extra == "mlflow"']
    monkeypatch.setattr(doctor, "requires", lambda name: needs)
    problems = doctor.missing_packages()
    assert len(problems) == 2
    assert "no-such-package-here is not installed" in problems[0]
    assert "evenhand needs >=99" in problems[1]


def test_bf16_is_read_from_the_processors_features(tmp_path: Path) -> None:
    features = tmp_path / "cpuinfo"
    features.write_text("flags : fpu sse avx512_bf16 amx_bf16\n")
    assert doctor.cpu_has_bf16(features) is True
    features.write_text("flags : fpu sse avx2\n")
    assert doctor.cpu_has_bf16(features) is False
    assert doctor.cpu_has_bf16(tmp_path / "none") is None


def _guarded(fake):  # type: ignore[no-untyped-def]
    real = importlib.import_module
    return lambda name: fake(name) if name == "torchvision" else real(name)
