"""NIH ChestX-ray14, from a tiny copy of the download to a trained probe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evenhand.data.datasets import PreparedData


def test_from_raw_to_a_trained_probe(miniature: Callable[..., Path], story: Callable[..., PreparedData]) -> None:
    data = story("nih", miniature("nih"))
    assert len(data) == 48
