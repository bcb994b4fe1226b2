"""Which rows a step is taken on, and which its heads are fitted on."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import Encoder, Store, scene_task

from evenhand.config.editing import DNEConfig
from evenhand.errors import MethodError
from evenhand.methods.editing.dne import DNE
from evenhand.methods.editing.steps import Steps

CONFIG = DNEConfig(
    family=["tone"], batch_size=20, epochs=2, refit_every=2, reference_images=60, controls=False, measure=False, rounding="none",
    cross_fit=True,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    n_patients=st.integers(2, 30), images=st.integers(1, 4), batch=st.integers(1, 40), every=st.integers(1, 5), epochs=st.integers(1, 3),
    cross_fit=st.booleans(), seed=st.integers(0, 9),
)  # fmt: skip
def test_every_row_is_trained_on_once_an_epoch_and_heads_never_saw_it(n_patients, images, batch, every, epochs, cross_fit, seed):
    patient = np.sort(np.random.default_rng(seed).integers(0, n_patients, n_patients * images))
    patient[0], patient[-1] = 0, n_patients
    steps = Steps(seed, patient, epochs, batch, every, cross_fit)
    for epoch in range(1, epochs + 1):
        plan = steps.epoch(epoch)
        assert sorted(np.concatenate([step.rows for step in plan]).tolist()) == list(range(len(patient)))
        assert max(len(step.rows) for step in plan) <= batch
        assert plan[0].progress == pytest.approx((epoch - 1) / epochs)
        assert all(a.progress < b.progress < epoch / epochs for a, b in pairwise(plan))
        if not cross_fit:
            fitted = [(epoch - 1) * len(plan) + k for k, step in enumerate(plan) if step.heads is not None]
            assert all(number % every == 0 for number in fitted)
            assert all(len(step.heads) == len(patient) for step in plan if step.heads is not None)
            continue
        heads, age = None, 0
        for step in plan:
            heads, age = (heads, age + 1) if step.heads is None else (step.heads, 1)
            assert age <= every
            assert not set(patient[heads]) & set(patient[step.rows])
            assert len(heads)


def test_halves_are_drawn_anew_and_hold_half_of_the_rows():
    patient = np.repeat(np.arange(40), 3)
    steps = Steps(0, patient, 9, 1000, 5, True)
    halves = [frozenset(steps.epoch(epoch)[0].rows.tolist()) for epoch in range(1, 10)]
    assert {len(half) for half in halves} == {60}
    assert len(set(halves)) == 9


def test_one_patient_cannot_be_halved():
    with pytest.raises(MethodError, match=r"there is 1 patient; leave it off"):
        Steps(0, np.zeros(8, np.int64), 1, 4, 1, True).epoch(1)


def test_heads_that_saw_the_rows_believe_what_is_not_there():
    """Labels by chance: a head that saw them reads something in them, one that did not must do worse than log 2."""

    class Wide(Encoder):
        """Also gives noise of 24 pixels, in which a head can read any labels."""

        dim = 30

        def forward(self, images):
            return torch.cat([super().forward(images), (images.flatten(1)[:, :24] - 0.5) * 20], dim=1)

    def utility(cross_fit: bool) -> float:
        task = scene_task(60, together=0.0, embedder=Wide())
        chance = np.random.default_rng(3).permutation(task.train.y)
        task = replace(task, train=replace(task.train, y=chance))
        config = replace(CONFIG, lr=1e-6, epochs=1, batch_size=60, l2_head=1e-3, cross_fit=cross_fit)
        return DNE(config).fit_edit(task).history[0]["utility"]

    assert utility(False) < np.log(2) - 0.2
    assert utility(True) > np.log(2) + 0.2


def test_a_killed_crosswise_run_ends_like_an_unbroken_one_to_the_bit():
    class Killed(Exception):
        pass

    class Dies(Store):
        def put(self, key, value):
            super().put(key, value)
            raise Killed

    whole = DNE(CONFIG).fit_edit(scene_task(60))
    store = Dies()
    for _ in range(CONFIG.epochs):
        with pytest.raises(Killed):
            DNE(CONFIG).fit_edit(scene_task(60, store=store))
    resumed = Store()
    resumed.values = store.values
    again = DNE(CONFIG).fit_edit(scene_task(60, store=resumed))
    assert torch.equal(again.edit.vector(), whole.edit.vector())
    assert again.history == whole.history
    plain = DNE(replace(CONFIG, cross_fit=False)).fit_edit(scene_task(60))
    assert not torch.equal(plain.edit.vector(), whole.edit.vector())
