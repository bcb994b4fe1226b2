"""`evenhand export`."""

from __future__ import annotations

import os

import typer

from evenhand.cli.options import ConfigDir, Overrides, PrintConfig, override_command, typed_config


@override_command("export")
def export_command(overrides: Overrides = None, config_dir: ConfigDir = None, print_config: PrintConfig = False) -> None:
    """Write a run's classifier as a folder that timm loads.

    Example: evenhand export model=runs/probe out=exported
    """
    config = typed_config("export", overrides, config_dir, print_config)

    from evenhand.optional import require_torch

    require_torch()

    from evenhand.runs.export import export

    typer.echo(os.fspath(export(config)))
