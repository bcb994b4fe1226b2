"""`evenhand compare`: runs side by side, paired on the same patients."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from evenhand.config.schema import AuditConfig

_DEFAULTS = AuditConfig()
_RUNS = "Runs: folders with predictions.parquet or seed=k/ subfolders, or files of predictions. The first is the reference."


def compare_command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help=_RUNS)],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The HTML page; a .json and a .csv are put beside it.")],
    groups: Annotated[
        Optional[list[str]], typer.Option("--groups", help="Attributes. Default: those the predictions have groups of.")
    ] = None,
    bins: Annotated[Optional[list[str]], typer.Option("--bins", help="Edges of a numeric attribute, as age=0,60,200.")] = None,
    missing: Annotated[str, typer.Option("--missing", help="Rows with a missing attribute: own_group, drop or error.")] = "own_group",
    threshold: Annotated[str, typer.Option("--threshold", help="Rule for runs that store no threshold.")] = _DEFAULTS.threshold,
    bootstrap: Annotated[int, typer.Option("--bootstrap", help="Patient bootstrap replicates.")] = _DEFAULTS.bootstrap,
    confidence: Annotated[float, typer.Option("--confidence", help="Level of intervals (share).")] = _DEFAULTS.confidence,
    primary: Annotated[Optional[list[str]], typer.Option("--primary", help="Gaps whose tests form the corrected family.")] = None,
    max_groups: Annotated[int, typer.Option("--max-groups", help="Most groups one attribute may have.")] = _DEFAULTS.max_groups,
    seed: Annotated[int, typer.Option("--seed", help="Seed of every random stream.")] = 0,
) -> None:
    """Compare two or more runs on the same test rows: overall, gaps, who gained and who lost against the first."""
    from evenhand.cli.audit import split_names
    from evenhand.evaluation.columns import parse_bins
    from evenhand.runs.compare import compare, page_of

    config = AuditConfig(
        threshold=threshold,
        bootstrap=bootstrap,
        confidence=confidence,
        max_groups=max_groups,
        primary=split_names(primary) or _DEFAULTS.primary,
    )
    named = split_names(groups) or ()
    result = compare(runs, out, groups=named, bins=parse_bins(bins or []), missing=missing, config=config, seed=seed)
    show_compare(result.to_json())
    typer.echo(f"Report: {page_of(out)}")


def show_compare(data: dict[str, Any]) -> None:
    """Print each run's AUC and primary gaps, then the verdicts."""
    from rich.console import Console
    from rich.table import Table

    from evenhand.cli.audit import short
    from evenhand.evaluation.verdicts import WORDS

    console = Console(highlight=False)
    primary = data["provenance"]["family"]["metrics"]
    names = [f"{run['name']} ({run['n_seeds']} seed{'s' * (run['n_seeds'] > 1)})" for run in data["runs"]]
    for label, item in data["labels"].items():
        view = Table("", *names, title=label)
        rows = [item["overall"][run["name"]] for run in data["runs"]]
        main = next(name for name in ("auc", *rows[0]) if isinstance(rows[0].get(name), dict))
        view.add_row(f"overall {WORDS[main]}", *(short(row[main]) for row in rows))
        for attribute, part in item["attributes"].items():
            for name in primary:
                view.add_row(f"{attribute}: gap in {WORDS[name]}", *(short(part["gaps"][run["name"]][name]) for run in data["runs"]))
        console.print(view)
    for verdict in data["verdicts"][:12]:
        console.print(f"- {verdict['text']}", markup=False)
    if len(data["verdicts"]) > 12:
        console.print(f"- … and {len(data['verdicts']) - 12} more in the report")
