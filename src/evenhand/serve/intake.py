"""From the bytes of a request for inference to its checked tensor, and the patience with which its answer is awaited."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request

from evenhand.models.protocol import HEADER, InferRequest, Tensor, decode_request, read_header_length
from evenhand.serve.images import count_images, only_input
from evenhand.serve.limits import Bodies, ClientGone, Limits, Receive, Refusal, TokenBuckets, busy

MAX_JSON = 64 * 2**20
LARGE_JSON = 2**16
THREADS = 4

T = TypeVar("T")


class Intake:
    """Takes requests for inference in: queue limit, body, decoding outside the event loop, rate limit.

    Args:
        limits: what clients may do.
        input_name: what the tensor must be called; None: anything.
    """

    def __init__(self, limits: Limits, input_name: str | None = None) -> None:
        self.limits = limits
        self.bodies = Bodies(limits)
        self.buckets = TokenBuckets(limits.rate, limits.max_batch)
        self.inside = 0
        self._input_name = input_name
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="evenhand-decode")
        self._one_json = threading.Lock()

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function outside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytearray]:
        """The request's body, counted against the limits while the block runs.

        Raises:
            Refusal: too many requests inside, or what `Bodies.read` says.
        """
        if self.inside >= self.limits.queue:
            raise busy("too many requests wait already; try again", "queue")
        self.inside += 1
        try:
            body = await self.bodies.read(request.receive, request.headers)
            try:
                yield body
            finally:
                self.bodies.release(body)
        finally:
            self.inside -= 1

    async def decode(self, request: Request, body: bytearray) -> tuple[InferRequest, Tensor, int]:
        """The request, its tensor of images and their number, charged to the client's rate.

        Raises:
            ProtocolError: it breaks the protocol.
            Refusal: not one tensor of images, too many of them, or too many a second.
        """
        header_length = read_header_length(request.headers.get(HEADER), len(body))
        most = min(MAX_JSON, self.limits.max_bytes)
        asked = await self.read(lambda: decode_request(body, header_length, most), header_length or len(body))
        tensor = only_input(asked, self._input_name)
        n = count_images(tensor, self.limits.max_batch)
        self.charge(request, n)
        return asked, tensor, n

    def charge(self, request: Request, n: int) -> None:
        """Count ``n`` images against the client's rate.

        Raises:
            Refusal: too many a second.
        """
        self.buckets.check(request.client.host if request.client else "", n)

    async def read(self, function: Callable[[], T], length: int) -> T:
        """Call a function that reads so many bytes of JSON, outside the event loop."""
        return await self.run(self._by_turns, function, length)

    def _by_turns(self, function: Callable[[], T], length: int) -> T:
        if length < LARGE_JSON:
            return function()
        with self._one_json:  # JSON takes up to twenty times its size, so large ones are read one after another
            return function()

    async def await_answer(self, work: Awaitable[T], receive: Receive, stop: threading.Event) -> T:
        """The outcome of ``work``, which is cancelled when the client leaves or ``limits.timeout`` has passed.

        Args:
            work: makes the answer.
            receive: of the request, whose body was read to its end.
            stop: set when nobody waits any more, for work in threads.

        Raises:
            Refusal: 504.
            ClientGone: the connection was lost.
        """
        answer = asyncio.ensure_future(work)
        watcher = asyncio.ensure_future(_until_gone(receive))
        try:
            done, _ = await asyncio.wait({answer, watcher}, timeout=self.limits.timeout or None, return_when=asyncio.FIRST_COMPLETED)
            if answer in done:
                return answer.result()
            if watcher in done:
                raise ClientGone
            raise Refusal(504, f"no answer within {self.limits.timeout:g} seconds; the work was dropped", "timeout")
        finally:
            stop.set()
            answer.cancel()
            watcher.cancel()
            await asyncio.wait({answer, watcher})

    def close(self) -> None:
        """Stop the threads that decode."""
        self._pool.shutdown(wait=False, cancel_futures=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
