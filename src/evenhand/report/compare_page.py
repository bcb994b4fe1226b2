"""What the compare page shows: runs beside each other, paired changes per group, who gained and who lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evenhand.report import summary, tables, words
from evenhand.report.audit_page import flat, verdict_boxes
from evenhand.report.changes import SAID, change_cell, change_parts, direction, gained_and_lost
from evenhand.report.page import Part
from evenhand.report.tradeoff import tradeoff_part

Json = Mapping[str, Any]
GAPS = ("auc", "equalized_odds", "demographic_parity")
MANY_ROWS = 12
MOST_COLUMNS = 6
NO_VERDICT = (
    "No verdict was raised: no group's change is clearly adverse, no run collapsed. "
    "This does not show that the runs are equally good for everyone."
)


def compare_page(compare: Json) -> dict[str, Any]:
    """Everything the compare template prints, from the comparison's dictionary."""
    labels = [_label_view(f"label-{i}", name, block, compare) for i, (name, block) in enumerate(compare["labels"].items())]
    many = len(labels) > summary.FEW_LABELS
    contents = [("summary", "Summary"), ("verdicts", "Verdicts"), ("runs", "Runs")]
    contents += [("labels", "Each label")] if many else [(label["id"], label["name"]) for label in labels]
    measured = dict.fromkeys([*_metrics(compare, "overall"), *GAPS])
    return {
        "summary": _summary(compare),
        "verdicts": verdict_boxes(compare.get("verdicts", []), NO_VERDICT, words.joint_names(compare["labels"])),
        "facts": _facts(compare),
        "labels": labels,
        "many": many,
        "definitions": [words.measure(name) for name in measured],
        "made": _made(compare),
        "contents": [*contents, ("definitions", "Definitions"), ("made", "How it was made")],
    }


def _label_view(key: str, name: str, block: Json, compare: Json) -> dict[str, Any]:
    runs = [run["name"] for run in compare["runs"]]
    views = [_attribute_view(f"{key}-{i}", a, view, block, compare) for i, (a, view) in enumerate(block["attributes"].items())]
    first = block["overall"].get(compare["reference"], {}).get("auc")
    return {
        "id": key,
        "name": name,
        "line": f"AUC of {compare['reference']}: {words.number((first or {}).get('value'), 2) or 'not estimable'}",
        "overall": _overall(runs, block, compare["reference"]),
        "gaps": _gaps_part(runs, block),
        "attributes": views,
    }


def _overall(runs: Sequence[str], block: Json, reference: str) -> tables.Table:
    """One row a run: overall measures with intervals and SD over seeds, and the paired change in AUC."""
    metrics = [m for m in tables.MAIN if any(m in block["overall"].get(run, {}) for run in runs)]
    changes = block.get("overall_changes", {})
    rows = []
    for run in runs:
        cells = [_seed_cell(block["overall"].get(run, {}).get(metric)) for metric in metrics]
        rows.append(tables.Row(run, (*cells, change_cell("auc", changes.get(run, {}).get("auc"), run == reference)), "run"))
    return tables.Table(("run", *(words.measure(m).title for m in metrics), "change in AUC"), tuple(rows))


def _gaps_part(runs: Sequence[str], block: Json) -> Part | None:
    table = _gaps(runs, block)
    if table is None:
        return None
    caption = "Gaps beside overall AUC, and their paired changes"
    return Part(table=table, caption=caption, fold=caption if len(table.rows) > MANY_ROWS else "")


def _gaps(runs: Sequence[str], block: Json) -> tables.Table | None:
    """One row a run and attribute: gaps beside the overall AUC, and the paired change of the equalized odds difference."""
    rows = []
    for name, attribute in block["attributes"].items():
        metrics = [m for m in GAPS if any(m in attribute["gaps"].get(run, {}) for run in runs)]
        for run in runs:
            auc = _seed_cell(block["overall"].get(run, {}).get("auc"))
            cells = [_seed_cell(attribute["gaps"].get(run, {}).get(metric)) for metric in GAPS]
            change = attribute.get("gap_changes", {}).get(run, {})
            paired = [change_cell(metric, change.get(metric), not change, smaller=True) for metric in ("auc", "equalized_odds")]
            if metrics:
                rows.append(tables.Row(f"{words.group_label(name, name)}: {run}", (auc, *cells, *paired), "run"))
    columns = ("attribute: run", "overall AUC", *(words.gap_title(m) for m in GAPS), "change in AUC gap", "change in equalized odds")
    return tables.Table(columns, tuple(rows)) if rows else None


def _attribute_view(key: str, name: str, attribute: Json, block: Json, compare: Json) -> dict[str, Any]:
    title, sure, reference = words.group_label(name, name), summary.confidence_of(compare), compare["reference"]
    runs = [run["name"] for run in compare["runs"]]
    pareto = tradeoff_part(key, name, attribute, block, runs, sure)
    levels = Part(table=_levels(name, attribute, compare), caption=f"AUC of each group by {title} under each run")
    parts = [*([pareto] if pareto else []), *change_parts(key, name, attribute, reference, sure), levels]
    return {"id": key, "name": title, "parts": parts, "sentences": gained_and_lost(name, attribute)}


def _levels(name: str, attribute: Json, compare: Json) -> tables.Table:
    """AUC of each group under each run, with interval and SD over seeds; one row a group, or with many runs one row a run."""
    runs = [run["name"] for run in compare["runs"]]
    groups = {words.group_label(name, key): group for key, group in attribute["groups"].items()}
    cells = {(run, label): _seed_cell(group.get(run, {}).get("auc")) for run in runs for label, group in groups.items()}
    if len(runs) > MOST_COLUMNS and len(groups) <= MOST_COLUMNS:
        rows = [tables.Row(run, tuple(cells[run, label] for label in groups), "run") for run in runs]
        return tables.Table(("run", *groups), tuple(rows))
    rows = [tables.Row(label, tuple(cells[run, label] for run in runs)) for label in groups]
    return tables.Table(("group", *runs), tuple(rows))


def _seed_cell(estimate: Json | None) -> tables.Cell:
    """Value, interval, and the SD over seeds where there are several."""
    cell = tables.estimate_cell(estimate)
    spread = (estimate or {}).get("sd_over_seeds")
    return (
        tables.Cell(cell.text, f"{cell.small}\nSD {words.number(spread)}", cell.state)
        if cell.state == "ok" and spread is not None
        else cell
    )


def _metrics(compare: Json, part: str) -> tuple[str, ...]:
    return tables.metrics_of(metrics for block in compare["labels"].values() for metrics in block[part].values())


def _summary(compare: Json) -> list[summary.Item]:
    sure, reference = summary.confidence_of(compare), compare["reference"]
    others = [run["name"] for run in compare["runs"] if run["name"] != reference]
    who = f"{words.plural(compare['n'], 'image')} of {words.plural(compare['n_patients'], 'patient')}, the same for every run."
    what = f"{words.listing(others, 6)} against {reference}." if others else f"{reference} alone."
    times = compare.get("provenance", {}).get("bootstrap")
    certainty = (
        f"Ranges are {sure} intervals from resampling patients{f' {words.count(times)} times' if times else ''}; "
        "changes are paired, patient by patient, and not corrected for how many there are: of many, some exclude 0 by chance. "
        "SD is the spread over seeds: how much training alone moves a number."
    )
    return [
        summary.Item("What was compared", (who, what)),
        summary.Item("Overall and gap", (), tuple(_overall_points(compare))),
        summary.Item("Who gained, who lost", (), tuple(_gain_points(compare))),
        summary.Item("How sure this is", (certainty,)),
        summary.Item(
            "What cannot be said",
            (
                "A change whose interval includes 0 is neither shown nor ruled out. A smaller "
                "gap is no gain for anyone if it comes from a group that got worse. Where TPR and FPR of a group rise or fall "
                "together, more or fewer of its cases are called positive; AUC says whether they are also ranked better.",
            ),
        ),
    ]


def _overall_points(compare: Json) -> list[tuple[str, str]]:
    if len(compare["labels"]) > summary.FEW_LABELS:
        return [("All labels:", f"{len(compare['labels'])} labels; open each one below.")]
    points = []
    for label, block in compare["labels"].items():
        for run in (r["name"] for r in compare["runs"]):
            auc = block["overall"].get(run, {}).get("auc")
            gaps = [
                f"{_brief(gap)} by {words.group_label(name, name)}"
                for name, attribute in block["attributes"].items()
                if words.estimable(gap := attribute["gaps"].get(run, {}).get("equalized_odds"))
            ]
            text = f"AUC {words.with_interval(auc, summary.confidence_of(compare))}" if words.estimable(auc) else "AUC not estimable"
            lead = f"{run}:" if len(compare["labels"]) == 1 else f"{label}, {run}:"
            points.append((lead, f"{text}; equalized odds difference {words.listing(gaps, 6) or 'not estimable'}."))
    return points


def _brief(gap: Json) -> str:
    """'0.20 (0.10 to 0.33)'."""
    limits = [words.number(gap.get(end), 2) for end in ("lower", "upper")]
    return words.number(gap["value"], 2) + (f" ({' to '.join(limits)})" if all(limits) else "")


def _gain_points(compare: Json) -> list[tuple[str, str]]:
    """Gains and losses per attribute; with many labels only how many there are."""
    points, counts, total = [], {"gained": 0, "lost": 0}, 0
    for label, block in compare["labels"].items():
        for name, attribute in block["attributes"].items():
            lead = (
                f"by {words.group_label(name, name)}, "
                if len(compare["labels"]) == 1
                else (f"{label}, by {words.group_label(name, name)}, ")
            )
            points += [(lead[0].upper() + lead[1:] + run, f"{text}.") for run, text in gained_and_lost(name, attribute)]
            for groups in attribute.get("changes", {}).values():
                for metrics in groups.values():
                    for metric in SAID:
                        side = direction(metric, metrics.get(metric))
                        counts[side] = counts[side] + 1 if side else counts.get(side, 0)
                        total += words.estimable(metrics.get(metric))
    if len(points) > 12:
        said = f"{counts['gained']} clearly better, {counts['lost']} clearly worse of {total} changes in AUC, TPR and FPR"
        return [("Group measures:", f"{said}; see each attribute below.")]
    return points or [("", "There is one run only, so nothing changed.")]


def _facts(compare: Json) -> list[tuple[str, str]]:
    seeds = {run["name"]: run.get("seeds", []) for run in compare["runs"]}
    pairs = [("Reference", compare["reference"]), ("Images", words.count(compare["n"])), ("Patients", words.count(compare["n_patients"]))]
    return pairs + [
        (f"Run {name}", f"{words.plural(len(found), 'seed')}: {', '.join(map(str, found))}" if found else "one run")
        for name, found in seeds.items()
    ]


def _made(compare: Json) -> dict[str, Any]:
    paragraphs = [
        "A run's number is the mean over its seeds; its interval resamples patients and "
        "takes that mean anew each time. SD over seeds stands beside it.",
        "A change is a run minus the reference on the same patients; its interval comes from resampling these patients for both at once.",
        "Levelling down: a group's paired change is adverse and its interval excludes 0. Collapsed: the overall "
        "AUC's lower bound is at or below 0.5, or nearly all cases get the same decision.",
    ]
    return {"paragraphs": paragraphs, "pairs": [(key.replace("_", " "), text) for key, text in flat(compare.get("provenance", {}))]}
