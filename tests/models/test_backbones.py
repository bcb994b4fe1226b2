"""Any timm classifier by name: sizes, seeds, normalisation, refusals."""

from __future__ import annotations

import logging

import pytest
import timm
import torch

from evenhand.config.schema import ModelConfig
from evenhand.errors import CheckpointError, InputError
from evenhand.models import ImageClassifier, build_classifier, model_fingerprint
from evenhand.models.backbones import resolve_name

SMALL = "mobilenetv3_small_050"


def small(seed=0, n_outputs=2, **options):
    return build_classifier(ModelConfig(name=SMALL, input_size=[32, 32], **options), n_outputs, seed)


def test_forward_is_the_network_on_normalised_images():
    model = small(mean=[0.2, 0.3, 0.4], std=[0.5, 0.6, 0.7])
    images = torch.rand(3, 3, 32, 32)
    by_hand = (images - torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    torch.testing.assert_close(model(images), model.network(by_hand))


def test_head_on_embeddings_gives_the_logits():
    model = small()
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(model.network.get_classifier()(model.embed(images)), model(images))
    assert model.embed(images).shape == (3, model.dim)
    assert model.n_outputs == 2


def test_vit_takes_its_input_size_and_repeats_grey(classifier):
    grey = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(classifier(grey), classifier(grey.expand(-1, 3, -1, -1)))
    model = build_classifier(ModelConfig(name="vit_tiny_patch16_224", input_size=[32, 48], drop_path=0.1, global_pool="avg"), 3, 0)
    assert model.input_size == (32, 48)
    assert model(torch.rand(1, 1, 64, 64)).shape == (1, 3)


def test_same_seed_same_weights_and_global_generator_untouched():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, second, third = small(0), small(0), small(1)
    assert torch.equal(torch.rand(2), expected)
    assert model_fingerprint(first) == model_fingerprint(second) != model_fingerprint(third)


def test_seed_changes_only_the_head_where_weights_are_given(tmp_path):
    source = small(5)
    torch.save(source.network.state_dict(), tmp_path / "weights.pth")
    models = [small(seed, checkpoint=str(tmp_path / "weights.pth")) for seed in (0, 1)]
    for key, value in models[0].network.state_dict().items():
        same = torch.equal(value, models[1].network.state_dict()[key])
        assert same == (key != "classifier.weight"), key


def test_unknown_name_lists_nearest():
    with pytest.raises(InputError, match=r"'resnt18'.*resnet18") as caught:
        build_classifier(ModelConfig(name="resnt18"), 1, 0)
    assert caught.value.exit_code == 2


def test_random_weights_are_said_aloud(caplog):
    with caplog.at_level(logging.WARNING, logger="evenhand"):
        small()
    assert "random weights" in caplog.text


def test_option_that_the_architecture_lacks_is_refused():
    with pytest.raises(InputError, match="densenet121 has no option drop_path"):
        build_classifier(ModelConfig(name="densenet121", drop_path=0.1), 1, 0)


def test_a_recipes_stochastic_depth_is_left_out_where_there_is_none_and_noted():
    plain = build_classifier(ModelConfig(name="densenet121"), 1, 0)
    recipe = build_classifier(ModelConfig(name="densenet121", drop_path=0.2, drop_path_optional=True), 1, 0)
    assert model_fingerprint(recipe) == model_fingerprint(plain)
    assert (plain.notes, recipe.notes) == ((), ("densenet121 has no stochastic depth, so the recipe's model.drop_path=0.2 is left out",))
    vit = build_classifier(ModelConfig(name="vit_tiny_patch16_224", input_size=[32, 32], drop_path=0.2, drop_path_optional=True), 1, 0)
    assert vit.network.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    assert vit.notes == ()


def test_size_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match="multiple"):
        build_classifier(ModelConfig(name="vit_tiny_patch16_224", input_size=[40, 32]), 1, 0)


def test_wrong_images_are_refused(classifier):
    with pytest.raises(InputError, match="uint8"):
        classifier(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"\(3, 32, 32\)"):
        classifier(torch.zeros(3, 32, 32))
    with pytest.raises(InputError, match="2 channels"):
        classifier(torch.zeros(1, 2, 32, 32))


def test_bad_normalisation_is_refused():
    with pytest.raises(InputError, match="std must be positive"):
        ImageClassifier(timm.create_model("resnet10t"), mean=(0.5,) * 3, std=(0.5, 0.0, 0.5), input_size=(32, 32), name="resnet10t")


def test_published_weights_offline_is_one_readable_line():
    with pytest.raises(Exception, match=r"cannot be reached and is not in the local cache") as caught:
        build_classifier(ModelConfig(name="resnet10t", pretrained=True), 1, 0)
    assert "\n" not in str(caught.value)


def test_no_published_weights_is_said():
    with pytest.raises(CheckpointError, match="no published"):
        build_classifier(ModelConfig(name="mobilenetv1_075", pretrained=True), 1, 0)
    with pytest.raises(CheckpointError, match="no published"):
        build_classifier(ModelConfig(name="efficientnet_b8", pretrained=True), 1, 0)


def test_auto_name_needs_a_folder_that_states_it(tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.name"):
        resolve_name(ModelConfig(name="auto"))


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("vit_tiny_patch16_224", lambda state: {"model": state}),
        ("vit_tiny_patch16_224", lambda state: {"teacher": {f"backbone.{key}": value for key, value in state.items()}}),
        ("resnet18", lambda state: state),
        ("resnet34", lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}}),
        ("resnext50_32x4d", lambda state: state),
        ("densenet121", lambda state: {"state_dict": {f"model.encoder.{key}": value for key, value in state.items()}}),
    ],
)
def test_auto_name_recognises_plain_files_by_their_keys(tmp_path, name, wrap, caplog):
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0)
    torch.save(wrap({key: torch.zeros(value.shape, dtype=value.dtype) for key, value in network.state_dict().items()}), tmp_path / "w.pth")
    with caplog.at_level("INFO"):
        assert resolve_name(ModelConfig(name="auto", checkpoint=str(tmp_path / "w.pth"))) == name
    assert f"w.pth: its keys look like {name}" in caplog.text


def test_auto_name_loads_what_it_recognised(tmp_path):
    source = timm.create_model("resnet18", num_classes=3)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = build_classifier(ModelConfig(name="auto", checkpoint=str(tmp_path / "w.pth"), input_size=[32, 32]), 1, 0)
    assert model.name == "resnet18"
    assert torch.equal(model.network.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("resnet10t", {}, "do not tell"),
        ("test_vit", {}, "look like a ViT of width 64"),
        ("vit_small_patch16_224", {"patch_size": 112}, "look like vit_small_patch112"),
    ],
)
def test_auto_name_of_something_else_asks_for_the_name(tmp_path, name, options, says):
    torch.save(timm.create_model(name, num_classes=0, **options).state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=rf"{says}.*set model\.name=") as caught:
        resolve_name(ModelConfig(name="auto", checkpoint=str(tmp_path / "w.pth")))
    assert "\n" not in str(caught.value)


def test_keep_head_restores_a_finished_classifier(tmp_path):
    source = small(3)
    timm.models._hub.save_for_hf(source.network, tmp_path / "run", safe_serialization=True)
    model = build_classifier(ModelConfig(name="auto", checkpoint=str(tmp_path / "run"), input_size=[32, 32]), 2, 0, keep_head=True)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(images), source(images))


def test_without_a_head_it_still_embeds():
    model = small(n_outputs=0)
    assert model.embed(torch.rand(2, 3, 32, 32)).shape == (2, model.dim)
    assert model.dim == small().dim


def test_from_scratch_keeps_the_description_and_ignores_the_weights(tmp_path):
    source = small(5)
    timm.models._hub.save_for_hf(source.network, tmp_path / "run", safe_serialization=True, data_config={"mean": (0.1, 0.2, 0.3)})
    config = ModelConfig(name="auto", checkpoint=str(tmp_path / "run"), input_size=[32, 32])
    scratch, loaded = build_classifier(config, 1, 0, from_scratch=True), build_classifier(config, 1, 0)
    assert torch.equal(scratch.mean, loaded.mean)
    assert torch.equal(loaded.network.conv_stem.weight, source.network.conv_stem.weight)
    assert not torch.equal(scratch.network.conv_stem.weight, source.network.conv_stem.weight)
    assert scratch.source == "random weights"


def test_mobilenet_export_names_itself(tmp_path):
    model = build_classifier(ModelConfig(name="mobilenetv1_075", input_size=[32, 32]), 2, 0)
    timm.models._hub.save_for_hf(model.network, tmp_path / "run", safe_serialization=True)
    again = build_classifier(ModelConfig(name="auto", checkpoint=str(tmp_path / "run"), input_size=[32, 32]), 2, 0, keep_head=True)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(again(images), model(images))
