"""Who gained and who lost: paired changes of every group in every run, in words, as a matrix, as pictures and in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evenhand.report import figures, tables, words
from evenhand.report.page import Part, Picture, picture

Json = Mapping[str, Any]
LOWER_IS_BETTER = frozenset({"fpr", "fnr", "brier", "ece", "ece_corrected", "log_loss"})
NO_DIRECTION = frozenset({"positive_rate", "prevalence", "calibration_slope", "calibration_intercept"})
CHANGES = ("auc", "tpr", "fpr", "balanced_accuracy")
SAID = ("auc", "tpr", "fpr")
MOST_PANELS = 4
MARKS = {"gained": "^", "lost": "v", "": "o"}


def direction(metric: str, change: Json | None) -> str:
    """'gained', 'lost', or '' where the interval of a change includes 0 or the measure has no better side.

    Example:
        >>> direction("auc", {"value": 0.05, "lower": 0.01, "upper": 0.09})
        'gained'
        >>> direction("fpr", {"value": 0.05, "lower": 0.01, "upper": 0.09})
        'lost'
        >>> direction("auc", {"value": 0.05, "lower": -0.01, "upper": 0.11})
        ''
    """
    if change is None or change.get("lower") is None or change.get("upper") is None or metric in NO_DIRECTION:
        return ""
    if change["lower"] <= 0 <= change["upper"]:
        return ""
    return "gained" if (change["lower"] > 0) != (metric in LOWER_IS_BETTER) else "lost"


def gained_and_lost(name: str, attribute: Json) -> list[tuple[str, str]]:
    """For each run: which groups gained and which lost in AUC, TPR or FPR, by intervals that exclude 0."""
    lines = []
    for run, groups in attribute.get("changes", {}).items():
        found: dict[str, list[str]] = {"gained": [], "lost": []}
        for group, metrics in groups.items():
            for metric in SAID:
                change = metrics.get(metric)
                side = direction(metric, change)
                if side and change:
                    sign = "+" if change["value"] > 0 else ""
                    title = words.measure(metric).title.split(" (")[0]
                    found[side].append(f"{words.group_label(name, group)} ({title} {sign}{words.number(change['value'])})")
        text = "; ".join(f"{side}: {words.listing(who, 6)}" for side, who in found.items() if who)
        lines.append((f"{run}:", text or "no group's change is clearly different from 0"))
    return lines


def change_parts(key: str, name: str, attribute: Json, reference: str, sure: str) -> list[Part]:
    """A matrix of runs and groups, pictures of the changes in AUC, TPR and FPR, and every number folded."""
    if not attribute.get("changes"):
        return []
    title = words.group_label(name, name)
    parts = []
    for metric in SAID:
        shown = change_pictures(f"{key}-{metric}", name, attribute, metric, reference, sure)
        table = matrix(name, attribute, metric)
        if table is None or not shown:
            continue
        caption = f"Change in {_brief(metric)} of each group by {title} against {reference}; ▲ better, ▼ worse: the interval excludes 0"
        inner = Part(table=table, caption=caption, figures=tuple(shown))
        parts.append(inner if metric == "auc" else Part(fold=f"Who gained and who lost in {_brief(metric)}", parts=(inner,)))
    table = changes_table(name, attribute)
    if table is not None:
        caption = f"Paired changes of each group by {title} against {reference}"
        parts.append(Part(table=table, caption=caption, fold=f"All changes by {title}, in numbers"))
    return parts


def matrix(name: str, attribute: Json, metric: str) -> tables.Table | None:
    """One row a run, one column a group: the paired change with its mark."""
    changes = attribute.get("changes", {})
    groups = list(dict.fromkeys(g for by_group in changes.values() for g, metrics in by_group.items() if metrics.get(metric)))
    if not groups:
        return None
    rows = [
        tables.Row(run, tuple(change_cell(metric, by_group.get(g, {}).get(metric)) for g in groups), "run")
        for run, by_group in changes.items()
    ]
    return tables.Table(("run", *(words.group_label(name, g) for g in groups)), tuple(rows))


def change_pictures(key: str, name: str, attribute: Json, metric: str, reference: str, sure: str) -> list[Picture]:
    """A panel a group, a row a run; several pictures where there are more than `MOST_PANELS` groups."""
    changes = attribute["changes"]
    groups = list(dict.fromkeys(g for by_group in changes.values() for g in by_group))
    panels = [_panel(words.group_label(name, g), {run: by_group.get(g, {}).get(metric) for run, by_group in changes.items()}, metric)
              for g in groups]
    panels = [panel for panel in panels if any(p.value is not None for p in panel.points)]
    points = [p for panel in panels for p in panel.points if p.value is not None]
    if not points:
        return []
    limits, title = figures.limits_of(points, 0.0), words.group_label(name, name)
    found = []
    for start in range(0, len(panels), MOST_PANELS):
        part = panels[start : start + MOST_PANELS]
        said = "; ".join(f"{panel.title}: " + ", ".join(f"{p.label} {words.number(p.value) or 'not estimable'}" for p in panel.points)
                         for panel in part)
        text = f"Change in {_brief(metric)} against {reference} by {title}. {said}."
        svg = figures.group_panels(part, key=f"{key}-{start}", summary=text, limits=limits)
        better = f"{'left' if metric in LOWER_IS_BETTER else 'right'} of the dashed line is better"
        caption = f"Same patients in both runs; {better}; lines are {sure} intervals. "
        caption += "Triangles: the interval excludes 0; up gained, down lost."
        found.append(picture(f"Who gained, who lost: {_brief(metric)} by {title}", svg, caption))
    return found


def _panel(title: str, by_run: Mapping[str, Json | None], metric: str) -> figures.Panel:
    points = []
    for run, change in by_run.items():
        e, side = change or {}, direction(metric, change)
        points.append(figures.Point(run, e.get("value"), e.get("lower"), e.get("upper"), emphasis=bool(side), marker=MARKS[side]))
    return figures.Panel(title, tuple(points), 0.0, share=False)


def _brief(metric: str) -> str:
    return words.measure(metric).title.split(" (")[0]


def changes_table(name: str, attribute: Json) -> tables.Table | None:
    """One row a run and group: paired change of each measure."""
    changes = attribute.get("changes", {})
    found = [m for m in CHANGES if any(m in metrics for groups in changes.values() for metrics in groups.values())]
    rows = [
        tables.Row(f"{run}: {words.group_label(name, group)}", tuple(change_cell(m, metrics.get(m)) for m in found), "run")
        for run, groups in changes.items()
        for group, metrics in groups.items()
    ]
    return (
        tables.Table(("run: group", *(f"change in {words.measure(m).title.split(' (')[0]}" for m in found)), tuple(rows)) if rows else None
    )


def change_cell(metric: str, change: Json | None, reference: bool = False, *, smaller: bool = False) -> tables.Cell:
    """A paired change with its interval, and a mark and a word where the interval excludes 0."""
    if reference and not change:
        return tables.Cell("reference", "", "soft")
    cell = tables.estimate_cell(change)
    if cell.state != "ok" or change is None:
        return cell
    text = f"{'+' if change['value'] > 0 else ''}{cell.text}"
    side = direction("fpr" if smaller else metric, change)
    word = {"gained": ("smaller" if smaller else "better", "▲", "up"), "lost": ("larger" if smaller else "worse", "▼", "down")}.get(side)
    return tables.Cell(f"{word[1]} {text}", f"{cell.small}\n{word[0]}", word[2]) if word else tables.Cell(text, cell.small)
