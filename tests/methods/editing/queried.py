"""A toy black box and a task to search an edit on: imported by tests of the search."""

from __future__ import annotations

import copy
import functools

import numpy as np
import torch

from evenhand.config.editing import GeZOConfig
from evenhand.config.schema import TrainerConfig
from evenhand.data.groups import Groups
from evenhand.edits.build import build_edit
from evenhand.errors import ServerError
from evenhand.methods.base import Split, Task
from evenhand.methods.editing.search import search
from evenhand.methods.editing.setup import fit_attribute_heads, prepare

SIZE = 8
CHECKERS = torch.from_numpy(np.indices((SIZE, SIZE)).sum(axis=0) % 2 * 2.0 - 1.0).float()
BLOB = torch.from_numpy(np.exp(-(((np.indices((SIZE, SIZE)) - 3.5) ** 2).sum(axis=0)) / 4)).float()


class Pictures:
    """Images (n, 1, 8, 8): a blob for the label, a chequered texture for the group."""

    shape = (1, SIZE, SIZE)

    def __init__(self, pixels):
        self.pixels = pixels
        self.fingerprint = str(float(pixels.double().sum()))

    def __len__(self):
        return len(self.pixels)

    def batch(self, positions):
        return self.pixels[positions]


class Encoder:
    """A black box: energy of the texture, size of the blob, brightness and two nuisances; fails on demand."""

    dim, input_size, channels, fingerprint, differentiable = 5, (SIZE, SIZE), 1, "toy", False

    def __init__(self, fail=None):
        self.n_images, self.calls, self.fail = 0, 0, fail
        self.seen = []

    def __call__(self, images):
        assert not torch.is_grad_enabled()
        assert not images.requires_grad
        self.calls += 1
        if self.fail is not None:
            self.fail(self.calls)
        self.n_images += len(images)
        self.seen.append(images.clone())
        x = images[:, 0]
        parts = [(x * CHECKERS).mean(dim=(1, 2)).abs() * 20, (x * BLOB).mean(dim=(1, 2)) * 20, x.mean(dim=(1, 2)) * 4]
        return torch.stack([*parts, x[:, 0].mean(dim=1) * 4, x[:, :, 0].mean(dim=1) * 4], dim=1)


class Memory:
    def __init__(self):
        self.values = {}

    def get(self, key):
        return copy.deepcopy(self.values.get(key))

    def put(self, key, value):
        self.values[key] = copy.deepcopy(value)

    def append(self, key, record):
        raise AssertionError


def make_rows(n, seed):
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 2, n)
    y = (rng.random(n) < np.where(group == 1, 0.7, 0.3)).astype(np.float32)
    noise = torch.from_numpy(rng.standard_normal((n, 1, SIZE, SIZE)).astype(np.float32)) * 0.03
    texture = torch.from_numpy(0.03 + 0.06 * (group ^ (rng.random(n) < 0.05))).float()[:, None, None, None] * CHECKERS
    blob = torch.from_numpy(0.15 * y)[:, None, None, None] * BLOB
    pixels = ((0.4 + noise + texture + blob).clamp(0, 1) * 255).round() / 255
    codes = np.where(np.arange(n) % 17 == 0, -1, group)
    groups = {"site": Groups("site", ("a", "b"), codes.astype(np.int64))}
    return Split(Pictures(pixels), y[:, None], groups, np.arange(n), np.arange(n))


def make_task(n=240, n_val=120, embedder=None, store=None, seed=0):
    plain = Encoder()

    def embed(images):
        with torch.no_grad():
            return plain(images.batch(slice(None))).numpy()

    return Task(
        train=make_rows(n, 1), val=make_rows(n_val, 2), kind="binary", labels=("ill",), classes=(), attributes=("site",),
        seed=seed, device=torch.device("cpu"), store=store or Memory(), embed=embed, build_model=None,
        trainer=TrainerConfig(progress=False), batch_size=32, embedder=embedder or Encoder(),
    )  # fmt: skip


def config(**options):
    small = {"family": ["spectral"], "bands": 4, "budget": 4000, "query_images": 32, "validation_images": 60, "reference_images": 80}
    small |= {"optimizer": "cma", "refit_every": 3, "population": 6, "draws": 3, "l2_head": 0.1}
    small |= {"surrogate_steps": 30, "surrogate_width": 8, "edit_steps": 8}
    return GeZOConfig(**(small | options))


@functools.cache
def heads():
    """Attribute heads of the toy rows, fitted once."""
    return {head.attribute: head for head in fit_attribute_heads(make_task(), config())}


def run(task, options):
    edit = build_edit(options, task.train.x.shape, task.seed)
    setup = prepare(task, options, heads())
    return edit, search(task, edit, setup.objective, options, (setup.train, setup.val))


class Stop(ServerError):
    """The server went away before it took the request."""
