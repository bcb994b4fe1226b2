"""`evenhand audit`: a table of scores -> how well they work, for whom, and how certain that is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from evenhand.config.schema import AuditConfig

_DEFAULTS = AuditConfig()


def audit_command(
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="CSV, TSV or JSON lines (also .gz) or parquet file of predictions, or a run folder.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for report.html, audit.json and tables/*.csv.")],
    label: Annotated[
        Optional[list[str]],
        typer.Option("--label", help="Column with 0/1, or with classes (repeat or separate by commas for several). Default: by name."),
    ] = None,
    score: Annotated[
        Optional[list[str]],
        typer.Option("--score", help="Column with probabilities, one for each label or class. Default: by name."),
    ] = None,
    groups: Annotated[
        Optional[list[str]],
        typer.Option("--groups", help="Attributes, as sex,age=q4,sex*age (q4: quartiles). Default: those with usual names."),
    ] = None,
    pred: Annotated[Optional[list[str]], typer.Option("--pred", help="Column with 0/1 decisions; wins over the threshold.")] = None,
    value: Annotated[
        Optional[list[str]],
        typer.Option("--value", help="Column of a continuous value a case, as dice or los: judged by means in place of labels."),
    ] = None,
    lower_is_better: Annotated[
        bool, typer.Option("--lower-is-better", help="A high value is the worse one; known of hd95, mae and the like, never of dice, iou.")
    ] = False,
    pred_mask: Annotated[
        Optional[str], typer.Option("--pred-mask", metavar="COLUMN", help="Column of predicted mask files (PNG, NumPy, NIfTI).")
    ] = None,
    true_mask: Annotated[
        Optional[str], typer.Option("--true-mask", metavar="COLUMN", help="Column of true masks: Dice and HD95 are computed and judged.")
    ] = None,
    images: Annotated[
        Optional[Path], typer.Option("--images", metavar="DIR", help="Folder of the mask files. Default: the table's own.")
    ] = None,
    spacing: Annotated[
        Optional[str], typer.Option("--spacing", metavar="MM", help="Size of a voxel, as 0.5 or 0.5,0.5,2. Default: NIfTI's, else pixels.")
    ] = None,
    patient: Annotated[Optional[str], typer.Option("--patient", help="Column with patient ids. Default: by name.")] = None,
    split: Annotated[
        Optional[str], typer.Option("--split", help="Column with train, val, test; test rows are judged. Default: by name.")
    ] = None,
    metadata: Annotated[
        Optional[Path], typer.Option("--metadata", metavar="FILE", help="A second table with further columns, one row a key.")
    ] = None,
    on: Annotated[
        Optional[str], typer.Option("--on", metavar="ID", help="Key of --metadata, or LEFT=RIGHT. Default: the one column both have.")
    ] = None,
    logits: Annotated[
        bool, typer.Option("--logits", help="Scores are logits: apply a sigmoid (a softmax over classes). Seen by itself where no --score.")
    ] = False,
    pos_label: Annotated[
        Optional[str], typer.Option("--pos-label", metavar="VALUE", help="Positive class of a label, as malignant; others are negative.")
    ] = None,
    threshold: Annotated[
        str,
        typer.Option(
            "--threshold", help="youden, f1, sensitivity=0.9, specificity=0.9, prevalence (chosen on validation rows), or a number."
        ),
    ] = _DEFAULTS.threshold,
    bins: Annotated[
        Optional[list[str]],
        typer.Option("--bins", help="Edges of a numeric attribute, as age=0,60,200 (half-open bins), or its quantiles, as age=q4."),
    ] = None,
    missing: Annotated[str, typer.Option("--missing", help="Rows with a missing attribute: own_group, drop or error.")] = "own_group",
    metrics: Annotated[Optional[list[str]], typer.Option("--metrics", help="Metrics to compute, as auc,tpr,fpr. Default: all.")] = None,
    interval: Annotated[
        str, typer.Option("--interval", help="Intervals of group values: auto, percentile or bca.")
    ] = _DEFAULTS.interval,
    bootstrap: Annotated[int, typer.Option("--bootstrap", help="Patient-clustered bootstrap replicates.")] = _DEFAULTS.bootstrap,
    permutations: Annotated[
        int, typer.Option("--permutations", help="Permutations for p-values of gaps; 0 = from the bootstrap instead.")
    ] = _DEFAULTS.permutations,
    confidence: Annotated[float, typer.Option("--confidence", help="Level of intervals (share).")] = _DEFAULTS.confidence,
    primary: Annotated[
        Optional[list[str]],
        typer.Option("--primary", help="Gaps whose tests form the family corrected by Holm. Default: auc,equalized_odds."),
    ] = None,
    adjust: Annotated[
        Optional[list[str]], typer.Option("--adjust", help="Case-mix columns, as age,site, over which gaps are standardised.")
    ] = None,
    reference: Annotated[
        Optional[list[str]], typer.Option("--reference", metavar="NAME=GROUP", help="Reference group of disparate impact, as sex=male.")
    ] = None,
    bounds: Annotated[
        bool, typer.Option("--bounds/--no-bounds", help="Bounds on every gap over all groups that missing attributes could be.")
    ] = _DEFAULTS.bounds,
    no_finding: Annotated[
        Optional[list[str]], typer.Option("--no-finding", help="Labels that mean health: there under-diagnosis is the FPR.")
    ] = None,
    ece_bins: Annotated[int, typer.Option("--ece-bins", help="Bins of the expected calibration error.")] = _DEFAULTS.ece_bins,
    min_patients: Annotated[
        int, typer.Option("--min-patients", help="Patients needed in a rate's denominator.")
    ] = _DEFAULTS.min_patients,
    max_groups: Annotated[int, typer.Option("--max-groups", help="Most groups one attribute may have.")] = _DEFAULTS.max_groups,
    fail_if: Annotated[
        Optional[list[str]], typer.Option("--fail-if", help="Exit 3 if this holds, as 'age.equalized_odds.lower > 0.1'.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of every random stream.")] = 0,
    threads: Annotated[
        Optional[int], typer.Option("--threads", min=1, help="Processors to use; the numbers do not depend on it. Default: all.")
    ] = None,
    title: Annotated[Optional[str], typer.Option("--title", help="Title of the report.")] = None,
) -> None:
    """Audit a table of scores: who does the model fail, and how sure is that? Needs no model and no GPU.

    Columns that are not named are recognised by their usual names, and what was recognised is printed first.

    Example: evenhand audit scores.csv -o audit
    """
    from evenhand.errors import GateError
    from evenhand.evaluation.columns import parse_bins_or_quantiles
    from evenhand.runs.audit import audit

    options: dict[str, Any] = {
        "threshold": threshold, "metrics": split_names(metrics), "interval": interval, "bootstrap": bootstrap,
        "permutations": permutations, "confidence": confidence, "primary": split_names(primary), "adjust": split_names(adjust),
        "reference": named_values("--reference", reference), "bounds": bounds, "no_finding": split_names(no_finding), "ece_bins": ece_bins,
        "min_patients": min_patients, "max_groups": max_groups,
    }  # fmt: skip
    columns: dict[str, Any] = {
        "label": split_names(label), "score": split_names(score), "groups": split_names(groups) or None, "pred": split_names(pred),
        "patient": patient, "split": split,
    }  # fmt: skip
    values: dict[str, Any] = {
        "value": split_names(value) or None, "lower_is_better": lower_is_better, "pred_mask": pred_mask, "true_mask": true_mask,
        "images": images, "spacing": numbers("--spacing", spacing),
    }  # fmt: skip
    try:
        result = audit(
            table, **columns, **values, metadata=metadata, on=on, logits=logits, pos_label=pos_label,
            bins=parse_bins_or_quantiles(bins or []), missing=missing, fail_if=fail_if, seed=seed,
            threads=threads, out=out, title=title, say=typer.echo, **options,
        )  # fmt: skip
    except GateError:
        typer.echo(f"Report: {out / 'report.html'}")
        raise
    show_audit(result.to_json())
    typer.echo(f"Report: {out / 'report.html'}")


def numbers(option: str, text: str | None) -> list[float] | None:
    """``"0.5,0.5,2"`` -> numbers.

    Raises:
        ConfigError: not of that form.
    """
    from evenhand.errors import ConfigError

    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{option} {text} is not one number or several, as {option} 0.5,0.5,2") from error


def named_values(option: str, texts: Sequence[str] | None) -> dict[str, str]:
    """``["sex=male", "age=[0,60)"]`` -> a mapping.

    Raises:
        ConfigError: not of that form.
    """
    from evenhand.errors import ConfigError

    found = {}
    for text in texts or ():
        name, sign, value = (part.strip() for part in text.partition("="))
        if not (sign and name and value):
            raise ConfigError(f"{option} {text} is not of the form NAME=VALUE, as {option} sex=male")
        found[name] = value
    return found


def split_names(values: Sequence[str] | None) -> list[str]:
    """``["sex,age", "site"]`` -> ``["sex", "age", "site"]``."""
    return [name.strip() for value in values or () for name in value.split(",") if name.strip()]


def show_audit(data: dict[str, Any]) -> None:
    """Print overall AUC (or the mean of a continuous value), the primary gaps and the verdicts."""
    from rich.console import Console
    from rich.table import Table

    from evenhand.evaluation.verdicts import WORDS

    console = Console(highlight=False)
    primary = data["provenance"]["family"]["metrics"]
    view = Table(
        "label",
        "attribute",
        *(f"gap in {WORDS.get(name, name)}" for name in primary),
        "groups",
        title=f"{data['n']} rows, {data['n_patients']} patients",
    )
    for label, item in data["labels"].items():
        main = next(name for name in ("auc", "mean", *item["overall"]) if isinstance(item["overall"].get(name), dict))
        view.add_row(label, f"overall {WORDS.get(main, main)}", short(item["overall"][main]), *[""] * (len(primary) - 1), "")
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
