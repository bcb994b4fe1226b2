"""Commands whose options are typed as ``name=value``: their arguments and the generated part of their ``--help``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from evenhand.config import Option

Overrides = Annotated[
    Optional[list[str]],
    typer.Argument(metavar="NAME=VALUE", help="Options as NAME=VALUE; all of them are listed below.", show_default=False),
]
ConfigDir = Annotated[
    Optional[Path], typer.Option("--config-dir", metavar="DIR", help="Folder with presets of your own, as GROUP/NAME.yaml.")
]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved configuration as YAML and stop.")]


def override_command(schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark a command function as taking the options of one schema, so that its ``--help`` lists them."""

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        function.command_class = type("OverrideCommand", (_OverrideCommand,), {"schema": schema})  # type: ignore[attr-defined]
        return function

    return mark


def typed_config(schema: str, overrides: Sequence[str] | None, config_dir: Path | None, print_config: bool) -> Any:
    """The configuration of a command; with ``print_config`` it is printed and the command ends."""
    from evenhand.config import compose, compose_yaml

    if print_config:
        typer.echo(compose_yaml(schema, overrides or (), config_dir), nl=False)
        raise typer.Exit
    return compose(schema, overrides or (), config_dir)


class _OverrideCommand(TyperCommand):
    schema = "train"

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        from rich.console import Console

        Console(highlight=False, soft_wrap=True).print("\n".join(help_lines(self.schema)))


def help_lines(schema: str, markup: bool = True) -> list[str]:
    """Every option of a schema with its type, default, unit and help, after the presets of each group."""
    from evenhand.config import list_options, list_presets
    from evenhand.config.compose import groups_of, schema_of
    from evenhand.config.methods import EVERY_METHOD, METHOD_CONFIGS

    kind = schema_of(schema)
    groups = groups_of(kind)
    methods = tuple(getattr(kind, "methods", METHOD_CONFIGS))
    presets = {group: list_presets(group) for group in groups}
    if "method" in groups:
        others = tuple(name for name in EVERY_METHOD if name not in methods)
        chosen = hasattr(kind, "methods")
        presets["method"] = [name for name in presets["method"] if (name.startswith(methods) if chosen else not name.startswith(others))]
    choices = [f"  {group}={'|'.join(names) or 'NAME'}" for group, names in presets.items()]
    lines = [_title("Presets", markup), *choices, ""] if groups else []
    shared = [option for option in list_options(kind) if not option.name.startswith("method.")]
    lines += [_title("Options", markup), *(line for option in shared for line in _option_lines(option, markup))]
    for name, cls in ((name, EVERY_METHOD[name]) for name in methods) if "method" in groups else ():
        own = [option for option in list_options(cls, "method.") if option.name != "method.name"]
        summary = (cls.__doc__ or "").strip().splitlines()[0]
        lines += ["", _title(f"method={name}", markup) + f"  {_plain(summary, markup)}"]
        lines += [line for option in own for line in _option_lines(option, markup)]
    return lines


def _option_lines(option: Option, markup: bool) -> list[str]:
    name = f"[cyan]{option.name}[/cyan]" if markup else option.name
    if option.kind == "NAME=text":
        name += ".NAME"
    default = "required" if option.required else f"default {option.default_text}"
    unit = f", {option.unit}" if option.unit else ""
    return [f"  {name}  {_plain(f'{option.kind}, {default}{unit}', markup)}", f"      {_plain(option.help, markup)}"]


def _title(text: str, markup: bool) -> str:
    return f"[bold]{text}[/bold]" if markup else text


def _plain(text: str, markup: bool) -> str:
    return text.replace("[", "\\[") if markup else text
