"""Which state is kept: rules by hand, and a small validation split that can see a loss of AUC but no gap."""

from __future__ import annotations

import pytest
import torch

from evenhand.config.patch_methods import BMFTConfig
from evenhand.methods.patching import method
from evenhand.methods.patching.heads import head_names
from evenhand.methods.patching.judging import Judgement, pick
from evenhand.methods.patching.method import make_patched

from .scenes import make_task, scene, tiny

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([(0.3, 0.90), (0.1, 0.895), (0.0, 0.5)], 1),
        ([(0.2, 0.90), (0.1, 0.90), (0.1, 0.95)], 1),  # the earliest of equals
        ([(0.3, 0.80), (0.0, 0.85), (0.0, 0.5)], 1),  # none within the tolerance: the highest AUC
        ([(None, 0.90), (None, 0.893), (None, 0.88)], 1),  # no gap can be told: the last that kept its AUC
        ([(None, 0.90), (None, 0.6), (None, 0.91)], 2),
        ([(None, 0.85), (None, 0.87), (None, 0.6)], 1),
        ([(None, None), (None, None)], 1),
    ],
)
def test_the_state_that_is_kept(states, expected):
    delivered = Judgement(None, None) if states[0][1] is None else Judgement(states[0][0] if states[0][0] is None else 0.3, 0.90)
    assert pick([Judgement(*state) for state in states], delivered, tolerance=0.01) == expected


def _spoil(monkeypatch, passes):
    """Step one destroys the network in these passes and leaves it alone in others."""
    weights = {}

    def run(epoch, network, module, *args, **options):
        norm = module.network.norm.weight
        weights.setdefault("sound", norm.detach().clone())
        with torch.no_grad():
            norm.copy_(torch.zeros_like(norm) if epoch in passes else weights["sound"])
        return {"step": "impair", "epoch": epoch}

    monkeypatch.setattr(method, "run_epoch", run)


@pytest.mark.parametrize(("passes", "said"), [((1, 2), "a new head alone"), ((2,), "the state after pass 1 of 2")])
def test_few_validation_rows_still_see_a_destroyed_classifier(monkeypatch, passes, said):
    """Groups of 12 rows cannot be compared; the last state was kept whatever its AUC before this rule."""
    _spoil(monkeypatch, passes)
    model = tiny("vit")
    task = make_task(scene(48, 1), scene(12, 2), batch_size=24)
    outcome = make_patched(task, model, BMFTConfig(impair_epochs=2, impair_lr=0.05, mask_type="all"))
    assert [record["val_bias"] for record in outcome.history[:4]] == [None] * 4
    assert outcome.history[3]["val_auc"] == 0.5
    notes = " ".join(outcome.notes)
    assert "12 validation rows are too few to compare groups on" in notes
    assert said in notes
    sound = {key for key in outcome.before if key.endswith("norm.weight") and "blocks" not in key}
    assert all(torch.equal(outcome.before[key], outcome.after[key]) for key in sound)
    heads = {f"network.{name}" for name in head_names(model)}
    assert any(not torch.equal(outcome.before[key], outcome.after[key]) for key in heads)
