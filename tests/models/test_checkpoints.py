"""Checkpoints: published layouts load to the same numbers, strangers' files are refused with a reason."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.models._hub import save_for_hf
from timm.models.densenet import DenseNet
from timm.models.resnet import BasicBlock, ResNet

from evenhand.config.schema import ModelConfig
from evenhand.errors import CheckpointError, EvenhandError
from evenhand.models import build_classifier, find_weights, load_weights, read_checkpoint
from evenhand.models.hub import is_hub_id


def load(network, path, **options):
    return load_weights(network, find_weights(str(path)), name="tiny", **options)


def same_features(first, second):
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(first.forward_features(images), second.forward_features(images))


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def encoder_only(network):
    return {key: value for key, value in network.state_dict().items() if not key.startswith("head.")}


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_plain_state_dictionary(tmp_path, ending, make_vit, scrambled):
    source, target = make_vit(), scrambled()
    path = tmp_path / f"weights.{ending}"
    (save_file if ending == "safetensors" else torch.save)(source.state_dict(), path)
    loaded = load(target, path)
    same_features(source, target)
    assert set(loaded.fresh) == {"head.weight", "head.bias"}


def test_mae_pretraining_file_with_its_namespace_and_decoder(tmp_path, make_vit, scrambled):
    source, target = make_vit(), scrambled()
    extra = {key: torch.zeros(8) for key in ("mask_token", "decoder_embed.weight", "decoder_blocks.0.norm1.weight")}
    content = {"model": {**encoder_only(source), **extra}, "epoch": 3, "args": argparse.Namespace(lr=0.1, output_dir="x")}
    torch.save(content, tmp_path / "mae.pth")
    loaded = load(target, tmp_path / "mae.pth")
    same_features(source, target)
    assert (loaded.layout, loaded.imagenet_normalisation, set(loaded.dropped)) == ("mae", True, set(extra))


def test_mae_with_average_pooling_leaves_fc_norm_fresh(tmp_path, make_vit, scrambled):
    source, target = make_vit(), scrambled(global_pool="avg")
    torch.save({"model": encoder_only(source)}, tmp_path / "mae.pth")
    loaded = load(target, tmp_path / "mae.pth")
    assert "fc_norm.weight" in loaded.fresh
    assert "norm.weight" in loaded.dropped
    assert torch.equal(source.blocks[1].mlp.fc1.weight, target.blocks[1].mlp.fc1.weight)


def test_average_pooled_file_in_a_token_network_is_refused(tmp_path, make_vit, scrambled):
    torch.save({"model": make_vit(global_pool="avg").state_dict()}, tmp_path / "finetuned.pth")
    with pytest.raises(CheckpointError, match="global_pool=avg"):
        load(scrambled(), tmp_path / "finetuned.pth")


@pytest.mark.parametrize(
    ("wrap", "layout"),
    [
        (lambda s: {"state_dict": {**prefixed(s, "module.encoder_q."), **prefixed(s, "module.encoder_k."),
                                   "module.encoder_q.fc.0.weight": torch.zeros(2), "module.queue": torch.zeros(2)}}, "moco"),
        (lambda s: {"state_dict": {**prefixed(s, "module.base_encoder."), **prefixed(s, "module.momentum_encoder."),
                                   "module.base_encoder.head.0.weight": torch.zeros(2),
                                   "module.predictor.0.weight": torch.zeros(2)}}, "moco"),
        (lambda s: {"student": prefixed({k: v * 0 for k, v in s.items()}, "module.backbone."),
                    "teacher": {**prefixed(s, "backbone."), "head.mlp.0.weight": torch.zeros(2)}}, "dino"),
        (lambda s: {"state_dict": {**prefixed(s, "model.encoder."), "model.decoder.0.weight": torch.zeros(2)}}, "medmae"),
        (lambda s: prefixed(prefixed(s, "_orig_mod."), "module."), "timm or torchvision"),
        (lambda s: {"model": prefixed(s, "raw."), "model_ema": dict(s)}, "timm or torchvision"),
    ],
    ids=["moco_v2", "moco_v3", "dino", "medmae", "compiled", "ema"],
)
def test_training_states(tmp_path, wrap, layout, make_vit, scrambled):
    source, target = make_vit(), scrambled()
    torch.save(wrap(encoder_only(source)), tmp_path / "state.pth")
    assert load(target, tmp_path / "state.pth").layout == layout
    same_features(source, target)


def test_torchvision_vit_gives_the_same_embedding(tmp_path, make_vit):
    torch.manual_seed(1)
    theirs = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=128, num_classes=5
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save(theirs.state_dict(), tmp_path / "tv.pth")
    ours = make_vit(n_outputs=5)
    load(ours, tmp_path / "tv.pth", keep_head=True)
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_torchvision_resnet_gives_the_same_logits(tmp_path):
    torch.manual_seed(1)
    theirs = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=4).eval()
    ours = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4).eval()
    ours.pretrained_cfg = {"classifier": "fc"}
    torch.save(theirs.state_dict(), tmp_path / "tv.pth")
    load(ours, tmp_path / "tv.pth", keep_head=True)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("names", ["new", "old", "medmae"])
def test_torchvision_densenet_gives_the_same_logits(tmp_path, names):
    torch.manual_seed(1)
    theirs = torchvision.models.DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, num_classes=3).eval()
    ours = DenseNet(growth_rate=4, block_config=(2, 2), num_classes=3).eval()
    ours.pretrained_cfg = {"classifier": "classifier"}
    state = theirs.state_dict()
    if names == "old":
        state = {key.replace("norm1.", "norm.1.").replace("norm2.", "norm.2.").replace("conv1.", "conv.1.").replace("conv2.", "conv.2.")
                 if "denselayer" in key else key: value for key, value in state.items()}
    if names == "medmae":
        state = {"state_dict": prefixed({k: v for k, v in state.items() if not k.startswith("classifier")}, "model.encoder.")}
    torch.save(state, tmp_path / "tv.pth")
    load(ours, tmp_path / "tv.pth", keep_head=names != "medmae")
    images = torch.rand(2, 3, 32, 32)
    if names == "medmae":
        torch.testing.assert_close(ours.features(images), theirs.features(images).relu(), rtol=1e-4, atol=1e-4)
    else:
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_position_embedding_is_interpolated_as_timm_does(tmp_path, make_vit):
    source, target = make_vit(img_size=32), make_vit(img_size=64)
    torch.save({"model": encoder_only(source)}, tmp_path / "mae.pth")
    load(target, tmp_path / "mae.pth")
    assert target.pos_embed.shape == (1, 65, 32)
    assert torch.equal(target.pos_embed[:, :1], source.pos_embed[:, :1])
    grid = source.pos_embed[:, 1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, size=(8, 8), mode="bicubic", antialias=True).permute(0, 2, 3, 1).reshape(1, 64, 32)
    torch.testing.assert_close(target.pos_embed[:, 1:], expected, rtol=1e-5, atol=1e-6)


def test_leftovers_are_an_error_with_count_and_ten_lines(tmp_path, make_vit, scrambled):
    state = {**make_vit().state_dict(), **{f"adapter.{i}.weight": torch.zeros(1) for i in range(14)}}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="14 keys differ") as caught:
        load(scrambled(), tmp_path / "w.pth")
    assert len(caught.value.details) == 14
    assert str(caught.value).endswith("… and 4 more")


def test_missing_keys_are_an_error(tmp_path, make_vit, scrambled):
    state = make_vit().state_dict()
    del state["blocks.1.attn.qkv.weight"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="1 keys differ") as caught:
        load(scrambled(), tmp_path / "w.pth")
    assert caught.value.details == ("missing in the file: blocks.1.attn.qkv.weight",)


def test_unknown_companions_of_a_training_state_are_an_error(tmp_path, make_vit, scrambled):
    state = {"state_dict": {**prefixed(encoder_only(make_vit()), "module.base_encoder."), "module.surprise.weight": torch.zeros(1)}}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError) as caught:
        load(scrambled(), tmp_path / "w.pth")
    assert "surprise.weight" in caught.value.details[0]


def test_wrong_architecture_names_the_best_guess_and_shapes(tmp_path):
    torch.save(timm.create_model("vit_tiny_patch16_224", img_size=32).state_dict(), tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match="looks like vit_tiny_patch16_224"):
        build_classifier(ModelConfig(name="mobilenetv3_small_050", checkpoint=str(tmp_path / "vit.pth")), 1, 0)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "r.pth")
    with pytest.raises(CheckpointError, match="looks like resnet18") as caught:
        build_classifier(ModelConfig(name="resnet26", checkpoint=str(tmp_path / "r.pth")), 1, 0)
    assert any(line.startswith("shape:") for line in caught.value.details)


class _Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, form):
    mark, path = tmp_path / "was_run", tmp_path / "evil.pth"
    content = {"model": {"weight": torch.zeros(1)}, "args": _Touch(mark)}
    if form == "bare":
        path.write_bytes(pickle.dumps(content["args"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert not mark.exists()
    assert caught.value.exit_code == 2
    assert "run" in caught.value.summary
    assert "\n" not in caught.value.summary


@pytest.mark.parametrize("ending", ["pth", "safetensors", "legacy.pth"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path, ending, share, make_vit, scrambled):
    path = tmp_path / f"w.{ending}"
    state = make_vit().state_dict()
    if ending == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=ending == "pth")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match="truncated"):
        load(scrambled(), path)


@pytest.mark.parametrize("content", [b"hello, not a model\n", b"\x80\x02", b"PK\x03\x04rest", b"\x89PNG\r\n"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "w.pth")


def test_file_without_tensors_is_refused(tmp_path, scrambled):
    torch.save({"epoch": 3, "loss": 0.1}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="no state dictionary"):
        load(scrambled(), tmp_path / "w.pth")


def test_folder_of_timm_round_trip_with_its_normalisation(tmp_path):
    source = build_classifier(ModelConfig(name="mobilenetv3_small_050"), 2, 0).network
    save_for_hf(source, tmp_path / "run", safe_serialization=True, data_config={"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)})
    model = build_classifier(ModelConfig(name="mobilenetv3_small_050", checkpoint=str(tmp_path / "run")), 1, 0)
    same_features(source.eval(), model.network)
    torch.testing.assert_close(model.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(model.std.flatten(), torch.tensor([0.4, 0.5, 0.6]))
    with pytest.raises(CheckpointError, match=r"set model\.name=mobilenetv3_small_050"):
        build_classifier(ModelConfig(name="resnet18", checkpoint=str(tmp_path / "run")), 1, 0)


def test_safetensors_header_carries_normalisation(tmp_path):
    source = build_classifier(ModelConfig(name="mobilenetv3_small_050"), 1, 0).network
    header = {"mean": "[0.1, 0.2, 0.3]", "std": "[0.4, 0.5, 0.6]", "input_size": "[48, 48]"}
    save_file(source.state_dict(), tmp_path / "w.safetensors", metadata=header)
    model = build_classifier(ModelConfig(name="mobilenetv3_small_050", checkpoint=str(tmp_path / "w.safetensors")), 1, 0)
    assert model.input_size == (48, 48)
    torch.testing.assert_close(model.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))


def test_folder_problems_are_readable(tmp_path):
    with pytest.raises(CheckpointError, match="holds none of"):
        find_weights(str(tmp_path))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        find_weights(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["ViTModel"]}))
    with pytest.raises(CheckpointError, match="transformers"):
        find_weights(str(tmp_path))


def test_missing_path_and_hub_offline():
    with pytest.raises(CheckpointError, match="is not a file, a folder or a hub id"):
        find_weights("weights/none.pth")
    with pytest.raises(EvenhandError, match="cannot be reached") as caught:
        find_weights("hf-hub:timm/resnet18.a1_in1k")
    assert "\n" not in str(caught.value)


def test_hub_ids():
    assert is_hub_id("org/name")
    assert is_hub_id("hf-hub:org/name@v1")
    assert not is_hub_id("org/name.safetensors")
    assert not is_hub_id("a/b/c")


def test_bundled_or_shared_mobilenet(shared):
    path = shared / "weights" / "mobilenet_v1_075" / "mobilenet_v1_075_224_imagenet.safetensors"
    if not path.is_file():
        pytest.skip("the MobileNet weights are not in the shared folder")
    model = build_classifier(ModelConfig(name="mobilenetv1_075", checkpoint=str(path)), 1, 0)
    assert model.dim == 768
    assert model.mean.flatten().tolist() == [0.5, 0.5, 0.5]
