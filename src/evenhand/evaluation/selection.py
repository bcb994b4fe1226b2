"""Which metrics an audit computes, what under-diagnosis means for a label, and the reference groups of disparate impact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evenhand.config.schema import AuditConfig
from evenhand.errors import ConfigError, nearest
from evenhand.metrics.cells import METRICS
from evenhand.metrics.gaps import COMBINED

GAP_NAMES = tuple(dict.fromkeys([*METRICS, *COMBINED]))
"""Every gap an audit can be asked for."""

RESAMPLED = frozenset({"calibration_slope", "calibration_intercept"})
"""Metrics whose gaps are tested by the bootstrap: a permutation would have to fit every group anew."""

SLOW = frozenset({"average_precision", "ece", "ece_corrected"})
"""Metrics whose permutations cost as much as those of the AUC; outside the family they get at most `FEW`.

Their gaps are not tested by the bootstrap: with groups of 60 to 400 patients and no true gap that rejects 10% (average
precision) and 14% (calibration error, whose bias depends on the size of the group) of the time; permutations keep sizes.
"""

FEW = 250


def chosen_metrics(config: AuditConfig) -> tuple[str, ...]:
    """The metrics to compute, in the order of `METRICS`: all of them, or those named and what the primary gaps are made of.

    Example:
        >>> chosen_metrics(AuditConfig(metrics=["brier"], primary=["equal_opportunity"]))
        ('tpr', 'brier')
    """
    if not config.metrics:
        return METRICS
    wanted = {part for name in (*config.metrics, *config.primary) for part in COMBINED.get(name, (name,))}
    return tuple(name for name in METRICS if name in wanted)


def check_names(config: AuditConfig) -> None:
    """Refuse unknown metrics, and options of metrics that cannot be.

    Raises:
        ConfigError: with the nearest known name.
    """
    for what, names in (("primary metric", config.primary), ("metric", config.metrics)):
        for name in names:
            if name not in GAP_NAMES:
                raise ConfigError(f"{what} '{name}' is unknown; {nearest(name, GAP_NAMES)}")
    if config.ece_bins < 2:
        raise ConfigError(f"ece_bins is {config.ece_bins}, but the calibration error needs at least 2 bins, as 10")


def check_numbers(config: AuditConfig) -> None:
    """Refuse numbers out of their range, for audits of labels and of continuous values.

    Raises:
        ConfigError: the first of them.
    """
    if not 0.5 <= config.confidence < 1:
        raise ConfigError(f"confidence is {config.confidence:g}, but must lie in [0.5, 1), as 0.95")
    for option in ("bootstrap", "permutations", "min_patients", "max_groups"):
        if getattr(config, option) < (2 if option in ("min_patients", "max_groups") else 0):
            raise ConfigError(f"{option} is {getattr(config, option)}, which is too small")


def check_reference(reference: Mapping[str, str], groups: Mapping[str, Sequence[str]]) -> None:
    """Refuse references to attributes or groups that are not audited.

    Args:
        reference: attribute -> group.
        groups: attribute -> its groups.

    Raises:
        ConfigError: with the nearest known name.
    """
    for attribute, group in reference.items():
        if attribute not in groups:
            raise ConfigError(f"reference names the attribute '{attribute}', which is not audited; {nearest(attribute, list(groups))}")
        if str(group) not in groups[attribute]:
            raise ConfigError(f"reference group '{group}' of {attribute} does not occur; {nearest(str(group), groups[attribute])}")


def underdiagnosis_metric(label: str, no_finding: Sequence[str]) -> str:
    """``fnr``: the ill who are missed; for a label that means health ``fpr``: the ill who are called healthy.

    Example:
        >>> underdiagnosis_metric("No Finding", ["no_finding"]), underdiagnosis_metric("Edema", ["no_finding"])
        ('fpr', 'fnr')
    """
    return "fpr" if _plain(label) in {_plain(name) for name in no_finding} else "fnr"


def check_no_finding(no_finding: Sequence[str], labels: Sequence[str]) -> None:
    """Refuse names of health that no label has; those of the default list are looked for in every audit.

    Raises:
        ConfigError: with the nearest label.

    Example:
        >>> check_no_finding(["No Finding", "clear"], ["Edema", "Clear"])
    """
    usual = {_plain(name) for name in AuditConfig().no_finding}
    for name in no_finding:
        if _plain(name) not in usual | {_plain(label) for label in labels}:
            raise ConfigError(f"no_finding names '{name}', which is none of the labels; {nearest(name, labels)}")


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
