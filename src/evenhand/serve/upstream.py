"""The server behind a proxy: how it is asked, what of a client's request goes there and what of its answer comes back."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from urllib.parse import quote

import httpx2
from fastapi import Request, Response

from evenhand.models.protocol import HEADER
from evenhand.serve.limits import Refusal

logger = logging.getLogger(__name__)

BACK = ("content-type", "retry-after", "www-authenticate", HEADER.lower())
FORTH = ("x-request-id", "traceparent")
CONNECTIONS = 64


class Upstream:
    """Requests to one server.

    Args:
        address: of the server, http or https.
        timeout: seconds for an answer; 0 = no limit.
        token: sent there; None: what the client sent.
        transport: how it is reached; default: over the network.
    """

    def __init__(
        self, address: str, timeout: float, token: str | None = None, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        self.address = address
        self.token = token
        self._timeout = timeout
        self._transport = transport
        self._client: httpx2.AsyncClient | None = None

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def new_client(self, seconds: float) -> httpx2.AsyncClient:
        """A client of the server that waits so long for an answer."""
        limits = httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
        timeout = httpx2.Timeout(seconds or None, pool=None)
        return httpx2.AsyncClient(
            base_url=self.address, timeout=timeout, limits=limits, transport=self._transport, headers={"Accept-Encoding": "identity"},
        )

    async def ask(
        self, method: str, path: str, request: Request, content: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx2.Response:
        """Ask on a client's behalf: its query and, where no token is lent, its authorisation go along.

        Raises:
            Refusal: 502 it cannot be reached or breaks off, 504 it is too slow.
        """
        if self._client is None:
            self._client = self.new_client(self._timeout)
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
        if self.token:
            return {"Authorization": f"Bearer {self.token}"}
        sent = request.headers.get("authorization")
        return {"Authorization": sent} if sent else {}


def clean_path(path: str, start: str = "", safe: str = "") -> str:
    """A path that cannot leave its place, quoted.

    Args:
        path: as it arrived, decoded.
        start: what its first part must be; "": anything.
        safe: characters that stay unquoted.

    Raises:
        Refusal: 404, it has parts that a server may read as another place.
    """
    parts = path.split("/")[1:]
    if (start and parts[0] != start) or any(part in ("", ".", "..") or "\\" in part for part in parts):
        raise Refusal(404, "there is nothing at this address", "bad_request")
    return "/" + "/".join(quote(part, safe=safe) for part in parts)


def forwarded(request: Request, names: Sequence[str] = FORTH) -> dict[str, str]:
    """The headers of a client's request that go upstream."""
    return {name: request.headers[name] for name in names if name in request.headers}


def handed_back(answer: httpx2.Response, names: Sequence[str] = BACK) -> Response:
    """The upstream's answer as the proxy's."""
    headers = {name: answer.headers[name] for name in names if name in answer.headers}
    return Response(answer.content, status_code=answer.status_code, headers=headers)
