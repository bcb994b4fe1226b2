"""Finished classifiers from checkpoints: their own head under any name, published Lightning files, and refusals."""

from __future__ import annotations

import functools
import os

import pytest
import torch
from timm import create_model
from torch import nn

from evenhand.config.schema import ModelConfig
from evenhand.errors import CheckpointError, InputError
from evenhand.models.checkpoints import read_checkpoint
from evenhand.models.finished import HEADS, load_finished, look_like_probabilities, refuse_probabilities
from evenhand.models.layouts import recognise


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return create_model("resnet10t", num_classes=1)


@pytest.fixture
def save(network, tmp_path):
    """Write the network's state under other names; the options to load it."""

    def saved(rename=lambda key: key, wrap=lambda state: state, dtype=None, **options):
        state = {rename(key): value for key, value in network.state_dict().items()}
        if dtype is not None:
            state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
        torch.save(wrap(state), tmp_path / "model.pth")
        return ModelConfig(**{"name": "resnet10t", "checkpoint": str(tmp_path / "model.pth"), "input_size": [32, 32], **options})

    return saved


def same(found, network):
    """Whether a loaded network has the saved values, head included."""
    loaded = found.model.network.state_dict()
    return all(torch.equal(loaded[key].float(), value.float()) for key, value in network.state_dict().items())


def test_its_own_name(save, network):
    found = load_finished(save(), 1)
    assert same(found, network)
    assert (found.head, found.notes, found.config.checkpoint, found.config.name) == ("fc", (), None, "resnet10t")


@pytest.mark.parametrize("head", ["head.layer", "classifier.1", "last_linear"])
def test_other_known_names_of_a_head(save, network, head):
    assert head in HEADS
    found = load_finished(save(lambda key: f"{head}.{key[3:]}" if key.startswith("fc.") else key), 1)
    assert same(found, network)
    assert found.head == head
    assert head in found.notes[0]


def test_another_name_has_to_be_said(save, network):
    config = save(lambda key: f"mine.{key[3:]}" if key.startswith("fc.") else key)
    with pytest.raises(CheckpointError, match=r"looked for: fc, head\.layer.*of its width in the file: mine; name it with model\.head"):
        load_finished(config, 1)
    assert same(load_finished(config, 1, head="mine"), network)
    with pytest.raises(CheckpointError, match=r"model\.head=yours, but model\.pth has no 'yours\.weight'"):
        load_finished(config, 1, head="yours")


def lightning(state):
    halves = {f"head.layer.{key[3:]}" if key.startswith("fc.") else f"net.enet.{key}": value for key, value in state.items()}
    recipe = {
        "optimizer": functools.partial(torch.optim.SGD, lr=0.03, momentum=0.9),
        "scheduler": functools.partial(torch.optim.lr_scheduler.ReduceLROnPlateau, mode="min", factor=0.1),
        "compile": False,
    }
    states = [{"state": {}, "param_groups": [{"lr": 1.0}]}]
    return {"state_dict": halves, "hyper_parameters": recipe, "epoch": 3, "optimizer_states": states}


def test_a_lightning_checkpoint_of_bmft_is_read_and_nothing_in_it_is_run(save, network, monkeypatch):
    config = save(wrap=lightning)

    def ran(*arguments, **options):
        raise AssertionError("an optimiser was made")

    monkeypatch.setattr(torch.optim.SGD, "__init__", ran)
    found = load_finished(config, 1)
    assert same(found, network)
    assert "may end in a sigmoid" in found.notes[0]
    held = read_checkpoint(config.checkpoint)["hyper_parameters"]["optimizer"]
    assert not isinstance(held, functools.partial)
    assert not vars(held)


def test_other_functions_in_a_checkpoint_are_still_refused(save):
    config = save(wrap=lambda state: {"state_dict": state, "hyper_parameters": functools.partial(os.system, "true")})
    with pytest.raises(CheckpointError, match=r"posix\.system.*could run code; it was refused"):
        load_finished(config, 1)


def test_the_published_layout_goes_to_the_names_of_each_family():
    for key, head in (("net.enet.layer1.0.conv1.weight", "fc"), ("net.enet.features.conv0.weight", "classifier"),
                      ("net.conv_stem.weight", "classifier"), ("net.enet.Mixed_5b.branch1x1.conv.weight", "fc"),
                      ("net.patch_embed.proj.weight", "head")):
        layout = recognise({"state_dict": {key: torch.zeros(1), "head.layer.weight": torch.zeros(1, 1)}}, "x")
        assert f"{head}.weight" in layout.state
        assert layout.name == "bmft"
        assert layout.imagenet_normalisation


def test_half_precision_is_said(save):
    found = load_finished(save(dtype=torch.float16), 1)
    assert found.dtypes["fc.weight"] == torch.float16
    assert found.model.network.fc.weight.dtype == torch.float32


def test_digits_that_single_precision_cannot_hold_are_refused(save, network):
    """Rounded, they would be another model, which a patch made here would belong to."""
    assert load_finished(save(dtype=torch.float64), 1).dtypes["fc.weight"] == torch.float64
    finer = {"fc.weight": network.fc.weight.detach().double() + 1e-13}
    with pytest.raises(CheckpointError, match=r"'fc.weight' of checkpoint .* is float64 with digits that float32 cannot hold"):
        load_finished(save(wrap=lambda state: {**state, **finer}), 1)


def test_what_does_not_fit_is_refused(save):
    with pytest.raises(InputError, match="has 1 outputs, but the task needs 3"):
        load_finished(save(), 3)
    with pytest.raises(CheckpointError, match="does not fit resnet14t"):
        load_finished(save(name="resnet14t"), 1)
    # a head of another name is not what is wrong with the file of another network
    with pytest.raises(CheckpointError, match=r"does not fit vit_tiny_patch16_224: 150 of 150 tensors of its body are not in the file"):
        load_finished(save(name="vit_tiny_patch16_224"), 1)
    with pytest.raises(CheckpointError, match="does not say what architecture it is"):
        load_finished(save(name="auto"), 1)


@pytest.mark.parametrize("last", [nn.Sigmoid(), nn.Softmax(dim=1), nn.LogSoftmax(dim=1)])
def test_a_network_that_ends_in_probabilities_is_refused(last):
    with pytest.raises(InputError, match=f"ends in a {type(last).__name__}"):
        refuse_probabilities(nn.Sequential(nn.Linear(2, 2), last))


def test_outputs_that_look_like_probabilities():
    logits = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    assert not look_like_probabilities(logits, "multiclass")
    assert look_like_probabilities(logits.softmax(dim=1), "multiclass")
    assert not look_like_probabilities(logits.sigmoid(), "multiclass")
    assert look_like_probabilities(logits.sigmoid(), "multilabel")
    assert not look_like_probabilities(torch.zeros(64, 1), "binary")
    assert not look_like_probabilities(logits[:4].sigmoid(), "multilabel")
