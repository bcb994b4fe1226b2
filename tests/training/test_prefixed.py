"""Kept activations: the result of running the whole network, in one process or several, killed or not, and with views."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
import timm
import torch
from torch import nn

from evenhand.data.cache import build_cache
from evenhand.methods.base import Split
from evenhand.models import ImageClassifier, freeze_parameters
from evenhand.models.fixed_masks import fixed_mask
from evenhand.models.masks import make_mask
from evenhand.models.parts import make_parts
from evenhand.models.prefix import split_network
from evenhand.training import train_model
from evenhand.training.activations import ActivationCache
from evenhand.training.predicting import predict_logits
from evenhand.training.prefixed import train_frozen, train_masked, worthwhile
from evenhand.training.views import FixedViews

CPU = torch.device("cpu")


def vit(drop=0.0, outputs=1):
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "drop_path_rate": drop}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=outputs, **options)
    return ImageClassifier(network, mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(32, 32), name="vit").eval()


def cnn():
    torch.manual_seed(0)
    network = timm.create_model("mobilenetv3_small_050", num_classes=1)
    return ImageClassifier(network, mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(32, 32), name="mobilenetv3_small_050").eval()


class Counted(nn.Module):
    """Counts the images that go through a module."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.calls = inner, []

    @property
    def n(self):
        return sum(self.calls)

    def forward(self, x):
        self.calls.append(len(x))
        return self.inner(x)


@pytest.fixture
def splits(lab):
    """Images of 32 pixels, bigger in one place where they are ill."""

    def make(n, seed, **options):
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.rand(n, 3, 32, 32, generator=generator)
        y = torch.rand(n, generator=generator) > 0.5
        pixels[y, :, :8, :8] = pixels[y, :, :8, :8] * 0.5 + 0.4
        labels = y.float()[:, None].numpy()
        labels[::13] = np.nan
        return Split(lab.MemoryImages(pixels, **options), labels, {}, np.arange(n), np.arange(n))

    return make(48, 0), make(24, 1)


def logits(model, val):
    return predict_logits(model, val.x, 16, CPU)


def both(lab, splits, make, mask_of, views=0, cache=None, **options):
    """The same training with and without kept activations."""
    train, val = splits
    outcomes = []
    for prefix in (True, False):
        model = make()
        setup = lab.setup(**{"max_epochs": 3, **options})
        outcomes.append(train_masked(model, mask_of(model), train, val, setup, prefix=prefix, views=views, cache=cache))
    return outcomes


def late(model, space="blocks", lr=3e-3, **options):
    """A mask that trains the last part."""
    parts = make_parts(model, space)
    return make_mask(model, space, parts, [part is parts[-1] for part in parts], lr=lr, **options)


@pytest.mark.parametrize(
    ("make", "space", "options"),
    [
        (vit, "norms|attention|mlp", {}),
        (lambda: vit(drop=0.2), "blocks", {"ema_decay": 0.9, "clip_norm": 0.5, "accumulate": 2, "warmup_epochs": 1}),
        (vit, "attention", {"optimizer": "sgd", "layer_decay": 0.7}),
        (cnn, "blocks", {}),
        (cnn, "conv|norm", {"channels_last": True, "monitor": "last", "optimizer": "sgd"}),
        (vit, "blocks", {"precision": "bf16"}),
    ],
    ids=["vit", "vit, random depth, moving average", "vit, sgd, layer decay", "cnn", "cnn, channels last", "vit, bf16"],
)
def test_kept_activations_give_the_result_of_the_whole_network(lab, splits, make, space, options, caplog):
    with caplog.at_level(logging.INFO, logger="evenhand"):
        kept, whole = both(lab, splits, make, lambda model: late(model, space), **options)
    assert "activations before" in caplog.text
    for a, b in zip(kept.history, whole.history, strict=True):
        assert a == pytest.approx(b, abs=1e-6)
    assert kept.best_epoch == whole.best_epoch
    assert np.abs(logits(kept.model, splits[1]) - logits(whole.model, splits[1])).max() <= (1e-6 if "precision" not in options else 1e-4)
    assert isinstance(kept.model, ImageClassifier)
    assert not kept.model.training
    assert kept.model.state_dict().keys() == whole.model.state_dict().keys()
    assert all(value.is_contiguous() for value in kept.model.state_dict().values())


def test_the_frozen_part_runs_once_an_image(lab, splits):
    train, val = splits
    model = vit()
    model.network.blocks[0] = Counted(model.network.blocks[0])
    mask = fixed_mask(model, "head", lr=1e-2, seed=0)
    train_masked(model, mask, train, val, lab.setup(max_epochs=5))
    trying_the_cut = model.network.blocks[0].n - len(train) - len(val)
    assert 0 < trying_the_cut <= 16
    model = vit()
    model.network.blocks[0] = Counted(model.network.blocks[0])
    train_masked(model, mask, train, val, lab.setup(max_epochs=5), prefix=False)
    labelled = int((~np.isnan(train.y[:, 0])).sum())
    assert model.network.blocks[0].n == 5 * (labelled + len(val))


def test_head_only_training_reads_embeddings(lab, splits):
    kept, whole = both(lab, splits, vit, lambda model: fixed_mask(model, "head", lr=1e-2, seed=0))
    assert np.abs(logits(kept.model, splits[1]) - logits(whole.model, splits[1])).max() <= 1e-6


def test_the_masks_learning_rate_is_the_one_that_is_used(lab, splits):
    model = vit()
    outcome = train_masked(model, late(model, lr=2e-4), *splits, lab.setup(max_epochs=1, lr=0.7, schedule="constant"))
    assert outcome.history[0]["lr"] == 2e-4


@pytest.mark.parametrize("schedule", ["constant", "step"])
def test_learning_rate_scales_of_parts_are_honoured_by_schedules(lab, splits, schedule):
    """With SGD without momentum a step is in proportion to its rate: a tenth of the scale, a tenth of the way."""
    train, val = splits
    moved = {}
    for scale in (1.0, 0.1):
        model = vit()
        before = {name: value.clone() for name, value in model.network.named_parameters()}
        parts = make_parts(model, "blocks")
        mask = make_mask(model, "blocks", parts, [0, 0, 1], lr=1e-3, lr_scales=[1.0, 1.0, scale])
        options = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "max_epochs": 1, "schedule": schedule, "batch_size": 48}
        train_masked(model, mask, train, val, lab.setup(**options, monitor="last"))
        moved[scale] = {name: value - before[name] for name, value in model.network.named_parameters()}
    assert torch.allclose(moved[0.1]["head.weight"], moved[1.0]["head.weight"], atol=1e-7)
    inside = "blocks.2.mlp.fc1.weight"
    assert torch.allclose(moved[0.1][inside] * 10, moved[1.0][inside], rtol=1e-2, atol=1e-7)
    assert moved[1.0][inside].abs().max() > 1e-6
    assert not moved[1.0]["blocks.1.mlp.fc1.weight"].any()


def test_low_rank_updates_train_behind_a_prefix_and_are_folded_in(lab, splits):
    pytest.importorskip("peft")
    kept, whole = both(lab, splits, vit, lambda model: late(model, "attention", lora_ranks=[0, 0, 4]))
    assert kept.model.state_dict().keys() == vit().state_dict().keys()
    assert np.abs(logits(kept.model, splits[1]) - logits(whole.model, splits[1])).max() <= 2e-6


def test_augmented_images_are_run_through_the_whole_network(lab, splits, caplog):
    with caplog.at_level(logging.DEBUG, logger="evenhand"):
        model = vit()
        train_masked(model, late(model), *splits, lab.setup(augment="dermoscopy", max_epochs=1))
        model = vit()
        train_masked(model, late(model), *splits, lab.setup(mixup=0.2, max_epochs=1))
    assert "augmented anew in every epoch (views=0)" in caplog.text
    assert "mixup and cutmix" in caplog.text
    assert "activations before" not in caplog.text


def test_fixed_views_are_the_same_with_and_without_kept_activations(lab, splits):
    kept, whole = both(lab, splits, vit, late, views=2, augment="dermoscopy", max_epochs=4)
    assert np.abs(logits(kept.model, splits[1]) - logits(whole.model, splits[1])).max() <= 1e-6
    plain = train_masked(vit(), late(vit()), *splits, lab.setup(max_epochs=4))
    assert plain.history != kept.history


def test_views_take_turns_and_belong_to_the_image(lab, splits):
    train, _ = splits
    views = FixedViews(train.x, lab.setup(augment="dermoscopy"), 3)
    first, second = views.at_epoch(1), views.at_epoch(2)
    assert views.at_epoch(4) is first
    one = first.batch(np.array([5, 1]))
    assert torch.equal(one[1], first.batch(np.array([1]))[0])
    assert not torch.equal(one, second.batch(np.array([5, 1])))
    assert len({first.fingerprint, second.fingerprint, train.x.fingerprint}) == 3
    other = FixedViews(train.x, lab.setup(augment="dermoscopy", seed=1), 3)
    assert other.fingerprint != views.fingerprint
    assert not torch.equal(one, other.at_epoch(1).batch(np.array([5, 1])))


def test_a_killed_run_goes_on_with_or_without_kept_activations(lab, splits):
    train, val = splits
    expected = train_masked(vit(), late(vit()), train, val, lab.setup(max_epochs=4))

    def killed(facts):
        if facts.epoch == 3:
            raise KeyboardInterrupt

    for order in [(True, False), (False, True)]:
        store = lab.MemoryStore()
        with pytest.raises(KeyboardInterrupt):
            train_masked(vit(), late(vit()), train, val, lab.setup(max_epochs=4, store=store), prefix=order[0], watch=killed)
        assert store.get("checkpoint")["epoch"] == 2
        outcome = train_masked(vit(), late(vit()), train, val, lab.setup(max_epochs=4, store=store), prefix=order[1])
        assert len(outcome.history) == 4
        assert np.abs(logits(outcome.model, val) - logits(expected.model, val)).max() <= 1e-6


def test_without_room_the_whole_network_is_run_and_a_note_says_so(lab, splits, tmp_path):
    train, val = splits
    cache = ActivationCache(tmp_path / "kept", max_bytes=1000)
    outcome = train_masked(vit(), late(vit()), train, val, lab.setup(), cache=cache)
    whole = train_masked(vit(), late(vit()), train, val, lab.setup(), prefix=False)
    assert outcome.history == whole.history
    assert any("the whole network was run in every epoch" in note and "at most 1e-06 GB" in note for note in outcome.notes)


def test_a_prefix_that_is_as_fast_as_reading_is_run(lab):
    model = vit()
    freeze_parameters(model, "backbone")
    trained = [name for name, parameter in model.network.named_parameters() if parameter.requires_grad]
    split = split_network(model, trained)
    assert worthwhile(split, CPU)
    assert not worthwhile(dataclasses.replace(split, shape=(10**6,)), CPU)


def test_freezing_without_a_mask_goes_the_same_way(lab, splits):
    outcomes = []
    for train in (train_frozen, train_model):
        model = vit()
        freeze_parameters(model, "backbone")
        outcomes.append(train(model, *splits, lab.setup()))
    assert np.abs(logits(outcomes[0].model, splits[1]) - logits(outcomes[1].model, splits[1])).max() <= 1e-6


def test_splits_of_a_data_set_share_what_is_kept(lab, tmp_path, caplog):
    from PIL import Image

    generator = np.random.default_rng(0)
    files = []
    for k in range(20):
        files.append(tmp_path / f"{k}.png")
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), np.uint8)).save(files[-1])
    images, _ = build_cache(files, tmp_path / "images", size=32, workers=1)
    y = (np.arange(20)[:, None] % 2).astype(np.float32)

    def split(rows):
        rows = np.asarray(rows)
        return Split(images.images(rows), y[rows], {}, rows, rows)

    cache = ActivationCache(tmp_path / "kept")
    model = vit()
    model.network.blocks[0] = counted = Counted(model.network.blocks[0])
    mask = late(model)
    train_masked(model, mask, split(range(12)), split(range(12, 16)), lab.setup(max_epochs=1), cache=cache)
    first = counted.n
    model = vit()
    model.network.blocks[0] = counted = Counted(model.network.blocks[0])
    train_masked(model, mask, split(range(4, 18)), split([0, 1, 2, 3, 18, 19]), lab.setup(max_epochs=1), cache=cache)
    assert first - counted.n == 16 - 4
    assert len(list((tmp_path / "kept").glob("*/rows.bin"))) == 1
