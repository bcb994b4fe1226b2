"""Reading runs for a comparison: folders with predictions, one a seed, or plain files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from evenhand.errors import InputError
from evenhand.evaluation.predictions import GROUP_SUFFIX, find_labels
from evenhand.evaluation.reading import read_predictions


@dataclass(frozen=True)
class RunsTable:
    """Runs and what their tables have in common.

    Attributes:
        runs: (name, one table a seed), in the order given.
        labels, classes: of the contract's columns.
        attributes: attributes with a ``__group`` column in every table.
        thresholds: run name -> for each seed label -> the threshold its audit.json stores; runs without one are absent.
    """

    runs: list[tuple[str, list[pd.DataFrame]]]
    labels: list[str]
    classes: list[str]
    attributes: list[str]
    thresholds: dict[str, list[dict[str, float]]] = field(default_factory=dict)


def read_runs(paths: Sequence[str | os.PathLike[str]]) -> RunsTable:
    """Read the predictions of several runs.

    A run is a folder with ``predictions.parquet``, or with ``seed=k`` folders that hold one each, or a file of
    predictions (one with several seeds is taken apart). ``NAME=PATH`` gives a run another name than its folder's.

    Raises:
        InputError: no predictions there, two runs of one name, or labels that differ.
    """
    runs: list[tuple[str, list[pd.DataFrame]]] = []
    stored: dict[str, list[dict[str, float]]] = {}
    for path in paths:
        name, folder = _named(str(path))
        if name in [other for other, _ in runs]:
            raise InputError(f"two runs are named '{name}'; give one of them another name, as NAME={folder}")
        runs.append((name, _tables(folder)))
        thresholds = [stored_thresholds(item) for item in _folders(folder)]
        if thresholds and all(thresholds):
            stored[name] = thresholds
    found = [find_labels(frame) for _, frames in runs for frame in frames]
    if any(item != found[0] for item in found):
        names = sorted({", ".join(labels + classes) for labels, classes in found})
        raise InputError(f"the runs have different labels ({' | '.join(names)}); compare runs of one task")
    columns = [list(frame.columns) for _, frames in runs for frame in frames]
    groups = [str(name).removesuffix(GROUP_SUFFIX) for name in (columns[0] if columns else []) if str(name).endswith(GROUP_SUFFIX)]
    shared = [name for name in groups if all(f"{name}{GROUP_SUFFIX}" in own for own in columns)]
    labels, classes = found[0] if found else ((), ())
    named = {tuple(item) for items in stored.values() for item in items}
    if len(labels) == 1 and not classes and len(named) == 1 and len(next(iter(named))) == 1:
        labels = next(iter(named))
    return RunsTable(runs, list(labels), list(classes), shared, {} if classes else stored)


def stored_thresholds(folder: Path) -> dict[str, float]:
    """Label -> threshold of the ``audit.json`` in a folder; without one, of its ``run.json``; empty where neither has any."""
    path, run = folder / "audit.json", folder / "run.json"
    if not path.is_file():
        said = json.loads(run.read_text(encoding="utf-8")).get("thresholds") if run.is_file() else None
        return {name: float(value) for name, value in (said or {}).items()}
    labels = json.loads(path.read_text(encoding="utf-8"))["labels"]
    return {name: float(item["threshold"]["value"]) for name, item in labels.items() if item["threshold"]["value"] is not None}


def _folders(path: Path) -> list[Path]:
    """The run folders behind a path: itself, or one a seed; none for a plain file."""
    if not path.is_dir():
        return []
    if (path / "predictions.parquet").exists():
        return [path]
    return sorted((item for item in path.glob("seed=*") if (item / "predictions.parquet").exists()), key=_seed_number)


def _named(text: str) -> tuple[str, Path]:
    name, sign, rest = text.partition("=")
    if sign and not Path(text).exists() and re.fullmatch(r"[\w .+-]+", name):
        return name, Path(rest)
    path = Path(text)
    return (path.stem if path.is_file() else path.resolve().name), path


def _tables(path: Path) -> list[pd.DataFrame]:
    if path.is_dir() and not (path / "predictions.parquet").exists():
        folders = _folders(path)
        if not folders:
            raise InputError(
                f"{path} has neither predictions.parquet nor seed=k folders with one; give finished run folders or files of predictions"
            )
        return [read_predictions(item) for item in folders]
    frame = read_predictions(path)
    if "seed" in frame.columns and frame["seed"].nunique() > 1:
        return [part.reset_index(drop=True) for _, part in frame.groupby("seed", sort=True)]
    return [frame]


def _seed_number(path: Path) -> tuple[int, str]:
    digits = path.name.removeprefix("seed=")
    return (int(digits) if digits.isdigit() else 0, digits)
