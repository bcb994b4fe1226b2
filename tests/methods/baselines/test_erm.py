"""Full fine-tuning: what stays frozen stays bit-identical, and from_scratch reaches the builder."""

from __future__ import annotations

import pytest
import torch

from evenhand.config.methods import FinetuneConfig
from evenhand.methods.baselines.erm import Finetune


@pytest.mark.parametrize(("freeze", "moves"), [("none", {"body", "norm", "head"}), ("backbone", {"head"}), ("norms", {"body", "head"})])
def test_frozen_parts_stay_bit_identical(make_task, freeze, moves):
    task = make_task(n=64)
    before = task.build_model(1).state_dict()
    after = Finetune(FinetuneConfig(freeze=freeze)).fit(task).predictor.model.state_dict()
    changed = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert changed == moves


def test_from_scratch_is_asked_of_the_builder(make_task):
    asked = []

    def build(n_outputs, **options):
        asked.append(options)
        return original.build_model(n_outputs)

    original = make_task(n=64)
    task = make_task(n=64, build_model=build)
    Finetune(FinetuneConfig(from_scratch=True)).fit(task)
    assert asked == [{"from_scratch": True}]
