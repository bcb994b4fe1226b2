"""`evenhand.compare`: runs side by side, paired on the same patients, and one offline page about them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from evenhand.config.schema import AuditConfig
from evenhand.evaluation.compare import CompareResult
from evenhand.evaluation.compare import compare as compare_tables
from evenhand.evaluation.runs_table import read_runs
from evenhand.files import write_text


def compare(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    groups: Sequence[str] = (),
    bins: Mapping[str, Sequence[float]] | None = None,
    missing: str = "own_group",
    config: AuditConfig | None = None,
    seed: int = 0,
    title: str = "Comparison of runs",
) -> CompareResult:
    """Compare two or more runs on the same test rows; the first is the reference.

    A run of several seeds counts as one: its numbers are means over the seeds, its intervals the patient bootstrap of
    that mean, with the standard deviation over seeds beside them. Each run is judged at the threshold that its audit.json
    stores; plain tables of predictions at the rule of ``config``, chosen on their validation rows.

    Args:
        runs: run folders (with predictions.parquet, or seed=k subfolders), files of predictions, or ``NAME=PATH``.
        out: the HTML page; a .json and a .csv are put beside it. None: nothing is written.
        groups: attributes; default: those all predictions have groups of.
        bins: numeric column -> edges, for tables without groups.
        missing: ``own_group``, ``drop`` or ``error``.
        config: how to judge.
        seed: of every random stream.
        title: of the page.

    Returns:
        The comparison, with ``.to_json()`` and ``.to_table()``.

    Raises:
        InputError: fewer than two runs, two of one name, no predictions, different test rows.

    Example:
        >>> import evenhand as eh  # doctest: +SKIP
        >>> eh.compare(["runs/probe", "runs/dro"], "compare.html").to_table()  # doctest: +SKIP
    """
    table = read_runs(runs)
    result = compare_tables(
        table.runs,
        labels=table.labels,
        classes=table.classes,
        attributes=list(groups) or table.attributes,
        bins=bins,
        missing=missing,
        config=config,
        seed=seed,
        thresholds=table.thresholds,
    )
    if out is not None:
        from evenhand.report.html import write_compare_report

        page = page_of(out)
        write_text(page.with_suffix(".json"), result.dumps())
        write_text(page.with_suffix(".csv"), result.to_table().to_csv(index=False, lineterminator="\n"))
        write_compare_report(result.to_json(), page, title=title)
    return result


def page_of(out: str | os.PathLike[str]) -> Path:
    """The HTML file that ``out`` names: itself, or report.html in that folder."""
    path = Path(out)
    return path if path.suffix.lower() in (".html", ".htm") else path / "report.html"
