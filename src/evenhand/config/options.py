"""The options of a schema as a flat list: what the command line accepts, what ``--help`` shows, what errors suggest."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from evenhand.config.methods import EVERY_METHOD, METHOD_CONFIGS
from evenhand.config.schema import MethodConfig


@dataclass(frozen=True)
class Option:
    """One option of a schema.

    Attributes:
        name: dotted, as typed: ``trainer.max_epochs``.
        hint: the Python type, ``int`` or ``Optional[list[str]]``.
        default: its default; ``"???"`` where it must be given.
        help: one sentence.
        unit: of the number, or empty.
        choices: allowed values; empty means any.
    """

    name: str
    hint: Any
    default: Any
    help: str = ""
    unit: str = ""
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None

    @property
    def required(self) -> bool:
        """True where there is no default."""
        return bool(self.default == "???")

    @property
    def kind(self) -> str:
        """The type in words of the command line: ``integer``, ``list of text``, ``adamw|adam|sgd``."""
        return "|".join(self.choices) if self.choices else kind_name(self.hint)

    @property
    def default_text(self) -> str:
        """The default as it would be typed."""
        if self.required:
            return "required"
        if isinstance(self.default, list):
            return ",".join(map(str, self.default)) or "empty"
        if isinstance(self.default, bool):
            return str(self.default).lower()
        return {None: "null", "": "empty"}.get(self.default, str(self.default)) if not isinstance(self.default, dict) else "empty"


def strip_optional(hint: Any) -> tuple[Any, bool]:
    """The type without None, and whether None is allowed.

    Example:
        >>> strip_optional(typing.Optional[int])
        (<class 'int'>, True)
    """
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        return kinds[0], len(kinds) < len(typing.get_args(hint))
    return hint, False


def kind_name(hint: Any) -> str:
    """A type in plain words.

    Example:
        >>> kind_name(list[str]), kind_name(typing.Optional[float])
        ('list of text', 'number')
    """
    hint, _ = strip_optional(hint)
    names = {int: "integer", float: "number", str: "text", bool: "true|false"}
    origin = typing.get_origin(hint)
    if origin is list:
        return f"list of {names.get(typing.get_args(hint)[0], 'values')}"
    if origin is dict:
        return "NAME=text"
    return names.get(hint, "value")


def section_type(schema: type, name: str) -> type | None:
    """The dataclass of one section of a schema, None where the field is an option."""
    hint = _hints(schema)[name]
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return hint
    return MethodConfig if hint is Any and name == "method" else None


def section_names(schema: type) -> tuple[str, ...]:
    """The sections of a schema: ``data``, ``model``, …"""
    return tuple(field.name for field in _fields(schema) if section_type(schema, field.name) is not None)


def list_options(schema: type, prefix: str = "", method: type | None = None) -> list[Option]:
    """Every option of a schema, sections included, in the order of the source.

    Args:
        schema: a dataclass of `evenhand.config.schema` or `evenhand.config.methods`.
        prefix: put before every name, for example ``"trainer."``.
        method: the method's dataclass where the schema has a method; default: the options of all methods.
    """
    hints = _hints(schema)
    found: list[Option] = []
    for field in _fields(schema):
        section = section_type(schema, field.name)
        if section is None:
            found.append(_option(field, hints[field.name], prefix))
        elif section is MethodConfig:
            kinds = [method] if method else [EVERY_METHOD[name] for name in getattr(schema, "methods", METHOD_CONFIGS)]
            found += _unique(option for kind in kinds for option in list_options(kind, "method."))
        else:
            found += list_options(section, f"{prefix}{field.name}.")
    return found


def nearest(name: str, known: Iterable[str]) -> str:
    """A half sentence with the nearest known names, or all of them where there are few; empty where none is near.

    Example:
        >>> nearest("max_epoch", ["trainer.max_epochs", "trainer.lr"])
        "; did you mean 'trainer.max_epochs'?"
    """
    known = list(dict.fromkeys(known))
    leaf = name.rsplit(".", 1)[-1].lower()
    by_leaf: dict[str, list[str]] = {}
    for full in known:
        by_leaf.setdefault(full.rsplit(".", 1)[-1].lower(), []).append(full)
    close = difflib.get_close_matches(name.lower(), [full.lower() for full in known], n=1, cutoff=0.75)
    found = [full for full in known if full.lower() in close] or by_leaf.get(leaf, [])
    if not found:
        leaves = difflib.get_close_matches(leaf, list(by_leaf), n=1, cutoff=0.6)
        found = [full for match in leaves for full in by_leaf[match]]
    if not found:
        found = [full for full in known if full.lower() in difflib.get_close_matches(name.lower(), [k.lower() for k in known], n=1)]
    return f"; did you mean {' or '.join(repr(full) for full in found[:3])}?" if found else ""


@functools.cache
def _hints(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema)


def _fields(schema: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(schema)


def _unique(options: Iterable[Option]) -> list[Option]:
    return list({option.name: option for option in options}.values())


def _option(field: dataclasses.Field[Any], hint: Any, prefix: str) -> Option:
    default = field.default
    if default is dataclasses.MISSING:
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else "???"
    meta = field.metadata
    return Option(
        prefix + field.name, hint, default, meta.get("help", ""), meta.get("unit", ""), tuple(meta.get("choices", ())),
        meta.get("low"), meta.get("high"),
    )
