"""`evenhand audit`: a table of scores -> how well they work, for whom, and how certain that is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from evenhand.config.schema import AuditConfig

_DEFAULTS = AuditConfig()


def audit_command(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="CSV, TSV or parquet file of predictions, or a run folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for report.html, audit.json and tables/*.csv.")],
    label: Annotated[
        Optional[list[str]], typer.Option("--label", help="Column with 0/1 (repeat or separate by commas for several). Default: y_true.")
    ] = None,
    score: Annotated[
        Optional[list[str]], typer.Option("--score", help="Column with probabilities, one for each label. Default: y_score.")
    ] = None,
    groups: Annotated[Optional[list[str]], typer.Option("--groups", help="Attributes, as sex,age,sex*age.")] = None,
    pred: Annotated[Optional[list[str]], typer.Option("--pred", help="Column with 0/1 decisions; wins over the threshold.")] = None,
    patient: Annotated[Optional[str], typer.Option("--patient", help="Column with patient ids. Default: patient_id where present.")] = None,
    split: Annotated[
        Optional[str], typer.Option("--split", help="Column with train, val, test; test rows are judged. Default: split where present.")
    ] = None,
    threshold: Annotated[
        str,
        typer.Option(
            "--threshold", help="youden, f1, sensitivity=0.9, specificity=0.9, prevalence (chosen on validation rows), or a number."
        ),
    ] = _DEFAULTS.threshold,
    bins: Annotated[
        Optional[list[str]], typer.Option("--bins", help="Edges of a numeric attribute, as age=0,60,200 (half-open bins).")
    ] = None,
    missing: Annotated[str, typer.Option("--missing", help="Rows with a missing attribute: own_group, drop or error.")] = "own_group",
    bootstrap: Annotated[int, typer.Option("--bootstrap", help="Patient-clustered bootstrap replicates.")] = _DEFAULTS.bootstrap,
    permutations: Annotated[
        int, typer.Option("--permutations", help="Permutations for p-values of gaps; 0 = from the bootstrap instead.")
    ] = _DEFAULTS.permutations,
    confidence: Annotated[float, typer.Option("--confidence", help="Level of intervals (share).")] = _DEFAULTS.confidence,
    primary: Annotated[
        Optional[list[str]],
        typer.Option("--primary", help="Gaps whose tests form the family corrected by Holm. Default: auc,equalized_odds."),
    ] = None,
    max_groups: Annotated[int, typer.Option("--max-groups", help="Most groups one attribute may have.")] = _DEFAULTS.max_groups,
    fail_if: Annotated[
        Optional[list[str]], typer.Option("--fail-if", help="Exit 3 if this holds, as 'age.equalized_odds.lower > 0.1'.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of every random stream.")] = 0,
    title: Annotated[Optional[str], typer.Option("--title", help="Title of the report.")] = None,
) -> None:
    """Audit a table of scores: who does the model fail, and how sure is that? Needs no model and no GPU."""
    from evenhand.errors import GateError
    from evenhand.evaluation.columns import parse_bins
    from evenhand.runs.audit import audit

    try:
        result = audit(
            table,
            split_names(label),
            split_names(score),
            split_names(groups),
            pred=split_names(pred),
            patient=patient,
            split=split,
            threshold=threshold,
            bins=parse_bins(bins or []),
            missing=missing,
            bootstrap=bootstrap,
            permutations=permutations,
            confidence=confidence,
            primary=split_names(primary),
            max_groups=max_groups,
            fail_if=fail_if,
            seed=seed,
            out=out,
            title=title,
        )
    except GateError:
        typer.echo(f"Report: {out / 'report.html'}")
        raise
    show_audit(result.to_json())
    typer.echo(f"Report: {out / 'report.html'}")


def split_names(values: Sequence[str] | None) -> list[str]:
    """``["sex,age", "site"]`` -> ``["sex", "age", "site"]``."""
    return [name.strip() for value in values or () for name in value.split(",") if name.strip()]


def show_audit(data: dict[str, Any]) -> None:
    """Print overall AUC, the primary gaps and the verdicts."""
    from rich.console import Console
    from rich.table import Table

    from evenhand.evaluation.verdicts import WORDS

    console = Console(highlight=False)
    primary = data["provenance"]["family"]["metrics"]
    view = Table(
        "label",
        "attribute",
        *(f"gap in {WORDS[name]}" for name in primary),
        "groups",
        title=f"{data['n']} rows, {data['n_patients']} patients",
    )
    for label, item in data["labels"].items():
        view.add_row(label, "overall AUC", short(item["overall"]["auc"]), *[""] * (len(primary) - 1), "")
        for attribute, part in item["attributes"].items():
            view.add_row(label, attribute, *(short(part["gaps"][name]) for name in primary), ", ".join(part["groups"]).replace("[", "\\["))
    console.print(view)
    for item in data["verdicts"][:12]:
        console.print(f"- {item['text']}", markup=False)
    if len(data["verdicts"]) > 12:
        console.print(f"- … and {len(data['verdicts']) - 12} more in the report")


def short(estimate: dict[str, Any]) -> str:
    """``0.12 (0.03 to 0.21)``, or ``not estimable``."""
    if estimate["value"] is None:
        return "not estimable"
    if estimate["lower"] is None or estimate["upper"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} ({estimate['lower']:.3f} to {estimate['upper']:.3f})"
