"""What a patch is compared with: which weights each may move, that passes are equal, and that the rest is the method's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evenhand.config.patch_methods import COMPARISONS, BMFTConfig, PatchComparisonConfig
from evenhand.errors import MethodError
from evenhand.methods.patching.adversarial import Critic
from evenhand.methods.patching.comparisons import make_comparison
from evenhand.methods.patching.heads import head_names
from evenhand.methods.patching.method import make_patched

from .scenes import MemoryStore, make_task, scene, tiny

torch.set_num_threads(1)
QUICK = {"impair_epochs": 1, "repair_epochs": 1, "impair_lr": 0.01, "repair_lr": 0.05, "stop": "last"}
HEADS = {"network.fc.weight", "network.fc.bias"}


def small(n=48, **fields):
    return make_task(scene(n, 1), scene(n, 2), batch_size=24, **fields)


def changed(outcome):
    return {key for key, value in outcome.before.items() if not torch.equal(value, outcome.after[key])}


def test_every_comparison_has_a_name_that_is_known():
    assert head_names(tiny()) == {"fc.weight", "fc.bias"}
    with pytest.raises(MethodError, match=r"'full_bth' is not known.*full_both"):
        make_comparison(small(), tiny(), PatchComparisonConfig(kind="full_bth"))


@pytest.mark.parametrize("kind", [kind for kind in COMPARISONS if kind != "fairprune"])
def test_each_moves_what_it_says(kind):
    model = tiny()
    buffers = {key for key in model.state_dict() if "running" in key or key in ("mean", "std")}
    outcome = make_comparison(small(), model, PatchComparisonConfig(kind=kind, **QUICK))
    moved = changed(outcome)
    assert not moved & buffers
    if kind == "none":
        assert not moved
    elif kind in ("last_layer", "dfr"):
        assert moved == HEADS
    else:
        assert moved - HEADS
    assert not outcome.model.training
    assert outcome.history[0]["step"] == "delivered"


@pytest.mark.parametrize("kind", ["last_layer", "full_reweighted", "full_regularised", "full_both", "adversarial"])
def test_those_of_one_step_have_the_passes_of_both(kind):
    config = PatchComparisonConfig(kind=kind, impair_epochs=1, repair_epochs=2, stop="last", repair_lr=1e-3)
    outcome = make_comparison(small(), tiny(), config)
    assert len(outcome.history) == 1 + 3
    trained = outcome.cost.backward / outcome.cost.rows
    assert trained == (0 if kind == "last_layer" else 3)


def test_masks_of_chance_and_of_all_are_the_method_with_another_mask():
    for kind, mask_type in (("random_mask", "random"), ("all_weights", "all")):
        ours = make_comparison(small(), tiny(), PatchComparisonConfig(kind=kind, **QUICK))
        same = make_patched(small(), tiny(), BMFTConfig(mask_type=mask_type, **QUICK))
        assert all(torch.equal(value, same.after[key]) for key, value in ours.after.items())


def test_full_fine_tuning_minimises_what_it_is_named_for():
    for kind, weights in (("full_reweighted", (1.0, 0.0)), ("full_regularised", (1.0, 0.5)), ("full_both", (1.0, 0.5))):
        history = make_comparison(small(), tiny(), PatchComparisonConfig(kind=kind, beta=0.5, **QUICK)).history
        record = history[-1]
        assert record["objective"] == pytest.approx(weights[0] * record["loss"] + weights[1] * record["bias"])
        assert (record["bias"] == 0.0) == (weights[1] == 0.0)
        assert kind != "full_reweighted" or history[-1]["loss"] < history[1]["loss"]


@pytest.mark.slow
def test_pruning_sets_weights_to_zero_and_trains_nothing():
    task = make_task(scene(96, 1), scene(96, 2), batch_size=48)
    outcome = make_comparison(task, tiny(), PatchComparisonConfig(kind="fairprune", stop="last"))
    for key in changed(outcome):
        moved = outcome.before[key] != outcome.after[key]
        assert not outcome.after[key][moved].any()
    assert any("privileged" in note for note in outcome.notes)
    assert outcome.history[-1]["step"] == "fairprune"


def test_the_critic_takes_rows_in_any_order_and_number():
    torch.manual_seed(0)
    critic, rows = Critic(5), torch.randn(12, 5)
    torch.testing.assert_close(critic(rows), critic(rows[torch.randperm(12)]))
    assert critic(rows[:3]).shape == ()
    torch.testing.assert_close(critic(rows), critic(torch.cat([rows, rows])))


def test_adversarial_fine_tuning_goes_on_after_a_kill():
    config = PatchComparisonConfig(kind="adversarial", **QUICK)
    through = make_comparison(small(), tiny(), config)
    store = MemoryStore(fail_after=1)
    with pytest.raises(KeyboardInterrupt):
        make_comparison(small(store=store), tiny(), config)
    store.left = 10**9
    resumed = make_comparison(small(store=store), tiny(), config)
    assert all(torch.equal(value, resumed.after[key]) for key, value in through.after.items())
    assert resumed.history == through.history


def test_dfr_is_the_mean_of_heads_on_balanced_subsets():
    """A head on a subset does not see the rows that are not drawn: balanced subsets of equal cells are all rows."""
    split = scene(64, 1)
    groups = {**split.groups}
    order = np.arange(64)
    codes, y = (order // 2 % 2).astype(np.int64), (order % 2)[:, None].astype(np.float32)
    from dataclasses import replace

    groups["sex"] = replace(groups["sex"], codes=codes)
    task = make_task(replace(split, y=y, groups=groups), scene(48, 2), batch_size=32)
    dfr = make_comparison(task, tiny("vit"), PatchComparisonConfig(kind="dfr", **QUICK))
    converged = make_patched(task, tiny("vit"), BMFTConfig(impair_epochs=0, beta=0.0, mask_type="all", stop="last"))
    for key in ("network.head.weight", "network.head.bias"):
        torch.testing.assert_close(dfr.after[key], converged.after[key], rtol=1e-3, atol=1e-4)
