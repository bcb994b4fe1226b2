"""Which public data sets there are; a source's module is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Protocol

from evenhand.data.sources.base import Choice, Found, Info
from evenhand.data.sources.raw import RawFolder
from evenhand.errors import InputError, nearest

FOLDER = "evenhand.data.sources.public"


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
    """The module of a source, by its name, by another name that it goes by, or by the path of a file of your own, as ``mine.py``.

    Raises:
        InputError: no such source (the nearest name is offered), or the file is none.
    """
    if name.endswith(".py"):
        return _own_source(Path(name))
    if name in source_names():
        return import_module(f"{FOLDER}.{name}")
    others = {alias: known for known, info in all_sources().items() for alias in info.aliases}
    if name not in others:
        raise InputError(f"source '{name}' is not known; {_nearest_source(name, sorted(['csv', *source_names(), *others]))}")
    return import_module(f"{FOLDER}.{others[name]}")


def _nearest_source(name: str, known: Sequence[str]) -> str:
    """As `nearest`, for names as providers write them (MIMIC-CXR), and for the beginnings of several (ISIC)."""
    plain = name.lower().replace("-", "_").replace(" ", "_")
    within = [source for source in known if plain and plain in source]
    if plain not in known and len(within) > 1:
        return f"known are {', '.join(within)}"
    return nearest(within[0] if within else plain, known, otherwise=f"known sources are: {', '.join(['csv', *source_names()])}")


def _own_source(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a Python file with INFO and read(raw, choice), or the name of a public data set")
    spec = spec_from_file_location(f"evenhand_source_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} cannot be loaded as a Python file")
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{path} cannot be loaded ({type(error).__name__}: {error}); correct the file") from error
    info = getattr(module, "INFO", None)
    if not isinstance(info, Info) or not callable(getattr(module, "read", None)):
        raise InputError(f"{path} is no source of data; it needs INFO, an Info, and read(raw, choice), as in docs/guide/public_data.md")
    if info.name in ("csv", *source_names()):
        raise InputError(f"{path} calls itself '{info.name}', which is a source of evenhand; give INFO another name")
    return module


def all_sources() -> dict[str, Info]:
    """Name -> what is said about it, for every public data set."""
    return {name: import_module(f"{FOLDER}.{name}").INFO for name in source_names()}


def list_sources(modality: str | None = None) -> tuple[Info, ...]:
    """What is said about every public data set that `prepare_source` reads, sorted by name.

    Args:
        modality: only those of this modality, as ``dermoscopy``; default: all.

    Example:
        >>> [info.title for info in list_sources("chest_film") if info.name == "nih"]
        ['NIH ChestX-ray14']
    """
    return tuple(info for info in all_sources().values() if modality in (None, info.modality))
