"""All that is said about a public data set, as plain text that wraps."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from evenhand.data.sources.base import Info
from evenhand.data.sources.registry import find_source


def describe_source(name: str, width: int = 100) -> str:
    """Layout, labels, attributes, splits, counts, licence and citation of a public data set.

    Args:
        name: one of `list_sources`.
        width: most characters a line; the layout's own lines are never broken.

    Raises:
        InputError: no such data set; the nearest name is offered.

    Example:
        >>> print(describe_source("nih").splitlines()[0])
        nih: NIH ChestX-ray14
    """
    info: Info = find_source(name).INFO
    channels = {None: "1 channel where every image is grey, else 3", 1: "1 channel", 3: "3 channels"}[info.channels]
    default = {info.splits[0]: " (default)"}
    parts = [
        f"{info.name}: {info.title}",
        _line("Release", info.version, width),
        _line("Layout", checked(info), width),
        _line("Stored", f"{info.modality}, {info.size} x {info.size} pixels ({info.resize}), {channels}", width),
        *([] if info.own else [_line("Augment", f"evenhand train ... data.augment={info.modality} is the recipe that fits", width)]),
        _line("Command", f"evenhand prepare {info.name} RAW_FOLDER OUT", width),
        *([_line("Also as", ", ".join(info.aliases), width)] if info.aliases else []),
        "",
        "The raw folder holds:",
        *(f"    {line}" for line in info.layout.splitlines()),
        "",
        "Tasks, --task NAME:",
    ]
    for k, task in enumerate(info.tasks):
        parts += _entry(f"{task.name}{' (default)' if k == 0 else ''}, {task.kind}", f"{task.text}. {labels_text(task.labels)}", width)
    parts += ["", f"Attributes, --attributes NAME,NAME (default: {','.join(info.default_attributes) or 'none'}):"]
    for attribute in info.attributes:
        parts += _entry(attribute.name, attribute.text, width)
    parts += ["", "Split, --split RULE:"]
    parts += _entry(" or ".join(rule + default.get(rule, "") for rule in info.splits), info.split, width)
    if info.options:
        parts += ["", "Options, --option NAME=VALUE:"]
        for option in info.options:
            values = " | ".join(f"{value}{' (default)' if k == 0 else ''}" for k, value in enumerate(option.values)) or "TEXT"
            parts += _entry(f"{option.name}={values}", option.text, width)
    if info.expected:
        parts += ["", "Counts that are published:"]
        for item in info.expected:
            parts += _wrapped(f"{item.what}: {item.count:,} ({item.origin})", width, "    ", "        ")
    parts += _listed("Known oddities, and what is done about them:", info.traps, width)
    parts += _listed("Documentation:", info.documentation, width)
    parts += ["", _line("Licence", info.licence, width), _line("Get it", info.link, width), _line("Cite", info.citation, width)]
    return "\n".join(parts) + "\n"


def list_text(infos: Sequence[Info], width: int = 100) -> str:
    """All data sets, a name and a few lines each, those of the user's own last; what a set says in full is `describe_source`.

    Args:
        infos: what is said about each.
        width: most characters a line.
    """
    margin = max(len(info.name) for info in infos) + 2
    parts = []
    for info in sorted(infos, key=lambda info: info.own):
        facts = "your own data" if info.own else f"{info.modality}; verified: {'yes' if info.verified else 'no'}; licence: {info.licence}"
        parts += _wrapped(info.title, width, f"{info.name:<{margin}}", " " * margin)
        parts += _wrapped(facts, width, " " * margin, " " * margin)
    parts.append(f"{'csv':<{margin}}Your own table and folder of images")
    return "\n".join(parts) + "\n"


def checked(info: Info) -> str:
    """Whether the layout was seen on real data, in words."""
    if info.own:
        return "your own data, as the layout says"
    if info.verified:
        return "checked against a real download"
    return "not checked against a real download; as the provider's documentation says"


def labels_text(labels: Sequence[str]) -> str:
    """``Labels: A, B``."""
    if not labels:
        return "Labels: columns of your table, --labels NAME,NAME"
    return f"Label{'s' if len(labels) > 1 else ''}: {', '.join(labels)}"


def _line(name: str, text: str, width: int) -> str:
    return "\n".join(_wrapped(text, width, f"{name:<9}", " " * 9))


def _entry(head: str, text: str, width: int) -> list[str]:
    return [f"    {head}", *_wrapped(text, width, " " * 8, " " * 8)]


def _listed(head: str, items: Sequence[str], width: int) -> list[str]:
    return ["", head, *(line for item in items for line in _wrapped(item, width, "  - ", "    "))] if items else []


def _wrapped(text: str, width: int, first: str, later: str) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=later, break_long_words=False, break_on_hyphens=False)
