"""A run folder: everything that explains a run, written so that a kill at any moment leaves the last complete state."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from evenhand.errors import InputError, RunError
from evenhand.files import locked, write_atomic, write_text

log = logging.getLogger(__name__)

SEARCH_RUN_SCHEMA = "evenhand.search_run/1"
"""Schema of run.json in the folder of a search."""
PACKAGES = ("evenhand", "torch", "torchvision", "timm", "accelerate", "numpy", "scipy", "pandas", "scikit-learn", "fairlearn")
IGNORED_IN_IDENTITY = (
    "out", "embeddings", "trainer.progress", "seeds", "model.timeout", "model.retries", "model.connections", "model.ca_file",
    "method.concurrency", "method.price", "method.price_per_request", "method.budget", "method.rounds", "logger", "trainer.profile",
)
"""Options that do not change a run's numbers, or only how far it goes, so that a run goes on under others."""
LATER = {
    "trainer.plateau_monitor": "monitor", "trainer.overfit_batches": 0, "trainer.limit_batches": 0, "method.edit_lr": 12.0,
    "method.edit_steps": 140, "method.surrogate_steps": 800, "method.surrogate_width": 16,
    "model.drop_path_optional": False, "model.api_input": None, "model.api_output": None,
}  # fmt: skip
"""Options that came later, at the values that change nothing: a run that was begun before them goes on."""
BY_CONTENT = {"method.mask": "mask", "method.mask_like": "mask_like"}
"""Options that name a file -> where a run keeps that file's sha256; with it, the file may lie elsewhere."""


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; numbers that are not finite are refused, because JSON has none."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def utc_now() -> str:
    """The time in ISO 8601, UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def package_versions() -> dict[str, str]:
    """The installed versions of the packages whose numbers a run depends on, without importing them."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def identity(config: Mapping[str, Any]) -> str:
    """sha256 of a configuration without the options that do not change its numbers (where it writes or lies, progress display).

    Example:
        >>> identity({"seed": 0, "out": "a"}) == identity({"seed": 0, "out": "b"})
        True
    """

    def strip(value: Any, prefix: str) -> Any:
        if isinstance(value, Mapping):
            kept = {key: item for key, item in value.items() if not _idle(f"{prefix}{key}", item, config)}
            return {key: strip(item, f"{prefix}{key}.") for key, item in kept.items()}
        return value

    return hashlib.sha256(json.dumps(strip(config, ""), sort_keys=True, default=str).encode()).hexdigest()


def _idle(name: str, value: Any, config: Mapping[str, Any]) -> bool:
    """Whether an option at this value changes no number of a run."""
    known = name in BY_CONTENT and BY_CONTENT[name] in config
    return known or name in IGNORED_IN_IDENTITY or (name in LATER and value in (None, LATER[name]))


class FileStore:
    """A `evenhand.methods.Store` in a folder. Values hold tensors, numbers, strings, lists and dicts only; loading runs no code.

    Args:
        root: the folder.
        read_only: writes are dropped (all but the first process of a distributed run).
    """

    def __init__(self, root: Path, read_only: bool = False) -> None:
        self.root = root
        self.read_only = read_only

    def get(self, key: str) -> Any | None:
        """The value last put, or None."""
        import torch

        path = self.root / f"{key}.pt"
        if not path.exists():
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError) as error:
            raise RunError(f"the saved state {path} cannot be read ({type(error).__name__}); delete it to start this run again") from error

    def put(self, key: str, value: Any) -> None:
        """Replace a value atomically."""
        import torch

        if self.read_only:
            return
        buffer = io.BytesIO()
        torch.save(value, buffer)
        write_atomic(self.root / f"{key}.pt", buffer.getvalue())

    def append(self, key: str, record: Mapping[str, Any]) -> None:
        """Add one JSON record to a log; a line that a kill cut short is dropped by the next append."""
        if self.read_only:
            return
        path = self.root / f"{key}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            size = file.tell()
            if size:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.truncate(_last_newline(path))
            file.write(json.dumps(record).encode() + b"\n")


def _last_newline(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1


class RunFolder:
    """One run on disk: config.yaml, run.json, metrics.jsonl, predictions.parquet, audit.json, report.html, results.csv, checkpoints/.

    Args:
        root: the folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def __fspath__(self) -> str:
        return str(self.root)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.root)!r})"

    @property
    def info(self) -> dict[str, Any]:
        """run.json, empty where there is none yet."""
        path = self.root / "run.json"
        return json.loads(path.read_text()) if path.exists() else {}

    @property
    def done(self) -> bool:
        """Whether the run ended and its results are complete."""
        return self.info.get("status") == "done"

    @property
    def started(self) -> bool:
        """Whether there is anything to lose: a checkpoint, an answer that was paid for, a saved predictor, a search's trials or mask."""
        kept = (path for path in (self.root / "checkpoints").rglob("*") if path.is_file() and path.stat().st_size)
        made = any((self.root / name).exists() for name in ("predictor.json", "study.journal", "activations", "mask.json"))
        return made or any(path.name not in ("log.json", ".lock") for path in kept)

    @property
    def seeds(self) -> list[RunFolder]:
        """The runs of each seed, in order of the seed; a single run is its own only one."""
        folders = [path for path in self.root.glob("seed=*") if (path / "run.json").exists()]
        return [RunFolder(path) for path in sorted(folders, key=lambda path: int(path.name.split("=")[1]))] or [self]

    def update(self, **values: Any) -> None:
        """Change some entries of run.json atomically."""
        write_json(self.root / "run.json", {**self.info, **values})

    def store(self, read_only: bool = False) -> FileStore:
        """The method's store."""
        return FileStore(self.root / "checkpoints", read_only)

    @classmethod
    def begin(cls, root: str | Path, config: Mapping[str, Any], config_yaml: str) -> RunFolder:
        """Make the folder of a new run, or find the one of the same command that was interrupted.

        Args:
            root: the folder.
            config: the resolved configuration as plain containers.
            config_yaml: the same as text, for people.

        Raises:
            InputError: the folder holds something else, or a run of another configuration.
        """
        run = cls(root)
        key = identity(config)
        if run.root.exists() and not run.root.is_dir():
            raise InputError(f"out={run.root} is a file; give a folder")
        if not run.info and run.root.exists() and any(not path.name.startswith(".") for path in run.root.iterdir()):
            raise InputError(f"out={run.root} is not empty and holds no run; give an empty or a new folder")
        known = run.info.get("config_id")
        if known is not None and known != key:
            raise InputError(
                f"out={run.root} holds a run of another configuration ({_first_difference(run.info.get('config', {}), config)}); "
                "give another out=, or remove that folder"
            )
        if known is None:
            run.update(schema="evenhand.run/1", status="running", config_id=key, config=dict(config), started=utc_now())
        if not (run.root / "config.yaml").exists():
            write_text(run.root / "config.yaml", config_yaml)
        return run

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against other processes; a second one waits, and then finds the run finished."""
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(self.root / ".lock", waiting=lambda: log.warning("another process is writing %s; waiting for it", self.root)):
            yield


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every option by its full name."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first option two configurations differ in, as text."""
    before, now = dict(_leaves(old)), dict(_leaves(new))
    for name in [*now, *(name for name in before if name not in now)]:
        left, right = before.get(name), now.get(name)
        if left != right and not (_idle(name, left, old) and _idle(name, right, new)):
            return f"{name} was {left}, now {right}"
    return "no visible option"
