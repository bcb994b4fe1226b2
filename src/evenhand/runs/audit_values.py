"""`evenhand.audit` of continuous values: columns of numbers, or columns of mask files from which Dice and HD95 are computed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from evenhand.config.schema import AuditConfig
from evenhand.errors import ConfigError, TableError
from evenhand.evaluation.columns import names_of
from evenhand.evaluation.evaluate import AuditResult
from evenhand.evaluation.gates import check_gates, parse_gate
from evenhand.evaluation.intake import Intake
from evenhand.evaluation.predictions import need_column, write_predictions
from evenhand.evaluation.values import checked_config, evaluate_values, judged, make_value_cohort
from evenhand.metrics.bootstrap import processors
from evenhand.metrics.means import VALUE_METRICS

MASK_VALUES = ("dice", "hd95")


@dataclass(frozen=True)
class ValueQuestion:
    """What is asked of continuous values.

    Attributes:
        values: columns of numbers; with masks `MASK_VALUES`.
        lower_is_better: whether a high value is the worse one, or the names of which it is.
        pred_mask, true_mask: columns of mask files; both or none.
        folder: what the files' names are relative to.
        spacing: mm a voxel, one number or one an axis; None: as the files say.
    """

    values: tuple[str, ...]
    lower_is_better: bool | tuple[str, ...] = False
    pred_mask: str | None = None
    true_mask: str | None = None
    folder: Path = Path()
    spacing: tuple[float, ...] | None = None

    def with_columns(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The table with the columns that masks will fill, still empty.

        Raises:
            TableError: a column of masks is unknown, or one to be filled is there already.
        """
        if self.pred_mask is None:
            return frame
        for name, which in ((self.pred_mask, "predicted masks"), (self.true_mask or "", "true masks")):
            need_column(frame, name, which)
        for name in MASK_VALUES:
            if name in frame.columns:
                raise TableError(
                    f"the table has a column '{name}' already, which the masks are to give; audit it with --value {name}, or rename it"
                )
        return frame.assign(**dict.fromkeys(MASK_VALUES, np.nan))


def value_question(
    *,
    value: Any,
    lower_is_better: bool | str | Sequence[str],
    pred_mask: str | None,
    true_mask: str | None,
    images: str | os.PathLike[str] | None,
    spacing: float | Sequence[float] | None,
    table: Any,
    others: dict[str, Any],
) -> ValueQuestion | None:
    """What is asked of continuous values, or None where labels and scores are judged.

    Args:
        value, lower_is_better, pred_mask, true_mask, images, spacing: as in `evenhand.audit`.
        table: what the caller gave; the folder of a file is where its mask files are looked for.
        others: option -> value of what goes with labels only.

    Raises:
        ConfigError: options that do not go together.
    """
    values = tuple(names_of(value))
    masks = [name for name in (pred_mask, true_mask) if name is not None]
    if not values and not masks:
        alone = {"lower_is_better": lower_is_better or None, "images": images, "spacing": spacing}
        lone = next((name for name, item in alone.items() if item is not None), "")
        if lone:
            raise ConfigError(f"{lone} is for continuous values; name a column with --value, or masks with --pred-mask and --true-mask")
        return None
    if table is None:
        raise ConfigError("continuous values need a table, not arrays; put them into a DataFrame and name the column")
    if len(masks) == 1:
        lacking = "true_mask" if pred_mask is not None else "pred_mask"
        raise ConfigError(f"{lacking} is missing; masks are compared in pairs: give both --pred-mask and --true-mask")
    if values and masks:
        raise ConfigError("value and masks are given together; audit the masks, then all values with the cases.csv that this writes")
    given = next((name for name, item in others.items() if item is not None and item is not False and len(_listed(item))), "")
    if given:
        what = "masks" if masks else "value"
        raise ConfigError(f"{what} and {given} are given together; an audit is of continuous values or of labels and scores: leave one out")
    if not masks and (images is not None or spacing is not None):
        raise ConfigError("images and spacing are for masks; give --pred-mask and --true-mask, or leave them out")
    named = lower_is_better if isinstance(lower_is_better, bool) else tuple(names_of(lower_is_better))
    folder = Path(images) if images is not None else _folder_of(table)
    if images is not None and not folder.is_dir():
        raise ConfigError(f"images is '{images}', which is no folder; give the folder that the mask columns' names are relative to")
    steps = None if spacing is None else (float(spacing),) if isinstance(spacing, (int, float)) else tuple(float(s) for s in spacing)
    return ValueQuestion(values or MASK_VALUES, named, pred_mask, true_mask, folder, steps)


def _listed(item: Any) -> Sequence[Any]:
    return item if isinstance(item, (list, tuple, str)) else [item]


def _folder_of(table: Any) -> Path:
    if not isinstance(table, (str, os.PathLike)):
        return Path()
    return Path(table) if Path(table).is_dir() else Path(table).parent


def _check_options(config: AuditConfig) -> None:
    """Refuse what would be passed over in silence."""
    usual = AuditConfig()
    others = {name: getattr(config, name) != getattr(usual, name) for name in ("threshold", "no_finding", "ece_bins")}
    others |= {"adjust": bool(config.adjust), "reference": bool(config.reference)}
    others["metrics"] = bool(set(config.metrics) - set(VALUE_METRICS))
    for name, given in others.items():
        if given:
            raise ConfigError(f"{name} is for labels and scores; an audit of continuous values has means and medians only, so leave it out")


def judge_values(
    question: ValueQuestion,
    taken: Intake,
    *,
    config: AuditConfig,
    missing: str,
    gates: Sequence[str],
    seed: int,
    threads: int | None,
    out: str | os.PathLike[str] | None,
    progress: bool,
) -> tuple[AuditResult, Callable[[AuditResult], None]]:
    """(the audit, what checks its gates). Whatever can be refused is refused before any mask is scored.

    With masks the judged rows and their scores are written to ``cases.csv`` in ``out`` before they are audited.
    """
    _check_options(config)
    config = checked_config(config)
    parsed = [parse_gate(text, list(question.values), taken.attributes, VALUE_METRICS, config.primary) for text in gates]
    frame = taken.frame
    units: dict[str, str] = {}
    notes: list[str] = []
    if question.pred_mask is None:
        make_value_cohort(
            frame,
            question.values,
            taken.attributes,
            config=config,
            bins=taken.bins,
            missing=missing,
            lower_is_better=question.lower_is_better,
        )
    else:
        _, use, _ = judged(frame, taken.attributes, config=config, bins=taken.bins, missing=missing)
        frame, units, notes = _scored(frame, use, question, threads or processors(), progress)
        if out is not None:
            write_predictions(frame, Path(out) / "cases.csv")
    result = evaluate_values(
        frame,
        values=question.values,
        attributes=taken.attributes,
        config=config,
        seed=seed,
        bins=taken.bins,
        missing=missing,
        lower_is_better=question.lower_is_better,
        units=units,
        notes=notes,
        threads=threads,
    )
    return result, lambda audit: check_gates(parsed, audit.to_json())


def _scored(
    frame: pd.DataFrame, use: npt.NDArray[np.bool_], question: ValueQuestion, workers: int, progress: bool
) -> tuple[pd.DataFrame, dict[str, str], list[str]]:
    """(the judged rows with their scores, units, sentences)."""
    from evenhand.data.mask_scores import score_masks
    from evenhand.data.masks import find_files

    columns = [question.pred_mask or "", question.true_mask or ""]
    files = [find_files(_names(frame[name].where(use)), question.folder, name) for name in columns]
    if not any(p is not None and t is not None for p, t in zip(*files, strict=True)):
        raise TableError(f"no judged row has both masks ('{columns[0]}' and '{columns[1]}' are empty); there is nothing to audit")
    with _bar(progress) as report:
        found = score_masks(files[0], files[1], spacing=question.spacing, workers=workers, progress=report)
    found = replace(found, n_absent=found.n_absent - int((~use).sum()))
    kept = frame.drop(columns=[name for name in found.table.columns if name in frame.columns])
    return pd.concat([kept, found.table], axis=1)[use].reset_index(drop=True), {"hd95": found.unit}, found.sentences()


def _names(column: pd.Series) -> list[str | None]:
    text = column.astype("string").str.strip()
    return [None if empty else str(name) for name, empty in zip(text, (text.isna() | (text == "")).fillna(True), strict=True)]


@contextmanager
def _bar(shown: bool) -> Iterator[Callable[[str, int, int], object] | None]:
    """What moves a progress bar on a terminal; None where it is not wanted."""
    if not shown:
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    # off a terminal a bar leaves an empty line, before an error as well
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done)

        yield report
