"""The server's process: options, an address, signals, and an end in which nothing that was begun is lost."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import queue
import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from evenhand.config.editing import ServeConfig
from evenhand.errors import InputError, RunError
from evenhand.models.protocol import error_body
from evenhand.serve.gate import Gate
from evenhand.serve.limits import Limits

logger = logging.getLogger(__name__)

TOKEN = "EVENHAND_TOKEN"
UPSTREAM_TOKEN = "EVENHAND_UPSTREAM_TOKEN"
HEADER_SECONDS = 20.0
KEEP_ALIVE = 75
LOCAL = ("127.0.0.1", "::1", "localhost")


def serve(config: ServeConfig, on_ready: Callable[[str], None] = lambda address: None) -> None:
    """Serve until SIGTERM or SIGINT; then finish what is inside, and return.

    Args:
        config: what `evenhand serve` takes.
        on_ready: called once with a line that holds the address, when requests are answered.

    Raises:
        InputError: options that contradict each other, an edit for another grid or encoder, no token where one is asked for.
        RunError: the address cannot be listened on.
    """
    check_options(config)
    limits = limits_of(config)
    with listening(config.host, config.port) as listener:
        service, what = _service(config, limits)
        try:
            run_gate(service.gate, config, listener, lambda address: on_ready(f"evenhand serve: {what} at {address}"))
        finally:
            service.close()


def run_gate(gate: Gate, config: ServeConfig, listener: socket.socket, on_ready: Callable[[str], None] = lambda address: None) -> None:
    """Answer on a bound socket until a signal, or until somebody else sets ``gate.draining``.

    Args:
        gate: the application.
        config: its host, certificate and key.
        listener: from `listening`.
        on_ready: called once with the address.

    Raises:
        InputError: certificate and key cannot be used.
    """
    address = f"{'https' if config.certificate else 'http'}://{_shown(config.host)}:{listener.getsockname()[1]}"
    _Server(_settings(gate, config), gate, lambda: on_ready(address)).run(sockets=[listener])


def check_options(config: ServeConfig) -> None:
    """Refuse options that contradict each other, before anything is loaded.

    Raises:
        InputError: which, and what to do.
    """
    if (config.model is None) == (config.upstream is None):
        both = "both arrived" if config.model is not None else "neither arrived"
        raise InputError(f"exactly one of model= and upstream= must be given, {both}; model= serves an encoder, upstream= is a proxy")
    if config.upstream is not None and not config.edit:
        raise InputError("upstream= needs edit=: the proxy puts an edit on every image; give edit=FILE")
    if config.upstream is not None and not config.upstream.startswith(("http://", "https://")):
        raise InputError(f"upstream={config.upstream} is not an address; write it as upstream=https://host:port")
    if config.upstream_api != "v2" and (config.upstream is None or config.name is not None):
        raise InputError(f"upstream_api={config.upstream_api} is of a proxy, to a service without model names; give upstream=, not name=")
    if config.upstream is not None and (urlsplit(config.upstream).query or urlsplit(config.upstream).fragment):
        raise InputError("upstream= holds a query or a fragment; give the plain address, clients send their own query")
    if config.upstream is not None and config.grid is not None:
        raise InputError("grid= is the edit's in a proxy; leave it out")
    if config.port > 65535:
        raise InputError(f"port={config.port}, but must be 0 to 65535")
    if (config.certificate is None) != (config.key is None):
        raise InputError("certificate= and key= belong together; give both for TLS, or neither")
    for name, path in (("certificate", config.certificate), ("key", config.key)):
        if path is not None and not Path(path).is_file():
            raise InputError(f"{name}={path}: no such file")
    if config.require_token and not os.environ.get(TOKEN):
        raise InputError(f"require_token=true, but {TOKEN} is not set; put the token into the environment, or set require_token=false")
    if config.host not in LOCAL and not os.environ.get(TOKEN):
        if os.environ.get(UPSTREAM_TOKEN) and config.upstream is not None:
            raise InputError(f"{UPSTREAM_TOKEN} would be lent to everybody who reaches {config.host}; set {TOKEN} too, or host=127.0.0.1")
        logger.warning("%s can be reached by others, and no token is asked for; set %s", config.host, TOKEN)


def limits_of(config: ServeConfig) -> Limits:
    """The limits in the options, with the token of the environment, which is asked for wherever it is set."""
    return Limits(config.max_batch, config.max_bytes, config.timeout, config.rate, config.queue, os.environ.get(TOKEN) or None)


def _service(config: ServeConfig, limits: Limits) -> tuple[Any, str]:
    """The application, and what it serves in words."""
    if config.upstream is not None:
        from evenhand.edits.artifact import load_edit
        from evenhand.serve.proxy import ProxyApp
        from evenhand.serve.vendor_proxy import VendorProxyApp

        stored = load_edit(str(config.edit))
        token, what = os.environ.get(UPSTREAM_TOKEN) or None, f"edit {stored.fingerprint[:12]} for {config.upstream}"
        if config.upstream_api != "v2":
            return VendorProxyApp(stored, config.upstream, config.upstream_api, limits, token), what
        proxy = ProxyApp(stored, config.upstream, limits, config.name, token)
        asyncio.run(proxy.check_upstream())
        return proxy, what
    from evenhand.serve.app import EmbeddingApp
    from evenhand.serve.encoder import load_served_model

    model = load_served_model(config)
    return EmbeddingApp(model, limits, config.batch_wait), f"{model.name} ({model.grid} -> {model.dim})"


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket bound to an address, not listening yet: a port in use is known before weights are read.

    Raises:
        InputError: no such address on this machine.
        RunError: the port is in use, or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise InputError(f"host={host} is not an address; use 127.0.0.1, or 0.0.0.0 for every interface") from error
    with socket.socket(family, kind, protocol) as listener:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise RunError(f"port {port} of {host} is in use; stop what listens there, or take another (port=0: a free one)") from error
            reason = os.strerror(error.errno or 0).lower()
            raise RunError(f"cannot listen on {host}:{port} ({reason}); take another host or port") from error
        yield listener


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _settings(gate: Gate, config: ServeConfig) -> uvicorn.Config:
    settings = uvicorn.Config(
        gate, http=_Protocol, ws="none", lifespan="off", loop="asyncio", log_config=None, log_level="error", access_log=False,
        server_header=False, timeout_keep_alive=KEEP_ALIVE, ssl_certfile=config.certificate, ssl_keyfile=config.key,
        proxy_headers="FORWARDED_ALLOW_IPS" in os.environ,
    )
    try:
        settings.load()
    except (ssl.SSLError, OSError) as error:
        raise InputError(f"certificate={config.certificate} and key={config.key} cannot be used ({error})") from error
    return settings


class _Protocol(H11Protocol):
    """uvicorn's HTTP/1.1, with a limit on how long a request's header may take, and JSON where a request is not HTTP."""

    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_header()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_header()

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state is h11.SEND_RESPONSE or self.conn.our_state is h11.IDLE:
            body = error_body("this is not an HTTP/1.1 request")
            headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
            for event in (h11.Response(status_code=400, headers=headers, reason=b"Bad Request"), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch_header(self) -> None:
        """A timer runs while a header is awaited that has begun, or the first one of a connection."""
        inside = self.cycle is not None and not self.cycle.response_complete
        if inside or self.timeout_keep_alive_task is not None:
            self._stop_watching()
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_watching(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


class _Server(uvicorn.Server):
    """uvicorn's server that drains: the first signal refuses what is new and waits for what is inside, a second one stops at once."""

    def __init__(self, settings: uvicorn.Config, gate: Gate, on_ready: Callable[[], None] = lambda: None) -> None:
        super().__init__(settings)
        self._gate = gate
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self._gate.at_exit is not None:
            await self._gate.at_exit()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._gate.draining:
            self.force_exit = self.should_exit = True
        self._gate.draining = True

    async def on_tick(self, counter: int) -> bool:
        if self._gate.draining and not self._gate.metrics.in_flight:
            self.should_exit = True
        return await super().on_tick(counter)


@contextmanager
def serving(gate: Gate, host: str = "127.0.0.1", port: int = 0, certificate: str | None = None, key: str | None = None) -> Iterator[str]:
    """A server in a thread of this process, for tests and measurements; gives its address, drains at the end.

    Example:
        >>> from evenhand.serve.app import EmbeddingApp, Grid, ServedModel
        >>> app = EmbeddingApp(ServedModel("mean", Grid(1, 8, 8), 1, lambda x: x.mean((2, 3)).numpy()), Limits())
        >>> with serving(app.gate) as address:
        ...     address.startswith("http://127.0.0.1:")
        True
        >>> app.close()
    """
    config = ServeConfig(model="-", host=host, port=port, certificate=certificate, key=key)
    addresses: queue.SimpleQueue[str] = queue.SimpleQueue()
    with listening(host, port) as listener, ThreadPoolExecutor(1) as pool:
        ended = pool.submit(run_gate, gate, config, listener, addresses.put)
        ended.add_done_callback(lambda _: addresses.put(""))
        try:
            yield addresses.get() or str(ended.result())
        finally:
            gate.draining = True
