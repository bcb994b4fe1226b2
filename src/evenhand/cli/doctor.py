"""`evenhand doctor`: what is installed, what it runs on, and what does not fit together."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Annotated, Any

import typer

from evenhand.errors import DependencyError

PACKAGES = (
    "evenhand", "torch", "torchvision", "timm", "accelerate", "numpy", "scipy", "pandas", "pyarrow", "scikit-learn", "fairlearn",
    "concept-erasure", "hydra-core", "omegaconf", "typer", "rich", "pillow", "pydicom", "safetensors", "jinja2",
)
LOW_DISK_GB = 2.0


@dataclass
class Report:
    """What `examine` found; ``problems`` is empty where everything fits together."""

    python: str
    platform: str
    versions: dict[str, str]
    devices: list[str] = field(default_factory=list)
    cpu_bf16: bool | None = None
    threads: dict[str, int] = field(default_factory=dict)
    disk_free_gb: float = 0.0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Versions, devices, threads, disk space and mismatched installs, said plainly. Exit code 4 where something is wrong."""
    report = examine()
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=1))
    else:
        typer.echo("\n".join(report_lines(report)))
    if report.problems:
        raise typer.Exit(DependencyError.exit_code)


def examine(folder: str | Path = ".") -> Report:
    """Look at this environment; nothing is changed and the network is not used.

    Args:
        folder: the folder whose free disk space is told.
    """
    versions = installed_versions()
    report = Report(platform.python_version(), platform.platform(), versions)
    report.disk_free_gb = round(shutil.disk_usage(folder).free / 1e9, 1)
    report.problems += missing_packages() + version_mismatches(versions, torchvision_requirement())
    if report.disk_free_gb < LOW_DISK_GB:
        report.notes.append(f"only {report.disk_free_gb} GB are free in {folder}; image caches and checkpoints need more")
    _examine_torch(report)
    return report


def installed_versions(packages: tuple[str, ...] = PACKAGES, find: Callable[[str], str] = version) -> dict[str, str]:
    """Package -> installed version, from metadata; a package that is not installed is left out."""
    found = {}
    for name in packages:
        try:
            found[name] = find(name)
        except PackageNotFoundError:
            continue
    return found


def missing_packages() -> list[str]:
    """One sentence for each package that evenhand requires and that is absent or outside its range."""
    from packaging.requirements import Requirement

    problems = []
    for text in requires("evenhand") or []:
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        found = installed_versions((need.name,)).get(need.name)
        if found is None:
            problems.append(f"{need.name} is not installed; install it with: pip install '{need.name}{need.specifier}'")
        elif not need.specifier.contains(found, prereleases=True):
            problems.append(f"{need.name} {found} is installed, but evenhand needs {need.specifier}; upgrade it")
    return problems


def torchvision_requirement() -> str | None:
    """The torch version that the installed torchvision was built for, None where it does not say so."""
    try:
        lines = requires("torchvision") or []
    except PackageNotFoundError:
        return None
    pins = [match[1] for line in lines if (match := re.match(r"torch\s*\(?==\s*([0-9][^\s;)]*)", line))]
    return pins[0] if pins else None


def version_mismatches(versions: Mapping[str, str], built_for: str | None) -> list[str]:
    """Whether torch and torchvision belong together, from their versions alone.

    Args:
        versions: package -> version; a local part names the build (``2.6.0+cu124``).
        built_for: the torch version that torchvision's metadata asks for.

    Example:
        >>> version_mismatches({"torch": "2.6.0+cpu", "torchvision": "0.21.0+cpu"}, "2.6.0")
        []
        >>> len(version_mismatches({"torch": "2.6.0+cpu", "torchvision": "0.20.0+cpu"}, "2.5.0"))
        1
    """
    if "torch" not in versions or "torchvision" not in versions:
        return []
    torch, torch_build = _parts(versions["torch"])
    _, vision_build = _parts(versions["torchvision"])
    pair = f"torch {versions['torch']} and torchvision {versions['torchvision']} do not match"
    remedy = "install both from one index, in one command: pip install --force-reinstall torch torchvision timm"
    if built_for is not None and _parts(built_for)[0] != torch:
        return [f"{pair} (torchvision was built for torch {built_for}); {remedy}"]
    if torch_build and vision_build and torch_build != vision_build:
        return [f"{pair} (one is a {torch_build} build, the other a {vision_build} build); {remedy}"]
    return []


def report_lines(report: Report) -> list[str]:
    """The report as lines for a terminal."""
    lines = [f"python {report.python} on {report.platform}"]
    lines += [f"  {name} {number}" for name, number in report.versions.items()]
    bf16 = {None: "unknown", True: "yes", False: "no"}[report.cpu_bf16]
    lines.append(f"devices: {', '.join(report.devices) or 'none found'}; processor has bf16 instructions: {bf16}")
    lines.append("threads: " + ", ".join(f"{name} {count}" for name, count in report.threads.items()))
    lines.append(f"disk: {report.disk_free_gb} GB free here")
    lines += [f"note: {text}" for text in report.notes]
    lines += [f"problem: {text}" for text in report.problems] or ["everything fits together"]
    return lines


def _parts(number: str) -> tuple[str, str]:
    public, _, local = number.partition("+")
    return public, local


def _examine_torch(report: Report) -> None:
    """Devices and threads; a torch that cannot be imported is a problem, said in one sentence."""
    from evenhand.optional import require_torch

    report.threads["processors"] = os.cpu_count() or 1
    report.cpu_bf16 = cpu_has_bf16()
    try:
        torch: Any = require_torch()
    except DependencyError as error:
        if not any("do not match" in text for text in report.problems):
            report.problems.append(error.summary)
        return
    report.threads["torch"] = torch.get_num_threads()
    report.devices.append("cpu")
    report.devices += [f"cuda:{k} {torch.cuda.get_device_name(k)}" for k in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        report.devices.append("mps")
    if report.cpu_bf16 is None:
        report.cpu_bf16 = bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()) or None


def cpu_has_bf16(path: str | Path = "/proc/cpuinfo") -> bool | None:
    """Whether the processor has bf16 instructions, None where that cannot be read.

    Args:
        path: the list of the processor's features; exists on Linux.
    """
    try:
        text = Path(path).read_text(errors="replace")
    except OSError:
        return None
    flags = set(re.findall(r"\b(?:avx512_bf16|amx_bf16|bf16)\b", text))
    return bool(flags)
