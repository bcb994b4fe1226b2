"""Every registered method keeps the same promises, on a tiny task with a planted bias.

Third parties inherit `MethodConformance` for a method of their own.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from evenhand.config.methods import METHOD_CONFIGS
from evenhand.edits.artifact import FILE as EDIT_FILE
from evenhand.edits.artifact import load_edit
from evenhand.edits.images import EditedImages
from evenhand.errors import MethodError
from evenhand.methods.predictors import predictor_from_state
from evenhand.methods.registry import METHODS, get_method

CASES = [("binary", 2), ("binary", 3), ("multilabel", 2), ("multilabel", 3), ("multiclass", 3)]
EDIT = {"family": ["tone"], "controls": False, "reference_images": 64}
OPTIONS: dict[str, dict[str, object]] = {
    "dfr": {"n_models": 2},
    "least_encoding": {"components": [2, 4]},
    "fairprune": {"rounds": 2, "images": 40},
    "dne": {**EDIT, "epochs": 1, "batch_size": 80},
    "gezo": {**EDIT, "budget": 2000, "query_images": 40, "rounds": 3, "draws": 4, "surrogate_steps": 20, "edit_steps": 4},
}


class MethodConformance:
    """What `Method.fit` must give; subclasses say which configuration, and what the method refuses."""

    def config(self):
        raise NotImplementedError

    def refuses(self, kind: str) -> bool:
        return False

    @pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
    def fitted(self, request, make_task):
        kind, n_groups = request.param
        task = make_task(kind, n_groups, 160)
        if self.refuses(kind):
            with pytest.raises(MethodError, match=r";"):
                get_method(self.config()).fit(task)
            pytest.skip(f"refuses {kind}, with a sentence")
        return task, get_method(self.config()).fit(task)

    def test_keeps_its_promises(self, fitted, make_task, make_split, tmp_path):
        task, result = fitted
        test = make_split(task.kind, 4, 40, 77)
        scores, decisions = result.predict(test.x, test.groups)
        self.check_scores(task, scores, decisions)
        self.check_round_trip(task, result, test, scores, decisions, tmp_path)
        json.dumps([list(map(dict, result.history)), list(result.notes)], allow_nan=False)
        again = get_method(self.config()).fit(make_task(task.kind, len(task.train.groups["site"].keys), 160))
        np.testing.assert_array_equal(again.predict(test.x, test.groups)[0], scores)

    @staticmethod
    def check_scores(task, scores, decisions):
        assert scores.dtype == np.float64
        assert scores.shape == (40, task.n_outputs)
        assert np.isfinite(scores).all()
        assert ((scores >= 0) & (scores <= 1)).all()
        assert scores.std(axis=0).max() > 0
        if decisions is not None:
            assert decisions.dtype == np.int64
            assert set(np.unique(decisions)) <= {0, 1}

    @staticmethod
    def check_round_trip(task, result, test, scores, decisions, folder):
        meta, tensors = result.predictor.state()
        meta = json.loads(json.dumps(meta, allow_nan=False))
        assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
        embed = task.embed
        if EDIT_FILE in result.artifacts:
            (folder / EDIT_FILE).write_bytes(result.artifacts[EDIT_FILE])
            edit = load_edit(folder).edit
            embed = lambda images: task.embed(EditedImages(images, edit))  # noqa: E731
        restored = predictor_from_state(meta, tensors, embed=embed, build_model=task.build_model, device=task.device)
        assert restored.needs_groups == result.predictor.needs_groups
        same_scores, same_decisions = restored.predict(test.x, test.groups)
        np.testing.assert_array_equal(same_scores, scores)
        if decisions is not None:
            np.testing.assert_array_equal(same_decisions, decisions)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("finetune",)])
class TestRegisteredHeads(MethodConformance):
    @pytest.fixture(autouse=True)
    def _name(self, name):
        self.name = name

    def config(self):
        return METHOD_CONFIGS[self.name](**OPTIONS.get(self.name, {}))

    def refuses(self, kind):
        return self.name == "thresholds" and kind == "multiclass"


@pytest.mark.parametrize("name", ["finetune", "reweight", "resample", "group_dro", "dfr"])
class TestWholeNetworks(MethodConformance):
    @pytest.fixture(autouse=True)
    def _name(self, name):
        self.name = name

    def config(self):
        options = {} if self.name == "finetune" else {"scope": "full"}
        return METHOD_CONFIGS[self.name](**options, **OPTIONS.get(self.name, {}))

    def refuses(self, kind):
        return self.name == "resample" and kind == "multilabel"


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("finetune", "linear_probe")])
def test_unknown_attribute_is_refused_with_the_nearest(name, make_task):
    config = METHOD_CONFIGS[name](attributes=["sit"]) if name in ("dne", "gezo") else METHOD_CONFIGS[name](attribute="sit")
    with pytest.raises(MethodError, match="did you mean 'site'"):
        get_method(config).fit(make_task())


@pytest.mark.parametrize("name", ["resample", "reweight", "group_dro", "eo_head", "leace", "least_encoding", "fairprune", "fscl"])
def test_missing_attributes_are_counted_in_the_notes(name, make_task):
    task = make_task()
    missing = int((task.train.groups["site"].codes < 0).sum())
    result = get_method(METHOD_CONFIGS[name]()).fit(task)
    assert any(f"{missing} of 300 training rows have no 'site'" in note for note in result.notes)


def test_every_config_has_a_method_and_the_reverse():
    assert set(METHODS) == set(METHOD_CONFIGS)
