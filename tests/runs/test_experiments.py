"""Each published starting network goes through its experiment: one step from scratch, on small images."""

import pytest

from evenhand.config import compose
from evenhand.runs.results import load_predictor
from evenhand.runs.train import train

SIZES = {
    "isic_resnet18": 32, "isic_efficientnet_b3": 32, "isic_resnet34": 32, "isic_resnet50": 32, "isic_resnet101": 32,
    "isic_resnext101": 32, "isic_densenet161": 32, "isic_inception_v3": 96, "isic_swin_v2_s": 64, "isic_maxvit": 64, "isic_vit": 32,
}
"""Experiment -> height and width; Inception-v3 needs 75 pixels."""
SAMPLE = "isic_resnet18"


def _case(name):
    return pytest.param(name, marks=[pytest.mark.slow, *([pytest.mark.slow_sample] if name == SAMPLE else [])])


@pytest.mark.parametrize("name", [_case(name) for name in SIZES])
def test_a_published_experiment_trains_and_is_audited(name, prepared, tmp_path):
    size = SIZES[name]
    words = [
        f"experiment={name}", f"data={prepared}", "trainer=debug_limit", "model.pretrained=false", f"model.input_size=[{size},{size}]",
        "data.batch_size=8", "trainer.max_epochs=1", "trainer.limit_batches=1", "audit.bootstrap=0", "audit.permutations=0",
        "audit.details=false", f"out={tmp_path / 'run'}",
    ]
    run = train(compose("train", words))
    assert run.done
    assert any("at most 1 batches" in note for note in run.info["notes"])
    network = load_predictor(run).predictor.model.network
    assert network.num_classes == 1
    assert not [key for key, _ in network.named_parameters() if "aux" in key.lower()]
