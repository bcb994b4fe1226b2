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

import httpx2
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
    Message,
    ModelMetadata,
    Tensor,
    encode_request,
    model_path,
    read_json,
    wants_binary,
)
from evenhand.serve.editing import Editor
from evenhand.serve.fingerprints import edited_parameters, made_for_another
from evenhand.serve.gate import Gate, json_error, make_routes
from evenhand.serve.images import bad
from evenhand.serve.intake import Intake
from evenhand.serve.limits import Limits, Refusal
from evenhand.serve.metrics import Metrics
from evenhand.serve.upstream import Upstream, clean_path, forwarded, handed_back

logger = logging.getLogger(__name__)

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
        self._editor = Editor(stored)
        self._upstream = Upstream(upstream.rstrip("/").removesuffix(SERVER), limits.timeout, token, transport)
        self._checked: dict[tuple[str, str | None], int | None] = {}
        self.gate = Gate(self._routes(), limits, self.metrics, self.aclose)

    async def aclose(self) -> None:
        """Close the connections to the upstream."""
        await self._upstream.aclose()

    def close(self) -> None:
        """Stop the threads."""
        self.intake.close()

    async def check_upstream(self) -> None:
        """Before anything is served: the edit must be for the model of the upstream, where it can be asked now.

        Raises:
            InputError: an edit for another grid or encoder.
        """
        headers = {"Authorization": f"Bearer {self._upstream.token}"} if self._upstream.token else {}
        async with self._upstream.new_client(START_SECONDS) as client:
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
        return handed_back(await self._upstream.ask("GET", READY, request))

    async def _pass(self, request: Request) -> Response:
        return handed_back(await self._upstream.ask("GET", clean_path(request.scope["path"], "v2"), request))

    async def _index(self, request: Request) -> Response:
        async with self.intake.body(request) as body:
            said = read_json(bytes(body) or b"{}")
            wanted = isinstance(said, dict) and said.get("ready") is True
            return handed_back(await self._upstream.ask("POST", REPOSITORY_INDEX, request, b'{"ready":true}' if wanted else b"{}"))

    async def _refuse(self, request: Request) -> Response:
        raise Refusal(403, "this proxy passes on requests for inference and nothing else that changes or sends anything", "not_passed")

    async def _metadata(self, request: Request) -> Response:
        name, version = self._asked(request)
        answer = await self._upstream.ask("GET", model_path(name, version), request)
        if answer.status_code != 200:
            return handed_back(answer)
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
        headers = {**message.headers, **forwarded(request)}
        answer = await self._upstream.ask("POST", model_path(name, version, "infer"), request, message.join(), headers)
        if answer.status_code == 200:
            self.metrics.images(n)
        return handed_back(answer)

    def _edited(self, asked: InferRequest, tensor: Tensor, binary: bool, wanted: int | None, stop: threading.Event) -> Message:
        """The request anew, its images edited and with the channels that the upstream wants; runs in a thread."""
        new = self._editor.edited(tensor, wanted, lambda: not stop.is_set())
        content: dict[str, Any] = dict(asked.parameters)
        if asked.binary_outputs:
            content["binary_data_output"] = True
        outputs = [name for name, _ in asked.outputs]
        all_binary = bool(outputs) and all(wants_binary(asked, name) for name in outputs)
        try:
            return encode_request([new], binary=binary, outputs=outputs, binary_outputs=all_binary, id=asked.id, parameters=content)
        except (ProtocolError, RecursionError) as error:
            raise bad("parameters of the request hold numbers that are not finite, or are nested too deeply") from error

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
        answer = await self._upstream.ask("GET", model_path(name, version), request)
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
                    grid = f"{self._editor.grid} (channels, height, width)"
                    return f"the model '{said.name}' takes images of {found}, but the edit is for {grid}"
        if made_for_another(self.stored, said):
            return f"the edit was trained against another encoder than the model '{said.name}'"
        return None

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
