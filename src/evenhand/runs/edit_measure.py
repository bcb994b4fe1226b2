"""`evenhand edit measure`: fooled and hidden side by side, beside both controls, on any encoder, finding and data set."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from evenhand.config.editing import EditMeasureConfig, EditMethodConfig, EditTrainConfig
from evenhand.edits.artifact import StoredEdit, check_grid
from evenhand.errors import CheckpointError, InputError
from evenhand.files import write_text
from evenhand.methods.base import Task
from evenhand.methods.editing.attribute_head import HEAD_FILES, AttributeHead
from evenhand.methods.editing.leakage import LeakageRows, measure_leakage
from evenhand.methods.editing.pixel_reader import read_pixels
from evenhand.report.edit_page import transfer_section, write_measure_page
from evenhand.report.leakage_table import doubt_words, leakage_records, leakage_table, pixel_table, table_lines
from evenhand.runs.edit import read_heads
from evenhand.runs.edited import edit_record, find_edit, open_edit, warn_of_other_encoder
from evenhand.runs.folder import FileStore, utc_now, write_json
from evenhand.runs.task import Encoder, Rows, make_task, read_rows
from evenhand.runs.train import deterministic, provenance

log = logging.getLogger(__name__)

MEASURE_SCHEMA = "evenhand.edit_measure/1"


def edit_measure(config: EditMeasureConfig) -> Path:
    """Measure what an edit hides and what it only fools, beside no edit and noise of the same size.

    Fresh heads are fitted on edited training rows and read rows of ``split``. The encoder, the data and the labels may be
    others than the edit was trained with: then it is the transfer that is measured, and that is said.

    Args:
        config: ``edit`` is a file or a run folder; ``data.attributes`` default to those the edit was trained against.

    Returns:
        The folder with measure.json, measure.csv (a number a row) and report.html.

    Raises:
        InputError: no edit there, data of another grid, no rows of that split, heads of another encoder or of other groups, or
            ``out`` holds something else.
        MethodError: an attribute has one group.

    Example:
        >>> import evenhand as eh  # doctest: +SKIP
        >>> eh.edit_measure(eh.compose("edit measure", ["edit=runs/edit", "data=prepared/ham", "out=measured"]))  # doctest: +SKIP
    """
    out = Path(config.out or f"runs/{datetime.now():%Y%m%d-%H%M%S}-edit-measure")
    if out.exists() and not (out / "measure.json").exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out={out} is not empty and holds no measured edit; give an empty or a new folder")
    stored = open_edit(config.edit)
    rows = read_rows(replace(config.data, attributes=_attributes(config, stored)), config.seed, redraw=False)
    check_grid(stored, rows.data.cache.shape)
    if not (rows.split == config.split).any():
        raise InputError(f"split={config.split} has no rows; the data set has {', '.join(sorted(set(rows.split.astype(str))))}")
    task, encoder = _task(config, rows, out)
    reason = warn_of_other_encoder(stored, encoder)
    place = LeakageRows(task.embed, task.train, task.val, rows.take(config.split), task.kind, task.labels, task.classes)
    heads = _old_heads(config, task, encoder, rows.attributes)
    with deterministic(True):
        found = measure_leakage(place, stored.edit, rows.attributes, heads=heads, seed=config.seed, n_bootstrap=config.bootstrap)
        if config.pixel_reader:
            found["pixels"] = {name: _read_pixels(stored, task, place, name, config) for name in rows.attributes}
    transfer = _transfer(stored, rows, reason)
    record = {**edit_record(stored), "data": {"name": rows.data.name}}
    facts = {**provenance(encoder, rows, False), "seed": config.seed, "split": config.split, "written": utc_now()}
    old = {name: "given" if name in heads else "fitted here" for name in rows.attributes}
    content = {"schema": MEASURE_SCHEMA, "edit": record, "transfer": transfer, "old_heads": old, **found, "provenance": facts}
    write_json(out / "measure.json", content)
    write_text(out / "measure.csv", pd.DataFrame(leakage_records(found)).to_csv(index=False, lineterminator="\n"))
    more = [transfer_section(lines)] if (lines := _transfer_lines(transfer)) else []
    write_measure_page({**record, "versions": facts["versions"]}, found, out / "report.html", more)
    return out


def _attributes(config: EditMeasureConfig, stored: StoredEdit) -> list[str] | None:
    """The attributes to read: those asked for, else those the edit was trained against, else all that were prepared."""
    return config.data.attributes or list(stored.facts.get("attributes") or ()) or None


def _task(config: EditMeasureConfig, rows: Rows, out: Path) -> tuple[Task, Encoder]:
    options = EditTrainConfig(
        data=config.data, model=config.model, method=EditMethodConfig(name="measure"), trainer=config.trainer, seed=config.seed,
        embeddings=config.embeddings,
    )
    return make_task(options, rows, config.seed, FileStore(out, read_only=True), log.info)


def _old_heads(config: EditMeasureConfig, task: Task, encoder: Encoder, attributes: Sequence[str]) -> dict[str, AttributeHead]:
    """The heads on unedited images whose fooling is measured: those asked for, else those that the edit was trained against.

    The latter only where they read this encoder and these groups; of other attributes, heads are fitted on the way.
    """
    folder = config.attribute_head or find_edit(config.edit).parent
    if not config.attribute_head and not all((Path(folder) / name).is_file() for name in HEAD_FILES):
        return {}
    try:
        heads = read_heads(folder, *encoder.names(task.train.x.shape))
    except InputError as error:
        if config.attribute_head or isinstance(error, CheckpointError):
            raise
        return {}
    other = [name for name in attributes if name in heads and heads[name].keys != task.train.groups[name].keys]
    if other and config.attribute_head:
        name = other[0]
        raise InputError(
            f"attribute_head={folder}: the head of '{name}' tells {', '.join(heads[name].keys)} apart, but the data has "
            f"{', '.join(task.train.groups[name].keys)}; fit it on this data"
        )
    return {name: heads[name] for name in attributes if name in heads and name not in other}


def _transfer(stored: StoredEdit, rows: Rows, reason: str | None) -> dict[str, Any]:
    """In what the measurement differs from the edit's training: the encoder (why), labels, data; None where it does not."""
    labels = stored.facts.get("labels")
    known = stored.facts.get("data")
    return {
        "encoder": reason,
        "labels": list(labels) if labels and list(labels) != list(rows.labels) else None,
        "data": known if known and known != rows.take("train").x.fingerprint else None,
    }


def _read_pixels(stored: StoredEdit, task: Task, place: LeakageRows, attribute: str, config: EditMeasureConfig) -> dict[str, Any]:
    """What an image classifier of the attribute that is trained afresh reads from edited and from unedited pixels."""
    return read_pixels(
        place.train, place.val, place.test, attribute, stored.edit, kind=place.kind, labels=place.labels, classes=place.classes,
        device=task.device, batch_size=task.batch_size, seed=config.seed, n_bootstrap=config.bootstrap, report=log.info,
    )


def measure_lines(out: Path) -> list[str]:
    """What the terminal shows of a measured edit: a table an attribute, and what is another than in its training."""
    found = json.loads((out / "measure.json").read_text(encoding="utf-8"))
    lines: list[str] = []
    for attribute, record in found["attributes"].items():
        lines += [f"{attribute}:", *(f"  {line}" for line in table_lines(leakage_table(record)))]
        lines += [f"  {doubt_words(record)}"] if record.get("doubt") else []
    for attribute, record in found.get("pixels", {}).items():
        lines += [f"{attribute}, read from pixels by a classifier trained afresh:"]
        lines += [f"  {line}" for line in table_lines(pixel_table(record))]
        lines += [f"  {doubt_words(record)}"] if record.get("doubt") else []
    fitted = [name for name, whence in found.get("old_heads", {}).items() if whence != "given"]
    if fitted:
        names = " and ".join(fitted)
        lines.append(f"old head of {names}: fitted here on unedited training rows, not the one that the edit was trained against")
    return [*lines, *(f"transfer: {line}" for line in _transfer_lines(found["transfer"]))]


def _transfer_lines(transfer: dict[str, Any]) -> list[str]:
    """In what a measurement differs from the edit's training, in words."""
    lines = [str(transfer["encoder"])] if transfer["encoder"] else []
    if transfer["labels"]:
        lines.append(f"the edit was trained with {' and '.join(repr(str(name)) for name in transfer['labels'])} as label")
    if transfer["data"]:
        lines.append("the edit was trained on other images than the training images here")
    return lines
