"""What the audit page shows, as plain values for its template: tables, pictures, verdict boxes, facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evenhand.report import figures, summary, tables, words

if TYPE_CHECKING:
    import pandas as pd

Json = Mapping[str, Any]
FOREST = ("auc", "equalized_odds", "equal_opportunity", "fpr", "demographic_parity")
GAPS = (*FOREST, "tpr", "positive_rate", "demographic_parity_ratio", "disparate_impact")
MOST_BOXES = 9
MOST_COLUMNS = 5
NO_VERDICT = (
    "No verdict was raised. This is not a finding that groups are treated equally: with few patients a real difference can go unseen. "
    "Read the intervals below."
)


@dataclass(frozen=True)
class Picture:
    """A figure with its heading and its caption, which says the main numbers."""

    title: str
    svg: Any
    caption: str
    width: int = 0


def picture(title: str, svg: str, caption: str) -> Picture:
    """A picture from figures.py, which escapes every text it writes."""
    from markupsafe import Markup

    return Picture(title, Markup(svg), caption, figures.width_of(svg))


def audit_page(audit: Json, predictions: pd.DataFrame | None, facts: Mapping[str, str]) -> dict[str, Any]:
    """Everything the audit template prints.

    Args:
        audit: the dictionary of audit.json.
        predictions: the table of predictions, for curves and score distributions; without it these are left out.
        facts: data, model, method and other facts that audit.json does not hold.
    """
    many = len(audit["labels"]) > summary.FEW_LABELS
    rows, members = (None, {}) if predictions is None else audited_rows(predictions, audit)
    labels = [_label_view(f"label-{i}", name, block, audit, rows, members) for i, (name, block) in enumerate(audit["labels"].items())]
    metrics = tables.metrics_of(block["overall"] for block in audit["labels"].values())
    gaps = dict.fromkeys(m for b in audit["labels"].values() for a in b["attributes"].values() for m in a["gaps"] if m not in metrics)
    return {
        "summary": summary.audit_summary(audit, facts),
        "verdicts": verdict_boxes(audit.get("verdicts", []), NO_VERDICT),
        "facts": _facts(audit, facts),
        "heat": _heat(audit["labels"]) if many else None,
        "labels": labels,
        "definitions": [words.measure(name) for name in (*metrics, *gaps)],
        "made": _made(audit),
        "contents": _contents(labels, many),
    }


def audited_rows(predictions: pd.DataFrame, audit: Json) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows that were audited, and for each attribute the group key of every such row ('' where missing).

    Groups and rows are found as the audit finds them, so that a curve is of the rows that its number is of. An attribute
    whose columns the table does not have is left out.
    """
    from evenhand.evaluation.attributes import audit_groups
    from evenhand.evaluation.cohort import judged_rows
    from evenhand.evaluation.predictions import GROUP_SUFFIX

    made, columns = audit.get("provenance", {}), set(map(str, predictions.columns))
    names = dict.fromkeys(a for block in audit["labels"].values() for a in block["attributes"])
    known = [name for name in names if all({part, f"{part}{GROUP_SUFFIX}"} & columns for part in name.split("*"))]
    table = predictions.reset_index(drop=True)
    groups = audit_groups(table, known, made.get("bins") or {}, len(table))
    use = judged_rows(table, groups, made.get("missing") or "own_group")
    members = {name: np.where(item.codes < 0, "", item.names())[use] for name, item in groups.items()}
    stored = {name: f"{name}{GROUP_SUFFIX}" for name in names if name not in members and f"{name}{GROUP_SUFFIX}" in columns}
    members.update({name: table[column].astype("string").fillna("").to_numpy(object)[use] for name, column in stored.items()})
    return table[use], members


def verdict_boxes(verdicts: Sequence[Json], none: str) -> dict[str, Any]:
    """Boxes to show and lists to fold: what was found first, insufficient evidence last and folded when there is much of it."""
    order = ("collapsed", "levelling_down", "gap", "threshold_on_test", "insufficient_evidence")
    ranked = sorted(verdicts, key=lambda v: order.index(v["code"]) if v["code"] in order else len(order))
    boxes = []
    for verdict in ranked:
        title, style, mark = words.VERDICTS.get(verdict["code"], (str(verdict["code"]).replace("_", " "), "open", "○"))
        boxes.append({"title": title, "style": style, "mark": mark, "text": verdict.get("text", "")})
    open_boxes = [box for box in boxes if box["style"] == "open"]
    found = [box for box in boxes if box["style"] != "open"]
    room = max(MOST_BOXES - len(found), 2)
    shown = found[:MOST_BOXES] + (open_boxes if len(open_boxes) <= room else open_boxes[:1])
    folded = [box for box in boxes if not any(box is other for other in shown)]
    titles = dict.fromkeys(box["title"] for box in folded)
    return {
        "shown": shown,
        "none": none,
        "folded": [{"title": title, "boxes": [box for box in folded if box["title"] == title]} for title in titles],
    }


def scores_of(rows: pd.DataFrame, label: str) -> tuple[Any, Any] | None:
    """Truth (NaN where unlabelled) and score of one label, for the column names of binary, multi-label and multi-class tables."""
    import pandas as pd

    truth = next((c for c in (f"y_true_{label}", "y_true") if c in rows), None)
    score = next((c for c in (f"y_score_{label}", "y_score") if c in rows), None)
    if truth is None or score is None:
        return None
    y = pd.to_numeric(rows[truth], errors="coerce").to_numpy(float)
    if truth == "y_true" and score != "y_score":
        y = np.where(rows[truth].isna(), np.nan, (rows[truth].astype(str) == label).to_numpy(float))
    return y, pd.to_numeric(rows[score], errors="coerce").to_numpy(float)


def _label_view(key: str, name: str, block: Json, audit: Json, rows: pd.DataFrame | None, members: Json) -> dict[str, Any]:
    overall, sure = block["overall"], summary.confidence_of(audit)
    scores = None if rows is None else scores_of(rows, name)
    auc = overall.get("auc")
    line = summary.joined(
        [
            f"AUC {words.with_interval(auc, sure)}" if words.estimable(auc) else "AUC not estimable",
            f"{words.count(overall.get('n_positive'))} positive of {words.count(overall.get('n'))}",
        ]
    )
    views = [
        _attribute_view(f"{key}-{i}", attribute, a, block, None if scores is None else (members, *scores))
        for i, (attribute, a) in enumerate(block["attributes"].items())
    ]
    shown = tables.metrics_of([overall])
    return {
        "id": key,
        "name": name,
        "line": line,
        "overall": tables.overall_table(overall, shown, sure),
        "forest": _forest(key, name, block, sure),
        "threshold": summary.threshold_text(block.get("threshold")),
        "attributes": views,
    }


def _forest(key: str, label: str, block: Json, sure: str) -> Picture | None:
    """Gaps of every attribute, those of main interest, on one axis."""
    points, numbers = [], []
    for name, attribute in block["attributes"].items():
        for metric in FOREST:
            gap = attribute["gaps"].get(metric)
            if gap is None or (metric == "equal_opportunity" and len(block["attributes"]) > 3):
                continue
            title = f"{words.group_label(name, name)}: {_brief(metric)}"
            clear = gap.get("lower") is not None and gap["lower"] > 0
            points.append(figures.Point(title, gap.get("value"), gap.get("lower"), gap.get("upper"), emphasis=clear))
            numbers.append(f"{title} {words.with_interval(gap, sure) if words.estimable(gap) else 'not estimable'}")
    if not any(point.value is not None for point in points):
        return None
    svg = figures.forest(points, key=f"{key}-forest", summary=f"Gaps for {label}. {'; '.join(numbers)}.", axis="gap (0 = no difference)")
    return picture(
        "Gaps between groups",
        svg,
        f"A mark is the gap, a line its {sure} interval; filled where the interval excludes 0. Every number is in the tables below.",
    )


def _brief(metric: str) -> str:
    return {
        "equalized_odds": "equalized odds",
        "equal_opportunity": "TPR",
        "fpr": "FPR",
        "auc": "AUC",
        "demographic_parity": "positive rate",
    }.get(metric, metric)


def _attribute_view(key: str, name: str, attribute: Json, block: Json, scored: tuple[Any, Any, Any] | None) -> dict[str, Any]:
    groups, overall = tables.known_groups(attribute), block["overall"]
    main = [m for m in tables.MAIN if m in tables.metrics_of([overall, *groups.values()])]
    rest = [m for m in tables.metrics_of([overall, *groups.values()]) if m not in main]
    hint = f"{words.plural(len(groups), 'group')}"
    hint += (
        f"; {name} is not recorded for {words.plural(attribute['n_missing'], 'image')}, shown in a row of their own"
        if attribute.get("n_missing")
        else ""
    )
    pictures = [_panels(key, name, groups, overall, main)] if len(groups) > 0 else []
    if scored is not None:
        pictures += _score_pictures(key, name, groups, block, scored)
    return {
        "id": key,
        "name": words.group_label(name, name),
        "hint": f"{hint}.",
        "table": tables.group_table(name, attribute, overall, main),
        "gaps": tables.gap_table(
            name,
            attribute,
            [
                m
                for m in GAPS
                if not (m == "tpr" and "equal_opportunity" in attribute["gaps"])
                and not (m == "positive_rate" and "demographic_parity" in attribute["gaps"])
            ],
        ),
        "more": [tables.group_table(name, attribute, overall, rest[i : i + MOST_COLUMNS]) for i in range(0, len(rest), MOST_COLUMNS)],
        "figures": [shown for shown in pictures if shown is not None],
    }


def _panels(key: str, name: str, groups: Mapping[str, Json], overall: Json, metrics: Sequence[str]) -> Picture | None:
    panels = []
    for metric in [m for m in metrics if m in ("auc", "tpr", "fpr")]:
        points = tuple(_point(words.group_label(name, k), g.get(metric)) for k, g in groups.items())
        panels.append(figures.Panel(words.measure(metric).title, points, (overall.get(metric) or {}).get("value")))
    if not panels or not any(p.value is not None for panel in panels for p in panel.points):
        return None
    said = "; ".join(f"{p.label} {panel.title} {words.number(p.value, 2) or 'not estimable'}" for panel in panels for p in panel.points)
    svg = figures.group_panels(panels, key=f"{key}-panels", summary=f"Performance by {words.group_label(name, name)}. {said}.")
    return picture(
        f"Performance by {words.group_label(name, name)}",
        svg,
        "A mark is a group's value, a line its interval, the dashed rule the value over everyone.",
    )


def _point(label: str, estimate: Json | None) -> figures.Point:
    found = estimate or {}
    return figures.Point(label, found.get("value"), found.get("lower"), found.get("upper"))


def _score_pictures(key: str, name: str, groups: Mapping[str, Json], block: Json, scored: tuple[Any, Any, Any]) -> list[Picture | None]:
    members, y, score = scored
    member = members.get(name)
    if member is None:
        return []
    usable = np.isfinite(y) & np.isfinite(score)
    split = {k: (y[(member == k) & usable], score[(member == k) & usable]) for k in groups}
    return [_roc(key, name, groups, split), _distributions(key, name, split, block)]


def _roc(key: str, name: str, groups: Mapping[str, Json], split: Mapping[str, tuple[Any, Any]]) -> Picture | None:
    ranked = sorted((g["auc"]["value"], k) for k, g in groups.items() if words.estimable(g.get("auc")) and len(np.unique(split[k][0])) == 2)
    if not ranked:
        return None
    few = len(ranked) <= figures.MOST_CURVES
    named = {k for _, k in (ranked if few else ranked[:4] + ranked[-3:])}
    curves = []
    for value, k in ranked:
        fpr, tpr = figures.roc_points(*split[k])
        g = groups[k]
        point = (g["fpr"]["value"], g["tpr"]["value"]) if words.estimable(g.get("fpr")) and words.estimable(g.get("tpr")) else None
        curves.append(figures.Curve(f"{words.group_label(name, k)}, AUC {value:.2f}", fpr, tpr, point, k in named))
    curves = [c for c in curves if not c.emphasis] + (
        [c for k in groups for c in curves if c.emphasis and c.label.startswith(f"{words.group_label(name, k)}, AUC")]
        if few
        else [c for c in curves if c.emphasis]
    )
    note = "" if few else f"{len(ranked) - len(named)} further groups"
    text = "; ".join(c.label for c in curves if c.emphasis)
    svg = figures.roc_curves(curves, key=f"{key}-roc", summary=f"ROC curves by {words.group_label(name, name)}: {text}.", note=note)
    left_out = len(groups) - len(ranked)
    caption = (
        "The mark on a curve is where the model is used: its threshold. "
        "Marks far apart are a gap in equalized odds."
    )
    caption += f" Of {len(groups)} groups the four lowest and three highest AUC are named." if not few else ""
    caption += f" No curve for {words.plural(left_out, 'group')} without an estimable AUC." if left_out else ""
    return picture(f"ROC curves by {words.group_label(name, name)}", svg, caption)


def _distributions(key: str, name: str, split: Mapping[str, tuple[Any, Any]], block: Json) -> Picture | None:
    shown = [figures.Scores(words.group_label(name, k), s[y > 0], s[y <= 0]) for k, (y, s) in split.items() if len(y) >= 10]
    if not shown:
        return None
    threshold = block.get("threshold")
    cut = threshold.get("value") if isinstance(threshold, Mapping) else threshold
    medians = "; ".join(f"{g.label} median {_median(g.positive)} if positive, {_median(g.negative)} if negative" for g in shown)
    few = len(shown) <= figures.MOST_HISTOGRAMS
    draw = figures.score_histograms if few else figures.score_ranges
    svg = draw(shown, key=f"{key}-scores", summary=f"Scores by {words.group_label(name, name)}: {medians}.", threshold=cut)
    how = (
        "Filled, above the line: positive cases; hatched, below: negative cases, each scaled to its own peak."
        if few
        else ("Square: median score of positive cases; ring: of negative ones; thick line the middle half, thin line 5% to 95%.")
    )
    left_out = len(split) - len(shown)
    how += " Dashed: the threshold." if cut is not None else ""
    return picture(
        f"Scores by {words.group_label(name, name)}",
        svg,
        how + (f" Not drawn: {words.plural(left_out, 'group')} with fewer than 10 images." if left_out else ""),
    )


def _median(values: Any) -> str:
    return words.number(float(np.median(values)), 2) if len(values) else "–"


def _heat(labels: Mapping[str, Json]) -> dict[str, Any]:
    over = [("", 3), *((words.group_label(name, name), width) for name, width in tables.spans(labels))]
    return {
        "table": tables.heat_table(labels),
        "over": over,
        "key": ["above 0.90", "0.82 to 0.90", "0.74 to 0.82", "0.66 to 0.74", "0.58 to 0.66", "below 0.58"],
    }


def _facts(audit: Json, facts: Mapping[str, str]) -> list[tuple[str, str]]:
    made = audit.get("provenance", {})
    thresholds = [block.get("threshold") for block in audit["labels"].values()]
    rules = dict.fromkeys(str(t.get("rule")) for t in thresholds if isinstance(t, Mapping))
    pairs = [(name.replace("_", " ").capitalize(), str(value)) for name, value in facts.items() if value not in (None, "")]
    named = {name.lower() for name, _ in pairs}
    pairs += [(name.capitalize(), str(made[name])) for name in ("data", "model", "method", "split") if made.get(name) and name not in named]
    pairs += [("Images audited", words.count(audit["n"])), ("Patients", words.count(audit["n_patients"]))]
    pairs += [
        ("Labels", words.listing(list(audit["labels"]), 5)),
        ("Task", str(audit.get("kind", "")).replace("multilabel", "multi-label").replace("multiclass", "multi-class")),
    ]
    attributes = list(dict.fromkeys(a for block in audit["labels"].values() for a in block["attributes"]))
    pairs += [("Attributes", words.listing([words.group_label(a, a) for a in attributes], 6) or "none")]
    pairs += [("Threshold rule", words.listing(list(rules)))] if rules else []
    pairs += [("Seed", str(made["seed"]))] if "seed" in made and "seed" not in named else []
    return [(name, value) for name, value in pairs if value]


def _made(audit: Json) -> dict[str, Any]:
    made, sure = audit.get("provenance", {}), summary.confidence_of(audit)
    patients = made.get("min_patients", 10)
    paragraphs = [
        f"Intervals ({sure}): patients, not images, are drawn with replacement, so that several "
        "images of one patient count as the one source of information they are. "
        "Intervals of gaps invert the studentised maximum test: the plain percentile interval of a "
        "largest-minus-smallest difference almost never reaches 0, even where there is no gap.",
        "p-values come from permuting group membership among patients; adjusted ones are corrected by Holm over the family named below.",
        f"Not estimable: a rate needs at least {patients} patients in its denominator, AUC at least {patients} of each "
        "class. Such values are neither 0 nor left out in silence; gaps are over the groups that remain.",
        "Thresholds are chosen on validation rows and applied to the audited rows, unless a banner above says otherwise.",
    ]
    return {"paragraphs": paragraphs, "pairs": [(key.replace("_", " "), text) for key, text in flat(made)]}


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested dictionary as (path, text) pairs; lists of plain values on one line."""
    if isinstance(value, Mapping):
        return [pair for key, inner in value.items() for pair in flat(inner, f"{prefix} {key}".strip())]
    if isinstance(value, (list, tuple)):
        return [(prefix, ", ".join(map(str, value)) or "none")]
    return [(prefix, "none" if value is None else str(value))]


def _contents(labels: Sequence[Mapping[str, Any]], many: bool) -> list[tuple[str, str]]:
    pairs = [("summary", "Summary"), ("verdicts", "Verdicts"), ("run", "What was audited")]
    pairs += [("overview", "All labels"), ("labels", "Each label")] if many else []
    if len(labels) == 1:
        pairs += [(labels[0]["id"], "Performance and gaps")] + [(a["id"], f"By {a['name']}") for a in labels[0]["attributes"]]
    elif not many:
        pairs += [(label["id"], label["name"]) for label in labels]
    return [*pairs, ("definitions", "Definitions"), ("made", "How it was made")]
