"""`evenhand card`: an offline page about a prepared data set, before a model of disease is trained on it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

from evenhand.cli.options import override_command


@override_command("card")
def card_command(
    data: Annotated[Path, typer.Argument(help="Folder written by `evenhand prepare`.", metavar="DATA")],
    overrides: Annotated[
        Optional[list[str]],
        typer.Argument(
            metavar="NAME=VALUE", help="The encoder, as model=encoder.pth, and its options; all are listed below.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Optional[Path], typer.Option(metavar="FILE.html", help="The page; FILE.json is written beside it. Default: card.html in DATA.")
    ] = None,
    min_cell: Annotated[int, typer.Option(help="Counts of fewer patients are shown as '<5' and the like; 1: all are shown.", min=0)] = 5,
    images: Annotated[bool, typer.Option("--images/--no-images", help="Whether images of the set stand on the page.")] = True,
    probe_rows: Annotated[int, typer.Option(help="Most rows, outside test and in it, that readers see; 0: nothing is read.", min=0)] = 5000,
    permutations: Annotated[int, typer.Option(help="Readers of permuted groups that say what chance gives.", min=0)] = 99,
    seed: Annotated[int, typer.Option(help="Seed of every random stream.")] = 0,
) -> None:
    """Write a page about a prepared data set: who is in it, labels by group, leaks, near-duplicates, what can be read from the images.

    Example: evenhand card prepared/ham --out cards/ham.html model=encoder.pth
    """
    from evenhand.config import compose

    config = compose("card", overrides or ())

    from evenhand.optional import require_torch

    require_torch()

    from evenhand.runs.card import card_lines, make_data_card

    page = make_data_card(
        data,
        out,
        model=config,
        min_cell=min_cell,
        images=images,
        probe_rows=probe_rows,
        permutations=permutations,
        seed=seed,
        progress=True,
    )
    typer.echo("\n".join(card_lines(page)))
    typer.echo(os.fspath(page))
