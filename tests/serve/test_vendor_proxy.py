"""The proxy in front of CXR Foundation and MedImageInsight: their own JSON goes in and comes out, with the images edited on the way."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image

from evenhand.edits import StoredEdit
from evenhand.edits.files import apply_edit
from evenhand.models.remote import RemoteEmbedder
from evenhand.serve.limits import Limits
from evenhand.serve.run import serving
from evenhand.serve.vendor_proxy import VendorProxyApp
from tests.models import faulty_server as faulty
from tests.models.services import azure_service, cxr_service

from .conftest import call, png, refusal
from .test_proxy import edited, make_edit

APIS = ("cxr_foundation", "medimageinsight")
PATHS = {"cxr_foundation": "/v1/projects/p/locations/l/endpoints/1:predict", "medimageinsight": "/score"}
CHANNELS = {"cxr_foundation": 1, "medimageinsight": 3}
MANY_DIGITS = 12345678901234567890123


class Upstream(httpx2.AsyncBaseTransport):
    """Keeps what it was sent; answers as it is told."""

    def __init__(self) -> None:
        self.seen: list[httpx2.Request] = []
        self.answer: Callable[[], httpx2.Response] = lambda: httpx2.Response(200, json={"predictions": []})

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.seen.append(request)
        return self.answer()

    def said(self) -> Any:
        return json.loads(self.seen[-1].content)


def file_of(api: str, said: Any, position: int = 0) -> bytes:
    """The image that stands in a request."""
    text = said["instances"][position]["input_bytes"] if api == "cxr_foundation" else said["input_data"]["data"][position][0]
    return base64.b64decode(text, validate=True)


def body_of(api: str, *files: bytes) -> dict[str, Any]:
    """A request as the service's documentation writes it."""
    texts = [base64.b64encode(file).decode() for file in files]
    if api == "cxr_foundation":
        return {"instances": [{"input_bytes": text} for text in texts]}
    table = {"columns": ["image", "text"], "index": list(range(len(texts))), "data": [[text, ""] for text in texts]}
    return {"input_data": table, "params": {"get_scaling_factor": False}}


def levels_of(api: str, n: int = 2, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (n, CHANNELS[api], 8, 8), dtype=np.uint8)


def files_of(api: str, n: int = 2, kind: str = "PNG") -> list[bytes]:
    return [png(image[0] if len(image) == 1 else image.transpose(1, 2, 0), kind) for image in levels_of(api, n)]


def post(api: str, body: Any, headers: dict[str, str] | None = None, path: str | None = None) -> tuple[str, str, dict[str, Any]]:
    return "POST", path or PATHS[api], {"content": body if isinstance(body, bytes) else json.dumps(body).encode(), "headers": headers or {}}


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[str], StoredEdit]:
    return lambda api: make_edit(tmp_path / f"{api}.safetensors", (CHANNELS[api], 8, 8))


@pytest.fixture
def make_proxy(stored: Callable[[str], StoredEdit]) -> Iterator[Callable[..., tuple[VendorProxyApp, Upstream]]]:
    """Function: the service, limits and options -> a proxy and its upstream."""
    made: list[VendorProxyApp] = []

    def make(api: str, address: str = "http://upstream", edit: StoredEdit | None = None, **options: Any) -> tuple[VendorProxyApp, Upstream]:
        transport = Upstream()
        limits = Limits(**{key: options.pop(key) for key in list(options) if key in Limits.__dataclass_fields__ and key != "token"})
        made.append(VendorProxyApp(edit or stored(api), address, api, limits, transport=transport, **options))
        return made[-1], transport

    yield make
    for proxy in made:
        proxy.close()


@pytest.mark.parametrize("api", APIS)
def test_the_service_gets_what_edit_apply_writes(api: str, stored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The project's own client, the proxy, and a server that speaks exactly the service's JSON."""
    edit = stored(api)
    (tmp_path / "in").mkdir()
    for k, file in enumerate(files_of(api, 3)):
        (tmp_path / "in" / f"{k}.png").write_bytes(file)
    apply_edit(edit, tmp_path / "in", tmp_path / "out")
    copies = np.stack([np.asarray(Image.open(tmp_path / "out" / f"{k}.png")) for k in range(3)]) / 255
    wanted = copies[:, None] if copies.ndim == 3 else copies.transpose(0, 3, 1, 2)
    images = levels_of(api, 3).astype(np.float32) / 255
    assert np.abs(wanted - images).max() > 2 / 255, "the edit does something"
    monkeypatch.setenv("EVENHAND_TOKEN", "theirs")
    with faulty.serving() as server:
        server.token = "theirs"
        cxr_service(server) if api == "cxr_foundation" else azure_service(server, True)
        proxy = VendorProxyApp(edit, server.url, api, Limits())
        with serving(proxy.gate) as address:
            remote = RemoteEmbedder(address + PATHS[api], api=api, input_size=(8, 8))
            got = remote(torch.from_numpy(images))
            remote.close()
        proxy.close()
        assert server.seen == [PATHS[api]]
    np.testing.assert_allclose(got[:, :3], faulty.embed(wanted), atol=1e-6)


@pytest.mark.parametrize("api", APIS)
def test_only_the_images_change(api: str, make_proxy: Any, stored: Any) -> None:
    """Other fields, headers that matter to the service, the query and the path go along, and its answer comes back as it is."""
    proxy, upstream = make_proxy(api)
    (file,) = files_of(api, 1)
    body = body_of(api, file)
    if api == "cxr_foundation":
        body["instances"][0]["input_bytes"] = base64.encodebytes(file).decode()  # with line ends, as the documentation's examples have it
        body["parameters"] = {"n": MANY_DIGITS, "x": "é\u2028"}
    else:
        body["input_data"]["data"].append(["", "chest x-ray, é"])
        body["input_data"]["index"].append(1)
        body["params"] = {"get_scaling_factor": True, "n": MANY_DIGITS}
    mark = "x-goog-user-project" if api == "cxr_foundation" else "azureml-model-deployment"
    answer = {"predictions": [{"general_img_emb": [[0.25]]}], "image_features": [[0.25]]}
    upstream.answer = lambda: httpx2.Response(200, json=answer, headers={"x-other": "1"})
    headers = {"Authorization": "Bearer mine", mark: "blue", "x-other": "1", "cookie": "secret"}
    (got,) = call(proxy, post(api, body, headers, PATHS[api] + "?alt=json"))
    assert got.json() == answer
    (request,) = upstream.seen
    assert str(request.url) == f"http://upstream{PATHS[api]}?alt=json"
    assert (request.headers["authorization"], request.headers[mark]) == ("Bearer mine", "blue")
    assert not {"cookie", "x-other"} & set(request.headers)
    arrived = upstream.said()
    image = Image.open(BytesIO(file_of(api, arrived)))
    pixels = np.asarray(image)
    wanted = np.rint(edited(stored(api), levels_of(api, 1).astype(np.float32) / 255)[0] * 255)
    assert image.format == "PNG"
    np.testing.assert_array_equal(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), wanted)
    for said in (arrived, body):
        place, key = (said["instances"][0], "input_bytes") if api == "cxr_foundation" else (said["input_data"]["data"][0], 0)
        place[key] = ""
    assert arrived == body


@pytest.mark.parametrize("api", APIS)
def test_a_jpeg_leaves_as_png_and_colour_under_a_grey_edit_is_refused(api: str, make_proxy: Any, tmp_path: Path) -> None:
    proxy, upstream = make_proxy(api, edit=make_edit(tmp_path / "grey.safetensors", (1, 8, 8), "residual"))
    grey = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    colour = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert call(proxy, post(api, body_of(api, png(grey, "JPEG"), png(np.stack([grey] * 3, 2)))))[0].status_code == 200
    assert [Image.open(BytesIO(file_of(api, upstream.said(), k))).mode for k in range(2)] == ["L", "RGB"]
    assert Image.open(BytesIO(file_of(api, upstream.said()))).format == "PNG"
    assert "image 2 of 2 is in colour" in refusal(call(proxy, post(api, body_of(api, png(grey), png(colour))))[0], 400)
    assert len(upstream.seen) == 1


def test_texts_alone_pass(make_proxy: Any) -> None:
    proxy, upstream = make_proxy("medimageinsight")
    body = {"input_data": {"columns": ["text", "image"], "index": [0], "data": [["pneumonia", ""]]}, "params": {}}
    assert call(proxy, post("medimageinsight", body))[0].status_code == 200
    assert upstream.said() == body


@pytest.mark.parametrize("api", APIS)
def test_an_upstream_with_a_path_is_one_address(api: str, make_proxy: Any) -> None:
    proxy, upstream = make_proxy(api, f"http://upstream{PATHS[api]}/")
    requests = [post(api, body_of(api, *files_of(api)), path=path) for path in ("/", PATHS[api], "/v1/other:predict", "/other/score")]
    assert [answer.status_code for answer in call(proxy, *requests)] == [200, 200, 404, 404]
    assert {str(request.url) for request in upstream.seen} == {f"http://upstream{PATHS[api]}"}


def bad_bodies(api: str) -> dict[str, tuple[Any, str]]:
    """What must be refused -> the words of the refusal."""
    (file,) = files_of(api, 1)

    def put(value: Any) -> Any:
        body = body_of(api, file)
        if api == "cxr_foundation":
            body["instances"][0]["input_bytes"] = value
        else:
            body["input_data"]["data"][0][0] = value
        return body

    def text(data: bytes) -> str:
        return base64.b64encode(data).decode()

    further = "parameters" if api == "cxr_foundation" else "params"
    cases = {
        "not_json": (b"{", "not JSON"), "list": (b"[]", "JSON object"), "empty": (b"{}", "must be"), "twice": (b'{"a":1,"a":1}', "twice"),
        "infinite": (json.dumps({**body_of(api, file), further: -9}).replace("-9", "1e999").encode(), "not finite"),
        "deep": (json.dumps({**body_of(api, file), further: -9}).replace("-9", "[" * 90_000 + "]" * 90_000).encode(), "deeply"),
        "number": (put(3), "base64"), "null": (put(None), "base64"), "address": (put("https://images.test/a.png"), "not an address"),
        "no_file": (put(text(b"hello")), "PNG or JPEG"), "broken_file": (put(text(file[:-20])), "file 1 of 1"),
        "other_grid": (put(text(png(np.zeros((9, 8), np.uint8)))), "9 x 8 pixels, but must be 8 x 8"),
        "dicom": (put(text(bytes(128) + b"DICM")), "PNG or JPEG"),
        "beside": ({**body_of(api, file), "images": [text(file)]}, "not passed on"),
    }
    if api == "cxr_foundation":
        other = {"instances": [{"gcs_uri": "gs://b/a.png"}]}
        more = {"instances": [{"input_bytes": text(file), "gcs_uri": "gs://b/a.png"}]}
        return cases | {
            "uri": (other, "gcs_uri"), "uri_too": (more, "gcs_uri"), "no_image": ({"instances": [{}]}, "no input_bytes"),
            "not_a_list": ({"instances": {}}, "list of objects"), "not_objects": ({"instances": [text(file)]}, "list of objects"),
        }
    table = body_of(api, file)["input_data"]
    return cases | {
        "more_columns": ({"input_data": {**table, "columns": ["image", "mask"]}}, "columns"),
        "twice_image": ({"input_data": {**table, "columns": ["image"] * 2}}, "columns"),
        "no_columns": ({"input_data": {"data": table["data"]}}, "columns"), "key": ({"input_data": {**table, "z": 1}}, "'z'"),
        "long_row": ({"input_data": {**table, "data": [[text(file), "", text(file)]]}}, "rows of 2"),
        "not_rows": ({"input_data": {**table, "data": [text(file)]}}, "rows"),
        "no_table": ({"input_data": [text(file)]}, "object with columns"),
    }


@pytest.mark.parametrize(("api", "case"), [(api, case) for api in APIS for case in bad_bodies(api)])
def test_what_cannot_be_edited_is_refused_and_nothing_is_sent(api: str, case: str, make_proxy: Any) -> None:
    body, words = bad_bodies(api)[case]
    proxy, upstream = make_proxy(api)
    assert words in refusal(call(proxy, post(api, body))[0], 400)
    assert upstream.seen == []
    assert 'evenhand_rejected_total{reason="bad_request"} 1' in proxy.metrics.text()


@pytest.mark.parametrize("api", APIS)
def test_limits_and_other_addresses(api: str, make_proxy: Any) -> None:
    proxy, upstream = make_proxy(api, max_batch=2, max_bytes=5000, rate=0.001)
    body = body_of(api, *files_of(api))
    three = body_of(api, *files_of(api, 3))
    assert "may have 2" in refusal(call(proxy, post(api, three))[0], 413)
    assert "5000 bytes" in refusal(call(proxy, post(api, json.dumps(body).encode() + b" " * 5000))[0], 413)
    for path, status in (("/x", 403), ("/v2/models/small/infer", 403), ("/a/%2e%2e/b" + PATHS[api], 404), ("/%2e%2e" + PATHS[api], 404)):
        assert call(proxy, post(api, body, path=path))[0].status_code == status
    assert call(proxy, ("GET", PATHS[api], {}))[0].status_code == 405
    assert [call(proxy, ("GET", f"/v2/health/{what}", {}))[0].status_code for what in ("live", "ready")] == [200, 200]
    assert upstream.seen == []
    assert call(proxy, post(api, body))[0].status_code == 200
    limited = call(proxy, post(api, body))[0]
    refusal(limited, 429)
    assert int(limited.headers["retry-after"]) > 1
    assert "evenhand_images_total 2" in call(proxy, ("GET", "/metrics", {}))[0].text


def test_tokens(stored: Any) -> None:
    api, transport = "medimageinsight", Upstream()
    proxy = VendorProxyApp(stored(api), "http://upstream", api, Limits(token="mine"), token="theirs", transport=transport)
    body = body_of(api, *files_of(api))
    refusal(call(proxy, post(api, body))[0], 401)
    assert transport.seen == []
    assert call(proxy, post(api, body, {"Authorization": "Bearer mine"}))[0].status_code == 200
    assert transport.seen[0].headers["authorization"] == "Bearer theirs"
    proxy.close()


@pytest.mark.parametrize("api", APIS)
def test_what_the_service_refuses_comes_back_and_a_lost_one_is_said(api: str, make_proxy: Any) -> None:
    proxy, upstream = make_proxy(api)
    request = post(api, body_of(api, *files_of(api)))
    theirs = {"error": {"code": 429, "message": "quota"}}
    upstream.answer = lambda: httpx2.Response(429, json=theirs, headers={"Retry-After": "7"})
    (answer,) = call(proxy, request)
    assert (answer.status_code, answer.json(), answer.headers["retry-after"]) == (429, theirs, "7")

    def fail(error: Exception) -> Callable[[], httpx2.Response]:
        def answer() -> httpx2.Response:
            raise error

        return answer

    for error, status in ((httpx2.ConnectError("x"), 502), (httpx2.RemoteProtocolError("x"), 502), (httpx2.ReadTimeout("x"), 504)):
        upstream.answer = fail(error)
        refusal(call(proxy, request)[0], status)
    assert "evenhand_images_total 0" in proxy.metrics.text()
    assert 'evenhand_rejected_total{reason="upstream"} 3' in proxy.metrics.text()
