"""Gates: conditions under which an audit fails, such as ``age.equalized_odds.lower > 0.1``."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evenhand.errors import ConfigError, GateError
from evenhand.metrics.cells import METRICS
from evenhand.metrics.gaps import COMBINED

FIELDS = ("value", "lower", "upper", "p", "p_holm", "ratio", "worst", "to_overall")
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


def parse_gate(text: str, labels: Sequence[str], attributes: Sequence[str], metrics: Sequence[str] = ()) -> Gate:
    """Read ``[LABEL/]ATTRIBUTE.METRIC[.FIELD] < NUMBER``.

    ATTRIBUTE is an audited attribute, ``any`` (every attribute) or ``overall``; FIELD is value (default), lower, upper,
    p, p_holm, ratio, worst (the worst group's value) or to_overall (the largest distance of a group from everybody);
    without LABEL every label is meant. ``metrics`` are those of a continuous value (mean, median), where one is audited.

    Raises:
        ConfigError: a typo; the nearest known name is offered.

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
    if part["attribute"] == "any" and not attributes:
        raise ConfigError(f"gate '{text}' is about attributes, but none is audited; name them with --groups")
    return Gate(text, part["label"], part["attribute"], part["metric"], field, part["sign"], number)


def _known(text: str, what: str, name: str, known: Sequence[str]) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
    raise ConfigError(f"gate '{text}' names the {what} '{name}', which is unknown; {hint}")


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
