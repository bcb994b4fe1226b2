"""The command ``evenhand``: which commands exist, and how errors become one readable line and an exit code."""

from __future__ import annotations

import difflib
import errno
import logging
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from evenhand.cli.problems import with_problems_option
from evenhand.errors import EvenhandError, InputError

COMMANDS = {
    "demo": ("evenhand.cli.demo:demo_command", "The whole story on a synthetic cohort with a known, planted bias; minutes, offline."),
    "prepare": ("evenhand.cli.prepare:prepare_command", "A table and a folder of images -> a checked, decode-once prepared data set."),
    "card": ("evenhand.cli.card:card_command", "A page about a prepared data set, to be read before a model is trained on it."),
    "train": ("evenhand.cli.train:train_command", "Train any method or baseline on a prepared data set, audit it, write a run folder."),
    "search": ("evenhand.cli.search:search_command", "Which parts of a network to fine-tune, for fairness on validation rows: mask.json."),
    "edit": ("evenhand.cli.edit:edit_command", "Image edits that hide an attribute from an encoder: head, train, apply, inspect, measure."),
    "patch": ("evenhand.cli.patch:patch_command", "A patch for a finished classifier from a small external set; it comes off bit for bit."),
    "predict": ("evenhand.cli.predict:predict_command", "Score new images with a run and apply its stored threshold."),
    "evaluate": ("evenhand.cli.evaluate:evaluate_command", "Runs in and out of distribution: further named data sets, and the drop."),
    "audit": ("evenhand.cli.audit:audit_command", "A CSV of scores -> how well they work, for whom, and how certain that is."),
    "compare": ("evenhand.cli.compare:compare_command", "Runs side by side: paired differences, who gained, who lost."),
    "power": ("evenhand.cli.power:power_command", "How many patients a study needs to see a gap; which gap it can see with those it has."),
    "export": ("evenhand.cli.export:export_command", "Write a run's classifier as a folder that timm loads."),
    "translate": ("evenhand.cli.translate:translate_command", "A published system's command line -> ours; what was left out and why."),
    "serve": ("evenhand.cli.serve:serve_command", "An encoder behind the Open Inference Protocol, or a proxy that edits images."),
    "doctor": ("evenhand.cli.doctor:doctor_command", "Versions, devices and mismatched installs, said plainly."),
    "version": ("evenhand.cli.version:version_command", "The version of evenhand."),
}
EXIT_INPUT = InputError.exit_code
EPILOG = "Exit codes: 0 done, 2 the input is wrong, 3 a gate failed, 4 the environment or a run failed (state kept), 130 interrupted."


class _Commands(TyperGroup):
    """Imports a command's file only when that command is called, so that ``--help`` is instant."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return TyperCommand(cmd_name, short_help=COMMANDS[cmd_name][1]) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if command is not None and name else command, rest


def load_command(name: str) -> Any:
    """The command of that name, imported from its file, with the option ``--problems`` added."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    function = getattr(import_module(module), attribute)
    if isinstance(function, typer.Typer):
        for info in function.registered_commands:
            if info.callback is not None:
                info.callback = with_problems_option(info.callback)
        command = typer.main.get_command(function)
    else:
        holder = typer.Typer(add_completion=False, rich_markup_mode="rich")
        holder.command(name, cls=getattr(function, "command_class", TyperCommand))(with_problems_option(function))
        command = typer.main.get_command(holder)
    command.name = name
    return command


app = typer.Typer(
    name="evenhand", cls=_Commands, no_args_is_help=True, add_completion=False, rich_markup_mode=None, epilog=EPILOG,
    pretty_exceptions_enable=False, context_settings={"max_content_width": 120},
)


@app.callback()
def _root() -> None:
    """Assess and mitigate unequal performance across patient groups in medical-imaging models."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: what was typed after ``evenhand``; default: the process's own.

    Returns:
        0 done; 2 the input is wrong; 3 a gate failed; 4 the environment or a run failed, state kept; 130 interrupted.
    """
    _configure_logging()
    code = 0
    try:
        returned = app(args=None if arguments is None else list(arguments), prog_name="evenhand", standalone_mode=False)
        code = returned if isinstance(returned, int) else 0
    except typer.Exit as stop:
        code = stop.exit_code
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        return _explain(error)
    if code == 130:
        _say("interrupted; the last complete state is saved, and the same command goes on from there")
    return code


def _explain(error: Exception) -> int:
    """Say in one line (and at most ten details) what went wrong; the exit code."""
    if os.environ.get("EVENHAND_DEBUG"):
        traceback.print_exception(error)
    if hasattr(error, "format_message"):
        return _explain_usage(error)
    if isinstance(error, EvenhandError):
        _say(f"error: {error}")
        return error.exit_code
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        _say(f"error: no space is left on the device{_named(error)}; free some and run the same command again")
    elif isinstance(error, OSError) and error.strerror:
        denied = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        advice = "; give yourself the right to it, or choose another place" if denied else ""
        _say(f"error: {error.strerror.lower()}{_named(error)}{advice}")
    elif isinstance(error, MemoryError):
        _say("error: memory ran out; use smaller batches (data.batch_size=, model.embed_batch_size=) or fewer columns")
    else:
        first = (str(error).strip() or "no message").splitlines()[0]
        _say(f"error: unexpected {type(error).__name__}: {first} (traceback: {_write_traceback(error)})")
    return EvenhandError.exit_code


def _explain_usage(error: Any) -> int:
    """What was typed does not parse: one line, with the nearest known name; nothing typed at all: the help."""
    text = str(error.format_message()).strip()
    context = getattr(error, "ctx", None)
    if context is not None and "\n" in text:
        _say(text)
        return EXIT_INPUT
    text = text.splitlines()[0].split(" (Possible option", 1)[0].split(". Did you mean", 1)[0].rstrip(".")
    wrong = getattr(error, "option_name", None)
    known = list(getattr(getattr(context, "command", None), "commands", None) or COMMANDS)
    if wrong is not None and context is not None:
        known = [name for item in context.command.params for name in (*item.opts, *item.secondary_opts) if name.startswith("--")]
    elif wrong is None and (unknown := re.fullmatch(r"No such command '(.*)'", text)):
        wrong = unknown[1]
    near = difflib.get_close_matches(wrong, known, n=1) if wrong else []
    hint = f"; did you mean '{near[0]}'?" if near else f"; see `{context.command_path if context is not None else 'evenhand'} --help`"
    _say(f"error: {text[:1].lower()}{text[1:]}{hint}")
    return EXIT_INPUT


def _named(error: OSError) -> str:
    return f": {error.filename}" if error.filename else ""


def _write_traceback(error: Exception) -> str:
    try:
        handle, name = tempfile.mkstemp(prefix="evenhand-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return "run again with EVENHAND_DEBUG=1"
    return str(Path(name))


def _configure_logging() -> None:
    quiet = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR  # of several processes the first tells
    level = logging.DEBUG if os.environ.get("EVENHAND_DEBUG") else quiet
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("evenhand").setLevel(level)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
