"""Embeddings of an API in the cache: what was answered is never asked for again, whatever happens to the server or to the process."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from evenhand.errors import DiskFullError, ServerError
from evenhand.models import EmbeddingCache, paid_log
from evenhand.models.remote import RemoteEmbedder
from tests.models import faulty_server as faulty
from tests.models.processes import spend_and_kill

PROBE = 12
"""Images that find out whether the server answers alike: four, three times."""


class Drawn:
    """n random images on the 8-bit grid, by position; ``rows`` makes it a view as a split has one."""

    def __init__(self, n, rows=None):
        self.n, self.rows = n, rows
        levels = torch.randint(0, 256, (self.n, 3, 8, 8), generator=torch.Generator().manual_seed(0))
        self.pixels, self.shape, self.fingerprint = (levels.float() / 255).numpy(), (3, 8, 8), f"drawn {self.n}"
        self.base = self if self.rows is not None else None

    def images(self):
        return Drawn(self.n)

    def __len__(self):
        return self.n if self.rows is None else len(self.rows)

    def batch(self, positions):
        rows = np.arange(self.n) if self.rows is None else self.rows
        return torch.from_numpy(self.pixels[rows[positions]])


@pytest.fixture
def server():
    with faulty.serving() as running:
        yield running


@contextmanager
def connected(server, **options):
    embedder = RemoteEmbedder(server.url, **{"sleep": lambda seconds: None, "timeout": 10.0, "batch_size": 4, **options})
    try:
        yield embedder
    finally:
        embedder.close()


def fill(folder, server, images, **options):
    """The embeddings, and how many images were sent for them."""
    with connected(server, **options) as embedder:
        return EmbeddingCache(folder).get(embedder, images), embedder.n_images


@pytest.mark.parametrize("connections", [1, 3])
def test_a_server_that_dies_keeps_all_that_it_answered(server, tmp_path, connections):
    images = Drawn(40)
    server.faults = [None] * 4 + [None] * 4 + [(400, {})] * connections  # tried out, then four requests of four images
    with pytest.raises(ServerError):
        fill(tmp_path, server, images, connections=connections)
    answered = server.n_images - PROBE
    assert answered >= 4 * 4
    server.faults = []
    found, sent = fill(tmp_path, server, images)
    np.testing.assert_allclose(found, faulty.embed(images.pixels), atol=1e-6)
    assert sent == 40 - answered
    assert not [*tmp_path.rglob("*.answers"), *tmp_path.rglob("*.lock")]
    assert fill(tmp_path, server, images)[1] == 0


def test_answers_to_other_rows_of_a_shard_are_not_lost(server, tmp_path):
    server.faults = [None] * 4 + [None, (400, {})]
    with pytest.raises(ServerError):
        fill(tmp_path, server, Drawn(20, np.arange(12)), connections=1)
    answered = server.n_images - PROBE
    assert 0 < answered < 12
    server.faults = []
    assert fill(tmp_path, server, Drawn(20, np.arange(12, 20)))[1] == 8
    found, sent = fill(tmp_path, server, Drawn(20, np.arange(20)))
    assert sent == 12 - answered
    np.testing.assert_allclose(found, faulty.embed(Drawn(20).pixels), atol=1e-6)


def spend(folder, url):
    """In a process of its own: fill a cache of 200 images, four a request, two requests at once."""
    embedder = RemoteEmbedder(url, batch_size=4, connections=2, timeout=30)
    EmbeddingCache(folder).get(embedder, Drawn(200))
    embedder.close()


def test_kill_9_pays_again_only_for_what_was_under_way(server, tmp_path):
    server.delay, in_flight, tried = 0.01, 2 * 4, PROBE
    for stop_at in (60, 120):
        spend_and_kill(__file__, tmp_path, server.url, server=server, stop_at=stop_at)
    server.delay = 0
    found, _ = fill(tmp_path, server, Drawn(200))
    np.testing.assert_allclose(found, faulty.embed(Drawn(200).pixels), atol=1e-6)
    assert 200 + tried <= server.n_images <= 200 + tried + 2 * in_flight


def test_two_runs_that_want_the_same_embeddings_pay_once(server, tmp_path):
    server.delay, results = 0.005, []
    assert fill(tmp_path, server, Drawn(40, np.arange(1)))[1] == 1 + 3

    def work():
        results.append(fill(tmp_path, server, Drawn(40)))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sent for _, sent in results) == [0, 0, 39]
    assert all(np.array_equal(found, results[0][0]) for found, _ in results)


def test_a_full_disk_is_found_before_anything_is_paid_for(server, tmp_path, monkeypatch):
    fill(tmp_path, server, Drawn(40, np.arange(1)))
    before = server.n_images
    monkeypatch.setattr(paid_log.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    with pytest.raises(DiskFullError, match="39 images"):
        fill(tmp_path, server, Drawn(40))
    assert server.n_images == before
