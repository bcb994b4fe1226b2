"""Whatever is sent to a proxy in front of the two services, the answer is clear, and no image passes unedited."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evenhand.serve.vendor_proxy import VendorProxyApp

from .test_fuzz import FILES, FLAWS, LIMITS, SETTINGS, Target, judge, spoil, values, whitening
from .test_vendor_proxy import APIS, PATHS, Upstream, body_of, file_of, files_of, post


def images_in(api: str, said: Any) -> list[str]:
    """The files that the service would read out of a request."""
    if api == "cxr_foundation":
        return [one["input_bytes"] for one in said["instances"]]
    table = said["input_data"]
    return [row[table["columns"].index("image")] for row in table["data"] if row[table["columns"].index("image")] != ""]


def watch(api: str, upstream: Upstream) -> None:
    for request in upstream.seen:
        assert (request.method, request.url.path) == ("POST", PATHS[api])
        for text in images_in(api, json.loads(request.content)):
            assert (np.asarray(Image.open(BytesIO(base64.b64decode(text, validate=True)))) == 255).all()
    upstream.seen.clear()


@pytest.fixture(scope="module", params=APIS)
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    upstream, api = Upstream(), request.param
    proxy = VendorProxyApp(whitening(tmp_path_factory.mktemp("edit")), "http://upstream", api, LIMITS, transport=upstream)

    def check(answer: httpx2.Response) -> None:
        assert answer.status_code == 200
        assert (np.asarray(Image.open(BytesIO(file_of(api, upstream.said(), 1)))) == 255).all()

    yield Target(proxy, post(api, body_of(api, *files_of(api))), check, lambda: watch(api, upstream))
    proxy.close()


def send(app: Target, content: bytes, headers: dict[str, str] | None = None) -> int:
    return judge(app, content, headers or {}, app.good[1])


def api_of(app: Target) -> str:
    return next(api for api in APIS if PATHS[api] == app.good[1])


TEXT = base64.b64encode(FILES[0]).decode()
cells = values | st.just(TEXT) | st.just("")
bodies = st.one_of(
    st.fixed_dictionaries(
        {"instances": values | st.lists(st.dictionaries(st.sampled_from(["input_bytes", "gcs_uri", "x"]), cells), max_size=4)},
        optional={"parameters": values, "x": values},
    ),
    st.fixed_dictionaries({"input_data": values | st.fixed_dictionaries(
        {"columns": st.lists(st.sampled_from(["image", "text"]), max_size=3) | values,
         "data": st.lists(st.lists(cells, max_size=3) | values, max_size=4) | values},
        optional={"index": values, "x": values},
    )}, optional={"params": values, "x": values}),
)


@SETTINGS
@given(content=st.binary(max_size=300))
def test_any_bytes(app: Target, content: bytes) -> None:
    assert send(app, content) == 400


@SETTINGS
@given(said=bodies, encoding=st.sampled_from(["application/json", "text/plain", ""]))
def test_any_json(app: Target, said: Any, encoding: str) -> None:
    send(app, json.dumps(said).encode(), {"Content-Type": encoding})


@SETTINGS
@given(flaws=FLAWS, kind=st.sampled_from(["PNG", "JPEG"]))
def test_a_good_request_with_flaws(app: Target, flaws: list[tuple[float, str, int]], kind: str) -> None:
    body = bytearray(json.dumps(body_of(api_of(app), *files_of(api_of(app), 2, kind))).encode())
    spoil(body, flaws)
    send(app, bytes(body))


@SETTINGS
@given(flaws=FLAWS, kind=st.sampled_from([0, 1]))
def test_a_flawed_picture_file(app: Target, flaws: list[tuple[float, str, int]], kind: int) -> None:
    data = bytearray(FILES[kind])
    for place, flaw, value in flaws:
        at = int(place * len(data))
        data[at : at + (flaw != "insert")] = b"" if flaw == "cut" else bytes([value])
    send(app, json.dumps(body_of(api_of(app), bytes(data))).encode())


@pytest.mark.parametrize("depth", [50, 5_000, 49_000])
def test_deep_json(app: Target, depth: int) -> None:
    assert send(app, b"[" * depth + b"]" * depth) == 400
    assert send(app, b'{"instances":' * (depth // 8) + b"1" + b"}" * (depth // 8)) == 400


def test_too_many_and_too_long(app: Target) -> None:
    api = api_of(app)
    assert send(app, json.dumps(body_of(api, *files_of(api, 9))).encode()) == 413
    assert send(app, json.dumps(body_of(api, *files_of(api))).encode() + b" " * 100_000) == 413
    large = BytesIO()
    Image.new("L", (1, 1)).save(large, "PNG")
    bomb = bytearray(large.getvalue())
    bomb[16:24] = (30_000).to_bytes(4) * 2
    assert send(app, json.dumps(body_of(api, bytes(bomb))).encode()) == 400


@SETTINGS
@given(path=st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), max_size=30))
def test_any_address(app: Target, path: str) -> None:
    from urllib.parse import quote

    assert judge(app, b"{}", {}, "/" + quote(path)) in (400, 403, 404, 405)
