"""The configuration of image edits (DNE, GeZO) and of the commands around them, free of heavy imports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

from omegaconf import MISSING

from evenhand.config.schema import DataConfig, MethodConfig, ModelConfig, TrainerConfig, opt

FAMILIES = ("pixel", "lowres", "dct", "border", "tone", "spectral", "residual")
OBJECTIVES = ("published", "confusion", "hidden")
OPTIMIZERS = ("surrogate", "cma", "spsa", "gezo")


@dataclass
class EditMethodConfig(MethodConfig):
    """What DNE and GeZO share: the edit's family and bounds, and what it is trained for."""

    attributes: Optional[list[str]] = opt(None, "sensitive attributes that one edit hides together; default: the first of the data set")
    family: list[str] = opt(["residual"], "kinds of edit, applied in this order: " + ", ".join(FAMILIES))
    per_channel: bool = opt(False, "pixel, lowres, dct, border: one plane a channel instead of one plane for all (published: one)")
    resolution: int = opt(16, "lowres: height and width of the small plane; dct: frequencies a side", "pixels")
    border: float = opt(0.1, "border: width of the frame, share of the shorter side", "share")
    knots: int = opt(8, "tone: knots of the monotone curve", low=2)
    bands: int = opt(16, "spectral: radial frequency bands", low=2)
    width: int = opt(12, "residual: feature channels", low=1)
    depth: int = opt(3, "residual: convolution layers", low=2)
    kernel: int = opt(5, "residual: kernel height and width (odd)", "pixels")
    linf: Optional[float] = opt(None, "largest change of a pixel, in [0, 1]; default: unbounded", low=0)
    l2: Optional[float] = opt(None, "largest Euclidean norm of the change of an image, [0, 1] units; default: unbounded", low=0)
    min_ssim: Optional[float] = opt(None, "least structural similarity of an edited image to its original; default: unbounded", "share")
    clamp: bool = opt(True, "keep edited pixels in [0, 1] (released code: no)")
    rounding: str = opt("8bit", "round edited pixels as an image file does; gradients pass straight through",
                        choices=("none", "8bit", "16bit"))
    objective: str = opt("hidden", "published: minus the cross-entropy of a frozen attribute head; confusion: its distance from knowing "
                         "nothing; hidden: what a re-fitted head reads", choices=OBJECTIVES)
    given_label: bool = opt(True, "hidden: only what the label does not explain (what equalized odds asks for)")
    attribute_weight: float = opt(1.0, "weight of the attribute's term (published lambda_1)", low=0)
    norm_weight: float = opt(0.0, "weight of the L2 norm of the edit (published lambda_reg 0.001)", low=0)
    utility: float = opt(1.0, "weight of the disease head's loss on edited images, groups balanced; 0: off (published)", low=0)
    odds: float = opt(0.0, "weight of the smooth equalized-odds term of the disease head", low=0)
    refit_every: int = opt(20, "steps or rounds between re-fits of the heads on edited images", low=1)
    reference_images: int = opt(1024, "training images that heads are re-fitted on", "images")
    head: str = opt("lbfgs", "attribute head: lbfgs (to convergence, L2 chosen on validation rows) or adam (published)",
                    choices=("lbfgs", "adam"))
    head_lr: float = opt(1e-4, "head=adam: learning rate", low=0)
    head_epochs: int = opt(50, "head=adam: passes over the training rows", "epochs")
    head_batch_size: int = opt(64, "head=adam: images a step", "images")
    l2_head: Optional[float] = opt(None, "L2 strength of the disease head; default: chosen on validation rows", low=0)
    measure: bool = opt(True, "report what the edit hides on validation rows; embeds training and validation images under the edit")
    controls: bool = opt(True, "also measure the two controls: no edit, and Gaussian noise of the same size")


@dataclass
class DNEConfig(EditMethodConfig):
    """An image edit trained with the encoder's gradient (Debiased Noise Editing, MICCAI 2024), then a linear probe."""

    name: str = opt("dne", "registry name of the method")
    epochs: int = opt(24, "passes over the training rows", "epochs")
    batch_size: int = opt(64, "images a step (published: 128)", "images")
    lr: float = opt(36.0, "peak step of Adam, in natural steps of the family, all parameters together (published: 5e-5 for each)", low=0)
    natural_steps: bool = opt(True, "measure lr in the family's natural steps; false: it is the step of each parameter")
    schedule: str = opt("cosine", "learning-rate schedule", choices=("constant", "cosine"))
    reset_optimizer: bool = opt(False, "new Adam moments every epoch (as published)")
    patience: int = opt(0, "epochs without a better validation objective before stopping; 0 = off", "epochs")
    cross_fit: bool = opt(False, "fit heads on one half of the patients and take steps on the other, by turns, so that the loss is "
                          "one of images that heads have not seen")


@dataclass
class GeZOConfig(EditMethodConfig):
    """An image edit trained by queries alone, for encoders behind an API (Greedy Zeroth Order and relatives)."""

    name: str = opt("gezo", "registry name of the method")
    family: list[str] = opt(["spectral"], "kinds of edit, applied in this order: " + ", ".join(FAMILIES))
    optimizer: str = opt("surrogate", "surrogate: the gradient of a network that learns the encoder's answers; cma: CMA-ES; spsa: "
                         "two-sided differences with Adam; gezo: greedy search (published)", choices=OPTIMIZERS)
    budget: int = opt(50_000, "most images ever sent to the encoder for the search; a hard limit", "images")
    price: float = opt(0.0, "price of 1000 images sent, for the cost estimate", low=0)
    price_per_request: float = opt(0.0, "price of one request sent, beside that of its images, for the cost estimate", low=0)
    rounds: int = opt(0, "most rounds; 0 = as the budget allows (published: 50)", low=0)
    query_images: int = opt(32, "images a query, the same for all candidates of a round (published: 2 batches of 128)", "images")
    validation_images: int = opt(256, "validation images that decide which edit is kept, measured at every check; "
                                 "0 = the last edit is kept (published)", "images", low=0)
    draws: int = opt(10, "gezo, spsa: directions a round (published: 10); surrogate: edits asked about", low=1)
    population: int = opt(8, "cma: candidates a round; 0 = the library's choice", low=0)
    step: float = opt(6.0, "first step in natural steps of the family (published: 0.03 in pixel units)", low=0)
    natural_steps: bool = opt(True, "measure steps in the family's natural steps")
    lr: float = opt(0.1, "spsa: Adam's learning rate, in natural steps", low=0)
    edit_lr: float = opt(12.0, "surrogate: peak step of Adam on the edit, in natural steps, all parameters together", low=0)
    edit_steps: int = opt(140, "surrogate: steps of the edit's training a round, to whole passes over its images", "steps", low=1)
    surrogate_steps: int = opt(800, "surrogate: steps of its own training in the first round, a third of them in later ones", "steps",
                               low=1)
    surrogate_width: int = opt(16, "surrogate: maps of its first layer, a multiple of 4", low=4)
    momentum: float = opt(0.9, "gezo: momentum of accepted directions", low=0)
    step_decay: float = opt(0.95, "gezo: factor of the step after a round without improvement", low=0)
    restarts: int = opt(2, "restarts (not spsa) from the best edit when the step has shrunk to nothing", low=0)
    patience: int = opt(30, "rounds without a better held-out objective before stopping (surrogate: patience / refit_every of its "
                            "rounds); 0 = off", low=0)
    same_batch: bool = opt(True, "compare candidates of a round on the same images (released code: no)")
    check_incumbent: bool = opt(True, "evaluate the current edit on the round's images, accept only what beats it (released code: no)")
    both_signs: bool = opt(True, "use both directions of a draw (released code: only plus)")
    keep_momentum: bool = opt(True, "keep momentum between rounds (released code: no)")
    keep_step: bool = opt(True, "keep the decayed step between rounds (released code: no)")
    coast: bool = opt(True, "gezo: the momentum's step is a candidate of its own, so that every accepted edit was measured (published: no)")
    refit_every: int = opt(8, "rounds between checks (surrogate: 1): heads re-fitted on edited images, and the held-out objective", low=1)
    reference_images: int = opt(512, "training images that heads are re-fitted on", "images")
    concurrency: int = opt(4, "requests in flight at once (an encoder behind an API)", low=1)


@dataclass
class EditTrainConfig:
    """`evenhand edit train`: train an edit against a sensitive attribute; writes a run folder with edit.safetensors."""

    default_method: ClassVar[str] = "dne"
    methods: ClassVar[tuple[str, ...]] = ("dne", "gezo")

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: Any = field(default_factory=MethodConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    attribute_head: Optional[str] = opt(None, "folder written by `evenhand edit head`; default: the head is fitted here")
    seed: int = opt(0, "seed of every random stream")
    out: Optional[str] = opt(None, "run folder; default: runs/<time>-edit-<method>")
    embeddings: Optional[str] = opt(None, "folder of cached embeddings; default: embeddings/ in the prepared data set")
    deterministic: bool = opt(True, "refuse operations without a deterministic implementation where there is a choice")


@dataclass
class EditHeadConfig(EditTrainConfig):
    """`evenhand edit head`: fit and test the attribute head on unedited images."""


@dataclass
class EditApplyConfig:
    """`evenhand edit apply`: write edited copies of image files."""

    edit: str = opt(MISSING, "edit.safetensors, a run folder that holds one, or a published noise_layer.pt")
    images: str = opt(MISSING, "an image file, or a folder of PNG, JPEG, TIFF and DICOM files")
    out: str = opt(MISSING, "folder for the edited copies")
    native: bool = opt(False, "keep each file's own size: the edit is resized to it, and warned about")
    resize: str = opt("crop", "how a file is brought to the edit's grid", choices=("crop", "pad", "stretch"))
    quality: int = opt(95, "JPEG quality", low=1)
    overwrite: bool = opt(False, "replace files that exist in out")


@dataclass
class EditInspectConfig:
    """`evenhand edit inspect`: what an edit is, and what it does to images."""

    edit: str = opt(MISSING, "edit.safetensors, a run folder that holds one, or a published noise_layer.pt")
    data: Optional[str] = opt(None, "a prepared data set, or a folder of images, to measure the edit on")
    n_images: int = opt(256, "images to measure on, spread over the data", "images")
    show_images: bool = opt(False, "put sample images on the page (they leave the data set with it)")
    amplify: float = opt(10.0, "factor of the change in the pictures", low=0)
    out: Optional[str] = opt(None, "folder for inspect.json and inspect.html; default: print only")


@dataclass
class ServeConfig:
    """`evenhand serve`: embeddings over the Open Inference Protocol v2, or a proxy that edits images on their way."""

    model: Optional[str] = opt(None, "serve this encoder: a preset, weights, a timm name, or a run folder (its encoder)")
    architecture: Optional[str] = opt(None, "timm name of weights that do not say what they are")
    upstream: Optional[str] = opt(None, "edit images and pass them on to the server at this address")
    upstream_api: str = opt("v2", "what the upstream speaks, and so what clients send: v2 (Open Inference Protocol), cxr_foundation "
                            "(Vertex AI), medimageinsight (Azure)", choices=("v2", "cxr_foundation", "medimageinsight"))
    edit: Optional[str] = opt(None, "an edit put on every image: edit.safetensors, a run folder, or a published noise_layer.pt")
    name: Optional[str] = opt(None, "model name in addresses; default: the architecture's, or the upstream's")
    host: str = opt("127.0.0.1", "address to listen on")
    port: int = opt(8080, "port to listen on; 0 = any free one, printed", low=0)
    grid: Optional[list[int]] = opt(None, "(height, width) that images are sent in; default: the encoder's input size", "pixels")
    max_batch: int = opt(256, "most images a request", "images")
    batch_wait: float = opt(0.002, "seconds that a request waits for others to share its forward pass", "seconds", low=0)
    max_bytes: int = opt(256 * 2**20, "largest request body", "bytes", low=1)
    timeout: float = opt(60.0, "seconds until a request is given up", "seconds", low=0.001)
    rate: float = opt(0.0, "images a second one client may send on average; 0 = no limit", low=0)
    queue: int = opt(1024, "most requests waiting; more are answered 429", low=1)
    accelerator: str = opt("auto", "where the encoder runs", choices=("auto", "cpu", "gpu", "mps"))
    threads: int = opt(0, "processor threads of the encoder; 0 = all", low=0)
    precision: str = opt("fp32", "embedding arithmetic", choices=("fp32", "bf16"))
    require_token: bool = opt(False, "do not start unless EVENHAND_TOKEN holds the bearer token (where it is set, it is always asked for)")
    certificate: Optional[str] = opt(None, "TLS certificate file")
    key: Optional[str] = opt(None, "TLS key file")


@dataclass
class EditMeasureConfig:
    """`evenhand edit measure`: what an edit hides and what it only fools, with its two controls, on any encoder and finding."""

    edit: str = opt(MISSING, "edit.safetensors, a run folder that holds one, or a published noise_layer.pt")
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    attribute_head: Optional[str] = opt(
        None, "folder written by `evenhand edit head`: the old heads of *fooled*; default: those in the edit's run folder, where the "
        "encoder is the same, else they are fitted here"
    )
    pixel_reader: bool = opt(False, "also train an image classifier of the attribute afresh on edited pixels (minutes)")
    split: str = opt("test", "rows to measure on; heads are fitted on train", choices=("val", "test"))
    bootstrap: int = opt(1000, "patient-clustered bootstrap replicates", "replicates")
    seed: int = opt(0, "seed of every random stream")
    embeddings: Optional[str] = opt(None, "folder of cached embeddings; default: embeddings/ in the prepared data set")
    out: Optional[str] = opt(None, "output folder; default: runs/<time>-edit-measure")
