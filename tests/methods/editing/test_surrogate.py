"""The search through a surrogate: what it learns, what it asks, and that the encoder alone decides."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from queried import Encoder, Memory, Pictures, config, heads, make_task, run

from evenhand.config.editing import DNEConfig
from evenhand.data.groups import Groups
from evenhand.edits.build import build_edit
from evenhand.errors import ConfigError, InputError, MethodError, NonFiniteLossError
from evenhand.methods.editing import surrogate as module
from evenhand.methods.editing.costs import Beside
from evenhand.methods.editing.dne import DNE
from evenhand.methods.editing.gezo import GeZO
from evenhand.methods.editing.search import make_plan, search
from evenhand.methods.editing.setup import prepare
from evenhand.methods.editing.stand_in import Answers, StandIn
from evenhand.methods.editing.surrogate import Surrogate


def options(**changed):
    return config(**({"optimizer": "surrogate", "budget": 1500} | changed))


def strategy(task=None, **changed):
    task, chosen = task or make_task(), options(**changed)
    setup = prepare(task, chosen, heads())
    return Surrogate(task, build_edit(chosen, task.train.x.shape, task.seed), setup.objective, chosen, 1, np.arange(len(task.train)))


def test_a_network_learns_to_answer_as_the_encoder_does_and_says_how_well_on_new_answers():
    _, found = run(make_task(), options(surrogate_steps=600, surrogate_width=16, draws=8, budget=2000))
    explained = found.report["surrogate"]["explained"]
    assert len(explained) == found.report["rounds"] - 1 >= 3
    assert explained[-1] > 0.7
    assert found.report["surrogate"]["unedited_images"] == 240
    assert not any("surrogate explained" in note for note in found.notes)


class Noise(Encoder):
    """Answers that no network can learn."""

    def __call__(self, images):
        super().__call__(images)
        return torch.stack([(images.sum(dim=(1, 2, 3)) * 1e3 * k).sin() for k in range(1, 6)], dim=1)


def test_a_surrogate_that_knows_nothing_is_said():
    _, found = run(make_task(embedder=Noise()), options())
    assert any("surrogate explained" in note and "method.optimizer=cma" in note for note in found.notes)


def test_every_edit_is_measured_on_the_encoder_after_its_round():
    _, found = run(make_task(), options())
    assert all(record["held_out"] is not None for record in found.history)
    held = [record["held_out"] for record in found.history]
    assert min(held) == found.report["held_out_kept"]
    better = [value < min(held[:k]) for k, value in enumerate(held) if k]
    assert [record["accepted"] for record in found.history[1:]] == better


def test_queries_lie_around_the_start_and_then_around_the_step_taken():
    one = strategy(draws=200, step=2.0)
    p = len(one.start)
    points = np.stack(one.ask().points)
    assert np.array_equal(points, np.stack(one.ask().points)), "asking again gives the same"
    assert np.sqrt((points**2).mean()) == pytest.approx(8 / math.sqrt(p), rel=0.1)
    one.previous, one.current, one.round = np.full(p, 1.0), np.full(p, 41.0), 1
    share = (np.stack(one.ask().points).mean(axis=1) - 1.0) / 40
    assert 0.4 < share.min() < 0.6
    assert 1.4 < share.max() < 1.6


def test_a_proposal_that_is_no_better_is_taken_back_and_the_step_halved():
    one = strategy(step=4.0)
    best = one.start + 1.0
    one.judge(False, best)
    assert (one.step, one.current.sum()) == (4.0, 0.0), "the start has nothing to go back to"
    one.round, one.current = 1, one.start + 9.0
    one.judge(True, one.current)
    assert (one.step, one.current[0]) == (4.0, 9.0), "never longer than the first"
    one.judge(False, best)
    assert (one.step, one.current[0], one.previous[0]) == (2.0, 1.0, 9.0)
    one.judge(True, best)
    assert one.step == 4.0


def test_patience_counts_checks():
    _, found = run(make_task(embedder=Noise()), options(budget=20_000, patience=6, refit_every=3))
    assert found.report["ended_by"] == "patience"
    assert found.report["rounds"] == found.report["kept_round"] + 2


def test_answers_that_are_not_finite_are_not_learnt():
    one = strategy()
    z = torch.ones(4, 5)
    z[1, 2] = float("nan")
    one.learn(np.arange(4), [one.start, one.start], [z, z * float("nan")])
    assert [part.rows.tolist() for part in one.answers] == [[0, 2, 3]]


class Counting(Memory):
    """A store that counts how often each key was written."""

    def __init__(self):
        super().__init__()
        self.written = {}

    def put(self, key, value):
        self.written[key] = self.written.get(key, 0) + 1
        super().put(key, value)


def test_each_answer_is_stored_once_and_found_again_by_a_search_that_goes_on():
    store = Counting()
    _, found = run(make_task(store=store), options())
    parts = sorted(key for key in store.written if key.startswith("search-answers-"))
    assert len(parts) == 2 * found.report["rounds"] + 1, "a check before every round and one at the end, and the rounds"
    assert {store.written[key] for key in parts} == {1}
    kept = sum(len(store.get(key)["z"]) for key in parts)
    one = strategy(make_task(store=store))
    one.load_state(store.get("search")["strategy"])
    assert sum(len(part.rows) for part in one.answers) == kept > 0
    assert all(np.isfinite(part.point).all() for part in one.answers)
    assert one._fresh <= len(one.answers)


def test_a_state_whose_answers_are_gone_is_refused():
    store = Counting()
    run(make_task(store=store), options())
    del store.values["search-answers-0001"]
    with pytest.raises(InputError, match="search-answers-0001 is missing"):
        strategy(make_task(store=store)).load_state(store.get("search")["strategy"])


def test_every_answer_is_in_one_batch_of_a_pass():
    parts = [Answers(np.full(3, float(k)), np.arange(size), torch.arange(size)[:, None] + 100.0 * k) for k, size in enumerate((5, 40, 33))]
    for rng in (None, np.random.default_rng(0)):
        batches = list(module.batches(parts, rng))
        seen = sorted(float(value) for batch in batches for part in batch for value in part.z)
        assert seen == sorted(float(value) for part in parts for value in part.z)
        assert all(torch.equal(part.z[:, 0] - 100 * part.point[0], torch.from_numpy(part.rows)) for batch in batches for part in batch)
        assert max(sum(len(part.rows) for part in batch) for batch in batches) <= module.BATCH


def test_directions_are_what_a_ridge_head_reads():
    one = strategy()
    answers = one._unedited()
    mean, spread = answers.z.mean(dim=0), answers.z.std(dim=0, unbiased=False)
    found = one._directions(answers, mean, spread)
    read = ((answers.z - mean) / spread) @ found
    y = torch.from_numpy(one.task.train.y[answers.rows, 0])
    groups = torch.from_numpy(one.task.train.groups["site"].codes[answers.rows])
    assert found.shape == (5, 4)
    assert read.std(dim=0, unbiased=False).tolist() == pytest.approx([1.0] * 4, rel=1e-3)
    assert float(torch.corrcoef(torch.stack([read[:, 3], y]))[0, 1]) > 0.7
    assert float(torch.corrcoef(torch.stack([read[:, 1], (groups == 1).float()]))[0, 1]) > 0.7


@pytest.mark.parametrize("grid", [(1, 8, 8), (3, 64, 48), (3, 224, 224)])
def test_the_network_takes_any_grid(grid):
    torch.manual_seed(0)
    network = StandIn(grid, torch.arange(7.0), torch.ones(7) * 2, torch.zeros(7, 2), 8, seed=0)
    again = StandIn(grid, torch.arange(7.0), torch.ones(7) * 2, torch.zeros(7, 2), 8, seed=0)
    images = torch.rand(2, *grid)
    z = network(images)
    assert z.shape == (2, 7)
    assert torch.equal(z, again(images))
    assert torch.equal(z, network.standardised(images) * 2 + torch.arange(7.0))
    assert len(network.body(images)[0, 0]) <= 8
    pictures = Pictures(torch.rand(130, *grid))
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(network.embed(pictures)), network(pictures.pixels), rtol=1e-4, atol=1e-4)


def test_unedited_embeddings_belong_to_the_estimate():
    task, chosen = make_task(), options(measure=False)
    assert Beside.of(task, chosen, heads_given=True).plain == 240
    assert Beside.of(task, config(measure=False), heads_given=True).plain == 0
    plan = make_plan(task, build_edit(chosen, task.train.x.shape), chosen)[0]
    assert (plan.every, plan.round, plan.smallest) == (1, 3 * 32, 3 * 32 + 2 * 140)


def test_training_that_does_not_stay_finite_is_given_up_and_said(monkeypatch):
    class Diverging:
        def __init__(self, config): ...

        def fit_edit(self, *_, **__):
            raise NonFiniteLossError("inf")

    monkeypatch.setattr(module, "DNE", Diverging)
    edit, found = run(make_task(), options())
    assert found.report["kept_round"] == 0
    assert bool((edit.vector() == 0).all())
    assert any("method.edit_lr" in note for note in found.notes)


@pytest.mark.parametrize("changed", [{"objective": "published", "utility": 0.0, "norm_weight": 0.01, "family": ["pixel"]},
                                     {"family": ["tone", "residual"], "width": 2}, {"objective": "confusion"},
                                     {"validation_images": 0}])  # fmt: skip
def test_every_family_and_objective(changed):
    _, found = run(make_task(), options(budget=700, **changed))
    assert found.report["rounds"] >= 1
    assert math.isfinite(found.history[-1]["objective"])


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_other_kinds_of_labels_several_attributes_and_missing_values(kind):
    task = make_task()
    rng = np.random.default_rng(3)

    def changed(split):
        n = len(split)
        groups = {**split.groups, "sex": Groups("sex", ("f", "m", "x"), rng.integers(-1, 3, n))}
        if kind == "multiclass":
            return replace(split, y=rng.integers(-1, 3, n), groups=groups)
        y = np.concatenate([split.y, rng.integers(0, 2, (n, 1)).astype(np.float32)], axis=1)
        y[::5, 1] = np.nan
        return replace(split, y=y, groups=groups)

    labels = ("kind",) if kind == "multiclass" else ("ill", "other")
    classes = ("a", "b", "c") if kind == "multiclass" else ()
    task = replace(
        task, train=changed(task.train), val=changed(task.val), kind=kind, labels=labels, classes=classes, attributes=("site", "sex")
    )
    chosen = options(budget=700, attributes=["site", "sex"])
    setup = prepare(task, chosen)
    edit = build_edit(chosen, task.train.x.shape, task.seed)
    found = search(task, edit, setup.objective, chosen, (setup.train, setup.val))
    assert found.report["rounds"] >= 1
    assert math.isfinite(found.report["held_out_kept"])


@pytest.mark.parametrize(("changed", "said"), [({"surrogate_width": 6}, "a multiple of 4"), ({"edit_lr": 0.0}, "edit_lr is 0"),
                                               ({"step": 0.0}, "step is 0"), ({"step": math.inf}, "step is inf"),
                                               ({"natural_steps": False}, "natural_steps=false")])  # fmt: skip
def test_options_that_cannot_work_send_nothing(changed, said):
    def embed(images):
        raise AssertionError("sent")

    task = replace(make_task(), embed=embed)
    with pytest.raises(ConfigError, match=said):
        GeZO(options(**changed)).fit_edit(task)
    assert task.embedder.n_images == 0


def test_images_that_decide_are_not_learnt_from(monkeypatch):
    task, chosen = make_task(n_val=0), options()
    deciding = set(make_plan(task, build_edit(chosen, task.train.x.shape), chosen)[1].held_out.tolist())
    assert len(deciding) == 60
    seen = set()

    class Watching(DNE):
        def fit_edit(self, task, *args, **kwargs):
            seen.update(task.train.index.tolist())
            return super().fit_edit(task, *args, **kwargs)

    plain = module.batches

    def batches(known, rng):
        seen.update(int(row) for part in known for row in part.rows)
        return plain(known, rng)

    monkeypatch.setattr(module, "DNE", Watching)
    monkeypatch.setattr(module, "batches", batches)
    run(task, chosen)
    assert len(seen) == 180
    assert not seen & deciding


def test_a_group_that_only_deciding_images_have_is_refused_before_anything_is_sent():
    task, chosen = make_task(n_val=0), options()
    rows = make_plan(task, build_edit(chosen, task.train.x.shape), chosen)[1]
    codes = np.zeros(240, np.int64)
    codes[rows.held_out] = 1
    groups = {"site": Groups("site", ("a", "b"), codes)}
    with pytest.raises(MethodError, match="only 'a' among the 180"):
        make_plan(replace(task, train=replace(task.train, groups=groups)), build_edit(chosen, task.train.x.shape), chosen)


def test_a_rare_group_is_in_every_rounds_rows(monkeypatch):
    monkeypatch.setattr(module, "ROWS", 40)
    monkeypatch.setattr(module, "OFTEN", 4)
    task = make_task()
    codes = np.zeros(240, np.int64)
    codes[[7, 99]] = 1
    task = replace(task, train=replace(task.train, groups={"site": Groups("site", ("a", "b"), codes)}))
    one = strategy(task)
    for one.round in range(8):
        rows = one._edit_rows()
        assert len(rows) == len(set(rows)) == 40
        assert {7, 99} <= set(rows)


class Flat(Encoder):
    """Constant answers from the given call on."""

    def __init__(self, begin):
        super().__init__()
        self.begin = begin

    def __call__(self, images):
        z = super().__call__(images)
        return torch.full_like(z, 0.7) if self.calls >= self.begin else z


@pytest.mark.parametrize("begin", [1, 9])
def test_answers_that_do_not_vary_end_no_search(begin):
    _, found = run(make_task(embedder=Flat(begin)), options(budget=900))
    assert found.report["ended_by"] == "budget"


def test_unedited_images_that_do_not_vary_end_no_search():
    task = make_task(embedder=Flat(1))
    task = replace(task, embed=lambda images: np.full((len(images), 5), 0.7, np.float32))
    chosen = options(budget=900)
    setup = prepare(task, chosen, heads())
    edit = build_edit(chosen, task.train.x.shape, task.seed)
    assert search(task, edit, setup.objective, chosen, (setup.train, setup.val)).report["ended_by"] == "budget"


class Huge(Encoder):
    """Finite answers beyond all measure from the second check on."""

    def __call__(self, images):
        z = super().__call__(images)
        return z * 1e5 if self.calls > 12 and self.calls % 3 == 0 else z


def test_answers_beyond_all_measure_end_no_search():
    _, found = run(make_task(embedder=Huge()), options(budget=900))
    assert math.isfinite(found.report["held_out_kept"])


def test_a_dimension_that_is_silent_without_an_edit_does_not_rule():
    class Silent(Encoder):
        dim = 6

        def __call__(self, images):
            z = super().__call__(images)
            return torch.cat([z, (z[:, 2:3] - 1.6).clamp(min=0) * 50], dim=1)

    encoder = Silent()
    task = make_task(embedder=encoder)

    def embed(images):
        with torch.no_grad():
            z = Encoder()(images.batch(slice(None))).numpy()
        return np.concatenate([z, np.zeros((len(z), 1), np.float32)], axis=1)

    chosen = options(surrogate_steps=300)
    task = replace(task, embed=embed)
    setup = prepare(task, chosen)
    one = Surrogate(task, build_edit(chosen, task.train.x.shape), setup.objective, chosen, 1, np.arange(240))
    network = one._new_network()
    others = network.spread[:5].mean()
    assert float(network.spread[5]) > 0.05 * float(others)


def test_the_first_step_has_to_be_above_zero():
    with pytest.raises(ConfigError, match="above 0"):
        strategy(step=0.0)


class Smooth:
    """Lets gradients through to an encoder that asserts it has none."""

    dim, input_size, channels, fingerprint, differentiable = 5, (8, 8), 1, "smooth", True

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, images):
        with torch.no_grad():
            plain = self.inner(images.detach())
        mean = images.mean(dim=(1, 2, 3))
        return plain + (mean - mean.detach())[:, None]


def test_dne_begins_where_it_is_told():
    chosen = DNEConfig(family=["spectral"], bands=4, epochs=1, lr=0.0, l2_head=0.1, controls=False, measure=False)
    start = torch.tensor([0.3, -0.2, 0.1, 0.4])
    task = make_task(embedder=Smooth(Encoder()), store=Memory())
    found = DNE(chosen).fit_edit(task, heads(), start=start)
    torch.testing.assert_close(found.edit.vector(), start)
    with pytest.raises(InputError, match="another encoder"):
        DNE(chosen).fit_edit(task, heads(), start=start + 1)
    with pytest.raises(InputError, match="another encoder"):
        DNE(chosen).fit_edit(task, heads())
