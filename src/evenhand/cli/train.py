"""`evenhand train`."""

from __future__ import annotations

import os

import typer

from evenhand.cli.options import ConfigDir, Overrides, PrintConfig, override_command, typed_config


@override_command("train")
def train_command(overrides: Overrides = None, config_dir: ConfigDir = None, print_config: PrintConfig = False) -> None:
    """Train any method or baseline on a prepared data set, audit it, and write a run folder.

    Example: evenhand train data=prepared/ham method=group_dro trainer=cpu seeds=0,1,2 out=runs/dro
    """
    config = typed_config("train", overrides, config_dir, print_config)

    from evenhand.optional import require_torch

    require_torch()

    from evenhand.runs.task import rank
    from evenhand.runs.train import train

    run = train(config)
    if rank() > 0:
        return
    for one in run.seeds:
        if (one.root / "report.html").is_file():
            typer.echo(f"Report: {one.root / 'report.html'}")
    typer.echo(os.fspath(run))
