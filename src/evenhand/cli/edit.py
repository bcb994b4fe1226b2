"""`evenhand edit`: train an image edit, look at it, put it on files, and measure what it hides."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import typer

from evenhand.cli.options import ConfigDir, Overrides, PrintConfig, override_command, typed_config

edit_command = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None,
    help="Image edits for encoders that can only be queried: train one, look at it, put it on files, measure what it hides.",
)


def _command(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add a command of the group, whose options are those of the schema ``edit NAME``."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        marked = override_command(f"edit {name}")(function)
        edit_command.command(name, cls=marked.command_class)(marked)  # type: ignore[attr-defined]
        return marked

    return add


@_command("head")
def head_command(overrides: Overrides = None, config_dir: ConfigDir = None, print_config: PrintConfig = False) -> None:
    """Fit the attribute head on unedited images and say how well it reads the attribute.

    Example: evenhand edit head data=prepared/ham model=encoder.pth method.attributes=sex out=runs/head
    """
    config = typed_config("edit head", overrides, config_dir, print_config)

    from evenhand.optional import require_torch

    require_torch()

    from evenhand.runs.edit import edit_head, head_lines
    from evenhand.runs.task import rank

    out = edit_head(config)
    if rank() == 0:
        typer.echo("\n".join(head_lines(out)))
        typer.echo(os.fspath(out))


@_command("train")
def train_command(overrides: Overrides = None, config_dir: ConfigDir = None, print_config: PrintConfig = False) -> None:
    """Train an edit with the encoder's gradient (method=dne) or by queries alone (method=gezo).

    The same command goes on after an interruption; what was paid for is never sent again.

    Example: evenhand edit train data=prepared/ham model=https://host/model method=gezo method.budget=20000 out=runs/edit
    """
    config = typed_config("edit train", overrides, config_dir, print_config)

    from evenhand.optional import require_torch

    require_torch()

    from evenhand.runs.edit import edit_train
    from evenhand.runs.task import rank

    run = edit_train(config)
    if rank() == 0:
        typer.echo(os.fspath(run))


@_command("apply")
def apply_command(overrides: Overrides = None, config_dir: ConfigDir = None, print_config: PrintConfig = False) -> None:
    """Write edited copies of image files: PNG, JPEG, TIFF and DICOM.

    Example: evenhand edit apply edit=runs/edit images=new_images out=edited_images
    """
    config = typed_config("edit apply", overrides, config_dir, print_config)

    from evenhand.optional import require_torch

    require_torch()

    from evenhand.runs.edit_files import edit_apply

    typer.echo(edit_apply(config))


@_command("inspect")
def inspect_command(overrides: Overrides = None, config_dir: ConfigDir = None, print_config: PrintConfig = False) -> None:
    """Say what an edit is and how visible it is; with out= also as a page with pictures.

    Example: evenhand edit inspect edit=runs/edit data=prepared/ham out=inspected
    """
    config = typed_config("edit inspect", overrides, config_dir, print_config)

    from evenhand.optional import require_torch

    require_torch()

    from evenhand.runs.edit_files import edit_inspect, inspect_lines

    record = edit_inspect(config)
    typer.echo("\n".join(inspect_lines(record)))
    if config.out:
        typer.echo(os.path.join(config.out, "inspect.html"))


@_command("measure")
def measure_command(overrides: Overrides = None, config_dir: ConfigDir = None, print_config: PrintConfig = False) -> None:
    """Measure what an edit hides and what it only fools, beside no edit and noise of the same size, on any encoder and finding.

    Example: evenhand edit measure edit=runs/edit data=prepared/ham data.labels=melanoma model=mobilenet_075 out=measured
    """
    config = typed_config("edit measure", overrides, config_dir, print_config)

    from evenhand.optional import require_torch

    require_torch()

    from evenhand.runs.edit_measure import edit_measure, measure_lines

    out = edit_measure(config)
    typer.echo("\n".join(measure_lines(out)))
    typer.echo(os.fspath(out))
