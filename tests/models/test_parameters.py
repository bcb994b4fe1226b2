"""Parts, layers, freezing and hashes of networks."""

from __future__ import annotations

import hashlib

import pytest
import timm
import torch
from torch import nn

from evenhand.errors import InputError, MethodError
from evenhand.models import freeze_parameters, layer_ids, model_fingerprint, parameter_groups, parameter_roles
from evenhand.models.parameters import head_prefixes, state_fingerprint

FAMILIES = {
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 2},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1), "embed_dim": 24},
    "convnext_atto": {},
    "resnet10t": {},
    "densenet121": {"block_config": (2, 2)},
    "mobilenetv3_small_050": {},
    "mobilenetv1_100": {},
}


@pytest.fixture(scope="module", params=FAMILIES)
def network(request):
    return timm.create_model(request.param, num_classes=2, **FAMILIES[request.param])


def test_every_parameter_has_a_role_and_the_head_is_the_head(network):
    roles = parameter_roles(network)
    assert set(roles) == {name for name, _ in network.named_parameters()}
    heads = {name for name, role in roles.items() if role == "head"}
    assert {name.rsplit(".", 1)[0] + "." for name in heads} == set(head_prefixes(network))
    assert {"norm", "head"} < set(roles.values())


def test_layers_grow_from_stem_to_head(network):
    ids = layer_ids(network)
    first, last = next(iter(ids)), max(ids.values())
    assert ids[first] == 0
    assert last >= 3
    assert all(ids[name] == last for name, role in parameter_roles(network).items() if role == "head")
    assert sorted(set(ids.values())) == list(range(last + 1))


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_groups_hold_every_parameter_once(network, decay):
    groups = parameter_groups(network, weight_decay=0.1, layer_decay=decay)
    ids = [id(p) for group in groups for p in group["params"]]
    assert len(ids) == len(set(ids)) == len(list(network.parameters()))
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}
    assert max(group["lr_scale"] for group in groups) == 1.0
    lowest = min(group["lr_scale"] for group in groups)
    assert lowest == decay ** max(layer_ids(network).values()) if decay < 1 else lowest == 1.0


def test_norms_biases_and_position_embeddings_are_not_decayed(make_vit):
    network = make_vit()
    undecayed = {id(p) for group in parameter_groups(network, weight_decay=0.1) if group["weight_decay"] == 0 for p in group["params"]}
    names = {name for name, p in network.named_parameters() if id(p) in undecayed}
    assert {"pos_embed", "cls_token", "norm.weight", "blocks.0.attn.qkv.bias"} <= names
    assert "blocks.0.attn.qkv.weight" not in names


@pytest.mark.parametrize(
    ("freeze", "roles"), [("backbone", {"head"}), ("all_but_norms", {"norm", "head"})],
)
def test_freezing_leaves_only_the_named_roles(network, freeze, roles):
    names = freeze_parameters(network, freeze)
    assert {parameter_roles(network)[name] for name in names} == roles
    assert {name for name, p in network.named_parameters() if p.requires_grad} == set(names)
    freeze_parameters(network, "none")
    assert all(p.requires_grad for p in network.parameters())


def test_frozen_batch_norms_do_not_move_when_training():
    from evenhand.models import ImageClassifier

    network = timm.create_model("resnet10t", num_classes=1)
    model = ImageClassifier(network, mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(32, 32), name="resnet10t")
    freeze_parameters(model, "norms")
    before = model_fingerprint(model)
    model.train()
    model(torch.rand(4, 3, 32, 32))
    assert model_fingerprint(model) == before
    assert model.training
    freeze_parameters(model, "none")
    model.train()
    model(torch.rand(4, 3, 32, 32))
    assert model_fingerprint(model) != before


def test_refusals(make_vit):
    with pytest.raises(InputError, match="must be one of none, backbone"):
        freeze_parameters(make_vit(), "all")
    with pytest.raises(InputError, match="classifier"):
        head_prefixes(nn.Linear(2, 2))
    frozen = make_vit().requires_grad_(False)
    with pytest.raises(MethodError, match="no parameter is trainable"):
        parameter_groups(frozen, weight_decay=0.1)


def test_fingerprint_by_hand():
    state = {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor(3, dtype=torch.int64), "x.num_batches_tracked": torch.tensor(9)}
    digest = hashlib.sha256()
    digest.update(b"a\0int64\0()\0" + state["a"].numpy().tobytes())
    digest.update(b"b\0float32\0(2,)\0" + state["b"].numpy().tobytes())
    assert state_fingerprint(state) == digest.hexdigest()
    assert state_fingerprint({**state, "b": torch.tensor([2.0, 1.0])}) != digest.hexdigest()
    assert state_fingerprint({**state, "b": state["b"].bfloat16()}) != digest.hexdigest()


def test_fingerprint_ignores_memory_format():
    network = timm.create_model("mobilenetv3_small_050")
    before = model_fingerprint(network)
    assert model_fingerprint(network.to(memory_format=torch.channels_last)) == before
