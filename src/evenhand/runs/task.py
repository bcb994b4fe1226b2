"""From a configuration and a prepared data set to a method's `Task`: rows, splits, the cached encoder, the model builder."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from evenhand.config.editing import EditTrainConfig, GeZOConfig
from evenhand.config.schema import DataConfig, ModelConfig, TrainConfig
from evenhand.data.datasets import PreparedData
from evenhand.data.groups import Groups
from evenhand.data.splits import fold_validation, redraw_validation
from evenhand.edits.artifact import StoredEdit, encoder_names
from evenhand.errors import InputError, MethodError, TableError
from evenhand.methods.base import Embedder, Images, Split, Store, Task
from evenhand.models import EmbeddingCache, ImageClassifier, LocalEmbedder, build_classifier
from evenhand.models.paid import PaidEmbedder
from evenhand.models.shared import Relay, SharedEmbedder
from evenhand.runs.edited import edited_embed

if TYPE_CHECKING:
    from evenhand.models.remote import RemoteEmbedder

log = logging.getLogger(__name__)


def rank() -> int:
    """The position of this process in a distributed run; 0 alone writes."""
    return int(os.environ.get("RANK", "0"))


def pick_device(accelerator: str) -> torch.device:
    """The device behind ``trainer.accelerator``.

    Raises:
        InputError: a GPU was asked for and there is none.
    """
    if accelerator in ("auto", "gpu") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if accelerator in ("auto", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    if accelerator in ("gpu", "mps"):
        raise InputError(
            f"trainer.accelerator={accelerator} was asked for, but torch sees none here; use trainer=cpu, or see `evenhand doctor`"
        )
    return torch.device("cpu")


@dataclass
class Encoder:
    """The frozen encoder of a run, built when first used, its embeddings cached on disk.

    With ``config.url`` it is a server that answers with embeddings: then it has no weights here, and only the images that
    are asked for are sent.

    Args:
        config: which backbone and weights, or which server.
        seed: initialises what the weights do not cover.
        device: where it runs.
        folder: the embedding cache.
        progress: show a progress bar.
        relay: to other processes that embed a share of every batch.
    """

    config: ModelConfig
    seed: int
    device: torch.device
    folder: Path | None
    progress: bool = False
    relay: Relay | None = None
    _classifier: ImageClassifier | None = None
    _embedder: LocalEmbedder | RemoteEmbedder | None = None
    _base: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    @property
    def classifier(self) -> ImageClassifier:
        """The network without a head.

        Raises:
            MethodError: the encoder is a server.
        """
        if self.config.url:
            raise MethodError(
                "the weights of the encoder are needed, but model.url is a server that gives embeddings only; use a method that trains a "
                "head on embeddings (linear_probe, reweight, dfr, eo_head, leace, least_encoding, thresholds) or gezo, or give the weights "
                "with model="
            )
        if self._classifier is None:
            self._classifier = build_classifier(self.config, 0, self.seed)
        return self._classifier

    @property
    def embedder(self) -> LocalEmbedder | RemoteEmbedder:
        """The encoder with its normalisation and precision."""
        if self._embedder is None:
            self._embedder = self._make()
        return self._embedder

    def _make(self) -> LocalEmbedder | RemoteEmbedder:
        if self.config.url:
            from evenhand.models.remote import RemoteEmbedder

            return RemoteEmbedder.from_config(self.config)
        how = (self.classifier, self.config.precision, self.config.embed_batch_size, self.device)
        return LocalEmbedder(*how) if self.relay is None else SharedEmbedder(self.relay, *how)

    @property
    def fingerprint(self) -> str:
        """The hash of the encoder's weights and normalisation, without a head; of a server: what it says of its model."""
        return self.embedder.fingerprint

    def names(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        """The fingerprints that it goes by for images of (c, h, w); see `encoder_names`."""
        return encoder_names(self.embedder, shape)

    @property
    def built(self) -> bool:
        """Whether any image was embedded."""
        return self._embedder is not None and self._embedder.settled is not None

    @property
    def architecture(self) -> dict[str, Any]:
        """The network's name and the (height, width) it sees."""
        return {"name": str(self.embedder.describe()["name"]), "input_size": list(self.embedder.input_size)}

    @property
    def notes(self) -> list[str]:
        """What a user should know of the encoder: images sent with loss, a server whose answers change between calls."""
        return list(getattr(self.embedder, "notes", ()))

    def description(self) -> dict[str, Any]:
        """How images were embedded: weights, size, normalisation, the precision and how well it agreed with fp32."""
        embedder = self.embedder
        agreement = None if embedder.agreement is None else embedder.agreement.to_json()
        return {**embedder.describe(), "precision": embedder.settled, "agreement": agreement}

    def embed(self, images: Images) -> npt.NDArray[np.float32]:
        """Embeddings (n, dim) of images; those of a cache are computed once for all its images and then looked up.

        Edited images are kept apart by the hash of their edit.
        """
        base, edit_hash = getattr(images, "base", None), getattr(images, "edit_hash", None)
        if base is None or self.folder is None:
            return self.embedder.embed_images(images, progress=self.progress)
        cache = EmbeddingCache(self.folder)
        if self.config.url:
            return cache.get(self.embedder, images, edit_hash, progress=self.progress)
        everything = base.images()
        if everything.fingerprint not in self._base:
            self._base[everything.fingerprint] = cache.get(self.embedder, everything, edit_hash, progress=self.progress)
        return np.ascontiguousarray(self._base[everything.fingerprint][images.rows])  # type: ignore[attr-defined]


def choose(asked: list[str] | None, known: tuple[str, ...], what: str) -> tuple[str, ...]:
    """The asked names in their order, all of them where none was asked.

    Raises:
        InputError: a name the data set does not have; the nearest is offered.
    """
    import difflib

    if not asked:
        return known
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise InputError(f"{what} '{name}' is not in the prepared data set, which has {', '.join(known) or 'none'}{hint}")
    return tuple(asked)


def choose_attributes(asked: list[str] | None, data: PreparedData) -> tuple[str, ...]:
    """The asked attributes; joint ones may be made of any prepared columns.

    Raises:
        InputError: a part that the data set does not have.
    """
    prepared = tuple(data.spec.attributes)
    columns = tuple(dict.fromkeys(part for name in prepared for part in name.split("*")))
    for name in asked or ():
        choose(name.split("*"), columns, "attribute")
    return tuple(asked) if asked else prepared


@dataclass(frozen=True)
class Rows:
    """What a run reads from a prepared data set."""

    data: PreparedData
    labels: tuple[str, ...]
    attributes: tuple[str, ...]
    y: npt.NDArray[Any]
    groups: dict[str, Groups]
    split: npt.NDArray[np.object_]

    def take(self, name: str) -> Split:
        """One split's rows."""
        rows = np.flatnonzero(self.split == name)
        groups = {attribute: groups.take(rows) for attribute, groups in self.groups.items()}
        return Split(self.data.images(rows), self.y[rows], groups, self.data.patients[rows], rows)

    @property
    def kind(self) -> str:
        """binary, multiclass or multilabel, given the labels that were chosen."""
        if self.data.spec.kind == "multiclass":
            return "multiclass"
        return "binary" if len(self.labels) == 1 else "multilabel"

    @property
    def split_hash(self) -> str:
        """sha256 of the split of every row."""
        return hashlib.sha256("\n".join(map(str, self.split)).encode()).hexdigest()


def read_rows(config: DataConfig, seed: int, redraw: bool, fold: tuple[int, int] | None = None, *, to_train: bool = True) -> Rows:
    """Open a prepared data set and settle labels, attributes, missing values and splits.

    Args:
        config: the data options.
        seed: draws train and validation anew where ``redraw`` is true; the test rows never change.
        redraw: whether to re-draw train and validation, by patient.
        fold: (which, of how many) folds of a cross-validation over the rows outside test is validation.
        to_train: training rows are needed; a set to be judged on may have none.

    Raises:
        InputError: an unknown label or attribute.
        TableError: missing attributes under ``missing=error``, or no training rows.
    """
    data = PreparedData.open(config.path)
    labels = choose(config.labels, tuple(data.spec.labels), "label")
    attributes = choose_attributes(config.attributes, data)
    y = data.labels(list(labels))
    groups = data.groups(list(attributes))
    split = np.asarray(data.split, dtype=object)
    strata = np.nan_to_num(y[:, 0] if y.ndim == 2 else y, nan=-1).astype(np.int64)
    if fold is not None:
        split = np.asarray(fold_validation(split, data.patients, strata, fold[1], fold[0], seed), dtype=object)
    elif redraw:
        split = np.asarray(redraw_validation(split, data.patients, strata, config.val_fraction, seed), dtype=object)
    split = _apply_missing(config.missing, split, groups)
    if to_train and not (split == "train").any():
        raise TableError(f"{config.path} has no training rows left; check its split column and missing={config.missing}")
    return Rows(data, labels, attributes, y, groups, split)


def _apply_missing(policy: str, split: npt.NDArray[np.object_], groups: dict[str, Groups]) -> npt.NDArray[np.object_]:
    missing = np.zeros(len(split), dtype=bool)
    for item in groups.values():
        missing |= item.codes < 0
    if policy == "error" and missing.any():
        rows = np.flatnonzero(missing)
        counts = [f"{name}: {int((item.codes < 0).sum())} rows" for name, item in groups.items() if (item.codes < 0).any()]
        raise TableError(
            f"{len(rows)} rows have a missing attribute and data.missing=error; fill them in, or set data.missing=own_group or drop", counts
        )
    if policy == "drop" and missing.any():
        log.warning("%d rows with a missing attribute are left out (data.missing=drop)", int(missing.sum()))
        return np.where(missing, "dropped", split).astype(object)
    return split


def embeddings_folder(root: Path) -> Path | None:
    """Where embeddings of a prepared data set are kept: in itself; nowhere where it cannot be written."""
    if os.access(root, os.W_OK):
        return root / "embeddings"
    log.warning("%s cannot be written, so embeddings are not kept", root)
    return None


def make_task(
    config: TrainConfig | EditTrainConfig,
    rows: Rows,
    seed: int,
    store: Store,
    report: Callable[[str], None],
    edit: StoredEdit | None = None,
    paid: Path | None = None,
    log: Callable[[Mapping[str, Any]], None] = lambda record: None,
    relay: Relay | None = None,
) -> tuple[Task, Encoder]:
    """The `Task` of one seed and the run's frozen encoder.

    Args:
        config: the run's options.
        rows: what the run reads from its data set.
        seed: of every random stream.
        store: the method's state.
        report: called with a line of text when there is progress to show.
        edit: put on every image first: on those that are embedded, and as the frozen first step of a fine-tuned network.
        paid: folder that keeps every answer of an encoder that is paid for by the image.
        log: called with the record of every epoch of training.
        relay: to other processes that embed a share of every batch.
    """
    device = pick_device(config.trainer.accelerator)
    folder = Path(config.embeddings) if config.embeddings else embeddings_folder(rows.data.root)
    encoder = Encoder(config.model, config.seed, device, folder, config.trainer.progress and rank() == 0, relay)

    def build_model(n_outputs: int, /, *, from_scratch: bool = False) -> ImageClassifier:
        if config.model.url:
            raise MethodError(
                f"method={config.method.name} trains the network itself, but model.url is a server that gives embeddings only; use "
                "a method that trains a head (linear_probe, reweight, dfr, eo_head, leace, least_encoding, thresholds), or give the "
                "weights with model="
            )
        model = build_classifier(config.model, n_outputs, seed, from_scratch=from_scratch)
        return model if edit is None else model.with_edit(edit.edit)

    task = Task(
        train=rows.take("train"),
        val=rows.take("val"),
        kind=rows.kind,  # type: ignore[arg-type]
        labels=rows.labels,
        classes=tuple(rows.data.spec.classes),
        attributes=rows.attributes,
        seed=seed,
        device=device,
        store=store,
        embed=encoder.embed if edit is None else edited_embed(encoder, edit),
        build_model=build_model,
        trainer=config.trainer,
        batch_size=config.data.batch_size,
        augment=config.data.augment,
        embedder=_queried(config, encoder, paid),
        report=report,
        log=log,
    )
    return task, encoder


def _queried(config: TrainConfig | EditTrainConfig, encoder: Encoder, paid: Path | None) -> Embedder:
    """The encoder that methods query by themselves: counted, and never asked twice, where an image may cost something."""
    method = config.method
    if not isinstance(method, GeZOConfig):
        return encoder.embedder
    concurrency = method.concurrency if config.model.url else 1
    return PaidEmbedder(encoder.embedder, paid, method.budget, method.price, concurrency, method.price_per_request)
