"""Trials with real networks: what is judged is what is trained, and the savings change nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from evenhand.config.schema import ModelConfig, TrainerConfig
from evenhand.config.search import SearchConfig
from evenhand.data.groups import Groups
from evenhand.methods.base import Split, Task
from evenhand.models import build_classifier
from evenhand.search import run_search
from evenhand.search.trial import Scratch, Workbench, is_out_of_memory, run_trial
from evenhand.training.predicting import probabilities
from evenhand.training.prefixed import train_masked


class Squares:
    """Noise with a brighter square where the label is 1; fainter in the second group."""

    shape = (3, 32, 32)

    def __init__(self, n, seed):
        rng = np.random.default_rng(seed)
        self.y, self.codes = rng.integers(0, 2, n), rng.integers(0, 2, n)
        pixels = rng.random((n, 3, 32, 32)).astype(np.float32) * 0.5
        pixels[:, :, 8:20, 8:20] += (0.3 * self.y * (1 - 0.5 * self.codes))[:, None, None, None].astype(np.float32)
        self.pixels, self.fingerprint = torch.from_numpy(pixels), f"squares {n} {seed}"

    def __len__(self):
        return len(self.pixels)

    def batch(self, positions):
        return self.pixels[positions]


def split(n, seed):
    images = Squares(n, seed)
    groups = {"sex": Groups("sex", ("f", "m"), images.codes.astype(np.int64))}
    return Split(images, images.y[:, None].astype(np.float32), groups, np.arange(n), np.arange(n) + 1000 * seed)


MODEL = ModelConfig(name="vit_tiny_patch16_224", input_size=[32, 32])


def make_task(k=0):
    import timm

    def build(n_outputs, **options):
        model = build_classifier(MODEL, n_outputs, 0)
        # two of twelve blocks are enough
        model.network.blocks = model.network.blocks[:2]
        return model

    assert timm.__version__
    trainer = TrainerConfig(max_epochs=3, progress=False, accelerator="cpu", monitor="val_loss")
    return Task(split(96, 1), split(160, 2), "binary", ("ill",), (), ("sex",), 0, torch.device("cpu"), Scratch(), None, build, trainer, 32)


def make_config(tmp_path, **options):
    config = SearchConfig(out=str(tmp_path / "out"), n_trials=3, startup_trials=2, space="blocks", lr_high=3e-3, lr_low=3e-4, **options)
    config.data.path, config.trainer = "nowhere", make_task().trainer
    return config


def test_a_search_trains_real_networks_and_prefix_changes_nothing(tmp_path):
    found = {}
    for prefix in (True, False):
        result = run_search(make_task, make_config(tmp_path / str(prefix), prefix=prefix, min_patients=5))
        found[prefix] = [(trial.params, trial.values, trial.best_epochs) for trial in result.trials]
        assert [trial.state for trial in result.trials] == ["complete"] * 3
        assert all(0 < trial.share < 1 for trial in result.trials if not all(v == 1 for n, v in trial.params.items() if n != "lr"))
    for with_prefix, without in zip(found[True], found[False], strict=True):
        assert with_prefix[0] == without[0]
        assert with_prefix[1] == pytest.approx(without[1], abs=1e-4)
        assert with_prefix[2] == without[2]


def test_the_value_is_that_of_the_model_that_the_mask_gives_later(tmp_path):
    config = make_config(tmp_path, min_patients=5)
    result = run_search(make_task, config)
    task = make_task()
    model = task.build_model(1)
    outcome = train_masked(model, result.mask, task.train, task.val, task)
    from evenhand.training.predicting import predict_logits

    bench = Workbench(make_task, config)
    scores = probabilities(predict_logits(outcome.model, task.val.x, 32, task.device), "binary")
    assert bench.scorer(0)(scores).values["worst_auc"] == pytest.approx(result.best.values[0], abs=1e-4)
    assert result.best.best_epochs == (outcome.best_epoch,)


def test_warm_heads_are_fitted_once_and_begin_every_trial(tmp_path):
    calls = []
    base = make_task()

    def embed(images):
        calls.append(len(images))
        model = base.build_model(1).eval()
        with torch.no_grad():
            return model.network.forward_head(model.network.forward_features(images.batch(slice(None))), pre_logits=True).numpy()

    bench = Workbench(lambda k: replace(base, embed=embed), make_config(tmp_path, warm_head=True))
    first, second, cold = bench.model(0), bench.model(0), base.build_model(1)
    assert calls == [96]
    assert torch.equal(first.network.head.weight, second.network.head.weight)
    assert not torch.equal(first.network.head.weight, cold.network.head.weight)
    body = [name for name in cold.network.state_dict() if not name.startswith("head")]
    assert all(torch.equal(first.network.state_dict()[name], cold.network.state_dict()[name]) for name in body)


def test_what_running_out_of_memory_looks_like():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_an_error_that_is_no_lack_of_memory_is_passed_on(tmp_path, lab):
    calls = []

    def broken(*arguments, **options):
        calls.append(1)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    bench = Workbench(lab.make_task, lab.make_config(tmp_path, space="blocks"), broken)
    from evenhand.models.parts import make_parts
    from evenhand.search.space import SearchSpace

    task = lab.make_task()
    space = SearchSpace.of(bench.config, make_parts(task.build_model(1), "blocks"))
    mask = space.mask({"block0": 1, "block1": 0, "lr": 1e-4}, {"seed": 0, "model_hash": "", "data_hash": ""})
    with pytest.raises(RuntimeError, match="shapes"):
        run_trial(bench, mask, lambda step, value: False)
    assert len(calls) == 1
