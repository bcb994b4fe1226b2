"""`evenhand version`."""

from __future__ import annotations

import typer

from evenhand import __version__


def version_command() -> None:
    """The version of evenhand."""
    typer.echo(__version__)
