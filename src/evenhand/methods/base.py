"""The seams of a method: what it is given (`Task`), what it gives back (`Result`), and where it may keep state (`Store`).

A method gets tensors and callables. It never reads arguments, writes files or draws; verdicts about its result are made
by the evaluation room from predictions alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from evenhand.config.schema import TrainerConfig
from evenhand.data.groups import Groups

Kind = Literal["binary", "multiclass", "multilabel"]
FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]


@runtime_checkable
class Images(Protocol):
    """Images by position. Batches are float32 in [0, 1], shape (n, c, h, w), before any normalisation.

    Deterministic: the same positions give the same numbers. ``fingerprint`` identifies content and order.
    """

    shape: tuple[int, int, int]
    fingerprint: str

    def __len__(self) -> int: ...

    def batch(self, positions: IntArray | slice) -> torch.Tensor: ...


@runtime_checkable
class Embedder(Protocol):
    """A frozen encoder: images (n, c, h, w) float32 in [0, 1] -> embeddings (n, dim) float32.

    Repeats a single channel, resizes to ``input_size`` (height, width) and normalises by itself. ``n_images`` counts
    every image sent. ``differentiable`` says whether a gradient with respect to the images is available.
    """

    @property
    def dim(self) -> int: ...

    @property
    def input_size(self) -> tuple[int, int]: ...

    @property
    def channels(self) -> int: ...

    @property
    def differentiable(self) -> bool: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def n_images(self) -> int: ...

    def __call__(self, images: torch.Tensor) -> torch.Tensor: ...


class Store(Protocol):
    """The only way a method keeps state between calls or across a kill. Every write is atomic.

    A store belongs to one process; ``put`` replaces, ``append`` adds one JSON-serialisable record to a log.
    """

    def get(self, key: str) -> Any | None: ...

    def put(self, key: str, value: Any) -> None: ...

    def append(self, key: str, record: Mapping[str, Any]) -> None: ...


@dataclass
class MemoryStore:
    """A store that ends with the call; its logs are not kept.

    Example:
        >>> store = MemoryStore()
        >>> store.put("state", 3)
        >>> store.get("state"), store.get("other")
        (3, None)
    """

    values: dict[str, Any] = field(default_factory=dict)

    def get(self, key: str) -> Any | None:
        """The value last put, or None."""
        return self.values.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a value, not a copy of it."""
        self.values[key] = value

    def append(self, key: str, record: Mapping[str, Any]) -> None:
        """Nothing reads it."""


class BuildModel(Protocol):
    """A new trainable classifier with a fresh head; see `Task`."""

    def __call__(self, n_outputs: int, /, *, from_scratch: bool = False) -> torch.nn.Module: ...


@dataclass(frozen=True)
class Split:
    """The rows of one split.

    Attributes:
        x: the images, n of them.
        y: binary and multi-label: float32 (n, L) in {0, 1}, NaN where unlabelled. Multi-class: int64 (n,), -1 where
            unlabelled.
        groups: attribute name -> `Groups`, codes (n,), -1 where missing.
        patient: int64 (n,), equal for images of one patient.
        index: int64 (n,), row numbers in the table.
    """

    x: Images
    y: npt.NDArray[Any]
    groups: Mapping[str, Groups]
    patient: IntArray
    index: IntArray

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class Task:
    """What a method is given.

    Attributes:
        train: rows to learn from.
        val: rows to select and to stop on; may be empty.
        kind: "binary", "multiclass" or "multilabel".
        labels: label column names, L of them (binary and multi-class: one).
        classes: multi-class: the C class names; else empty.
        attributes: names of the sensitive attributes, joint ones written ``sex*age``; the first is the default target.
        seed: every random stream of the method derives from it.
        device: where tensors live.
        store: state kept between calls; a resumed run gets the same one.
        embed: images -> (n, dim) float32 array, through the run's frozen encoder, cached on disk.
        embedder: the frozen encoder itself, for methods that query it image by image or need its gradient; called on
            images it counts every image sent. None where a task has none.
        build_model: number of outputs -> a new trainable classifier taking images in [0, 1]
            (`evenhand.models.ImageClassifier`), initialised from the run's checkpoint and ``seed``; with
            ``from_scratch=True`` the same architecture at random, the checkpoint ignored.
        trainer: settings of the training loop.
        batch_size: images per optimiser step.
        report: called with a short text when there is progress to show.
        log: called with the record of every epoch of training, while it runs.
    """

    train: Split
    val: Split
    kind: Kind
    labels: tuple[str, ...]
    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    seed: int
    device: torch.device
    store: Store
    embed: Callable[[Images], npt.NDArray[np.float32]]
    build_model: BuildModel
    trainer: TrainerConfig
    batch_size: int = 64
    augment: str = "none"
    embedder: Embedder | None = None
    report: Callable[[str], None] = field(default=lambda text: None)
    log: Callable[[Mapping[str, Any]], None] = field(default=lambda record: None)

    @property
    def n_outputs(self) -> int:
        """Number of logits: 1 for binary, L for multi-label, C for multi-class."""
        if self.kind == "multiclass":
            return len(self.classes)
        return len(self.labels)


class Predictor(Protocol):
    """Scores images. Saved as plain tensors plus a small JSON description, restored with `predictor_from_state`.

    ``predict`` returns ``(scores, decisions)``: scores are probabilities, float64 (n, L) for binary and multi-label,
    (n, C) for multi-class; decisions are None unless the method decides by itself (per-group thresholds), then int64
    (n, L). ``groups`` is only read where ``needs_groups`` is true.
    """

    @property
    def needs_groups(self) -> bool: ...

    def predict(
        self, images: Images, groups: Mapping[str, Groups] | None = None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64] | None]: ...

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]: ...


@dataclass(frozen=True)
class Result:
    """What a method gives back.

    Attributes:
        predictor: scores images.
        history: one record an epoch or an iteration, JSON-serialisable.
        artifacts: file name -> bytes of what the user takes home beside the predictor (an edit, a mask, a patch).
        notes: sentences for the report (what the method did not or could not do).
    """

    predictor: Predictor
    history: Sequence[Mapping[str, Any]] = ()
    artifacts: Mapping[str, bytes] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def predict(
        self, images: Images, groups: Mapping[str, Groups] | None = None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64] | None]:
        """Scores and, where the method decides by itself, decisions; see `Predictor`."""
        return self.predictor.predict(images, groups)


class Method(Protocol):
    """One way to get a classifier. ``fit`` is deterministic given ``task.seed`` (on one machine, on CPU)."""

    def fit(self, task: Task) -> Result: ...
