"""Which group or intersection stands out, and which one a gap hangs on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.config.schema import AuditConfig
from evenhand.data.groups import Groups
from evenhand.evaluation.cohort import Cohort, Question
from evenhand.metrics.contrasts import Contrast, null_p_values, parts_of, step_down
from evenhand.metrics.gaps import COMBINED
from evenhand.metrics.influence import INFLUENCES, Influence, Rows, difference_variance, influences, t_test
from evenhand.metrics.permutation import holm
from evenhand.random import generator

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

USUAL = ("auc", "tpr", "fpr")
MOST_DRAWN = 5_000_000
"""Permutations times patients at most, but never fewer than 200 permutations."""

MOST_PATIENTS = 100_000
"""With more patients than this, p-values come from Student's t and Holm instead of permutations."""


def rank_intersections(cohort: Cohort, question: Question, config: AuditConfig, seed: int = 0, threads: int = 1) -> list[dict[str, Any]]:
    r"""Every group and intersection against everybody else, the clearest difference first.

    For group g of an audited attribute (marginal or joint) and a metric m, ``effect`` is :math:`m(A = g) - m(A \neq g)`, over
    the rows whose attribute is known. Its interval is Student's t with the patient-clustered variance of the difference
    (not corrected for the number of tests). ``p`` and ``p_adjusted`` come from permutations of patients
    (`evenhand.metrics.contrasts`); the family is the whole list of this label. The two groups of an attribute with two
    groups are one test. Without permutations, and above `MOST_PATIENTS` patients: Student's t and Holm.

    Metrics: AUC, TPR and FPR, and what the primary gaps are made of. A group is estimable where it and the others have at
    least ``config.min_patients`` patients in the denominator (AUC: of each class).

    Args:
        cohort: the judged rows and their groups.
        question: the label or class.
        config: ``primary``, ``metrics``, ``min_patients``, ``confidence``, ``permutations``.
        seed: of the audit.
        threads: blocks of permutations at a time; does not change the result.

    Returns:
        ``{attribute, group, metric, value, rest, effect, lower, upper, p, p_adjusted, n, n_patients, n_positive, rank}``,
        ordered by adjusted p, then by the size of the effect; the not estimable last, with None and a ``reason``.
    """
    labelled, rows = _rows(question, cohort.patient)
    codes = {name: groups.codes[labelled] for name, groups in cohort.groups.items()}
    records: list[dict[str, Any]] = []
    for name, groups in cohort.groups.items():
        for code, key in enumerate(groups.keys):
            own = codes[name] == code
            if own.any():
                records += _against_rest(rows, own, (codes[name] >= 0) & ~own, {"attribute": name, "group": key, "code": code}, config)
    found = [record for record in records if "reason" not in record]
    _adjust(found, rows, codes, config, seed, question.name, threads)
    found.sort(key=lambda item: (item["p_adjusted"], -abs(item["effect"]), item["attribute"], item["group"], item["metric"]))
    for rank, record in enumerate(found):
        record["rank"] = rank + 1
    ordered = found + sorted(
        (record for record in records if "reason" in record), key=lambda item: (item["attribute"], item["code"], item["metric"])
    )
    return [{name: value for name, value in record.items() if name not in ("code", "t_p")} for record in ordered]


def _metrics(config: AuditConfig) -> tuple[str, ...]:
    primary = [part for name in config.primary for part in COMBINED.get(name, (name,))]
    usual = [name for name in USUAL if not config.metrics or name in config.metrics]
    return tuple(dict.fromkeys(name for name in (*usual, *primary) if name in INFLUENCES))


def _rows(question: Question, unit: IntArray) -> tuple[IntArray, Rows]:
    """(positions of the labelled rows, these rows), in an order that does not depend on that of the table: sums are then equal."""
    order = np.lexsort((question.decision, question.y_score, question.y_true, unit))
    use = order[~np.isnan(question.y_true[order])].astype(np.int64)
    return use, Rows(question.y_true[use], question.y_score[use], question.decision[use], unit[use])


def _against_rest(rows: Rows, own: BoolArray, rest: BoolArray, where: Mapping[str, Any], config: AuditConfig) -> list[dict[str, Any]]:
    metrics = _metrics(config)
    here, there = influences(rows, own, metrics), influences(rows, rest, metrics)
    sizes = {"n": int(own.sum()), "n_patients": len(np.unique(rows.unit[own])), "n_positive": int((rows.y_true[own] == 1).sum())}
    found = []
    for name in metrics:
        one, other = here[name], there[name]
        record: dict[str, Any] = {**where, "metric": name, "value": _number(one), "rest": _number(other)}
        reason = _lacking("", one, config.min_patients) or _lacking("everybody else: ", other, config.min_patients)
        if reason:
            blank = dict.fromkeys(("value", "rest", "effect", "lower", "upper", "p", "p_adjusted", "rank"))
            found.append({**record, **blank, **sizes, "reason": reason})
            continue
        variance, free = difference_variance(one, other)
        lower, upper, p = t_test(one.value - other.value, variance, free, config.confidence)
        found.append({**record, "effect": one.value - other.value, "lower": lower, "upper": upper, "p": None, "t_p": p, **sizes})
    return found


def _number(item: Influence) -> float | None:
    return item.value if np.isfinite(item.value) else None


def _lacking(who: str, item: Influence, least: int) -> str:
    if item.units >= least and np.isfinite(item.value):
        return ""
    return f"{who}{item.units} patient{'s' * (item.units != 1)} in the denominator, at least {least} are needed"


def _adjust(
    found: list[dict[str, Any]], rows: Rows, codes: Mapping[str, IntArray], config: AuditConfig, seed: int, label: str, threads: int
) -> None:
    """Fill ``p`` and ``p_adjusted``; of an attribute with two groups only the first enters the family."""
    n_groups = {name: len(np.unique(own[own >= 0])) for name, own in codes.items()}
    family: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for record in found:
        where = 0 if n_groups[record["attribute"]] == 2 else record["code"]
        family.setdefault((record["attribute"], record["metric"], where), []).append(record)
    observed = [min(record["t_p"] for record in records) for records in family.values()]
    if not family:
        return
    if config.permutations and rows.n_units <= MOST_PATIENTS:
        n_draws = min(config.permutations, max(200, MOST_DRAWN // max(rows.n_units, 1)))
        null = _permuted(
            [records[0] for records in family.values()], rows, codes, n_draws, generator(seed, "intersections", label), threads
        )
        single, adjusted = (list(map(float, part)) for part in step_down(np.array(observed), null))
    else:
        single, adjusted = observed, holm(observed)
    for records, p, p_adjusted in zip(family.values(), single, adjusted, strict=True):
        for record in records:
            record.update(p=p, p_adjusted=p_adjusted)


def _permuted(
    tests: Sequence[Mapping[str, Any]], rows: Rows, codes: Mapping[str, IntArray], n_draws: int, rng: np.random.Generator, threads: int
) -> npt.NDArray[np.float64]:
    """p of every test under shuffled units; a unit is a patient's rows in the same groups of all attributes."""
    columns = np.stack([rows.unit, *codes.values()], axis=1)
    kinds, unit = np.unique(columns, axis=0, return_inverse=True)
    shuffled = replace(rows, unit=unit.ravel().astype(np.int64))
    first: dict[str, int] = {}
    membership: list[BoolArray] = []
    for place, (name, own) in enumerate(codes.items()):
        first[name] = sum(len(part) for part in membership)
        of_unit = kinds[:, 1 + place]
        keys = np.arange(int(own.max(initial=-1)) + 1)
        membership.append(np.vstack([of_unit[None] == keys[:, None], of_unit[None] >= 0]))
    stacked = np.vstack(membership)
    sizes = {name: len(part) for name, part in zip(codes, membership, strict=True)}
    contrasts = [
        Contrast(item["metric"], first[item["attribute"]] + item["code"], first[item["attribute"]] + sizes[item["attribute"]] - 1)
        for item in tests
    ]
    parts = parts_of(shuffled, sorted({item["metric"] for item in tests}))
    return null_p_values(parts, stacked, contrasts, n_draws, rng, threads)


def drivers(cohort: Cohort, question: Question, config: AuditConfig) -> list[dict[str, Any]]:
    """How much of a gap vanishes when one intersection is left out, the largest part first.

    For an attribute A and a joint attribute that contains it (``sex`` in ``sex*age``), the gap of A is taken between its two
    groups that are furthest apart, and again without the rows of one intersection (``female*[60,200)``). ``change`` is the
    first minus the second: above 0 where the intersection widens the gap. Its interval is Student's t with the
    patient-clustered variance of the difference of the two overlapping numbers; it is not corrected for the number of
    intersections. Leaving an intersection out describes where a gap is found, not why.

    Args:
        cohort: the judged rows and their groups.
        question: the label or class.
        config: ``primary``, ``metrics``, ``min_patients``, ``confidence``.

    Returns:
        ``{attribute, joint, without, metric, groups: [low, high], gap, gap_without, change, lower, upper, share, n,
        n_patients}``; the not estimable last, with None and a ``reason``. Empty without joint attributes.
    """
    labelled, rows = _rows(question, cohort.patient)
    found = []
    for joint in cohort.groups.values():
        for part in cohort.groups.values():
            if set(part.attribute.split("*")) < set(joint.attribute.split("*")):
                found += _drivers_of(part.take(labelled), joint.take(labelled), rows, config)
    done = sorted((item for item in found if "reason" not in item), key=lambda item: (-item["change"], item["metric"], item["without"]))
    return done + [item for item in found if "reason" in item]


def _drivers_of(part: Groups, joint: Groups, rows: Rows, config: AuditConfig) -> list[dict[str, Any]]:
    metrics = _metrics(config)
    known = (joint.codes >= 0) & (part.codes >= 0)
    whole = {code: influences(rows, known & (part.codes == code), metrics) for code in np.unique(part.codes[known])}
    found = []
    for name in metrics:
        values = {code: item[name].value for code, item in whole.items() if not _lacking("", item[name], config.min_patients)}
        if len(values) < 2:
            continue
        low, high = min(values, key=lambda code: values[code]), max(values, key=lambda code: values[code])
        for side, sign in ((low, -1.0), (high, 1.0)):
            for cell in np.unique(joint.codes[known & (part.codes == side)]):
                inside = known & (joint.codes == cell)
                left = influences(rows, known & (part.codes == side) & ~inside, (name,))[name]
                record = {
                    "attribute": part.attribute,
                    "joint": joint.attribute,
                    "without": joint.keys[cell],
                    "metric": name,
                    "groups": [part.keys[low], part.keys[high]],
                    "gap": values[high] - values[low],
                    "n": int(inside.sum()),
                    "n_patients": len(np.unique(rows.unit[inside])),
                }
                found.append({**record, **_change(whole[side][name], left, sign, record["gap"], config)})
    return found


def _change(whole: Influence, left: Influence, sign: float, gap: float, config: AuditConfig) -> dict[str, Any]:
    """What leaving the rows out does to the gap; ``sign`` is that of the group in the gap."""
    reason = _lacking("without it: ", left, config.min_patients)
    if reason:
        return {**dict.fromkeys(("gap_without", "change", "lower", "upper", "share")), "reason": reason}
    change = sign * (whole.value - left.value)
    apart = whole.by_unit - left.by_unit
    free = max(min(whole.units, left.units) - 1, 1)
    lower, upper, _ = t_test(change, float(apart @ apart), float(free), config.confidence)
    share = change / gap if gap > 0 else None
    return {"gap_without": gap - change, "change": change, "lower": lower, "upper": upper, "share": share}
