"""Recipes are functions of (seed, epoch, slot), stay in [0, 1], and leave global random streams alone."""

import random

import numpy as np
import pytest
import torch
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms.v2 import functional as F

from evenhand.data.augment import RECIPES, Augmenter, rand_augment, seeded
from evenhand.errors import ConfigError

GENERATOR = torch.Generator().manual_seed(0)
GREY, COLOUR = torch.rand(4, 1, 16, 16, generator=GENERATOR), torch.rand(4, 3, 16, 12, generator=GENERATOR)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("batch", [GREY, COLOUR], ids=["grey", "colour"])
def test_recipes_keep_shape_and_range_and_repeat_exactly(recipe, batch):
    augmenter = Augmenter(recipe, tuple(batch.shape[1:]), seed=3, random_erasing=0.5 if recipe != "none" else 0)
    first, again, later = (augmenter.images(batch, epoch, range(4)) for epoch in (1, 1, 2))
    assert first.shape == batch.shape
    assert first.dtype == torch.float32
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, again)
    assert torch.equal(first, later) == torch.equal(first, batch) == (recipe == "none")


def test_an_image_is_augmented_by_its_slot_not_by_its_batch():
    augmenter = Augmenter("photograph", (3, 16, 12), seed=0, rand_augment="rand-m6-mstd0.5-inc1")
    whole = augmenter.images(COLOUR, 1, [10, 11, 12, 13])
    assert torch.equal(augmenter.images(COLOUR[2:3], 1, [12]), whole[2:3])
    assert not torch.equal(augmenter.images(COLOUR[2:3], 1, [10]), whole[2:3])


@pytest.mark.parametrize("recipe", ["chest_film", "ct", "mri"])
def test_where_left_and_right_are_anatomy_nothing_is_mirrored(recipe):
    film = torch.zeros(1, 1, 32, 32)
    film[..., 4:10] = 1.0
    augmenter = Augmenter(recipe, (1, 32, 32), seed=0)
    for slot in range(40):
        image = augmenter.images(film, 1, [slot])
        assert image[..., :16].sum() > image[..., 16:].sum()


def test_an_oct_scan_is_mirrored_but_never_upside_down():
    scan = torch.zeros(1, 1, 32, 32)
    scan[..., 4:10, 4:10] = 1.0
    augmenter = Augmenter("oct", (1, 32, 32), seed=0)
    images = [augmenter.images(scan, 1, [slot]) for slot in range(40)]
    assert all(image[..., :16, :].sum() > image[..., 16:, :].sum() for image in images)
    assert 8 < sum(bool(image[..., 16:].sum() > image[..., :16].sum()) for image in images) < 32


def test_global_streams_are_restored_even_after_an_error():
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()

    def fail():
        torch.rand(1), np.random.rand(), random.random()
        raise KeyError

    with pytest.raises(KeyError), seeded(5):
        fail()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]


def test_seeded_blocks_draw_the_same_numbers():
    draws = []
    for _ in range(2):
        with seeded(2**62 + 7):
            draws.append((float(torch.rand(1)), float(np.random.rand()), random.random()))
    assert draws[0] == draws[1]


def test_rand_augment_is_timms_on_8_bit_pictures():
    ours = rand_augment("rand-m6-mstd0.5-inc1")
    theirs = rand_augment_transform("rand-m6-mstd0.5-inc1", {"img_mean": (128, 128, 128)})
    picture = F.to_pil_image((COLOUR[0] * 255).round().to(torch.uint8))
    for seed in range(5):
        with seeded(seed):
            got = ours(COLOUR[0])
        with seeded(seed):
            expected = F.pil_to_tensor(theirs(picture)).float() / 255
        assert torch.equal(got, expected)


def test_erasing_changes_a_rectangle_and_nothing_else():
    augmenter = Augmenter("none", (3, 16, 12), seed=0, random_erasing=1.0)
    changed = (augmenter.images(COLOUR, 1, range(4)) != COLOUR).any(dim=1)
    for mask in changed:
        rows, columns = mask.any(dim=1).nonzero().flatten(), mask.any(dim=0).nonzero().flatten()
        assert 0 < mask.sum() == len(rows) * len(columns) < 0.5 * mask.numel()


def test_mixing_is_linear_and_keeps_unlabelled_unlabelled():
    targets = torch.tensor([[0.0], [1.0], [float("nan")], [1.0]])
    augmenter = Augmenter("none", (1, 16, 16), seed=0, mixup=0.4)
    images, mixed = augmenter.mix(GREY, targets, 1, 0)
    share = float(((images[1] - GREY[0]) / (GREY[1] - GREY[0])).median())
    assert torch.allclose(images[1], share * GREY[1] + (1 - share) * GREY[0], atol=1e-5)
    assert float(mixed[1]) == pytest.approx(share, abs=1e-4)
    assert mixed.isnan().flatten().tolist() == [False, False, True, True]
    assert torch.equal(augmenter.mix(GREY, targets, 1, 0)[0], images)


def test_cutmix_shares_are_areas():
    augmenter = Augmenter("none", (1, 16, 16), seed=1, cutmix=1.0)
    images, mixed = augmenter.mix(GREY, torch.eye(4), 1, 0)
    for k in range(4):
        own = (images[k] == GREY[k]).float().mean()
        assert float(mixed[k, k]) == pytest.approx(float(own), abs=1e-6)


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="must be one of none, chest_film, dermoscopy, photograph, fundus, oct, ct, mri, published_dne"):
        Augmenter("xray", (1, 8, 8), seed=0)
    with pytest.raises(ConfigError, match="is not a RandAugment string"):
        Augmenter("none", (1, 8, 8), seed=0, rand_augment="augmix-m3")
