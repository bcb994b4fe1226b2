"""`evenhand export`: write a finished run's classifier as a folder that timm loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from evenhand.config.schema import ExportConfig
from evenhand.edits.artifact import StoredEdit, save_edit
from evenhand.errors import InputError
from evenhand.files import whole_folder, write_atomic, write_text
from evenhand.methods.predictors import HeadPredictor, ModelPredictor
from evenhand.models import ImageClassifier
from evenhand.runs.edited import EDIT_FILE
from evenhand.runs.folder import RunFolder, write_json
from evenhand.runs.results import load_predictor, stored_thresholds

README = """# A classifier of edited images

This network was trained on images that went through the edit in `{file}`. timm loads the network alone: it does not apply the
edit, and without it the scores are others. Put the edit on every image first, on its grid of {c} x {h} x {w} (channels, height,
width), before resizing and normalising:

    import evenhand as eh
    edit = eh.load_edit("{file}").edit      # images: float (n, {c}, {h}, {w}) in [0, 1]
    scores = network(normalise(edit(images)))

or make edited copies of image files: `evenhand edit apply edit={file} images=DIR out=DIR`.
"""


def export(config: ExportConfig) -> Path:
    """Write config.json and model.safetensors in timm's local-directory layout, and how to use them in evenhand.json.

    A head on frozen embeddings becomes the network's own classification layer, so that
    ``timm.create_model("local-dir:FOLDER")`` gives the same logits on normalised images. The edit of a run on edited images is
    put beside it as edit.safetensors, with a README.md that says so: timm does not apply it.

    Args:
        config: ``model`` is a run folder, ``out`` the folder to write.

    Returns:
        The folder.

    Raises:
        InputError: no finished run, a method whose decision needs the attribute (per-group thresholds: export the
            probe instead), or an ``out`` that is not empty.

    Example:
        >>> import evenhand as eh  # doctest: +SKIP
        >>> eh.export(eh.compose("export", ["model=runs/probe", "out=exported"]))  # doctest: +SKIP
    """
    run, out = RunFolder(config.model), Path(config.out)
    if out.exists() and any(out.iterdir()):
        raise InputError(f"out={out} is not empty; give an empty or a new folder")
    loaded = load_predictor(run)
    predictor = loaded.predictor
    if isinstance(predictor, HeadPredictor):
        model = loaded.encoder.classifier
        network: Any = model.network
        network.reset_classifier(len(predictor.bias))
        put_head(model, torch.as_tensor(predictor.weight), torch.as_tensor(predictor.bias))
    elif isinstance(predictor, ModelPredictor) and isinstance(predictor.model, ImageClassifier):
        model = predictor.model
    else:
        raise InputError(
            f"the run {run.root} decides with per-group thresholds, which timm's layout cannot hold; export a linear_probe run instead"
        )
    with whole_folder(out) as scratch:
        _write(model, run, scratch, loaded.edit)
    return out


def put_head(model: ImageClassifier, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Copy an affine map on embeddings into the network's classification layer.

    Raises:
        InputError: the network has no single classification layer of the right width.
    """
    network: Any = model.network
    layer = network.get_classifier()
    if not isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)) or layer.weight.shape[:2] != weight.shape or layer.bias is None:
        raise InputError(f"{model.name} has no linear classification layer of width {weight.shape[1]}; its head cannot be exported")
    with torch.no_grad():
        layer.weight.copy_(weight.reshape(layer.weight.shape))
        layer.bias.copy_(bias)


def _write(model: ImageClassifier, run: RunFolder, folder: Path, edit: StoredEdit | None) -> None:
    from timm.models import save_for_hf

    info: dict[str, Any] = run.info
    names = info["classes"] or info["labels"]
    base = dict(getattr(model.network, "pretrained_cfg", None) or {})
    seen = {
        "input_size": [model.channels, *model.input_size],
        "mean": [float(value) for value in model.mean.flatten()],
        "std": [float(value) for value in model.std.flatten()],
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "fixed_input_size": False,
    }
    described = {"pretrained_cfg": {**base, **seen}, "label_names": names}
    save_for_hf(model.network, str(folder), model_config=described, safe_serialization=True)
    facts = {
        "schema": "evenhand.export/1",
        "architecture": model.name,
        "kind": info["kind"],
        "outputs": names,
        "score": "softmax" if info["kind"] == "multiclass" else "sigmoid",
        "thresholds": {} if info["classes"] else stored_thresholds(run),
        "input": "float32 in [0, 1], one channel repeated to three, resized to input_size, then (x - mean) / std",
        "run": {key: info[key] for key in ("method", "seed", "data_hash", "model_hash", "versions")},
    }
    if edit is not None:
        c, h, w = edit.edit.grid
        facts["edit"] = {"file": EDIT_FILE, "hash": edit.fingerprint, "kind": edit.edit.kind, "grid": [c, h, w]}
        then = facts["input"].split(", ", 1)[1]
        facts["input"] = f"float32 in [0, 1] of shape (n, {c}, {h}, {w}), through {EDIT_FILE} first; then {then}"
        write_atomic(folder / EDIT_FILE, save_edit(edit.edit, edit.facts))
        write_text(folder / "README.md", README.format(file=EDIT_FILE, c=c, h=h, w=w))
    write_json(folder / "evenhand.json", facts)
