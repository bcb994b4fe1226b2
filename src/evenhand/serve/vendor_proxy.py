"""The proxy for services with a JSON of their own: images of a prediction are edited on their way, all else goes through.

A client posts what it would post to the service, to the same path, and gets the service's answer. Images are PNG or JPEG files on the
edit's grid; they leave as PNG, without loss.
"""

from __future__ import annotations

import json
import threading
from urllib.parse import unquote, urlsplit, urlunsplit

import httpx2
from fastapi import FastAPI, Request, Response

from evenhand.edits.artifact import StoredEdit
from evenhand.models.protocol import LIVE, READY
from evenhand.serve.editing import Editor
from evenhand.serve.gate import Gate, json_error, make_routes
from evenhand.serve.images import bad
from evenhand.serve.intake import MAX_JSON, Intake
from evenhand.serve.limits import Limits, Refusal
from evenhand.serve.metrics import Metrics
from evenhand.serve.upstream import BACK, FORTH, Upstream, clean_path, forwarded, handed_back
from evenhand.serve.vendor_requests import VENDORS, VendorRequest


class VendorProxyApp:
    """An edit in front of a service, as an ASGI application in ``gate``.

    Args:
        stored: the edit.
        upstream: address of the service, or of one prediction (with a path, which is then the only one).
        api: cxr_foundation or medimageinsight.
        limits: what clients may do; its token is asked of clients.
        token: sent upstream; None: what the client sent.
        transport: how the upstream is reached; default: over the network.
    """

    def __init__(
        self, stored: StoredEdit, upstream: str, api: str, limits: Limits, token: str | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.limits = limits
        self.vendor = VENDORS[api]
        self.metrics = Metrics(lambda: 0)
        self.intake = Intake(limits)
        parts = urlsplit(upstream)
        self._only_path = parts.path.rstrip("/") or None
        self._editor = Editor(stored)
        self._upstream = Upstream(urlunsplit((parts.scheme, parts.netloc, "", "", "")), limits.timeout, token, transport)
        self.gate = Gate(self._routes(), limits, self.metrics, self._upstream.aclose)

    def close(self) -> None:
        """Stop the threads."""
        self.intake.close()

    def _routes(self) -> FastAPI:
        app = make_routes(self.metrics)
        app.add_api_route(LIVE, self._live, methods=["GET"], response_model=None)
        app.add_api_route(READY, self._ready, methods=["GET"], response_model=None)
        app.add_api_route("/{rest:path}", self._predict, methods=["POST"], response_model=None)
        return app

    async def _live(self) -> Response:
        return Response(json.dumps({"live": True}), media_type="application/json")

    async def _ready(self) -> Response:
        if self.gate.draining:
            return json_error(503, "the server is stopping")
        return Response(json.dumps({"ready": True}), media_type="application/json")

    async def _predict(self, request: Request) -> Response:
        path = self._path_of(request)
        stop = threading.Event()
        async with self.intake.body(request) as body:
            return await self.intake.await_answer(self._answer(request, path, body, stop), request.receive, stop)

    def _path_of(self, request: Request) -> str:
        """Where the request goes.

        Raises:
            Refusal: 403, an address that predicts nothing; 404, one that could be read as another place.
        """
        path = str(request.scope["path"])
        if self._only_path is not None:
            if path.rstrip("/") not in ("", unquote(self._only_path)):
                raise Refusal(404, "this proxy is for one address; post to /", "bad_request")
            return self._only_path
        if not path.endswith(self.vendor.ending):
            raise Refusal(403, f"only requests to addresses that end in {self.vendor.ending} are passed on", "not_passed")
        return clean_path(path, safe=":")

    async def _answer(self, request: Request, path: str, body: bytearray, stop: threading.Event) -> Response:
        if len(body) > MAX_JSON:
            raise bad(f"{len(body)} bytes of JSON arrived, at most {MAX_JSON} may be; send fewer images a request", 413)
        asked = await self.intake.read(lambda: VendorRequest(bytes(body), self.vendor), len(body))
        if asked.n > self.limits.max_batch:
            raise bad(f"{asked.n} images arrived, but a request may have {self.limits.max_batch}; send several requests", 413)
        self.intake.charge(request, asked.n)
        content = await self.intake.run(self._edited, asked, stop)
        headers = {"Content-Type": "application/json", **forwarded(request, (*FORTH, *self.vendor.forth))}
        answer = await self._upstream.ask("POST", path, request, content, headers)
        if answer.status_code == 200:
            self.metrics.images(asked.n)
        return handed_back(answer, (*BACK, *self.vendor.back))

    def _edited(self, asked: VendorRequest, stop: threading.Event) -> bytes:
        files = asked.files()
        return asked.with_files(self._editor.edited(files, go_on=lambda: not stop.is_set()) if asked.n else files)
