"""The black-box loop over an encoder that is paid for: lost requests, answers that are not finite, and what a restart pays."""

from __future__ import annotations

import pytest
import torch
from queried import SIZE, Encoder, Memory, Stop, config, make_task, run

from evenhand.errors import MethodError, NotFiniteError, RunError, ServerError
from evenhand.models.paid import PaidEmbedder


def test_the_encoders_own_budget_ends_the_search_with_the_best_edit():
    with PaidEmbedder(Encoder(), None, budget=1100) as paid:
        _, found = run(make_task(embedder=paid), config())
        assert (found.report["ended_by"], found.report["rounds"]) == ("budget", 3)
        assert paid.n_sent == 3 * 6 * 32 + 2 * 140, "a round and a check that do not fit are not begun"
    with PaidEmbedder(Encoder(), None, budget=400) as paid, pytest.raises(MethodError, match="3600 of which the encoder does not give"):
        run(make_task(embedder=paid), config())


class Losing(Encoder):
    """Requests by number whose first sending was lost: the repeat is charged anew, as `Connection` does."""

    def __init__(self, *lost):
        super().__init__()
        self.lost, self.n_charged = lost, 0

    def embed_charged(self, images, charge, answered):
        if self.calls + 1 in self.lost:
            self.lost = tuple(number for number in self.lost if number != self.calls + 1)
            self.n_charged += len(images)
            charge(len(images))
        answered(0, self(images).numpy())


# a search of 472 + 192 = 664 images: check (5 requests), round (6), round (6), check (5)
@pytest.mark.parametrize("lost", [(2,), (8,), (16,), (17,), (19,), (22,), (16, 17), (13, 14, 15, 16, 17)])
def test_lost_requests_end_a_search_by_budget_with_the_best_edit(lost, tmp_path):
    options, store, outcomes = config(budget=664, refit_every=1 if lost == (8,) else 3), Memory(), []
    encoder = Losing(*lost)
    for _ in range(2):
        with PaidEmbedder(encoder, tmp_path, options.budget) as paid:
            edit, found = run(make_task(embedder=paid, store=store), options)
            outcomes.append((edit.vector().tolist(), found.report["ended_by"], found.report["kept_round"], paid.n_sent))
            assert paid.n_sent <= 664
            assert paid.n_sent == encoder.n_images + encoder.n_charged
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][1] == "budget"
    assert found.report["rounds"] in (1, 2)
    if lost == (16,):
        assert outcomes[0][3] == 140 + 2 * 6 * 32 + 32, "a check that does not fit is not begun"
    assert any("too little left to measure" in note for note in found.notes) == (found.history[-1]["held_out"] is None)
    with PaidEmbedder(encoder, tmp_path, 2000) as paid:
        _, longer = run(make_task(embedder=paid, store=store), config(budget=2000, refit_every=options.refit_every))
    _, whole = run(make_task(), config(budget=2000, refit_every=options.refit_every))
    assert longer.report["rounds"] >= 5
    if found.history[-1]["held_out"] is None:  # no heads were fitted that a longer search would not have fitted
        said = [[record["objective"] for record in one.history[:6]] for one in (longer, whole)]
        assert said[0] == said[1]


def test_a_round_cut_short_by_a_kill_still_fits_the_budget(tmp_path):
    """Answers that are kept cost nothing again, so the last affordable round is asked again and not given up."""
    options = config(budget=664)

    def stumble(call):
        if call == 16:
            raise Stop("gone")

    encoder, store = Encoder(stumble), Memory()
    with PaidEmbedder(encoder, tmp_path, 664) as paid, pytest.raises(Stop):
        run(make_task(embedder=paid, store=store), options)
    with PaidEmbedder(encoder, tmp_path, 664) as paid:
        _, found = run(make_task(embedder=paid, store=store), options)
        assert (found.report["rounds"], paid.n_sent) == (2, 664)


class Unsure(Encoder):
    """Says its width only after it was asked for an image, in every process anew."""

    dim = property(lambda self: self.width())

    def width(self):
        if not self.n_images:
            self(torch.zeros(1, 1, SIZE, SIZE))
        return 5


def test_the_budget_that_an_error_names_has_the_question_for_the_width(tmp_path):
    named = 472 + 1 + 1  # this process asked for the width, the next one asks again
    with torch.no_grad(), PaidEmbedder(Unsure(), tmp_path, 472) as paid, pytest.raises(MethodError) as caught:
        run(make_task(embedder=paid), config(budget=472))
    assert f"set method.budget={named} or more" in str(caught.value)
    assert paid.n_opening == 1
    with torch.no_grad(), PaidEmbedder(Unsure(), tmp_path, named) as paid:
        _, found = run(make_task(embedder=paid), config(budget=named))
        assert (found.report["rounds"], found.history[-1]["held_out"] is None, paid.n_sent) == (1, False, named)


class Sick(Encoder):
    """Answers NaN to images that are brighter than any unedited one by a little, in one row of the request or in all of them."""

    def __init__(self, whole=False, fail=None):
        super().__init__(fail)
        self.whole, self.n_bad = whole, 0

    def __call__(self, images):
        z = super().__call__(images)
        bad = images.mean(dim=(1, 2, 3)) > 0.47
        self.n_bad += int(bad.sum())
        z[bad] = float("nan")
        return z


class Refusing(Sick):
    """Refuses its own answer, as a `RemoteEmbedder` does."""

    def __call__(self, images):
        z = super().__call__(images)
        if not torch.isfinite(z).all():
            raise NotFiniteError("1 of 3 embeddings from x are not finite; nothing of this request is kept, check", maybe_billed=True)
        return z


def sick_options():
    return config(family=["tone"], step=30.0, budget=2000)


@pytest.mark.parametrize("kind", [Sick, Refusing])
def test_failed_queries_of_a_paid_encoder_are_left_out_and_paid_once(kind, tmp_path):
    bare, plain = run(make_task(embedder=kind()), sick_options())
    assert plain.report["failed_queries"] > 5
    encoder = kind()
    with PaidEmbedder(encoder, tmp_path, 20_000) as paid:
        edit, found = run(make_task(embedder=paid), sick_options())
        n_sent = paid.n_sent
    assert encoder.n_bad > 0
    assert found.report["failed_queries"] == plain.report["failed_queries"]
    assert found.history == plain.history
    assert torch.equal(edit.vector(), bare.vector())
    assert n_sent == encoder.n_images
    assert any("not finite; they were left out" in note for note in found.notes)
    again = kind()
    with PaidEmbedder(again, tmp_path, 20_000) as paid:
        _, same = run(make_task(embedder=paid), sick_options())
        assert (again.n_images, paid.n_sent) == (0, n_sent)
    assert same.history == found.history


@pytest.mark.parametrize("kind", [Sick, Refusing])
def test_failed_queries_are_paid_once_over_restarts(kind, tmp_path):
    with PaidEmbedder(kind(), tmp_path / "whole") as paid:
        _, whole = run(make_task(embedder=paid), sick_options())
        n_sent = paid.n_sent

    def stumble(call):
        if call % 9 == 3:
            raise Stop("gone")

    encoder, store, failures, found = kind(fail=stumble), Memory(), 0, None
    while found is None:
        with PaidEmbedder(encoder, tmp_path / "broken") as paid:
            try:
                found = run(make_task(embedder=paid, store=store), sick_options())[1]
            except Stop:
                failures += 1
    assert failures > 2
    assert found.history == whole.history
    assert encoder.n_images == paid.n_sent == n_sent


@pytest.mark.parametrize("kind", [Sick, Refusing])
def test_a_check_that_is_not_finite_is_counted_and_its_edit_not_kept(kind):
    class Later(kind):
        def __call__(self, images):
            z = super().__call__(images)
            if 5 + 3 * 6 < self.calls <= 5 + 3 * 6 + 5:
                if kind is Refusing:
                    raise NotFiniteError("2 embeddings are not finite; nothing of this request is kept", maybe_billed=True)
                z = z * float("nan")
            return z

    with PaidEmbedder(Later()) as paid:
        _, found = run(make_task(embedder=paid), config(budget=2000))
    third = found.history[3]
    assert (third["round"], third["held_out"], third["failed"]) == (3, None, 1)
    assert found.report["failed_queries"] == 1
    assert found.report["kept_round"] != 3
    assert found.report["rounds"] > 3


def test_unedited_images_that_are_not_finite_are_refused_and_not_kept(tmp_path):
    """Heads are fitted on them; an encoder that was mended is asked again."""

    class Broken(Encoder):
        def __call__(self, images):
            return super().__call__(images) * float("nan")

    store = Memory()
    with PaidEmbedder(Broken(), tmp_path) as paid, pytest.raises(RunError, match="check the encoder's weights or set its precision"):
        run(make_task(embedder=paid, store=store), config(budget=900))
    with PaidEmbedder(Encoder(), tmp_path) as paid:
        _, found = run(make_task(embedder=paid, store=store), config(budget=900))
    assert found.report["failed_queries"] == 0


@pytest.mark.parametrize("error", [ServerError("lost", maybe_billed=True), ServerError("values are not finite", status=500)])
@pytest.mark.parametrize("wrapped", [False, True])
def test_other_errors_of_a_server_still_end_the_search(error, wrapped):
    def fail(call):
        if call == 8:
            raise error

    encoder = Encoder(fail)
    with pytest.raises(ServerError) as caught:
        run(make_task(embedder=PaidEmbedder(encoder) if wrapped else encoder), config(budget=900))
    assert caught.value is error
