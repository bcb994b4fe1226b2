"""Audits in and out of other libraries: fairlearn's MetricFrame, and small pandas tables by group and by gap."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from evenhand.data.groups import Groups
from evenhand.errors import ConfigError, TableError
from evenhand.evaluation.attributes import audit_groups
from evenhand.evaluation.cohort import judged_rows
from evenhand.evaluation.long_table import COLUMNS
from evenhand.evaluation.predictions import Outcome, outcomes_of
from evenhand.metrics.cells import make_cell

if TYPE_CHECKING:
    from evenhand.evaluation.evaluate import AuditResult

_NUMBERS = ["value", "lower", "upper", "n"]


def group_table(table: pd.DataFrame, attribute: str | None = None, label: str | None = None) -> pd.DataFrame:
    """Every group's estimates of an audit, one row a group and metric.

    Args:
        table: from `AuditResult.to_table`.
        attribute: only this one; default: all.
        label: only this one; default: all.

    Returns:
        Columns value, lower, upper, n, n_positive and reason; the index is (group, metric), with label and attribute
        before them where the table has several.

    Raises:
        ConfigError: an unknown label or attribute.
    """
    rows = _chosen(table[(table["kind"] == "value") & (table["attribute"] != "")], attribute, label)
    return _indexed(rows, ["group", "metric"], [*_NUMBERS, "n_positive", "reason"])


def gap_table(table: pd.DataFrame, attribute: str | None = None, label: str | None = None) -> pd.DataFrame:
    """Every gap of an audit, one row a metric; arguments and errors as in `group_table`.

    Returns:
        Columns value, lower, upper, n, p, p_holm, low_group, high_group and reason; the index is the metric, with label
        and attribute before it where the table has several.
    """
    rows = _chosen(table[table["kind"] == "gap"], attribute, label)
    return _indexed(rows, ["metric"], [*_NUMBERS, "p", "p_holm", "low_group", "high_group", "reason"])


def _chosen(rows: pd.DataFrame, attribute: str | None, label: str | None) -> pd.DataFrame:
    for column, name in (("attribute", attribute), ("label", label)):
        known = list(dict.fromkeys(rows[column]))
        if name is not None and name not in known:
            raise ConfigError(f"the audit has no {column} '{name}'; it has {', '.join(known)}")
        rows = rows if name is None else rows[rows[column] == name]
    return rows


def _indexed(rows: pd.DataFrame, index: list[str], columns: list[str]) -> pd.DataFrame:
    several = [name for name in ("label", "attribute") if rows[name].nunique() > 1]
    return rows.set_index([*several, *index])[columns]


def to_metric_frame(
    result: AuditResult, label: str | None = None, attribute: str | None = None, metrics: Sequence[str] | None = None, **options: Any
) -> Any:
    """A fairlearn ``MetricFrame`` of the judged rows of an audit, with our metrics; its ``by_group`` has the audit's numbers.

    A group whose metric is not estimable in the audit is NaN there (not 0), and so enters no ``difference()``. Rows whose
    attribute is missing are left out, as fairlearn takes none; ``overall`` is over the other rows. A joint attribute is one
    sensitive feature with the audit's keys (``female*[0,60)``). fairlearn's own intervals (``n_boot``, ``ci_quantiles``)
    draw rows, not patients.

    Args:
        result: an audit of labels.
        label: which label or class; default: the only one.
        attribute: which attribute; default: the only one.
        metrics: metric names; default: those of the audit.
        options: further arguments of ``fairlearn.metrics.MetricFrame``.

    Raises:
        ConfigError: an unknown label, attribute or metric, or one that must be named.

    Example:
        >>> import numpy as np, pandas as pd, evenhand as eh
        >>> y = np.tile([0, 1, 1, 0], 20)
        >>> frame = pd.DataFrame({"y": y, "p": 0.3 + 0.4 * y, "sex": np.repeat(["f", "m"], 40)})
        >>> found = eh.audit(frame, "y", "p", "sex", threshold=0.5, bootstrap=0, permutations=0)
        >>> to_metric_frame(found, metrics=["tpr", "auc"]).by_group.to_dict()
        {'tpr': {'f': 1.0, 'm': 1.0}, 'auc': {'f': 1.0, 'm': 1.0}}
    """
    from fairlearn.metrics import MetricFrame

    data = result.to_json()
    if data.get("kind") == "value":
        raise ConfigError("this audit is of a continuous value; a MetricFrame needs labels and decisions")
    names = [name for name in data["labels"] if not (name == "macro" and data["kind"] == "multiclass")]
    label = _only("label", names, label)
    attribute = _only("attribute", list(data["labels"][label]["attributes"]), attribute)
    outcome, groups, patient = _judged(result, label, attribute)
    overall = data["labels"][label]["overall"]
    known = [name for name, found in overall.items() if isinstance(found, Mapping) and "value" in found]
    unknown = [name for name in metrics or () if name not in known]
    if unknown:
        raise ConfigError(f"metric '{unknown[0]}' is not in the audit; it has {', '.join(known)}")
    use = (groups.codes >= 0) & ~np.isnan(outcome.y_true)
    threshold = data["labels"][label]["threshold"]["value"]
    settings = {
        "min_patients": data["provenance"]["min_patients"],
        "ece_bins": data["provenance"].get("ece_bins", 10),
        "threshold": threshold,
    }
    made: dict[str, Callable[..., float]] = {name: partial(_metric, name=name, **settings) for name in metrics or known}
    decision = outcome.decision if outcome.decision is not None else (outcome.y_score >= threshold).astype(float)
    rows = {"y_score": outcome.y_score[use], "patient": patient[use]}
    return MetricFrame(
        metrics=made,
        y_true=outcome.y_true[use],
        y_pred=decision[use],
        sensitive_features=pd.Series(groups.take(use).names().astype(str), name=attribute),
        sample_params=dict.fromkeys(made, rows),
        **options,
    )


def _only(what: str, names: list[str], name: str | None) -> str:
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        asked = "none was named" if name is None else f"'{name}' is not among them"
        raise ConfigError(f"the audit's {what}s are {', '.join(names)}, and {asked}; give {what}=")
    return name


def _judged(result: AuditResult, label: str, attribute: str) -> tuple[Outcome, Groups, npt.NDArray[np.int64]]:
    """The outcome, groups and patients of the judged rows, found again from the audit's own table."""
    data, frame = result.to_json(), result.predictions.reset_index(drop=True)
    made, names = data["provenance"], list(data["labels"])
    classes = [name for name in names if name != "macro"] if data["kind"] == "multiclass" else []
    outcomes = {item.name: item for item in outcomes_of(frame, names if not classes else ["label"], classes)[1]}
    attributes = list(data["labels"][label]["attributes"])
    groups = audit_groups(frame, attributes, made["bins"], made["max_groups"])
    use = judged_rows(frame, groups, made["missing"])
    patient = np.arange(len(frame)) if "patient_id" not in frame.columns else _patient_codes(frame["patient_id"])
    found = outcomes[label]
    decision = None if found.decision is None else found.decision[use]
    return Outcome(label, found.y_true[use], found.y_score[use], decision, found.source), groups[attribute].take(use), patient[use]


def _patient_codes(ids: pd.Series) -> npt.NDArray[np.int64]:
    text = ids.astype("string").str.strip()
    empty = (text.isna() | (text == "")).to_numpy(bool)
    codes, known = pd.factorize(text)
    return np.where(empty, len(known) + np.arange(len(text)), codes).astype(np.int64)


def _metric(
    y_true: Any, y_pred: Any, y_score: Any, patient: Any, *, name: str, min_patients: int, ece_bins: int, threshold: float | None
) -> float:
    """One metric of one group as fairlearn calls it; NaN where it is not estimable."""
    truth, score, decision = (np.asarray(column, float) for column in (y_true, y_score, y_pred))
    cell = make_cell(truth, score, decision, np.asarray(patient), threshold=threshold, ece_bins=ece_bins)
    return float(cell.values((name,))[name][0]) if cell.denominator(name)[1] >= min_patients else float("nan")


def from_metric_frame(frame: Any, *, label: str = "label") -> pd.DataFrame:
    """A fairlearn ``MetricFrame`` as the long table of `AuditResult.to_table`.

    A MetricFrame keeps its results, not the rows they were made from, so nothing can be computed anew: group values and
    differences are copied, p-values are empty, and limits are there only where it was made with ``n_boot`` and at least two
    ``ci_quantiles`` (the outermost ones; fairlearn draws rows, not patients, and they are percentiles of the difference,
    whose interval rarely reaches 0). For intervals by patient audit the rows themselves with `evenhand.audit`.

    Args:
        frame: a MetricFrame without control features; its metrics return numbers.
        label: name of the outcome, for the table.

    Raises:
        TableError: a metric that is not a number.
        ConfigError: control features.
    """
    if frame.control_levels:
        raise ConfigError(f"the MetricFrame has control features ({', '.join(frame.control_levels)}); make it with sensitive features only")
    by_group = _as_frame(frame.by_group)
    attribute = "*".join(map(str, frame.sensitive_levels))
    rows = list(_frame_rows(frame, by_group, label, attribute))
    return pd.DataFrame(rows, columns=COLUMNS)


def _frame_rows(frame: Any, by_group: pd.DataFrame, label: str, attribute: str) -> Iterator[dict[str, Any]]:
    quantiles = list(frame.ci_quantiles or [])
    sides = (int(np.argmin(quantiles)), int(np.argmax(quantiles))) if len(quantiles) > 1 else ()
    groups: dict[str, dict[Any, Any]] = {str(name): values.to_dict() for name, values in by_group.items()}
    overall, difference = _as_row(frame.overall, by_group), _as_row(frame.difference(), by_group)
    overall_limits = [_as_row(frame.overall_ci[i], by_group) for i in sides]
    group_limits = [_as_frame(frame.by_group_ci[i]).to_dict() for i in sides]
    gap_limits = [_as_row(frame.difference_ci()[i], by_group) for i in sides]
    sizes = groups.get("count", {})
    for metric, values in groups.items():
        where = {"label": label, "metric": metric, "kind": "value"}
        yield {**where, "attribute": "", "group": "", **_numbers(metric, overall[metric], [side[metric] for side in overall_limits])}
        for key, value in values.items():
            size = {"n": int(sizes[key])} if np.isfinite(sizes.get(key, np.nan)) else {}
            numbers = _numbers(metric, value, [side[metric][key] for side in group_limits])
            yield {**where, "attribute": attribute, "group": _key(key), **numbers, **size}
        known = {key: value for key, value in values.items() if np.isfinite(value)}
        ends = (
            {"low_group": _key(min(known, key=known.__getitem__)), "high_group": _key(max(known, key=known.__getitem__))} if known else {}
        )
        numbers = _numbers(metric, difference[metric], [side[metric] for side in gap_limits])
        yield {**where, "kind": "gap", "attribute": attribute, "group": "", **numbers, **ends}


def _key(key: Any) -> str:
    return "*".join(map(str, key)) if isinstance(key, tuple) else str(key)


def _numbers(metric: str, value: Any, limits: Sequence[Any]) -> dict[str, Any]:
    if not isinstance(value, (int, float, np.integer, np.floating)):
        raise TableError(f"metric '{metric}' of the MetricFrame is {type(value).__name__}, but must be a number in every group")
    if not np.isfinite(value):
        return {"value": None, "lower": None, "upper": None, "reason": "not a number in the MetricFrame"}
    lower, upper = (float(side) for side in limits) if limits else (None, None)
    return {"value": float(value), "lower": lower, "upper": upper}


def _as_frame(values: Any) -> pd.DataFrame:
    """``by_group`` of one metric is a Series, of several a DataFrame."""
    return values.to_frame(str(values.name or "metric")) if isinstance(values, pd.Series) else values


def _as_row(values: Any, by_group: pd.DataFrame) -> Mapping[str, Any]:
    """``overall`` and ``difference()`` of one metric are numbers, of several a Series."""
    return dict(values) if isinstance(values, pd.Series) else {str(by_group.columns[0]): values}
