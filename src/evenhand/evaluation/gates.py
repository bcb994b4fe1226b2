"""Gates: conditions under which an audit fails, such as ``age.equalized_odds.lower > 0.1``."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evenhand.errors import ConfigError, GateError, nearest
from evenhand.metrics.cells import METRICS
from evenhand.metrics.gaps import COMBINED, RATIOS
from evenhand.metrics.rates import NEITHER_IS_BETTER, SIGNED

FIELDS = ("value", "lower", "upper", "p", "p_holm", "ratio", "worst", "to_overall")
_JOINT = {"equalized_odds", "equalized_odds_mean"}
_RELATIVE = RATIOS | {"disparate_impact_distance"}
_WITHOUT: dict[str, tuple[frozenset[str], str]] = {
    "ratio": (SIGNED | _JOINT | _RELATIVE, "it is no ratio of two groups of one rate"),
    "worst": (NEITHER_IS_BETTER | _JOINT | _RELATIVE | {"demographic_parity"}, "no end of it is the worse one, so no group is the worst"),
    "to_overall": (_RELATIVE | {"equalized_odds_mean"}, "it has no value of everybody"),
}
"""Field -> the gaps that never have it, and why."""

_OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_SHAPE = re.compile(
    r"^\s*(?:(?P<label>.+?)/)?(?P<attribute>[^/]+?)\.(?P<metric>[a-z_0-9]+)(?:\.(?P<field>[a-z_]+))?\s*(?P<sign><=|>=|<|>)\s*(?P<number>[-+.\deE]+)\s*$"
)


@dataclass(frozen=True)
class Gate:
    """One condition that must not hold.

    Attributes:
        text: as typed.
        label: a label, or None for every label.
        attribute: an attribute, ``overall``, or ``any``.
        metric, field, sign, number: ``metric.field sign number``.
    """

    text: str
    label: str | None
    attribute: str
    metric: str
    field: str
    sign: str
    number: float


def gate_fields(metric: str) -> tuple[str, ...]:
    """The fields that the gap of a metric has.

    Example:
        >>> gate_fields("equalized_odds")
        ('value', 'lower', 'upper', 'p', 'p_holm', 'to_overall')
    """
    return tuple(name for name in FIELDS if metric not in _WITHOUT.get(name, ((), ""))[0])


def parse_gate(
    text: str, labels: Sequence[str], attributes: Sequence[str], metrics: Sequence[str] = (), primary: Sequence[str] = ()
) -> Gate:
    """Read ``[LABEL/]ATTRIBUTE.METRIC[.FIELD] < NUMBER``.

    ATTRIBUTE is an audited attribute, ``any`` (every attribute) or ``overall``; FIELD is value (default), lower, upper,
    p, p_holm, ratio, worst (the worst group's value) or to_overall (the largest distance of a group from everybody);
    without LABEL every label is meant. ``metrics`` are those of a continuous value (mean, median), where one is audited;
    ``primary`` are the gaps whose p-values are adjusted (default: not checked).

    Raises:
        ConfigError: a typo, or a field that the metric never has; the nearest known name, or its fields, are offered.

    Example:
        >>> parse_gate("age.equalized_odds.lower > 0.1", ["y"], ["age"]).field
        'lower'
    """
    match = _SHAPE.match(text)
    if match is None:
        raise ConfigError(f"gate '{text}' is not understood; write it as 'age.equalized_odds.lower > 0.1' or 'label/age.auc.worst < 0.8'")
    part = match.groupdict()
    try:
        number = float(part["number"])
    except ValueError as error:
        raise ConfigError(f"gate '{text}' compares with '{part['number']}', which is not a number") from error
    field = part["field"] or "value"
    if part["label"] is not None:
        _known(text, "label", part["label"], labels)
    _known(text, "attribute", part["attribute"], [*attributes, "any", "overall"])
    overall = part["attribute"] == "overall"
    _known(text, "metric", part["metric"], metrics or (METRICS if overall else [*METRICS, *COMBINED]))
    _known(text, "field", field, FIELDS[:3] if overall else FIELDS)
    if not overall:
        _check_field(text, part["metric"], field, primary)
    if part["attribute"] == "any" and not attributes:
        raise ConfigError(f"gate '{text}' is about attributes, but none is audited; name them with --groups")
    return Gate(text, part["label"], part["attribute"], part["metric"], field, part["sign"], number)


def _check_field(text: str, metric: str, field: str, primary: Sequence[str]) -> None:
    """Refuse what could never be computed, which would look like a failed gate."""
    if field not in gate_fields(metric):
        fields = ", ".join(gate_fields(metric))
        raise ConfigError(f"gate '{text}': {metric} has no '{field}', because {_WITHOUT[field][1]}; its fields are {fields}")
    if field == "p_holm" and primary and metric not in primary:
        raise ConfigError(
            f"gate '{text}': {metric} has no 'p_holm', as only the primary gaps are corrected ({', '.join(primary)}); "
            f"take 'p', or add --primary {metric}"
        )


def _known(text: str, what: str, name: str, known: Sequence[str]) -> None:
    if name in known:
        return
    raise ConfigError(f"gate '{text}' names the {what} '{name}', which is unknown; {nearest(name, known, cutoff=0.5)}")


def check_gates(gates: Sequence[Gate], audit: Mapping[str, Any]) -> None:
    """Raise when a gate's condition holds, or when its estimate could not be made.

    Args:
        gates: from `parse_gate`.
        audit: audit.json.

    Raises:
        GateError: with one line for each failed gate and place.
    """
    failed = [line for gate in gates for line in _failures(gate, audit)]
    if failed:
        raise GateError(f"{len(failed)} gate condition{'s' * (len(failed) > 1)} failed; the audit itself is complete", failed)


def _failures(gate: Gate, audit: Mapping[str, Any]) -> Iterator[str]:
    for where, found in _places(gate, audit):
        value = found.get(gate.field)
        reason = found.get("reason") or "this number could not be computed"
        if isinstance(value, Mapping):
            value = value.get("value")
        if value is None:
            yield f"{gate.text}: {where} is not estimable ({reason}), which fails the gate"
        elif _OPERATORS[gate.sign](value, gate.number):
            yield f"{gate.text}: {where}.{gate.field} is {value:.4g}"


def _places(gate: Gate, audit: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for label, item in audit["labels"].items():
        if gate.label not in (None, label):
            continue
        if gate.attribute == "overall":
            yield f"{label}/overall.{gate.metric}", item["overall"][gate.metric]
            continue
        for attribute, part in item["attributes"].items():
            if gate.attribute in ("any", attribute):
                yield f"{label}/{attribute}.{gate.metric}", part["gaps"][gate.metric]
