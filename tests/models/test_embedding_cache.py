"""Embeddings on disk: computed once, shared by the splits of a data set, whole after any accident."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from evenhand.errors import DiskFullError, InputError
from evenhand.models import EmbeddingCache, LocalEmbedder, embedding_cache


@dataclass
class Base:
    """A prepared data set's cache, as far as the embedding cache looks at it."""

    whole: object

    def images(self, rows=None):
        return View(self, np.arange(len(self.whole)) if rows is None else np.asarray(rows))


@dataclass
class View:
    base: Base
    rows: np.ndarray

    @property
    def shape(self):
        return self.base.whole.shape

    @property
    def fingerprint(self):
        return f"{self.base.whole.fingerprint}{self.rows.tolist()}"

    def __len__(self):
        return len(self.rows)

    def batch(self, positions):
        return self.base.whole.batch(self.rows[positions])


@pytest.fixture
def embedder(classifier):
    return LocalEmbedder(classifier, precision="fp32", batch_size=4)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(embedding_cache, "SHARD_ROWS", 4)


def test_second_time_from_disk(tmp_path, embedder, images):
    first = EmbeddingCache(tmp_path).get(embedder, images)
    second = EmbeddingCache(tmp_path).get(embedder, images)
    np.testing.assert_array_equal(first, second)
    assert embedder.n_images == 10
    np.testing.assert_allclose(first, embedder.embed_images(images), rtol=1e-4, atol=1e-5)


def test_splits_share_the_rows_of_their_data_set(tmp_path, embedder, images):
    base, cache = Base(images), EmbeddingCache(tmp_path)
    part = cache.get(embedder, base.images([7, 1, 2]))
    assert embedder.n_images == 3
    whole = cache.get(embedder, base.images())
    assert embedder.n_images == 10
    np.testing.assert_array_equal(part, whole[[7, 1, 2]])
    redrawn = cache.get(embedder, base.images([9, 9, 0]))
    assert embedder.n_images == 10
    np.testing.assert_array_equal(redrawn, whole[[9, 9, 0]])


def test_key_parts_do_not_mix(tmp_path, make_classifier, images, make_images):
    cache = EmbeddingCache(tmp_path)
    plain = LocalEmbedder(make_classifier(), "fp32")
    cache.get(plain, images)
    for other, given, edit in (
        (LocalEmbedder(make_classifier(), "bf16"), images, None),
        (LocalEmbedder(make_classifier(global_pool="avg"), "fp32"), images, None),
        (LocalEmbedder(make_classifier(), "fp32"), make_images(images.pixels, fingerprint="other"), None),
        (LocalEmbedder(make_classifier(), "fp32"), images, "edit"),
    ):
        cache.get(other, given, edit)
        assert other.n_images == 10
    folders = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(folders) == 5
    manifest = json.loads((folders[0] / "manifest.json").read_text())
    assert {"model", "data", "edit", "precision", "input_size", "mean", "std", "pool"} <= set(manifest)


def test_normalisation_is_part_of_the_key(tmp_path, make_classifier, images):
    second = make_classifier()
    second.mean.fill_(0.25)
    first = EmbeddingCache(tmp_path).get(LocalEmbedder(make_classifier(), "fp32"), images)
    assert not np.array_equal(first, EmbeddingCache(tmp_path).get(LocalEmbedder(second, "fp32"), images))


def test_kill_in_the_middle_keeps_finished_shards(tmp_path, embedder, images, monkeypatch):
    computed = embedder.embed_images
    calls = []

    def dies(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return computed(*args, **options)

    monkeypatch.setattr(embedder, "embed_images", dies)
    with pytest.raises(KeyboardInterrupt):
        EmbeddingCache(tmp_path).get(embedder, images)
    assert embedder.n_images == 8
    EmbeddingCache(tmp_path).get(embedder, images)
    assert embedder.n_images == 10


def test_two_writers_of_one_shard_keep_both_rows(tmp_path, make_classifier, images):
    base, cache = Base(images), EmbeddingCache(tmp_path)
    slow, fast = LocalEmbedder(make_classifier(), "fp32"), LocalEmbedder(make_classifier(), "fp32")
    computed = slow.embed_images

    def meanwhile(*args, **options):
        cache.get(fast, base.images([1]))
        return computed(*args, **options)

    slow.embed_images = meanwhile
    cache.get(slow, base.images([0]))
    reader = LocalEmbedder(make_classifier(), "fp32")
    cache.get(reader, base.images([0, 1]))
    assert reader.n_images == 0


def test_full_disk_leaves_nothing_half_written(tmp_path, embedder, images, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="no space"):
        EmbeddingCache(tmp_path).get(embedder, images)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_damaged_shard_is_named(tmp_path, embedder, images):
    EmbeddingCache(tmp_path).get(embedder, images)
    shard = next(tmp_path.rglob("000001.npy"))
    shard.write_bytes(shard.read_bytes()[:40])
    with pytest.raises(InputError, match=r"000001\.npy is damaged"):
        EmbeddingCache(tmp_path).get(embedder, images)
    np.save(shard, np.zeros((4, 3), np.float32))
    with pytest.raises(InputError, match="shape"):
        EmbeddingCache(tmp_path).get(embedder, images)


def test_precision_decision_is_kept_with_what_was_measured(tmp_path, make_classifier, images, monkeypatch):
    monkeypatch.setattr("evenhand.models.embedder.has_fast_bf16", lambda device: True)
    first = LocalEmbedder(make_classifier())
    EmbeddingCache(tmp_path).get(first, images)
    assert first.agreement.n_images == 10
    second = LocalEmbedder(make_classifier())
    EmbeddingCache(tmp_path).get(second, images)
    assert (second.settled, second.n_images) == (first.settled, 0)
    assert second.agreement.min_cosine == pytest.approx(first.agreement.min_cosine)


def test_real_image_cache_views(tmp_path, embedder):
    from PIL import Image

    from evenhand.data.cache import build_cache

    rng = np.random.default_rng(0)
    files = []
    for i in range(5):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(files[-1])
    stored, _ = build_cache(files, tmp_path / "cache", size=32, workers=1, keep_going=False, progress=False)
    cache = EmbeddingCache(tmp_path / "embeddings")
    some = cache.get(embedder, stored.images(np.array([3, 1])))
    every = cache.get(embedder, stored.images())
    assert embedder.n_images == 5
    np.testing.assert_array_equal(some, every[[3, 1]])
    assert torch.is_tensor(stored.images().batch(slice(0, 2)))
