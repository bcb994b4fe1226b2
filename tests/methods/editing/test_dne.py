"""White-box training: what it hides, what it only fools, and that nothing is lost on the way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scenes import Encoder, Store, scene_task

from evenhand.config.editing import DNEConfig
from evenhand.errors import InputError, MethodError, NonFiniteLossError, RunError
from evenhand.methods.editing import dne
from evenhand.methods.editing.dne import DNE
from evenhand.methods.editing.setup import fit_attribute_heads

torch.set_num_threads(1)
SMALL = DNEConfig(family=["tone"], batch_size=50, epochs=3, refit_every=3, reference_images=60, controls=False, rounding="none", lr=0.1)


def hidden(outcome, condition="edit"):
    return outcome.report["leakage"]["attributes"]["site"][condition]["hidden"]["given_label"]["value"]


def test_a_filter_hides_texture_and_keeps_the_disease():
    config = DNEConfig(
        family=["residual"], kernel=3, width=6, batch_size=40, epochs=12, lr=8.0, refit_every=8, reference_images=240, rounding="none"
    )
    task = scene_task(240, together=0.6)
    result = DNE(config).fit(task)
    outcome = DNE(config).fit_edit(task)  # the finished run is taken up, not trained again
    assert hidden(outcome, "none") > 0.98
    assert hidden(outcome, "noise") > 0.98
    assert hidden(outcome) < 0.88
    assert outcome.history[-1]["attribute"] < 0.5 * outcome.history[0]["attribute"]
    scores = result.predict(task.val.x)[0][:, 0]
    assert ((scores > 0.5) == task.val.y[:, 0]).mean() > 0.9


def test_a_published_plane_fools_the_old_head_and_hides_nothing():
    class Shifted(Encoder):
        """Also sees brightness as the attribute: what a constant can move, and a fresh head moves back."""

        def forward(self, images):
            z = super().forward(images)
            return torch.cat([z, images[..., 0, 0] * 20 - 9], dim=1)

    Shifted.dim = 7
    task = scene_task(200, together=0.2, embedder=Shifted())
    for split in (task.train, task.val):
        split.x.values[:, 0, 0, 0] = 0.4 + 0.1 * split.groups["site"].codes + 0.02 * np.random.default_rng(0).standard_normal(len(split))
        split.x.values[:, 0, 1:] = 0.5
    config = DNEConfig(
        family=["pixel"], objective="published", utility=0, norm_weight=1e-3, lr=0.03, natural_steps=False, schedule="constant",
        reset_optimizer=True, clamp=False, rounding="none", batch_size=50, epochs=8,
    )
    outcome = DNE(config).fit_edit(task)
    found = outcome.report["leakage"]["attributes"]["site"]
    assert found["none"]["fooled"]["accuracy"] > 0.95
    assert found["edit"]["fooled"]["accuracy"] < 0.65
    assert hidden(outcome) > 0.95


@pytest.mark.parametrize("augment", ["none", "chest_film"])
def test_a_killed_run_ends_like_an_unbroken_one_to_the_bit(augment):
    class Killed(Exception):
        pass

    class Dies(Store):
        """Dies after a state was written."""

        def put(self, key, value):
            super().put(key, value)
            raise Killed

    config = replace(SMALL, odds=0.5, patience=3)
    whole = DNE(config).fit_edit(scene_task(120, augment=augment))
    store = Dies()
    for _ in range(config.epochs):
        with pytest.raises(Killed):
            DNE(config).fit_edit(scene_task(120, augment=augment, store=store))
    resumed = Store()
    resumed.values = store.values
    again = DNE(config).fit_edit(scene_task(120, augment=augment, store=resumed))
    assert torch.equal(again.edit.vector(), whole.edit.vector())
    assert again.history == whole.history
    assert again.report == whole.report


def test_augmented_images_are_trained_on_and_heads_read_them_as_they_are():
    plain = DNE(SMALL).fit_edit(scene_task(100))
    augmented = DNE(SMALL).fit_edit(scene_task(100, augment="chest_film"))
    assert not torch.equal(plain.edit.vector(), augmented.edit.vector())
    none = replace(SMALL, epochs=0)
    reports = [DNE(none).fit_edit(scene_task(100, augment=name)).report["leakage"] for name in ("none", "chest_film")]
    assert reports[0] == reports[1]


def test_a_state_of_other_options_is_refused():
    store = Store()
    DNE(SMALL).fit_edit(scene_task(100, store=store))
    with pytest.raises(InputError, match="belongs to other data, options or another encoder"):
        DNE(replace(SMALL, lr=0.2)).fit_edit(scene_task(100, store=store))


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_state(monkeypatch):
    class Breaks(Encoder):
        """NaN from some image on."""

        def forward(self, images):
            z = super().forward(images)
            return z * torch.nan if images.requires_grad and self.n_images > 400 else z

    store = Store()
    with pytest.raises(NonFiniteLossError, match=r"lower method\.lr") as caught:
        DNE(replace(SMALL, objective="published", utility=0, epochs=9)).fit_edit(scene_task(100, store=store, embedder=Breaks()))
    assert isinstance(caught.value, RunError)
    assert store.values["edit"]["epoch"] >= 1
    assert np.isfinite(store.values["edit"]["u"].numpy()).all()


def test_only_the_edit_gets_a_gradient():
    encoder = Encoder()
    DNE(SMALL).fit_edit(scene_task(100, embedder=encoder))
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_with_patience_the_best_edit_is_kept(monkeypatch):
    values = iter([0.5, 0.2, 0.4, 0.6, 0.9, 0.1])
    vectors = []

    def judged(self):
        vectors.append(self.edit.vector())
        return next(values)

    monkeypatch.setattr(dne._Training, "_validate", judged)
    outcome = DNE(replace(SMALL, epochs=6, patience=2)).fit_edit(scene_task(100))
    assert len(outcome.history) == 4
    torch.testing.assert_close(outcome.edit.vector(), vectors[1])
    assert outcome.report["training"]["best_epoch"] == 2


def test_encoders_without_gradients_and_heads_of_others_are_refused():
    encoder = Encoder()
    encoder.differentiable = False
    with pytest.raises(MethodError, match="use method=gezo"):
        DNE(SMALL).fit_edit(scene_task(100, embedder=encoder))
    with pytest.raises(MethodError, match=r"give task\.embedder"):
        DNE(SMALL).fit_edit(replace(scene_task(100), embedder=None))
    head = fit_attribute_heads(scene_task(100), SMALL)[0]
    with pytest.raises(MethodError, match="fit it on this data"):
        DNE(SMALL).fit_edit(scene_task(100, n_groups=3), {"site": head})
    narrow = replace(head, weight=head.weight[:, :4])
    with pytest.raises(MethodError, match="fit it with the same encoder"):
        DNE(SMALL).fit_edit(scene_task(100), {"site": narrow})


def test_several_attributes_of_several_groups_and_no_validation_rows():
    task = scene_task(120, n_groups=3, missing=0.2)
    config = replace(SMALL, attributes=["site", "sex"], epochs=1)
    outcome = DNE(config).fit_edit(task)
    assert set(outcome.report["leakage"]["attributes"]) == {"site", "sex"}
    assert any("have no 'site'" in note for note in outcome.notes)
    assert any("'sex' reads no better than chance" in note for note in outcome.notes)
    nothing = np.zeros(0, np.int64)
    groups = {name: item.take(nothing) for name, item in task.val.groups.items()}
    empty = replace(task.val, y=task.val.y[:0], groups=groups, patient=nothing, index=nothing, x=type(task.val.x)(task.val.x.values[:0]))
    blind = DNE(replace(config, patience=1)).fit_edit(replace(task, val=empty, store=Store()))
    assert blind.report["leakage"] is None


def test_the_learning_rate_is_in_natural_steps():
    def moved(**options):
        # a head that was hardly fitted is not saturated, so that gradients are far above Adam's epsilon
        config = replace(SMALL, objective="published", utility=0, epochs=1, batch_size=1000, schedule="constant", **options)
        config = replace(config, head="adam", head_epochs=1)
        task = scene_task(60)
        training = dne._Training(config, task, dne.prepare(task, config))
        start = training.edit.vector()
        training.run()
        return (training.edit.vector() - start).abs(), training.edit.natural_steps()

    for options, natural in (({}, True), ({"natural_steps": False}, False)):
        change, steps = moved(**options)
        used = change > 0  # knots that no pixel lies between stay
        assert used.sum() >= 2
        expected = 0.1 * (steps / len(steps) ** 0.5 if natural else torch.ones_like(steps))
        torch.testing.assert_close(change[used], expected[used], rtol=1e-2, atol=1e-6)
