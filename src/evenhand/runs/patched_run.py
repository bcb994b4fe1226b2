"""Run folders with a patch on: every file of the run goes along, what it was made from stays in ``delivered/``, results are made anew.

A patched run folder holds the run's files with the patched ``model.safetensors``, ``patch.safetensors``, and the files of the run
as it was delivered. Patches can be put on one after the other; each is taken off in turn.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from evenhand.config import config_yaml
from evenhand.errors import InputError, RunError
from evenhand.evaluation.evaluate import evaluate
from evenhand.files import write_text
from evenhand.patches import FILE, Patch, patch_file, save_patch
from evenhand.runs.edited import EDIT_FILE
from evenhand.runs.folder import RunFolder, identity, utc_now, write_json
from evenhand.runs.results import audit_options, load_config, load_predictor, score, stored_thresholds, write_audit
from evenhand.runs.task import Rows, read_rows

log = logging.getLogger(__name__)

DELIVERED = "delivered"
"""Folder of a patched run with the files of the run as it was delivered."""
MODEL = "model.safetensors"
HISTORY = "metrics.jsonl"
KEPT = ("config.yaml", "predictor.json", HISTORY, EDIT_FILE)
"""Files of a run that a patch does not change."""


def check_run(folder: Path) -> RunFolder:
    """The finished run in a folder, whose network a patch can change.

    Raises:
        InputError: no finished run, several, or one without a network of its own.
    """
    run = RunFolder(folder)
    load_config(run)
    kind = json.loads((run.root / "predictor.json").read_text(encoding="utf-8"))["type"]
    if kind != "model":
        what = "decides with thresholds per group" if kind == "thresholds" else "is a head on a frozen encoder"
        do = "give the run of a network" if kind == "thresholds" else "make it one with evenhand export, and give that folder"
        raise InputError(f"the run {run.root} {what}, so it holds no network that a patch could change; {do}")
    return run


def apply_to_run(run: RunFolder, patch: Patch, scratch: Path, out: Path, *, data: str | None = None, audit: bool = True) -> list[str]:
    """Write the patched run.

    Args:
        run: from `check_run`.
        patch: that belongs to it.
        scratch: an empty folder, which the caller moves to ``out``.
        out: what run.json and config.yaml call the folder.
        data: where the run's data set is; default: where it was.
        audit: score and audit it on that data set, where it is at hand.

    Returns:
        Sentences for the reader.

    Raises:
        InputError: another model, or a data set that was named and is not the run's.
    """
    patch_file(run.root / MODEL, scratch / MODEL, patch)
    rows, why_not = _own_rows(run, data) if audit else (None, "audit=false")
    copy_folder(run.root, scratch / DELIVERED, _left_out(run.root))
    for name in KEPT:
        if (run.root / name).exists():
            shutil.copyfile(run.root / name, scratch / name)
    save_patch(scratch / FILE, patch)
    patched = RunFolder(scratch)
    config = dict(run.info["config"])
    config.update(out=str(out), patch=patch.result_hash)
    facts = {"base_hash": patch.base_hash, "result_hash": patch.result_hash, "data_hash": patch.data_hash, "applied": utc_now()}
    notes = [f"patch {patch.result_hash[:12]} on the run '{run.root.name}': {patch.n_changed} entries changed"]
    about = {**run.info, "config": config, "config_id": identity(config), "status": "running", "patch": facts}
    write_json(scratch / "run.json", {name: value for name, value in about.items() if name != "ended"})
    if run.info.get("command") is None:
        write_text(scratch / "config.yaml", config_yaml(replace(load_config(run), out=str(out))))
    patched.update(status="done")
    if rows is not None:
        _judge(patched, rows, patch)
    else:
        notes.append(_without_results(patched, run, patch, why_not))
    patched.update(ended=utc_now(), notes=[*run.info.get("notes", []), *notes])
    return notes


def revert_run(run: RunFolder, patch: Patch, scratch: Path, out: Path) -> None:
    """Write the run as it was delivered: its network bit for bit, and every file that ``delivered/`` holds.

    The run folder of ``patch make`` holds the delivered classifier's results there; its own history is that of the patch, and stays
    behind.

    Args:
        run: from `check_run`.
        patch: that it has.
        scratch: an empty folder, which the caller moves to ``out``.
        out: what run.json calls the folder, where the run as delivered has no run.json of its own.

    Raises:
        InputError: it does not have the patch.
    """
    patch_file(run.root / MODEL, scratch / MODEL, patch, revert=True)
    for name in (name for name in KEPT if name != HISTORY):
        if (run.root / name).exists():
            shutil.copyfile(run.root / name, scratch / name)
    config = {**run.info["config"], "out": str(out), "reverted": patch.base_hash}
    about = {name: value for name, value in run.info.items() if name not in ("patch", "thresholds")}
    about.update(method=DELIVERED, config=config, config_id=identity(config), reverted=utc_now())
    write_json(scratch / "run.json", about)
    if (run.root / DELIVERED).is_dir():
        copy_folder(run.root / DELIVERED, scratch)


def copy_folder(source: Path, target: Path, ignore: Any = None) -> None:
    """Copy a folder with all it holds into another, which may be there already.

    Raises:
        RunError: a file could not be copied (no space, no rights).
    """
    try:
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=ignore)
    except shutil.Error as error:
        first = str(error.args[0][0][2]).splitlines()[0]
        raise RunError(f"{source} could not be copied ({first}); free some space or choose another out=, and run it again") from error


def _left_out(root: Path) -> Any:
    """What of a run folder does not go along: weights that the patch gives back, checkpoints, what a run keeps while it works."""

    def choose(folder: str, names: list[str]) -> set[str]:
        skipped = {name for name in names if name.startswith(".")}
        return skipped | ({MODEL, "checkpoints", "activations"} & set(names) if Path(folder) == root else set())

    return choose


def _own_rows(run: RunFolder, data: str | None) -> tuple[Rows | None, str]:
    """The rows that a run was made from, None with the reason where they are not at hand."""
    config, info = load_config(run), run.info
    if info.get("command") is not None:
        return None, "its rows were dealt out by another command"
    place = data or (info["data"] if Path(info["data"]).is_dir() else config.data.path)
    if data is None and not Path(place).is_dir():
        return None, "its data set is not at hand (data= says where it is)"
    rows = read_rows(replace(config.data, path=str(place)), int(info["seed"]), redraw=bool(info["split_redrawn"]))
    if rows.data.fingerprint != info["data_hash"] or rows.split_hash != info["split_hash"]:
        if data is not None:
            raise InputError(f"data={data} is not the data set that the run {run.root} was made from; leave it out, or give that one")
        return None, "its data set has changed since"
    return rows, ""


def _judge(patched: RunFolder, rows: Rows, patch: Patch) -> None:
    """Score validation and test rows of the run's own data set, and audit them: at the patch's thresholds, where it has any."""
    loaded, info = load_predictor(patched), patched.info
    config = loaded.config
    predictions = score(loaded.predictor, rows, ("val", "test"), int(info["seed"]))
    given = {} if info["classes"] else {name: value for name, value in patch.thresholds.items() if name in rows.labels}
    audit = evaluate(predictions, seed=config.seed, thresholds=given or None, **audit_options(rows, config))
    names = ("method", "seed", "data_hash", "split_hash", "model_hash", "n_images", "versions", "started")
    facts = {"data": info["data_name"], **{name: info.get(name) for name in names}, "patch_hash": patch.result_hash}
    if info.get("edit"):
        facts["edit_hash"] = info["edit"]["hash"]
    write_audit(patched.root, audit, predictions, facts, f"{info['method']}, patched, on {rows.data.name}")


def _without_results(patched: RunFolder, run: RunFolder, patch: Patch, why_not: str) -> str:
    """Decisions need thresholds all the same: those of the patch, else those of the run as delivered."""
    before = stored_thresholds(run)
    patched.update(thresholds={**before, **{name: value for name, value in patch.thresholds.items() if name in before}})
    source = "the patch" if set(before) <= set(patch.thresholds) else "the run as delivered, chosen before the patch"
    said = f"thresholds are those of {source}; " if before else ""
    return f"the patched run has no audit of its own ({why_not}); {said}judge it with evenhand evaluate"
