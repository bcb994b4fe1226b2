"""The configuration of the methods that patch a finished classifier (BMFT, SWiFT, what they are compared with), free of heavy imports.

Step one ("impair") descends a bias term B on the weights of a mask, step two ("repair") fits the head again. Defaults are the
corrected mode; the presets ``bmft_paper``, ``swift_paper`` and ``…_released`` hold what was published.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Optional

from evenhand.config.schema import AuditConfig, DataConfig, MethodConfig, ModelConfig, TrainConfig, TrainerConfig, opt

BIAS_TERMS = ("eodds", "eopp", "spd", "fpr_diff", "fnr_diff", "tnr_diff")
COMPARISONS: dict[str, str] = {
    "none": "the classifier as it was delivered",
    "full_reweighted": "the whole network fine-tuned on rows balanced by group and label (published: FullFT_RW)",
    "full_regularised": "the whole network fine-tuned with the bias term in the loss (published: FullFT_Reg)",
    "full_both": "the whole network fine-tuned on balanced rows with the bias term in the loss (published: FullFT_RWReg)",
    "last_layer": "the head alone fine-tuned on balanced rows",
    "random_mask": "both steps with a random mask of the same size",
    "all_weights": "both steps with every weight of the body in the mask",
    "dfr": "the head fitted again on balanced subsets of embeddings (deep feature re-weighting)",
    "fairprune": "weights set to zero that matter to one group only (FairPrune)",
    "adversarial": "the whole network fine-tuned against a critic that estimates the bias of a batch (Savani et al.)",
}
"""What a patch can be compared with: name -> one line. All learn from the same rows for the same number of epochs."""


@dataclass
class PatchMethodConfig(MethodConfig):
    """What BMFT, SWiFT and their comparisons share: the bias term, the mask, the two steps, and where they stop."""

    attributes: Optional[list[str]] = opt(None, "sensitive attributes whose gaps one patch narrows; default: the first of the data set")
    over_attributes: str = opt("sum", "several attributes: sum of their bias terms, or the largest of them", choices=("sum", "max"))
    bias: str = opt("eodds", "bias term B: gap of TPR and FPR (eodds), of TPR (eopp), of the share predicted positive (spd), of one rate",
                    choices=BIAS_TERMS)
    bias_mode: str = opt("corrected", "corrected: sum over the rates of the worst pair of groups, smooth; paper: their mean, the exact "
                         "worst pair; released: two groups, and opposite gaps of TPR and FPR cancel",
                         choices=("corrected", "paper", "released"))
    bias_scores: str = opt("probability", "what rates are means of: probability, or the logits themselves (released code)",
                           choices=("probability", "logit"))
    bias_over: str = opt("set", "rows that the rates of a step are over: the whole external set, in two exact passes, or the batch "
                         "(published)", choices=("set", "batch"))
    min_cell: int = opt(2, "rows that a group x label cell needs to count in the bias of a batch; smaller ones are left out", low=1)
    importance: str = opt("sample", "squared gradients: of every image (true Fisher diagonal), or of the mean of a batch (published)",
                          choices=("sample", "batch"))
    mask_type: str = opt("fisher", "what the mask is made of: squared gradients (fisher), absolute ones (gradient), nothing (random), or "
                         "no mask (all)", choices=("fisher", "gradient", "random", "all"))
    mask_scale: str = opt("weight", "what the mask takes or leaves: single weights, tensors (layer), or blocks of the network",
                          choices=("weight", "layer", "block"))
    ratio: str = opt("safe", "importance for bias over importance for prediction: safe for constant tensors and zeros, or with each "
                     "tensor's importances scaled to [0, 1] first (minmax: published; released: as in each code, where in "
                     "BMFT's one constant tensor empties the mask)", choices=("safe", "minmax", "released"))
    rate: Optional[float] = opt(0.05, "share of the body's weights in the mask, those of the largest ratio (published: 0.5); null: those "
                                "above the mean ratio", "share")
    ratio_threshold: Optional[float] = opt(None, "weights whose ratio is above this are in the mask, in place of rate", low=0)
    soft_mask: bool = opt(False, "scale steps by tanh(ratio) in place of a mask of zeros and ones (SWiFT)")
    subset_ratio: float = opt(0.0, "share of rows left out of step one: those whose embedding points most along the difference between "
                              "the groups; 0 = off (published: off; the option of the released code is the share kept)", "share")
    impair_epochs: int = opt(10, "passes of step one", "epochs")
    impair_lr: float = opt(1e-3, "learning rate of step one (published: 1e-4)", low=0)
    impair_beta: float = opt(0.5, "step one descends impair_beta * L + (1 - impair_beta) * B (published: BMFT 0, SWiFT 0.1)", "share")
    impair_balanced: bool = opt(False, "draw the rows of step one balanced by group and label too (SWiFT)")
    repair_epochs: int = opt(10, "passes of step two", "epochs")
    repair_lr: float = opt(1e-3, "learning rate of step two, repair_fit=sgd", low=0)
    repair_fit: str = opt("lbfgs", "how step two fits the head: to convergence, or by passes of the optimiser (published)",
                          choices=("lbfgs", "sgd"))
    repair_l2: Optional[float] = opt(10.0, "strength of L2 on the head, on standardised features, repair_fit=lbfgs; null: chosen by log "
                                     "loss on validation rows", low=0)
    whole_lr: Optional[float] = opt(1e-4, "learning rate of comparisons that train the whole network; null: repair_lr (published)", low=0)
    beta: float = opt(1.0, "weight of B in the loss of step two: L + beta * B (published: 0.1)", low=0)
    convex: bool = opt(False, "step two descends (1 - beta) * L + beta * B (SWiFT)")
    reinit: str = opt("all", "head weights set to zero before step two: all, those whose mask is above its mean (SWiFT), or none",
                      choices=("all", "masked", "none"))
    optimizer: str = opt("adam", "optimiser of both steps (published: sgd; SWiFT's chest films: adam)", choices=("sgd", "adam"))
    momentum: float = opt(0.9, "SGD momentum", "share")
    weight_decay: float = opt(5e-4, "weight decay of both steps, on weights that are trained", low=0)
    l1: float = opt(0.0, "weight of the sum of absolute weights in the loss (published option alpha, 0.05, which never acts)", low=0)
    schedule: str = opt("cosine", "learning rate over the epochs of a step", choices=("cosine", "constant"))
    exact: bool = opt(True, "weights outside the mask stay as they are bit for bit: no decay, no momentum (released code: they move)")
    hold_norms: bool = opt(True, "running statistics of batch norms stay as they are (released code: they move)")
    stop: str = opt("val", "which state is kept: the best on validation rows by bias and AUC, or the last (published)",
                    choices=("val", "last"))
    auc_tolerance: float = opt(0.01, "stop=val: most validation AUC to give up against the classifier as delivered", "share")


@dataclass
class BMFTConfig(PatchMethodConfig):
    """Bias-based weight masking fine-tuning: a hard mask, a new head (Xue et al., MICCAI 2024 FAIMI)."""

    name: str = opt("bmft", "registry name of the method")


@dataclass
class SWiFTConfig(PatchMethodConfig):
    """Soft-mask weight fine-tuning: steps scaled by tanh of the ratio, head re-initialised in part (Xue et al., MELBA 2025)."""

    name: str = opt("swift", "registry name of the method")
    soft_mask: bool = opt(True, "scale steps by tanh(ratio) in place of a mask of zeros and ones (BMFT: false)")
    impair_lr: float = opt(3e-5, "learning rate of step one (published: 1e-4)", low=0)
    impair_balanced: bool = opt(True, "draw the rows of step one balanced by group and label too")
    beta: float = opt(0.5, "weight of B in the loss of step two: (1 - beta) * L + beta * B (published: 0.1)", low=0)
    convex: bool = opt(True, "step two descends (1 - beta) * L + beta * B")
    reinit: str = opt("masked", "head weights set to zero before step two: all, those whose mask is above its mean, or none",
                      choices=("all", "masked", "none"))


@dataclass
class PatchComparisonConfig(PatchMethodConfig):
    """What a patch is compared with, made on the same rows for the same number of epochs; its result is a patch too."""

    name: str = opt("comparison", "registry name of the method")
    kind: str = opt("full_both", "which: " + ", ".join(COMPARISONS), choices=tuple(COMPARISONS))


PATCH_METHODS: dict[str, type[MethodConfig]] = {"bmft": BMFTConfig, "swift": SWiFTConfig, "comparison": PatchComparisonConfig}
"""Methods of `evenhand patch make`: registry name -> configuration."""


@dataclass
class ExternalDataConfig(DataConfig):
    """The external set: a prepared data set that the classifier was not trained on."""

    val_fraction: float = opt(0.3, "share of the external set's patients that thresholds are chosen and training is stopped on; the "
                              "others are learnt from", "share")


@dataclass
class FinishedModelConfig(ModelConfig):
    """A finished classifier: a run folder that trained a network, or a checkpoint with its head."""

    head: Optional[str] = opt(None, "a checkpoint's head: the name in front of its .weight and .bias; default: known names are looked for")


@dataclass
class PatchMakeConfig:
    """`evenhand patch make`: a patch for a finished classifier, learnt from a small external set; writes a run folder."""

    default_method: ClassVar[str] = "bmft"
    methods: ClassVar[tuple[str, ...]] = tuple(PATCH_METHODS)

    data: ExternalDataConfig = field(default_factory=ExternalDataConfig)
    model: FinishedModelConfig = field(default_factory=FinishedModelConfig)
    method: Any = field(default_factory=MethodConfig)
    external: Optional[list[str]] = opt(None, "splits of the data set that are the external set; default: train and val, or val alone "
                                        "where the classifier is a run that was trained on the same data set")
    comparisons: list[str] = opt([], "what to make on the same rows and test beside the patch: " + ", ".join(COMPARISONS))
    audit: AuditConfig = field(default_factory=AuditConfig)
    accelerator: str = opt("auto", "where to compute", choices=("auto", "cpu", "gpu", "mps"))
    seed: int = opt(0, "seed of every random stream")
    seeds: Optional[list[int]] = opt(None, "several seeds: one patch each under RUN/seed=k, the external set re-split by patient, test "
                                     "fixed")
    out: Optional[str] = opt(None, "run folder; default: runs/<time>-patch-<method>")
    deterministic: bool = opt(True, "refuse operations without a deterministic implementation where there is a choice")


def train_options(config: PatchMakeConfig, network: ModelConfig) -> TrainConfig:
    """The options of a patch as those of a run that scores images.

    Args:
        config: the options of the patch.
        network: how its network is built.
    """
    data = DataConfig(**{name: getattr(config.data, name) for name in DataConfig.__dataclass_fields__})
    return TrainConfig(
        data=data, model=replace(network), method=config.method, trainer=TrainerConfig(accelerator=config.accelerator, progress=False),
        audit=config.audit, seed=config.seed, out=config.out, deterministic=config.deterministic,
    )
