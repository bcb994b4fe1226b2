"""The routes of the proxy: images of a request for inference are edited on their way to somebody else's v2 server.

No image passes unedited: what is POSTed must be a request for inference with one tensor of images on the edit's grid; every other
address of the protocol is read through with GET.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import httpx2
import numpy as np
import numpy.typing as npt
import torch
from fastapi import FastAPI, Request, Response

from evenhand.edits.artifact import StoredEdit
from evenhand.errors import InputError, ProtocolError
from evenhand.models.protocol import (
    HEADER,
    LIVE,
    READY,
    REPOSITORY_INDEX,
    SERVER,
    InferRequest,
    ModelMetadata,
    Tensor,
    encode_request,
    model_path,
    wants_binary,
)
from evenhand.serve.fingerprints import edited_parameters, made_for_another
from evenhand.serve.gate import Gate, json_error, make_routes
from evenhand.serve.images import Grid, bad, may_be_colour, read_images, write_images
from evenhand.serve.intake import Intake
from evenhand.serve.limits import Limits, Refusal
from evenhand.serve.metrics import Metrics

logger = logging.getLogger(__name__)

BACK = ("content-type", "retry-after", "www-authenticate", HEADER.lower())
CONNECTIONS = 64
START_SECONDS = 5.0


class ProxyApp:
    """An edit in front of a v2 server, as an ASGI application in ``gate``.

    Args:
        stored: the edit.
        upstream: address of the server, without /v2.
        limits: what clients may do; its token is asked of clients.
        name: the one model that clients may ask for; None: any that the upstream has.
        token: sent upstream; None: what the client sent.
        transport: how the upstream is reached; default: over the network.
    """

    def __init__(
        self, stored: StoredEdit, upstream: str, limits: Limits, name: str | None = None, token: str | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.stored = stored
        self.limits = limits
        self.name = name
        self.metrics = Metrics(lambda: 0)
        self.intake = Intake(limits)
        self._grid = Grid(*stored.edit.grid)
        self._token = token
        self._transport = transport
        self._upstream = upstream.rstrip("/").removesuffix(SERVER)
        self._client: httpx2.AsyncClient | None = None
        self._one_edit = threading.Lock()
        self._checked: dict[tuple[str, str | None], int | None] = {}
        self.gate = Gate(self._routes(), limits, self.metrics, self.aclose)

    async def aclose(self) -> None:
        """Close the connections to the upstream."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def close(self) -> None:
        """Stop the threads."""
        self.intake.close()

    async def check_upstream(self) -> None:
        """Before anything is served: the edit must be for the model of the upstream, where it can be asked now.

        Raises:
            InputError: an edit for another grid or encoder.
        """
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        async with self._new_client(START_SECONDS) as client:
            try:
                name = self.name or await _only_model(client, headers)
                answer = await client.get(model_path(name), headers=headers) if name else None
                said = ModelMetadata.from_json(answer.json()) if answer is not None and answer.status_code == 200 else None
            except (httpx2.HTTPError, ValueError, ProtocolError) as error:
                logger.warning("the upstream does not answer yet (%s); it is asked again with the first request", type(error).__name__)
                return
        wrong = None if said is None else self._mismatch(said)
        if wrong:
            raise InputError(f"{wrong}; give the edit that was made for this model, or another upstream=")

    def _new_client(self, seconds: float) -> httpx2.AsyncClient:
        limits = httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
        timeout = httpx2.Timeout(seconds or None, pool=None)
        return httpx2.AsyncClient(
            base_url=self._upstream, timeout=timeout, limits=limits, transport=self._transport, headers={"Accept-Encoding": "identity"},
        )

    def _routes(self) -> FastAPI:
        app = make_routes(self.metrics)
        routes: list[tuple[str, str, Callable[..., Any]]] = [
            ("GET", LIVE, self._live), ("GET", READY, self._ready), ("POST", REPOSITORY_INDEX, self._index), ("GET", SERVER, self._pass),
        ]
        for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            routes += [("GET", path, self._metadata), ("POST", path + "/infer", self._infer)]
        routes.append(("GET", "/v2/{rest:path}", self._pass))
        for method, path, function in routes:
            app.add_api_route(path, function, methods=[method], response_model=None)
        app.add_api_route("/v2/{rest:path}", self._refuse, methods=["POST", "PUT", "PATCH", "DELETE"], response_model=None)
        return app

    async def _live(self) -> Response:
        return Response(json.dumps({"live": True}), media_type="application/json")

    async def _ready(self, request: Request) -> Response:
        if self.gate.draining:
            return json_error(503, "the server is stopping")
        return _handed_back(await self._ask("GET", READY, request))

    async def _pass(self, request: Request) -> Response:
        return _handed_back(await self._ask("GET", _clean(request.scope["path"]), request))

    async def _index(self, request: Request) -> Response:
        async with self.intake.body(request) as body:
            return _handed_back(await self._ask("POST", REPOSITORY_INDEX, request, bytes(body) or b"{}"))

    async def _refuse(self, request: Request) -> Response:
        raise Refusal(403, "this proxy passes on requests for inference and nothing else that changes or sends anything", "not_passed")

    async def _metadata(self, request: Request) -> Response:
        name, version = self._asked(request)
        answer = await self._ask("GET", model_path(name, version), request)
        if answer.status_code != 200:
            return _handed_back(answer)
        try:
            said = answer.json()
            ModelMetadata.from_json(said)
        except (ValueError, ProtocolError) as error:
            raise Refusal(502, "the upstream's metadata cannot be read", "upstream") from error
        said["parameters"] = self._amended(said.get("parameters") or {})
        return Response(json.dumps(said), media_type="application/json")

    def _amended(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The upstream's parameters, with the edit's fingerprint, and one of encoder and edit together in place of the encoder's."""
        encoder = parameters.get("fingerprint")
        more = edited_parameters(encoder if isinstance(encoder, str) else None, self.stored)
        most = parameters.get("max_batch")
        limit = {"max_batch": min(most, self.limits.max_batch) if type(most) is int else self.limits.max_batch}
        return {**parameters, **more, **limit}

    async def _infer(self, request: Request) -> Response:
        name, version = self._asked(request)
        stop = threading.Event()
        async with self.intake.body(request) as body:
            return await self.intake.await_answer(self._answer(request, name, version, body, stop), request.receive, stop)

    async def _answer(self, request: Request, name: str, version: str | None, body: bytearray, stop: threading.Event) -> Response:
        asked, tensor, n = await self.intake.decode(request, body)
        wanted = await self._check_model(name, version, request)
        binary = HEADER.lower() in request.headers
        message = await self.intake.run(self._edited, asked, tensor, binary, wanted, stop)
        headers = {**message.headers, **_forwarded(request)}
        answer = await self._ask("POST", model_path(name, version, "infer"), request, message.join(), headers)
        if answer.status_code == 200:
            self.metrics.images(n)
        return _handed_back(answer)

    def _edited(self, asked: InferRequest, tensor: Tensor, binary: bool, wanted: int | None, stop: threading.Event) -> Any:
        """The request anew, its images edited and with the channels that the upstream wants; runs in a thread."""
        grid, files = self._grid, tensor.datatype == "BYTES"
        one_channel = grid.channels == 1
        if one_channel and may_be_colour(tensor):
            grid = Grid(3, grid.height, grid.width)
        elif not files and self.stored.edit.takes((tensor.data.shape[1], grid.height, grid.width)):
            grid = Grid(tensor.data.shape[1], grid.height, grid.width)
        sent = read_images(tensor, grid, False, lambda: not stop.is_set())
        values = sent.values if sent.values.flags.writeable else sent.values.copy()
        out = self._apply_by_channels(values) if one_channel and grid.channels == 3 else self._apply(values)
        if not files and out.shape[1] == 1 and wanted == 3:
            out = np.repeat(out, 3, axis=1)
        new = write_images(out, sent, grey=one_channel)
        content: dict[str, Any] = dict(asked.parameters)
        if asked.binary_outputs:
            content["binary_data_output"] = True
        outputs = [name for name, _ in asked.outputs]
        all_binary = bool(outputs) and all(wants_binary(asked, name) for name in outputs)
        return encode_request([new], binary=binary, outputs=outputs, binary_outputs=all_binary, id=asked.id, parameters=content)

    def _apply_by_channels(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Images of three channels under an edit for one: three equal channels are edited as one, and come out equal.

        Raises:
            Refusal: 400, an image in colour, which this edit cannot change.
        """
        grey = (values == values[:, :1]).all(axis=(1, 2, 3))
        if not grey.all() and not self.stored.edit.any_channels:
            position = int(np.argmin(grey)) + 1
            raise bad(
                f"image {position} of {len(values)} is in colour (its three channels differ), but this proxy's edit is for grey images, "
                f"{self._grid} (channels, height, width); send one channel, or three equal ones"
            )
        out = np.empty_like(values)
        for chosen, channels in ((grey, 1), (~grey, 3)):
            if chosen.any():
                out[chosen] = self._apply(values[chosen, :channels])
        return out

    def _apply(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with self._one_edit, torch.inference_mode():
            out: npt.NDArray[np.float32] = self.stored.edit(torch.from_numpy(values)).numpy()
        return out

    def _asked(self, request: Request) -> tuple[str, str | None]:
        name, version = request.path_params["name"], request.path_params.get("version")
        if self.name is not None and name != self.name:
            raise Refusal(404, f"there is no model of that name; this proxy is for '{self.name}'", "unknown_model")
        return name, version

    async def _check_model(self, name: str, version: str | None, request: Request) -> int | None:
        """The edit must be for this model, as far as its metadata tell; asked once a model.

        Returns:
            The channels that the model wants; None where it does not say.

        Raises:
            Refusal: 400, an edit for another grid or encoder; 502 or 504, the upstream does not answer.
        """
        if (name, version) in self._checked:
            return self._checked[name, version]
        answer = await self._ask("GET", model_path(name, version), request)
        try:
            said = ModelMetadata.from_json(answer.json()) if answer.status_code == 200 else None
        except (ValueError, ProtocolError):
            said = None
        wrong = self._mismatch(said) if said is not None else None
        if wrong:
            raise Refusal(400, wrong, "wrong_edit")
        wanted = None if said is None else _channels_of(said)
        if said is not None and len(self._checked) < 1000:
            self._checked[name, version] = wanted
        return wanted

    def _mismatch(self, said: ModelMetadata) -> str | None:
        """Why the edit is not for this model; None where nothing speaks against it."""
        edit = self.stored.edit
        for tensor in said.inputs:
            if tensor.datatype != "BYTES" and len(tensor.shape) == 4:
                shape = tuple(want if have == -1 else have for have, want in zip(tensor.shape[1:], edit.grid, strict=True))
                if not edit.takes(shape) and shape != (3, *edit.grid[1:]):
                    found = " x ".join(map(str, tensor.shape[1:]))
                    return f"the model '{said.name}' takes images of {found}, but the edit is for {self._grid} (channels, height, width)"
        if made_for_another(self.stored, said):
            return f"the edit was trained against another encoder than the model '{said.name}'"
        return None

    async def _ask(
        self, method: str, path: str, request: Request, content: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx2.Response:
        """Ask the upstream.

        Raises:
            Refusal: 502 it cannot be reached or breaks off, 504 it is too slow.
        """
        if self._client is None:
            self._client = self._new_client(self.limits.timeout)
        sent = {**(headers or {}), **self._authorization(request)}
        query = request.url.query
        try:
            return await self._client.request(method, f"{path}?{query}" if query else path, content=content, headers=sent)
        except httpx2.TimeoutException as error:
            raise Refusal(504, "the upstream did not answer in time", "upstream") from error
        except httpx2.HTTPError as error:
            logger.warning("the upstream cannot be reached: %s", type(error).__name__)
            raise Refusal(502, "the upstream cannot be reached or broke off", "upstream") from error

    def _authorization(self, request: Request) -> dict[str, str]:
        if self._token:
            return {"Authorization": f"Bearer {self._token}"}
        sent = request.headers.get("authorization")
        return {"Authorization": sent} if sent else {}


async def _only_model(client: httpx2.AsyncClient, headers: Mapping[str, str]) -> str | None:
    """The name of the upstream's model where it has one only and says so."""
    answer = await client.post(REPOSITORY_INDEX, headers=dict(headers), content=b"{}")
    listed = answer.json() if answer.status_code == 200 else []
    names = {str(model.get("name")) for model in listed if isinstance(model, dict)} if isinstance(listed, list) else set()
    return names.pop() if len(names) == 1 else None


def _channels_of(said: ModelMetadata) -> int | None:
    """The channels of a model's images, None where it takes any, takes files only, or does not say."""
    named = {tensor.shape[1] for tensor in said.inputs if tensor.datatype != "BYTES" and len(tensor.shape) == 4}
    channels = named.pop() if len(named) == 1 else -1
    return channels if channels > 0 else None


def _clean(path: str) -> str:
    """A path that cannot leave /v2.

    Raises:
        Refusal: it has parts that a server may read as another place.
    """
    parts = path.split("/")[1:]
    if parts[0] != "v2" or any(part in ("", ".", "..") or "\\" in part for part in parts):
        raise Refusal(404, "there is nothing at this address", "bad_request")
    return "/" + "/".join(quote(part, safe="") for part in parts)


def _forwarded(request: Request) -> dict[str, str]:
    return {name: request.headers[name] for name in ("x-request-id", "traceparent") if name in request.headers}


def _handed_back(answer: httpx2.Response) -> Response:
    headers = {name: answer.headers[name] for name in BACK if name in answer.headers}
    return Response(answer.content, status_code=answer.status_code, headers=headers)
