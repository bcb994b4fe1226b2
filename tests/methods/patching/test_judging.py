"""Which state is kept: rules by hand, and a small validation split that can see a loss of AUC but no gap."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evenhand.config.patch_methods import BMFTConfig, PatchComparisonConfig
from evenhand.methods.patching import descent, method
from evenhand.methods.patching.comparisons import make_comparison
from evenhand.methods.patching.heads import head_names
from evenhand.methods.patching.judging import Judgement, pick
from evenhand.methods.patching.method import make_patched

from .scenes import MemoryStore, make_task, scene, tiny

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


def _unsound(epoch, network, module, *args, **options):
    """A pass that leaves a network which answers the same for everybody."""
    with torch.no_grad():
        module.network.norm.weight.zero_()
    return {"step": "impair", "epoch": epoch}


def test_a_step_that_nothing_could_judge_is_left_out(monkeypatch):
    """Groups of 12 rows cannot be compared; before this rule the last pass was kept there, whatever its AUC."""
    monkeypatch.setattr(method, "run_epoch", _unsound)
    task, config = make_task(scene(48, 1), scene(12, 2), batch_size=24), BMFTConfig(impair_epochs=2, impair_lr=0.05, mask_type="all")
    model = tiny("vit")
    outcome = make_patched(task, model, config)
    heads = {f"network.{name}" for name in head_names(model)}
    assert {key for key in outcome.before if not torch.equal(outcome.before[key], outcome.after[key])} == heads
    assert any("12 validation rows are too few to compare groups on, so step one" in note for note in outcome.notes)
    forced = make_patched(replace(task, store=MemoryStore()), tiny("vit"), replace(config, stop="last"))
    assert not forced.after["network.norm.weight"].any()


def test_training_of_the_whole_network_keeps_its_last_sound_pass(monkeypatch):
    """Pass 2 of 3 is the last one whose AUC on 12 validation rows is that of the classifier as delivered."""
    model = tiny("vit")
    sound = model.network.norm.weight.detach().clone()

    def run(epoch, network, module, *args, **options):
        with torch.no_grad():
            module.network.norm.weight.copy_(sound * epoch if epoch < 3 else torch.zeros_like(sound))
        return {"step": "train", "epoch": epoch}

    monkeypatch.setattr(descent, "run_epoch", run)
    task = make_task(scene(48, 1), scene(12, 2), batch_size=24)
    outcome = make_comparison(task, model, PatchComparisonConfig(kind="full_both", impair_epochs=1, repair_epochs=2, auc_tolerance=1.0))
    assert torch.equal(outcome.after["network.norm.weight"], 2 * sound)
