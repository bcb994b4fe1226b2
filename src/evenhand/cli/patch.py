"""`evenhand patch`: a patch for a finished classifier: make it, put it on, take it off, look at it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import typer

from evenhand.cli.options import ConfigDir, Overrides, PrintConfig, override_command, typed_config

patch_command = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None,
    help="A patch for a finished classifier, from a small external set: make it, put it on, take it off bit for bit, look at it.",
)


def _command(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add a command of the group, whose options are those of the schema ``patch NAME``."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        marked = override_command(f"patch {name}")(function)
        patch_command.command(name, cls=marked.command_class)(marked)  # type: ignore[attr-defined]
        return marked

    return add


@_command("make")
def make_command(overrides: Overrides = None, config_dir: ConfigDir = None, print_config: PrintConfig = False) -> None:
    """Make a patch from a small external set, and test the classifier before and after it.

    The same command goes on after an interruption. The classifier is a run folder that trained a network, or a checkpoint with
    its head; it is never changed.

    Example: evenhand patch make method=bmft model=runs/finetune data=prepared/external out=runs/patch
    """
    config = typed_config("patch make", overrides, config_dir, print_config)

    from evenhand.optional import require_torch

    require_torch()

    from evenhand.runs.patch import make_patch_run, patch_lines

    run = make_patch_run(config)
    typer.echo("\n".join(patch_lines(run)))
    typer.echo(os.fspath(run))
