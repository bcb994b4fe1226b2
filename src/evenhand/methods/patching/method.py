"""BMFT and SWiFT: a patch for a finished classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evenhand.errors import MethodError

if TYPE_CHECKING:
    from torch import nn

    from evenhand.config.patch_methods import PatchMethodConfig
    from evenhand.methods.base import Task
    from evenhand.methods.patching.outcome import PatchOutcome


def make_patched(task: Task, model: nn.Module, config: PatchMethodConfig) -> PatchOutcome:
    """Patch a finished classifier; see `PatchOutcome`.

    Args:
        task: the external set: ``train`` is learnt from, ``val`` stops and picks; its ``store`` keeps the state of a run
            that is killed, its ``embed``, ``embedder``, ``build_model`` and ``trainer`` are not used.
        model: the finished `ImageClassifier` with its own head, one logit a label or class; changed in place.
        config: `BMFTConfig`, `SWiFTConfig`, or any with their options.
    """
    raise MethodError("patches cannot be made in this version yet")
