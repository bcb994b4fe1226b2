"""Text typed after ``name=`` to a value of the option's type, with errors that say what arrived and what the rule is."""

from __future__ import annotations

import math
import typing
from collections.abc import Sequence
from typing import Any

from evenhand.config.options import Option, kind_name, strip_optional
from evenhand.errors import ConfigError

TRUE = ("true", "yes", "on", "1")
FALSE = ("false", "no", "off", "0")


def parse_value(text: str, option: Option) -> Any:
    """The value of one option from its text.

    Text stays as it is (spaces, ``=``, ``*`` and any alphabet included); ``null`` is None where None is allowed; lists are
    separated by commas, with or without brackets, and an entry that holds a comma is put in quotes.

    Args:
        text: what stands after the first ``=``.
        option: what the schema says about it.

    Raises:
        ConfigError: the text is not of the option's type.

    Example:
        >>> parse_value("0,1,2", Option("seeds", list[int], None))
        [0, 1, 2]
        >>> parse_value("sex,age,sex*age", Option("data.attributes", typing.Optional[list[str]], None))
        ['sex', 'age', 'sex*age']
    """
    hint, optional = strip_optional(option.hint)
    if optional and text.strip().lower() in ("null", "none"):
        return None
    origin = typing.get_origin(hint)
    if origin is list:
        entry = typing.get_args(hint)[0]
        return [_scalar(item, entry, option) for item in split_list(text, option.name)]
    if origin is dict:
        raise ConfigError(f"{option.name} got {text!r}, but takes named values; write {option.name}.NAME={text or 'VALUE'}")
    return _scalar(_unquote(text), hint, option)


def split_list(text: str, name: str = "list") -> list[str]:
    """The entries of ``a,b,"c,d"`` or ``[a, b]``; an empty text or ``[]`` is an empty list.

    Example:
        >>> split_list("[a, 'b, c',sex*age]")
        ['a', 'b, c', 'sex*age']
    """
    body = text.strip()
    if body.startswith("[") != body.endswith("]"):
        raise ConfigError(f"{name} got {text!r}, but a list opens and closes its bracket, or has none: {name}=a,b,c")
    body = body[1:-1].strip() if body.startswith("[") else body
    if not body:
        return []
    entries = [_unquote(part.strip()) for part in _cut(body)]
    if any(entry == "" for entry in entries):
        raise ConfigError(f"{name} got {text!r}, which has an empty entry; write {name}=a,b,c")
    return entries


def check_value(value: Any, option: Option) -> str:
    """What is wrong with a typed value (its choices and its range), or an empty text."""
    if value is None or (option.required and value == "???"):
        return ""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return next((text for item in value if (text := check_value(item, option))), "")
    if option.choices and value not in option.choices:
        return f"{option.name} is {value!r}, but must be one of: {', '.join(option.choices)}"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            return f"{option.name} is {value}, but must be a finite number"
        if option.low is not None and value < option.low:
            return f"{option.name} is {value:g}, but must be at least {option.low:g}"
        if option.high is not None and value > option.high:
            return f"{option.name} is {value:g}, but must be at most {option.high:g}"
    return ""


def _scalar(text: str, hint: Any, option: Option) -> Any:
    if hint is bool:
        lowered = text.strip().lower()
        if lowered not in TRUE + FALSE:
            raise ConfigError(f"{option.name} is {text!r}, but must be true or false")
        return lowered in TRUE
    if hint in (int, float):
        try:
            return hint(text.strip())
        except ValueError:
            rule = "a whole number" if hint is int else "a number"
            note = f" ({kind_name(option.hint)})" if typing.get_origin(strip_optional(option.hint)[0]) is list else ""
            raise ConfigError(f"{option.name} is {text!r}, but must be {rule}{note}") from None
    return text


def _unquote(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"" and text[0] not in text[1:-1]:
        return text[1:-1]
    return text


def _cut(body: str) -> list[str]:
    """Split at commas outside quotes; a quote opens only at the start of an entry, so that ``Barrett's`` is plain text."""
    parts, current, quote = [], "", ""
    for sign in body:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"" and not current.strip() and body.count(sign) > 1:
            quote = sign
        elif sign == ",":
            parts.append(current)
            current = ""
            continue
        current += sign
    return [*parts, current]
