"""The server: embeddings over the Open Inference Protocol v2, and a proxy that edits images on their way to such a server.

The room itself can be called: ``eh.serve(config)`` is what `evenhand serve` does, under the name that the room has already.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evenhand.config.editing import ServeConfig


class _Serve(ModuleType):
    """A room that can be called."""

    def __call__(self, config: ServeConfig, on_ready: Callable[[str], None] = lambda address: None) -> None:
        """Serve an encoder, or edit images on their way to a server, until SIGTERM or SIGINT; then finish what is inside, and return.

        Args:
            config: what `evenhand serve` takes; ``model`` serves an encoder, ``edit`` with ``upstream`` is a proxy.
            on_ready: called once with a line that holds the address, when requests are answered.

        Raises:
            InputError: options that contradict each other, an edit for another grid or encoder, no token where one is asked for.
            RunError: the address cannot be listened on.
            DependencyError: the extra ``serve`` is not installed.

        Example:
            >>> import evenhand as eh  # doctest: +SKIP
            >>> eh.serve(eh.compose("serve", ["model=encoder.pth", "port=8080"]), print)  # doctest: +SKIP
            evenhand serve: encoder at http://127.0.0.1:8080
        """
        from evenhand.optional import require

        for package in ("fastapi", "uvicorn"):
            require(package, "serve", "eh.serve")
        from evenhand.serve.run import serve

        serve(config, on_ready)


sys.modules[__name__].__class__ = _Serve
