"""The scripts of BMFT (github.com/vios-s/BMFT) and SWiFT (github.com/vios-s/SWiFT), option by option.

What the scripts do was read from their text: option names, types and defaults, which options are read at all, and what is set
without an option. The training of starting models is a Hydra template, whose options are typed as ``name=value``; both
repositories have it, with other epochs and batch sizes for some networks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from evenhand.config.options import nearest
from evenhand.config.patch_methods import BIAS_TERMS
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

ARCHITECTURES = {"densenet": "densenet161", "resnet101": "resnet101", "resnext101": "resnext101_32x8d", "inception": "inception_v3",
                 "enet": "efficientnet_b3"}
SWIFT_ARCHITECTURES = {**ARCHITECTURES, "densenet": "densenet121", "resnet18": "resnet18", "resnet34": "resnet34", "resnet50": "resnet50",
                       "swin_v2_s": "swinv2_small_window8_256", "maxvit": "vit_base_patch16_224"}
"""Published name -> timm's; the classes of the two repositories build other networks under one name."""

KINDS = {"Baseline": "none", "FullFT_RW": "full_reweighted", "FullFT_Reg": "full_regularised", "FullFT_RWReg": "full_both"}
IMPAIR_REPAIR = "ImpairRepair"
MASKS = {"fisher": "fisher", "grad": "gradient", "gradient": "gradient", "random": "random", "all": "all"}
TASKS: dict[str, Values] = {
    "skin": {"method.optimizer": "sgd", "model.input_size": [256, 256]},
    "xray": {"method.optimizer": "adam", "model.input_size": [224, 224]},
}
EXTERNAL = "prepared/external"
AS_PUBLISHED: Values = {
    "model.mean": [0.485, 0.456, 0.406], "model.std": [0.229, 0.224, 0.225], "data.val_fraction": 0.0, "audit.threshold": "0.5",
}

# published experiment -> (ours, epochs, images a batch); BMFT's numbers where both repositories have one
EXPERIMENTS: dict[str, tuple[str, int, int]] = {
    "resnet50": ("isic_resnet50", 20, 128),
    "resnet101": ("isic_resnet101", 70, 128),
    "resnext101": ("isic_resnext101", 50, 64),
    "densenet": ("isic_densenet161", 50, 64),
    "efficientB3": ("isic_efficientnet_b3", 50, 64),
    "inception": ("isic_inception_v3", 50, 64),
    "resnet18": ("isic_resnet18", 200, 256),
    "resnet34": ("isic_resnet34", 200, 256),
    "swin_v2_s": ("isic_swin_v2_s", 200, 96),
    "maxvit": ("isic_maxvit", 201, 96),
    "resnet18_full_finetune_5_epochs": ("isic_resnet18", 51, 128),
}
SWIFTS = {"resnet50": "100 epochs on MIMIC", "densenet": "200 epochs of 128 on MIMIC", "efficientB3": "200 epochs of 128 on MIMIC",
          "resnet101": "200 epochs of 64", "resnext101": "200 epochs of 64"}
"""What SWiFT's repository has for experiments that BMFT's has too."""
DATA = {"isic": "prepared/isic", "isic_balanced": "prepared/isic", "isic_val": "prepared/isic_val", "fit17k": "prepared/fitzpatrick17k",
        "atlas": "prepared/atlas", "mimic": "prepared/mimic"}
TRAINERS = ("cpu", "gpu", "ddp", "mps")
DEBUG = {"default": "debug", "fdr": "debug_limit", "limit": "debug_limit", "overfit": "debug_overfit", "profiler": "debug_profiler"}
LOGGERS = ("csv", "tensorboard", "mlflow")

PREPARED_ONCE = "images are decoded once, by `evenhand prepare`"
IN_RUN = "the run folder holds it"
ON_ITS_OWN = "the same command goes on by itself after a kill"
ONE_SET = "prepare both tables as one data set: rows of this one in the split test, those of --csv-dir in train"
NUMBER = "its optimisers are given the number"
NEVER_ACTS = "it is added after the gradient was taken, and both steps leave it out"
FIXED = "main passes its own"
FOLDERS = "folders are those of the prepared data set and of `out`"


def _among(option: str, value: Any, known: Any) -> Any:
    if value not in known:
        raise ConfigError(f"{option} is {value!r}, but must be one of {', '.join(known)}{nearest(str(value), known)}")
    return known[value] if isinstance(known, dict) else value


def _said(known: dict[str, str]) -> str:
    return ", ".join(f"`{published}`: `{ours}`" for published, ours in known.items())


def _arch(known: dict[str, str]) -> Callable[[Any, Call], Values]:
    return lambda value, call: {"model.name": _among("--arch", value, known)}


def _typed(option: str, ours: str) -> Callable[[Any, Call], Values]:
    """Our option where the published one was typed: its default does nothing there."""
    return lambda value, call: {ours: value if option in call.typed else None}


def _left_out(value: float, call: Call) -> Values:
    """There the share of rows that step one keeps, those below that quantile; here the share left out."""
    return {"method.subset_ratio": round(1.0 - value, 9) if "subset-ratio" in call.typed else None}


def _table(value: str, call: Call) -> Values:
    return {"data.path": call.data or (f"prepared/{PurePosixPath(value).stem}" if value else EXTERNAL)}


def _out(value: str, call: Call) -> Values:
    return {"out": str(PurePosixPath(call.values["output-dir"]) / PurePosixPath(call.values["save-path"]).stem)}


def _algo(value: str, call: Call) -> Values:
    return {} if value == IMPAIR_REPAIR else {"method.kind": _among("--algo", value, {**KINDS, IMPAIR_REPAIR: ""})}


def _mask_type(value: str, call: Call) -> Values:
    if value == "group":
        raise ConfigError("--mask-type=group has no counterpart: it divides one group's importance by another's; use fisher")
    return {"method.mask_type": _among("--mask-type", value, MASKS)}


def _task(value: str, call: Call) -> Values:
    return _among("--task", value, TASKS)  # type: ignore[no-any-return]


def _bmft_fixed(call: Call) -> Values:
    full = call.values["algo"] in KINDS
    return _fixed("comparison_paper" if full else f"bmft_{'released' if call.released else 'paper'}", call)


def _swift_fixed(call: Call) -> Values:
    return _fixed(f"swift_{'released' if call.released else 'paper'}", call)


def _fixed(mode: str, call: Call) -> Values:
    seed: Values = {"seed": 42} if call.released else {}
    return {"method": mode, "data.path": call.data or EXTERNAL, **AS_PUBLISHED, **seed}


def _preparing(call: Call) -> tuple[str, ...]:
    if call.data is not None:
        return ()
    return ("data.path: prepare the tables of --csv-dir (split train) and --test-csv-dir (split test) once, as one data set with the "
            "column of --attr (evenhand prepare csv, --size 256; a public set alone: evenhand prepare --list), or give --data",)


def _patch_notes(call: Call) -> tuple[str, ...]:
    notes = (
        "every image of --csv-dir is learnt from and 0.5 is the threshold (data.val_fraction=0, audit.threshold=0.5); leave both out to "
        "hold out 30% of the patients for thresholds and stopping",
        "the script flips the images of step two; data.augment=dermoscopy augments those of both steps",
        "the released scripts write predictions only; here the test rows are judged before and after",
    )
    more = ("with --num-attr multi the script keeps the groups of the largest and the smallest AUC; here every group counts, by its worst "
            "pair",) if call.values.get("num-attr") == "multi" else ()
    return (*notes, *more, *_preparing(call))


def _shared(arch: str, known: dict[str, str]) -> tuple[Any, ...]:
    return (
        mapped("arch", str, arch, "model.name", to=_arch(known), why=_said(known)),
        mapped("attr", str, "skin_attribute", "data.attributes", to=lambda value, call: {"data.attributes": [value]},
               why="the column of the prepared table"),
        mapped("bias", str, "eodds", "method.bias", to=lambda value, call: {"method.bias": _among("--bias", value, BIAS_TERMS)}),
        mapped("seed", int, 0, "seed", unread="it is always 42"),
        mapped("batch-size", int, 64, "data.batch_size"),
        mapped("lr-base", float, 0.001, "method.repair_lr"),
        mapped("lr-forget", float, 0.0001, "method.impair_lr"),
        mapped("alpha", float, 0.05, "method.l1", to=_typed("alpha", "method.l1"), why="where typed", unread=NEVER_ACTS),
        mapped("momentum", float, 0.9, "method.momentum", unread=NUMBER),
        mapped("weight-decay", float, 0.0005, "method.weight_decay", unread=NUMBER),
        mapped("unlearn-epochs", int, 10, "method.impair_epochs"),
        mapped("n-epochs", int, 10, "method.repair_epochs"),
        mapped("mask-type", str, "fisher", "method.mask_type", to=_mask_type, unread=FIXED),
        mapped("subset-ratio", float, 0.1, "method.subset_ratio", to=_left_out, why="where typed: there the share of rows that step one "
               "keeps, here the share left out, so that 0.1 becomes 0.9", unread="main passes subset=0"),
        mapped("csv-dir", str, "", "data.path", to=_table, why="the prepared data set of its name"),
        mapped("model-dir", str, "./results/weights", "model.checkpoint", why="the checkpoint of a training"),
        mapped("output-dir", str, "./results/debias", "out", to=_out, why="with --save-path, a folder of its own in it"),
        unneeded("test-csv-dir", str, "./data/skin/csv/fitzpatrick17k.csv", ONE_SET),
        mapped("save-path", str, "output.csv", "out", to=_out, why="with --output-dir"),
        unneeded("image-dir", str, "./data/images", FOLDERS),
        unneeded("log-dir", str, "./results/logs", FOLDERS),
        unneeded("num-workers", int, 2, PREPARED_ONCE),
        unneeded("pin-memory", bool, None, PREPARED_ONCE),
        unneeded("out-dim", int, 1, "outputs are counted in the data and the checkpoint's head"),
        without_effect("debias-config", str, "baseline"),
        without_effect("mask-iter", str, "0"),
        without_effect("CUDA_VISIBLE_DEVICES", str, "0", "set it as an environment variable"),
    )


BMFT_MAIN = PublishedScript(
    "main.py", "BMFT: a patch from a small external set, or what it is compared with", "patch make",
    (
        mapped("algo", str, IMPAIR_REPAIR, "method.kind", to=_algo,
               why=f"`{IMPAIR_REPAIR}`: `method=bmft`; else `method=comparison` with {_said(KINDS)}"),
        mapped("mask-scale", str, "weight", "method.mask_scale",
               to=lambda value, call: {"method.mask_scale": _among("--mask-scale", value, ("weight", "layer", "block"))},
               why="there `layer` takes every layer, and `block` knows ResNet-18 only"),
        mapped("beta", float, 0.1, "method.beta"),
        mapped("image-size", int, 256, "model.input_size", to=lambda value, call: {"model.input_size": [value, value]},
               unread="its images always have 256 pixels"),
        *_shared("densenet", ARCHITECTURES),
        without_effect("dataset", str, "ISIC"),
    ),
    _bmft_fixed,
    _patch_notes,
)
SWIFT_MAIN = PublishedScript(
    "TwoStageFinetune.py", "SWiFT: a patch from a small external set", "patch make",
    (
        mapped("task", str, "xray", "method.optimizer", "model.input_size", to=_task,
               why="`skin`: SGD and 256 pixels, `xray`: Adam and 224"),
        mapped("beta", float, 0.1, "method.beta", "method.impair_beta",
               to=lambda value, call: {"method.beta": value, "method.impair_beta": value}, why="in both steps"),
        mapped("mask-scale", str, "weight", "method.mask_scale",
               to=lambda value, call: {"method.mask_scale": _among("--mask-scale", value, ("weight", "layer", "block"))},
               unread="its soft mask is of single weights"),
        *_shared("densenet", SWIFT_ARCHITECTURES),
        unneeded("num-attr", str, "binary", "any number of groups counts"),
        without_effect("algo", str, "FullFT"),
        without_effect("run-times", int, 5, "nothing reads it; `seeds=0,1,2,3,4` here"),
        without_effect("image-size", int, 256, "its images have the size of --task"),
    ),
    _swift_fixed,
    _patch_notes,
)


def _experiment(value: str, call: Call) -> tuple[str, int, int]:
    name = value.removesuffix(".yaml")
    if name == "experiment_name":
        raise ConfigError(f"experiment={value} is a placeholder of the published page; write one of {', '.join(EXPERIMENTS)} in its place")
    return _among("experiment", name, EXPERIMENTS)  # type: ignore[no-any-return]


def _train_fixed(call: Call) -> Values:
    ours, epochs, images = _experiment(call.values["experiment"], call)
    debug = call.values["debug"]
    trainer = _among("debug", debug, DEBUG) if debug not in (None, "null") else _among("trainer", call.values["trainer"], TRAINERS)
    more: Values = {} if debug not in (None, "null") else {"trainer.max_epochs": epochs}
    return {"experiment": ours, "trainer": trainer, **more, "data.batch_size": images}


def _logger(value: str, call: Call) -> Values:
    if "logger" not in call.typed or value in ("null", "comet"):
        return {}
    return {"logger": [_among("logger", name, LOGGERS) for name in value.split(",")]}


def _data(value: str, call: Call) -> Values:
    if call.data is not None or "data" in call.typed:
        return {"data.path": call.data or _among("data", value, DATA)}
    return {}


def _train_notes(call: Call) -> tuple[str, ...]:
    name = call.values["experiment"].removesuffix(".yaml")
    notes = [f"SWiFT's repository has {SWIFTS[name]} for this experiment"] if name in SWIFTS else []
    if name == "maxvit":
        notes.append("its class of that name builds ViT-B/16 (experiment=isic_vit)")
    if "experiment" not in call.typed:
        notes.append("without experiment= the repositories train resnet50 or resnet101, by version; this is resnet50")
    if call.data is None:
        notes.append("data.path: prepare the data set once (evenhand prepare isic2020, or any of --list; --size 256), or give --data")
    return (*notes, "BMFT's class of head ends in a sigmoid, and its loss applies a second one; here there is one")


HYDRA = (
    mapped("experiment", str, "resnet50", "experiment", to=lambda value, call: {},
           why=", ".join(f"`{k}`: `{v[0]}`" for k, v in EXPERIMENTS.items())),
    mapped("trainer", str, "gpu", "trainer", to=lambda value, call: {}, why=", ".join(f"`{name}`" for name in TRAINERS)),
    mapped("debug", str, None, "trainer", to=lambda value, call: {}, why=", ".join(f"`{k}`: `trainer={v}`" for k, v in DEBUG.items())),
    mapped("trainer.max_epochs", int, None, "trainer.max_epochs"),
    mapped("trainer.gradient_clip_val", float, None, "trainer.clip_norm"),
    mapped("data", str, "isic", "data.path", to=_data, why="the prepared data set"),
    mapped("data.batch_size", int, None, "data.batch_size"),
    mapped("model.optimizer.lr", float, None, "trainer.lr"),
    mapped("model.optimizer.momentum", float, None, "trainer.momentum"),
    mapped("model.scheduler.factor", float, None, "trainer.gamma"),
    mapped("model.scheduler.patience", int, None, "trainer.plateau_patience"),
    mapped("logger", str, "comet", "logger", to=_logger, why=f"{', '.join(f'`{name}`' for name in LOGGERS)}; the history is in the "
           "run folder in any case"),
    mapped("seed", int, 42, "seed"),
    refused("model", str, None, "choose the network by experiment="),
    refused("hparams_search", str, None, "use `evenhand search`"),
    refused("train", str, None, "training is what the command does; `evenhand evaluate` tests"),
    unneeded("test", str, "False", "the test rows are judged once, at the end"),
    unneeded("trainer.min_epochs", int, None, "nothing stops earlier (`trainer.early_stopping`)"),
    unneeded("trainer.devices", str, None, "torchrun sets it"),
    unneeded("data.num_workers", int, 8, PREPARED_ONCE),
    unneeded("data.pin_memory", str, "False", PREPARED_ONCE),
    unneeded("callbacks", str, "default", IN_RUN),
    unneeded("extras", str, "default", IN_RUN),
    unneeded("paths", str, "default", IN_RUN),
    unneeded("task_name", str, None, IN_RUN),
    unneeded("tags", str, None, IN_RUN),
)

TRAIN = PublishedScript(
    "train.py", "both: the training of the starting models", "train",
    (*HYDRA, unneeded("ckpt_path", str, None, ON_ITS_OWN)), _train_fixed, _train_notes, style="hydra",
)
FINETUNE = PublishedScript(
    "finetune.py", "SWiFT: the training of a starting model goes on, on another data set", "train",
    (*HYDRA, mapped("ckpt_path", str, "logs/model/resnet18_balanced.ckpt", "model.checkpoint",
                    why="there its optimiser and epochs go on, here training starts from its weights")),
    lambda call: {**_train_fixed(call), "model.pretrained": False}, _train_notes, style="hydra",
)
EVAL = PublishedScript(
    "eval.py", "SWiFT: predictions of a starting model", "evaluate",
    (
        mapped("ckpt_path", str, "logs/run", "model", why="a run folder of `evenhand train`; a checkpoint becomes one by `evenhand patch "
               "make method=comparison method.kind=none`"),
        mapped("data", str, "fit17k", "sets", to=lambda value, call: {f"sets.{value}": call.data or _among("data", value, DATA)}),
        unneeded("model", str, "densenet", "the run knows its network"),
        unneeded("trainer", str, "default", "the run knows where to compute"),
        unneeded("logger", str, "null", IN_RUN),
        unneeded("paths", str, "default", IN_RUN),
        unneeded("task_name", str, "eval", IN_RUN),
        unneeded("tags", str, None, IN_RUN),
    ),
    lambda call: {"model": call.values["ckpt_path"]},
    style="hydra",
)

BMFT = PublishedSystem(
    "BMFT", "https://github.com/vios-s/BMFT, https://github.com/vios-s/SWiFT", (TRAIN, BMFT_MAIN, SWIFT_MAIN, FINETUNE, EVAL)
)
