"""What the audit page shows, in the order in which it is read: the summary, verdicts, sizes, each label's sections, definitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evenhand.report import (
    curve_pictures,
    evidence,
    explained,
    groups_sections,
    harms,
    intersections,
    summary,
    tables,
    value_pictures,
    words,
)
from evenhand.report.curve_pictures import Scored
from evenhand.report.page import Part, Section

if TYPE_CHECKING:
    import pandas as pd

Json = Mapping[str, Any]
MOST_BOXES = 9
OPEN_CURVES = 2
"""Attributes whose curves are open; those of further ones are folded, to keep the page short."""
NO_VERDICT = (
    "No verdict was raised. This is not a finding that groups are treated equally: with few patients a real difference can go unseen. "
    "Read the intervals below."
)


@dataclass(frozen=True)
class LabelView:
    """One label: its name, a line about it, and its sections."""

    id: str
    name: str
    line: str
    sections: tuple[Section, ...]


def audit_page(audit: Json, predictions: pd.DataFrame | None, facts: Mapping[str, str]) -> dict[str, Any]:
    """Everything the audit template prints.

    Args:
        audit: the dictionary of audit.json.
        predictions: the table of predictions, for curves and score distributions; without it these are left out.
        facts: data, model, method and other facts that audit.json does not hold.
    """
    many = len(audit["labels"]) > summary.FEW_LABELS
    audit = {**audit, "labels": {name: _shown_block(name, block, audit) for name, block in audit["labels"].items()}}
    rows = None if predictions is None else curve_pictures.audited_rows(predictions, audit)
    labels = [_label_view(f"label-{i}", name, block, audit, rows, many) for i, (name, block) in enumerate(audit["labels"].items())]
    return {
        "summary": summary.audit_summary(audit, facts),
        "verdicts": verdict_boxes(audit.get("verdicts", []), NO_VERDICT, words.joint_names(audit["labels"])),
        "facts": _facts(audit, facts),
        "sizes": groups_sections.sizes_section(audit),
        "heat": _heat(audit["labels"]) if many else None,
        "labels": labels,
        "definitions": _definitions(audit),
        "values": audit.get("kind") == "value",
        "made": _made(audit, predictions is not None),
        "contents": _contents(labels, many),
    }


def _shown_block(name: str, block: Json, audit: Json) -> Json:
    """A label as it is shown: the mean over classes has no positive cases of its own."""
    if not (audit.get("kind") == "multiclass" and name == summary.MACRO):
        return block
    attributes = {
        key: {**attribute, "groups": {group: _uncounted(values) for group, values in attribute["groups"].items()}}
        for key, attribute in block["attributes"].items()
    }
    return {**block, "overall": _uncounted(block["overall"]), "attributes": attributes}


def _uncounted(values: Json) -> Json:
    return {key: value for key, value in values.items() if key != "n_positive"}


def _definitions(audit: Json) -> list[words.Measure]:
    metrics = tables.metrics_of(block["overall"] for block in audit["labels"].values())
    gaps = dict.fromkeys(m for b in audit["labels"].values() for a in b["attributes"].values() for m in a["gaps"] if m not in metrics)
    return [words.measure(name) for name in (*metrics, *gaps)]


def verdict_boxes(verdicts: Sequence[Json], none: str, names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Boxes to show and lists to fold: what was found first, insufficient evidence last and folded when there is much of it."""
    order = ("collapsed", "levelling_down", "gap", "threshold_on_test", "insufficient_evidence")
    ranked = sorted(verdicts, key=lambda v: order.index(v["code"]) if v["code"] in order else len(order))
    boxes = []
    for verdict in ranked:
        title, style, mark = words.VERDICTS.get(verdict["code"], (str(verdict["code"]).replace("_", " "), "open", "○"))
        boxes.append({"title": title, "style": style, "mark": mark, "text": words.crossed(verdict.get("text", ""), names or {})})
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


def _label_view(key: str, name: str, block: Json, audit: Json, rows: tuple[pd.DataFrame, dict[str, Any]] | None, many: bool) -> LabelView:
    overall, sure = block["overall"], summary.confidence_of(audit)
    auc, mean = overall.get("auc"), overall.get("mean")
    positive = f"{words.count(overall['n_positive'])} positive of {words.count(overall.get('n'))}" if "n_positive" in overall else ""
    said = f"AUC {words.with_interval(auc, sure)}" if words.estimable(auc) else "AUC not estimable"
    said = f"mean {words.with_interval(mean, sure)}" if mean is not None and words.estimable(mean) else said
    line = summary.joined([said if auc is not None or mean is not None else "", positive or words.plural(overall.get("n") or 0, "image")])
    level = 1 - float(audit.get("provenance", {}).get("confidence", 0.95))
    found = [
        Section(f"{key}-all", "Everyone", _everyone(block, sure)),
        *_groups_sections(key, block, many),
        _forest(key, name, block, sure),
        _curves(key, name, block, audit, rows, many),
        intersections.intersection_section(key, name, block, sure, round(level, 6)),
        evidence.missing_section(key, block),
        explained.explained_section(key, block, sure, brief=many),
        evidence.power_section(key, block),
        harms.underdiagnosis_section(key, name, block, sure),
        harms.calibration_section(key, block),
    ]
    return LabelView(key, name, line, tuple(section for section in found if section is not None))


def _everyone(block: Json, sure: str) -> tuple[Part, ...]:
    shown = tables.metrics_of([block["overall"]])
    main = [m for m in shown if m in tables.MAIN] or shown
    rest = [m for m in shown if m not in main]
    text, caption = summary.threshold_text(block.get("threshold")), "Performance over all audited images"
    first = Part(text=text, table=tables.overall_table(block["overall"], main, sure), caption=caption, classes="narrow")
    if not rest:
        return (first,)
    fold, table = "Further measures over everyone", tables.overall_table(block["overall"], rest, sure)
    return first, Part(table=table, caption=fold, classes="narrow", fold=fold)


def _groups_sections(key: str, block: Json, many: bool) -> list[Section]:
    sections = []
    for i, (name, attribute) in enumerate(block["attributes"].items()):
        parts = groups_sections.performance_parts(f"{key}-{i}", name, attribute, block["overall"], brief=many)
        sections.append(Section(f"{key}-{i}", f"By {words.group_label(name, name)}", tuple(parts)))
    return sections


def _forest(key: str, name: str, block: Json, sure: str) -> Section | None:
    if not block["attributes"]:
        return None
    shown = groups_sections.forest_picture(key, name, block, sure)
    none = "No gap could be estimated: every attribute has fewer than two groups with enough patients."
    return Section(f"{key}-gaps", "How far groups lie apart", (Part(figures=(shown,)) if shown else Part(text=none),))


def _curves(key: str, name: str, block: Json, audit: Json, rows: tuple[pd.DataFrame, dict[str, Any]] | None, many: bool) -> Section | None:
    if rows is None:
        return None
    if audit.get("kind") == "value":
        return value_pictures.values_section(key, name, block, *rows)
    scores = curve_pictures.scores_of(rows[0], name)
    if scores is None:
        return None
    scored = Scored(*scores, curve_pictures.patients_of(rows[0]), rows[1])
    parts = []
    for i, (attribute, found) in enumerate(block["attributes"].items()):
        shown = curve_pictures.score_pictures(f"{key}-{i}", attribute, found, block, scored, audit, brief=many)
        title = f"By {words.group_label(attribute, attribute)}"
        if shown:
            fold = f"Scores and curves by {words.group_label(attribute, attribute)}" if i >= OPEN_CURVES else ""
            parts.append(Part("" if fold else title, figures=tuple(shown), fold=fold))
    hint = "Each picture has its numbers folded below it. Groups keep their line style, mark and colour from picture to picture."
    return Section(f"{key}-curves", "Scores and curves", tuple(parts), hint) if parts else None


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
        ("Labels", words.listing(list(summary.single(audit)), 5)),
        ("Task", str(audit.get("kind", "")).replace("multilabel", "multi-label").replace("multiclass", "multi-class")),
    ]
    attributes = list(dict.fromkeys(a for block in audit["labels"].values() for a in block["attributes"]))
    pairs += [("Attributes", words.listing([words.group_label(a, a) for a in attributes], 6) or "none")]
    pairs += [("Threshold rule", words.listing(list(rules)))] if rules else []
    pairs += [("Seed", str(made["seed"]))] if "seed" in made and "seed" not in named else []
    return [(name, value) for name, value in pairs if value]


def _made(audit: Json, curves: bool) -> dict[str, Any]:
    made, sure = audit.get("provenance", {}), summary.confidence_of(audit)
    patients = made.get("min_patients", 10)
    paragraphs = [
        f"Intervals ({sure}) count patients, not images, so that several images of one patient weigh as the one source of information "
        f"they are. {_kind(made)}"
        "Intervals of gaps invert the studentised maximum test: the plain percentile interval of a "
        "largest-minus-smallest difference almost never reaches 0, even where there is no gap.",
        _tests(made),
        f"Not estimable: a rate needs at least {patients} patients in its denominator, AUC at least {patients} of each "
        "class. Such values are neither 0 nor left out in silence; gaps are over the groups that remain.",
        "Thresholds are chosen on validation rows and applied to the audited rows, unless a banner above says otherwise.",
    ]
    if audit.get("kind") == "value":
        paragraphs[2:] = [
            f"Not estimable: a mean or median needs at least {patients} patients. Such values are neither 0 nor left out in silence; "
            "gaps are over the groups that remain."
        ]
    elif curves:
        paragraphs.append(
            f"Curves use every score. Their bands are {sure} percentile intervals at each point of a fixed grid, over up to "
            f"{curve_pictures.REPLICATES} draws of patients within their group, seeded as the audit is. Reliability bars are Wilson "
            "intervals of bins of about equal size, with the bin's patients as the sample size."
        )
    return {"paragraphs": paragraphs, "pairs": [(key.replace("_", " "), text) for key, text in flat(made)]}


def _kind(made: Json) -> str:
    """How the intervals of group values were made, as the audit names it."""
    kind = str(made.get("interval") or "").split("; gaps:")[0].removeprefix("groups: ")
    return f"Kind for group values: {kind}. " if kind else ""


def _tests(made: Json) -> str:
    """Where the p-values come from."""
    by = made.get("tests") or {}
    drawn = [words.measure(m).title for m in by.get("bootstrap") or ()]
    text = "p-values come from permuting group membership among patients"
    if made.get("permutations") == 0:
        text = "p-values come from the bootstrap over patients"
    elif drawn:
        text += f"; those of gaps in {words.listing(drawn, 8)} from the bootstrap over patients"
    if by.get("normal"):
        text += (
            "; where every group has thousands of patients, permuting would give what the normal limit of the same statistic gives at "
            "once, which is taken there (listed below as “tests normal”)"
        )
    return f"{text}. Adjusted ones are corrected by Holm over the family named below."


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested dictionary as (path, text) pairs; lists of plain values on one line."""
    if isinstance(value, Mapping):
        return [pair for key, inner in value.items() for pair in flat(inner, f"{prefix} {key}".strip())]
    if isinstance(value, (list, tuple)):
        return [(prefix, ", ".join(map(str, value)) or "none")]
    return [(prefix, "none" if value is None else str(value))]


def _contents(labels: Sequence[LabelView], many: bool) -> list[tuple[str, str]]:
    pairs = [("summary", "Summary"), ("verdicts", "Verdicts"), ("run", "What was audited")]
    pairs += [("overview", "All labels"), ("labels", "Each label")] if many else []
    if len(labels) == 1:
        pairs += [(section.id, section.title) for section in labels[0].sections]
    elif not many:
        pairs += [(label.id, label.name) for label in labels]
    return [*pairs, ("definitions", "Definitions"), ("made", "How it was made")]
