"""What making a patch ends with: the model, its state before and after, and what it took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass
class Cost:
    """Work in images that went through the network, so that it does not depend on the machine.

    A backward pass counts as two forward passes. Cached features of a frozen body count once, when they are made; steps
    of a head on them count as nothing.

    Attributes:
        forward: images that went forward.
        backward: images that went backward.
        rows: images of the external set; what one pass is.
        seconds: wall-clock time.

    Example:
        >>> Cost(forward=300, backward=100, rows=100).passes
        5.0
    """

    forward: int = 0
    backward: int = 0
    rows: int = 0
    seconds: float = 0.0

    @property
    def passes(self) -> float:
        """Forward passes over the external set that the work amounts to; an ordinary epoch of training is 3."""
        return (self.forward + 2 * self.backward) / max(self.rows, 1)

    def add(self, forward: int = 0, backward: int = 0) -> None:
        """Count images."""
        self.forward += forward
        self.backward += backward

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "passes": self.passes}


@dataclass(frozen=True)
class PatchOutcome:
    """A patched classifier and how it came to be.

    Attributes:
        model: the classifier that was given, with its new weights, in evaluation mode.
        before: its state dictionary as delivered, on the CPU; with ``after`` all that `evenhand.patches.make_patch` needs.
        after: its state dictionary now, on the CPU; entries outside the mask and the head are bit-identical to ``before``.
        history: one record an epoch: ``step`` ("impair" or "repair"), ``epoch``, losses, biases, AUCs.
        notes: sentences for the report.
        cost: what it took.
        mask: facts on the mask: ``selected, total, share`` and ``layers``, tensor name -> share selected. Empty where
            there is none.
    """

    model: nn.Module
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    history: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    cost: Cost = field(default_factory=Cost)
    mask: Mapping[str, Any] = field(default_factory=dict)
