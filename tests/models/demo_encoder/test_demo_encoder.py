"""The bundled encoder: what lies in the package, that timm and our loader agree on it, the recipe, and what a probe finds on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from evenhand.config.schema import ModelConfig
from evenhand.data.synthetic import SyntheticConfig, make_cohort
from evenhand.models.backbones import build_classifier
from evenhand.models.demo_encoder import pretrain
from evenhand.models.demo_encoder.architecture import MEAN, NAME, STD, weights_path
from evenhand.models.demo_encoder.pretext import N_TARGETS, corrupt

TINY = pretrain.PretrainConfig(images_per_kind=8, steps=3, batch_size=4)


def test_the_weights_are_small_and_carry_their_normalisation() -> None:
    path = weights_path()
    assert path.stat().st_size < 8_000_000
    stored = json.loads((path.parent / "config.json").read_text())
    assert stored == json.loads(json.dumps(pretrain.describe()))
    assert stored["architecture"] == NAME


def test_timm_and_our_loader_give_the_same_network() -> None:
    theirs = timm.create_model(NAME, pretrained=True, num_classes=0)
    ours = build_classifier(ModelConfig(), n_outputs=1, seed=0)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.network.state_dict()[key], value, rtol=0, atol=0)
    assert tuple(ours.mean.flatten().tolist()) == MEAN
    assert tuple(ours.std.flatten().tolist()) == STD
    images = torch.rand(2, 1, 64, 64)
    expected = theirs.eval()((images.expand(-1, 3, -1, -1) - 0.5) / 0.25)
    torch.testing.assert_close(ours.embed(images), expected)


def test_the_recipe_repeats_itself_and_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    state = torch.random.get_rng_state()
    one, two = pretrain.pretrain(TINY), pretrain.pretrain(TINY)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.set_num_threads(threads)
    pretrain.save(one, tmp_path / "w.safetensors")
    stored, bundled = load_file(tmp_path / "w.safetensors"), load_file(weights_path())
    assert {k: v.shape for k, v in stored.items()} == {k: v.shape for k, v in bundled.items()}
    assert all(torch.equal(two[key], value) for key, value in stored.items())
    assert not any(key.startswith("head") for key in stored)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "w.safetensors"]


def test_pretraining_images_are_not_the_cohort_and_hold_no_label() -> None:
    images = pretrain.pretraining_images("chest", 8, seed=0)
    assert images.shape == (8, 3, 64, 64)
    assert images.dtype == torch.uint8
    cohort = make_cohort(SyntheticConfig(n_patients=8)).images
    assert not any((image[:1].numpy() == other).all() for image in images for other in cohort)


def test_targets_of_the_pretext_by_hand() -> None:
    clean = torch.full((2, 3, 16, 16), 0.5)
    clean[1] = 0.25
    batch = corrupt(clean, torch.Generator().manual_seed(0))
    assert batch.targets.shape == (2, 4, N_TARGETS)
    change = (batch.images - clean).mean(1)[:, :8, :8].mean((1, 2)) * 12
    torch.testing.assert_close(batch.targets[:, 0, 0], change)
    torch.testing.assert_close(batch.targets[0, :, 2:18], torch.zeros(4, 16))  # grey 0.5 -> 4 * 0.5 - 2
    torch.testing.assert_close(batch.targets[1, :, 2:18], torch.full((4, 16), -1.0))


def _probe(config: SyntheticConfig) -> tuple[float, float]:
    """Test AUC of scikit-learn's logistic regression, and the equalized-odds difference at 0.5's share on validation rows."""
    cohort = make_cohort(config, twins=False)
    model = build_classifier(ModelConfig(), n_outputs=1, seed=0)
    with torch.inference_mode():
        parts = [model.embed(torch.from_numpy(part).float() / 255).numpy() for part in np.array_split(cohort.images, 8)]
    z, table = np.concatenate(parts), cohort.table
    y, group = table["label"].to_numpy(), table["group"].to_numpy()
    train, test = ((table["split"] == name).to_numpy() for name in ("train", "test"))
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2000)).fit(z[train], y[train])
    score = probe.predict_proba(z)[:, 1]
    positive = score >= y[train].mean()
    rates = np.array([[positive[test & (group == g) & (y == v)].mean() for v in (0, 1)] for g in ("A", "B")])
    return float(roc_auc_score(y[test], score[test])), float(np.abs(rates[0] - rates[1]).max())


@pytest.mark.parametrize("kind", ["chest", pytest.param("skin", marks=pytest.mark.slow)])
def test_a_probe_on_the_default_cohort_is_honest_and_shows_the_planted_gap(kind: str) -> None:
    auc, gap = _probe(SyntheticConfig(kind=kind))
    assert 0.80 <= auc <= 0.95
    assert gap >= 0.15
