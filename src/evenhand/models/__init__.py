"""Pre-trained encoders: any timm classifier, checkpoints in published layouts, frozen embedders and their cache.

`build_classifier` makes an `ImageClassifier` (images in [0, 1] in, logits out); `LocalEmbedder` freezes one;
`EmbeddingCache` keeps what it computed on disk. `make_parts` cuts a network into the parts of a search space, `apply_mask`
trains some of them. `evenhand.models.remote.RemoteEmbedder` asks a server instead, and
`PaidEmbedder` keeps to a budget and never pays twice.

Everything is imported on first use: a client of a server, and a proxy in front of one, load no library of networks.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evenhand.models.backbones import ImageClassifier as ImageClassifier
    from evenhand.models.backbones import build_classifier as build_classifier
    from evenhand.models.backbones import resolve_name as resolve_name
    from evenhand.models.checkpoints import find_weights as find_weights
    from evenhand.models.checkpoints import load_weights as load_weights
    from evenhand.models.checkpoints import read_checkpoint as read_checkpoint
    from evenhand.models.embedder import LocalEmbedder as LocalEmbedder
    from evenhand.models.embedding_cache import EmbeddingCache as EmbeddingCache
    from evenhand.models.fixed_masks import fixed_mask as fixed_mask
    from evenhand.models.lora import merge_lora as merge_lora
    from evenhand.models.masks import Mask as Mask
    from evenhand.models.masks import PartChoice as PartChoice
    from evenhand.models.masks import apply_mask as apply_mask
    from evenhand.models.masks import make_mask as make_mask
    from evenhand.models.masks import network_hash as network_hash
    from evenhand.models.masks import read_mask as read_mask
    from evenhand.models.masks import write_mask as write_mask
    from evenhand.models.paid import PaidEmbedder as PaidEmbedder
    from evenhand.models.parameters import freeze_parameters as freeze_parameters
    from evenhand.models.parameters import layer_ids as layer_ids
    from evenhand.models.parameters import model_fingerprint as model_fingerprint
    from evenhand.models.parameters import parameter_groups as parameter_groups
    from evenhand.models.parameters import parameter_roles as parameter_roles
    from evenhand.models.parameters import state_fingerprint as state_fingerprint
    from evenhand.models.parameters import trainable_names as trainable_names
    from evenhand.models.parts import SPACES as SPACES
    from evenhand.models.parts import Part as Part
    from evenhand.models.parts import available_spaces as available_spaces
    from evenhand.models.parts import make_parts as make_parts
    from evenhand.models.precision import Agreement as Agreement
    from evenhand.models.precision import measure_agreement as measure_agreement

_HOMES = {
    "Agreement": "precision",
    "EmbeddingCache": "embedding_cache",
    "ImageClassifier": "backbones",
    "LocalEmbedder": "embedder",
    "Mask": "masks",
    "PaidEmbedder": "paid",
    "Part": "parts",
    "PartChoice": "masks",
    "SPACES": "parts",
    "apply_mask": "masks",
    "available_spaces": "parts",
    "build_classifier": "backbones",
    "find_weights": "checkpoints",
    "fixed_mask": "fixed_masks",
    "freeze_parameters": "parameters",
    "layer_ids": "parameters",
    "load_weights": "checkpoints",
    "make_mask": "masks",
    "make_parts": "parts",
    "measure_agreement": "precision",
    "merge_lora": "lora",
    "model_fingerprint": "parameters",
    "network_hash": "masks",
    "parameter_groups": "parameters",
    "parameter_roles": "parameters",
    "read_checkpoint": "checkpoints",
    "read_mask": "masks",
    "resolve_name": "backbones",
    "state_fingerprint": "parameters",
    "trainable_names": "parameters",
    "write_mask": "masks",
}
__all__ = [
    "SPACES",
    "Agreement",
    "EmbeddingCache",
    "ImageClassifier",
    "LocalEmbedder",
    "Mask",
    "PaidEmbedder",
    "Part",
    "PartChoice",
    "apply_mask",
    "available_spaces",
    "build_classifier",
    "find_weights",
    "fixed_mask",
    "freeze_parameters",
    "layer_ids",
    "load_weights",
    "make_mask",
    "make_parts",
    "measure_agreement",
    "merge_lora",
    "model_fingerprint",
    "network_hash",
    "parameter_groups",
    "parameter_roles",
    "read_checkpoint",
    "read_mask",
    "resolve_name",
    "state_fingerprint",
    "trainable_names",
    "write_mask",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'evenhand.models' has no attribute '{name}'")
    value = getattr(import_module(f"evenhand.models.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
