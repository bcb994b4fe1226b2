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


@_command("apply")
def apply_command(overrides: Overrides = None, config_dir: ConfigDir = None, print_config: PrintConfig = False) -> None:
    """Put a patch on the classifier that it belongs to: a run folder, a checkpoint, or a folder that timm loads.

    Another classifier is refused, and so is one that has the patch already; what was delivered is not written to.

    Example: evenhand patch apply patch=patch.safetensors model=runs/finetune out=runs/patched
    """
    config = typed_config("patch apply", overrides, config_dir, print_config)

    from evenhand.optional import require_torch

    require_torch()

    from evenhand.runs.patch_files import patch_apply

    typer.echo(os.fspath(patch_apply(config)))


@_command("revert")
def revert_command(overrides: Overrides = None, config_dir: ConfigDir = None, print_config: PrintConfig = False) -> None:
    """Take a patch off: the classifier as it was delivered, bit for bit.

    Example: evenhand patch revert model=runs/patched out=runs/as_delivered
    """
    config = typed_config("patch revert", overrides, config_dir, print_config)

    from evenhand.optional import require_torch

    require_torch()

    from evenhand.runs.patch_files import patch_revert

    typer.echo(os.fspath(patch_revert(config)))


@_command("inspect")
def inspect_command(overrides: Overrides = None, config_dir: ConfigDir = None, print_config: PrintConfig = False) -> None:
    """Say which layers a patch changes, how much, and how large it is; with out= also as a page with a picture.

    Example: evenhand patch inspect patch=runs/patched out=inspected
    """
    config = typed_config("patch inspect", overrides, config_dir, print_config)

    from evenhand.optional import require_torch

    require_torch()

    from evenhand.runs.patch_files import inspect_lines, patch_inspect

    record = patch_inspect(config)
    typer.echo("\n".join(inspect_lines(record)))
    if config.out:
        typer.echo(os.path.join(config.out, "inspect.html"))
