"""PaidEmbedder: the budget holds, nothing is paid twice, not even across kill -9, and damage is recognised."""

from __future__ import annotations

import os
import signal
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from evenhand.errors import BudgetError, DiskFullError, InputError, RunError, ServerError
from evenhand.models import EmbeddingCache, PaidEmbedder, paid_log
from evenhand.models.conformance import EmbedderConformance
from tests.models.processes import start_spending


class Counting:
    """An encoder that remembers every image it was sent; thread safe, with a delay and faults on demand."""

    dim, input_size, channels, differentiable, thread_safe = 3, (4, 4), 3, False, True
    fingerprint = "counting"
    settled, agreement = "fp32", None

    def __init__(self, delay=0.0):
        self.n_images, self.delay, self.sizes, self.fault, self.sent = 0, delay, [], None, []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def describe(self):
        return {"model": self.fingerprint, "name": "counting", "dim": self.dim}

    def settle(self, images):
        return "fp32"

    def __call__(self, images):
        with self.lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.delay)
        try:
            with self.lock:
                if self.fault is not None:
                    raise self.fault
                self.n_images += len(images)
                self.sizes.append(len(images))
                self.sent += [image.numpy().tobytes() for image in images]
            values = torch.nn.functional.interpolate(images, (4, 4)).expand(-1, 3, -1, -1)
            return torch.stack([values.mean(dim=(1, 2, 3)), values.square().mean(dim=(1, 2, 3)), values.amax(dim=(1, 2, 3))], dim=1)
        finally:
            with self.lock:
                self.at_once -= 1


def draw(n, seed=0):
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


class TestConformance(EmbedderConformance):
    def make_embedder(self):
        return PaidEmbedder(Counting())


def test_an_image_is_paid_for_once_ever(tmp_path):
    images = draw(6)
    first = Counting()
    with PaidEmbedder(first, tmp_path, budget=8, price=5.0) as paid:
        mixed = torch.cat([images[:4], images[:2], images[1:2]])
        out = paid(mixed)
        assert torch.equal(out, Counting()(mixed))
        assert (first.n_images, paid.n_sent, paid.n_reused, paid.left) == (4, 4, 3, 4)
        assert torch.equal(paid(images[2:]), Counting()(images[2:]))
        assert (first.n_images, paid.n_sent, paid.cost, paid.estimate(2000)) == (6, 6, 0.03, 10.0)
    second = Counting()
    with PaidEmbedder(second, tmp_path, budget=8) as paid:
        assert torch.equal(paid(images.flip(0)), Counting()(images.flip(0)))
        assert (second.n_images, paid.n_sent, paid.n_reused, paid.left) == (0, 6, 6, 2)


def test_content_counts_and_shape_is_content(tmp_path):
    encoder = Counting()
    with PaidEmbedder(encoder, tmp_path) as paid:
        paid(torch.zeros(1, 3, 4, 4))
        paid(torch.zeros(1, 3, 2, 8))
        paid(torch.zeros(1, 1, 4, 4))
        assert encoder.n_images == 3
        paid(torch.zeros(1, 3, 4, 4, dtype=torch.float64))
        assert encoder.n_images == 3


def test_the_budget_is_checked_before_anything_is_sent(tmp_path):
    encoder = Counting()
    with PaidEmbedder(encoder, tmp_path, budget=5) as paid:
        paid(draw(3))
        with pytest.raises(BudgetError, match="3 new images, but 2 of the budget of 5") as caught:
            paid(draw(3, seed=1))
        assert caught.value.exit_code == 4
        with pytest.raises(BudgetError):
            paid.many([draw(2, seed=2), draw(1, seed=3)])
        assert (encoder.n_images, paid.n_sent, paid.left) == (3, 3, 2)
        paid.many([draw(2, seed=2), draw(3)])
        assert (encoder.n_images, paid.left) == (5, 0)
    with PaidEmbedder(Counting(), tmp_path, budget=5) as paid, pytest.raises(BudgetError):
        paid(draw(1, seed=9))


def test_many_sends_at_once_and_keeps_order():
    encoder = Counting(delay=0.05)
    with PaidEmbedder(encoder, concurrency=3) as paid:
        batches = [draw(2, seed) for seed in range(6)] + [draw(2, 0)]
        out = paid.many(batches)
        assert all(torch.equal(a, Counting()(b)) for a, b in zip(out, batches, strict=True))
        assert encoder.n_images == 12
        assert 2 <= encoder.most_at_once <= 3
        assert paid.n_reused == 2


def test_an_encoder_that_is_not_thread_safe_is_asked_one_by_one():
    encoder = Counting(delay=0.01)
    encoder.thread_safe = False
    with PaidEmbedder(encoder, concurrency=4) as paid:
        paid.many([draw(1, seed) for seed in range(4)])
        assert encoder.most_at_once == 1


def test_threads_share_the_budget_and_the_answers():
    """Eight threads want overlapping images: each image is sent once, and never more than the budget."""
    encoder, errors = Counting(delay=0.002), []
    with PaidEmbedder(encoder, budget=20, concurrency=2) as paid:
        pool = draw(30, seed=5)

        def work(k):
            rng = np.random.default_rng(k)
            for _ in range(10):
                rows = torch.from_numpy(rng.choice(30, size=3, replace=False))
                try:
                    out = paid(pool[rows])
                    assert torch.equal(out, Counting()(pool[rows]))
                except BudgetError as error:
                    errors.append(error)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors
        assert encoder.n_images == len(set(encoder.sent)) == paid.n_sent <= 20


def test_errors_give_back_what_was_not_billed_and_keep_the_rest():
    encoder = Counting()
    with PaidEmbedder(encoder, budget=10) as paid:
        encoder.fault = ServerError("500", status=500)
        with pytest.raises(ServerError):
            paid(draw(3))
        assert (paid.n_sent, paid.left) == (0, 10)
        encoder.fault = ServerError("timeout", maybe_billed=True)
        with pytest.raises(ServerError):
            paid(draw(3))
        assert (paid.n_sent, paid.left) == (3, 7)
        encoder.fault = None
        paid(draw(3))
        assert (paid.n_sent, paid.left) == (6, 4)


def test_one_failed_request_of_many_loses_no_answer():
    class Second(Counting):
        def __call__(self, images):
            if float(images[0, 0, 0, 0]) == 0:
                raise ServerError("refused", status=500)
            return super().__call__(images)

    encoder = Second(delay=0.02)
    batches = [draw(2, 1), torch.zeros(1, 3, 4, 4), draw(2, 2)]
    with PaidEmbedder(encoder, concurrency=3) as paid:
        with pytest.raises(ServerError, match="refused"):
            paid.many(batches)
        n = encoder.n_images
        assert paid.n_sent == n
        paid.many([batches[0], batches[2]])
        assert encoder.n_images == 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_embeddings_that_are_not_finite_are_not_kept(bad):
    class Bad(Counting):
        def __call__(self, images):
            out = super().__call__(images)
            out[1:, 0] = bad
            return out

    with PaidEmbedder(Bad()) as paid:
        with pytest.raises(RunError, match="2 of 3 embeddings are not finite"):
            paid(draw(3))
        assert paid.n_sent == 3
        assert paid(draw(3)[:1]).shape == (1, 3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_a_search_is_given_what_is_not_finite_and_pays_for_it_once(bad, tmp_path):
    class Bad(Counting):
        def __call__(self, images):
            out = super().__call__(images)
            out[1:2, 0] = bad
            return out

    images, encoder = draw(5), Bad()
    for n_sent in (5, 5):
        with PaidEmbedder(encoder, tmp_path, budget=5) as paid:
            first, second = paid.many_as_answered([images[:3], images[2:]])
            assert torch.isfinite(first).all(dim=1).tolist() == [True, False, True]
            assert torch.isfinite(second).all(dim=1).tolist() == [True, True, False]
            assert (encoder.n_images, paid.n_sent, paid.n_answers) == (n_sent, 5, 5)
    with PaidEmbedder(encoder, tmp_path, budget=5) as paid:
        with pytest.raises(RunError, match=r"1 of 3 embeddings are not finite.*delete .* to ask and pay again"):
            paid(images[:3])
        assert paid(images[2:3]).shape == (1, 3)
        assert encoder.n_images == 5


class Billed(Counting):
    """The server's bill is a file with one line an image, written before the answer goes back."""

    def __init__(self, path):
        super().__init__()
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __call__(self, images):
        os.write(self.file, b"".join(image.numpy().tobytes().hex().encode() + b"\n" for image in images))
        time.sleep(0.01)
        return super().__call__(images)


def spend(log, bill):
    """Embed 120 images, four a request, two requests at once."""
    with PaidEmbedder(Billed(bill), Path(log), budget=1000, concurrency=2) as paid:
        paid.many(list(draw(120).split(4)))


def test_kill_9_pays_for_nothing_twice(tmp_path):
    """A process is killed twice in the middle of its requests: only what was in flight is on the bill twice."""
    images, bill, log = draw(120), tmp_path / "bill", tmp_path / "log"
    kills = 0
    for stop_at in (10, 50):
        child = start_spending(__file__, log, bill)
        while child.poll() is None and (not bill.exists() or bill.read_bytes().count(b"\n") < stop_at):
            time.sleep(0.001)
        child.kill()
        kills += child.wait() == -signal.SIGKILL
    spend(log, bill)
    lines, in_flight = bill.read_text().split(), 2 * 4 * kills
    assert kills == 2
    assert len(set(lines)) == 120
    assert len(lines) <= 120 + in_flight
    with PaidEmbedder(Counting(), log, budget=1000) as paid:
        assert len(lines) <= paid.n_sent <= 120 + in_flight
        assert torch.equal(paid(images), Counting()(images))
        assert paid.embedder.n_images == 0


def test_a_torn_tail_is_dropped_and_never_wrong(tmp_path):
    """The log cut at every length: answers are right or missing, and what is missing is asked for again."""
    images = draw(3)
    expected = Counting()(images)
    with PaidEmbedder(Counting(), tmp_path / "whole") as paid:
        paid(images[:1])
        paid(images[1:])
    whole = (tmp_path / "whole" / "000000.log").read_bytes()
    found = set()
    for length in [*range(0, len(whole), 7), len(whole)]:
        folder = tmp_path / f"cut{length}"
        folder.mkdir()
        (folder / "log.json").write_bytes((tmp_path / "whole" / "log.json").read_bytes())
        (folder / "000000.log").write_bytes(whole[:length])
        encoder = Counting()
        with PaidEmbedder(encoder, folder) as paid:
            assert torch.equal(paid(images), expected)
        found.add(encoder.n_images)
        with PaidEmbedder(Counting(), folder) as paid:
            assert torch.equal(paid(images), expected)
            assert paid.embedder.n_images == 0
    assert found == {0, 1, 2, 3}


def test_a_flipped_byte_costs_at_most_what_it_hit(tmp_path):
    images = draw(3)
    expected = Counting()(images)
    with PaidEmbedder(Counting(), tmp_path) as paid:
        paid(images)
    path = tmp_path / "000000.log"
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= 0x40
        for other in tmp_path.glob("0*.log"):
            other.unlink()
        path.write_bytes(damaged)
        with PaidEmbedder(Counting(), tmp_path) as paid:
            assert torch.equal(paid(images), expected)


def test_a_second_process_is_refused_and_another_encoder_too(tmp_path):
    with PaidEmbedder(Counting(), tmp_path) as paid:
        paid(draw(1))
        with pytest.raises(RunError, match="in use by another process"):
            PaidEmbedder(Counting(), tmp_path)
    other = Counting()
    other.fingerprint = "other"
    with pytest.raises(InputError, match="answers of another encoder"):
        PaidEmbedder(other, tmp_path)
    PaidEmbedder(Counting(), tmp_path).close()


def test_forget_keeps_the_count_and_the_disk_flat(tmp_path):
    sizes = []
    with PaidEmbedder(Counting(), tmp_path, budget=1000) as paid:
        for round_number in range(4):
            paid(draw(50, seed=round_number))
            sizes.append(sum(path.stat().st_size for path in tmp_path.glob("*.log")))
            paid.forget()
        assert (paid.n_sent, paid.n_requests) == (200, 4)
        assert max(sizes) <= sizes[0] + 100
    with PaidEmbedder(Counting(), tmp_path, budget=1000) as paid:
        assert (paid.n_sent, paid.n_requests) == (200, 4)
        paid(draw(50, seed=0))
        assert (paid.n_sent, paid.n_requests) == (250, 5)


def test_segments_roll_over_and_are_all_read(tmp_path, monkeypatch):
    monkeypatch.setattr(paid_log, "SEGMENT_BYTES", 500)
    images = draw(40)
    with PaidEmbedder(Counting(), tmp_path) as paid:
        for i in range(0, 40, 4):
            paid(images[i : i + 4])
    assert len(list(tmp_path.glob("*.log"))) > 2
    with PaidEmbedder(Counting(), tmp_path, budget=40) as paid:
        assert torch.equal(paid(images), Counting()(images))
        assert paid.left == 0


def test_a_full_disk_is_seen_before_paying(tmp_path, monkeypatch):
    encoder = Counting()
    with PaidEmbedder(encoder, tmp_path) as paid:
        usage = paid_log.shutil.disk_usage(tmp_path)
        monkeypatch.setattr(paid_log.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
        with pytest.raises(DiskFullError, match="free"):
            paid(draw(2))
        monkeypatch.undo()
        assert encoder.n_images == 0
        assert (paid.n_sent, paid.left) == (0, None)
        paid(draw(2))


def test_without_a_folder_nothing_stays():
    paid = PaidEmbedder(Counting())
    paid(draw(2))
    folder = Path(paid._temporary.name)
    assert folder.exists()
    del paid
    assert not folder.exists()


def test_the_cache_of_embeddings_takes_it(tmp_path, make_images):
    pixels = np.random.default_rng(0).random((10, 3, 4, 4), dtype=np.float32)
    encoder = Counting()
    with PaidEmbedder(encoder, tmp_path / "log", concurrency=2) as paid:
        cache = EmbeddingCache(tmp_path / "cache")
        first = cache.get(paid, make_images(pixels))
        assert np.array_equal(first, Counting()(torch.from_numpy(pixels)).numpy())
        cache.get(paid, make_images(pixels))
        assert encoder.n_images == 10


@pytest.mark.parametrize("options", [{"budget": -1}, {"price": -1.0}, {"price_per_request": -1.0}, {"concurrency": 0}], ids=str)
def test_settings_that_are_refused(options):
    with pytest.raises(InputError):
        PaidEmbedder(Counting(), **options)


def test_memory_holds_keys_and_no_embeddings(tmp_path):
    """4,000 embeddings of 512 numbers are 8 MB; what stays in memory is a small part of it."""

    class Wide(Counting):
        dim = 512

        def __call__(self, images):
            self.n_images += len(images)
            return images.mean(dim=(1, 2, 3))[:, None].expand(-1, 512)

    with PaidEmbedder(Wide(), tmp_path) as paid:
        paid(draw(200, seed=0))
        tracemalloc.start()
        for seed in range(1, 21):
            paid(draw(200, seed=seed))
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 2e6
        assert sum(path.stat().st_size for path in tmp_path.glob("*.log")) > 8e6
        again = draw(200, seed=7)
        assert torch.equal(paid(again), Wide()(again))
        assert paid.embedder.n_images == 4200
