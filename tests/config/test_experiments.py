"""The published training recipe and its experiments, and the debug presets: what a typed line comes to."""

import pytest

from evenhand.config import compose, list_presets

ISIC = {
    "isic_resnet18": ("resnet18", 256, 200),
    "isic_resnet34": ("resnet34", 256, 200),
    "isic_resnet50": ("resnet50", 128, 20),
    "isic_resnet101": ("resnet101", 128, 70),
    "isic_resnext101": ("resnext101_32x8d", 64, 50),
    "isic_densenet161": ("densenet161", 64, 50),
    "isic_efficientnet_b3": ("efficientnet_b3", 64, 50),
    "isic_inception_v3": ("inception_v3", 64, 50),
    "isic_swin_v2_s": ("swinv2_small_window8_256", 96, 200),
    "isic_maxvit": ("maxvit_tiny_tf_224", 96, 201),
    "isic_vit": ("vit_base_patch16_224", 96, 201),
}
"""Experiment -> architecture, batch size and epochs of the released configurations."""


def test_the_published_line_works_as_it_is_written():
    line = "experiment=isic_resnet50 trainer=gpu trainer.max_epochs=20 data.batch_size=128"
    config = compose("train", line.split())
    trainer = config.trainer
    assert (trainer.optimizer, trainer.lr, trainer.momentum, trainer.weight_decay) == ("sgd", 0.03, 0.9, 0.0)
    assert (trainer.schedule, trainer.gamma, trainer.plateau_patience, trainer.plateau_monitor) == ("plateau", 0.1, 10, "val_loss")
    assert (trainer.class_weights, trainer.clip_norm, trainer.max_epochs) == ("batch", 0.5, 20)
    assert (trainer.accelerator, config.data.batch_size, config.method.name) == ("gpu", 128, "finetune")
    assert (config.data.path, config.seed, config.model.pretrained) == ("prepared/isic", 42, True)
    assert compose("train", ["experiment=isic_resnet50.yaml"]).model == config.model


@pytest.mark.parametrize("name", ISIC)
def test_every_experiment_is_the_recipe_on_its_network(name):
    config, recipe = compose("train", [f"experiment={name}"]), compose("train", ["experiment=isic_recipe"])
    assert (config.model.name.split(".")[0], config.data.batch_size, config.trainer.max_epochs) == ISIC[name]
    config.trainer.max_epochs = recipe.trainer.max_epochs
    assert config.trainer == recipe.trainer
    assert config.model.drop_rate == 0.5
    assert config.model.pretrained


@pytest.mark.parametrize("name", ISIC)
def test_timm_has_the_named_weights(name):
    from timm.models import get_pretrained_cfg

    model = compose("train", [f"experiment={name}"]).model
    published = get_pretrained_cfg(model.name)
    assert published.has_weights
    assert not published.fixed_input_size or list(published.input_size[1:]) == model.input_size


def test_none_of_the_experiments_is_forgotten_here():
    assert {name for name in list_presets("experiment") if name.startswith("isic_")} == {*ISIC, "isic_recipe"}


def test_your_own_data_and_weights_take_the_place_of_the_published_ones(tmp_path):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"")
    config = compose("train", ["experiment=isic_resnet50", f"data={tmp_path}", f"model={weights}"])
    assert (config.data.path, config.model.checkpoint, config.model.name) == (str(tmp_path), str(weights), "auto")


@pytest.mark.parametrize("swapped", [False, True])
def test_a_debug_preset_wins_over_the_experiment_that_it_looks_at(swapped):
    order = ["experiment=isic_resnet18", "trainer=debug_limit"][:: -1 if swapped else 1]
    trainer = compose("train", order).trainer
    assert (trainer.max_epochs, trainer.limit_batches, trainer.accelerator) == (2, 2, "cpu")
    assert (trainer.lr, trainer.class_weights) == (0.03, "batch")
    assert compose("train", [*order, "trainer.max_epochs=5"]).trainer.max_epochs == 5


def test_other_trainer_presets_leave_an_experiments_settings():
    assert compose("train", ["experiment=isic_resnet18", "trainer=cpu"]).trainer.max_epochs == 200


def test_presets_for_every_place_and_every_look_are_there():
    assert {"cpu", "gpu", "ddp", "mps", "debug", "debug_overfit", "debug_limit", "debug_profiler"} <= set(list_presets("trainer"))
    assert compose("train", ["data.path=x", "trainer=debug_overfit"]).trainer.overfit_batches == 2
    assert compose("train", ["data.path=x", "trainer=debug_profiler"]).trainer.profile
