"""Whatever arrives, the answer is a 4xx with one sentence of JSON, and the server goes on; a proxy lets no image through unedited."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from evenhand.config.editing import EditMethodConfig
from evenhand.edits import StoredEdit, build_edit, load_edit, save_edit
from evenhand.models.protocol import HEADER, REPOSITORY_INDEX, Tensor, decode_request, encode_request, read_header_length
from evenhand.serve.app import INPUT, EmbeddingApp
from evenhand.serve.limits import Limits
from evenhand.serve.proxy import ProxyApp
from evenhand.serve.run import serving

from .conftest import NAME, Small, client, embeddings, images_of, infer, png, served
from .test_proxy import Upstream

PATH = f"/v2/models/{NAME}/infer"
SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


LIMITS = Limits(max_batch=8, max_bytes=100_000, timeout=30.0)


@dataclass
class Target:
    """What is sent requests, and what must hold after each.

    Attributes:
        app: the application.
        good: a request that must always be answered rightly.
        check: of its answer.
        watch: raises where an image passed unedited.
    """

    app: Any
    good: tuple[str, str, dict[str, Any]]
    check: Callable[[httpx2.Response], None]
    watch: Callable[[], None] = lambda: None


def whitening(folder: Path, channels: int = 3) -> StoredEdit:
    """An edit that turns every pixel white, so that whatever is not edited shows."""
    edit = build_edit(EditMethodConfig(name="dne", family=["pixel"], rounding="none"), (channels, 8, 8))
    edit.load_vector(torch.full((edit.n_parameters,), 5.0))
    (folder / "edit.safetensors").write_bytes(save_edit(edit, {}))
    return load_edit(folder / "edit.safetensors")


def watch_v2(seen: list[httpx2.Request]) -> None:
    """Every image of every request is white; nothing else is sent than requests for inference and questions."""
    for request in seen:
        if request.method == "GET":
            assert not request.content
        elif request.url.path == REPOSITORY_INDEX:
            assert request.content in (b"{}", b'{"ready":true}')
        else:
            assert request.url.path.endswith("/infer")
            length = read_header_length(request.headers.get(HEADER), len(request.content))
            (tensor,) = decode_request(request.content, length).inputs
            white = {"FP32": 1.0, "UINT8": 255}.get(tensor.datatype)
            files = [] if white is not None else [np.asarray(Image.open(BytesIO(file))) for file in tensor.data.ravel()]
            assert all((array == 255).all() for array in files) if white is None else (tensor.data == white).all()
    seen.clear()


@pytest.fixture(scope="module", params=["encoder", "proxy"])
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """The embedding server, and the proxy in front of it."""
    encoder = EmbeddingApp(served(Small()), LIMITS, 0.0)
    upstream, sent = Upstream(encoder), images_of(2)
    proxy = ProxyApp(whitening(tmp_path_factory.mktemp("edit")), "http://upstream", LIMITS, transport=upstream)
    edits = request.param == "proxy"
    wanted = Small().embed(np.ones_like(sent) if edits else sent)

    def check(answer: httpx2.Response) -> None:
        np.testing.assert_allclose(embeddings(answer), wanted, rtol=1e-6)

    yield Target(proxy if edits else encoder, infer(sent), check, lambda: watch_v2(upstream.seen))
    proxy.close()
    encoder.close()


def judge(target: Target, content: bytes, headers: dict[str, str], path: str = PATH) -> int:
    """Send it, then a good request: the status of the first, which was right; the second was answered rightly."""

    async def go() -> tuple[httpx2.Response, httpx2.Response]:
        async with client(target.app) as connection:
            first = await connection.post(path, content=content, headers=headers)
            method, good, options = target.good
            return first, await connection.request(method, good, **options)

    answer, good = asyncio.run(go())
    target.check(good)
    target.watch()
    if answer.status_code != 200:
        assert 400 <= answer.status_code < 500, (answer.status_code, answer.text)
        said = answer.json()
        assert set(said) == {"error"}
        assert isinstance(said["error"], str)
        assert len(said["error"]) < 2000
        assert "Traceback" not in said["error"]
    assert target.app.intake.inside == 0
    assert target.app.intake.bodies.held == 0
    return answer.status_code


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=12), inner, max_size=5), max_leaves=20,
)
tensors = st.fixed_dictionaries(
    {"name": st.sampled_from([INPUT, "", "x"]) | values, "datatype": st.sampled_from(["FP32", "UINT8", "BYTES", "FP64", "?"]) | values},
    optional={
        "shape": st.lists(st.integers(-1, 2**40), max_size=5) | st.just([1, 3, 8, 8]) | values,
        "data": values | st.lists(st.floats() | st.integers(), max_size=200),
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-5, 2**40) | values}) | values,
    },
)
requests = st.fixed_dictionaries(
    {"inputs": st.lists(tensors, max_size=3) | values}, optional={"outputs": values, "id": values, "parameters": values}
)
lengths = st.none() | st.integers(-3, 300).map(str) | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=8)


def headers_of(length: str | None) -> dict[str, str]:
    return {} if length is None else {HEADER: length}


@SETTINGS
@given(content=st.binary(max_size=300), length=lengths)
def test_any_bytes(app: Target, content: bytes, length: str | None) -> None:
    assert judge(app, content, headers_of(length)) != 200


@SETTINGS
@given(content=requests, tail=st.binary(max_size=64), length=lengths)
def test_any_json(app: Target, content: Any, tail: bytes, length: str | None) -> None:
    header = json.dumps(content).encode()
    judge(app, header + tail, headers_of(str(len(header)) if length == "" else length))


FILES = [png(np.random.default_rng(k).integers(0, 256, (8, 8, 3), dtype=np.uint8), kind) for k, kind in enumerate(["PNG", "JPEG"])]
FLAWS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(["flip", "cut", "insert", "double"]), st.integers(0, 255)),
    min_size=1, max_size=4,
)


def spoil(body: bytearray, flaws: list[tuple[float, str, int]]) -> None:
    """Put `FLAWS` into a request's body."""
    for place, flaw, value in flaws:
        at = int(place * len(body))
        if flaw == "flip" and body:
            body[at] ^= value
        elif flaw == "cut":
            del body[at:]
        elif flaw == "insert":
            body[at:at] = bytes([value])
        else:
            body += body[at : at + 5000]


@SETTINGS
@given(flaws=FLAWS, kind=st.sampled_from(["FP32", "UINT8", "PNG", "JPEG"]), binary=st.booleans())
def test_a_good_request_with_flaws(app: Target, flaws: list[tuple[float, str, int]], kind: str, binary: bool) -> None:
    files = np.array([FILES[kind == "JPEG"]], dtype=object)
    data = {"FP32": images_of(1), "UINT8": np.zeros((1, 3, 8, 8), np.uint8)}.get(kind, files)
    message = encode_request([Tensor(INPUT, data)], binary=binary)
    body = bytearray(message.join())
    spoil(body, flaws)
    judge(app, bytes(body), {} if message.header_length is None else {HEADER: str(message.header_length)})


@SETTINGS
@given(seed=st.integers(0, 1000), flaws=FLAWS, kind=st.sampled_from([0, 1]))
def test_a_flawed_picture_file(app: Target, seed: int, flaws: list[tuple[float, str, int]], kind: int) -> None:
    data = bytearray(FILES[kind])
    for place, flaw, value in flaws:
        at = int(place * len(data))
        data[at : at + (flaw != "insert")] = b"" if flaw == "cut" else bytes([value])
    message = encode_request([Tensor(INPUT, np.array([bytes(data)], dtype=object))])
    judge(app, message.join(), message.headers)


@SETTINGS
@given(n=st.integers(0, 2**34), extra=st.integers(1, 5))
def test_tensors_that_say_more_than_they_bring(app: Target, n: int, extra: int) -> None:
    shape = [n, *[2**20] * extra]
    content = {"inputs": [{"name": INPUT, "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": n}}]}
    header = json.dumps(content).encode()
    assert judge(app, header + bytes(64), {HEADER: str(len(header))}) != 200


@pytest.mark.parametrize("depth", [50, 5_000, 49_000])
def test_deep_json(app: Target, depth: int) -> None:
    assert judge(app, b"[" * depth + b"]" * depth, {}) == 400
    assert judge(app, b'{"inputs":' * (depth // 8) + b"1" + b"}" * (depth // 8), {}) == 400


@SETTINGS
@given(
    path=st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), max_size=30), prefix=st.sampled_from(["/", "/v2/", "/v2/models/"])
)
def test_any_address(app: Target, path: str, prefix: str) -> None:
    from urllib.parse import quote

    assert judge(app, b"{}", {}, prefix + quote(path)) in (404, 405, 400, 403)


@pytest.mark.parametrize("value", ["1e999", "[" * 20_000 + "]" * 20_000, '"\\ud800"'], ids=["infinite", "deep", "surrogate"])
def test_parameters_that_cannot_be_written_again(app: Target, value: str) -> None:
    tensor, parameters = {"name": INPUT, "datatype": "UINT8", "shape": [1, 3, 8, 8], "data": [7] * 192}, {"parameters": {"a": 9.5}}
    for said in ({"inputs": [tensor], **parameters}, {"inputs": [{**tensor, **parameters}]}):
        judge(app, json.dumps(said).replace("9.5", value).encode(), {})


def test_bodies_that_are_too_long(app: Target) -> None:
    message = encode_request([Tensor(INPUT, images_of(2))])
    assert judge(app, message.join() + bytes(100_000), message.headers | {"Content-Length": "1"}) in (400, 413)
    assert judge(app, encode_request([Tensor(INPUT, images_of(9))]).join(), encode_request([Tensor(INPUT, images_of(9))]).headers) == 413
    assert judge(app, json.dumps({"inputs": [{"name": "x" * 100_000}]}).encode(), {}) == 413


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GARBAGE\r\n\r\n", b"GET /v2 HTTP/1.1\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 20_000, b"GET /v2 HTTP/1.1\r\nHost: x\r\nBad Header\r\n\r\n",
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n".encode(),
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n{{}}   ".encode(),
    ],
    ids=[
        "tls", "garbage", "no_host", "negative", "words", "two_lengths", "long_address", "long_header", "bad_header", "bad_chunk",
        "upgrade",
    ],
)
def test_what_is_not_http_over_a_socket(app: Target, raw: bytes) -> None:
    with serving(app.app.gate) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(raw)
            answer = b""
            while not answer.endswith(b"}"):
                answer += connection.recv(65536)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.split()[1][:1] == b"4", head
        assert set(json.loads(body)) == {"error"}
        with httpx2.Client(base_url=address, timeout=None) as good:
            method, path, options = app.good
            app.check(good.request(method, path, **options))
    app.app.gate.draining = False  # `serving` drains at its end
    app.watch()
