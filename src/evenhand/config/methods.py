"""The configuration of every method, free of heavy imports so that ``--help`` is instant. The method itself is in methods/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from evenhand.config.editing import DNEConfig, GeZOConfig
from evenhand.config.patch_methods import PATCH_METHODS
from evenhand.config.schema import MethodConfig, opt

SCOPES = ("head", "full")
L2_HELP = "L2 strength on standardised embeddings (mean loss + l2/2 * ||w||^2); default: chosen on validation rows"


@dataclass
class LinearProbeConfig(MethodConfig):
    """Logistic regression on frozen embeddings."""

    name: str = opt("linear_probe", "registry name of the method")
    l2: Optional[float] = opt(None, L2_HELP, low=0)
    standardize: bool = opt(True, "scale embeddings to zero mean and unit variance on the training rows")
    solver: str = opt("lbfgs", "lbfgs: logistic loss; ridge: least squares in closed form", choices=("lbfgs", "ridge"))
    class_weights: str = opt("none", "weights of classes in the loss", choices=("none", "balanced"))
    max_iter: int = opt(1000, "most L-BFGS iterations", "iterations")
    tol: float = opt(1e-6, "stop when the largest absolute gradient entry is below this", low=0)


@dataclass
class FinetuneConfig(MethodConfig):
    """Fine-tuning by empirical risk minimisation, of the whole network or of the parts that a mask names."""

    name: str = opt("finetune", "registry name of the method")
    freeze: str = opt("none", "parts that stay as they are", choices=("none", "backbone", "norms", "all_but_norms"))
    from_scratch: bool = opt(False, "ignore the checkpoint and initialise at random")
    warm_head: bool = opt(False, "start from a head fitted on embeddings of the network as it comes")
    mask: Optional[str] = opt(
        None, "what to train, also typed as mask=: a mask.json or the folder of a search that wrote one, a published .npy, or full, head, "
        "attention, norms, bitfit, random, lora"
    )
    mask_lr: Optional[float] = opt(None, "peak learning rate in place of the mask's own; a .npy has none", low=0)
    mask_space: Optional[str] = opt(None, "search space of a .npy, or to draw mask=random from; default: told by the network")
    mask_n: Optional[int] = opt(None, "mask=random: number of trained parts (default half); mask=lora: the rank (default 8)", low=0)
    mask_like: Optional[str] = opt(None, "mask=random: a mask.json whose size the random mask has")
    mask_seed: Optional[int] = opt(None, "mask=random: seed of the draw; default: the run's")
    mask_other_weights: bool = opt(False, "take a mask.json that was searched on other weights of this architecture")


@dataclass
class _GroupedConfig(MethodConfig):
    attribute: Optional[str] = opt(None, "sensitive attribute; default: the first one of the data set")
    scope: str = opt("head", "head: on frozen embeddings, seconds; full: the whole network", choices=SCOPES)
    l2: Optional[float] = opt(None, L2_HELP, low=0)
    max_iter: int = opt(1000, "scope=head: most iterations", "iterations")
    tol: float = opt(1e-6, "scope=head: gradient tolerance", low=0)


@dataclass
class ResampleConfig(_GroupedConfig):
    """Draw rows so that every group x label cell is seen equally often."""

    name: str = opt("resample", "registry name of the method")


@dataclass
class ReweightConfig(_GroupedConfig):
    """Weigh rows so that every group x label cell counts equally."""

    name: str = opt("reweight", "registry name of the method")


@dataclass
class GroupDROConfig(_GroupedConfig):
    """Minimise the worst group x label cell's loss (Sagawa et al., ICLR 2020)."""

    name: str = opt("group_dro", "registry name of the method")
    step_size: float = opt(0.01, "step of the exponentiated group weights (authors' default 0.01)", low=0)
    adjustment: float = opt(0.0, "generalisation adjustment C / sqrt(n_g)", low=0)
    cells: str = opt("group_label", "what competes", choices=("group_label", "group"))
    gap_tol: float = opt(1e-3, "scope=head: stop when the worst cell's loss is provably within this of the best possible")


@dataclass
class DFRConfig(MethodConfig):
    """Deep feature re-weighting: refit the last layer on group-balanced held-out rows (Kirichenko et al., ICLR 2023)."""

    name: str = opt("dfr", "registry name of the method")
    attribute: Optional[str] = opt(None, "sensitive attribute; default: the first one of the data set")
    scope: str = opt("head", "features of the frozen encoder (head) or of a fine-tuned one (full)", choices=SCOPES)
    held_out: str = opt("val", "rows the head is refitted on: val (published) or a share of train", choices=("val", "train"))
    share: float = opt(0.2, "held_out=train: share of the training patients", "share")
    n_models: int = opt(10, "balanced subsets whose heads are averaged (published: 10)", low=1)
    l2: Optional[float] = opt(None, L2_HELP, low=0)


@dataclass
class EOHeadConfig(MethodConfig):
    """Head on frozen embeddings with a smooth equalized-odds penalty."""

    name: str = opt("eo_head", "registry name of the method")
    attribute: Optional[str] = opt(None, "sensitive attribute; default: the first one of the data set")
    strength: float = opt(1.0, "weight of the penalty", low=0)
    pairs: str = opt("max", "more than two groups: worst pair or mean over pairs", choices=("max", "mean"))
    l2: Optional[float] = opt(None, L2_HELP, low=0)
    max_iter: int = opt(500, "most L-BFGS iterations", "iterations")


@dataclass
class LEACEConfig(MethodConfig):
    """Least-squares concept erasure of the attribute, then a linear probe (Belrose et al., NeurIPS 2023)."""

    name: str = opt("leace", "registry name of the method")
    attribute: Optional[str] = opt(None, "sensitive attribute; default: the first one of the data set")
    given_label: bool = opt(False, "erase only what the label does not explain")
    l2: Optional[float] = opt(None, L2_HELP, low=0)


@dataclass
class LeastEncodingConfig(MethodConfig):
    """The probe on those leading principal components that tell least of the attribute, at next to no AUC (after Yang et al., 2024)."""

    name: str = opt("least_encoding", "registry name of the method")
    attribute: Optional[str] = opt(None, "sensitive attribute; default: the first one of the data set")
    given_label: bool = opt(True, "count only what tells the groups apart among rows of one label value")
    components: Optional[list[int]] = opt(None, "numbers of components to try beside all of them; default: powers of two from 8", low=1)
    tolerance: float = opt(0.01, "most validation AUC to give up against the best candidate", low=0)
    l2: Optional[float] = opt(None, L2_HELP, low=0)


@dataclass
class ThresholdsConfig(MethodConfig):
    """Per-group thresholds on a linear probe's scores (fairlearn's ThresholdOptimizer; needs the attribute at use)."""

    name: str = opt("thresholds", "registry name of the method")
    attribute: Optional[str] = opt(None, "sensitive attribute; default: the first one of the data set")
    constraint: str = opt("equalized_odds", "what the thresholds equalise on validation rows",
                          choices=("equalized_odds", "true_positive_rate_parity", "false_positive_rate_parity", "demographic_parity"))
    objective: str = opt("balanced_accuracy_score", "what is maximised under the constraint",
                         choices=("accuracy_score", "balanced_accuracy_score"))
    l2: Optional[float] = opt(None, L2_HELP, low=0)


@dataclass
class FairPruneConfig(MethodConfig):
    """Set weights to zero that matter to the privileged group and little to the others (Wu et al., MICCAI 2022)."""

    name: str = opt("fairprune", "registry name of the method")
    attribute: Optional[str] = opt(None, "sensitive attribute; default: the first one of the data set")
    share: float = opt(0.35, "share of the weights that are zero after the last round", "share")
    rounds: int = opt(7, "steps in which they are set to zero: each measures anew and doubles their number", low=1)
    beta: float = opt(0.33, "how much the privileged group's saliency counts against a weight", low=0)
    privileged: Optional[str] = opt(None, "the privileged group; default: the one with the highest AUC on validation rows")
    pairs: str = opt("max", "more than two groups: against the one with the lowest AUC, or the mean of all others", choices=("max", "mean"))
    pick: str = opt("gap", "gap: the round of the smallest validation gap within the tolerance; last: all of share",
                    choices=("gap", "last"))
    tolerance: float = opt(0.02, "pick=gap: most validation AUC to give up against the network as trained", low=0)
    images: int = opt(500, "training images of a group that curvature is measured on", "images")
    curvature_batch: int = opt(2, "images a backward pass of that measurement; 1 is exact, more is faster and noisier", "images")


@dataclass
class FSCLConfig(MethodConfig):
    """Encoder trained by the fair supervised contrastive loss, then a linear head (Park et al., CVPR 2022)."""

    name: str = opt("fscl", "registry name of the method")
    attribute: Optional[str] = opt(None, "sensitive attribute; default: the first one of the data set")
    temperature: float = opt(0.1, "temperature of the loss (authors' default 0.1)", low=0.001)
    dim: int = opt(128, "numbers in a projection (authors' default 128)", low=1)
    normalise: bool = opt(True, "group-wise normalisation (FSCL+): every group x label cell counts equally")
    l2: Optional[float] = opt(None, L2_HELP, low=0)


METHOD_CONFIGS: dict[str, type[MethodConfig]] = {
    "linear_probe": LinearProbeConfig,
    "finetune": FinetuneConfig,
    "resample": ResampleConfig,
    "reweight": ReweightConfig,
    "group_dro": GroupDROConfig,
    "dfr": DFRConfig,
    "eo_head": EOHeadConfig,
    "leace": LEACEConfig,
    "least_encoding": LeastEncodingConfig,
    "thresholds": ThresholdsConfig,
    "fairprune": FairPruneConfig,
    "fscl": FSCLConfig,
    "dne": DNEConfig,
    "gezo": GeZOConfig,
}
"""Methods of `evenhand train` and `evenhand edit train`: registry name -> configuration."""
EVERY_METHOD: dict[str, type[MethodConfig]] = {**METHOD_CONFIGS, **PATCH_METHODS}
"""With those of `evenhand patch make`, which start from a finished classifier."""
