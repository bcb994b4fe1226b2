"""The scripts of DNE (github.com/ubc-tea/DNE-foundation-model-fairness), option by option.

What the scripts do was read from their text: option names, types and defaults, which options are read at all, and what is
set without an option. They feed images in [0, 1] to the encoder without normalising them, at 224 x 224, stretched.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from evenhand.config.options import nearest
from evenhand.config.published import (
    Call,
    PublishedScript,
    PublishedSystem,
    Values,
    mapped,
    refused,
    unneeded,
    without_effect,
)
from evenhand.errors import ConfigError

PREPARED = "prepared/chexpert"
FINDINGS = {"Pleural": "Pleural Effusion", "Pneumonia": "Pneumonia", "Lesion": "Lung Lesion", "Edema": "Edema"}
NETWORKS = {"vit_base_patch16": "vit_base_patch16_224", "vit_large_patch16": "vit_large_patch16_224",
            "vit_huge_patch14": "vit_huge_patch14_224"}
UNNORMALISED = {"model.mean": [0, 0, 0], "model.std": [1, 1, 1]}

NO_MIXING = "mixing is built there but never used"
EVAL_MODE = "the encoder is in evaluation mode"
FIXED_TRANSFORM = "its loader resizes and does nothing else"
FIXED_RATE = "its loop never changes the learning rate"
BY_TORCHRUN = "torchrun sets it"
PREPARED_ONCE = "images are decoded once, by `evenhand prepare`"
ON_ITS_OWN = "the same command goes on by itself after a kill"
NO_COUNTERPART = "mixing here has torchvision's own settings; leave it out"


def _network(value: str, call: Call) -> Values:
    if value not in NETWORKS:
        raise ConfigError(f"--model is {value!r}, but the scripts know {', '.join(NETWORKS)}{nearest(value, NETWORKS)}")
    return {"model.name": NETWORKS[value]}


def _weights(value: str, call: Call) -> Values:
    return {"model.pretrained": True} if value == "imgnet" else {"model.checkpoint": value or None}


def _finding(value: str | None, call: Call) -> Values:
    if value is not None and value not in FINDINGS:
        raise ConfigError(f"--disease is {value!r}, but the scripts know {', '.join(FINDINGS)}{nearest(value, FINDINGS)}")
    return {"data.labels": [FINDINGS[value]] if value else None}


def _accelerator(value: str, call: Call) -> Values:
    kind = {"cuda": "gpu", "cpu": "cpu", "mps": "mps"}.get(value.split(":")[0])
    if kind is None:
        raise ConfigError(f"--device is {value!r}, but must be cuda, cpu or mps")
    return {"trainer.accelerator": kind if "device" in call.typed else None}


def _folder(leaf: str) -> Callable[[str, Call], Values]:
    return lambda value, call: {"out": str(PurePosixPath(value) / leaf) if value else None}


def _fixed(method: Values) -> Callable[[Call], Values]:
    return lambda call: {
        **{name: value(call) if callable(value) else value for name, value in method.items()},
        "data.path": call.data or PREPARED, "data.attributes": ["sex"], **UNNORMALISED,
    }


def _mode(name: str) -> Callable[[Call], str]:
    return lambda call: f"{name}_{'released' if call.released else 'paper'}"


def _preparing(call: Call) -> tuple[str, ...]:
    if call.data is not None:
        return ()
    return (f"data.path: prepare CheXpert once (evenhand prepare chexpert RAW {PREPARED} --task dne --option uncertain=dne --resize "
            "stretch --attributes sex; unknown sex stays missing), or give --data",)


SHARED = (
    mapped("model", str, "vit_large_patch16", "model.name", to=_network),
    mapped("input_size", int, 224, "model.input_size",
            to=lambda value, call: {"model.input_size": [value, value] if value != 224 else None},
            why="the edit has the size of the prepared images"),
    mapped("finetune", str, "", "model.checkpoint", "model.pretrained", to=_weights, why="`imgnet` means timm's published weights"),
    mapped("global_pool", bool, True, "model.global_pool", to=lambda value, call: {"model.global_pool": "avg"}, why="always on there"),
    mapped("disease", str, None, "data.labels", to=_finding, why="against No Finding, as prepared"),
    mapped("device", str, "cuda", "trainer.accelerator", to=_accelerator, why="where typed; else a device is found by itself"),
    mapped("seed", int, 0, "seed"),
    unneeded("data_path", str, "/datasets01/imagenet_full_size/061417/", "the prepared data set takes its place (`data.path`)"),
    unneeded("csv_path", str, None, "the prepared data set takes its place (`data.path`)"),
    unneeded("dataset", str, "chestxray", "only `chexpert` works there; here any prepared data set"),
    unneeded("nb_classes", int, 1000, "classes and groups are counted in the data"),
    unneeded("log_dir", str, "./output_dir", "the history is in the run folder"),
    unneeded("eval_interval", int, 2, "validation rows are scored every epoch, test rows once at the end"),
    unneeded("start_epoch", int, 0, ON_ITS_OWN),
    refused("eval", bool, None, "there it leaves the weights out and trains all the same; use `evenhand evaluate`"),
    unneeded("dist_eval", bool, None, "every row is scored once, on any number of processes"),
    unneeded("num_workers", int, 10, PREPARED_ONCE),
    unneeded("pin_mem", bool, True, PREPARED_ONCE),
    unneeded("no_pin_mem", bool, None, PREPARED_ONCE),
    unneeded("world_size", int, 1, BY_TORCHRUN),
    unneeded("local_rank", int, -1, BY_TORCHRUN),
    unneeded("dist_on_itp", bool, None, BY_TORCHRUN),
    unneeded("dist_url", str, "env://", BY_TORCHRUN),
    without_effect("loss_func", str, None),
)

EDIT_SHARED = (
    *SHARED,
    mapped("lambda_1", float, 1.0, "method.attribute_weight"),
    mapped("lambda_reg", float, 0.01, "method.norm_weight"),
    without_effect("accum_iter", int, 1, "it is printed, not used"),
    without_effect("drop_path", float, 0.1, EVAL_MODE),
    without_effect("vit_dropout_rate", float, 0.1, EVAL_MODE),
    without_effect("clip_grad", float, None),
    without_effect("smoothing", float, 0.1, NO_MIXING),
    without_effect("mixup", float, 0.0, NO_MIXING),
    without_effect("cutmix", float, 0.0, NO_MIXING),
    without_effect("cutmix_minmax", float, None, NO_MIXING, many=True),
    without_effect("mixup_prob", float, 1.0, NO_MIXING),
    without_effect("mixup_switch_prob", float, 0.5, NO_MIXING),
    without_effect("mixup_mode", str, "batch", NO_MIXING),
    without_effect("dne", bool, None),
)


def _head_folder(value: str, call: Call) -> Values:
    return {"attribute_head": str(PurePosixPath(value).with_suffix(""))}


def _query(value: Any, call: Call) -> Values:
    """Images of a query (two batches on each process), rounds, draws and the images they come to."""
    rounds, draws = call.values["epochs"], call.values["sampled_steps"]
    images = 2 * call.values["batch_size"] * call.processes
    queries = rounds * (2 * draws + (0 if call.released else 1))
    return {"method.query_images": images, "method.rounds": rounds, "method.draws": draws, "method.budget": queries * images}


def _one_of_query(name: str) -> Callable[[Any, Call], Values]:
    return lambda value, call: {key: found for key, found in _query(value, call).items() if key in (name, "method.budget")}


def _edit(value: Any, call: Call) -> Values:
    if not call.values["adddne"]:
        return {"edit": None}
    if not call.values["dne_path"]:
        raise ConfigError("--adddne needs --dne_path FILE: the edit that is put on every image")
    return {"edit": call.values["dne_path"]}


def _only_transformed(ours: str, off: Any) -> Callable[[Any, Call], Values]:
    return lambda value, call: {ours: value if call.values["build_timm_transform"] else off}


def _smoothing(value: float, call: Call) -> Values:
    return {"trainer.label_smoothing": value if call.values["mixup"] > 0 or call.values["cutmix"] > 0 else None}


def _disease_fixed(call: Call) -> Values:
    constant = {"trainer.schedule": "constant", "trainer.warmup_epochs": 0.0, "trainer.rand_augment": ""} if call.released else {}
    chosen = {"experiment": "dne_finetune", "method.freeze": "backbone", "trainer.monitor": "last", "audit.threshold": "0.5"}
    return {**_fixed(chosen)(call), **constant}


def _disease_notes(call: Call) -> tuple[str, ...]:
    return (
        "the script freezes everything but the head (method.freeze=backbone); leave that option out to tune the whole network",
        "the script decides by the larger of two outputs (audit.threshold=0.5) and keeps the last epoch (trainer.monitor=last); "
        "leave both out for a threshold and an epoch chosen on validation rows",
        *_preparing(call),
    )


HEAD = PublishedScript(
    "train_saCls.py", "the attribute head: a linear probe for sex", "edit head", (),
    _fixed({"method": _mode("dne"), "model.name": "vit_base_patch16_224", "model.global_pool": "avg", "seed": 1, "out": "sa_cls",
            "model.checkpoint": "./checkpoints/vit-b_CXR_0.5M_mae_pretrain.pth"}),
    lambda call: ("the script scores the test rows after every epoch; here they are scored once, at the end", *_preparing(call)),
)
WHITE_BOX = PublishedScript(
    "train_dne.py", "the edit, with the encoder's gradient", "edit train",
    (
        mapped("epochs", int, 50, "method.epochs"),
        mapped("batch_size", int, 32, "method.batch_size", to=lambda value, call: {"method.batch_size": value * call.processes},
                why="times the number of processes"),
        mapped("output_dir", str, "./output_dir", "out", to=_folder("edit"), why="a folder of its own in it"),
        mapped("sa_path", str, "./sa_cls.pt", "attribute_head", to=_head_folder, why="the folder of `evenhand edit head`, without .pt"),
        *EDIT_SHARED,
    ),
    _fixed({"method": _mode("dne")}),
    _preparing,
)
BLACK_BOX = PublishedScript(
    "train_dne_gezo.py", "the edit, by queries alone", "edit train",
    (
        mapped("epochs", int, 50, "method.rounds", "method.budget", to=_one_of_query("method.rounds"), why="an epoch is one round"),
        mapped("batch_size", int, 32, "method.query_images", "method.budget", to=_one_of_query("method.query_images"),
                why="a query is two batches on each process"),
        mapped("sampled_steps", int, 10, "method.draws", "method.budget", to=_one_of_query("method.draws")),
        mapped("init_step", float, 0.01, "method.step", why="in pixel units"),
        mapped("momentum", float, 0.9, "method.momentum", why="the script accepts whole numbers only"),
        mapped("output_dir", str, "./output_dir", "out", to=_folder("edit"), why="a folder of its own in it"),
        mapped("sa_path", str, "./sa_cls.pt", "attribute_head", to=_head_folder, why="the folder of `evenhand edit head`, without .pt",
                unread="it always reads ./sa_cls.pt"),
        *EDIT_SHARED,
    ),
    lambda call: _fixed({"method": _mode("gezo")} | ({"attribute_head": "sa_cls"} if call.released else {}))(call),
    _preparing,
)
DISEASE = PublishedScript(
    "finetune_fm.py", "the disease head, with the edit on every image", "train",
    (
        mapped("epochs", int, 50, "trainer.max_epochs"),
        mapped("batch_size", int, 32, "data.batch_size", to=lambda value, call: {"data.batch_size": value * call.processes},
                why="times the number of processes"),
        mapped("accum_iter", int, 1, "trainer.accumulate"),
        mapped("output_dir", str, "./output_dir", "out", to=_folder("disease"), why="a folder of its own in it"),
        mapped("adddne", bool, None, "edit", to=_edit),
        mapped("dne_path", str, None, "edit", to=_edit, why="with --adddne; a published file or edit.safetensors"),
        *SHARED,
        mapped("cls_token", bool, None, "model.global_pool", to=lambda value, call: {"model.global_pool": "token" if value else None}),
        mapped("colab", bool, None, "model.global_pool", to=lambda value, call: {"model.global_pool": "token" if value else None}),
        mapped("drop_path", float, 0.1, "model.drop_path"),
        mapped("vit_dropout_rate", float, 0.0, "model.drop_rate", why="there in the blocks, here before the head"),
        mapped("weight_decay", float, 0.05, "trainer.weight_decay"),
        mapped("clip_grad", float, None, "trainer.clip_norm"),
        mapped("lr", float, None, "trainer.lr"),
        mapped("blr", float, 1e-3, "trainer.base_lr", why="of 256 images, in both"),
        mapped("layer_decay", float, 0.75, "trainer.layer_decay", why="acts where more than the head is tuned"),
        mapped("min_lr", float, 1e-6, "trainer.min_lr", unread=FIXED_RATE),
        mapped("warmup_epochs", int, 5, "trainer.warmup_epochs", unread=FIXED_RATE),
        mapped("fixed_lr", bool, None, "trainer.schedule", to=lambda value, call: {"trainer.schedule": "constant" if value else None},
                unread=FIXED_RATE),
        mapped("build_timm_transform", bool, None, "data.augment", "trainer.rand_augment", "trainer.random_erasing",
                to=lambda value, call: {"data.augment": "published_dne" if value else None}, unread=FIXED_TRANSFORM),
        mapped("aa", str, "rand-m9-mstd0.5-inc1", "trainer.rand_augment", to=_only_transformed("trainer.rand_augment", ""),
                why="with --build_timm_transform", unread=FIXED_TRANSFORM),
        mapped("reprob", float, 0.25, "trainer.random_erasing", to=_only_transformed("trainer.random_erasing", 0.0),
                why="with --build_timm_transform", unread=FIXED_TRANSFORM),
        mapped("mixup", float, 0.0, "trainer.mixup"),
        mapped("cutmix", float, 0.0, "trainer.cutmix"),
        mapped("smoothing", float, 0.1, "trainer.label_smoothing", to=_smoothing, why="acts with mixup or cutmix only"),
        refused("cutmix_minmax", float, None, NO_COUNTERPART, many=True),
        refused("mixup_prob", float, 1.0, NO_COUNTERPART),
        refused("mixup_switch_prob", float, 0.5, NO_COUNTERPART),
        refused("mixup_mode", str, "batch", NO_COUNTERPART),
        refused("repeated-aug", bool, None, "there every image is drawn several times a batch; leave it out"),
        refused("optimizer", str, "adamw", "the script stops without an optimiser for any other"),
        unneeded("resume", str, "", ON_ITS_OWN),
        without_effect("color_jitter", float, None, FIXED_TRANSFORM),
        without_effect("remode", str, "pixel", FIXED_TRANSFORM),
        without_effect("recount", int, 1, FIXED_TRANSFORM),
        without_effect("resplit", bool, None),
        without_effect("ThreeAugment", bool, None),
        without_effect("src", bool, None),
        without_effect("aug_strategy", str, "default"),
        without_effect("norm_stats", str, None, FIXED_TRANSFORM),
        without_effect("train_list", str, None),
        without_effect("val_list", str, None),
        without_effect("test_list", str, None),
        without_effect("checkpoint_type", str, None),
        without_effect("lambda_reg", float, 0.01),
    ),
    _disease_fixed,
    _disease_notes,
)

DNE = PublishedSystem("DNE", "https://github.com/ubc-tea/DNE-foundation-model-fairness", (HEAD, WHITE_BOX, BLACK_BOX, DISEASE))
