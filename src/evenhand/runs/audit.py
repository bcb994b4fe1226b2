"""`evenhand.audit`: anybody's scores in, an audit out; no model and no torch needed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from evenhand.config.schema import AuditConfig
from evenhand.errors import ConfigError, TableError
from evenhand.evaluation.columns import Names, audit_frame, names_of
from evenhand.evaluation.evaluate import AuditResult, evaluate
from evenhand.evaluation.gates import check_gates, parse_gate
from evenhand.evaluation.predictions import GROUP_SUFFIX
from evenhand.evaluation.reading import read_predictions
from evenhand.files import write_text


def audit(
    table: pd.DataFrame | str | os.PathLike[str],
    label: Names = None,
    score: Names = None,
    groups: Names = None,
    *,
    pred: Names = None,
    patient: str | None = None,
    split: str | None = None,
    threshold: str | float = "youden",
    bins: Mapping[str, Sequence[float]] | None = None,
    missing: str = "own_group",
    bootstrap: int = 1000,
    permutations: int = 1000,
    confidence: float = 0.95,
    primary: Names = None,
    max_groups: int = 50,
    fail_if: Names = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    title: str | None = None,
) -> AuditResult:
    """Judge scores by patient group, with patient-clustered intervals and corrected tests.

    Args:
        table: a DataFrame, a CSV, TSV or parquet file, or a run folder.
        label: column(s) with 0/1; or one column of class names together with several score columns (multi-class).
            None: the contract's columns ``y_true[_LABEL]`` and ``y_score[_LABEL]``.
        score: column(s) with probabilities in [0, 1], in the order of the labels.
        groups: attribute columns; joint ones as ``sex*age``. None: every attribute with a ``__group`` column.
        pred: column(s) with 0/1 decisions; they win over the threshold.
        patient: column with patient ids; default ``patient_id`` where there is one.
        split: column with train, val and test; default ``split`` where there is one. Test rows are judged.
        threshold: ``youden``, ``f1``, ``sensitivity=0.9``, ``specificity=0.9``, ``prevalence`` (chosen on validation
            rows), or a number.
        bins: numeric column -> edges of half-open bins.
        missing: ``own_group``, ``drop`` or ``error``.
        bootstrap: replicates.
        permutations: permutations of each test; raised to 40 a test of the family where that is more; 0: p-values and limits
            come from the bootstrap instead.
        confidence: level of intervals.
        primary: gaps whose tests form the family corrected by Holm; default AUC and equalized odds.
        max_groups: most groups an attribute may have.
        fail_if: conditions such as ``age.equalized_odds.lower > 0.1``; see `evenhand.evaluation.gates`.
        seed: of every random stream.
        out: folder for ``audit.json``, ``tables/*.csv`` and ``report.html``; None: nothing is written.
        title: of the report.

    Returns:
        The audit.

    Raises:
        TableError, ConfigError: the input is wrong; nothing was written.
        GateError: a condition of ``fail_if`` holds; everything was written.

    Example:
        >>> import numpy as np, pandas as pd
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 2, 200)
        >>> frame = pd.DataFrame({"y": y, "p": 0.3 * y + 0.7 * rng.random(200), "sex": np.tile(["f", "m"], 100)})
        >>> found = audit(frame, "y", "p", "sex", threshold=0.5, bootstrap=100, permutations=100)
        >>> sorted(found.to_json()["labels"]["y"]["attributes"]["sex"]["groups"])
        ['f', 'm']
    """
    config = AuditConfig(
        threshold=str(threshold),
        bootstrap=bootstrap,
        confidence=confidence,
        permutations=permutations,
        max_groups=max_groups,
        primary=names_of(primary) or AuditConfig().primary,
    )
    text = [name for name in ("image", patient or "patient_id", split or "split") if name]
    frame = table if isinstance(table, pd.DataFrame) else read_predictions(table, text=text)
    if frame.empty:
        raise TableError("the table has no rows; an audit needs at least one row an image")
    frame, labels, classes = audit_frame(frame, names_of(label), names_of(score), names_of(pred), patient, split)
    attributes = names_of(groups) or [str(name).removesuffix(GROUP_SUFFIX) for name in frame.columns if str(name).endswith(GROUP_SUFFIX)]
    unused = sorted(set(bins or {}) - {part for name in attributes for part in name.split("*")})
    if unused:
        raise ConfigError(f"bins are given for '{unused[0]}', which is not among the groups ({', '.join(attributes)}); add it there")
    names = [*classes, "macro"] if classes else labels
    gates = [parse_gate(text, names, attributes) for text in names_of(fail_if)]
    result = evaluate(frame, labels=labels, attributes=attributes, config=config, seed=seed, bins=bins, missing=missing, classes=classes)
    if out is not None:
        write_audit(result, out, title=title or f"Audit of {', '.join(labels)}")
    check_gates(gates, result.to_json())
    return result


def write_audit(result: AuditResult, out: str | os.PathLike[str], *, title: str) -> None:
    """Write ``audit.json``, ``tables/*.csv`` and ``report.html`` into a folder; each file atomically.

    Raises:
        RunError: the folder cannot be written.
        DiskFullError: no space is left.
    """
    folder = Path(out)
    table = result.to_table()
    write_text(folder / "audit.json", result.dumps())
    parts = {"estimates": table[table["kind"] == "value"], "gaps": table[table["kind"] == "gap"]}
    empty = {"estimates": ["p", "p_holm", "low_group", "high_group"], "gaps": ["group", "n_positive"]}
    for name, part in parts.items():
        text = part.drop(columns=["kind", *empty[name]]).to_csv(index=False, lineterminator="\n")
        write_text(folder / "tables" / f"{name}.csv", text)
    verdicts = pd.DataFrame(result.verdicts, columns=["code", "label", "attribute", "group", "metric", "value", "lower", "upper", "text"])
    write_text(folder / "tables" / "verdicts.csv", verdicts.to_csv(index=False, lineterminator="\n"))
    from evenhand.report.html import write_audit_report

    write_audit_report(result.to_json(), result.predictions, folder / "report.html", title=title)
