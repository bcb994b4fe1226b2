r"""In and out of distribution: what a classifier is worth on its own test rows, on other data sets, and the drop between them.

The sets hold different patients, so a drop is a difference of two independent numbers, other minus own. Its limits come from
the two intervals ("method of variance estimates recovery"; for shares this is Newcombe's interval with patients as clusters):

.. math:: d = v_s - v_0, \quad \left[d - \sqrt{(v_s - l_s)^2 + (u_0 - v_0)^2}, \; d + \sqrt{(u_s - v_s)^2 + (v_0 - l_0)^2}\right]

Below 0 a value is lower on the other set. An attribute may be known in one set only: there its groups and gaps stand without
a drop, and it is said. A gap has a drop only where the same groups entered it on both sides.

References:
    Zou and Donner, Statistics in Medicine 27 (2008) 1693; Newcombe, Statistics in Medicine 17 (1998) 873.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

import evenhand
from evenhand.errors import InputError
from evenhand.evaluation.document import Document
from evenhand.metrics.gaps import RATIOS
from evenhand.metrics.intervals import mover
from evenhand.metrics.rates import LOWER_IS_BETTER, NEITHER_IS_BETTER

Json = Mapping[str, Any]
SCHEMA = "evenhand.transfer/1"
OWN = "own_test"
"""The name of the rows that count as in-distribution."""
COLUMNS = (
    "run", "set", "label", "attribute", "group", "kind", "metric", "value", "lower", "upper", "n", "reason",
    "drop", "drop_lower", "drop_upper", "drop_reason",
)


@dataclass(frozen=True)
class JudgedSet:
    """One set as one run was judged on it.

    Attributes:
        labels: the ``labels`` part of its audit.json: label -> ``overall`` and ``attributes`` (``groups`` and ``gaps``).
        data: the data set's name.
        n, n_patients: rows and patients.
        notes: what a reader of its numbers must know, for example that patients are in two sets.
    """

    labels: Json
    data: str = ""
    n: int = 0
    n_patients: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TransferResult(Document):
    """Results in and out of distribution; ``data`` is the JSON document (schema ``evenhand.transfer/1``)."""

    def to_table(self) -> pd.DataFrame:
        """One row a number: run, set, label, attribute, group, kind (value or gap), metric, the number and its drop."""
        return pd.DataFrame(list(_table_rows(self.data)), columns=list(COLUMNS))

    @property
    def findings(self) -> list[dict[str, Any]]:
        """The drops of AUC and of the primary gaps in plain words; ``code`` is worse, better, open or not_estimable."""
        return list(self.data["findings"])


def drop_of(there: Json | None, own: Json | None) -> dict[str, Any]:
    """The drop of one estimate: value there minus own value, with limits; or the reason why there is none.

    Args:
        there: ``{value, lower, upper, reason}`` on the other set; None: no such number there.
        own: the same on the own test rows.

    Returns:
        ``{value, lower, upper, reason}``; limits are None where either side has none.

    Example:
        >>> found = drop_of({"value": 0.8, "lower": 0.7, "upper": 0.88}, {"value": 0.9, "lower": 0.85, "upper": 0.94})
        >>> round(found["value"], 3), round(found["lower"], 3), round(found["upper"], 3)
        (-0.1, -0.208, -0.006)
    """
    for side, where in ((own, "own test rows"), (there, "this set")):
        if side is None or side.get("value") is None:
            why = "not known there" if side is None else side.get("reason") or "not estimable"
            return {"value": None, "lower": None, "upper": None, "reason": f"{where}: {why}"}
    if there is None or own is None:
        return {"value": None, "lower": None, "upper": None, "reason": "not known"}
    limits: tuple[Any, Any] = (None, None)
    if None not in (there.get("lower"), there.get("upper"), own.get("lower"), own.get("upper")):
        limits = mover(there["value"], (there["lower"], there["upper"]), own["value"], (own["lower"], own["upper"]))
    return {"value": there["value"] - own["value"], "lower": limits[0], "upper": limits[1], "reason": ""}


def transfer(
    judged: Mapping[str, Mapping[str, JudgedSet]],
    *,
    primary: Sequence[str] = ("auc", "equalized_odds"),
    confidence: float = 0.95,
    provenance: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> TransferResult:
    """Put a run's (or several runs') results on its own test rows and on other sets side by side, with the drops.

    Args:
        judged: run -> set -> results; every run has the same sets, the first of them `OWN`, the own test rows.
        primary: gaps that findings speak of.
        confidence: level that all intervals were made at.
        provenance: what was judged and how.
        changes: set -> a comparison of the runs on it (``evenhand.compare/1``), where there are several.

    Raises:
        InputError: no other set, or runs with different sets or labels.

    Example:
        >>> own = {"ill": {"overall": {"auc": {"value": 0.9, "lower": 0.85, "upper": 0.94, "n": 400}}, "attributes": {}}}
        >>> other = {"ill": {"overall": {"auc": {"value": 0.8, "lower": 0.7, "upper": 0.88, "n": 90}}, "attributes": {}}}
        >>> found = transfer({"probe": {"own_test": JudgedSet(own), "site_b": JudgedSet(other)}})
        >>> found.findings[0]["text"]
        'the AUC is 0.100 lower on site_b than on own test rows (-0.208 to -0.006)'
    """
    first = next(iter(judged.values()), {})
    _check(judged, first)
    sets = {
        name: {"data": item.data, "n": item.n, "n_patients": item.n_patients, "notes": list(item.notes)} for name, item in first.items()
    }
    labels = {
        label: {run: {name: _one(item.labels[label], of_run[OWN].labels[label], name) for name, item in of_run.items()}
                for run, of_run in judged.items()}
        for label in first[OWN].labels
    }
    data: dict[str, Any] = {
        "schema": SCHEMA, "own": OWN, "runs": list(judged), "sets": sets, "attributes": _attributes(first),
        "labels": labels, "findings": [], "changes": dict(changes or {}),
    }
    data["findings"] = list(_findings(data, primary))
    data["provenance"] = {
        "package": "evenhand", "version": evenhand.__version__, "confidence": confidence, "primary": list(primary), **(provenance or {})
    }
    return TransferResult(data)


def _check(judged: Mapping[str, Mapping[str, JudgedSet]], first: Mapping[str, JudgedSet]) -> None:
    if OWN not in first or len(first) < 2:
        raise InputError(f"a drop needs the own test rows ('{OWN}') and at least one other set, but got {', '.join(first) or 'nothing'}")
    for run, of_run in judged.items():
        if list(of_run) != list(first):
            there, here = ", ".join(of_run), ", ".join(first)
            raise InputError(f"run '{run}' was judged on {there}, but the first run on {here}; judge all on the same sets")
        for name, item in of_run.items():
            if list(item.labels) != list(first[OWN].labels):
                raise InputError(
                    f"run '{run}' has the labels {', '.join(item.labels)} on {name}, but there are {', '.join(first[OWN].labels)} on the "
                    "first run's own test rows; evaluate runs of one task"
                )


def _attributes(sets: Mapping[str, JudgedSet]) -> dict[str, dict[str, list[str]]]:
    """Attribute -> the sets that know it and those that do not."""
    known = {name: {key for block in item.labels.values() for key in block["attributes"]} for name, item in sets.items()}
    order = dict.fromkeys(key for item in sets.values() for block in item.labels.values() for key in block["attributes"])
    return {key: {"known": [name for name in sets if key in known[name]], "unknown": [name for name in sets if key not in known[name]]}
            for key in order}


def _one(block: Json, own: Json, name: str) -> dict[str, Any]:
    """One run, set and label: every number, with its drop unless these are the own test rows."""
    home = name == OWN
    found: dict[str, Any] = {"overall": _row(block["overall"], None if home else own["overall"], home), "attributes": {}}
    for attribute, part in block["attributes"].items():
        there = own["attributes"].get(attribute)
        groups = {
            key: {**_row(row, (there or {"groups": {}})["groups"].get(key), home), **({"missing": True} if row.get("missing") else {})}
            for key, row in part["groups"].items()
        }
        gaps = {
            metric: {**_plain(gap), **({} if home else {"drop": _gap_drop(metric, part, there)})} for metric, gap in part["gaps"].items()
        }
        found["attributes"][attribute] = {"groups": groups, "gaps": gaps}
    return found


def _row(row: Json, own: Json | None, home: bool) -> dict[str, Any]:
    counts = {name: row.get(name) for name in ("n", "n_positive", "n_patients")}
    estimates = {name: item for name, item in row.items() if isinstance(item, Mapping) and "value" in item}
    return {
        **counts,
        **{
            name: {**_plain(item), **({} if home else {"drop": drop_of(item, (own or {}).get(name))})} for name, item in estimates.items()
        },
    }


def _plain(estimate: Json) -> dict[str, Any]:
    return {name: estimate.get(name) for name in ("value", "lower", "upper", "n", "reason") if estimate.get(name) not in (None, "")} | {
        "value": estimate.get("value")
    }


def _gap_drop(metric: str, part: Json, own: Json | None) -> dict[str, Any]:
    gap = part["gaps"][metric]
    if own is None:
        return {"value": None, "lower": None, "upper": None, "reason": "own test rows: the attribute is not known there"}
    base = own["gaps"].get(metric)
    if base is not None and gap.get("value") is not None and base.get("value") is not None:
        here, there = _entered(part, gap), _entered(own, base)
        if here != there:
            why = f"over other groups: {', '.join(sorted(here))} here, {', '.join(sorted(there))} on own test rows"
            return {"value": None, "lower": None, "upper": None, "reason": why}
    return drop_of(gap, base)


def _entered(part: Json, gap: Json) -> set[str]:
    left = {str(item["group"]) for item in gap.get("excluded") or ()}
    return {key for key, row in part["groups"].items() if not row.get("missing")} - left


def worse(metric: str, drop: float, *, gap: bool = False) -> bool | None:
    """Whether a drop is for the worse; None where neither direction is.

    Args:
        metric: a metric, or a gap where ``gap`` is true.
        drop: its sign counts.
        gap: a gap is worse where it is wider, a ratio where it is smaller.

    Example:
        >>> worse("auc", -0.1), worse("fpr", -0.1), worse("auc", -0.1, gap=True), worse("positive_rate", 0.2)
        (True, False, False, None)
    """
    if gap:
        return drop < 0 if metric in RATIOS else drop > 0
    if metric in NEITHER_IS_BETTER or "calibration" in metric:
        return None
    return drop > 0 if metric in LOWER_IS_BETTER else drop < 0


def _findings(data: Json, primary: Sequence[str]) -> Iterator[dict[str, Any]]:
    many_labels, many_runs = len(data["labels"]) > 1, len(data["runs"]) > 1
    for label, runs in data["labels"].items():
        for run, sets in runs.items():
            for name, block in sets.items():
                if name == data["own"]:
                    continue
                start = {"run": run, "set": name, "label": label}
                lead = f"{run}: " * many_runs + f"{label}: " * many_labels
                if "auc" in block["overall"]:
                    yield _finding({**start, "attribute": "", "metric": "auc"}, block["overall"]["auc"], f"{lead}the AUC", False)
                for attribute, part in block["attributes"].items():
                    for metric in primary:
                        if metric in part["gaps"]:
                            what = f"{lead}the {metric.replace('_', ' ')} gap by {attribute}".replace("auc gap", "AUC gap")
                            yield _finding({**start, "attribute": attribute, "metric": metric}, part["gaps"][metric], what, True)


def _finding(start: dict[str, Any], estimate: Json, what: str, gap: bool) -> dict[str, Any]:
    drop = estimate["drop"]
    if drop["value"] is None:
        text = f"{what} has no drop on {start['set']} ({drop['reason']})"
        return {**start, "code": "not_estimable", "value": None, "lower": None, "upper": None, "text": text}
    words = (("wider", "narrower") if start["metric"] not in RATIOS else ("larger", "smaller")) if gap else ("higher", "lower")
    text = f"{what} is {abs(drop['value']):.3f} {words[0] if drop['value'] > 0 else words[1]} on {start['set']} than on own test rows"
    code = "open"
    if drop["lower"] is not None:
        text += f" ({drop['lower']:.3f} to {drop['upper']:.3f})"
        if drop["lower"] > 0 or drop["upper"] < 0:
            code = "worse" if worse(start["metric"], drop["value"], gap=gap) else "better"
        else:
            text += ", which is open: the interval includes 0"
    return {**start, "code": code, "value": drop["value"], "lower": drop["lower"], "upper": drop["upper"], "text": text}


def _table_rows(data: Json) -> Iterator[dict[str, Any]]:
    for label, runs in data["labels"].items():
        for run, sets in runs.items():
            for name, block in sets.items():
                start = {"run": run, "set": name, "label": label}
                yield from _numbers({**start, "attribute": "", "group": "", "kind": "value"}, block["overall"])
                for attribute, part in block["attributes"].items():
                    for group, row in part["groups"].items():
                        yield from _numbers({**start, "attribute": attribute, "group": group, "kind": "value"}, row)
                    yield from _numbers({**start, "attribute": attribute, "group": "", "kind": "gap"}, part["gaps"])


def _numbers(start: dict[str, Any], row: Json) -> Iterator[dict[str, Any]]:
    for metric, item in row.items():
        if isinstance(item, Mapping):
            drop = item.get("drop") or {}
            moved = {"drop": drop.get("value"), "drop_lower": drop.get("lower"), "drop_upper": drop.get("upper")}
            yield {**start, "metric": metric, **{name: item.get(name) for name in ("value", "lower", "upper", "n", "reason")},
                   **moved, "drop_reason": drop.get("reason")}
