"""`evenhand translate`."""

from __future__ import annotations

from typing import Annotated, Optional

import typer


def translate_command(
    line: Annotated[str, typer.Argument(help="A published command line, in quotes, as it would be typed.", metavar="LINE")],
    released: Annotated[bool, typer.Option("--released", help="As the released code runs, with its defects; default: the paper.")] = False,
    data: Annotated[Optional[str], typer.Option("--data", help="The prepared data set.", metavar="DIR", show_default=False)] = None,
) -> None:
    """Our command for a published one, and what became of options that have none of ours.

    Known are the scripts of DNE (four), FairTune (two), BMFT and SWiFT (five).

    The command goes to standard output, notes to standard error.

    Example: evenhand translate "python train_dne.py --epochs 25 --model vit_base_patch16 --dataset chexpert --disease Edema"
    """
    from evenhand.config.published import translate

    done = translate(line, released=released, data=data)
    typer.echo(done.command)
    for note in done.notes:
        typer.echo(f"  {note}", err=True)
