"""Every family of edits under every optimiser: what is optimised improves on the training images, and the edit keeps its bounds.

The objective is the published one, minus the cross-entropy of a frozen attribute head, because every family can lower it; it is
measured here from the head and the encoder alone. An optimiser whose gradients or candidates did not reach a family's parameters would
leave the edit where it began, which changes no image.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from scenes import SIDE, Encoder, scene_task

from evenhand.config.editing import FAMILIES, DNEConfig, GeZOConfig
from evenhand.edits.build import build_edit
from evenhand.methods.editing.dne import DNE
from evenhand.methods.editing.gezo import GeZO
from evenhand.methods.editing.setup import fit_attribute_heads

CHOSEN = [[family] for family in FAMILIES] + [["tone", "lowres", "residual"]]
OPTIMISERS = ("dne", "cma", "spsa", "gezo", "surrogate")
LINF, L2, LEAST = 0.12, 1.1, 0.02
SMALL = {
    "resolution": 4, "border": 0.25, "knots": 5, "bands": 5, "width": 4, "depth": 2, "kernel": 3, "linf": LINF, "l2": L2,
    "rounding": "8bit", "objective": "published", "utility": 0.0, "measure": False, "controls": False, "reference_images": 60,
}


def config(optimiser, family):
    if optimiser == "dne":
        return DNEConfig(family=family, epochs=4, batch_size=25, lr=24.0, **SMALL)
    few = 4 if optimiser == "surrogate" else 0
    return GeZOConfig(
        family=family, optimizer=optimiser, budget=1800, query_images=20, validation_images=40, draws=4, population=8, refit_every=4,
        lr=2.0, step=6.0, edit_lr=12.0, edit_steps=8, surrogate_steps=40, surrogate_width=4, rounds=few, **SMALL,
    )


def make_task():
    """Scenes whose sites differ in brightness and in texture, both with overlap: what smooth families move, and what others do."""
    task = scene_task(80, together=0.3)
    for seed, split in enumerate((task.train, task.val)):
        rng, n = np.random.default_rng(seed), len(split)
        site = split.groups["site"].codes
        board = np.indices((SIDE, SIDE)).sum(axis=0) % 2 * 2 - 1.0
        level = 0.45 + 0.05 * site + 0.04 * rng.standard_normal(n)
        texture = 0.03 * site + 0.02 * rng.standard_normal(n)
        values = level[:, None, None] + texture[:, None, None] * board + 0.01 * rng.standard_normal((n, SIDE, SIDE))
        split.x.values[:] = np.clip(values, 0, 1)[:, None]
    return task


@functools.cache
def heads():
    """The attribute head, the same for all."""
    return {head.attribute: head for head in fit_attribute_heads(make_task(), config("dne", ["tone"]))[:1]}


def optimised(task, edit=None):
    """Minus the mean cross-entropy of the frozen head on the training images."""
    images = task.train.x.batch(slice(None))
    with torch.inference_mode():
        z = Encoder()(images if edit is None else edit(images)).numpy()
    chosen = heads()["site"].probabilities(z)[np.arange(len(z)), task.train.groups["site"].codes]
    return float(np.log(np.maximum(chosen, 1e-12)).mean())


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("family", CHOSEN, ids="+".join)
def test_what_is_optimised_goes_down_and_bounds_hold(family, optimiser):
    task = make_task()
    method = DNE if optimiser == "dne" else GeZO
    outcome = method(config(optimiser, family)).fit_edit(task, heads())
    start, end = optimised(task), optimised(task, outcome.edit)
    assert end < start - LEAST, (start, end)
    fresh = build_edit(config(optimiser, family), task.train.x.shape, task.seed)
    for (name, after), before in zip(outcome.edit.named_parameters(), fresh.parameters(), strict=True):
        assert not torch.equal(after, before), f"{name} was left where it began"
    images = task.train.x.batch(slice(None))
    with torch.inference_mode():
        edited = outcome.edit(images)
    change = (edited - images).flatten(1)
    assert float(edited.min()) >= 0
    assert float(edited.max()) <= 1
    assert float(change.abs().max()) <= LINF + 1e-5
    assert float(change.norm(dim=1).max()) <= L2 + 1e-4
    assert float((edited * 255 - (edited * 255).round()).abs().max()) < 1e-3
    if family == ["border"]:
        assert torch.equal(edited[..., 3:-3, 3:-3], (images[..., 3:-3, 3:-3] * 255).round() / 255)
