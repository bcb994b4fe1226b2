"""`evenhand evaluate`."""

from __future__ import annotations

import os

import typer

from evenhand.cli.options import ConfigDir, Overrides, PrintConfig, override_command, typed_config


@override_command("evaluate")
def evaluate_command(overrides: Overrides = None, config_dir: ConfigDir = None, print_config: PrintConfig = False) -> None:
    """Runs on further named data sets beside their own test rows: one table, and the drop between them, for everyone and per group.

    Each set may have attributes of its own. Several runs go side by side: models.delivered=RUN models.patched=RUN.

    Example: evenhand evaluate model=runs/probe sets.clinic_b=prepared/b out=external
    """
    config = typed_config("evaluate", overrides, config_dir, print_config)

    from evenhand.optional import require_torch

    require_torch()

    from evenhand.runs.evaluate import evaluate

    typer.echo(os.fspath(evaluate(config)))
