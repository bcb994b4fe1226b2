"""Predictors refuse what does not fit, with a sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evenhand.errors import CheckpointError, InputError
from evenhand.methods.predictors import HeadPredictor, ModelPredictor, predictor_from_state, probabilities


def restore(meta, tensors, task):
    return predictor_from_state(meta, tensors, embed=task.embed, build_model=task.build_model, device=task.device)


def test_probabilities_do_not_overflow():
    logits = np.array([[-1e4, 0.0, 1e4]])
    np.testing.assert_array_equal(probabilities(logits, "multilabel"), [[0, 0.5, 1]])
    np.testing.assert_array_equal(probabilities(logits, "multiclass"), [[0, 0, 1]])


def test_another_encoder_is_refused(make_task):
    task = make_task()
    head = HeadPredictor(np.zeros((1, 3)), np.zeros(1), "binary", task.embed)
    with pytest.raises(InputError, match="gives 8 numbers an image, but this head was fitted on 3"):
        head.predict(task.val.x)


def test_damaged_states_are_refused(make_task):
    task = make_task()
    with pytest.raises(CheckpointError, match="lacks bias"):
        restore({"type": "head", "kind": "binary"}, {"weight": torch.zeros(1, 8)}, task)
    with pytest.raises(CheckpointError, match="'pickle'"):
        restore({"type": "pickle"}, {}, task)


def test_a_network_of_another_architecture_is_refused(make_task):
    task = make_task()
    meta, tensors = ModelPredictor(task.build_model(2), "binary", 2, 8, task.device).state()
    with pytest.raises(CheckpointError, match="does not fit"):
        restore({**meta, "n_outputs": 1}, tensors, task)
