"""Activations on disk: shared, atomic, bounded, and never those of another prefix."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from evenhand.errors import DiskFullError
from evenhand.files import locked
from evenhand.models import ImageClassifier, freeze_parameters
from evenhand.models.prefix import split_network
from evenhand.training import activations
from evenhand.training.activations import ActivationCache, Arithmetic, locate
from evenhand.training.views import FixedViews

CPU = torch.device("cpu")
ROW = 4 * 5 * 16


def tiny(seed=0, head=0):
    torch.manual_seed(seed)
    network = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=1)
    network.pretrained_cfg = {"classifier": "head"}
    model = ImageClassifier(network, mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(16, 16), name="tiny").eval()
    with torch.no_grad():
        network.head.weight.fill_(head)
    freeze_parameters(model, "backbone")
    network.blocks[1].requires_grad_(True)
    return model


def cut(**options):
    model = tiny(**options)
    return split_network(model, [name for name, parameter in model.network.named_parameters() if parameter.requires_grad])


class Pixels:
    """Images in memory, as rows of a whole where given; counts what is read."""

    def __init__(self, pixels, whole=None, rows=None, fail_at=None):
        self.pixels, self.shape, self.n_read, self.fail_at = pixels, tuple(pixels.shape[1:]), 0, fail_at
        self.fingerprint = f"{float(pixels.sum()):.6f}"
        if whole is not None:
            self.whole, self.rows = whole, np.asarray(rows)

    def __len__(self):
        return len(self.pixels)

    def batch(self, positions):
        self.n_read += len(self.pixels[positions])
        if self.fail_at is not None and self.n_read > self.fail_at:
            raise KeyboardInterrupt
        return self.pixels[positions]


def some(n=10, seed=0, **options):
    return Pixels(torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed)), **options)


def rows_of(whole, rows):
    return Pixels(whole.pixels[rows], whole, rows)


@pytest.mark.parametrize("on_disk", [True, False])
def test_activations_are_the_prefixs_and_computed_once(tmp_path, on_disk):
    cache, split, images = ActivationCache(tmp_path / "kept" if on_disk else None), cut(), some()
    kept = cache.get(split, images, 4, CPU)
    positions = np.array([7, 0, 7])
    expected = split.prefix.eval()(images.pixels)
    assert torch.allclose(kept.batch(positions), expected[positions], atol=1e-6)
    assert torch.equal(kept.batch(slice(2, 5)), kept.batch(np.arange(2, 5)))
    assert (len(kept), kept.shape, kept.source_fingerprint) == (10, (5, 16, 1), images.fingerprint)
    again = cache.get(cut(head=3), images, 4, CPU)
    assert images.n_read == 10
    assert again.fingerprint == kept.fingerprint
    other = cache.get(cut(seed=1), images, 4, CPU)
    assert other.fingerprint != kept.fingerprint
    assert not torch.allclose(other.batch(slice(0, 2)), kept.batch(slice(0, 2)), atol=1e-3)


def test_a_batch_can_be_written_to_without_changing_what_is_kept(tmp_path):
    cache, split, images = ActivationCache(tmp_path), cut(), some()
    kept = cache.get(split, images, 4, CPU)
    before = kept.batch(slice(0, 3)).clone()
    kept.batch(np.arange(3)).zero_()
    assert torch.equal(ActivationCache(tmp_path).get(split, images, 4, CPU).batch(slice(0, 3)), before)


def test_selections_share_the_file_of_the_whole_and_only_missing_rows_are_read(tmp_path):
    cache, split, whole = ActivationCache(tmp_path), cut(), some(12)
    first, second = rows_of(whole, [3, 1, 8]), rows_of(whole, [8, 11, 3])
    cache.get(split, first, 2, CPU)
    kept = cache.get(split, second, 2, CPU)
    assert (first.n_read, second.n_read) == (3, 1)
    assert torch.allclose(kept.batch(slice(0, 3)), split.prefix.eval()(whole.pixels[[8, 11, 3]]), atol=1e-6)
    assert len(list(tmp_path.glob("*/rows.bin"))) == 1


def test_bf16_is_kept_in_two_bytes(tmp_path):
    model = tiny()
    split = cut()
    arithmetic = Arithmetic("bf16", lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    object.__setattr__(split, "dtype_under", lambda context: torch.bfloat16)
    kept = ActivationCache(tmp_path).get(split, some(), 4, CPU, arithmetic)
    assert kept.batch(slice(0, 2)).dtype == torch.bfloat16
    assert next(tmp_path.glob("*/rows.bin")).stat().st_size == 10 * ROW // 2
    exact = ActivationCache(tmp_path).get(split_network(model, {"blocks.1.norm1.weight"}), some(), 4, CPU)
    assert exact.fingerprint != kept.fingerprint


def test_a_killed_pass_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(activations, "KEPT_ROWS", 4)
    split, broken = cut(), some(20, fail_at=11)
    with pytest.raises(KeyboardInterrupt):
        ActivationCache(tmp_path).get(split, broken, 2, CPU)
    images = some(20)
    kept = ActivationCache(tmp_path).get(split, images, 2, CPU)
    assert 0 < images.n_read <= 20 - 4
    assert torch.allclose(kept.batch(slice(0, 20)), split.prefix.eval()(images.pixels), atol=1e-6)


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_list_of_rows_means_computing_again(tmp_path, damage):
    split, images = cut(), some()
    ActivationCache(tmp_path).get(split, images, 4, CPU)
    done = next(tmp_path.glob("*/done.npy"))
    if damage is None:
        done.unlink()
    else:
        done.write_bytes(damage)
    kept = ActivationCache(tmp_path).get(split, images, 4, CPU)
    assert images.n_read == 20
    assert torch.allclose(kept.batch(slice(0, 10)), split.prefix.eval()(images.pixels), atol=1e-6)


@pytest.mark.parametrize("on_disk", [True, False])
def test_what_is_larger_than_the_bound_is_refused(tmp_path, on_disk):
    cache = ActivationCache(tmp_path if on_disk else None, max_bytes=10 * ROW - 1)
    images = some()
    with pytest.raises(DiskFullError, match=r"need 3\.2e-06 GB, but at most 3\.2e-06 GB may be kept; allow more"):
        cache.get(cut(), images, 4, CPU)
    assert images.n_read == 0


def test_a_disk_without_room_is_found_before_anything_is_computed(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(activations.shutil, "disk_usage", lambda path: usage)
    images = some()
    with pytest.raises(DiskFullError, match=r"has 1e-07 GB free; free some space"):
        ActivationCache(tmp_path).get(cut(), images, 4, CPU)
    assert images.n_read == 0


def test_a_disk_that_fills_up_meanwhile_leaves_no_row_that_counts(tmp_path, monkeypatch):
    split, images = cut(), some()

    def full(descriptor, flush, path, done):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(activations, "_enter", full)
        with pytest.raises(DiskFullError, match="no space left"):
            ActivationCache(tmp_path).get(split, images, 4, CPU)
    kept = ActivationCache(tmp_path).get(split, images, 4, CPU)
    assert images.n_read == 20
    assert torch.allclose(kept.batch(slice(0, 10)), split.prefix.eval()(images.pixels), atol=1e-6)


@pytest.mark.parametrize("on_disk", [True, False])
def test_what_was_not_used_for_longest_makes_room(tmp_path, on_disk, monkeypatch):
    monkeypatch.setattr(activations, "_size", lambda folder: 10 * ROW if (folder / "rows.bin").exists() else 0)
    cache = ActivationCache(tmp_path if on_disk else None, max_bytes=25 * ROW)
    splits, images = [cut(seed=seed) for seed in range(3)], some()
    held = [cache.get(splits[0], images, 5, CPU), cache.get(splits[1], images, 5, CPU)]
    for age, path in enumerate(sorted(tmp_path.glob("*/manifest.json"), key=os.path.getmtime)):
        os.utime(path, (1000 + age, 1000 + age))
    before = held[1].batch(slice(0, 10)).clone()
    cache.get(splits[0], images, 5, CPU)
    assert images.n_read == 20
    cache.get(splits[2], images, 5, CPU)
    cache.get(splits[0], images, 5, CPU)
    assert images.n_read == 30
    assert torch.equal(held[1].batch(slice(0, 10)), before)
    cache.get(splits[1], images, 5, CPU)
    assert images.n_read == 40


@pytest.mark.parametrize("gone", [True, False])
def test_only_a_lock_that_is_held_keeps_activations_and_not_the_file_of_a_killed_process(tmp_path, gone):
    cache, images = ActivationCache(tmp_path, max_bytes=15 * ROW), some()
    cache.get(cut(seed=0), images, 5, CPU)
    (older,) = (path.parent for path in tmp_path.glob("*/manifest.json"))
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(older / ".lock", ready))
    holder.start()
    try:
        assert ready.wait(60)
        if gone:
            os.kill(holder.pid, signal.SIGKILL)
            holder.join(60)
            cache.get(cut(seed=1), images, 5, CPU)
            assert not older.exists()
        else:
            with pytest.raises(DiskFullError, match="others in use take"):
                cache.get(cut(seed=1), images, 5, CPU)
            assert {path.name for path in older.iterdir()} == {".lock", "rows.bin", "done.npy", "manifest.json"}
    finally:
        holder.kill()
        holder.join(60)


def _hold(path, ready):
    with locked(path):
        ready.set()
        time.sleep(300)


def test_a_folder_that_is_deleted_before_its_lock_is_taken_is_made_again(tmp_path, monkeypatch):
    taken = []

    def once_too_late(path, waiting):
        taken.append(path)
        if len(taken) == 1:
            path.parent.rmdir()
        return locked(path, waiting)

    monkeypatch.setattr(activations, "locked", once_too_late)
    images, split = some(), cut()
    kept = ActivationCache(tmp_path).get(split, images, 4, CPU)
    assert len(taken) == 2
    assert torch.allclose(kept.batch(slice(0, 10)), split.prefix.eval()(images.pixels), atol=1e-6)


def _compute(folder, queue):
    torch.set_num_threads(1)
    images = some(40)
    kept = ActivationCache(Path(folder)).get(cut(), images, 4, CPU)
    queue.put((images.n_read, float(kept.batch(slice(0, 40)).double().sum())))


def test_two_processes_compute_every_row_once(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_compute, args=(str(tmp_path), queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    told = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(30)
    assert sorted(n for n, _ in told) == [0, 40]
    assert told[0][1] == told[1][1]


def test_rows_are_located_in_the_whole_through_selections_and_views(lab):
    whole = some(12)
    part = rows_of(whole, [3, 1, 8])
    inner = Pixels(part.pixels[[2, 0]], part, [2, 0])
    assert locate(whole)[:2] == (whole.fingerprint, 12)
    key, n, rows = locate(inner)
    assert (key, n, rows.tolist()) == (whole.fingerprint, 12, [8, 3])
    views = FixedViews(inner, lab.setup(augment="dermoscopy"), 2)
    first, second = locate(views.at_epoch(1)), locate(views.at_epoch(2))
    assert first[0] != second[0]
    assert first[2].tolist() == [8, 3]
