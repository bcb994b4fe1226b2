"""docs/reference/data_sets.md: all that the sources of data say of themselves, for `make_reference.py`."""

from __future__ import annotations

from collections.abc import Iterator

from evenhand.data.sources.base import Info
from evenhand.data.sources.describe import checked, labels_text
from evenhand.data.sources.registry import list_sources

INTRODUCTION = """`evenhand prepare NAME RAW_FOLDER OUT` reads each of these as its provider's download unpacks;
`evenhand prepare --describe NAME` prints the same in a terminal, and [Public data sets](../guide/public_data.md) says how it is used.
**Verified** means that the layout was checked against a real download; all others follow the provider's documentation, and what could not
be confirmed there is said."""


def data_sets_page(note: str) -> str:
    """A table of all sources, and a section for each."""
    infos = sorted(list_sources(), key=lambda info: info.own)
    lines = ["# Data sets", "", note, "", INTRODUCTION, "", "| name | | modality | verified | licence |", "|---|---|---|---|---|"]
    for info in infos:
        verified = "yours" if info.own else "yes" if info.verified else "no"
        modality = "any" if info.own else info.modality
        lines.append(f"| [`{info.name}`](#{info.name}) | {_cell(info.title)} | {modality} | {verified} | {_cell(info.licence)} |")
    for info in infos:
        lines += ["", *_section(info)]
    return "\n".join([*lines, ""])


def _section(info: Info) -> Iterator[str]:
    yield from (f"## {info.name}", "", f"**{info.title}**, {info.version}. Layout: {checked(info)}.", "")
    channels = {None: "as many channels as they have", 1: "1 channel", 3: "3 channels"}[info.channels]
    yield f"{'Any modality' if info.own else info.modality}, stored as {info.size} x {info.size} pixels ({info.resize}), {channels}."
    if not info.own:
        yield f"The augmentation that fits: `data.augment={info.modality}`."
        yield f"Licence: {_links(info.licence)}. Get it: {_links(info.link)}. Cite: {info.citation}."
    if info.aliases:
        yield f"Also called {', '.join(f'`{name}`' for name in info.aliases)}."
    yield from ("", "```text", *info.layout.splitlines(), "```", "", "| task | kind | |", "|---|---|---|")
    for task in info.tasks:
        yield f"| `{task.name}` | {task.kind if task.labels else ''} | {_cell(f'{task.text}. {labels_text(task.labels)}')} |"
    if info.attributes:
        yield from ("", "| attribute | |", "|---|---|")
    for attribute in info.attributes:
        yield f"| `{attribute.name}` | {_cell(attribute.text)} |"
    yield from ("", f"Without `--attributes`: {', '.join(f'`{name}`' for name in info.default_attributes) or 'none'}.")
    yield f"Split ({' or '.join(f'`{rule}`' for rule in info.splits)}): {info.split}."
    if info.options:
        yield from ("", "| option | values | |", "|---|---|---|")
        for option in info.options:
            yield f"| `{option.name}` | {_cell(', '.join(option.values) or 'any text')} | {_cell(option.text)} |"
    yield ""
    yield from (f"- Published: {item.what} {item.count:,} ({item.origin})." for item in info.expected)
    yield from (f"- {_sentence(trap)}" for trap in info.traps)
    yield from (f"- Documentation: {_links(address)}" for address in info.documentation)


def _sentence(text: str) -> str:
    text = text.replace("*", "\\*")
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("\n", " ")


def _links(text: str) -> str:
    """Addresses in angle brackets, so that every reader of Markdown makes links of them."""
    return " ".join(f"<{word}>" if word.startswith(("http://", "https://")) and word[-1] not in ",;.)" else word for word in text.split())
