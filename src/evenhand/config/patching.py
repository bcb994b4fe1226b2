"""The configuration of the commands that put a patch on a finished classifier, take it off and look at it, free of heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from omegaconf import MISSING

from evenhand.config.schema import opt


@dataclass
class PatchApplyConfig:
    """`evenhand patch apply`: the patched classifier, beside the one that was delivered."""

    patch: str = opt(MISSING, "patch.safetensors, or a run folder that holds one")
    model: str = opt(MISSING, "the classifier that the patch belongs to: a run folder, a checkpoint, or a folder with one")
    out: str = opt(MISSING, "what to write: a folder for a run or a folder, a file (or a folder for it) for a checkpoint")
    data: Optional[str] = opt(None, "the prepared data set of a run, to audit the patched classifier on; default: where the run found it")
    audit: bool = opt(True, "audit the patched classifier on the run's own data set, where that is at hand")


@dataclass
class PatchRevertConfig:
    """`evenhand patch revert`: the classifier as it was delivered, bit for bit."""

    model: str = opt(MISSING, "the patched classifier: a run folder, a checkpoint, or a folder with one")
    patch: Optional[str] = opt(None, "patch.safetensors, or a run folder that holds one; default: the one in the patched run folder")
    out: str = opt(MISSING, "what to write: a folder for a run or a folder, a file (or a folder for it) for a checkpoint")


@dataclass
class PatchInspectConfig:
    """`evenhand patch inspect`: which layers a patch changes, how much, and how large it is against the model."""

    patch: str = opt(MISSING, "patch.safetensors, or a run folder that holds one")
    model: Optional[str] = opt(None, "the classifier before or after it, for the size of changes: a run folder, a checkpoint, or a folder "
                               "with one; default: the patched run folder that patch= names")
    out: Optional[str] = opt(None, "folder for inspect.json and inspect.html; default: print only")
