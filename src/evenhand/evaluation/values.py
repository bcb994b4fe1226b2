"""Judge continuous per-case values (a Dice score, an error, a length of stay): group means and medians, gaps and their tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from evenhand.config.schema import AuditConfig
from evenhand.data.groups import Groups
from evenhand.errors import ConfigError, TableError, nearest
from evenhand.evaluation.attributes import MISSING_KEY, audit_groups, rows_kept
from evenhand.evaluation.cohort import one_seed, patient_ids, split_rows
from evenhand.evaluation.evaluate import SCHEMA, AuditResult
from evenhand.evaluation.predictions import need_column
from evenhand.evaluation.provenance import facts
from evenhand.evaluation.selection import check_numbers
from evenhand.evaluation.significance import adjust
from evenhand.evaluation.value_groups import MeasuredValue, measure_values, value_gaps
from evenhand.evaluation.value_verdicts import value_verdicts
from evenhand.metrics.gaps import Gap
from evenhand.metrics.means import VALUE_METRICS
from evenhand.metrics.permutation import REACH

FloatArray = npt.NDArray[np.float64]

ERRORS = ("hd95", "hausdorff", "hausdorff95", "hd", "assd", "asd", "mae", "mse", "rmse", "abs_error", "absolute_error", "squared_error")
"""Column names that mean "lower is better" without being told."""

SCORES = ("dice", "dsc", "iou", "jaccard", "nsd", "surface_dice")
"""Column names that mean "higher is better"; the opposite is refused, and a flag for all values leaves them as they are."""


@dataclass(frozen=True)
class ValueCohort:
    """The judged rows of a table of values.

    Attributes:
        values: name -> float64 (n,), NaN where not measured.
        lower_is_better: the names of which a high value is the worse one.
        groups: attribute -> groups of the judged rows.
        patient: int64 (n,) patient codes.
        n_dropped: rows left out by missing=drop.
        notes: sentences for the report.
    """

    values: dict[str, FloatArray]
    lower_is_better: frozenset[str]
    groups: dict[str, Groups]
    patient: npt.NDArray[np.int64]
    n_dropped: int
    notes: tuple[str, ...]


def evaluate_values(
    frame: pd.DataFrame,
    *,
    values: Sequence[str],
    attributes: Sequence[str],
    config: AuditConfig | None = None,
    seed: int = 0,
    bins: Mapping[str, Sequence[float]] | None = None,
    missing: str = "own_group",
    lower_is_better: bool | Sequence[str] = False,
    units: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    threads: int | None = None,
) -> AuditResult:
    """Audit continuous values: E[X | A = a] and median(X | A = a) of each group, and how far groups lie apart.

    Rows are averaged, patients are independent. A gap is max_a - min_a over the groups with enough patients, with any
    number of groups; its test permutes patients between groups, its interval inverts that test, and its p-values are
    corrected by Holm over attributes times values. Test rows are judged where there is a split.

    Args:
        frame: one row a case, with the value columns, the attributes, and ``patient_id`` and ``split`` where there are any.
        values: numeric columns. An empty cell was not measured: it is counted and left out.
        attributes: attribute columns; joint ones as ``sex*age``.
        config: how to judge; `primary` is of ``mean`` and ``median`` (default: mean).
        seed: of every random stream.
        bins: numeric column -> edges.
        missing: ``own_group``, ``drop`` or ``error``.
        lower_is_better: whether a high value is the worse one: of all values but those in `SCORES`, or by name. Names in
            `ERRORS` are known.
        units: value -> unit, for the report (``{"hd95": "mm"}``).
        notes: further sentences for the report.
        threads: bootstrap blocks at a time; the result is the same for any number.

    Returns:
        An audit of kind ``value`` in the schema ``evenhand.audit/1``: labels are the values, metrics mean and median.

    Raises:
        TableError: a column is unknown, not numeric, infinite or empty; nothing was computed.
        ConfigError: an option is wrong.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> table = pd.DataFrame({"dice": rng.beta(8, 2, 200), "sex": np.tile(["f", "m"], 100)})
        >>> found = evaluate_values(table, values=["dice"], attributes=["sex"], config=AuditConfig(bootstrap=50, permutations=50))
        >>> sorted(found.to_json()["labels"]["dice"]["attributes"]["sex"]["gaps"])
        ['mean', 'median']
    """
    config = checked_config(config)
    bins = {name: tuple(float(edge) for edge in edges) for name, edges in (bins or {}).items()}
    cohort = make_value_cohort(frame, values, attributes, config=config, bins=bins, missing=missing, lower_is_better=lower_is_better)
    measure = partial(measure_values, cohort.values, cohort.patient, config=config, seed=seed, threads=threads)
    overall = measure(np.zeros(len(cohort.patient), np.int64), "overall")
    measured: dict[str, dict[str, dict[int, MeasuredValue]]] = {}
    gaps: dict[tuple[str, str], dict[str, Gap]] = {}
    n_permutations = _permutations(cohort, config)
    for attribute, groups in cohort.groups.items():
        measured[attribute] = measure(groups.codes, attribute)
        for name, x in cohort.values.items():
            found = measured[attribute][name]
            gaps[name, attribute] = value_gaps(
                name, x, cohort.patient, groups, found, overall[name][0], config, n_permutations, seed, name in cohort.lower_is_better
            )
    n_tests = adjust(gaps, config.primary)
    labels = {
        name: {
            "threshold": None,
            "lower_is_better": name in cohort.lower_is_better,
            "unit": (units or {}).get(name),
            "overall": overall[name][0].row_json(config),
            "attributes": {
                attribute: _attribute_json(groups, measured[attribute][name], gaps[name, attribute], config)
                for attribute, groups in cohort.groups.items()
            },
        }
        for name in cohort.values
    }
    every = [item for by_value in measured.values() for by_group in by_value.values() for item in by_group.values()]
    data = {
        "schema": SCHEMA,
        "kind": "value",
        "n": len(cohort.patient),
        "n_patients": len(np.unique(cohort.patient)),
        "labels": labels,
        "verdicts": value_verdicts(labels, config.primary, config.confidence),
        "provenance": {
            **facts(
                frame,
                config,
                n_judged=len(cohort.patient),
                n_dropped=cohort.n_dropped,
                seed=seed,
                bins=bins,
                missing=missing,
                notes=[*cohort.notes, *notes],
            ),
            "permutations": n_permutations,
            "failed_replicates": sum(item.n_failed for item in every),
            "family": {"metrics": list(config.primary), "tests": n_tests, "method": "holm"},
            "interval": f"{_INTERVALS[config.interval]}; gaps: inverted studentised maximum test",
        },
    }
    return AuditResult(data, frame)


_INTERVALS = {
    "auto": "mean: studentised bootstrap, median: expanded percentile bootstrap, over patients within groups",
    "percentile": "patient-clustered percentile bootstrap within groups",
    "bca": "patient-clustered BCa bootstrap within groups",
}


def checked_config(config: AuditConfig | None) -> AuditConfig:
    """The configuration with the primary gaps of values, checked; those of labels by default become the mean.

    Raises:
        ConfigError: a primary gap that values do not have, or a number out of its range.
    """
    config = config or AuditConfig()
    if list(config.primary) == AuditConfig().primary:
        config = replace(config, primary=["mean"])
    for name in config.primary:
        if name not in VALUE_METRICS:
            hint = nearest(name, VALUE_METRICS, otherwise="values have mean and median")
            raise ConfigError(f"primary gap '{name}' is not one of a continuous value; {hint}")
    check_numbers(config)
    return config


def make_value_cohort(
    frame: pd.DataFrame,
    values: Sequence[str],
    attributes: Sequence[str],
    *,
    config: AuditConfig,
    bins: Mapping[str, Sequence[float]],
    missing: str,
    lower_is_better: bool | Sequence[str],
) -> ValueCohort:
    """Check a table of values and take out what is judged; see `evaluate_values` for the arguments."""
    frame = frame.reset_index(drop=True)
    if not values:
        raise ConfigError("no value column is named; give at least one, as --value dice")
    one_seed(frame)
    numbers = {name: value_column(need_column(frame, name, "value"), name) for name in dict.fromkeys(values)}
    worse_up = _directions(list(numbers), lower_is_better)
    groups, use, notes = judged(frame, attributes, config=config, bins=bins, missing=missing)
    for name, x in numbers.items():
        if np.isnan(x[use]).all():
            raise TableError(f"column '{name}' is empty in all {int(use.sum())} judged rows; there is nothing to audit")
    patient, note = patient_ids(frame)
    dropped = int((~rows_kept(groups, missing, len(frame))).sum())
    notes += note + ([f"{dropped} rows with a missing attribute were left out (missing=drop)"] if dropped else [])
    return ValueCohort(
        values={name: x[use] for name, x in numbers.items()},
        lower_is_better=worse_up,
        groups={name: item.take(use) for name, item in groups.items()},
        patient=np.unique(patient[use], return_inverse=True)[1].astype(np.int64),
        n_dropped=dropped,
        notes=tuple(notes),
    )


def judged(
    frame: pd.DataFrame, attributes: Sequence[str], *, config: AuditConfig, bins: Mapping[str, Sequence[float]], missing: str
) -> tuple[dict[str, Groups], npt.NDArray[np.bool_], list[str]]:
    """(attribute -> groups of every row, which rows are judged, notes): what can be refused before any value is known.

    Raises:
        TableError: an unknown attribute, too many groups, an attribute missing in every judged row.
    """
    groups = audit_groups(frame, attributes, bins, config.max_groups)
    use, _, notes = split_rows(frame, rows_kept(groups, missing, len(frame)))
    for name, item in groups.items():
        if (item.codes[use] < 0).all():
            raise TableError(
                f"attribute '{name}' is missing in all {int(use.sum())} judged rows; fill the column or leave the attribute out"
            )
    return groups, use, notes


def value_column(column: pd.Series, name: str) -> FloatArray:
    """A column of numbers, NaN where empty.

    Raises:
        TableError: text or infinite values, each with its row.

    Example:
        >>> value_column(pd.Series(["0.5", "", None]), "dice")
        array([0.5, nan, nan])
    """
    text = column.astype("string").str.strip()
    empty = (text.isna() | (text == "") | (text.str.lower() == "nan")).fillna(True).to_numpy(bool)
    numbers = pd.to_numeric(text, errors="coerce").to_numpy(float, na_value=np.nan)
    wrong = np.flatnonzero(~empty & np.isnan(numbers))
    infinite = np.flatnonzero(np.isinf(numbers))
    if len(wrong):
        raise TableError(
            f"column '{name}' has {len(wrong)} values that are not numbers; correct them, "
            "or leave the cell empty where nothing was measured",
            [f"row {row + 1}: {name} is '{text.iloc[row]}'" for row in wrong],
        )
    if len(infinite):
        raise TableError(
            f"column '{name}' has {len(infinite)} infinite values, of which no mean can be taken; "
            "leave the cell empty where nothing was measured",
            [f"row {row + 1}: {name} is {numbers[row]}" for row in infinite],
        )
    return np.asarray(np.where(empty, np.nan, numbers))


def _directions(names: Sequence[str], lower_is_better: bool | Sequence[str]) -> frozenset[str]:
    known = {name for name in names if name.lower() in ERRORS}
    scores = [name for name in names if name.lower() in SCORES]
    if lower_is_better is True and len(scores) == len(names):
        raise _contradicted(scores[0])
    if isinstance(lower_is_better, bool):
        return frozenset(known | {name for name in names if lower_is_better and name.lower() not in SCORES})
    named = [lower_is_better] if isinstance(lower_is_better, str) else [str(name) for name in lower_is_better]
    for name in named:
        if name not in names:
            raise ConfigError(f"lower_is_better names '{name}', which is not among the values ({', '.join(names)})")
        if name in scores:
            raise _contradicted(name)
    return frozenset(known | set(named))


def _contradicted(name: str) -> ConfigError:
    return ConfigError(
        f"lower_is_better is said of '{name}', which is known as a score that is better when higher; leave it out, "
        f"or rename the column if it holds a loss, as {name}_loss"
    )


def _permutations(cohort: ValueCohort, config: AuditConfig) -> int:
    """Permutations of every test: those asked for, or `REACH` a test of the family where that is more; 0 stays 0."""
    family = REACH * len(cohort.values) * len(cohort.groups) * len(config.primary)
    return max(config.permutations, family) if config.permutations else 0


def _attribute_json(
    groups: Groups, measured: Mapping[int, MeasuredValue], gaps: Mapping[str, Gap], config: AuditConfig
) -> dict[str, Any]:
    rows = {groups.keys[code]: item.row_json(config) for code, item in measured.items() if code >= 0}
    if -1 in measured:
        rows[MISSING_KEY] = {**measured[-1].row_json(config), "missing": True}
    return {"n_missing": int((groups.codes < 0).sum()), "groups": rows, "gaps": {name: gap.to_json() for name, gap in gaps.items()}}
