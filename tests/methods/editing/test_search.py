"""The black-box loop: what it sends, what it keeps, and that a kill changes nothing and costs nothing."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from queried import Encoder, Memory, Stop, config, make_task, run

from evenhand.edits.build import build_edit
from evenhand.errors import InputError, MethodError, NonFiniteLossError
from evenhand.methods.editing.querying import Plan, Price, Querier, QueryRows, requests_for
from evenhand.methods.editing.search import make_plan
from evenhand.models.paid import PaidEmbedder
from evenhand.runs.folder import FileStore


@pytest.mark.parametrize(("optimizer", "share"), [("gezo", 0.97), ("spsa", 1.0), ("cma", 0.8), ("surrogate", 0.8)])
def test_finds_a_better_edit_within_its_budget(optimizer, share):
    task = make_task()
    own = {"surrogate": {"budget": 1500, "surrogate_steps": 300, "edit_steps": 40, "surrogate_width": 16}}
    edit, found = run(task, config(**({"optimizer": optimizer, "lr": 1.0, "step": 2.0, "budget": 6000} | own.get(optimizer, {}))))
    report = found.report
    assert task.embedder.n_images == report["images"] <= report["budget"]
    assert report["images"] + 32 * 8 + 140 > report["budget"] or report["ended_by"] != "budget"
    assert report["held_out_kept"] < share * report["held_out_start"]
    assert not torch.equal(edit.vector(), build_edit(config(), task.train.x.shape).vector())
    json.dumps([list(found.history), report, list(found.notes)], allow_nan=False)
    images = [record["images"] for record in found.history]
    assert images == sorted(images)
    assert images[-1] == report["images"]
    held = [record["held_out"] for record in found.history if record["held_out"] is not None]
    assert held[0] == report["held_out_start"]
    assert min(held) == report["held_out_kept"]


class Noise(Encoder):
    """Answers that have nothing to do with the image, but depend on every pixel: nothing helps."""

    def __call__(self, images):
        super().__call__(images)
        return torch.stack([(images.sum(dim=(1, 2, 3)) * 1e3 * k).sin() for k in range(1, 6)], dim=1)


@pytest.mark.parametrize("optimizer", ["gezo", "spsa", "cma", "surrogate"])
def test_the_kept_edit_is_never_worse_than_none_even_where_nothing_helps(optimizer):
    edit, found = run(make_task(embedder=Noise()), config(optimizer=optimizer, budget=1800))
    assert found.report["held_out_kept"] <= found.report["held_out_start"]
    assert (found.report["kept_round"] == 0) == bool((edit.vector() == 0).all())


def test_a_budget_too_small_sends_nothing_and_says_what_would_do():
    task = make_task()
    options = config(budget=471)
    smallest = 32 * 6 + 2 * (80 + 60)
    assert smallest == 472
    with pytest.raises(MethodError, match=f"method.budget={smallest}"):
        run(task, options)
    assert task.embedder.n_images == 0
    assert task.store.values == {}
    _, found = run(task, config(budget=472))
    assert found.report["rounds"] == 1
    assert task.embedder.n_images == 472


@pytest.mark.parametrize("options", [{}, {"refit_every": 1}, {"optimizer": "gezo"}, {"optimizer": "gezo", "same_batch": False},
                                     {"optimizer": "surrogate"}, {"validation_images": 0},
                                     {"objective": "published", "utility": 0.0}])  # fmt: skip
@pytest.mark.parametrize("budget", [700, 1001, 1500])
def test_the_budget_is_never_passed(options, budget):
    task = make_task()
    chosen = config(budget=budget, **options)
    plan = make_plan(task, build_edit(chosen, task.train.x.shape), chosen)[0]
    _, found = run(task, chosen)
    assert task.embedder.n_images == found.report["images"] <= budget
    assert found.report["ended_by"] == "budget"
    assert found.report["rounds"] >= plan.affordable >= 1


def test_candidates_of_a_round_see_the_same_images_unless_released():
    def images_of_first_round(same):
        task = make_task()
        options = config(optimizer="gezo", family=["tone"], knots=2, step=1e-9, same_batch=same, refit_every=50, check_incumbent=False)
        options.rounds = 1
        run(task, options)
        per_check = math.ceil(80 / 32) + math.ceil(60 / 32)
        seen = task.embedder.seen[per_check:-per_check]
        assert len(seen) == 6
        return seen

    same = images_of_first_round(True)
    assert all(torch.equal(same[k], same[0]) for k in range(6))
    other = images_of_first_round(False)
    assert torch.equal(other[0], other[1]), "both signs of a draw share their images"
    assert not torch.equal(other[0], other[2])


def test_rows_of_different_purposes_do_not_overlap():
    task = make_task(n_val=0)
    rows = QueryRows.draw(task, config(), True)
    parts = [rows.reference, rows.pool, rows.held_out]
    assert sum(map(len, parts)) == len(np.unique(np.concatenate(parts))) == 240
    assert not rows.held_out_is_val
    assert set(rows.batch(0, 1, 0, 32)) <= set(rows.pool)
    assert not np.array_equal(rows.batch(0, 1, 0, 32), rows.batch(0, 2, 0, 32))
    tiny = QueryRows.draw(make_task(n=9, n_val=0), config(), True)
    assert min(len(tiny.reference), len(tiny.pool), len(tiny.held_out)) >= 1
    with pytest.raises(MethodError, match="at least 4"):
        QueryRows.draw(make_task(n=3), config(), True)


def test_without_validation_rows_no_training_image_decides_where_none_is_asked_for():
    task, options = make_task(n_val=0), config(budget=1500, validation_images=0)
    assert len(QueryRows.draw(task, options, True).held_out) == 0
    assert len(QueryRows.draw(task, config(validation_images=1), True).held_out) == 1
    _, found = run(task, options)
    assert all(record["held_out"] is None for record in found.history)
    assert (found.report["held_out_images"], found.report["kept_round"]) == (0, found.report["rounds"])
    assert any("the last edit of the search was kept" in note for note in found.notes)
    assert not any("decided which edit" in note for note in found.notes)
    published = make_task(n_val=0)
    _, found = run(published, config(budget=1500, validation_images=0, objective="published", utility=0.0))
    assert published.embedder.n_images == found.report["rounds"] * 6 * 32, "only rounds are sent: there is nothing to check"


def test_without_validation_rows_training_images_decide_and_it_is_said():
    _, found = run(make_task(n_val=0), config(budget=1500, l2_head=0.1))
    assert any("no validation rows" in note for note in found.notes)


@pytest.mark.parametrize("optimizer", ["gezo", "spsa", "cma", "surrogate"])
def test_a_failure_at_any_moment_changes_nothing_and_pays_nothing_twice(optimizer, tmp_path):
    options = config(optimizer=optimizer, budget=1100)
    whole = PaidEmbedder(Encoder(), tmp_path / "whole")
    edit, found = run(make_task(embedder=whole), options)

    def stumbling(call):
        if call % 9 == 3:
            raise Stop("gone")

    encoder, store, failures = Encoder(stumbling), Memory(), 0
    while True:
        paid = PaidEmbedder(encoder, tmp_path / "broken")
        try:
            again, resumed = run(make_task(embedder=paid, store=store), options)
            break
        except Stop:
            failures += 1
        finally:
            paid.close()
    assert failures > 2
    np.testing.assert_array_equal(again.vector().numpy(), edit.vector().numpy())
    assert resumed.history == found.history
    assert encoder.n_images == whole.n_sent == resumed.report["n_sent"]


def die_in_request(folder, number):
    torch.set_num_threads(1)

    def fail(call):
        if call == number:
            os.kill(os.getpid(), signal.SIGKILL)

    run(make_task(embedder=PaidEmbedder(Encoder(fail), folder / "paid"), store=FileStore(folder / "store")), config(budget=900))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("number", [4, 25])
def test_kill_9_loses_one_request_at_most(number, tmp_path):
    edit, found = run(make_task(), config(budget=900))
    child = multiprocessing.get_context("fork").Process(target=die_in_request, args=(tmp_path, number))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    paid = PaidEmbedder(Encoder(), tmp_path / "paid")
    before = paid.n_sent
    again, resumed = run(make_task(embedder=paid, store=FileStore(tmp_path / "store")), config(budget=900))
    assert before > 0
    np.testing.assert_array_equal(again.vector().numpy(), edit.vector().numpy())
    assert resumed.history == found.history
    assert paid.n_sent <= found.report["images"] + 32


def test_a_finished_search_asks_nothing_and_a_larger_budget_goes_on():
    store = Memory()
    edit, found = run(make_task(store=store), config(budget=900))
    second = make_task(store=store)
    again, same = run(second, config(budget=900))
    assert second.embedder.n_images == 0
    assert same.history == found.history
    np.testing.assert_array_equal(again.vector().numpy(), edit.vector().numpy())
    _, longer = run(make_task(store=store), config(budget=2000))
    assert longer.report["rounds"] > found.report["rounds"]
    assert longer.report["held_out_kept"] <= found.report["held_out_kept"]


def test_state_of_another_search_is_refused():
    store = Memory()
    run(make_task(store=store), config(budget=700))
    with pytest.raises(InputError, match="another encoder"):
        run(make_task(store=store), config(budget=700, step=2.0))
    with pytest.raises(InputError, match="another encoder"):
        run(make_task(store=store, seed=3), config(budget=700))


def test_requests_are_sent_together_and_give_the_same(tmp_path):
    one, found = run(make_task(embedder=PaidEmbedder(Encoder())), config(budget=900))
    safe = Encoder()
    safe.thread_safe = True
    lock_free = PaidEmbedder(safe, concurrency=4)
    many, together = run(make_task(embedder=lock_free), config(budget=900))
    np.testing.assert_array_equal(one.vector().numpy(), many.vector().numpy())
    assert found.history == together.history


def test_queries_are_what_is_sent_valid_and_rounded():
    task = make_task()
    run(task, config(budget=900, step=5.0))
    seen = torch.cat(task.embedder.seen)
    assert seen.min() >= 0
    assert seen.max() <= 1
    np.testing.assert_allclose(seen * 255, (seen * 255).round(), atol=1e-4)


def test_an_api_that_takes_files_decides_the_rounding(tmp_path):
    encoder = Encoder()
    encoder.levels = 256
    task = make_task(embedder=PaidEmbedder(encoder))
    edit, found = run(task, config(budget=900, rounding="none"))
    assert edit.bounds.rounding == "8bit"
    assert any("256 levels" in note for note in found.notes)
    seen = torch.cat(encoder.seen)
    np.testing.assert_allclose(seen * 255, (seen * 255).round(), atol=1e-4)
    _, quiet = run(make_task(embedder=encoder), config(budget=900))
    assert not any("levels" in note for note in quiet.notes)


def test_queries_that_fail_are_counted_and_left_out():
    class Sometimes(Encoder):
        def __call__(self, images):
            z = super().__call__(images)
            return z * float("nan") if self.calls > 20 and self.calls % 5 == 0 else z

    _, found = run(make_task(embedder=Sometimes()), config(budget=2000))
    assert found.report["failed_queries"] > 0
    assert any("not finite" in note for note in found.notes)
    assert math.isfinite(found.report["held_out_kept"])


def test_a_start_without_a_finite_objective_is_an_error():
    class Broken(Encoder):
        def __call__(self, images):
            return super().__call__(images) * float("nan")

    with pytest.raises(NonFiniteLossError, match="nothing to improve"):
        run(make_task(embedder=Broken()), config())


def test_patience_rounds_and_steps_end_a_search():
    assert run(make_task(), config(rounds=4))[1].report["rounds"] == 4
    flat = config(optimizer="gezo", family=["tone"], knots=2, step=1e-7, patience=3, budget=100_000)
    assert run(make_task(), flat)[1].report["ended_by"] == "patience"
    stuck = config(optimizer="gezo", family=["tone"], knots=2, step=1e-7, patience=0, step_decay=0.1, restarts=1, budget=100_000)
    report = run(make_task(), stuck)[1].report
    assert report["ended_by"] == "step"
    assert report["restarts"] == 1


def test_estimate_and_cost_are_said():
    said = []
    task = make_task()
    object.__setattr__(task, "report", said.append)
    _, found = run(task, config(budget=1000, price=5.0))
    assert "at most" in said[0]
    assert "at 5 per 1000" in said[0]
    assert found.report["cost"] == pytest.approx(found.report["images"] * 0.005)
    assert any(f"{found.report['images']} images were sent" in text for text in said)


def test_the_norm_of_the_edit_counts_where_asked():
    task = make_task()
    options = config(norm_weight=1.0, family=["lowres"], resolution=2, step=1.0)
    edit = build_edit(options, task.train.x.shape)
    querier = Querier(task, edit, options)
    point = np.ones(edit.n_parameters)
    rows = np.arange(40)
    norm = querier.embed(task.train.x, rows, [point])[0][1]
    plain = task.train.x.batch(rows)
    with torch.no_grad():
        expected = (edit(plain) - plain).flatten(1).square().sum(dim=1).mean().sqrt()
    assert float(norm) == pytest.approx(float(expected), rel=1e-5)


def test_the_plan_adds_up():
    plan = Plan(budget=1000, round=100, check=50, every=2, rounds=0, price=Price(2.0, 0.5), round_requests=4, check_requests=2)
    # checks at 0, 2, 4, … and one reserved: 50 + 100 + 100 + 50 + 100 + 100 + 50 + 100 + 100 + 50 = 800, then 900 + 50
    assert plan.affordable == 7
    assert plan.smallest == 200
    assert "at most 950 images" in plan.describe() or "at most 1000 images" in plan.describe()
    assert plan.most_requests == 2 + 7 * 4 + 4 * 2
    assert plan.describe().endswith("in 38 requests, 20.90 at 2 per 1000 images and 0.5 per request")
    assert plan.price.of(500, 3) == 1.0 + 1.5


@pytest.mark.parametrize(("n", "batch", "most", "expected"), [(0, 8, 8, 0), (20, 8, 8, 3), (20, 8, 100, 3), (20, 8, 4, 6), (17, 16, 8, 3)])
def test_requests_are_batches_and_what_an_encoder_splits_them_into(n, batch, most, expected):
    class Limited:
        most_images = most

    sizes = [len(part) for part in np.array_split(np.arange(n), max(1, -(-n // batch)))]
    assert sum(-(-size // most) for size in sizes) == expected
    assert requests_for(PaidEmbedder(Encoder()), 20, 8) == 3, "an encoder in this process takes a batch at once"
    assert requests_for(Limited(), n, batch) == expected


@pytest.mark.parametrize("paid", [False, True], ids=["in process", "paid"])
def test_a_price_per_request_is_in_the_estimate_and_in_the_cost(paid):
    said, encoder = [], Encoder()
    task = make_task(embedder=PaidEmbedder(encoder) if paid else encoder)
    object.__setattr__(task, "report", said.append)
    _, found = run(task, config(budget=1000, price=5.0, price_per_request=0.25, rounds=3))
    assert found.report["requests"] == encoder.calls
    assert found.report["cost"] == pytest.approx(found.report["images"] * 0.005 + encoder.calls * 0.25)
    assert f"in {encoder.calls} requests, {found.report['cost']:.2f} at 5 per 1000 images and 0.25 per request" in said[-1]
    assert f"at most {found.report['images']} images in {encoder.calls} requests, {found.report['cost']:.2f} at" in said[0]


def test_requests_are_counted_on_after_a_kill():
    store, asked = Memory(), []
    for rounds in (2, 4):
        encoder = Encoder()
        asked.append(encoder)
        _, found = run(make_task(embedder=encoder, store=store), config(rounds=rounds))
    assert found.report["requests"] == sum(encoder.calls for encoder in asked)


def test_what_is_only_reported_may_change_between_calls():
    task = make_task()
    first = run(task, config(budget=1500))[1]
    again = run(task, config(budget=1500, controls=False, measure=False))[1]
    assert again.history == first.history
