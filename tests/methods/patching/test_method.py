"""Both steps together: bits outside mask and head, a kill in the middle, heads against another library, and bad external sets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from evenhand.config.patch_methods import BMFTConfig, PatchMethodConfig, SWiFTConfig
from evenhand.errors import InputError, MethodError
from evenhand.methods.patching import descent, method
from evenhand.methods.patching.heads import Body, HeadFit, head_names, reinitialise
from evenhand.methods.patching.masking import least_alike
from evenhand.methods.patching.method import make_patched
from evenhand.methods.patching.rows import PatchRows
from evenhand.methods.patching.setting import Setting

from .scenes import FAMILIES, LEAST_SIZE, MemoryStore, make_task, scene, tiny

torch.set_num_threads(1)
QUICK = {"impair_epochs": 2, "repair_epochs": 2, "impair_lr": 0.05}


def small(**fields):
    return make_task(scene(48, 1), scene(48, 2), batch_size=24, **fields)


def moved(outcome):
    """Key -> which entries have other bits than before."""
    out = {}
    for key, value in outcome.before.items():
        view = value.view(torch.int32) if value.dtype == torch.float32 else value
        other = outcome.after[key]
        out[key] = view != (other.view(torch.int32) if value.dtype == torch.float32 else other)
    return out


@pytest.mark.parametrize("family", [pytest.param(name, marks=pytest.mark.slow) if name in LEAST_SIZE else name for name in FAMILIES])
def test_outside_mask_and_head_every_bit_is_kept(family):
    """With momentum, decay and batch norms, on every family that is supported."""
    config = BMFTConfig(mask_type="random", rate=0.3, stop="last", impair_epochs=2, impair_lr=0.05, weight_decay=0.05, impair_beta=0.5)
    model = tiny(family)
    size = model.input_size[0]
    outcome = make_patched(make_task(scene(24, 1, size=size), scene(24, 2, size=size), batch_size=12), model, config)
    heads = {f"network.{name}" for name in head_names(model)}
    changed = moved(outcome)
    assert set(changed) == set(model.state_dict())
    assert outcome.mask["share"] == pytest.approx(0.3, abs=0.02)
    from evenhand.methods.patching.selection import make_mask

    mask = make_mask(model, mask_type="random", rate=0.3, seed=0).values
    for key, different in changed.items():
        if key in heads:
            continue
        own = mask.get(key.removeprefix("network."))
        assert own is not None or not different.any(), key  # buffers: statistics, normalisation
        assert own is None or not (different & ~own).any(), key
    assert any(different.any() for key, different in changed.items() if key not in heads)


@pytest.mark.parametrize(
    ("config", "writes"),
    [
        (BMFTConfig(**QUICK), 2),
        (SWiFTConfig(**QUICK, repair_fit="sgd", optimizer="adam"), 1),
        (BMFTConfig(**QUICK, mask_type="all", repair_fit="sgd", stop="last", bias_over="batch", hold_norms=False), 4),
        (BMFTConfig(**QUICK, mask_type="all", stop="last", subset_ratio=0.5), 2),
    ],
    ids=["bmft after pass one", "swift after the mask", "bmft in step two", "a subset after pass one"],
)
def test_a_kill_changes_nothing(config, writes):
    through = make_patched(small(), tiny(), config)
    store = MemoryStore(fail_after=writes)
    with pytest.raises(KeyboardInterrupt):
        make_patched(small(store=store), tiny(), config)
    store.left = 10**9
    resumed = make_patched(small(store=store), tiny(), config)
    assert all(torch.equal(value, resumed.after[key]) for key, value in through.after.items())
    assert resumed.history == through.history
    assert resumed.notes == through.notes
    assert (resumed.cost.forward, resumed.cost.backward) == (through.cost.forward, through.cost.backward)


def test_another_patchs_state_is_refused():
    store = MemoryStore()
    make_patched(small(store=store), tiny(), BMFTConfig(**QUICK))
    with pytest.raises(InputError, match="another classifier, external set or other options"):
        make_patched(small(store=store), tiny(), BMFTConfig(**QUICK, beta=0.2))
    with pytest.raises(InputError, match="another classifier"):
        make_patched(small(store=store), tiny(seed=1), BMFTConfig(**QUICK))


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_steps_on_features_are_steps_on_images(family, monkeypatch):
    """Bit for bit: the body in evaluation mode gives a row the same features in every batch of the same size."""
    config = BMFTConfig(impair_epochs=0, repair_fit="sgd", repair_epochs=3, mask_type="all", repair_lr=0.1)
    quick = make_patched(small(), tiny(family), config)
    monkeypatch.setattr(descent, "run_epoch", lambda *args, inputs=None, **rest: whole(*args, **rest))
    from evenhand.methods.patching.steps import run_epoch

    def whole(epoch, network, module, *args, **rest):
        return run_epoch(epoch, module, module, *args, **rest)

    slow = make_patched(small(), tiny(family), config)
    for key, value in quick.after.items():
        torch.testing.assert_close(value, slow.after[key], rtol=1e-6, atol=1e-7)
    assert quick.cost.passes < slow.cost.passes


def test_the_converged_head_is_a_weighted_logistic_regression():
    task = make_task(scene(160, 1, 0.9), scene(80, 2))
    rows = PatchRows.of(task.train, task, ("sex",))
    features = np.random.default_rng(0).standard_normal((160, 4)).astype(np.float32)
    features[:, 0] += task.train.y[:, 0]
    head = HeadFit(task, rows, balanced=True, term=None).fit(features, 0.1, 0.0)
    weight = HeadFit(task, rows, balanced=True, term=None).weights()[0]
    assert {round(float(weight[rows.cells.codes == cell].sum()), 6) for cell in range(4)} == {40.0}
    mean, scale = features.mean(axis=0), features.std(axis=0)
    other = LogisticRegression(C=1 / (0.1 * weight.sum()), tol=1e-8, max_iter=1000)
    other.fit((features - mean) / scale, task.train.y[:, 0], sample_weight=weight)
    np.testing.assert_allclose(head.weight[0] * scale, other.coef_[0], rtol=1e-3, atol=1e-4)


def test_the_bias_term_narrows_the_gap_of_the_head():
    task = make_task(scene(200, 1, 0.95), scene(80, 2))
    setting = Setting.of(task, tiny(), BMFTConfig())
    fit = HeadFit(task, setting.rows, balanced=True, term=setting.term)
    rng = np.random.default_rng(0)
    y, codes = task.train.y[:, 0], task.train.groups["sex"].codes
    features = np.stack([y + rng.normal(0, 1, 200), y * codes + rng.normal(0, 0.5, 200)], axis=1).astype(np.float32)

    def gap(beta):
        head = fit.fit(features, 0.01, beta)
        return float(setting.term(torch.from_numpy(features @ head.weight.T + head.bias), setting.rows.y, setting.rows.groups))

    assert gap(2.0) < 0.5 * gap(0.0)


def test_a_step_that_destroys_the_classifier_is_not_kept(monkeypatch):
    """Validation rows keep the body as delivered, and the patch is a head alone, though the destroyed one has no gap at all."""

    def destroy(epoch, network, module, *args, **options):
        with torch.no_grad():
            module.network.norm.weight.zero_()
        return {"step": "impair", "epoch": epoch}

    monkeypatch.setattr(method, "run_epoch", destroy)
    model = tiny("vit")
    outcome = make_patched(small(), model, BMFTConfig(**QUICK, mask_type="all"))
    assert any("a new head alone" in note for note in outcome.notes)
    assert outcome.history[2]["val_auc"] == 0.5
    assert outcome.history[2]["val_bias"] == 0.0
    heads = {f"network.{name}" for name in head_names(model)}
    assert {key for key, different in moved(outcome).items() if different.any()} <= heads


@pytest.mark.parametrize(("kind", "outputs"), [("multilabel", 2), ("multiclass", 3)])
def test_several_labels_classes_attributes_and_missing_groups(kind, outputs):
    task = make_task(scene(64, 1, kind=kind, missing=0.2), scene(64, 2, kind=kind), kind=kind, batch_size=32)
    config = BMFTConfig(attributes=["sex", "site"], over_attributes="max", impair_epochs=1, impair_lr=0.01)
    outcome = make_patched(task, tiny(n_outputs=outputs), config)
    assert any("lack an attribute" in note for note in outcome.notes)
    assert [record["step"] for record in outcome.history] == ["delivered", "impair", "impair", "repair"]
    assert outcome.cost.passes > 3


def test_the_cost_of_the_published_steps():
    """Importances: one forward, two backward; two passes of step one; features once; delivered and features of step two judged: none."""
    task = replace(small(), val=replace(scene(1, 2), index=np.arange(0)))
    task = replace(task, val=_no_rows())
    config = BMFTConfig(impair_epochs=2, repair_epochs=5, repair_fit="sgd", stop="last", bias_over="batch", importance="batch")
    cost = make_patched(task, tiny(), config).cost
    assert (cost.forward, cost.backward) == (48 * (1 + 2 + 1), 48 * (2 + 2))
    assert cost.passes == pytest.approx(12.0)


def _no_rows():
    from evenhand.methods.baselines.erm import take_rows

    return take_rows(scene(4, 2), np.arange(0))


def test_without_validation_rows_the_last_state_is_kept_and_said():
    outcome = make_patched(replace(small(), val=_no_rows()), tiny(), BMFTConfig(**QUICK))
    assert any("there are no validation rows" in note for note in outcome.notes)


def test_what_is_set_to_zero_before_step_two():
    model = tiny()
    mask = {"fc.weight": torch.tensor([[0.0] * 8 + [1.0] * 8]), "fc.bias": torch.tensor([0.5])}
    with torch.no_grad():
        model.network.fc.bias.fill_(2.0)
    weight = model.network.fc.weight.detach().clone()
    assert reinitialise(model, "none", mask) == 0
    assert reinitialise(model, "masked", mask) == 8
    assert torch.equal(model.network.fc.weight[:, :8], weight[:, :8])
    assert not model.network.fc.weight[:, 8:].any()
    assert model.network.fc.bias.tolist() == [2.0]
    assert reinitialise(model, "all", {}) == 17
    assert not model.network.fc.weight.any()


def test_the_subset_leaves_out_the_rows_most_alike_the_groups_difference():
    task = small()
    setting = Setting.of(task, tiny(), BMFTConfig(subset_ratio=0.25))
    kept = least_alike(setting, Body.of(setting.model))
    assert len(kept) == 36
    assert len(setting.rows.only(kept).order(0, 1, False)) == 36


def _with(split, y=None, codes=None):
    groups = dict(split.groups)
    if codes is not None:
        groups["sex"] = replace(groups["sex"], codes=codes)
    return replace(split, y=split.y if y is None else y.astype(np.float32), groups=groups)


def test_external_sets_that_cannot_be_learnt_from_are_refused_before_any_work():
    split = scene(48, 1)
    sex = split.groups["sex"].codes
    cases = {
        "has 1 group": _with(split, codes=np.zeros(48, np.int64)),
        "TPR of 'sex' cannot be compared: two groups need 2 rows with label 1": _with(split, y=split.y * (sex == 0)[:, None]),
        "one class in the external set": _with(split, y=np.ones((48, 1))),
        "none of the 48 rows": _with(split, y=np.full((48, 1), np.nan)),
    }
    for text, bad in cases.items():
        with pytest.raises(MethodError, match=text):
            make_patched(make_task(bad), tiny(), BMFTConfig())
    with pytest.raises(MethodError, match="gives 2 logits"):
        make_patched(small(), tiny(n_outputs=2), BMFTConfig())
    broken = tiny()
    with torch.no_grad():
        broken.network.layer1[0].conv1.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match=r"layer1.0.conv1.weight.*1 of \d+ entries"):
        make_patched(small(), broken, BMFTConfig())


def test_the_released_way_moves_what_it_masks():
    config = BMFTConfig(
        **QUICK, bias_mode="released", bias_scores="logit", exact=False, hold_norms=False, stop="last", repair_fit="sgd", weight_decay=0.05,
        mask_type="random", rate=0.3,
    )
    outcome = make_patched(small(), tiny(), config)
    weights = {key: different for key, different in moved(outcome).items() if key.endswith("conv1.weight")}
    assert all(different.float().mean() > 0.9 for different in weights.values())
    assert any(different.any() for key, different in moved(outcome).items() if key.endswith("running_mean"))
    # which no patch holds: taking it off gives the delivered file only if they stay
    assert not any(different.any() for key, different in moved(outcome).items() if key.endswith("num_batches_tracked"))


def test_a_constant_tensor_stops_the_released_ratio_unless_all_is_as_released():
    """A tensor that the logits do not depend on has importance 0 throughout, so that the released scaling divides by 0."""

    def unused():
        model = tiny()
        model.network.register_parameter("spare", torch.nn.Parameter(torch.ones(5)))
        return model

    with pytest.raises(MethodError, match=r"ratio=released is NaN .*; use ratio=safe"):
        make_patched(small(), unused(), BMFTConfig(**QUICK, ratio="released"))
    config = BMFTConfig(**QUICK, ratio="released", exact=False, stop="last", repair_fit="sgd", weight_decay=0.05)
    outcome = make_patched(small(), unused(), config)
    assert outcome.mask["selected"] == 0
    assert method.EMPTY in outcome.notes
    assert outcome.mask["threshold"] is None  # a NaN would fit no JSON, once all is done
    assert moved(outcome)["network.layer1.0.conv1.weight"].float().mean() > 0.9


def test_every_option_of_the_configuration_is_read():
    """An option that nothing reads would be a promise: each name occurs in the sources of this folder."""
    from dataclasses import fields
    from pathlib import Path

    folder = Path(descent.__file__).parent
    text = "".join(path.read_text() for path in folder.glob("*.py"))
    unread = [field.name for field in fields(PatchMethodConfig) if f"config.{field.name}" not in text]
    assert [name for name in unread if name != "name"] == []
