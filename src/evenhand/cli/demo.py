"""`evenhand demo`: the whole story on a synthetic cohort, offline, in about a minute."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from evenhand.runs.demo import DemoResult


def demo_command(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for cohort, runs and reports.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option("--seed", help="Seed of the cohort and of every method.")] = 0,
    kind: Annotated[str, typer.Option("--kind", help="Images to draw: chest (grey films) or skin (colour photographs).")] = "chest",
    patients: Annotated[int, typer.Option("--patients", min=40, help="Patients in the cohort.")] = 1500,
    methods: Annotated[
        str, typer.Option("--methods", help="Methods to train, separated by commas; the first is the reference.")
    ] = "linear_probe,reweight,dfr,eo_head,dne,fairtune,bmft",
) -> None:
    """Make a synthetic cohort with a planted bias, train a plain probe and mitigations, audit and compare them.

    The trace of one group is in its images, and disease is more frequent in that group's training data, so a model gains
    by reading the trace. Because the bias is planted, the true dependence on the group can be measured: each test image
    has a twin that differs in the trace alone.
    """
    import logging

    from rich.console import Console

    from evenhand.optional import require_torch

    require_torch()
    if not os.environ.get("EVENHAND_DEBUG"):
        logging.getLogger("evenhand").setLevel(logging.WARNING)

    from evenhand.data.synthetic import SyntheticConfig
    from evenhand.runs.demo import demo

    console = Console(highlight=False)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    cohort = SyntheticConfig(kind=kind, n_patients=patients, seed=seed)
    result = demo(out, seed, cohort=cohort, methods=names, report=lambda text: console.print(f"· {text}", markup=False))
    show_demo(result, console)


def show_demo(result: DemoResult, console: object | None = None) -> None:
    """Print one row a method: overall AUC, gaps with intervals, true dependence; then what was planted, and the reports."""
    from rich.console import Console
    from rich.table import Table

    screen = console if isinstance(console, Console) else Console(highlight=False)
    attributes = list(result.runs[0].gaps)
    sizes = ", ".join(f"{name} {n}" for name, n in result.runs[0].groups["group"].items())
    headings = [f"equalized odds\nby {name}" for name in attributes]
    view = Table("method", "overall AUC", *headings, "decisions that flip\nwith the trace")
    for run in result.runs:
        found = [_two_lines(estimate) for estimate in (run.auc, *(run.gaps[name] for name in attributes))]
        view.add_row(run.method, *found, f"{run.dependence.flip_rate:.1%} of {run.dependence.n}")
    screen.print(view)
    screen.print(f"Test images: {sizes}. Under each estimate its 95% interval from a patient bootstrap.", markup=False)
    perfect, shortcut = result.expected["perfect"], result.expected["shortcut"]
    screen.print(
        f"Planted: a model that sees only the disease would have AUC {perfect.auc:.2f} and a gap of {perfect.equalized_odds:.2f} by group; "
        f"one that sees only the trace {shortcut.auc:.2f} and {shortcut.equalized_odds:.2f}. Age was given no effect.",
        markup=False,
    )
    for run in result.runs:
        if run.edit:
            screen.print(f"The edit of {run.method}, on validation images: {run.edit}", markup=False)
        if run.search:
            screen.print(f"The search of {run.method}: {run.search}; {run.folder.parent / 'search' / 'report.html'}", markup=False)
        if run.patch:
            screen.print(f"The patch of {run.method}: {run.patch}; {run.folder / 'patch.html'}", markup=False)
    for run in result.runs:
        screen.print(f"Report of {run.method}: {run.folder / 'report.html'}", markup=False, soft_wrap=True)
    screen.print(f"Comparison: {result.report}", markup=False, soft_wrap=True)


def _two_lines(estimate: Mapping[str, Any]) -> str:
    """The value, and below it the interval; ``not estimable`` where there is none."""
    if estimate["value"] is None:
        return "not estimable"
    if estimate["lower"] is None or estimate["upper"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f}\n{estimate['lower']:.3f}–{estimate['upper']:.3f}"
