"""Every option once: name, type, default, help and unit. The command line, the presets and Python all read this file.

Schema classes are not frozen because the configuration library fills them in place. An empty string or None means
"decide for me"; what was decided is written to the run's config.yaml.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from omegaconf import MISSING

RANGES: dict[str, tuple[float | None, float | None]] = {
    "share": (0, 1), "images": (1, None), "batches": (1, None), "epochs": (0, None), "iterations": (1, None),
    "replicates": (0, None), "draws": (0, None), "patients": (1, None), "groups": (1, None), "pixels": (1, None),
}
"""Unit -> (lowest, highest) allowed value; ``low`` given with an option goes before it."""


def opt(default: Any, help: str, unit: str = "", choices: tuple[str, ...] = (), low: float | None = None) -> Any:
    """A dataclass field with its help text, unit and allowed values; mutable defaults are copied."""
    lowest, highest = RANGES.get(unit, (None, None))
    metadata = {"help": help, "unit": unit, "choices": choices, "low": lowest if low is None else low, "high": highest}
    if isinstance(default, (list, dict)):
        kind = type(default)
        return field(default_factory=lambda: kind(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class DataConfig:
    """A prepared data set and how its rows are read."""

    path: str = opt(MISSING, "folder written by `evenhand prepare`")
    labels: Optional[list[str]] = opt(None, "label columns to train and audit; default: all that were prepared")
    attributes: Optional[list[str]] = opt(None, "sensitive attributes, joint ones as sex*age; default: as prepared")
    missing: str = opt("own_group", "rows with a missing attribute", choices=("own_group", "drop", "error"))
    batch_size: int = opt(64, "images per optimiser step", "images")
    val_fraction: float = opt(0.2, "share of non-test patients drawn into validation when splits are re-drawn", "share")
    augment: str = opt("none", "augmentation recipe: none, chest_film, dermoscopy, photograph, fundus, oct, ct, mri, "
                       "published_dne, published_fairtune")


@dataclass
class ModelConfig:
    """A backbone and where its weights come from."""

    name: str = opt("evenhand_demo_vit", "a timm model name (or evenhand_demo_vit, mobilenetv1_075), or auto: as the checkpoint says")
    checkpoint: Optional[str] = opt(None, "weights: a file, a local directory, or a hub id; default: see pretrained")
    pretrained: bool = opt(False, "take timm's published weights (needs a network); ignored when a checkpoint is given")
    input_size: Optional[list[int]] = opt(None, "(height, width) the network sees; default: the model's own", "pixels")
    mean: Optional[list[float]] = opt(None, "normalisation mean per channel; default: stored with the weights")
    std: Optional[list[float]] = opt(None, "normalisation standard deviation per channel")
    global_pool: Optional[str] = opt(None, "avg, token, …; default: the model's own")
    drop_path: float = opt(0.0, "stochastic depth rate", "share")
    drop_path_optional: bool = opt(False, "leave drop_path out, with a note, where the architecture has none (recipes say so; typing "
                                   "drop_path takes it back)")
    drop_rate: float = opt(0.0, "dropout before the head", "share")
    precision: str = opt("auto", "embedding arithmetic; auto takes bf16 after scores were checked to agree",
                         choices=("auto", "fp32", "bf16"))
    embed_batch_size: int = opt(64, "images per forward pass when embedding", "images")
    url: Optional[str] = opt(None, "address of an embedding server instead of weights; its token is read from EVENHAND_TOKEN only")
    api: str = opt("v2", "what the server speaks: v2 (Open Inference Protocol), cxr_foundation (Vertex AI), medimageinsight (Azure)",
                   choices=("v2", "cxr_foundation", "medimageinsight"))
    api_model: Optional[str] = opt(None, "v2: the model's name on the server; default: the only one it serves")
    api_version: Optional[str] = opt(None, "v2: the model's version; default: the server's")
    api_input: Optional[str] = opt(None, "v2: the input that takes the images; default: the only one; 'images' where the server names none")
    api_output: Optional[str] = opt(None, "v2: the output that is the embedding; default: the only one, or the one called embedding(s)")
    api_format: str = opt("binary", "how images are sent: binary or json tensors of floats, binary_uint8 or json_uint8, png, jpeg",
                          choices=("binary", "json", "binary_uint8", "json_uint8", "png", "jpeg"))
    api_lossy: bool = opt(False, "round images to the 8 bits that the server takes where they hold more (16-bit data); else refuse them")
    api_allow_changes: bool = opt(False, "go on with a server whose embeddings of one image differ by more than 1% between calls")
    timeout: float = opt(60.0, "seconds to wait for one answer of the server", "seconds", low=0.001)
    retries: int = opt(5, "most repeats of a request after 429, 5xx or a lost connection", low=0)
    connections: int = opt(4, "requests to the server in flight at once", low=1)
    ca_file: Optional[str] = opt(None, "certificate authority file of a server with a private certificate")


@dataclass
class TrainerConfig:
    """The one training loop."""

    max_epochs: int = opt(10, "passes over the training rows", "epochs")
    optimizer: str = opt("adamw", "optimiser", choices=("adamw", "adam", "sgd"))
    lr: Optional[float] = opt(None, "peak learning rate; default: base_lr * batch size / 256", low=0)
    base_lr: float = opt(1e-3, "learning rate per 256 images a step, used when lr is not given", low=0)
    min_lr: float = opt(1e-6, "floor of the cosine schedule", low=0)
    weight_decay: float = opt(0.05, "decoupled weight decay (not on biases, norms, position embeddings)", low=0)
    momentum: float = opt(0.9, "SGD momentum", low=0)
    layer_decay: float = opt(1.0, "learning-rate factor per layer from the head down; 1 = off", low=0)
    schedule: str = opt("cosine", "learning-rate schedule",
                        choices=("constant", "cosine", "step", "exponential", "plateau"))
    warmup_epochs: float = opt(0.0, "warm-up", "epochs")
    warmup: str = opt("linear", "linear from 0, or constant at warmup_lr", choices=("linear", "constant"))
    warmup_lr: float = opt(1e-6, "learning rate of a constant warm-up", low=0)
    warmup_share: Optional[float] = opt(None, "share of the peak rate that warm-up starts from (linear) or stays at (constant), in place "
                                        "of 0 and of warmup_lr", "share")
    step_size: int = opt(10, "epochs between drops of the step schedule", "epochs")
    gamma: float = opt(0.1, "factor of the step, exponential and plateau schedules", low=0)
    plateau_patience: int = opt(5, "epochs without improvement before the plateau schedule drops", "epochs")
    plateau_monitor: str = opt("monitor", "what the plateau schedule watches; monitor: what picks the best epoch",
                               choices=("monitor", "val_auc", "val_loss", "train_loss"))
    label_smoothing: float = opt(0.0, "label smoothing", "share")
    class_weights: str = opt("none", "weights of classes in the loss; balanced: by the training rows, batch: anew by every batch",
                             choices=("none", "balanced", "batch"))
    mixup: float = opt(0.0, "mixup alpha; 0 = off", low=0)
    cutmix: float = opt(0.0, "cutmix alpha; 0 = off", low=0)
    random_erasing: float = opt(0.0, "probability of random erasing", "share")
    rand_augment: str = opt("", "timm RandAugment string, for example rand-m6-mstd0.5-inc1; empty = off")
    clip_norm: float = opt(0.0, "gradient norm clipping; 0 = off", low=0)
    accumulate: int = opt(1, "batches per optimiser step", "batches")
    early_stopping: int = opt(0, "epochs without improvement before stopping; 0 = off", "epochs")
    monitor: str = opt("val_auc", "what picks the best epoch", choices=("val_auc", "val_loss", "last"))
    ema_decay: float = opt(0.0, "exponential moving average of weights; 0 = off", low=0)
    accelerator: str = opt("auto", "where to train", choices=("auto", "cpu", "gpu", "mps"))
    precision: str = opt("fp32", "training arithmetic", choices=("fp32", "bf16", "fp16", "auto"))
    channels_last: bool = opt(False, "keep images with their channels last in memory, faster for convolutional networks")
    progress: bool = opt(True, "show a progress bar")
    overfit_batches: int = opt(0, "debug: train and validate on this many batches alone, without augmentation; 0 = off", low=0)
    limit_batches: int = opt(0, "debug: at most this many batches an epoch, of training and of validation rows; 0 = all", low=0)
    profile: bool = opt(False, "debug: profile some steps; profile.txt and profile_trace.json.gz go into the run folder")


@dataclass
class AuditConfig:
    """How predictions are judged."""

    threshold: str = opt("youden", "youden, f1, sensitivity=0.9, specificity=0.9, prevalence, or a number; chosen on validation rows")
    bootstrap: int = opt(1000, "patient-clustered bootstrap replicates", "replicates")
    confidence: float = opt(0.95, "confidence level of intervals", "share")
    permutations: int = opt(1000, "permutations for p-values of gaps", "draws")
    min_patients: int = opt(10, "patients needed in a rate's denominator", "patients")
    max_groups: int = opt(50, "most groups one attribute may have, joint ones included", "groups")
    primary: list[str] = opt(["auc", "equalized_odds"], "gaps whose tests form the family corrected by Holm")
    metrics: list[str] = opt([], "metrics to compute, as auc,tpr,fpr; default: all of them")
    interval: str = opt(
        "auto",
        "intervals of group values: auto (the kind that covers best for each metric), percentile or bca (patient bootstrap)",
        choices=("auto", "percentile", "bca"),
    )
    bounds: bool = opt(True, "bounds on every gap over all groups that patients with a missing attribute could belong to")
    details: bool = opt(True, "power, prevalence-matched and case-mix standardised gaps, ranked intersections")
    adjust: list[str] = opt([], "case-mix columns (as age, view, site) over which gaps are standardised")
    reference: dict[str, str] = opt({}, "attribute -> reference group of disparate impact, as reference.sex=male")
    no_finding: list[str] = opt(
        ["No Finding", "no_finding", "healthy", "normal"],
        "labels that mean health: there under-diagnosis is the FPR, elsewhere the FNR",
    )
    ece_bins: int = opt(10, "equal-width bins of the expected calibration error", "bins", low=2)


@dataclass
class MethodConfig:
    """Base of every method's configuration; ``name`` is the registry's."""

    name: str = opt(MISSING, "registry name of the method")


@dataclass
class TrainConfig:
    """`evenhand train`: any method or baseline; writes a run folder."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: Any = field(default_factory=MethodConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    seed: int = opt(0, "seed of every random stream")
    seeds: Optional[list[int]] = opt(None, "several seeds: one run each under RUN/seed=k, train/val re-drawn by patient, test fixed")
    out: Optional[str] = opt(None, "run folder; default: runs/<time>-<method>")
    edit: Optional[str] = opt(None, "an edit put on every image first: edit.safetensors, a run folder that has one, or noise_layer.pt")
    embeddings: Optional[str] = opt(None, "folder of cached embeddings; default: embeddings/ in the prepared data set")
    deterministic: bool = opt(True, "refuse operations without a deterministic implementation where there is a choice")
    logger: list[str] = opt([], "where epochs are told of while they run, as csv,tensorboard,mlflow; metrics.jsonl is always written",
                            choices=("csv", "tensorboard", "mlflow"))


@dataclass
class PredictConfig:
    """`evenhand predict`: score new images with a run and apply its stored threshold."""

    model: str = opt(MISSING, "a run folder written by `evenhand train`")
    data: str = opt(MISSING, "a prepared data set, or a folder of images")
    out: Optional[str] = opt(None, "where predictions.parquet goes; default: runs/<time>-predict")
    edit: Optional[str] = opt(None, "another edit than the run's own, put on every image first")
    split: Optional[str] = opt(None, "only rows of this split; default: all rows")
    batch_size: int = opt(64, "images per forward pass", "images")


@dataclass
class EvaluateConfig:
    """`evenhand evaluate`: audit runs on further named data sets: results in and out of distribution, and the drop between them."""

    model: Optional[str] = opt(None, "a run folder written by `evenhand train`")
    models: dict[str, str] = opt({}, "name -> run folder, as models.NAME=RUN: several runs side by side, the first is the reference")
    sets: dict[str, str] = opt({}, "name -> prepared data set, as sets.NAME=FOLDER; each may have attributes of its own")
    home: Optional[str] = opt(None, "prepared data set whose test rows count as in-distribution; default: the first run's own")
    split: Optional[str] = opt(None, "only rows of this split; default: all rows of a set")
    audit: AuditConfig = field(default_factory=AuditConfig)
    out: Optional[str] = opt(None, "output folder; default: runs/<time>-evaluate")


@dataclass
class ExportConfig:
    """`evenhand export`: write a folder that timm loads."""

    model: str = opt(MISSING, "a run folder written by `evenhand train`")
    out: str = opt(MISSING, "folder to write")
