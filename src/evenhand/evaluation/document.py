"""Results that are one JSON document: an audit, a comparison, a transfer to other data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Document:
    """A result; ``data`` is its JSON document."""

    data: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The document as a dict."""
        return self.data

    def dumps(self) -> str:
        """The document's JSON text."""
        return json.dumps(self.data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
