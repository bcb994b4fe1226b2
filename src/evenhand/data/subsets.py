"""Some images of others, by position."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np


class ImageRows:
    """Some images of others, by position; embedded by taking rows of the whole's embeddings.

    Args:
        whole: images by position, with ``shape``, ``fingerprint`` and ``batch``.
        rows: int64 (n,) positions in the whole.
    """

    def __init__(self, whole: Any, rows: np.ndarray[Any, Any]) -> None:
        self.whole, self.rows = whole, rows
        self.shape = whole.shape
        self.fingerprint = f"{whole.fingerprint}/{hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()}"

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, positions: Any) -> Any:
        """The images at positions of this selection."""
        return self.whole.batch(self.rows[positions])
