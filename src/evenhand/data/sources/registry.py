"""Which public data sets there are; a source's module is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Protocol

from evenhand.data.sources.base import Choice, Found, Info
from evenhand.data.sources.raw import RawFolder
from evenhand.errors import InputError, nearest

FOLDER = "evenhand.data.sources.public"
ALIASES: dict[str, str] = {}
"""Other name -> name."""


class Source(Protocol):
    """A module of the folder ``public``, named as the data set."""

    INFO: Info

    def read(self, raw: RawFolder, choice: Choice) -> Found:
        """One row an image, of a raw folder."""
        ...


def source_names() -> tuple[str, ...]:
    """The names of all public data sets, sorted; nothing is imported.

    Example:
        >>> "nih" in source_names()
        True
    """
    found = (module.name for module in iter_modules([str(Path(__file__).parent / "public")]))
    return tuple(sorted(name for name in found if not name.startswith("_")))


def find_source(name: str) -> Any:
    """The module of a source.

    Raises:
        InputError: no such source; the nearest name is offered.
    """
    name = ALIASES.get(name, name)
    if name not in source_names():
        known = sorted(["csv", *source_names(), *ALIASES])
        raise InputError(f"source '{name}' is not known; {nearest(name, known, otherwise='known sources are: ' + ', '.join(known))}")
    return import_module(f"{FOLDER}.{name}")


def all_sources() -> dict[str, Info]:
    """Name -> what is said about it, for every public data set."""
    return {name: find_source(name).INFO for name in source_names()}
