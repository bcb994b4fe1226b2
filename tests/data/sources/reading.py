"""A source's own reading of a raw folder, without the pipeline behind it."""

from __future__ import annotations

from pathlib import Path

from evenhand.data.sources.base import Found
from evenhand.data.sources.prepare import make_choice
from evenhand.data.sources.raw import RawFolder
from evenhand.data.sources.registry import find_source


def found(name: str, root: Path, task: str | None = None, split: str | None = None, **options: str) -> Found:
    """What the source makes of the folder."""
    source = find_source(name)
    result: Found = source.read(RawFolder(root, source.INFO.layout), make_choice(source.INFO, task, split, options))
    return result
