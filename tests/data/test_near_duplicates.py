"""Image features and near-duplicates: numbers by hand, every close pair against brute force, copies found and the rest not."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from evenhand.data.cache import build_cache
from evenhand.data.image_features import ImageFeatures, frequencies, grey_levels, grey_statistics, image_features
from evenhand.data.near_duplicates import MOST_BITS, _close, find_near_duplicates, popcount


def blobs(n, size=48, seed=0):
    """Smooth random pictures that share a layout, uint8 (n, size, size)."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    noise = gaussian_filter(rng.normal(size=(n, size, size)), (0, 3, 3)) * 400
    layout = 60 * np.sin(np.linspace(0, 6, size))[None, :, None]
    return np.clip(128 + layout + noise, 0, 255).astype(np.uint8)


def cache_of(images, folder):
    folder.mkdir()
    files = []
    for k, image in enumerate(images):
        files.append(folder / f"{k:04d}.png")
        Image.fromarray(image).save(files[-1])
    return build_cache(files, folder / "cache", size=images[0].shape[0])[0]


def test_grey_levels_weigh_colours_and_scale_sixteen_bits():
    red = np.zeros((1, 3, 2, 2), np.uint8)
    red[:, 0] = 100
    assert grey_levels(red)[0, 0, 0] == pytest.approx(29.9)
    assert grey_levels(np.full((1, 1, 2, 2), 65535, np.uint16))[0, 0, 0] == pytest.approx(255)


def test_statistics_by_hand():
    image = np.array([[[0, 10], [20, 30]]], np.float32)
    assert grey_statistics(image)[0] == pytest.approx([15.0, np.std([0, 10, 20, 30]), 15.0])


@pytest.mark.parametrize("size", [1, 7, 32, 45])
def test_frequencies_of_any_size_and_none_of_a_flat_image(size):
    assert frequencies(np.full((2, size, size), 9.0, np.float32)).shape == (2, 255)
    assert np.abs(frequencies(np.full((1, size, size), 9.0, np.float32))).max() < 1e-3


def test_all_close_hashes_are_found():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**63, 40, dtype=np.uint64)
    flips = [sum(1 << int(bit) for bit in rng.choice(64, k % 10, replace=False)) for k in range(120)]
    hashes = np.concatenate([base, base[rng.integers(0, 40, 120)] ^ np.array(flips, np.uint64)])
    a, b = np.triu_indices(len(hashes), 1)
    expected = {
        pair
        for pair, bits in zip(zip(a.tolist(), b.tolist(), strict=True), popcount(hashes[a] ^ hashes[b]), strict=True)
        if bits <= MOST_BITS
    }
    found = {(min(i, j), max(i, j)) for x, y, _ in _close(hashes) for i, j in zip(x.tolist(), y.tolist(), strict=True)}
    assert found == expected
    assert expected


def saved(image, quality=60):
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def test_copies_are_found_and_the_rest_is_not(tmp_path):
    images = list(blobs(120))
    brighter = np.clip(images[1].astype(float) * 1.1 + 6, 0, 255).astype(np.uint8)
    smaller = np.asarray(Image.fromarray(images[2]).resize((24, 24), Image.Resampling.BOX).resize((48, 48), Image.Resampling.BICUBIC))
    images += [saved(images[0]), brighter, smaller, images[3]]
    cache = cache_of(images, tmp_path / "images")
    patients = np.arange(124)
    patients[122] = 2
    split = np.array(["train"] * 120 + ["test", "train", "train", "test"])
    contents = np.arange(124)
    contents[123] = 3
    found = find_near_duplicates(image_features(cache), contents, patients, split)
    assert found.pairs.tolist() == [[0, 120], [1, 121]]
    assert found.across_splits.tolist() == [True, False]
    assert found.across_patients.tolist() == [True, True]
    assert (found.within, found.complete) == (1, True)
    assert found.random_hits / found.n_random < 1e-3


def test_one_image_and_one_patient_have_no_pairs(tmp_path):
    cache = cache_of(blobs(1), tmp_path / "images")
    found = find_near_duplicates(image_features(cache), np.zeros(1, int), np.zeros(1, int), np.array(["train"]))
    assert (len(found.pairs), found.n_random) == (0, 0)


def test_flat_images_do_not_fill_the_list():
    n = 300
    features = ImageFeatures(np.zeros((n, 3), np.float32), np.zeros(n, np.uint64), np.zeros((n, 255), np.int8))
    found = find_near_duplicates(features, np.zeros(n, int), np.arange(n), np.full(n, "train"))
    assert len(found.pairs) == 0
