"""`evenhand edit head` and `evenhand edit train`: the first two published steps, each a folder of its own.

The third step, a disease head or full fine-tuning on edited images, is `evenhand train … edit=FOLDER`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from evenhand.config import config_yaml
from evenhand.config.editing import EditHeadConfig, EditMethodConfig, EditTrainConfig
from evenhand.edits.artifact import load_edit, save_edit
from evenhand.errors import CheckpointError, ConfigError, InputError
from evenhand.files import write_atomic, write_text
from evenhand.methods.base import Task
from evenhand.methods.editing.attribute_head import HEAD_FILES, HEAD_SCHEMA, AttributeHead, heads_files, measure_head
from evenhand.methods.editing.outcome import EditOutcome, edit_facts, head_facts
from evenhand.methods.editing.setup import fit_attribute_heads
from evenhand.methods.registry import get_method
from evenhand.report.edit_page import cost_section, write_measure_page
from evenhand.report.leakage_table import table_lines
from evenhand.report.tables import Cell, Row, Table, estimate_cell
from evenhand.runs.edited import EDIT_FILE, EDIT_RUN_SCHEMA, check_method, edit_record
from evenhand.runs.folder import FileStore, RunFolder, package_versions, utc_now, write_json
from evenhand.runs.processes import follow_first, help_first, helped
from evenhand.runs.task import Encoder, Rows, make_task, rank, read_rows
from evenhand.runs.train import carried_out, deterministic, plain, provenance, released

log = logging.getLogger(__name__)


def edit_head(config: EditHeadConfig) -> Path:
    """Fit the head of every attribute on unedited training images, and test it: step one.

    Of several processes (torchrun) the first fits, tests and writes, and each embeds its share of the images.

    Args:
        config: ``method.attributes`` names the attributes, ``method.head`` how heads are fitted; ``out`` is the folder.

    Returns:
        The folder, with attribute_head.safetensors and attribute_head.json: accuracy and AUC with intervals and numbers of
        images, by attribute, on validation and on test rows.

    Raises:
        InputError: the data set, the encoder or an option is wrong, or ``out`` holds something else; nothing is written.
        MethodError: an attribute has one group.

    Example:
        >>> import evenhand as eh  # doctest: +SKIP
        >>> eh.edit_head(eh.compose("edit head", ["data=prepared/ham", "method.attributes=sex"]))  # doctest: +SKIP
    """
    _check(config)
    out = Path(config.out or f"runs/{datetime.now():%Y%m%d-%H%M%S}-edit-head")
    if rank() > 0:
        with deterministic(config.deterministic):
            help_first(config)
        return out
    if out.exists() and not (out / HEAD_FILES[1]).exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out={out} is not empty and holds no attribute head; give an empty or a new folder")
    rows = read_rows(config.data, config.seed, redraw=False)
    method = replace(config.method, attributes=config.method.attributes or list(rows.attributes))
    test, store = rows.take("test"), FileStore(out, read_only=True)
    with deterministic(config.deterministic), helped(config) as relay:
        # heads need embeddings only: nothing is kept of a task that is not trained
        task, encoder = make_task(replace(config, method=_unpaid(method)), rows, config.seed, store, log.info, relay=relay)
        heads = fit_attribute_heads(task, method)
        z = task.embed(test.x)
    found = {head.attribute: measure_head(head, z, test.groups[head.attribute].codes, test.patient) for head in heads}
    write_heads(out, heads, found, {**provenance(encoder, rows, False), **head_facts(task), "written": utc_now()})
    write_text(out / "config.yaml", config_yaml(config))
    return out


def _unpaid(method: EditMethodConfig) -> EditMethodConfig:
    """The same options of heads, of a method that opens no log of paid answers."""
    known = {name: getattr(method, name) for name in EditMethodConfig.__dataclass_fields__}
    return EditMethodConfig(**known)


def write_heads(out: Path, heads: tuple[AttributeHead, ...], test: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write attribute_head.safetensors and attribute_head.json."""
    for name, content in heads_files(heads, test, facts).items():
        write_atomic(out / name, content)


def read_heads(folder: str | Path, *encoder: str) -> dict[str, AttributeHead]:
    """The heads that `edit_head`, or a method that trains an edit, wrote, by attribute.

    Args:
        folder: its folder.
        encoder: fingerprints of the encoder that they are to read; all of `evenhand.edits.encoder_names`, where there are several.

    Raises:
        InputError: no heads there, or heads of another encoder.
        CheckpointError: the files are damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    place = Path(folder)
    if not all((place / name).is_file() for name in HEAD_FILES):
        raise InputError(f"attribute_head={place} holds no attribute head; give a folder written by `evenhand edit head`")
    try:
        said = json.loads((place / HEAD_FILES[1]).read_text(encoding="utf-8"))
        tensors = load_file(place / HEAD_FILES[0])
        if said.get("schema") != HEAD_SCHEMA:
            raise KeyError("schema")
        heads = [
            AttributeHead.from_state(meta, {name: tensors[f"{k}.{name}"] for name in ("weight", "bias")})
            for k, meta in enumerate(said["heads"])
        ]
        trained_on = str(said["model_hash"])
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"the attribute head in {place} is damaged ({error}); fit it again with `evenhand edit head`") from error
    if trained_on not in encoder:
        raise InputError(
            f"attribute_head={place} reads embeddings of another encoder (sha256 {trained_on[:12]}) than this run's ({encoder[0][:12]}); "
            "fit it with the same model="
        )
    return {head.attribute: head for head in heads}


def head_lines(out: Path) -> list[str]:
    """What the terminal shows of a folder of heads: a table, and for each head a sentence where there is nothing to hide."""
    said = json.loads((out / HEAD_FILES[1]).read_text(encoding="utf-8"))
    rows, notes = [], []
    for meta in said["heads"]:
        split = "test" if meta["test"] and meta["test"]["n"] else "val"
        found = meta["test"] if split == "test" else meta["report"]["val"]
        for group, auc in found["auc"].items():
            share = "–" if found["accuracy"] is None else f"{found['accuracy']:.3f} (most common {found['majority']:.3f})"
            name = meta["attribute"] if len(found["auc"]) == 1 else f"{meta['attribute']}: {group}"
            rows.append(Row(name, (Cell(f"{found['n']} ({split})"), Cell(share), estimate_cell(auc))))
        if not found["auc"]:
            rows.append(Row(meta["attribute"], (Cell(f"0 ({split})"), Cell("–"), Cell("not estimable"))))
        notes += [meta["note"]] if meta["note"] else []
    return [*table_lines(Table(("attribute", "images", "accuracy", "AUC"), tuple(rows))), *notes]


def edit_train(config: EditTrainConfig) -> RunFolder:
    """Train an image edit against sensitive attributes: step two.

    The heads that it was trained against lie beside it, so that `edit_measure` says how far these are fooled.

    The same command continues an interrupted run and ends with the same edit; what an encoder was paid for is never sent
    again. A finished search goes on where it is given a larger ``method.budget``. Of several processes (torchrun) each takes
    its share of every batch, and the first alone writes; a search by queries of a server runs in one.

    Args:
        config: ``method`` is dne (with the encoder's gradient) or gezo (by queries alone).

    Returns:
        The run folder: edit.safetensors, edit.json (what it hides and only fools, on validation rows), metrics.jsonl, report.html.

    Raises:
        ConfigError: another method.
        InputError: the data set, the encoder or an option is wrong; nothing is written.
        RunError: training failed after it had started (a server gone, a budget at its end): the state is kept.

    Example:
        >>> import evenhand as eh  # doctest: +SKIP
        >>> run = eh.edit_train(eh.compose("edit train", ["data=prepared/ham", "method=dne", "out=runs/edit"]))  # doctest: +SKIP
        >>> eh.load_edit(run).edit.kind  # doctest: +SKIP
        'residual'
    """
    _check(config)
    out = Path(config.out or f"runs/{datetime.now():%Y%m%d-%H%M%S}-edit-{config.method.name}")
    config = replace(config, out=str(out))
    if rank() > 0:
        with deterministic(config.deterministic):
            follow_first(config, lambda: _fit(config, read_rows(config.data, config.seed, redraw=False), RunFolder(out)))
        return RunFolder(out)
    rows = read_rows(config.data, config.seed, redraw=False)
    own = {"attribute_head": _head_hash(config.attribute_head), "command": "edit train", "data_hash": rows.data.fingerprint}
    identity = {**plain(config), **own}
    return carried_out(out, identity, config, lambda run: _fit(config, rows, run))


def _check(config: EditTrainConfig) -> None:
    if not isinstance(config.method, EditMethodConfig):
        raise ConfigError(f"method={config.method.name} trains no edit; use method=dne (white box) or method=gezo (queries alone)")
    check_method(config.method, None, config.model.url if not isinstance(config, EditHeadConfig) else None)


def _head_hash(folder: str | None) -> str | None:
    """The hash of given heads: part of what a run is."""
    import hashlib

    if folder is None:
        return None
    path = Path(folder) / HEAD_FILES[0]
    if not path.is_file():
        raise InputError(f"attribute_head={folder} holds no attribute head; give a folder written by `evenhand edit head`")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fit(config: EditTrainConfig, rows: Rows, run: RunFolder) -> None:
    """Train, measure on validation rows, save; ``done`` is set last."""
    writes = rank() == 0
    store, paid = run.store(read_only=not writes), run.root / "checkpoints" / "paid"
    with deterministic(config.deterministic), helped(config) as relay:
        task, encoder = make_task(config, rows, config.seed, store, log.info, paid=paid, relay=relay)
        method: Any = get_method(config.method)
        with released(task):
            heads = read_heads(config.attribute_head, *encoder.names(task.train.x.shape)) if config.attribute_head else None
            if writes:
                about = provenance(encoder, rows, False)
                run.update(schema=EDIT_RUN_SCHEMA, status="running", seed=config.seed, method=config.method.name, **about)
            outcome: EditOutcome = method.fit_edit(task, heads)
            if writes:
                _save(run, outcome, task, encoder, config)


def _save(run: RunFolder, outcome: EditOutcome, task: Task, encoder: Encoder, config: EditTrainConfig) -> None:
    write_atomic(run.root / EDIT_FILE, save_edit(outcome.edit, edit_facts(task, outcome, config.method)))
    notes = [*outcome.notes, *encoder.notes]
    report = {**outcome.report, "notes": notes}
    write_json(run.root / "edit.json", report)
    write_heads(run.root, outcome.heads, {}, {**head_facts(task), "data_hash": run.info["data_hash"], "written": utc_now()})
    write_text(run.root / "metrics.jsonl", "".join(json.dumps(dict(record)) + "\n" for record in outcome.history))
    stored = load_edit(run.root / EDIT_FILE)
    record = edit_record(stored, task.train.x)
    more = [cost_section(outcome.report["search"])] if "search" in outcome.report else []
    about = {**record, "data": {"name": run.info["data_name"]}, "versions": package_versions()}
    write_measure_page(about, outcome.report.get("leakage"), run.root / "report.html", more)
    for line in (*outcome.report.get("summary", ()), *notes):
        log.info("%s", line)
    run.update(edit=record, embedding=encoder.description(), status="done", ended=utc_now(), notes=notes)
