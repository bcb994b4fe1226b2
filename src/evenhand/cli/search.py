"""`evenhand search`."""

from __future__ import annotations

import os

import typer

from evenhand.cli.options import ConfigDir, Overrides, PrintConfig, override_command, typed_config


@override_command("search")
def search_command(overrides: Overrides = None, config_dir: ConfigDir = None, print_config: PrintConfig = False) -> None:
    """Search which parts of a network to fine-tune, for fairness on validation rows; writes mask.json and a report.

    The same command goes on after an interruption; on other machines, with the same storage=, it joins the search. Then:
    evenhand train method=finetune mask=FOLDER.

    Example: evenhand search data=prepared/ham model=mobilenet_075 model.checkpoint=encoder.pth space=conv|norm n_trials=50 out=runs/search
    """
    config = typed_config("search", overrides, config_dir, print_config)

    from evenhand.optional import require_torch

    require_torch()

    from evenhand.runs.search import search_lines, search_mask

    run = search_mask(config)
    typer.echo("\n".join(search_lines(run)))
    typer.echo(os.fspath(run))
