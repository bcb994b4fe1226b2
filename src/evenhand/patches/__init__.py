"""Patches of finished classifiers: the changed bits of a network, with the hashes of what it was and of what it becomes.

`make_patch` takes a network before and after; `apply_patch` and `revert_patch` go there and back, bit for bit; `save_patch` and
`load_patch` keep it in a file; `patch_facts` says which layers change and how much; `patch_file` does it to a checkpoint on disk.
"""

from evenhand.patches.artifact import Patch, TensorSpec, apply_patch, make_patch, network_state, revert_patch
from evenhand.patches.bits import Entry
from evenhand.patches.facts import Change, PatchFacts, patch_facts
from evenhand.patches.files import patch_file
from evenhand.patches.storage import FILE, load_patch, save_patch

__all__ = [
    "FILE",
    "Change",
    "Entry",
    "Patch",
    "PatchFacts",
    "TensorSpec",
    "apply_patch",
    "load_patch",
    "make_patch",
    "network_state",
    "patch_facts",
    "patch_file",
    "revert_patch",
    "save_patch",
]
