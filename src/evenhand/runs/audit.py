"""`evenhand.audit`: anybody's scores in, an audit out; no model and no torch needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from evenhand.config.schema import AuditConfig
from evenhand.errors import ConfigError, TableError, nearest
from evenhand.evaluation.arrays import frame_of_arrays, is_array, table_of
from evenhand.evaluation.columns import names_of
from evenhand.evaluation.evaluate import AuditResult, evaluate
from evenhand.evaluation.gates import check_gates, parse_gate
from evenhand.evaluation.intake import Bins, Intake, Request, take_in
from evenhand.evaluation.long_table import TABLES, audit_tables
from evenhand.evaluation.metadata import join_metadata
from evenhand.evaluation.reading import read_predictions
from evenhand.evaluation.selection import check_no_finding
from evenhand.files import check_folder, write_text
from evenhand.runs.audit_values import judge_values, value_question

Table = pd.DataFrame | Mapping[str, Any] | str | os.PathLike[str]


def audit(
    table: Table | None = None,
    label: Any = None,
    score: Any = None,
    groups: Any = None,
    *,
    pred: Any = None,
    value: str | Sequence[str] | None = None,
    lower_is_better: bool | str | Sequence[str] = False,
    pred_mask: str | None = None,
    true_mask: str | None = None,
    images: str | os.PathLike[str] | None = None,
    spacing: float | Sequence[float] | None = None,
    patient: Any = None,
    split: Any = None,
    metadata: Table | None = None,
    on: str | None = None,
    logits: bool = False,
    pos_label: str | float | None = None,
    label_names: Sequence[str] = (),
    classes: Sequence[str] = (),
    bins: Bins | None = None,
    missing: str = "own_group",
    fail_if: str | Sequence[str] | None = None,
    config: AuditConfig | None = None,
    seed: int = 0,
    threads: int | None = None,
    out: str | os.PathLike[str] | None = None,
    title: str | None = None,
    say: Callable[[str], object] | None = None,
    **options: Any,
) -> AuditResult:
    """Judge scores by patient group, with patient-clustered intervals and corrected tests.

    What is not named is recognised: label, score, patient, split and attributes by the usual names of their columns,
    logits by their range, and the positive class of texts such as benign and malignant. What was recognised, and what was
    not used, is in ``provenance.input`` of the result, and goes to ``say`` before anything is computed. What is named is
    never guessed at; two columns of equal standing are an error that lists both.

    Args:
        table: a DataFrame, a mapping of columns, a CSV (commas, tabs or semicolons), JSON lines or parquet file, gzipped or
            not, or a run folder. None: ``label``, ``score``, ``groups``, ``pred``, ``patient`` and ``split`` are arrays.
        label: column(s) with 0/1, or with two texts; or one column of class names together with several score columns
            (multi-class). Arrays: (n,), or (n, labels).
        score: column(s) with probabilities in [0, 1], in the order of the labels. Arrays: (n,), (n, labels) or (n, classes);
            lists, numpy arrays, Series and tensors (on any device, with or without gradients) are taken by position.
        groups: attribute columns; joint ones as ``sex*age``, quantile bins as ``age=q4``; [] for none. Arrays: a mapping of
            names to (n,) values.
        pred: column(s) with 0/1 decisions; they win over the threshold.
        value: column(s) of continuous values a case (a Dice score, an error, a length of stay), judged by group means and medians
            in place of labels and scores; see `evenhand.evaluation.values`.
        lower_is_better: whether a high value is the worse one, or the names of the values of which it is. hd95, mae and the
            like are known to be, dice and iou not to be.
        pred_mask, true_mask: columns with mask files (PNG, NumPy, NIfTI), from which Dice and the 95% Hausdorff distance are
            computed and judged as values; see `evenhand.data.mask_scores`. Needs the extra ``masks``.
        images: folder that the mask files' names are relative to. Default: the table's own folder.
        spacing: size of a pixel or voxel in mm, one number or one an axis. Default: as NIfTI headers say, else 1 (pixels).
        patient: column with patient ids.
        split: column with train, val and test. Test rows are judged, validation rows choose the threshold.
        metadata: a second table with further columns, one row a key.
        on: the key's column in both, or ``LEFT=RIGHT``. Default: the only column that both have.
        logits: scores are logits; a sigmoid (softmax over classes) makes probabilities of them.
        pos_label: the value of the label that is the positive class; all others are negative.
        label_names, classes: names of the columns of two-dimensional arrays.
        bins: numeric column -> edges of half-open bins, or ``q4`` for quantile bins of the judged patients. Measurements
            (more than 10 distinct numbers) without bins are cut into quartiles, and this is said.
        missing: ``own_group``, ``drop`` or ``error``.
        fail_if: conditions such as ``age.equalized_odds.lower > 0.1``; see `evenhand.evaluation.gates`.
        config: how to judge; default: `AuditConfig()`.
        seed: of every random stream.
        threads: blocks of replicates at a time; the result is the same for any number. Default: one a processor.
        out: folder for ``audit.json``, ``tables/*.csv`` and ``report.html``; None: nothing is written.
        title: of the report.
        say: called with every line about how the table was read, before anything is computed.
        options: fields of `AuditConfig` by name (threshold, bootstrap, permutations, confidence, primary, metrics, interval,
            max_groups, adjust, reference, bounds, …); they win over ``config``.

    Returns:
        The audit.

    Raises:
        TableError, ConfigError: the input is wrong; nothing was written.
        GateError: a condition of ``fail_if`` holds; everything was written.

    Example:
        >>> import numpy as np, pandas as pd
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 2, 200)
        >>> sex = np.tile(["f", "m"], 100)
        >>> few = {"threshold": 0.5, "bootstrap": 100, "permutations": 100}
        >>> found = audit(pd.DataFrame({"y": y, "p": 0.3 * y + 0.7 * rng.random(200), "sex": sex}), **few)
        >>> sorted(found.to_json()["labels"]["y"]["attributes"]["sex"]["groups"])
        ['f', 'm']
        >>> list(audit(label=y, score=0.3 * y + 0.7 * rng.random(200), groups={"sex": sex}, **few).to_json()["labels"])
        ['label']
    """
    settings = configured(config, options)
    others = {"label": label, "score": score, "pred": pred, "logits": logits, "pos_label": pos_label}
    question = value_question(
        value=value, lower_is_better=lower_is_better, pred_mask=pred_mask, true_mask=true_mask, images=images, spacing=spacing,
        table=table, others=others,
    )  # fmt: skip
    roles = {"label": label, "score": score, "pred": pred, "groups": groups, "patient": patient, "split": split}
    if out is not None:
        check_folder(out)
    frame, roles, notes, record = _table(table, roles, metadata, on, label_names, classes)
    frame = question.with_columns(frame) if question else frame
    asked = Request(
        **{name: tuple(names_of(roles[name])) for name in ("label", "score", "pred")},
        groups=None if roles["groups"] is None else tuple(names_of(roles["groups"])),
        patient=roles["patient"],
        split=roles["split"],
        values=question.values if question else (),
        logits=logits,
        pos_label=None if pos_label is None else f"{pos_label:g}" if isinstance(pos_label, float) else str(pos_label),
        bins=bins or {},
        max_groups=settings.max_groups,
    )
    taken = take_in(frame, asked)
    if say is not None:
        for line in (*taken.said, *notes):
            say(line)
    if question:
        result, check = judge_values(
            question, taken, config=settings, missing=missing, gates=names_of(fail_if), seed=seed, threads=threads, out=out,
            progress=say is not None,
        )  # fmt: skip
    else:
        result, check = _judge(taken, settings, missing, names_of(fail_if), seed, threads)
    made = result.data["provenance"]
    made["notes"] = [*notes, *taken.notes, *made["notes"]]
    made["input"] = {**taken.record, **record}
    if out is not None:
        write_audit(result, out, title=title or _title(list(question.values if question else taken.labels)))
    check(result)
    return result


def _judge(
    taken: Intake, config: AuditConfig, missing: str, fail_if: Sequence[str], seed: int, threads: int | None
) -> tuple[AuditResult, Callable[[AuditResult], None]]:
    """(the audit of labels and scores, what checks its gates)."""
    names = [*taken.classes, "macro"] if taken.classes else list(taken.labels)
    check_no_finding(config.no_finding, names)
    gates = [parse_gate(text, names, taken.attributes, primary=config.primary) for text in fail_if]
    if config.metrics:
        config = replace(config, metrics=[*config.metrics, *(gate.metric for gate in gates)])
    result = evaluate(
        taken.frame, labels=taken.labels, attributes=taken.attributes, config=config, seed=seed, bins=taken.bins, missing=missing,
        classes=taken.classes, threads=threads,
    )  # fmt: skip
    return result, lambda audit: check_gates(gates, audit.to_json())


def configured(config: AuditConfig | None, options: Mapping[str, Any]) -> AuditConfig:
    """An `AuditConfig` with some fields replaced; lists may be given as one name, a threshold as a number.

    Raises:
        ConfigError: no such field; the nearest is offered.

    Example:
        >>> configured(None, {"bootstrap": 10, "primary": "auc"}).primary
        ['auc']
    """
    config = config or AuditConfig()
    known = {item.name for item in fields(config)}
    unknown = next((name for name in options if name not in known), None)
    if unknown is not None:
        raise ConfigError(f"there is no option '{unknown}'; {nearest(unknown, sorted(known))}")
    made = {name: value for name, value in options.items() if value is not None}
    for name, value in made.items():
        if isinstance(getattr(config, name), list):
            made[name] = names_of(value) or getattr(config, name)
        elif isinstance(getattr(config, name), str):
            made[name] = str(value)
    config = replace(config, **made)
    for item in fields(config):
        value, choices, low = getattr(config, item.name), item.metadata.get("choices"), item.metadata.get("low")
        if choices and value not in choices:
            raise ConfigError(f"{item.name} is '{value}', but must be one of {', '.join(choices)}")
        if low is not None and not isinstance(value, (int, float)):
            raise ConfigError(f"{item.name} is {value!r}, but must be a number")
        if low is not None and not value >= low:
            raise ConfigError(f"{item.name} is {value}, but must be at least {low:g}")
    return config


def _table(
    table: Table | None, roles: dict[str, Any], metadata: Table | None, on: str | None, label_names: Sequence[str], classes: Sequence[str]
) -> tuple[pd.DataFrame, dict[str, Any], list[str], dict[str, Any]]:
    """(the table with its metadata, roles as names of its columns, notes, record)."""
    if table is None:
        frame, named = frame_of_arrays(roles.pop("label"), roles.pop("score"), **roles, label_names=label_names, classes=classes)
        roles = {**dict.fromkeys(("label", "score", "pred", "groups", "patient", "split")), **named}
    else:
        arrays = next((name for name, value in roles.items() if is_array(value) or isinstance(value, Mapping)), None)
        if arrays is not None:
            raise ConfigError(f"{arrays} holds values, but there is a table; put them into the table and name the column")
        if label_names or classes:
            raise ConfigError("label_names and classes are for arrays; in a table the names of the columns say it")
        frame = _frame(table, [roles["patient"], roles["split"], *(on or "").split("=")])
    if metadata is None:
        if on is not None:
            raise ConfigError(f"on is '{on}', but there is no metadata to join; give --metadata FILE")
        return frame, roles, [], {}
    joined = join_metadata(frame, _frame(metadata, (on or "").split("=")), on)
    return joined.frame, roles, list(joined.notes), {"metadata": joined.record}


def _frame(table: Table, text: Sequence[str | None]) -> pd.DataFrame:
    """A table from a file, a mapping or a DataFrame, with the columns of ids kept as text."""
    if isinstance(table, (str, os.PathLike)):
        return read_predictions(table, text=["image", "patient_id", "split", *(name for name in text if name)])
    frame = table_of(table)
    if frame.empty:
        raise TableError("the table has no rows; an audit needs at least one row an image")
    return frame


def _title(judged: Sequence[str]) -> str:
    """The heading of the page: what was judged, the first three by name."""
    more = f" and {len(judged) - 3} more" if len(judged) > 3 else ""
    return f"Audit of {', '.join(judged[:3])}{more}"


def write_audit(result: AuditResult, out: str | os.PathLike[str], *, title: str) -> None:
    """Write ``audit.json``, ``tables/*.csv`` and ``report.html`` into a folder; each file atomically.

    Raises:
        RunError: the folder cannot be written.
        DiskFullError: no space is left.
    """
    folder = Path(out)
    write_text(folder / "audit.json", result.dumps())
    made = audit_tables(result.to_json())
    for name in TABLES:
        file = folder / "tables" / f"{name}.csv"
        if name in made:
            write_text(file, made[name].to_csv(index=False, lineterminator="\n"))
        else:
            # of an earlier audit in the same folder, which would be read as part of this one
            file.unlink(missing_ok=True)
    from evenhand.report.html import write_audit_report

    write_audit_report(result.to_json(), result.predictions, folder / "report.html", title=title)
