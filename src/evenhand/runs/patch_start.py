"""What a patch starts from: the finished classifier as it was delivered, and the rows of the external set.

The rule for rows: patients of the external set are dealt into those that are learnt from (70%) and those that thresholds are
chosen and training is stopped on (30%, ``data.val_fraction``), every cell of groups and label in the same shares, by the run's
seed. Test rows of the data set stay as they are. Rows that the classifier was trained on are never part of the external set,
unless they are asked for by name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from evenhand.config.patch_methods import PatchMakeConfig, PatchMethodConfig
from evenhand.config.schema import DataConfig, ModelConfig
from evenhand.data.splits import redraw_validation
from evenhand.edits.artifact import StoredEdit, check_grid
from evenhand.errors import ConfigError, InputError, MethodError
from evenhand.methods.cells import groups_of
from evenhand.methods.fitting import label_columns
from evenhand.methods.patching.setting import check_finite
from evenhand.methods.predictors import HeadPredictor, ModelPredictor
from evenhand.models import ImageClassifier, find_weights
from evenhand.models.backbones import AUTO_NAME
from evenhand.models.finished import load_finished, refuse_probabilities
from evenhand.models.networks import forked
from evenhand.models.parameters import state_fingerprint
from evenhand.patches.artifact import network_state
from evenhand.runs.export import put_head
from evenhand.runs.folder import RunFolder
from evenhand.runs.results import Loaded, load_predictor
from evenhand.runs.task import Rows, choose, read_rows

EXTERNAL = ("train", "val")


@dataclass(frozen=True)
class Delivered:
    """The classifier as it was delivered.

    Attributes:
        model: with its own head, in evaluation mode, on the CPU.
        network: how the network is built without its weights.
        dtypes: tensor of the network -> type in which it was delivered, where that is not float32.
        hash: of the network, as a patch names it.
        source: where it came from, in words.
        edit: the edit in front of it, None where there is none.
        notes: sentences for the report.
    """

    model: ImageClassifier
    network: ModelConfig
    dtypes: dict[str, torch.dtype]
    hash: str
    source: str
    edit: StoredEdit | None = None
    notes: tuple[str, ...] = ()


def start_of(config: PatchMakeConfig) -> RunFolder | None:
    """The run that ``model=`` names, None where it names a checkpoint.

    Raises:
        ConfigError: ``model=`` is missing, or names a server.
        InputError: the path does not exist, or is a folder that holds neither.
    """
    if config.model.url:
        raise ConfigError("a patch changes weights, but model.url is a server that gives embeddings only; give the classifier with model=")
    if not config.model.checkpoint:
        raise ConfigError("a patch needs a finished classifier; give model=RUN (a run folder that trained one) or model=CHECKPOINT")
    path = Path(config.model.checkpoint)
    if path.is_dir() and ((path / "run.json").exists() or any(path.glob("seed=*/run.json"))):
        return RunFolder(path)
    return None


def external_rows(config: PatchMakeConfig, seed: int, start: RunFolder | None) -> tuple[Rows, tuple[str, ...]]:
    """The rows of the external set as ``train`` and ``val``, those of the data set's test split as ``test``; and what to say of it.

    Args:
        config: the options.
        seed: of the draw.
        start: the run that the classifier comes from.

    Raises:
        InputError: no rows are left, labels are not the classifier's, or a cell of groups and label is empty.
        MethodError: an attribute has one group.
    """
    info = start.info if start is not None else {}
    labels = config.data.labels or info.get("labels")
    data = replace(config.data, labels=list(labels) if labels else None)
    rows = read_rows(data, seed, redraw=False)
    if info:
        _check_labels(rows, info)
    same = info.get("data_hash") == rows.data.fingerprint
    asked = config.external
    before = rows.split
    if same and info.get("split_redrawn"):
        drawn = DataConfig(**{**info["config"]["data"], "path": config.data.path, "missing": config.data.missing})
        before = read_rows(drawn, int(info["seed"]), redraw=True).split
    known = tuple(sorted({str(name) for name in before} - {"dropped"}))
    names = [choose([name], known, "split")[0] for name in asked] if asked else ["val"] if same else list(EXTERNAL)
    if "test" in names:
        raise ConfigError("external=test would learn from the rows that the patch is tested on; name other splits")
    inside = np.isin(before.astype(str), names)
    if not inside.any():
        where = f"{rows.data.root} has none in split {' or '.join(names)}"
        raise InputError(f"the external set has no rows: {where}; name others as external=…")
    split = np.where(inside, "train", "test").astype("<U5")
    split = redraw_validation(split, rows.data.patients, _strata(rows, config.method), config.data.val_fraction, seed)
    final = np.where(inside, split, np.where(before == "test", "test", "other")).astype(object)
    made = Rows(rows.data, rows.labels, rows.attributes, rows.y, rows.groups, final)
    notes = [_said(made, names, config.data.val_fraction)]
    if same:
        notes.append(
            f"the classifier was trained on this data set; the external set is its split {' and '.join(names)}"
            + ("" if "train" not in names else ", which holds the rows that it was trained on, so that gaps may look smaller than they are")
        )
    return made, (*notes, *_check_cells(made, config.method))


def _check_labels(rows: Rows, info: dict[str, Any]) -> None:
    now = (list(rows.labels), list(rows.data.spec.classes))
    then = (list(info["labels"]), list(info["classes"]))
    if now != then:
        shown = [", ".join(classes or labels) for labels, classes in (then, now)]
        raise InputError(f"the classifier gives {shown[0]}, but the data set was asked for {shown[1]}; prepare it with the same labels")


def _strata(rows: Rows, method: PatchMethodConfig) -> npt.NDArray[np.int64]:
    """A code of every cell of groups and label, in the same shares on both sides of the draw."""
    y = rows.y if rows.y.ndim == 1 else (np.nan_to_num(rows.y, nan=-1.0).max(axis=1))
    code = np.nan_to_num(y, nan=-1).astype(np.int64) + 1
    for name in bias_attributes(rows, method):
        code = code * (len(rows.groups[name].keys) + 1) + rows.groups[name].codes + 1
    return np.asarray(code)


def bias_attributes(rows: Rows, method: PatchMethodConfig) -> tuple[str, ...]:
    """The attributes whose gaps a patch narrows.

    Raises:
        MethodError: the data set has none.
        InputError: one that the data set does not have.
    """
    if not rows.attributes:
        raise MethodError("a patch needs a sensitive attribute, but the data set has none; set data.attributes")
    return choose(method.attributes, rows.attributes, "attribute") if method.attributes else rows.attributes[:1]


def _said(rows: Rows, names: list[str], fraction: float) -> str:
    counts = {name: (int((rows.split == name).sum()), len(np.unique(rows.data.patients[rows.split == name]))) for name in EXTERNAL}
    (n_train, p_train), (n_val, p_val) = counts["train"], counts["val"]
    return (
        f"external set: split {' and '.join(names)}, dealt out by patient within cells of groups and label: {1 - fraction:.0%} learnt from "
        f"({n_train} images of {p_train} patients), {fraction:.0%} for thresholds and stopping ({n_val} images of {p_val} patients)"
    )


def _check_cells(rows: Rows, method: PatchMethodConfig) -> list[str]:
    """Refuse rows from which no gap can be learnt; say which groups are left out where two others are whole."""
    notes, train = [], rows.take("train")
    classes = tuple(rows.data.spec.classes) or ("0", "1")
    kind: Any = rows.kind
    for name in bias_attributes(rows, method):
        groups = groups_of(train, name)
        for label, (codes, labelled) in zip(rows.labels, label_columns(train.y, kind), strict=True):
            known = labelled & (groups.codes >= 0)
            table = np.zeros((len(groups.keys), max(len(classes), 2)), dtype=np.int64)
            np.add.at(table, (groups.codes[known], codes[known]), 1)
            seen = table.sum(axis=1) > 0
            whole = (table > 0).all(axis=1)
            at = [(g, c) for g, c in zip(*np.nonzero(table == 0), strict=True) if seen[g]]
            empty = [f"no row with {name}={groups.keys[g]} and {label}={classes[c]}" for g, c in at]
            if empty and int(whole.sum()) < 2:
                raise InputError(
                    f"the rows that are learnt from lack {len(empty)} cells of '{name}' and '{label}', so that no gap can be measured; "
                    "give a larger external set, or merge groups (evenhand prepare --bins)", empty
                )
            notes += [f"{text}: this group counts only in the rates that it has" for text in empty]
    return notes


def open_delivered(config: PatchMakeConfig, rows: Rows, start: RunFolder | None) -> Delivered:
    """The classifier with its head, from a run or a checkpoint.

    Raises:
        InputError: the run decides by group, weights are NaN or infinite, or the classifier gives probabilities already.
        CheckpointError: the checkpoint has no head of known name, or does not fit its architecture.
        ConfigError: batches of one image with batch norms that learn, or options of a checkpoint where there is a run.
    """
    found = _from_checkpoint(config, rows) if start is None else _from_run(start)
    if start is not None:
        _check_own(config, start, found.model.name)
    check_finite(found.model)
    refuse_probabilities(found.model)
    norms = any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in found.model.modules())
    if norms and config.data.batch_size == 1 and not config.method.hold_norms:
        raise ConfigError(
            f"data.batch_size is 1, but {found.model.name} has batch norms, which need two images to learn from; set data.batch_size=2 "
            "or more, or method.hold_norms=true"
        )
    if found.edit is not None:
        check_grid(found.edit, rows.data.cache.shape)
    return found


def _check_own(config: PatchMakeConfig, start: RunFolder, name: str) -> None:
    """Refuse words on a checkpoint where the classifier is a run, which knows its network and its head.

    Raises:
        ConfigError: a head is named, or another network.
    """
    asked = config.model.name
    if config.model.head:
        what = f"model.head={config.model.head} says where a checkpoint's head is"
        raise ConfigError(f"{what}, but model={start.root} is a run; leave it out")
    if asked not in (AUTO_NAME, ModelConfig().name) and asked.split(".")[0] != name.split(".")[0]:
        raise ConfigError(f"model.name={asked}, but the run {start.root} is a {name}; leave model.name out, or give the run of a {asked}")


def _from_checkpoint(config: PatchMakeConfig, rows: Rows) -> Delivered:
    n_outputs = len(rows.data.spec.classes) or len(rows.labels)
    found = load_finished(config.model, n_outputs, head=config.model.head, seed=config.seed)
    name = find_weights(str(config.model.checkpoint)).label
    return Delivered(found.model, found.config, found.dtypes, _hash(found.model, found.dtypes), name, notes=found.notes)


def _from_run(start: RunFolder) -> Delivered:
    loaded = load_predictor(start)
    predictor = loaded.predictor
    notes: tuple[str, ...] = ()
    if isinstance(predictor, ModelPredictor) and isinstance(predictor.model, ImageClassifier):
        model = predictor.model
    elif isinstance(predictor, HeadPredictor):
        model = _joined(loaded, predictor)
        notes = (
            f"{start.root.name} is a head on a frozen encoder; both were joined to one network, which is what the patch belongs to "
            "(evenhand export writes it)",
        )
    else:
        raise InputError(
            f"the run {start.root} decides with thresholds per group, which are no part of a network; patch the run of linear_probe or "
            "finetune instead"
        )
    model = model.cpu().eval()
    dtypes = {} if notes else _stored_types(start, model)
    return Delivered(model, _network_of(loaded, model), dtypes, _hash(model, dtypes), str(start.root), loaded.edit, notes)


def _stored_types(start: RunFolder, model: ImageClassifier) -> dict[str, torch.dtype]:
    """Types in the file of a run's network, where they are others than in memory: a patched run has those of its checkpoint."""
    from safetensors.torch import load_file

    stored, own = network_state(load_file(start.root / "model.safetensors")), network_state(model)
    return {name: value.dtype for name, value in stored.items() if value.dtype != own[name].dtype}


def _joined(loaded: Loaded, predictor: HeadPredictor) -> ImageClassifier:
    """The frozen encoder with the head as its classification layer."""
    model = loaded.encoder.classifier
    network: Any = model.network
    with forked(loaded.config.seed, "head"):
        network.reset_classifier(len(predictor.bias))
    put_head(model, torch.as_tensor(predictor.weight), torch.as_tensor(predictor.bias))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.with_edit(loaded.edit.edit if loaded.edit else None)


def _network_of(loaded: Loaded, model: ImageClassifier) -> ModelConfig:
    """How a run's network is built without where it started from."""
    config = loaded.config.model
    plain = ModelConfig(**{name: getattr(config, name) for name in ModelConfig.__dataclass_fields__})
    kept = plain.checkpoint if plain.checkpoint and Path(plain.checkpoint).exists() else None
    kept = kept if kept and find_weights(kept).model_args else None
    return replace(plain, checkpoint=kept, pretrained=False, name=model.name, input_size=list(model.input_size))


def _hash(model: ImageClassifier, dtypes: dict[str, torch.dtype]) -> str:
    return state_fingerprint(as_delivered(network_state(model), dtypes))


def as_delivered(state: dict[str, torch.Tensor], dtypes: dict[str, torch.dtype]) -> dict[str, torch.Tensor]:
    """A network's state with every tensor in the type in which it was delivered."""
    return {name: value.to(dtypes[name]) if name in dtypes else value for name, value in state.items()}
