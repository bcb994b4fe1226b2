"""The proxy: what arrives upstream is edited as it would be here, and nothing else is changed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
import tritonclient.http as triton
from PIL import Image

from evenhand.config.editing import EditMethodConfig
from evenhand.edits import StoredEdit, build_edit, load_edit, save_edit
from evenhand.errors import InputError
from evenhand.models import LocalEmbedder
from evenhand.models.protocol import REPOSITORY_INDEX, ModelMetadata, decode_request, files_array, read_header_length
from evenhand.models.remote import RemoteEmbedder
from evenhand.serve.app import EmbeddingApp
from evenhand.serve.fingerprints import made_for_another
from evenhand.serve.images import Grid
from evenhand.serve.limits import Limits
from evenhand.serve.proxy import ProxyApp
from evenhand.serve.run import serving

from .conftest import GRID, NAME, Small, call, embeddings, images_of, infer, png, refusal, served_embedder


def make_edit(
    path: Path, grid: tuple[int, int, int] = GRID.shape, family: str = "tone", l2: float | None = None, **facts: Any
) -> StoredEdit:
    """An edit that changes what it sees, from a file."""
    edit = build_edit(EditMethodConfig(name="dne", family=[family], l2=l2), grid)
    step = edit.natural_steps() * torch.randn(edit.n_parameters, generator=torch.Generator().manual_seed(1))
    edit.load_vector(edit.vector() + 3 * step)
    path.write_bytes(save_edit(edit, facts))
    return load_edit(path)


@pytest.fixture
def stored(tmp_path: Path) -> StoredEdit:
    return make_edit(tmp_path / "edit.safetensors")


class Upstream(httpx2.AsyncBaseTransport):
    """A server behind ASGI that keeps what it was sent, and can be made to fail."""

    def __init__(self, app: Any) -> None:
        self.inner = httpx2.ASGITransport(app.gate)
        self.seen: list[httpx2.Request] = []
        self.error: Exception | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.seen.append(request)
        if self.error is not None:
            raise self.error
        return await self.inner.handle_async_request(request)

    def tensor(self) -> Any:
        """The images of the last request."""
        request = self.seen[-1]
        length = read_header_length(request.headers.get("Inference-Header-Content-Length"), len(request.content))
        return decode_request(request.content, length).inputs[0].data


@pytest.fixture
def make_proxy(make_app: Callable[..., EmbeddingApp], stored: StoredEdit) -> Iterator[Callable[..., tuple[ProxyApp, Upstream]]]:
    """Function: the upstream's limits, the proxy's options -> the proxy and its upstream."""
    made: list[ProxyApp] = []

    def make(upstream: dict[str, Any] | None = None, edit: StoredEdit | None = None, **options: Any) -> tuple[ProxyApp, Upstream]:
        transport = Upstream(make_app(**(upstream or {})))
        limits = Limits(**{key: options.pop(key) for key in list(options) if key in Limits.__dataclass_fields__ and key != "token"})
        made.append(ProxyApp(edit or stored, "http://upstream", limits, transport=transport, **options))
        return made[-1], transport

    yield make
    for proxy in made:
        proxy.close()


def edited(stored: StoredEdit, images: Any) -> Any:
    with torch.inference_mode():
        return stored.edit(torch.from_numpy(images)).numpy()


def test_every_kind_of_tensor_arrives_edited_in_its_kind(make_proxy: Any, stored: StoredEdit, small: Small) -> None:
    proxy, upstream = make_proxy()
    levels = np.random.default_rng(0).integers(0, 256, (2, *GRID.shape), dtype=np.uint8)
    wanted = edited(stored, levels.astype(np.float32) / 255)
    grid = np.rint(wanted * 255) / 255
    assert np.abs(wanted - levels / 255).max() > 2 / 255, "the edit does something"
    files = files_array([png(image.transpose(1, 2, 0)) for image in levels])
    for binary in (True, False):
        answers = call(proxy, *(infer(sent, binary=binary) for sent in (levels.astype(np.float32) / 255, levels, files)))
        for answer, expected in zip(answers, (wanted, grid, grid), strict=True):
            np.testing.assert_allclose(embeddings(answer), small.embed(expected.astype(np.float32)), rtol=1e-5, atol=1e-5)
    assert upstream.tensor().dtype == object
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(upstream.tensor()[0]))).transpose(2, 0, 1), np.rint(wanted[0] * 255))


def test_a_jpeg_arrives_as_png_and_grey_16_bit_stays_deep(make_proxy: Any, tmp_path: Path, stored: StoredEdit) -> None:
    proxy, upstream = make_proxy()
    photograph = png(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8), "JPEG")
    decoded = np.asarray(Image.open(BytesIO(photograph))).transpose(2, 0, 1)[None].astype(np.float32) / 255
    call(proxy, infer(files_array([photograph])))
    arrived = Image.open(BytesIO(upstream.tensor()[0]))
    assert arrived.format == "PNG"
    np.testing.assert_array_equal(np.asarray(arrived).transpose(2, 0, 1), np.rint(edited(stored, decoded)[0] * 255))

    grey = make_edit(tmp_path / "grey.safetensors", (1, 8, 8))
    proxy, upstream = make_proxy(edit=grey)
    film = np.random.default_rng(0).integers(0, 65536, (8, 8), dtype=np.uint16)
    call(proxy, infer(files_array([png(film)])))
    arrived = np.asarray(Image.open(BytesIO(upstream.tensor()[0])))
    wanted = edited(grey, (film / np.float32(65535))[None, None].astype(np.float32))[0, 0]
    np.testing.assert_allclose(arrived, np.rint(wanted * 65535), atol=1)


def test_through_the_proxy_is_edit_and_embed_here(embedder: LocalEmbedder, tmp_path: Path) -> None:
    model = served_embedder(embedder)
    stored = make_edit(tmp_path / "edit.safetensors", model.grid.shape, "spectral", encoder=embedder.fingerprint)
    server = EmbeddingApp(model, Limits())
    images = images_of(4, 0, model.grid)
    with serving(server.gate) as upstream:
        proxy = ProxyApp(stored, upstream + "/v2/", Limits())
        asyncio.run(proxy.check_upstream())
        with serving(proxy.gate) as address:
            client = triton.InferenceServerClient(address.removeprefix("http://"))
            assert client.is_server_ready()
            assert client.is_model_ready("demo")
            assert client.get_model_repository_index()[0]["name"] == "demo"
            said = client.get_model_metadata("demo")
            tensor = triton.InferInput("images", list(images.shape), "FP32")
            tensor.set_data_from_numpy(images)
            got = client.infer("demo", [tensor], request_id="7")
            client.close()
        proxy.close()
    server.close()
    np.testing.assert_allclose(got.as_numpy("embeddings"), model.embed(torch.from_numpy(edited(stored, images))), rtol=1e-4, atol=1e-5)
    assert got.get_response()["id"] == "7"
    assert said["parameters"]["edit"] == stored.fingerprint
    assert said["parameters"]["fingerprint"] not in (embedder.fingerprint, stored.fingerprint)
    assert said["outputs"] == [{"name": "embeddings", "datatype": "FP32", "shape": [-1, 128]}]


@pytest.mark.parametrize("form", ["tensor", "file", "channels"])
def test_images_of_another_grid_are_refused_and_nothing_is_sent(make_proxy: Any, form: str) -> None:
    proxy, upstream = make_proxy()
    sent = {
        "tensor": images_of(1)[:, :, :, :7], "channels": np.zeros((1, 2, 8, 8), np.uint8),
        "file": files_array([png(np.zeros((9, 9), np.uint8))]),
    }[form]
    text = refusal(call(proxy, infer(sent))[0], 400)
    assert "8 x 8" in text
    assert [request.method for request in upstream.seen] == ["GET"]


@pytest.mark.parametrize("family", ["residual", "tone"])
def test_a_grey_edit_in_front_of_a_model_of_three_channels(embedder: LocalEmbedder, tmp_path: Path, family: str) -> None:
    """A client that follows the metadata sends three equal channels, one that does not know them sends one: both are edited as one."""
    model = served_embedder(embedder)
    grid = Grid(1, *embedder.input_size)
    stored = make_edit(tmp_path / "grey.safetensors", grid.shape, family)
    grey = images_of(3, 0, grid)
    there = edited(stored, grey)
    assert np.abs(there - grey).max() > 2 / 255, "the edit does something"
    wanted = model.embed(torch.from_numpy(there).expand(-1, 3, -1, -1).contiguous())
    assert np.abs(wanted - model.embed(torch.from_numpy(grey).expand(-1, 3, -1, -1).contiguous())).max() > 1e-2
    server = EmbeddingApp(model, Limits())
    transport = Upstream(server)
    proxy = ProxyApp(stored, "http://upstream", Limits(), transport=transport)
    asyncio.run(proxy.check_upstream())
    with serving(proxy.gate) as address:
        remote = RemoteEmbedder(address)
        assert remote.channels == 3
        for channels in (1, 3):
            got = remote(torch.from_numpy(grey).expand(-1, channels, -1, -1))
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(transport.tensor(), np.repeat(there, 3, axis=1))
        remote.close()
        _, path, options = infer(grey, "demo")
        np.testing.assert_allclose(embeddings(httpx2.post(address + path, **options)), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(transport.tensor(), np.repeat(there, 3, axis=1), "one channel arrives in the shape of the metadata")
    proxy.close()
    server.close()


@pytest.mark.parametrize("form", ["FP32", "UINT8", "files"])
def test_colour_is_refused_by_a_grey_edit_and_nothing_is_sent(make_proxy: Any, tmp_path: Path, form: str) -> None:
    proxy, upstream = make_proxy(edit=make_edit(tmp_path / "grey.safetensors", (1, 8, 8), "residual"))
    levels = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), dtype=np.uint8).repeat(3, axis=1)
    levels[1, 2, 7, 7] ^= 1
    sent = {
        "FP32": levels.astype(np.float32) / 255, "UINT8": levels,
        "files": files_array([png(levels[0, 0]), *(png(image.transpose(1, 2, 0)) for image in levels[1:])]),
    }[form]
    text = refusal(call(proxy, infer(sent))[0], 400)
    assert "image 2 of 3 is in colour" in text
    assert "1 x 8 x 8" in text
    assert "three equal" in text
    assert {request.method for request in upstream.seen} == {"GET"}


def test_an_edit_for_any_channels_takes_grey_as_one_and_colour_as_three(make_proxy: Any, tmp_path: Path) -> None:
    stored = make_edit(tmp_path / "grey.safetensors", (1, 8, 8), "tone", l2=0.1)
    proxy, upstream = make_proxy(edit=stored)
    levels = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)
    levels[1] = levels[1, :1]
    images = levels.astype(np.float32) / 255
    wanted = edited(stored, images)
    wanted[1] = edited(stored, images[1:2, :1])[0]
    assert np.abs(wanted - edited(stored, images))[1].max() > 1e-3, "an image counts as one, so that its bounds hold for one channel"
    embeddings(call(proxy, infer(images))[0])
    np.testing.assert_allclose(upstream.tensor(), wanted, atol=1e-6)


def test_files_for_a_grey_edit_leave_with_the_channels_they_came_with(make_proxy: Any, tmp_path: Path) -> None:
    stored = make_edit(tmp_path / "grey.safetensors", (1, 8, 8), "residual")
    proxy, upstream = make_proxy(edit=stored)
    rng = np.random.default_rng(0)
    film, small = rng.integers(0, 65536, (8, 8), dtype=np.uint16), rng.integers(0, 256, (8, 8), dtype=np.uint8)
    files = [png(film), png(np.repeat(small[..., None], 3, axis=2)), png(small, "JPEG"), png(small)]
    embeddings(call(proxy, infer(files_array(files)))[0])
    arrived = [Image.open(BytesIO(file)) for file in upstream.tensor()]
    assert [image.mode for image in arrived] == ["I;16", "RGB", "L", "L"]
    deep = edited(stored, (film / np.float32(65535))[None, None])[0, 0]
    np.testing.assert_allclose(np.asarray(arrived[0]), np.rint(deep * 65535), atol=1)
    shallow = np.rint(edited(stored, (small / np.float32(255))[None, None])[0, 0] * 255)
    np.testing.assert_array_equal(np.asarray(arrived[3]), shallow)
    np.testing.assert_array_equal(np.asarray(arrived[1]), np.repeat(shallow[..., None], 3, axis=2))


def test_nothing_passes_unedited(make_proxy: Any) -> None:
    proxy, upstream = make_proxy()
    _, path, options = infer(images_of(1))
    posts = [path.replace("infer", "generate"), "/v2/repository/models/small/unload", "/v2/models/small", "/v2/x", path + "/"]
    for address in [*posts, "/v2/health/ready"]:
        assert call(proxy, ("POST", address, options))[0].status_code in (403, 404, 405)
    for address in ("/v2/../admin", "/v2/%2e%2e/admin", "/v2//x", "/v2/a%5C..%5Cb", "/x"):
        assert call(proxy, ("GET", address, {}))[0].status_code == 404
    two = {"inputs": [{"name": name, "datatype": "UINT8", "shape": [1], "data": [1]} for name in "ab"]}
    refusal(call(proxy, ("POST", path, {"json": two}))[0], 400)
    assert upstream.seen == []


def test_tokens_errors_and_addresses_pass_through(make_proxy: Any) -> None:
    proxy, upstream = make_proxy({"token": "theirs", "max_batch": 2, "rate": 0.001})
    good = {"Authorization": "Bearer theirs"}

    def send(images: Any, headers: dict[str, str], query: str = "") -> Any:
        method, path, options = infer(images)
        return call(proxy, (method, path + query, {**options, "headers": {**options["headers"], **headers}}))[0]

    refusal(send(images_of(1), {}), 401)
    refusal(send(images_of(1), {"Authorization": "Bearer wrong"}), 401)
    assert "may have 2" in refusal(send(images_of(3), good), 413)
    assert send(images_of(2), good, "?a=b").status_code == 200
    assert str(upstream.seen[-1].url) == f"http://upstream/v2/models/{NAME}/infer?a=b"
    answer = send(images_of(2), good)
    refusal(answer, 429)
    assert int(answer.headers["retry-after"]) > 1
    assert call(proxy, ("GET", "/v2", {"headers": good}))[0].json()["name"] == "evenhand"
    assert call(proxy, ("GET", "/v2/models/other", {"headers": good}))[0].status_code == 404


def test_its_own_token_goes_upstream_and_not_the_clients(make_proxy: Any) -> None:
    proxy, upstream = make_proxy({"token": "theirs"}, token="theirs")
    method, path, options = infer(images_of(1))
    options["headers"]["Authorization"] = "Bearer mine"
    assert call(proxy, (method, path, options))[0].status_code == 200
    assert {request.headers["authorization"] for request in upstream.seen} == {"Bearer theirs"}


def test_an_upstream_that_is_down_or_slow_or_talks_nonsense(make_proxy: Any, small: Small) -> None:
    proxy, upstream = make_proxy(timeout=30.0)
    for error, status in ((httpx2.ConnectError("x"), 502), (httpx2.RemoteProtocolError("x"), 502), (httpx2.ReadTimeout("x"), 504)):
        upstream.error = error
        for request in (infer(images_of(1)), ("GET", "/v2/health/ready", {}), ("GET", f"/v2/models/{NAME}", {})):
            refusal(call(proxy, request)[0], status)
        assert call(proxy, ("GET", "/v2/health/live", {}))[0].status_code == 200
    upstream.error = None
    assert call(proxy, infer(images_of(1)))[0].status_code == 200
    small.held.clear()
    slow, _ = make_proxy(timeout=0.5)
    refusal(call(slow, infer(images_of(1)))[0], 504)
    small.held.set()


def test_an_edit_for_another_model_is_refused_at_the_start_and_at_the_first_request(make_proxy: Any, tmp_path: Path) -> None:
    large = make_edit(tmp_path / "large.safetensors", (3, 9, 9))
    other = make_edit(tmp_path / "other.safetensors", encoder="e" * 64)
    mine = make_edit(tmp_path / "mine.safetensors", encoder="f" * 64)
    for stored, words in ((large, "3 x 9 x 9"), (other, "another encoder")):
        proxy, _ = make_proxy(edit=stored)
        with pytest.raises(InputError, match=words):
            asyncio.run(proxy.check_upstream())
        assert words in refusal(call(proxy, infer(images_of(1, 0, GRID)))[0], 400)
    proxy, upstream = make_proxy(edit=mine)
    asyncio.run(proxy.check_upstream())
    assert [request.url.path for request in upstream.seen] == [REPOSITORY_INDEX, f"/v2/models/{NAME}"]
    assert [answer.status_code for answer in call(proxy, infer(images_of(1)), infer(images_of(1)))] == [200, 200]
    assert sum(request.method == "GET" for request in upstream.seen) == 2, "metadata are asked once at the start and once a model"


def test_an_edit_trained_through_the_same_server_is_for_it(make_proxy: Any, make_app: Any, tmp_path: Path) -> None:
    app = make_app()
    with serving(app.gate) as address:
        remote = RemoteEmbedder(address)
        through_server = make_edit(tmp_path / "remote.safetensors", encoder=remote.fingerprint)
        remote.close()
    proxy, _ = make_proxy(edit=through_server)
    assert call(proxy, infer(images_of(1)))[0].status_code == 200


def test_an_upstream_that_edits_images_itself_is_another_encoder(make_proxy: Any, tmp_path: Path) -> None:
    stored = make_edit(tmp_path / "edit.safetensors", encoder="0af1")
    grid = {"inputs": (), "outputs": ()}
    assert not made_for_another(stored, ModelMetadata("cxr", **grid, parameters={"encoder": "0af1", "fingerprint": "0af1"}))
    assert made_for_another(stored, ModelMetadata("cxr", **grid, parameters={"encoder": "0af1", "fingerprint": "9c", "edit": "7b"}))


def test_the_projects_own_client_goes_through_and_keeps_edited_apart(small: Small, make_app: Any, stored: StoredEdit) -> None:
    images = torch.from_numpy(images_of(5))
    app = make_app(max_batch=2)
    with serving(app.gate) as upstream:
        proxy = ProxyApp(stored, upstream, Limits())
        with serving(proxy.gate) as address:
            plain, through = RemoteEmbedder(upstream), RemoteEmbedder(address)
            np.testing.assert_allclose(plain(images), small.embed(images), rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(through(images), small.embed(edited(stored, images.numpy())), rtol=1e-5, atol=1e-5)
            assert plain.fingerprint != through.fingerprint
            plain.close()
            through.close()
        proxy.close()


def test_an_upstream_that_is_down_at_the_start_is_waited_for(make_proxy: Any, caplog: pytest.LogCaptureFixture) -> None:
    proxy, upstream = make_proxy()
    upstream.error = httpx2.ConnectError("down")
    asyncio.run(proxy.check_upstream())
    assert "does not answer yet" in caplog.text
    upstream.error = None
    assert call(proxy, infer(images_of(1)))[0].status_code == 200


def test_only_the_named_model(make_proxy: Any) -> None:
    proxy, _ = make_proxy(name="another")
    refusal(call(proxy, infer(images_of(1)))[0], 404)
    assert json.loads(call(proxy, ("GET", f"/v2/models/{NAME}", {}))[0].content)["error"]
