"""The scripts of FairTune (github.com/Raman1121/FairTune), option by option.

What the scripts do was read from their text: option names, types and defaults (both scripts share one parser), which options
are read at all, and what is set without an option. They normalise with ImageNet's mean and deviation whatever the weights
were made with, crop and mirror training images, decide by the most probable class, and keep the last epoch.
"""

from __future__ import annotations

from collections.abc import Callable
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

NETWORKS: dict[str, Values] = {
    "vit_base": {"model.name": "vit_base_patch16_224"},
    "vit_base_mae": {"model.name": "vit_base_patch16_224.mae"},
    "vit_base_clip": {"model.name": "vit_base_patch16_clip_224.openai"},
    "vit_base_dino": {"model.name": "vit_base_patch16_224.dino"},
    "vit_base_moco": {"model.name": "vit_base_patch16_224", "model.checkpoint": "checkpoints/vit_base_moco_0299.pth.tar"},
    "vit_large": {"model.name": "vit_large_patch16_224"},
    "vit_huge": {"model.name": "vit_huge_patch14_224"},
    "resnet50": {"model.name": "resnet50"},
}
"""Published name of a network -> ours."""

SPACES = {
    "tune_full_block": "blocks",
    "tune_attention_blocks_random": "attention",
    "tune_layernorm_blocks_random": "norms",
    "tune_mlp_blocks_random": "mlp",
    "tune_attention_layernorm": "attention+norms",
    "tune_attention_mlp": "attention+mlp",
    "tune_layernorm_mlp": "norms+mlp",
    "tune_attention_layernorm_mlp": "blocks",
    "auto_peft1": "norms|attention|mlp",
    "auto_peft2": "norm1|attention|norm2|mlp",
    "tune_attention_params_random": "attention_tensors",
}
"""Tuning method with a mask -> search space. In a ViT's block, attention, norms and MLP together are the whole block."""

FIXED: dict[str, Values] = {
    "fullft": {},
    "train_from_scratch": {"method.from_scratch": True, "model.pretrained": False},
    "linear_readout": {"method.freeze": "backbone"},
    "tune_attention": {"method.mask": "attention"},
    "tune_layernorm": {"method.mask": "norms"},
    "bitfit": {"method.mask": "bitfit"},
}
"""Tuning method without a mask -> our options."""

OBJECTIVES = {
    "min_acc": "worst_accuracy", "min_auc": "worst_auc", "acc_diff": "accuracy_gap", "auc_diff": "auc_gap", "max_loss": "worst_loss",
    "overall_acc": "accuracy", "overall_auc": "auc",
}
ATTRIBUTES = {"gender": "sex", "skin_type": "skin_type", "age": "age", "race": "race", "age_sex": "age*sex"}
PRUNERS: dict[str, Values] = {
    "SuccessiveHalving": {"pruner": "halving", "reduction": 4},
    "MedianPruner": {"pruner": "median"},
    "Hyperband": {"pruner": "hyperband", "reduction": 3},
}
"""Published pruner -> ours, with the settings that the library gives it there."""
OPTIMIZERS = {"sgd": "sgd", "adamw": "adamw"}
SCHEDULES = {"steplr": "step", "cosineannealinglr": "cosine", "exponentiallr": "exponential"}
WARMUPS = {"constant": "constant", "linear": "linear"}
AS_PUBLISHED: Values = {
    "model.pretrained": True, "model.mean": [0.485, 0.456, 0.406], "model.std": [0.229, 0.224, 0.225],
    "data.augment": "published_fairtune", "trainer.monitor": "last",
}

EVERY_METRIC = "results.csv has every metric of every group"
PREPARED_ONCE = "images are decoded once, by `evenhand prepare`, which also sets their size"
AS_PREPARED = "groups are those of the prepared data set (`evenhand prepare --bins`)"
IN_CONFIG = "the prepared data set takes its place (`data.path`)"
BY_TORCHRUN = "torchrun sets it"
ON_ITS_OWN = "the same command goes on by itself after a kill"
OTHER_SCRIPTS = "neither of the two scripts reads it"
UNDECAYED = "here biases, norms, position embeddings and tokens are never decayed; leave it out"
NO_MIXING = "the script stops with it; `trainer.mixup` and `trainer.cutmix` do it here"
NOT_TIMM = "there it is torchvision's; `trainer.rand_augment` takes timm's"
SEARCHED = "every trial draws its own, from 1e-5 to 1e-3 (`lr_low`, `lr_high`)"
NEVER_PRUNES = "it reports once, after the last epoch, so that nothing is left to prune"
UNWEIGHTED = "the weights are made and not given to the loss"


def _said(known: dict[str, Any]) -> str:
    """Published values and ours, for the pages."""
    first = {value: next(iter(ours.values())) if isinstance(ours, dict) else ours for value, ours in known.items()}
    return ", ".join(f"`{value}`: `{ours}`".replace("|", r"\|") for value, ours in first.items())


def _among(option: str, value: str | None, known: Any, what: str = "the scripts know") -> str:
    """A value that is one of those the scripts know."""
    if value is None:
        raise ConfigError(f"--{option} is missing, and has no default; {what} {', '.join(known)}")
    if value not in known:
        raise ConfigError(f"--{option} is {value!r}, but {what} {', '.join(known)}{nearest(value, known)}")
    return value


def _one_of(option: str, known: dict[str, str], ours: str) -> Callable[[Any, Call], Values]:
    return lambda value, call: {ours: known[_among(option, value, known)]}


def _network(value: str, call: Call) -> Values:
    if value == "resnet18":
        raise ConfigError(
            f"--model is resnet18, the default, which the scripts cannot build; they know {', '.join(NETWORKS)} "
            "(`evenhand search model=resnet18` takes any network of timm)"
        )
    found = NETWORKS[_among("model", value, NETWORKS)]
    return {**found, **({"model.pretrained": False} if "model.checkpoint" in found else {})}


def _processes(value: int, call: Call) -> Values:
    return {"data.batch_size": value * call.processes}


def _accelerator(value: str, call: Call) -> Values:
    kind = {"cuda": "gpu", "cpu": "cpu"}.get(value.split(":")[0])
    if kind is None:
        raise ConfigError(f"--device is {value!r}, but must be cuda or cpu")
    return {"trainer.accelerator": kind if "device" in call.typed else None}


def _optimizer(value: str, call: Call) -> Values:
    return {"trainer.optimizer": OPTIMIZERS[_among("opt", value.lower(), OPTIMIZERS, "here it must be")]}


def _schedule(value: str, call: Call) -> Values:
    return {"trainer.schedule": SCHEDULES[_among("lr-scheduler", value.lower(), SCHEDULES)]}


def _warmup_share(value: float, call: Call) -> Values:
    return {"trainer.warmup_share": value if call.values["lr-warmup-epochs"] > 0 else None}


def _prepared(call: Call) -> str:
    return call.data or f"prepared/{(call.values['dataset'] or 'DATASET').lower()}"


def _dataset(value: str | None, call: Call) -> Values:
    if value is None:
        raise ConfigError("--dataset is missing, and has no default; write --dataset HAM10000")
    return {"data.path": _prepared(call)}


def _space(value: str, call: Call) -> Values:
    if value in FIXED:
        raise ConfigError(f"--tuning_method is {value}, which has no mask to search; finetune_with_mask.py takes it")
    return {"space": SPACES[_among("tuning_method", value, SPACES)]}


def _pruner(value: str, call: Call) -> Values:
    return PRUNERS[_among("pruner", value, PRUNERS)]


def _tuning(value: str, call: Call) -> Values:
    """What is trained: a mask with its space, or one of the fixed choices."""
    if value in FIXED:
        return FIXED[value]
    space = SPACES[_among("tuning_method", value, [*FIXED, *SPACES])]
    mask = call.values["mask_path"]
    if mask is None:
        raise ConfigError(f"--tuning_method {value} needs --mask_path FILE: the mask that a search wrote")
    return {"method.mask": mask, "method.mask_space": space if mask.endswith(".npy") else None}


def _mask_path(value: str | None, call: Call) -> Values:
    return {} if value is None or call.values["tuning_method"] in FIXED else {"method.mask": value}


def _rate(value: float, call: Call) -> Values:
    """The learning rate of stage two; that of a mask where the line gives none, unless the released default is asked for."""
    masked = call.values["tuning_method"] in SPACES
    return {"method.mask_lr" if masked else "trainer.lr": value if "lr" in call.typed or call.released or not masked else None}


def _primary(value: Any, call: Call) -> Values:
    metric = {"acc": "accuracy", "auc": "auc"}[_among("use_metric", call.values["use_metric"], ("acc", "auc"))]
    return {"audit.primary": [metric, *(["equalized_odds"] if call.values["cal_equiodds"] else [])]}


def _out(call: Call, stage: str) -> str:
    values = call.values
    names = [values["model"], values["dataset"], stage, values["sens_attribute"], values["tuning_method"]]
    return "/".join(["MODEL", "DATASET", stage] if values["dataset"] is None else [str(name) for name in names if name is not None])


def _search_fixed(call: Call) -> Values:
    return {"data.path": _prepared(call), **AS_PUBLISHED, "threshold": "0.5", "sampler": "tpe", "out": _out(call, "search")}


def _finetune_fixed(call: Call) -> Values:
    return {"method": "finetune", "data.path": _prepared(call), **AS_PUBLISHED, "audit.threshold": "0.5", "out": _out(call, "finetune")}


def _preparing(call: Call) -> tuple[str, ...]:
    if call.data is not None:
        return ()
    return (f"data.path: prepare --dataset once as {_prepared(call)} (its own command, see evenhand prepare --list, or csv with the "
            "attribute column named as in data.attributes; --size 224), or give --data",)


def _search_notes(call: Call) -> tuple[str, ...]:
    notes = ["objectives are computed on all validation rows at once; the script averages them over shuffled batches"]
    if call.values["objective_metric"] == "max_loss":
        notes = ["worst_loss is the mean loss of the worst group; the script takes that of the last batch"]
    return (*notes, "n_trials is the whole budget, over every call of this command", *_preparing(call))


def _finetune_notes(call: Call) -> tuple[str, ...]:
    notes: tuple[str, ...] = ()
    if call.values["tuning_method"] in SPACES and "lr" not in call.typed:
        told = "it is 0.1 here too" if call.released else "here it is the mask's own, and a .npy, which has none, is refused without --lr"
        notes = (f"--lr: the script falls back to 0.1, whatever the search found; {told}",)
    return (*notes, "add seeds=0,1,2,3,4 to train it over five seeds; the script trains once, unseeded", *_preparing(call))


SHARED = (
    mapped("dataset", str, None, "data.path", to=_dataset, why="the prepared data set"),
    mapped("sens_attribute", str, None, "data.attributes", to=_one_of("sens_attribute", ATTRIBUTES, "data.attributes"),
           why=_said(ATTRIBUTES)),
    mapped("model", str, "resnet18", "model.name", "model.checkpoint", "model.pretrained", to=_network, why=_said(NETWORKS)),
    mapped("device", str, "cuda", "trainer.accelerator", to=_accelerator, why="where typed; else a device is found by itself"),
    mapped("batch-size", int, 32, "data.batch_size", to=_processes, why="times the number of processes", aliases=("-b",)),
    mapped("epochs", int, 90, "trainer.max_epochs"),
    mapped("opt", str, "sgd", "trainer.optimizer", to=_optimizer, why="`sgd` or `adamw`; no Nesterov momentum, no RMSprop"),
    mapped("momentum", float, 0.9, "trainer.momentum"),
    mapped("wd", float, 1e-4, "trainer.weight_decay", why="not on biases and norms", aliases=("--weight-decay",)),
    mapped("label-smoothing", float, 0.0, "trainer.label_smoothing"),
    mapped("lr-scheduler", str, "steplr", "trainer.schedule", to=_schedule, why=_said(SCHEDULES)),
    mapped("lr-warmup-epochs", int, 0, "trainer.warmup_epochs"),
    mapped("lr-warmup-method", str, "constant", "trainer.warmup", to=_one_of("lr-warmup-method", WARMUPS, "trainer.warmup")),
    mapped("lr-warmup-decay", float, 0.01, "trainer.warmup_share", to=_warmup_share, why="with warm-up epochs"),
    mapped("lr-step-size", int, 30, "trainer.step_size"),
    mapped("lr-gamma", float, 0.1, "trainer.gamma"),
    mapped("lr-min", float, 0.0, "trainer.min_lr"),
    mapped("random-erase", float, 0.0, "trainer.random_erasing"),
    mapped("amp", bool, None, "trainer.precision", to=lambda value, call: {"trainer.precision": "fp16" if value else None}),
    refused("norm-weight-decay", float, None, UNDECAYED),
    refused("bias-weight-decay", float, None, UNDECAYED),
    refused("transformer-embedding-decay", float, None, UNDECAYED),
    refused("mixup-alpha", float, 0.0, NO_MIXING),
    refused("cutmix-alpha", float, 0.0, NO_MIXING),
    refused("auto-augment", str, None, NOT_TIMM),
    refused("train_subset_ratio", float, None, "there it is another part every time; prepare a smaller table"),
    refused("val_subset_ratio", float, None, "there it is another part every time; prepare a smaller table"),
    without_effect("ra-magnitude", int, 9, "it acts with --auto-augment only"),
    without_effect("augmix-severity", int, 3, "it acts with --auto-augment only"),
    unneeded("dataset_basepath", str, "the authors' own", IN_CONFIG),
    unneeded("age_type", str, "binary", AS_PREPARED),
    unneeded("skin_type", str, "binary", AS_PREPARED),
    unneeded("label_type", str, "binary", "labels are those of the prepared data set (`data.labels`)"),
    unneeded("cache-dataset", bool, None, PREPARED_ONCE),
    unneeded("workers", int, 16, f"{PREPARED_ONCE}; our `workers` are those of a search", aliases=("-j",)),
    unneeded("interpolation", str, "bilinear", PREPARED_ONCE),
    unneeded("val-resize-size", int, 256, PREPARED_ONCE),
    unneeded("val-crop-size", int, 224, PREPARED_ONCE),
    unneeded("train-crop-size", int, 224, PREPARED_ONCE),
    unneeded("use-deterministic-algorithms", bool, None, "it is on; `deterministic=false` turns it off"),
    unneeded("start-epoch", int, 0, ON_ITS_OWN),
    unneeded("output-dir", str, ".", "the scripts overwrite it with MODEL/DATASET; `out` here"),
    unneeded("print-freq", int, 10, "the history is in the run folder"),
    unneeded("wandb_logging", bool, None, "the history is in the run folder"),
    unneeded("disable_plotting", bool, None, "the report is made once, at the end"),
    unneeded("disable_checkpointing", bool, None, "a checkpoint takes no time to speak of, and is what a killed run goes on from"),
    unneeded("dev_mode", bool, None, "it stands for --disable_plotting and --disable_checkpointing"),
    unneeded("world-size", int, 1, BY_TORCHRUN),
    unneeded("dist-url", str, "env://", BY_TORCHRUN),
    without_effect("weights", str, "IMAGENET1K_V1", "it acts with --test-only only"),
    without_effect("use_multi_objective", bool, None, "nothing reads it; `second_objective` here"),
    *(
        without_effect(name, kind, default, OTHER_SCRIPTS)
        for name, kind, default in (
            ("lr_scaler", float, 1), ("outer_lr", float, 0.1), ("lr-scheduler-outer", str, "constant"), ("ckpt_dir", str, None),
            ("masking_vector_idx", int, None), ("subnetwork_mask_name", str, None),
            ("exp_vector_path", str, "the authors' own"), ("mask_gen_method", str, "random"),
            ("sigma", float, 0.1), ("use_adaptive_threshold", bool, None), ("thr_ema_decay", float, 0.99),
            ("use_gumbel_sigmoid", bool, None), ("ra-reps", int, 3), ("pruning_ratio", float, 0.35), ("b_param", float, 0.33),
            ("fscl", bool, None), ("train_encoder_lr", float, 0.1), ("train_classifier_lr", float, 0.1), ("fscl_eval_only", bool, None),
            ("temperature", float, 0.1), ("contrast_mode", str, "all"), ("base_temperature", float, 0.1), ("group_norm", int, 0),
            ("method", str, "FSCL"),
        )
    ),
    without_effect("masking_vector", float, None, OTHER_SCRIPTS, many=True),
)

SEARCH = PublishedScript(
    "search_mask.py", "the search for a mask, stage one", "search",
    (
        *SHARED,
        mapped("tuning_method", str, "fullft", "space", to=_space, why=_said(SPACES)),
        mapped("objective_metric", str, "min_acc", "objective", to=_one_of("objective_metric", OBJECTIVES, "objective"),
               why=_said(OBJECTIVES)),
        mapped("num_trials", int, 5, "n_trials"),
        mapped("pruner", str, "SuccessiveHalving", "pruner", "reduction", to=_pruner, why=_said(PRUNERS),
               unread=NEVER_PRUNES),
        mapped("compute_cw", bool, None, "trainer.class_weights",
               to=lambda value, call: {"trainer.class_weights": "balanced" if value else None}, unread=UNWEIGHTED),
        mapped("disable_storage", bool, None, "storage", to=lambda value, call: {"storage": "temporary" if value else None},
               why="the study is removed at the end, and a killed search starts again"),
        without_effect("lr", float, 0.1, SEARCHED),
        unneeded("use_metric", str, "auc", "the report has the values of every objective for every trial"),
        unneeded("cal_equiodds", bool, None, "the report has the values of every objective for every trial"),
        unneeded("resume", str, "", ON_ITS_OWN),
        refused("test-only", bool, None, "the script stops with it; use `evenhand evaluate`"),
        *(without_effect(name, kind, default) for name, kind, default in (
            ("mask_path", str, None), ("disable_training", bool, None), ("sync-bn", bool, None),
            ("model-ema", bool, None), ("model-ema-steps", int, 32), ("model-ema-decay", float, 0.99998), ("clip-grad-norm", float, None),
            ("ra-sampler", bool, None))),
    ),
    _search_fixed,
    _search_notes,
)
FINETUNE = PublishedScript(
    "finetune_with_mask.py", "training with a mask and testing, stage two", "train",
    (
        *SHARED,
        mapped("tuning_method", str, "fullft", "method.mask", "method.mask_space", "method.from_scratch", "model.pretrained",
               "method.freeze", to=_tuning,
               why="those with a mask as above; without one " + ", ".join(f"`{name}`" for name in FIXED)),
        mapped("mask_path", str, None, "method.mask", to=_mask_path, why="mask.json of a search, or a published .npy"),
        mapped("lr", float, 0.1, "method.mask_lr", "trainer.lr", to=_rate, why="for a mask only where typed: else the mask's own"),
        mapped("compute_cw", bool, None, "trainer.class_weights",
               to=lambda value, call: {"trainer.class_weights": "balanced" if value else None}, why="of any data set"),
        mapped("cal_equiodds", bool, None, "audit.primary", to=_primary, why="which gaps are tested; results.csv has every metric"),
        mapped("use_metric", str, "auc", "audit.primary", to=_primary, why="which gaps are tested; results.csv has every metric"),
        mapped("clip-grad-norm", float, None, "trainer.clip_norm"),
        unneeded("objective_metric", str, "min_acc", f"there it names the file of results; {EVERY_METRIC}"),
        unneeded("resume", str, "", ON_ITS_OWN),
        refused("test-only", bool, None, "the script stops with it; use `evenhand evaluate`"),
        refused("disable_training", bool, None, "there nothing is tested then either; use `evenhand evaluate`"),
        refused("sync-bn", bool, None, "the networks that it masks have no batch norms"),
        refused("model-ema", bool, None, "the script stops with it; `trainer.ema_decay` does it here"),
        refused("ra-sampler", bool, None, "there every image is drawn several times a batch; leave it out"),
        without_effect("model-ema-steps", int, 32, "it acts with --model-ema only"),
        without_effect("model-ema-decay", float, 0.99998, "it acts with --model-ema only"),
        without_effect("num_trials", int, 5), without_effect("pruner", str, "SuccessiveHalving"),
        without_effect("disable_storage", bool, None),
    ),
    _finetune_fixed,
    _finetune_notes,
)

FAIRTUNE = PublishedSystem("FairTune", "https://github.com/Raman1121/FairTune", (SEARCH, FINETUNE))
