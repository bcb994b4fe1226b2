"""Tiny images in memory, tiny networks, and two stores: enough to train in a second."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from evenhand.config.schema import TrainerConfig
from evenhand.methods.base import Split
from evenhand.training import TrainSetup

# programs that tests start as processes of their own, not test modules
collect_ignore_glob = ["*_worker.py"]


class MemoryImages:
    """Images held in memory; ``fail_at`` makes the n-th batch raise."""

    def __init__(self, pixels, fail_at=None):
        self.pixels, self.fail_at, self.reads = pixels, fail_at, 0
        self.shape = tuple(pixels.shape[1:])
        self.fingerprint = f"{tuple(pixels.shape)} {float(pixels.sum()):.6f}"

    def __len__(self):
        return len(self.pixels)

    def batch(self, positions):
        self.reads += 1
        if self.fail_at is not None and self.reads >= self.fail_at:
            raise KeyboardInterrupt
        return self.pixels[positions].clone()


class MemoryStore:
    """A store that keeps what a file would: bytes, loaded again without running code."""

    def __init__(self):
        self.values, self.puts = {}, 0

    def get(self, key):
        import io

        return torch.load(io.BytesIO(self.values[key]), weights_only=True) if key in self.values else None

    def put(self, key, value):
        import io

        buffer = io.BytesIO()
        torch.save(value, buffer)
        self.values[key], self.puts = buffer.getvalue(), self.puts + 1

    def append(self, key, record):
        raise AssertionError("the loop keeps its history in the checkpoint")


class FolderStore:
    """A store in a folder, every write atomic."""

    def __init__(self, root):
        self.root = Path(root)
        self.root.mkdir(parents=True, exist_ok=True)

    def get(self, key):
        path = self.root / f"{key}.pt"
        return torch.load(path, weights_only=True) if path.exists() else None

    def put(self, key, value):
        temporary = self.root / f"{key}.tmp"
        torch.save(value, temporary)
        os.replace(temporary, self.root / f"{key}.pt")

    def append(self, key, record):
        raise AssertionError("the loop keeps its history in the checkpoint")


def make_split(n, kind="binary", seed=0, channels=1, n_labels=1, **options):
    """Images whose brightness, per quadrant, gives the labels, with noise."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(n, channels, 8, 8, generator=generator)
    quadrants = torch.stack([pixels[:, :, :4, :4], pixels[:, :, 4:, :4], pixels[:, :, :4, 4:]], dim=1).mean((2, 3, 4)).numpy()
    if kind == "multiclass":
        y = quadrants.argmax(axis=1).astype(np.int64)
        y[::11] = -1
    else:
        y = (quadrants[:, :n_labels] > 0.5).astype(np.float32)
        y[::11] = np.nan
    return Split(MemoryImages(pixels, **options), y, {}, np.arange(n), np.arange(n))


def make_model(n_outputs=1, channels=1, seed=0):
    """A network with dropout and batch normalisation, so that randomness and buffers matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(4 * 36, n_outputs)
        )


def make_setup(kind="binary", store=None, report=lambda text: None, seed=0, batch_size=16, augment="none", **options):
    """A setup with small, fast defaults; ``options`` go to the trainer."""
    settings = {"max_epochs": 3, "lr": 0.01, "progress": False} | options
    return TrainSetup(kind, TrainerConfig(**settings), store or MemoryStore(), seed, batch_size, torch.device("cpu"), augment, report)


@pytest.fixture
def lab():
    """The makers above, by name."""
    from types import SimpleNamespace

    return SimpleNamespace(
        split=make_split, model=make_model, setup=make_setup, MemoryStore=MemoryStore, FolderStore=FolderStore, MemoryImages=MemoryImages
    )
