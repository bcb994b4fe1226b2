"""What a patch changes, counted by hand and by numpy, and sizes against files that were written."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from timm import create_model

from evenhand.errors import CheckpointError, InputError
from evenhand.patches import apply_patch, load_patch, make_patch, patch_facts, save_patch
from evenhand.patches.facts import layer_of, size_at

OLD = {"conv1.weight": torch.tensor([3.0, 4.0]), "layer1.0.bn1.weight": torch.zeros(2), "fc.weight": torch.tensor([0.0, 0.0, 1.0])}
NEW = {"conv1.weight": torch.tensor([3.0, 1.0]), "layer1.0.bn1.weight": torch.zeros(2), "fc.weight": torch.tensor([0.0, 0.5, -1.0])}


def test_a_case_by_hand() -> None:
    patch = make_patch(OLD, NEW)
    for state in (OLD, NEW):
        found = patch_facts(patch, state)
        conv, block, head = found.layers
        assert (conv.name, conv.n, conv.changed, conv.share, conv.mean, conv.largest, conv.relative) == ("conv1", 2, 1, 0.5, 3.0, 3.0, 0.6)
        assert (block.name, block.changed, block.mean, block.relative) == ("layer1.0", 0, None, None)
        assert (head.name, head.changed, head.mean, head.largest) == ("head", 2, 1.25, 2.0)
        assert head.relative == pytest.approx(np.hypot(0.5, 2.0))
        assert (found.n, found.changed, found.share, found.model_bytes) == (7, 3, 3 / 7, 28)
    plain = patch_facts(patch)
    assert [item.changed for item in plain.tensors] == [1, 0, 2]
    assert all(item.mean is None for item in plain.tensors)
    assert json.loads(json.dumps(plain.to_json(), allow_nan=False))["layers"][2]["share"] == 2 / 3
    with pytest.raises(InputError, match="belongs to the model"):
        patch_facts(patch, {**OLD, "fc.weight": torch.ones(3)})
    with pytest.raises(CheckpointError, match="that do not fit"):
        patch_facts(patch, {"fc.weight": torch.ones(3)})


def test_numbers_that_are_none_do_not_spoil_the_rest() -> None:
    old = {"a": torch.tensor([1.0, float("nan"), 2.0]), "steps": torch.tensor([1, 2])}
    new = {"a": torch.tensor([1.0, 5.0, 4.0]), "steps": torch.tensor([1, 3])}
    found = patch_facts(make_patch(old, new), old)
    assert (found.tensors[0].changed, found.tensors[0].largest) == (2, 2.0)
    assert (found.tensors[1].changed, found.tensors[1].largest) == (1, None)


@pytest.mark.parametrize(
    ("network", "options", "layers"),
    [
        ("resnet18", {}, ["conv1", "bn1", "layer1.0", "layer4.1", "head"]),
        ("vit_tiny_patch16_224", {"depth": 3}, ["cls_token", "pos_embed", "patch_embed", "blocks.0", "blocks.2", "norm", "head"]),
        ("convnext_atto", {"depths": (1, 1, 1, 1)}, ["stem", "stages.0.blocks.0", "stages.1.downsample", "head"]),
        ("efficientnet_b0", {}, ["conv_stem", "blocks.0.0", "blocks.6.0", "head"]),
        ("densenet121", {"block_config": (2, 2)}, ["features.conv0", "features.denseblock1.denselayer2", "features.transition1", "head"]),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, ["patch_embed", "layers.0.blocks.0", "layers.1.downsample", "head"]),
        ("regnety_002", {}, ["stem", "s1.b1", "s4.b7", "head"]),
    ],
)
def test_layers_of_families_in_their_order(network: str, options: dict, layers: list[str]) -> None:
    with torch.device("meta"):
        state = create_model(network, num_classes=2, **options).state_dict()
    found = list(dict.fromkeys(layer_of(name) for name in state))
    assert [name for name in found if name in layers] == layers
    assert len(found) < len(state) / 2 or network.startswith("densenet")


def test_layers_run_from_the_input_to_the_head_although_a_file_sorts_names() -> None:
    names = ["blocks.0.norm1.bias", "blocks.10.norm1.bias", "blocks.2.norm1.bias", "head.bias", "norm.bias", "patch_embed.proj.bias"]
    state = {name: torch.zeros(1) for name in names}
    found = patch_facts(make_patch(state, state))
    assert [item.name for item in found.layers] == ["patch_embed", "blocks.0", "blocks.2", "blocks.10", "norm", "head"]
    assert [item.name for item in found.tensors] == names


def test_sizes_that_are_foretold_are_those_of_files(changed, tmp_path) -> None:
    before = create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=2).state_dict()
    for rate in (0.01, 0.05, 0.1, 0.5):
        patch = make_patch(before, changed(before, rate))
        save_patch(tmp_path / "patch.safetensors", patch)
        size = (tmp_path / "patch.safetensors").stat().st_size
        assert size_at(patch, rate) == pytest.approx(size, rel=0.05)
        found = patch_facts(load_patch(tmp_path), before, n_bytes=size)
        assert found.n_bytes == size
        assert found.share == pytest.approx(rate, abs=0.01)
        assert found.at_rates[rate] == size_at(patch, rate)


def test_a_patch_of_a_few_weights_is_a_small_part_of_the_model() -> None:
    """Four bytes for the bits and four for the place of one in a hundred: 2% of the model, whatever the network."""
    old = {"blocks.0.mlp.fc1.weight": torch.randn(400_000, generator=torch.Generator().manual_seed(0))}
    new = {"blocks.0.mlp.fc1.weight": old["blocks.0.mlp.fc1.weight"].clone()}
    new["blocks.0.mlp.fc1.weight"][::100] += 1
    found = patch_facts(make_patch(old, new))
    assert found.share_of_bytes < 0.0205
    assert torch.equal(apply_patch(old, make_patch(old, new))["blocks.0.mlp.fc1.weight"], new["blocks.0.mlp.fc1.weight"])
