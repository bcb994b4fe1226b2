"""``--problems FILE`` for every command: the terminal shows ten details of an error, the file holds all of them."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from evenhand.errors import EvenhandError

ProblemsOption = Annotated[
    Optional[Path], typer.Option("--problems", metavar="FILE", help="Write every problem found to this file, one a line.")
]


def write_problems(path: Path, error: EvenhandError) -> None:
    """Write an error's summary and all of its details."""
    path.write_text("\n".join([error.summary, *error.details]) + "\n", encoding="utf-8")


def with_problems_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same command function with the option ``--problems``; one that has it already is returned as it is."""
    hints = typing.get_type_hints(function, include_extras=True)
    signature = inspect.signature(function)
    if "problems" in signature.parameters:
        return function

    @functools.wraps(function)
    def command(*args: Any, problems: Path | None = None, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except EvenhandError as error:
            if problems is not None:
                write_problems(problems, error)
            raise

    own = [item.replace(annotation=hints.get(name, item.annotation)) for name, item in signature.parameters.items()]
    extra = inspect.Parameter("problems", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ProblemsOption)
    command.__signature__ = signature.replace(parameters=[*own, extra])  # type: ignore[attr-defined]
    command.__annotations__ = {**hints, "problems": ProblemsOption}
    del command.__wrapped__
    return command
