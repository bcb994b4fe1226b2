"""`evenhand patch apply`, `revert` and `inspect`: a patch on a run folder, on a checkpoint, or on a folder that timm loads.

What was delivered is never written to: the patched classifier goes to ``out``, whole or not at all. A patched run folder keeps
what it was made from in ``delivered/``, so that taking the patch off gives every file back.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from evenhand.config.patching import PatchApplyConfig, PatchInspectConfig, PatchRevertConfig
from evenhand.errors import CheckpointError, InputError
from evenhand.files import whole_folder
from evenhand.models.checkpoints import find_weights
from evenhand.models.parameters import state_fingerprint
from evenhand.patches import FILE, Patch, load_patch, patch_facts, patch_file
from evenhand.patches.files import file_state
from evenhand.patches.storage import patch_file_of
from evenhand.report.patch_page import patch_words, percent, size_words, write_patch_page
from evenhand.runs.folder import package_versions, write_json
from evenhand.runs.patched_run import apply_to_run, check_run, copy_folder, revert_run

log = logging.getLogger(__name__)

INSPECT_SCHEMA = "evenhand.patch_inspect/1"
EXPORTED = "evenhand.json"
"""What `evenhand export` writes beside the weights: thresholds among them."""


def patch_apply(config: PatchApplyConfig) -> Path:
    """Put a patch on the classifier that it belongs to.

    A run folder becomes a run folder that predict, evaluate, export and serve take; where its data set is at hand, it is scored
    and audited again. A checkpoint keeps its layout: only the changed tensors differ. The classifier itself is not written to.

    Args:
        config: ``patch``, ``model`` and ``out``.

    Returns:
        What was written: a folder, or a file.

    Raises:
        InputError: another model than the patch belongs to, one that has it already, or an ``out`` that is not empty.
        CheckpointError: the patch or the checkpoint is damaged, or the checkpoint does not hold the network.
        DiskFullError: no space is left; nothing is left behind.

    Example:
        >>> import evenhand as eh  # doctest: +SKIP
        >>> words = ["patch=runs/patch", "model=runs/finetune", "out=runs/patched"]  # doctest: +SKIP
        >>> eh.patch_apply(eh.compose("patch apply", words))  # doctest: +SKIP
        PosixPath('runs/patched')
    """
    patch = load_patch(config.patch)
    model, out = Path(config.model), Path(config.out)
    if _is_run(model):
        run = check_run(model)
        with whole_folder(out) as scratch:
            notes = apply_to_run(run, patch, scratch, out, data=config.data, audit=config.audit)
        for note in notes:
            log.info("%s", note)
        return out
    if config.data:
        raise InputError(f"data={config.data} is for the audit of a patched run folder, but model={model} is none; leave it out")
    return _turn_checkpoint(config.model, patch, out, revert=False)


def patch_revert(config: PatchRevertConfig) -> Path:
    """Take a patch off: the classifier as it was delivered, bit for bit.

    Only the patched classifier and the patch are needed. A patched run folder holds both, and the files that it was made from.

    Args:
        config: ``model``, ``out``, and ``patch`` unless the model is a patched run folder.

    Returns:
        What was written: a folder, or a file.

    Raises:
        InputError: a model that does not have the patch, no patch, or an ``out`` that is not empty.
        CheckpointError: the patch or the checkpoint is damaged, or the checkpoint does not hold the network.
        DiskFullError: no space is left; nothing is left behind.

    Example:
        >>> import evenhand as eh  # doctest: +SKIP
        >>> eh.patch_revert(eh.compose("patch revert", ["model=runs/patched", "out=runs/as_delivered"]))  # doctest: +SKIP
        PosixPath('runs/as_delivered')
    """
    model, out = Path(config.model), Path(config.out)
    if config.patch is None and not (model / FILE).is_file():
        raise InputError(f"model={model} holds no {FILE}, so say which patch to take off: patch=FILE, or patch=RUN of a patched run folder")
    patch = load_patch(config.patch or model)
    if _is_run(model):
        run = check_run(model)
        with whole_folder(out) as scratch:
            revert_run(run, patch, scratch, out)
        return out
    return _turn_checkpoint(config.model, patch, out, revert=True)


def patch_inspect(config: PatchInspectConfig) -> dict[str, Any]:
    """Say which layers a patch changes, how much, and how large it is; with ``out`` also as inspect.json and a page.

    Args:
        config: ``patch``; with ``model``, or a patched run folder as ``patch``, the size of changes is told too.

    Returns:
        The dictionary of inspect.json.

    Raises:
        InputError: no patch there, a model that the patch has nothing to do with, or ``out`` holds something else.
        CheckpointError: the patch is damaged.

    Example:
        >>> import evenhand as eh  # doctest: +SKIP
        >>> eh.patch_inspect(eh.compose("patch inspect", ["patch=runs/patched"]))["share"]  # doctest: +SKIP
        0.5003
    """
    file, out = patch_file_of(config.patch), Path(config.out) if config.out else None
    if out is not None and out.exists() and not (out / "inspect.json").exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out={out} is not empty and holds no inspected patch; give an empty or a new folder")
    patch = load_patch(file)
    state, named = _model_state(config, patch)
    data = file.read_bytes()
    record: dict[str, Any] = {
        "schema": INSPECT_SCHEMA,
        "base_hash": patch.base_hash,
        "result_hash": patch.result_hash,
        "data_hash": patch.data_hash,
        "sha256": hashlib.sha256(data).hexdigest(),
        "model": named,
        **patch_facts(patch, state, n_bytes=len(data)).to_json(),
        "history": dict(patch.history),
        "versions": package_versions(),
    }
    if out is not None:
        write_json(out / "inspect.json", record)
        write_patch_page(record, out / "inspect.html")
    return record


def inspect_lines(record: Mapping[str, Any]) -> list[str]:
    """The record as lines of text for the terminal: what the patch is, its layers, and sizes at other rates."""
    lines = [f"{name}: {value}" for name, value in patch_words(record)]
    wide = max(len(str(item["name"])) for item in record["layers"])
    for item in record["layers"]:
        size = "" if item["relative"] is None else f", change {percent(item['relative'])} of the weights' norm"
        told = f"{percent(item['share'])} of {item['n']}{size}" if item["changed"] else "as delivered"
        lines.append(f"  {item['name']:<{wide}}  {told}")
    sizes = [f"{100 * item['rate']:g}%: {size_words(item['bytes'])} ({percent(item['share_of_bytes'])})" for item in record["at_rates"]]
    return [*lines, f"size at other rates: {', '.join(sizes)} of the model"]


def _is_run(path: Path) -> bool:
    return path.is_dir() and ((path / "run.json").exists() or any(path.glob("seed=*/run.json")))


def _turn_checkpoint(model: str, patch: Patch, out: Path, *, revert: bool) -> Path:
    """The patched copy of a file, or of a folder with one."""
    source, folder = find_weights(model).file, Path(model)
    if not folder.is_dir():
        target = out if out.suffix == source.suffix else out / source.name
        if target.exists():
            raise InputError(f"out={target} exists already; give another file, so that nothing is overwritten")
        patch_file(source, target, patch, revert=revert)
        return target
    with whole_folder(out) as scratch:
        copy_folder(folder, scratch, shutil.ignore_patterns(source.name))
        patch_file(source, scratch / source.relative_to(folder), patch, revert=revert)
        if (scratch / EXPORTED).is_file():
            _tell_exported(scratch / EXPORTED, patch, revert)
    return out


def _tell_exported(file: Path, patch: Patch, revert: bool) -> None:
    """Thresholds of an exported classifier go with it: the patch's own with the patch, and the old ones back again."""
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        if revert:
            before = said.pop("patch", None)
            if before is not None:
                said["thresholds"] = before["thresholds_before"]
        else:
            known = said["thresholds"]
            said["patch"] = {"base_hash": patch.base_hash, "result_hash": patch.result_hash, "thresholds_before": known}
            said["thresholds"] = {name: patch.thresholds.get(name, value) for name, value in known.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file.name} beside the weights cannot be read ({error}); export the classifier again") from error
    write_json(file, said)


def _model_state(config: PatchInspectConfig, patch: Patch) -> tuple[dict[str, Tensor] | None, dict[str, str] | None]:
    """The model that was given, or the patched run folder itself, as the patch names its tensors; and which of both states it is in."""
    place = Path(config.patch)
    given = config.model
    if given is None and place.is_dir() and (place / "model.safetensors").is_file():
        given = config.patch
    if given is None:
        return None, None
    file = Path(given) / "model.safetensors" if _is_run(Path(given)) else find_weights(given).file
    if _is_run(Path(given)):
        check_run(Path(given))
    state = file_state(file, patch)
    here = state_fingerprint(state)
    words = "as delivered" if here == patch.base_hash else "patched" if here == patch.result_hash else "another model"
    return state, {"name": Path(given).name, "state": words}
