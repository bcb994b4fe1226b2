"""Fine-tuning with a mask: what it names is trained, at its own learning rate, and the result is a plain network."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from timm import create_model

from evenhand.config.methods import FinetuneConfig
from evenhand.config.schema import TrainerConfig
from evenhand.errors import ConfigError, InputError, MethodError
from evenhand.methods.baselines.erm import Finetune
from evenhand.models.backbones import ImageClassifier
from evenhand.models.masks import Mask, make_mask, write_mask
from evenhand.models.parts import make_parts

TRAINER = TrainerConfig(max_epochs=2, progress=False, accelerator="cpu")
SPACE = "norms|attention|mlp"


def build(n_outputs, *, from_scratch=False, name="vit_tiny_patch16_224", seed=0):
    options = {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2} if name.startswith("vit") else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99 if from_scratch else seed)
        network = create_model(name, num_classes=n_outputs, in_chans=1, **options)
    return ImageClassifier(network, mean=(0.5,), std=(0.5,), input_size=(32, 32), name=name)


@pytest.fixture
def task(make_task):
    return make_task(n=64, build_model=build, trainer=TRAINER, batch_size=32)


def saved(tmp_path, bits=(0, 1, 0, 0, 0, 1), lr=3e-3, **options):
    model = build(1)
    mask = make_mask(model, SPACE, make_parts(model, SPACE), bits, lr=lr, **options)
    write_mask(tmp_path / "mask.json", mask)
    return str(tmp_path / "mask.json"), mask


def changed(result, before):
    after = result.predictor.model.state_dict()
    assert list(after) == list(before)
    return {name.removeprefix("network.") for name in before if not torch.equal(before[name], after[name])}


def test_a_mask_file_trains_its_parts_and_leaves_the_rest_bit_identical(task, tmp_path):
    path, mask = saved(tmp_path)
    before = {name: value.clone() for name, value in build(1).state_dict().items()}
    result = Finetune(FinetuneConfig(mask=path)).fit(task)
    assert changed(result, before) == mask.trained(build(1))
    assert Mask.from_json(result.artifacts["mask.json"].decode()) == mask
    assert any("2 of 6 parts of 'norms|attention|mlp'" in note and "0.003" in note for note in result.notes)


@pytest.mark.parametrize(("given", "mask_lr", "used"), [(None, None, 3e-3), (3e-3, None, 3e-3), (None, 1e-4, 1e-4), (0.1, 1e-4, 1e-4)])
def test_the_masks_learning_rate_is_used_not_the_trainers_default(task, tmp_path, given, mask_lr, used):
    path, _ = saved(tmp_path, lr=3e-3)
    constant = replace(task, trainer=replace(TRAINER, schedule="constant", lr=given))
    result = Finetune(FinetuneConfig(mask=path, mask_lr=mask_lr)).fit(constant)
    assert {record["lr"] for record in result.history} == {used}
    assert Mask.from_json(result.artifacts["mask.json"].decode()).lr == used


def test_two_learning_rates_are_refused(task, tmp_path):
    path, _ = saved(tmp_path, lr=3e-3)
    both = replace(task, trainer=replace(TRAINER, lr=0.1))
    with pytest.raises(ConfigError, match=r"rate is 0\.003 and trainer\.lr is 0\.1; leave trainer\.lr out.*method\.mask_lr=0\.1"):
        Finetune(FinetuneConfig(mask=path)).fit(both)


def test_a_mask_file_without_a_learning_rate_is_refused(task, tmp_path):
    path, mask = saved(tmp_path)
    record = json.loads(mask.to_json()) | {"lr": None}
    (tmp_path / "mask.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="no learning rate, and none is assumed"):
        Finetune(FinetuneConfig(mask=path)).fit(replace(task, trainer=replace(TRAINER, lr=0.1)))


def test_a_published_vector_is_the_same_as_its_mask_file(task, tmp_path):
    bits = (0, 1, 0, 0, 0, 1)
    np.save(tmp_path / "mask.npy", np.array(bits, dtype=np.int8))
    path, _ = saved(tmp_path, bits)
    vector = Finetune(FinetuneConfig(mask=str(tmp_path / "mask.npy"), mask_lr=3e-3)).fit(task).predict(task.val.x)[0]
    for given in (path, str(tmp_path)):
        fresh = replace(task, store=type(task.store)())
        np.testing.assert_array_equal(Finetune(FinetuneConfig(mask=given)).fit(fresh).predict(task.val.x)[0], vector)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_all_ones_and_the_stem_are_full_fine_tuning(make_task, kind):
    task = make_task(kind, n=48, build_model=build, trainer=TRAINER)
    fresh = make_task(kind, n=48, build_model=build, trainer=TRAINER)
    masked = Finetune(FinetuneConfig(mask="full")).fit(task).predict(task.val.x)[0]
    np.testing.assert_array_equal(masked, Finetune(FinetuneConfig()).fit(fresh).predict(task.val.x)[0])


def test_the_head_alone_is_the_frozen_backbone(make_task):
    task, fresh = (make_task(n=48, build_model=build, trainer=TRAINER) for _ in range(2))
    masked = Finetune(FinetuneConfig(mask="head")).fit(task).predict(task.val.x)[0]
    np.testing.assert_array_equal(masked, Finetune(FinetuneConfig(freeze="backbone")).fit(fresh).predict(task.val.x)[0])


@pytest.mark.parametrize("name", ["attention", "norms", "bitfit", "random"])
def test_fixed_masks_train_at_the_trainers_rate(task, name):
    before = {key: value.clone() for key, value in build(1).state_dict().items()}
    result = Finetune(FinetuneConfig(mask=name)).fit(task)
    mask = Mask.from_json(result.artifacts["mask.json"].decode())
    assert changed(result, before) == mask.trained(build(1))
    assert mask.lr == pytest.approx(TRAINER.base_lr * 32 / 256)


@pytest.mark.parametrize("mask", [None, "head"])
def test_a_warm_head_starts_where_the_probe_ends(make_task, mask):
    """With no epoch at all the network scores as a linear probe on its own embeddings."""
    from sklearn.linear_model import LogisticRegression

    def embed(images):
        with torch.no_grad():
            return build(1).eval().embed(images.batch(slice(None))).numpy()

    task = make_task(n=200, build_model=build, trainer=replace(TRAINER, max_epochs=0), embed=embed)
    result = Finetune(FinetuneConfig(mask=mask, warm_head=True)).fit(task)
    x, y = embed(task.train.x), task.train.y[:, 0]
    mean, std = x[y >= 0].mean(0), x[y >= 0].std(0)
    probe = LogisticRegression(C=1 / (1e-3 * (y >= 0).sum()), tol=1e-8, max_iter=10000).fit(((x - mean) / std)[y >= 0], y[y >= 0])
    expected = probe.predict_proba((embed(task.val.x) - mean) / std)[:, 1]
    np.testing.assert_allclose(result.predict(task.val.x)[0][:, 0], expected, atol=2e-3)


def test_low_rank_training_leaves_a_plain_network(task):
    before = {key: value.clone() for key, value in build(1).state_dict().items()}
    result = Finetune(FinetuneConfig(mask="lora", mask_n=2, mask_lr=1e-2)).fit(task)
    names = {f"blocks.{k}.attn.{layer}.weight" for k in range(2) for layer in ("qkv", "proj")} | {"head.weight", "head.bias"}
    assert changed(result, before) == names
    meta, tensors = result.predictor.state()
    assert meta["type"] == "model"
    assert set(tensors) == set(before)


def test_a_run_that_was_killed_goes_on_with_the_same_mask(task):
    """The checkpoint of one mask is not another's: other bits, and other scales, are another run."""
    config = FinetuneConfig(mask="random", mask_seed=1)
    whole = Finetune(config).fit(task).predict(task.val.x)[0]
    np.testing.assert_array_equal(Finetune(config).fit(task).predict(task.val.x)[0], whole)
    with pytest.raises(InputError, match="other data, options"):
        Finetune(FinetuneConfig(mask="attention")).fit(task)


def test_scales_make_another_run(task, tmp_path):
    path, _ = saved(tmp_path)
    Finetune(FinetuneConfig(mask=path)).fit(task)
    path, _ = saved(tmp_path, lr_scales=[1, 0.1, 1, 1, 1, 1])
    with pytest.raises(InputError, match="other data, options"):
        Finetune(FinetuneConfig(mask=path)).fit(task)


def test_random_masks_follow_the_runs_seed_unless_given_one(make_task):
    def bits(seed, **options):
        task = make_task(n=32, seed=seed, build_model=build, trainer=replace(TRAINER, max_epochs=0))
        method = Finetune(FinetuneConfig(mask="random", mask_space="attention_tensors", **options))
        return method.mask_for(task, build(1)).bits

    assert len({bits(seed) for seed in range(5)}) > 1
    assert len({bits(seed, mask_seed=3) for seed in range(5)}) == 1
    assert sum(bits(0, mask_n=3)) == 3


def test_a_random_mask_like_a_file(task, tmp_path):
    path, mask = saved(tmp_path)
    drawn = Finetune(FinetuneConfig(mask="random", mask_like=path, mask_seed=4)).mask_for(task, build(1))
    assert drawn.share(build(1)) == mask.share(build(1))
    assert drawn.lr == pytest.approx(TRAINER.base_lr * 32 / 256)


def test_a_mask_of_another_network_or_other_weights_is_refused(make_task, tmp_path):
    path, _ = saved(tmp_path)
    task = make_task(n=32, trainer=TRAINER, build_model=lambda n, **_: build(n, name="resnet10t"))
    with pytest.raises(MethodError, match="lacks"):
        Finetune(FinetuneConfig(mask=path)).fit(task)
    task = make_task(n=32, trainer=TRAINER, build_model=build)
    with pytest.raises(MethodError, match="other weights"):
        Finetune(FinetuneConfig(mask=path, from_scratch=True)).fit(task)
    Finetune(FinetuneConfig(mask=path, from_scratch=True, mask_other_weights=True)).fit(task)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mask_lr": 1e-3}, "method.mask_lr is given without a mask"),
        ({"mask_n": 2}, "method.mask_n is given without a mask"),
        ({"mask": "full", "freeze": "norms"}, "both say what is trained"),
        ({"warm_head": True, "from_scratch": True}, "choose one"),
        ({"mask": "atention"}, r"no file and no fixed mask; did you mean 'attention'\?"),
        ({"mask": "runs/none/mask.json"}, "no file and no fixed mask; give a mask.json, a published .npy, or one of full, head"),
    ],
)
def test_options_that_contradict_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        Finetune(FinetuneConfig(**options))


def test_options_of_fixed_masks_beside_a_file_are_refused(task, tmp_path):
    path, _ = saved(tmp_path)
    with pytest.raises(ConfigError, match="are of fixed masks"):
        Finetune(FinetuneConfig(mask=path, mask_n=2)).fit(task)
