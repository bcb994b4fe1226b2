"""Write the pages of docs/reference from the code: ``make reference``.

With ``--check`` nothing is written; the exit code tells whether the pages are as the code says.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from data_sets import data_sets_page

import evenhand as eh
from evenhand.cli.app import COMMANDS, EPILOG
from evenhand.cli.options import help_lines
from evenhand.config.compose import SCHEMAS
from evenhand.config.published import PublishedSystem, published_tables, systems

FOLDER = Path(__file__).parent / "reference"
BEGIN, END = "<!-- published commands: begin -->", "<!-- published commands: end -->"
NOTE = "Written from the code by `make reference`; do not edit."


def cli_page() -> str:
    """Every command with its arguments, flags and named options."""
    lines = ["# The command line", "", NOTE, "", EPILOG, "", "Every command takes `--problems FILE`: all problems found, one a line.", ""]
    for name, (target, _) in COMMANDS.items():
        module, _, attribute = target.partition(":")
        command = getattr(import_module(module), attribute)
        if isinstance(command, typer.Typer):
            lines += [f"## evenhand {name}", "", command.info.help or "", ""]
            for info in command.registered_commands:
                lines += command_lines(f"{name} {info.name}", info.callback, "###")
        else:
            lines += command_lines(name, command, "##")
    return "\n".join(lines)


def command_lines(name: str, function: Any, heading: str) -> list[str]:
    """One command: what it says of itself, its arguments and flags, and its named options."""
    lines = [f"{heading} evenhand {name}", "", *documented(function), *flags(function)]
    if name in SCHEMAS:
        lines += ["Options, as `NAME=VALUE`:", "", "```text", *help_lines(name, markup=False), "```", ""]
    return lines


def python_page() -> str:
    """The functions that ``import evenhand as eh`` offers."""
    lines = ["# From Python", "", NOTE, "", "```python", "import evenhand as eh", "```", ""]
    for name in sorted(eh.__all__):
        item = getattr(eh, name)
        item = item.__call__ if inspect.ismodule(item) and callable(item) else item
        if inspect.isroutine(item):
            lines += [f"## eh.{name}", "", "```text", signature(name, item), "", inspect.getdoc(item) or "", "```", ""]
    lines += ["## Rooms", ""]
    for name in sorted(eh.__all__):
        item = getattr(eh, name)
        if inspect.ismodule(item):
            lines.append(f"- `eh.{name}`: {(inspect.getdoc(item) or '').splitlines()[0]}")
    return "\n".join([*lines, ""])


def with_published_tables(page: Path, system: PublishedSystem) -> str:
    """The page with the tables of a system's published commands between its two marks."""
    head, rest = page.read_text(encoding="utf-8").split(BEGIN)
    return f"{head}{BEGIN}\n\n{published_tables(system)}\n{END}{rest.split(END)[1]}"


def signature(name: str, item: Any) -> str:
    """``name(a, b=1)`` without annotations, which the docstring explains."""
    shown = []
    star = False
    for parameter in inspect.signature(item).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            shown.append("*")
            star = True
        default = "…" if inspect.isroutine(parameter.default) else repr(parameter.default)
        shown.append(parameter.name if parameter.default is parameter.empty else f"{parameter.name}={default}")
    return f"eh.{name}({', '.join(shown)})"


def documented(function: Any) -> list[str]:
    """A command's docstring; its example as code."""
    text = inspect.getdoc(function) or ""
    text = re.sub(r"^Example: (.+)$", r"```sh\n\1\n```", text, flags=re.MULTILINE)
    return [text, ""]


def flags(function: Any) -> list[str]:
    """A table of a command's arguments and flags."""
    rows = list(_rows(function))
    return ["| argument | default | |", "|---|---|---|", *rows, ""] if rows else []


def _rows(function: Any) -> Iterator[str]:
    hints = typing.get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        info = next((part for part in getattr(hints[parameter.name], "__metadata__", ()) if hasattr(part, "help")), None)
        if info is None:
            continue
        default = "required" if parameter.default is parameter.empty else parameter.default
        yield f"| `{_flag(parameter.name, info)}` | {_shown(default)} | {info.help or ''} |".replace("sex*age", "sex\\*age")


def _flag(name: str, info: Any) -> str:
    if isinstance(info, typer.models.ArgumentInfo):
        return info.metavar or name.upper()
    given = [text for text in (info.default, *(info.param_decls or ())) if isinstance(text, str) and text.startswith("-")]
    return " ".join(given) or f"--{name.replace('_', '-')}"


def _shown(default: Any) -> str:
    if isinstance(default, (list, tuple)):
        return ",".join(map(str, default))
    return "" if default is None or default is False else str(default)


def main() -> int:
    """Write or check the pages."""
    published = {FOLDER.parent / "methods" / f"{system.name.lower()}.md": system for system in systems()}
    pages = {FOLDER / "cli.md": cli_page(), FOLDER / "python.md": python_page(), FOLDER / "data_sets.md": data_sets_page(NOTE)}
    pages |= {page: with_published_tables(page, system) for page, system in published.items()}
    names = {path: path.relative_to(FOLDER.parent).as_posix() for path in pages}
    stale = [names[path] for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        sys.stderr.write("".join(f"docs/{name} is not as the code says; run: make reference\n" for name in stale))
        return int(bool(stale))
    FOLDER.mkdir(exist_ok=True)
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
