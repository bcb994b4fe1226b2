"""From anybody's table to the contract's table: what was asked for, what is recognised, and what was made of both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from evenhand.data.groups import measured, quantile_edges, quantile_groups
from evenhand.errors import ConfigError, TableError
from evenhand.evaluation.cohort import split_rows
from evenhand.evaluation.columns import coded_frame, is_quantiles, split_column
from evenhand.evaluation.doubts import doubtful, emptied, unused_splits
from evenhand.evaluation.predictions import GROUP_SUFFIX, need_column
from evenhand.evaluation.recognise import MOST_VALUES, Attributes, Outcome, find_attributes, find_outcome, find_single, is_measured

Bins = Mapping[str, Sequence[float] | str]
AUTO_BINS = "q4"


@dataclass(frozen=True)
class Request:
    """What the user named; what is empty or None is recognised by name.

    Attributes:
        label, score, pred: columns; several are several labels, or the classes of one.
        groups: attributes; None: those recognised, (): none.
        patient, split: columns.
        values: columns of continuous values that are judged instead of a label and a score.
        logits: scores are logits.
        pos_label: the positive value of text labels.
        bins: attribute -> edges, or ``q4`` for quantiles.
        max_groups: an attribute of more groups is not recognised.
    """

    label: tuple[str, ...] = ()
    score: tuple[str, ...] = ()
    pred: tuple[str, ...] = ()
    groups: tuple[str, ...] | None = None
    patient: str | None = None
    split: str | None = None
    values: tuple[str, ...] = ()
    logits: bool = False
    pos_label: str | None = None
    bins: Bins = field(default_factory=dict)
    max_groups: int = 50


@dataclass(frozen=True)
class Intake:
    """A table in the contract's columns.

    Attributes:
        frame: ``y_true…``, ``y_score…``, ``patient_id``, ``split`` and the attributes.
        labels, classes: of what is judged; empty where values are.
        attributes: attributes, joint ones as ``sex*age``.
        bins: attribute -> edges; quantile bins stand in the table, as ``<attribute>__group``.
        said: one line for each role, to be shown before anything is computed; empty where all was named.
        notes: sentences for the report.
        record: for the provenance.
    """

    frame: pd.DataFrame
    labels: tuple[str, ...]
    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    bins: dict[str, tuple[float, ...]]
    said: tuple[str, ...]
    notes: tuple[str, ...]
    record: dict[str, Any]


def take_in(frame: pd.DataFrame, asked: Request) -> Intake:
    """Find the columns, code labels and scores, cut quantile bins.

    Raises:
        TableError, ConfigError: what is wrong, with the user's names.

    Example:
        >>> frame = pd.DataFrame({"Diagnosis": ["benign", "malignant"] * 3, "prob": [0.1, 0.9] * 3, "sex": ["f", "f", "m"] * 2})
        >>> found = take_in(frame, Request())
        >>> found.labels, found.attributes
        (('Diagnosis',), ('sex',))
    """
    if frame.empty:
        raise TableError("the table has no rows; an audit needs at least one row an image")
    frame, emptied_said = emptied(_named_columns(frame.reset_index(drop=True)), (asked.patient, asked.split))
    groups, bins = _shorthand(frame, asked)
    outcome = None if asked.values else _outcome(frame, asked)
    columns = asked.values if outcome is None else (*outcome.labels, *outcome.scores, *outcome.preds.values())
    parts = [part for name in groups or () for part in name.split("*")]
    single = find_single(frame, [*columns, *parts], asked.patient, asked.split)
    taken = [*columns, *(name for name in (single.patient, single.split, single.image) if name)]
    found = Attributes(groups) if groups is not None else find_attributes(frame, taken, asked.max_groups)
    done: list[str] = []
    classes: list[str] = []
    coded = frame
    if outcome is not None:
        coded, classes, done = coded_frame(
            frame, outcome, logits=asked.logits, guess=not asked.score, pos_label=asked.pos_label
        )
    _check_roles(outcome, parts, asked.values)
    coded = coded.assign(**_single_columns(frame, single.patient, single.split, single.image))
    _check_bins(bins, found.names)
    coded, quantiles = _quantiles(coded, frame, found.names, bins)
    edges = {name: tuple(float(edge) for edge in value) for name, value in bins.items() if not isinstance(value, str)}
    roles = _roles(asked, outcome, single.patient, single.split, single.image, found.names)
    unused = _unused(frame, [*taken, *found.names])
    cut = [f"{name} is cut into {item['bins']} bins at {_numbers(item['edges'])}{_why(item)}" for name, item in quantiles.items()]
    passed = [f"attribute '{name}' is not audited: {why}" for name, why in found.passed.items()]
    doubts = doubtful(coded, found.names, edges, set(quantiles), single.patient)
    doubts += [] if single.split else unused_splits(frame, unused)
    record = {"roles": roles, "unused": unused, "passed_over": dict(found.passed), "quantile_bins": quantiles, "coded": done}
    return Intake(
        coded,
        () if outcome is None else outcome.names,
        tuple(classes),
        found.names,
        edges,
        _said(roles, unused, [*emptied_said, *cut, *passed, *done, *doubts]),
        tuple(emptied_said + done + cut + doubts),
        record,
    )


def _named_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns named by text, each once."""
    names = [str(name) for name in frame.columns]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise TableError(f"the table has {names.count(twice)} columns named '{twice}'; rename or remove one of them")
    return frame if names == list(frame.columns) else frame.set_axis(names, axis=1)


def _check_roles(outcome: Outcome | None, parts: Sequence[str], values: Sequence[str]) -> None:
    """A label is not its own score, and neither is an attribute; nor is a value."""
    own = next((name for name in parts if name in values), None)
    if own is not None:
        raise ConfigError(f"column '{own}' is among the groups, but is the value that is judged; leave it out of --groups")
    if outcome is None:
        return
    both = next((name for name in outcome.labels if name in (*outcome.scores, *outcome.preds.values())), None)
    if both is not None:
        raise ConfigError(f"column '{both}' is given as the label and as its own score or decision; name another --score or --label")
    role = next((name for name in parts if name in (*outcome.labels, *outcome.scores)), None)
    if role is not None:
        raise ConfigError(f"column '{role}' is among the groups, but is the label or the score; leave it out of --groups")


def _outcome(frame: pd.DataFrame, asked: Request) -> Outcome:
    """The columns of labels and scores: as named, the rest by name."""
    labels, scores, preds = asked.label, asked.score, asked.pred
    for names, role in ((labels, "label"), (scores, "score"), (preds, "decision")):
        for name in names:
            need_column(frame, name, role)
    if labels and scores:
        fits = len(labels) == len(scores) and len(preds) in (0, len(labels))
        if not fits and not (len(labels) == 1 and len(scores) > 1 and len(preds) < 2):
            raise ConfigError(
                f"{len(labels)} labels, {len(scores)} scores and {len(preds)} decisions do not fit; give one score (and decision) a label"
            )
        found = Outcome(labels, labels, scores)
    else:
        found = find_outcome(frame.drop(columns=_claimed(frame, asked)), labels, scores, asked.pos_label)
    if not preds:
        return found
    if len(preds) != len(found.names):
        raise ConfigError(f"{len(found.names)} labels and {len(preds)} decisions do not fit; give one decision a label")
    return Outcome(found.names, found.labels, found.scores, found.classes, dict(zip(found.names, preds, strict=True)))


def _claimed(frame: pd.DataFrame, asked: Request) -> list[str]:
    """Columns that have another role already, so that they are no label and no score."""
    parts = {part for name in asked.groups or () for part in name.partition("=")[0].split("*")}
    named = {*asked.pred, asked.patient, asked.split, *parts} - {*asked.label, *asked.score}
    return [name for name in frame.columns if name in named]


def _shorthand(frame: pd.DataFrame, asked: Request) -> tuple[tuple[str, ...] | None, dict[str, Sequence[float] | str]]:
    """Attributes and bins, with ``age=q4`` among the attributes taken apart."""
    bins = dict(asked.bins)
    for name, value in bins.items():
        if np.ndim(value) == 0 and not (isinstance(value, str) and is_quantiles(value)):
            raise ConfigError(f"bins of '{name}' are '{value}', but must be edges, as 0,60,200, or quantiles, as q4")
    if asked.groups is None:
        return None, bins
    names = []
    for text in asked.groups:
        name, sign, value = (part.strip() for part in text.partition("="))
        if not sign or text in frame.columns:
            names.append(text)
            continue
        if not is_quantiles(value) or "*" in name:
            raise ConfigError(f"attribute '{text}' is not understood; write age=q4 for quantile bins, or --bins age=0,60,200 for edges")
        bins[name] = value.lower()
        names.append(name)
    return tuple(dict.fromkeys(names)), bins


def _check_bins(bins: Bins, attributes: Sequence[str]) -> None:
    unused = sorted(set(bins) - {part for name in attributes for part in name.split("*")})
    if unused:
        raise ConfigError(f"bins are given for '{unused[0]}', which is not among the groups ({', '.join(attributes)}); add it there")


def _single_columns(frame: pd.DataFrame, patient: str | None, split: str | None, image: str | None) -> dict[str, Any]:
    taken: dict[str, Any] = {}
    if patient is not None:
        taken["patient_id"] = need_column(frame, patient, "given as patient")
    if split is not None:
        taken["split"] = split_column(need_column(frame, split, "given as split"), split)
    if image is not None:
        taken["image"] = frame[image]
    return taken


def _quantiles(
    coded: pd.DataFrame, frame: pd.DataFrame, attributes: Sequence[str], bins: Bins
) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """Quantile bins as ``<attribute>__group`` columns: those asked for, and quartiles of measurements without bins."""
    found: dict[str, dict[str, Any]] = {}
    rows: npt.NDArray[np.bool_] | None = None
    for name in dict.fromkeys(part for attribute in attributes for part in attribute.split("*")):
        asked = bins.get(name)
        stored = f"{name}{GROUP_SUFFIX}"
        auto = asked is None and stored not in coded.columns and name in frame.columns and is_measured(frame[name], name)
        if not auto and not isinstance(asked, str):
            continue
        rows = split_rows(coded, np.ones(len(coded), dtype=bool))[0] if rows is None else rows
        rule = asked if isinstance(asked, str) else AUTO_BINS
        column = need_column(frame, name, "attribute")
        edges = quantile_edges(_one_a_patient(coded, measured(column, name), rows), int(rule[1:]), name)
        coded = coded.assign(**{stored: quantile_groups(column, edges, name).names()})
        found[name] = {"bins": rule, "edges": list(edges), "automatic": auto}
    return coded, found


def _one_a_patient(
    coded: pd.DataFrame, numbers: npt.NDArray[np.float64], rows: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """The values of the judged rows, each once a patient, so that a patient of many images weighs as one."""
    use = rows & np.isfinite(numbers)
    if "patient_id" not in coded.columns:
        return numbers[use]
    patient = pd.factorize(coded["patient_id"])[0][use]
    once = (patient < 0) | ~pd.DataFrame({"patient": patient, "value": numbers[use]}).duplicated().to_numpy(bool)
    kept: npt.NDArray[np.float64] = numbers[use][once]
    return kept


def _roles(
    asked: Request, outcome: Outcome | None, patient: str | None, split: str | None, image: str | None, groups: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Role -> its columns, and whether they were given or recognised."""
    roles: dict[str, tuple[Iterable[str], bool]] = {"value": (asked.values, True)}
    if outcome is not None:
        roles |= {"label": (outcome.labels, bool(asked.label)), "score": (outcome.scores, bool(asked.score))}
        roles["decision"] = (outcome.preds.values(), bool(asked.pred))
    roles["patient"] = ((patient,) if patient else (), asked.patient is not None)
    roles["split"] = ((split,) if split else (), asked.split is not None)
    roles["image"] = ((image,) if image else (), False)
    roles["groups"] = (groups, asked.groups is not None)
    made = {role: {"columns": list(columns), "how": "given" if given else "recognised"} for role, (columns, given) in roles.items()}
    return {role: item for role, item in made.items() if item["columns"] or role in ("patient", "groups")}


def _unused(frame: pd.DataFrame, used: Iterable[str]) -> list[str]:
    parts = {part for name in used for part in (name, *name.split("*"))}
    parts |= {f"{part}{GROUP_SUFFIX}" for part in parts}
    return [str(name) for name in frame.columns if name not in parts]


def _said(roles: Mapping[str, Mapping[str, Any]], unused: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    """What was recognised, one line a role; nothing where label, score and groups were all given."""
    main = [roles[role]["how"] for role in ("label", "score", "groups", "value") if role in roles]
    if all(how == "given" for how in main):
        single = {role: roles[role] for role in ("patient", "split") if role in roles}
        guessed = [f"{role} is '{item['columns'][0]}'" for role, item in single.items() if item["how"] != "given" and item["columns"]]
        return (f"recognised by name: {', '.join(guessed)}", *more) if guessed else tuple(more)
    lines = ["columns recognised by name (options such as --label win):"]
    for role, item in roles.items():
        given = " (given)" if item["how"] == "given" else ""
        shown = _short(item["columns"]) + given if item["columns"] else f"none recognised; name one with --{role}"
        lines.append(f"  {role + ':':<10}{shown}")
    lines.append(f"  {'not used:':<10}{_short(unused) if unused else 'no other column'}")
    return (*lines, *(f"  {line}" for line in more))


def _short(names: Sequence[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f", … ({len(names)} in all)" if len(names) > limit else "")


def _numbers(edges: Sequence[float]) -> str:
    return ", ".join(f"{edge:g}" for edge in edges)


def _why(item: Mapping[str, Any]) -> str:
    return f" (more than {MOST_VALUES} distinct numbers and no --bins)" if item["automatic"] else ""
