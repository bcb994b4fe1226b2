"""`evenhand predict`."""

from __future__ import annotations

import os

import typer

from evenhand.cli.options import ConfigDir, Overrides, PrintConfig, override_command, typed_config


@override_command("predict")
def predict_command(overrides: Overrides = None, config_dir: ConfigDir = None, print_config: PrintConfig = False) -> None:
    """Score new images with a run and apply its stored threshold; writes predictions.parquet.

    Example: evenhand predict model=runs/probe data=new_images out=scored
    """
    config = typed_config("predict", overrides, config_dir, print_config)

    from evenhand.optional import require_torch

    require_torch()

    from evenhand.runs.predict import predict

    typer.echo(os.fspath(predict(config)))
