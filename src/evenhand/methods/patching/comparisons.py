"""What a patch is compared with, behind the signature of `make_patched`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evenhand.errors import MethodError

if TYPE_CHECKING:
    from torch import nn

    from evenhand.config.patch_methods import PatchComparisonConfig
    from evenhand.methods.base import Task
    from evenhand.methods.patching.outcome import PatchOutcome


def make_comparison(task: Task, model: nn.Module, config: PatchComparisonConfig) -> PatchOutcome:
    """One of `evenhand.config.patch_methods.COMPARISONS`, by ``config.kind``; arguments as for `make_patched`."""
    raise MethodError("comparisons cannot be made in this version yet")
