"""The black-box method as a whole: an encoder without gradients, the report, the published modes, resuming."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from queried import SIZE, Pictures

from evenhand.config.compose import compose
from evenhand.config.editing import EditTrainConfig, GeZOConfig
from evenhand.config.schema import TrainerConfig
from evenhand.data.groups import Groups
from evenhand.edits.artifact import FILE, load_edit
from evenhand.edits.images import EditedImages
from evenhand.errors import MethodError
from evenhand.methods.base import Split, Task
from evenhand.methods.editing.costs import Beside
from evenhand.methods.editing.gezo import GeZO
from evenhand.methods.editing.setup import fit_attribute_heads
from evenhand.methods.registry import get_method

STRIPES = torch.tensor([1.0, -1.0]).repeat(SIZE // 2).expand(SIZE, SIZE)


class Api:
    """Embeddings only: raises when asked for a gradient."""

    dim, input_size, channels, fingerprint, differentiable = 4, (SIZE, SIZE), 1, "api", False

    def __init__(self):
        self.n_images = 0

    def __call__(self, images):
        if images.requires_grad:
            raise RuntimeError("an API gives no gradients")
        self.n_images += len(images)
        x = images[:, 0].detach()
        columns = [(x * STRIPES).mean(dim=(1, 2)) * 30, x.mean(dim=(1, 2)) * 10, x[:, 3:5, 3:5].mean(dim=(1, 2)) * 10, x[:, 0, 0] * 3]
        return torch.stack(columns, dim=1)


def make_rows(n, seed):
    rng = np.random.default_rng(seed)
    site = rng.integers(0, 3, n)
    y = (rng.random(n) < 0.3 + 0.2 * site).astype(np.float32)
    pixels = 0.5 + 0.03 * torch.from_numpy(rng.standard_normal((n, 1, SIZE, SIZE))).float()
    pixels += (0.03 * torch.from_numpy(site).float())[:, None, None, None] * STRIPES
    pixels[:, :, 3:5, 3:5] += 0.1 * torch.from_numpy(y)[:, None, None, None]
    groups = {
        "site": Groups("site", ("a", "b", "c"), site.astype(np.int64)),
        "sex": Groups("sex", ("f", "m"), rng.integers(0, 2, n).astype(np.int64)),
    }
    return Split(Pictures((pixels.clamp(0, 1) * 255).round() / 255), y[:, None], groups, np.arange(n), np.arange(n))


class Memory(dict):
    def put(self, key, value):
        self[key] = value

    def append(self, key, record):
        raise AssertionError


@pytest.fixture
def task():
    plain = Api()

    def embed(images):
        with torch.no_grad():
            return plain(images.batch(slice(None))).numpy()

    return Task(
        train=make_rows(160, 1), val=make_rows(100, 2), kind="binary", labels=("ill",), classes=(), attributes=("site", "sex"),
        seed=0, device=torch.device("cpu"), store=Memory(), embed=embed, build_model=None,
        trainer=TrainerConfig(progress=False), batch_size=64, embedder=Api(),
    )  # fmt: skip


def config(**options):
    small = {"bands": 3, "budget": 1500, "query_images": 32, "validation_images": 50, "reference_images": 60, "refit_every": 4}
    small |= {"optimizer": "cma", "surrogate_steps": 20, "surrogate_width": 4, "edit_steps": 4}
    return GeZOConfig(**(small | {"population": 5, "draws": 2, "l2_head": 0.1, "controls": False} | options))


@pytest.mark.parametrize("optimizer", ["gezo", "cma", "surrogate"])
def test_an_encoder_without_gradients_is_enough(task, optimizer, tmp_path):
    result = GeZO(config(optimizer=optimizer)).fit(task)
    assert task.embedder.n_images <= 1500
    scores, decisions = result.predict(task.val.x)
    assert scores.shape == (100, 1)
    assert decisions is None
    report = json.loads(result.artifacts["edit.json"])
    assert report["search"]["images"] == task.embedder.n_images
    assert report["search"]["held_out_kept"] <= report["search"]["held_out_start"]
    assert {"round", "images", "objective", "held_out", "step", "accepted", "failed"} <= set(result.history[0])
    (tmp_path / FILE).write_bytes(result.artifacts[FILE])
    edited = EditedImages(task.val.x, load_edit(tmp_path).edit)
    changed = bool((edited.batch(slice(None)) != task.val.x.batch(slice(None))).any())
    assert changed == (report["search"]["kept_round"] > 0)


@pytest.mark.parametrize(
    ("options", "beside"),
    [({}, 3), ({"controls": False}, 2), ({"measure": False}, 1), ({"measure": False, "utility": 0.0}, 1)],
    ids=["all", "no control", "no report", "heads only"],
)
def test_what_is_embedded_beside_the_search_is_said_before_and_is_what_is_sent(task, options, beside):
    asked, said = [], []

    def embed(images):
        key = (getattr(images, "edit_hash", "unedited"), len(images))
        if key not in asked:
            asked.append(key)
        return task.embed(images)

    def report(line):
        said.append((len(asked), line))

    outcome = GeZO(config(**{"controls": True, "price": 2.0, "rounds": 2} | options)).fit_edit(replace(task, embed=embed, report=report))
    sent, n_before = sum(n for _, n in asked), said[0][0]
    told = outcome.report["search"]["beside"]
    assert told["images"] == sent == beside * 260
    assert told["cost"] == pytest.approx(sent * 2 / 1000)
    assert n_before == 0
    assert f"{outcome.report['search']['images'] + sent}, " in said[0][1]
    assert ("method.controls=false" in said[0][1]) == (beside == 3)


def test_an_attribute_with_one_value_is_refused_before_anything_is_sent(task):
    def embed(images):
        raise AssertionError

    alone = Groups("site", ("a", "b", "c"), np.zeros(160, np.int64))
    task = replace(task, embed=embed, train=replace(task.train, groups={**task.train.groups, "site": alone}))
    with pytest.raises(MethodError, match="only 'a' among the 160 training rows"):
        GeZO(config()).fit_edit(task)
    assert task.embedder.n_images == 0


def test_a_given_head_and_no_report_leave_nothing_beside_the_search(task):
    options = config(measure=False, utility=0.0)
    assert Beside.of(task, options, heads_given=True).images == 0
    assert Beside.of(task, options, heads_given=True, probe=True).edited == 260
    assert Beside.of(task, replace(options, optimizer="surrogate"), heads_given=True).plain == 160, "a surrogate learns from them"
    assert Beside.of(replace(task, val=make_rows(0, 1)), config(controls=True)).images == 160


def test_the_edit_comes_back_frozen(task):
    outcome = GeZO(config(family=["tone"], knots=4, step=30.0, budget=900)).fit_edit(replace(task, augment="fundus"))
    assert any("data.augment=fundus has no part in a search" in note for note in outcome.notes)
    assert all(not parameter.requires_grad for parameter in outcome.edit.parameters())
    assert outcome.report["search"]["parameters"] == outcome.edit.n_parameters


def test_a_small_budget_is_refused_before_heads_are_fitted(task):
    def embed(images):
        raise AssertionError("embedded")

    with pytest.raises(MethodError, match=r"method\.budget="):
        GeZO(config(budget=10)).fit(replace(task, embed=embed))
    assert task.embedder.n_images == 0


def test_a_task_without_an_encoder_is_refused(task):
    with pytest.raises(MethodError, match=r"give task\.embedder"):
        GeZO(config()).fit(replace(task, embedder=None))


def test_heads_may_be_given_and_the_same_store_gives_the_same_edit(task):
    options = config(attributes=["site", "sex"])
    heads = {head.attribute: head for head in fit_attribute_heads(task, options)}
    first = GeZO(options).fit_edit(task, heads)
    sent = task.embedder.n_images
    again = GeZO(options).fit_edit(task, heads)
    assert task.embedder.n_images == sent
    np.testing.assert_array_equal(first.edit.vector().numpy(), again.edit.vector().numpy())
    assert list(first.history) == list(again.history)


@pytest.mark.parametrize(("mode", "asked"), [("paper", 21), ("released", 10)])
def test_published_modes_are_presets_of_the_same_method(task, mode, asked):
    options = compose(EditTrainConfig, [f"method=gezo_{mode}", "data.path=x"]).method
    assert (options.rounds, options.query_images, options.step, options.momentum) == (50, 256, 0.03, 0.9)
    assert 50 * asked * 256 <= options.budget
    options.rounds, options.head_epochs, options.query_images, options.controls = 3, 2, 32, False
    outcome = get_method(options).fit_edit(task)
    assert outcome.edit.kind == "pixel"
    assert task.embedder.n_images == 3 * asked * 32
    moved = [record["accepted"] for record in outcome.history if record["round"]]
    assert len(moved) == 3
    assert mode == "paper" or all(moved)
