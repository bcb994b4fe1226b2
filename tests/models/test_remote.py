"""RemoteEmbedder against a server that misbehaves on command: every fault ends in a recovery or in one clear error."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pytest
import torch
import trustme

from evenhand.config import compose
from evenhand.config.schema import ModelConfig
from evenhand.errors import BudgetError, InputError, RunError, ServerError
from evenhand.models import EmbeddingCache, PaidEmbedder
from evenhand.models.conformance import EmbedderConformance
from evenhand.models.connection import Connection
from evenhand.models.remote import RemoteEmbedder
from tests.models import faulty_server as faulty
from tests.models.processes import spend_and_kill


@pytest.fixture
def server():
    with faulty.serving() as running:
        yield running


@pytest.fixture
def sleeps():
    return []


@pytest.fixture
def connect(server, sleeps):
    """Function: options -> an embedder on the server that notes its waiting instead of doing it."""
    made = []

    def make(**options):
        made.append(RemoteEmbedder(options.pop("url", server.url), **{"sleep": sleeps.append, "timeout": 10.0, **options}))
        return made[-1]

    yield make
    for embedder in made:
        embedder.close()


def draw(n, size=8, channels=3, seed=0):
    """Images on the 8-bit grid."""
    levels = torch.randint(0, 256, (n, channels, size, size), generator=torch.Generator().manual_seed(seed))
    return levels.float() / 255


def right(images):
    return torch.from_numpy(faulty.embed(images.numpy()))


def close(out, images):
    return torch.allclose(out, right(images), atol=1e-6)


class TestConformance(EmbedderConformance):
    @pytest.fixture(autouse=True)
    def _server(self, connect):
        self.connect = connect

    def make_embedder(self):
        return self.connect()


@pytest.mark.parametrize("api_format", ["binary", "json", "binary_uint8", "json_uint8", "png"])
def test_every_lossless_format_gives_the_same_embeddings(connect, server, api_format):
    embedder = connect(api_format=api_format)
    images = draw(3)
    assert close(embedder(images), images)
    assert np.allclose(server.images[-1], images.numpy(), atol=1e-7)
    assert embedder.levels == (None if api_format in ("binary", "json") else 256)
    assert (embedder.n_images, embedder.notes) == (3, [])


def test_jpeg_is_lossy_and_says_so(connect, server):
    embedder = connect(api_format="jpeg")
    images = draw(2)
    out = embedder(images)
    assert embedder.levels == 256
    assert "loss" in embedder.notes[0]
    assert not np.allclose(server.images[-1], images.numpy(), atol=1e-3)
    assert torch.allclose(out, right(images), atol=0.1)


@pytest.mark.parametrize("api_format", ["binary_uint8", "png"])
@pytest.mark.parametrize("bad", ["between", "above", "below"])
def test_images_off_the_8_bit_grid_are_never_rounded_silently(connect, server, api_format, bad):
    images = draw(2)
    images[0, 0, 0, 0] = {"between": 100.4 / 255, "above": 256 / 255, "below": -1 / 255}[bad]
    with pytest.raises(InputError, match=r"rounding=8bit"):
        connect(api_format=api_format)(images)
    assert server.n_images == 0
    lossy = connect(api_format=api_format, lossy=True)
    lossy(images)
    assert server.images[-1][0, 0, 0, 0] == pytest.approx({"between": 100 / 255, "above": 1, "below": 0}[bad])
    assert lossy.notes


@pytest.mark.parametrize("api_format", ["binary_uint8", "json_uint8", "png"])
def test_16_bit_values_need_the_option_that_the_refusal_names(server, api_format):
    levels = torch.randint(0, 65536, (3, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    images = levels.float() / 65535
    rounded = (images * 255).round() / 255
    words = ["data.path=d", f"model={server.url}", f"model.api_format={api_format}"]
    strict = RemoteEmbedder.from_config(compose("train", words).model)
    with pytest.raises(InputError, match=r"model\.api_lossy=true"):
        strict(images)
    assert (server.n_images, strict.notes) == (0, [])
    lossy = RemoteEmbedder.from_config(compose("train", [*words, "model.api_lossy=true"]).model)
    out = lossy(images)
    assert close(out, rounded)
    assert torch.equal(out, strict(rounded))
    assert not close(out, images)
    assert "loss" in lossy.notes[0]
    assert lossy.describe() != strict.describe(), "no cache gives the answers of rounded images to who did not ask for rounding"
    for embedder in (strict, lossy):
        embedder.close()


def test_rounding_is_part_of_what_an_encoder_is_only_where_it_happens(connect):
    assert connect(lossy=True).describe() == connect().describe()
    assert connect(lossy=True).notes == []


def test_metadata_say_size_channels_width_and_limits(connect, server):
    embedder = connect()
    assert (embedder.input_size, embedder.channels, embedder.dim, embedder.n_images) == ((8, 8), 3, 3, 0)
    embedder(draw(20))
    assert [len(images) for images in server.images] == [8, 8, 4]
    server.metadata = faulty.metadata(shape=(-1, 8, 8, 1), parameters={"max_batch": None})
    last = connect()
    assert (last.input_size, last.channels) == ((8, 8), 1)
    server.embed = lambda images: faulty.embed(np.moveaxis(images, -1, 1))
    grey = draw(2, channels=1)
    assert close(last(grey), grey)
    assert server.images[-1].shape == (2, 8, 8, 1)


def test_a_server_that_takes_any_size_and_does_not_say_its_width(connect, server):
    server.metadata = faulty.metadata(shape=(-1, -1, -1, -1), dim=-1)
    embedder = connect(batch_size=2)
    images = draw(3, size=12)
    assert close(embedder(images), images)
    assert [images.shape for images in server.images] == [(2, 3, 12, 12), (1, 3, 12, 12)]
    assert (embedder.dim, embedder.n_images) == (3, 3)
    other = connect(input_size=(6, 6))
    other(images)
    assert server.images[-1].shape[2:] == (6, 6)


def test_normalisation_only_where_asked_for(connect, server):
    images = draw(2)
    connect(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))(images)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1)))
    assert np.allclose(server.images[-1], ((images - mean) / std).numpy(), atol=1e-5)
    with pytest.raises(InputError, match=r"model\.mean"):
        connect(mean=(0.5,) * 3, api_format="png")


@pytest.mark.parametrize(
    ("metadata", "options", "text"),
    [
        ({"parameters": {"datatypes": ["FP32"]}}, {"api_format": "png"}, "api_format to one of binary, json"),
        ({"datatype": "INT64", "parameters": {"datatypes": None}}, {}, "this client cannot send that"),
        ({"shape": (-1, 10)}, {}, "images are"),
        ({}, {"input_size": (9, 9)}, "leave it out"),
    ],
    ids=["format", "datatype", "shape", "size"],
)
def test_models_that_cannot_be_used_are_refused_at_the_start(connect, server, metadata, options, text):
    server.metadata = faulty.metadata(**metadata)
    with pytest.raises(InputError, match=text):
        connect(**options)


@pytest.mark.parametrize(
    "images", [draw(2)[0], draw(2) * float("nan"), draw(2).long(), draw(2, channels=2)], ids=["3d", "nan", "int", "2c"]
)
def test_images_that_cannot_be_sent_are_refused(connect, server, images):
    with pytest.raises(InputError):
        connect()(images)
    assert server.n_images == 0
    with pytest.raises(InputError, match="prepare them in that size"):
        connect(api_format="png")(draw(1, size=9))


def test_too_large_requests_are_halved(connect, server):
    server.metadata, server.max_batch = faulty.metadata(parameters={"max_batch": None}), 5
    embedder = connect()
    images = draw(16)
    assert close(embedder(images), images)
    assert [len(images) for images in server.images] == [4, 4, 4, 4]
    assert embedder.n_images == 16


def test_server_down_at_the_start(connect, sleeps):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ServerError, match="check that the server runs") as caught:
        connect(url=f"http://127.0.0.1:{port}", api_model="net")
    assert caught.value.exit_code == 4
    assert sleeps == []


def test_a_name_that_is_not_known(connect, monkeypatch):
    def unknown(*arguments, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ServerError, match=r"the name in http://nowhere\.test is not known"):
        connect(url="http://nowhere.test", api_model="net")


def test_a_lost_connection_recovers(connect, server, sleeps):
    embedder = connect()
    server.faults = ["reset", None, "reset", "reset"]
    images = draw(4)
    assert close(embedder(images), images)
    assert close(embedder(images), images)
    assert (embedder.n_retries, embedder.n_images, len(sleeps)) == (3, 8, 3)


def test_a_server_that_stays_away_ends_in_an_error_and_what_was_answered_counts(connect, server, sleeps):
    embedder = connect(retries=3)
    server.faults = [None]
    server.always = "reset"
    with pytest.raises(ServerError, match=r"was lost.*kept") as caught:
        embedder(draw(12))
    assert caught.value.maybe_billed
    assert (embedder.n_images, len(sleeps)) == (8, 3)


def test_a_server_that_is_restarted_in_the_middle(connect):
    """It goes away entirely and comes back on the same port while the client waits."""
    with faulty.serving() as first:
        port, restarted, waited = first.server_address[1], [], []

        def sleep(seconds):
            waited.append(seconds)
            if len(waited) == 2:
                context = faulty.serving(port=port)
                restarted.append((context, context.__enter__()))

        embedder = connect(url=first.url, sleep=sleep)
        embedder(draw(2))
    images = draw(3, seed=1)
    try:
        assert close(embedder(images), images)
        assert len(waited) == 2
        assert restarted[0][1].n_images == 3
    finally:
        restarted[0][0].__exit__(None, None, None)


@pytest.mark.parametrize("fault", ["slow", "drip"])
def test_a_slow_server_times_out(connect, server, sleeps, fault):
    embedder = connect(timeout=0.4, retries=1)
    server.faults = [fault]
    images = draw(2)
    assert close(embedder(images), images)
    assert len(sleeps) == 1
    server.always = fault
    with pytest.raises(ServerError, match=r"within 0\.4 s") as caught:
        embedder(images)
    assert caught.value.maybe_billed


def test_429_waits_as_told(connect, server, sleeps):
    embedder = connect(retries=4)
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    server.faults = [(429, {"Retry-After": text}) for text in ("7", soon, "1000000", "soon")]
    images = draw(2)
    assert close(embedder(images), images)
    assert 7 <= sleeps[0] <= 8
    assert 50 < sleeps[1] <= 101
    assert 300 <= sleeps[2] <= 301
    assert 0 <= sleeps[3] <= 4
    server.always = (429, {})
    with pytest.raises(ServerError, match="429") as caught:
        embedder(images)
    assert (caught.value.status, caught.value.maybe_billed) == (429, False)


def test_bursts_of_5xx_are_sat_out_with_growing_jittered_waits(connect, server, sleeps):
    embedder = connect(retries=9)
    server.faults = [(500, {}), (503, {}), (502, {}), (504, {})] * 2
    images = draw(2)
    assert close(embedder(images), images)
    assert all(0 <= wait <= min(30, 0.5 * 2**k) for k, wait in enumerate(sleeps))
    assert len({round(wait, 6) for wait in sleeps}) == 8
    server.always, server.faults = (500, {}), []
    before = embedder.n_requests
    with pytest.raises(ServerError, match=r"500.*as the test wants it"):
        embedder(images)
    assert embedder.n_requests - before == 10


@pytest.mark.parametrize("status", [400, 402, 404, 409, 422])
def test_no_other_4xx_is_repeated(connect, server, sleeps, status):
    embedder = connect()
    server.always = (status, {})
    before = embedder.n_requests
    with pytest.raises(ServerError) as caught:
        embedder(draw(1))
    assert (caught.value.status, embedder.n_requests - before, sleeps) == (status, 1, [])


def test_redirects_are_not_followed(connect, server):
    embedder = connect()
    server.always = (302, {"Location": "http://elsewhere.test/"})
    with pytest.raises(ServerError, match="redirects are not followed"):
        embedder(draw(1))


def test_truncated_bodies(connect, server):
    embedder = connect(retries=2)
    server.faults = ["truncated"]
    images = draw(2)
    assert close(embedder(images), images)
    server.always = "truncated"
    with pytest.raises(ServerError, match="was lost"):
        embedder(images)


def test_pages_that_are_not_answers(connect, server):
    embedder = connect()
    server.always = "html"
    before = embedder.n_requests
    with pytest.raises(ServerError, match="cannot be read"):
        embedder(draw(1))
    assert embedder.n_requests - before == 2


def with_nan(rows):
    rows = rows.copy()
    rows[1, 2] = np.nan
    return rows


WRONG = {
    "width": (lambda rows: rows[:, :2], "2 numbers, but 3 were expected"), "count": (lambda rows: rows[:-1], "answered 4 images with"),
    "flat": (lambda rows: rows[:, 0], "answered 4 images with"), "nan": (with_nan, "1 of 4 embeddings"),
    "inf": (lambda rows: rows / np.float32(0), "4 of 4 embeddings"), "overflow": (lambda rows: rows.astype(np.float64) * 1e300, "4 of 4"),
    "text": (lambda rows: np.array([[b"a"]] * 4, dtype=object), "object of shape"), "version": ("version 2", "answered with version 2"),
}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize(("fault", "text"), WRONG.values(), ids=WRONG.keys())
def test_wrong_answers_are_refused_and_not_repeated(connect, server, fault, text):
    embedder = connect()
    server.faults = [fault]
    before = embedder.n_requests
    with pytest.raises(ServerError, match=text) as caught:
        embedder(draw(4))
    assert caught.value.maybe_billed
    assert (embedder.n_requests - before, embedder.n_images) == (1, 0)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_are_taken(connect, server, dtype):
    server.embed = lambda images: faulty.embed(images).astype(dtype)
    images = draw(2)
    assert torch.allclose(connect()(images), right(images), atol=1e-3)


def test_embeddings_that_change_between_calls(connect, server, make_images):
    images = make_images(draw(9).numpy())
    embedder = connect()
    assert embedder.settle(images) == "fp32"
    assert (embedder.notes, embedder.n_images) == ([], embedder.n_settle_images)
    embedder.settle(images)
    assert embedder.n_images == 12

    rng = np.random.default_rng(0)
    server.embed = lambda images: faulty.embed(images) * (1 + 1e-3 * rng.standard_normal((len(images), 1)).astype(np.float32))
    noisy = connect()
    noisy.settle(images)
    assert "other embeddings for the same images" in noisy.notes[0]
    server.embed = lambda images: faulty.embed(images) * (1 + rng.random((len(images), 1)).astype(np.float32))
    with pytest.raises(RunError, match=r"deterministic service, .* model\.api_allow_changes=true"):
        connect().settle(images)
    config = compose("train", ["data.path=d", f"model={server.url}", "model.api_allow_changes=true"]).model
    willing = RemoteEmbedder.from_config(config)
    assert willing.settle(images) == "fp32"
    assert "other embeddings for the same images" in willing.notes[0]
    willing.close()

    server.embed = lambda images: faulty.embed(images) - 1e-3 * faulty.embed(images).mean(axis=0)
    found = connect().probe_determinism(draw(4))
    assert found.repeated == 0
    assert found.recomposed > 1e-5
    assert found.largest == found.recomposed


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def test_certificates(authority, tmp_path, sleeps, connect):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    with faulty.serving(context) as secure:
        embedder = connect(url=secure.url, ca_file=str(ca_file))
        images = draw(2)
        assert close(embedder(images), images)
        for wrong in (None, str(other)):
            with pytest.raises(ServerError, match=r"certificate of https://localhost.* is not trusted.*model\.ca_file"):
                connect(url=secure.url, ca_file=wrong)
        with pytest.raises(ServerError, match="is not trusted"):
            connect(url=secure.url.replace("localhost", "127.0.0.1"), ca_file=str(ca_file))
    assert sleeps == []


def test_https_to_a_server_without_it(connect, server):
    with pytest.raises(ServerError, match="check that the server speaks https"):
        connect(url=server.url.replace("http", "https"))


@pytest.mark.parametrize("content", [None, "no certificate"], ids=["absent", "empty"])
def test_a_certificate_file_that_cannot_be_used(tmp_path, content):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"model\.ca_file"):
        Connection("https://localhost", ca_file=str(path))


def test_the_token_is_sent_and_never_shown(connect, server, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    server.token = "right-secret"
    monkeypatch.delenv("EVENHAND_TOKEN", raising=False)
    with pytest.raises(ServerError, match="set the token in the environment variable EVENHAND_TOKEN"):
        connect()
    monkeypatch.setenv("EVENHAND_TOKEN", "wrong-secret")
    with pytest.raises(ServerError, match="EVENHAND_TOKEN was not accepted") as caught:
        connect()
    assert caught.value.status == 401
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("EVENHAND_TOKEN", "right-secret\n")
    embedder = connect()
    embedder(draw(1))
    server.token = "another"
    with pytest.raises(ServerError) as caught:
        embedder(draw(1))
    shown = [repr(embedder), repr(embedder.connection), str(embedder.describe()), str(caught.value), repr(caught.value), caplog.text]
    assert not [text for text in shown if "right-secret" in text]


def test_a_token_without_encryption_is_warned_about(monkeypatch, caplog):
    monkeypatch.setenv("EVENHAND_TOKEN", "secret")
    Connection("http://127.0.0.1:1").close()
    Connection("https://far.test").close()
    assert not caplog.records
    Connection("http://far.test").close()
    assert "without encryption" in caplog.text
    assert "secret" not in caplog.text
    monkeypatch.setenv("EVENHAND_TOKEN", "two words")
    with pytest.raises(InputError) as caught:
        Connection("https://far.test")
    assert "two words" not in str(caught.value)


def test_models_by_name(connect, server):
    assert connect(api_model="net", api_version="1")(draw(1)).shape == (1, 3)
    assert "/v2/models/net/versions/1/infer" in server.seen
    with pytest.raises(ServerError, match=r"no model 'other': it has net; set model\.api_model"):
        connect(api_model="other")
    server.models = ["a", "b"]
    with pytest.raises(InputError, match=r"2 models \(a, b\); choose one"):
        connect()
    server.models = None
    with pytest.raises(InputError, match="does not say which models"):
        connect()
    with pytest.raises(ServerError, match="does not say which models"):
        connect(api_model="other")
    server.models = 501
    with pytest.raises(InputError, match="does not say which models"):
        connect()


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_server_that_is_unwell_is_not_said_to_have_no_list_of_models(connect, server, status):
    server.models = status
    with pytest.raises(ServerError, match=f"answered {status}"):
        connect()


@pytest.mark.parametrize(
    "url", ["localhost:80", "ftp://a", "https://", "http://a:99999", "https://u:p@a", "https://a/?key=1", ""],
    ids=["scheme", "ftp", "host", "port", "user", "query", "empty"],
)
def test_addresses_that_are_refused(url):
    with pytest.raises(InputError, match=r"model\.url") as caught:
        Connection(url)
    assert "u:p" not in str(caught.value)


def test_threads_share_one_pool_of_connections(connect, server):
    server.expected = 2
    embedder = connect(connections=2)
    results = {}

    def work(k):
        images = draw(3, seed=k)
        results[k] = all(close(embedder(images), images) for _ in range(3))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(6), True)
    assert server.most_at_once == 2
    assert (embedder.n_images, embedder.n_requests) == (54, 2 + 18)


def test_the_cache_of_embeddings_takes_it(connect, server, make_images, tmp_path):
    images = make_images(draw(30).numpy())
    embedder = connect(batch_size=4, connections=3)

    def embed(sent):
        if server.n_images == 12:  # the server was tried out; what follows is sent by all connections
            server.gathered.clear()
            server.expected = 3
        return faulty.embed(sent)

    server.embed = embed
    cache = EmbeddingCache(tmp_path)
    assert np.allclose(cache.get(embedder, images), faulty.embed(images.pixels), atol=1e-6)
    assert server.most_at_once == 3
    again = connect(batch_size=4)
    cache.get(again, images)
    assert (again.n_images, again.settled) == (0, "fp32")
    assert embedder.n_images == 30 + 12


def test_what_a_server_was_found_to_do_is_said_by_every_run_on_its_embeddings(connect, server, make_images, tmp_path):
    rng = np.random.default_rng(0)
    server.embed = lambda images: faulty.embed(images) * (1 + 1e-3 * rng.standard_normal((len(images), 1)).astype(np.float32))
    images = make_images(draw(9).numpy())
    first, second = connect(), connect()
    EmbeddingCache(tmp_path).get(first, images)
    EmbeddingCache(tmp_path).get(second, images)
    assert "other embeddings for the same images" in first.notes[0]
    assert second.notes == first.notes
    assert second.n_images == 0


def test_the_fingerprint_is_the_model_not_the_address(connect, server):
    first = connect().fingerprint
    with faulty.serving() as other:
        assert connect(url=other.url).fingerprint == first
        other.metadata["parameters"]["max_batch"] = 4
        assert connect(url=other.url).fingerprint == first
        other.metadata["parameters"]["fingerprint"] = "abc"
        assert connect(url=other.url).fingerprint != first
        other.metadata["versions"] = ["2", "10"]
        assert connect(url=other.url).api.facts.version == "10"


def test_from_configuration(server):
    config = ModelConfig(url=server.url, api_format="png", connections=2, embed_batch_size=5, retries=1)
    embedder = RemoteEmbedder.from_config(config)
    assert (embedder.connections, embedder.batch_size, embedder.levels, embedder.connection.retries) == (2, 5, 256, 1)
    embedder.close()
    with pytest.raises(InputError, match="url"):
        RemoteEmbedder.from_config(ModelConfig())


def test_repeats_that_may_be_billed_count_against_the_budget(connect, server, tmp_path):
    server.faults = ["truncated", (503, {}), "reset"]
    embedder, images = connect(), draw(4)
    with PaidEmbedder(embedder, tmp_path, budget=12) as paid:
        assert close(paid(images), images)
        assert (paid.n_sent, embedder.n_images) == (12, 4)
        assert (paid.n_requests, embedder.n_answered) == (3, 1), "503 is not billed"
        server.always = "reset"
        with pytest.raises(BudgetError):
            paid(draw(4, seed=1))
    with PaidEmbedder(embedder, tmp_path, budget=18) as paid:
        with pytest.raises(BudgetError):
            paid(draw(4, seed=1))
        assert paid.left == 2


def test_answers_before_a_fault_are_kept(connect, server, tmp_path):
    """Twenty images are three requests; the third fails, and only it is sent again."""
    images = draw(20)
    embedder = connect()
    with PaidEmbedder(embedder, tmp_path, budget=20, concurrency=2) as paid:
        server.faults = [None, None, (400, {})]
        with pytest.raises(ServerError):
            paid(images)
        assert (server.n_images, paid.n_sent, paid.n_requests) == (16, 16, 2)
        assert close(paid(images), images)
        assert (server.n_images, paid.n_sent, paid.left) == (20, 20, 0)
        assert (paid.n_requests, len(server.images)) == (3, 3)
    with PaidEmbedder(embedder, tmp_path, price=100.0, price_per_request=0.5) as paid:
        assert paid.cost == pytest.approx(20 * 0.1 + 3 * 0.5)


def test_a_request_that_is_lost_or_refused_after_others_is_counted_where_it_may_be_billed(connect, server, make_images):
    embedder = connect(retries=0)
    for fault, requests in (("reset", 3), ((400, {}), 2)):
        server.faults = [None, None, fault]
        with PaidEmbedder(embedder) as paid:
            with pytest.raises(ServerError):
                paid(draw(20))
            assert paid.n_requests == requests
            server.faults = [fault]
            with pytest.raises(ServerError):
                paid(draw(2, seed=1))
            assert paid.n_requests == requests + (fault == "reset")
            before = paid.n_requests
            paid.settle(make_images(draw(4, seed=2).numpy()))
            assert paid.n_requests == before + 4, "two equal requests, and one in two halves"
        embedder.settled = None


def test_a_search_pays_once_for_an_answer_that_is_not_finite(connect, server, tmp_path):
    """Twenty images are three requests of at most 8: the second answer has a NaN, so it and what follows have no answer."""
    images, embedder = draw(20), connect()

    def sick(values):
        rows = faulty.embed(values)
        rows[(values[:, 0, 0, 0] == images[9, 0, 0, 0].numpy())] = np.nan
        return rows

    server.embed = sick
    with PaidEmbedder(embedder, tmp_path, budget=24, concurrency=2) as paid:
        out, other = paid.many_as_answered([images, draw(4, seed=1)])
        assert torch.isfinite(out).all(dim=1).tolist() == [True] * 8 + [False] * 12
        assert close(out[:8], images[:8])
        assert close(other, draw(4, seed=1))
        assert (server.n_images, paid.n_sent, paid.n_answers, paid.left) == (20, 24, 24, 0)
        assert paid.n_requests == len(server.images) == 3
    with PaidEmbedder(embedder, tmp_path, budget=24) as paid:
        assert torch.equal(paid.many_as_answered([images])[0].isnan(), out.isnan())
        assert (server.n_images, paid.n_sent) == (20, 24)
        with pytest.raises(RunError, match="12 of 20 embeddings are not finite"):
            paid(images)
    with PaidEmbedder(embedder, tmp_path / "strict", budget=24) as paid, pytest.raises(ServerError, match="1 of 8 embeddings"):
        paid(images)


def spend(url, folder):
    """Embed 120 images, four a request, two requests at once."""
    embedder = RemoteEmbedder(url, batch_size=4, connections=2)
    with PaidEmbedder(embedder, Path(folder), budget=1000, concurrency=2) as paid:
        out = torch.cat(paid.many(list(draw(120).split(4))))
    embedder.close()
    return out, paid


def test_kill_9_against_a_server_that_counts(server, tmp_path):
    """Two processes are killed while requests are on their way; the third ends, and the server saw only those requests twice."""
    images, server.delay = draw(120), 0.01
    for stop_at in (10, 50):
        spend_and_kill(__file__, server.url, tmp_path, server=server, stop_at=stop_at)
    out, paid = spend(server.url, tmp_path)
    assert close(out, images)
    seen = {image.tobytes() for batch in server.images for image in batch}
    assert len(seen) == 120
    assert server.n_images <= 120 + 2 * 2 * 4
    assert paid.n_sent >= server.n_images
    assert paid.n_requests >= len(server.images)
