"""The first thing a reader sees: who was audited, how well it works, for whom it differs, how sure, what cannot be said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evenhand.report import tables, words

Json = Mapping[str, Any]
FEW_LABELS = 3
MACRO = "macro"
"""The mean over the classes of a multi-class audit stands among its labels under this name."""


@dataclass(frozen=True)
class Item:
    """One heading of the summary with its sentences and its list; a point may have a lead, set in bold."""

    heading: str
    texts: tuple[str, ...] = ()
    points: tuple[str | tuple[str, str], ...] = ()


def confidence_of(audit: Json) -> str:
    """The confidence level for reading: '95%'."""
    return f"{100 * float(audit.get('provenance', {}).get('confidence', 0.95)):g}%"


def audit_summary(audit: Json, facts: Mapping[str, str]) -> list[Item]:
    """The five items of an audit's summary.

    Args:
        audit: the dictionary of audit.json.
        facts: what the caller knows beyond it, such as ``data`` and ``model``.
    """
    many = len(audit["labels"]) > FEW_LABELS
    few = 1 < len(audit["labels"]) <= FEW_LABELS
    return [
        Item("Who was looked at", (_who(audit, facts),), tuple(_prevalences(audit)) if few else ()),
        Item("How well it works overall", tuple(_overall_many(audit) if many else _overall_few(audit))),
        Item("For whom it differs", tuple(_tested(audit)), tuple(_gaps_many(audit) if many else _gaps_few(audit))),
        Item("How sure this is", tuple(_certainty(audit))),
        Item("What cannot be said", (), tuple(_limits(audit))),
    ]


def threshold_text(threshold: Any) -> str:
    """How cases were called positive, in one sentence.

    Example:
        >>> threshold_text({"value": 0.41, "rule": "youden", "source": "val", "n": 175})
        'A case is called positive from a score of 0.410 on (rule: youden, chosen on 175 validation rows).'
    """
    if not isinstance(threshold, Mapping):
        return "" if threshold is None else f"A case is called positive from a score of {words.number(threshold)} on."
    if threshold.get("value") is None:
        return f"No single threshold: {words.reason(threshold.get('note')) or 'decisions were given with the predictions'}."
    source = {"val": "validation rows", "test": "test rows, which makes the rates look better than they are"}.get(
        str(threshold.get("source")), ""
    )
    rows = f"{words.count(threshold['n'])} " if threshold.get("n") is not None else ""
    chosen = f", chosen on {rows}{source}" if source else f", {threshold['source']}" if threshold.get("source") else ""
    note = f" {threshold['note'][0].upper()}{threshold['note'][1:]}." if threshold.get("note") else ""
    return (
        f"A case is called positive from a score of {words.number(threshold['value'])} "
        f"on (rule: {threshold.get('rule', 'given')}{chosen}).{note}"
    ).replace("..", ".")


def rates_in_words(name: str, attribute: Json) -> str:
    """Found and false alarms in the two groups that lie furthest apart, as percentages."""
    parts = []
    for metric, lead in (("tpr", "of truly positive cases the model finds"), ("fpr", "of truly negative ones it falsely alarms for")):
        groups = tables.known_groups(attribute)
        values = sorted((g[metric]["value"], key) for key, g in groups.items() if words.estimable(g.get(metric)))
        if len(values) > 1:
            ends = [f"{value:.0%} ({_sized(name, key, groups[key][metric])})" for value, key in (values[0], values[-1])]
            parts.append(f"{lead} {ends[0]} to {ends[1]}")
    return "; ".join(parts)


def _sized(name: str, key: str, estimate: Json) -> str:
    """A group with the number of images its rate is of."""
    n = estimate.get("n")
    return words.group_label(name, key) + (f", {words.count(n)} images" if n is not None else "")


def means_in_words(name: str, attribute: Json, unit: str | None) -> str:
    """The lowest and the highest mean of a continuous value."""
    values = sorted((g["mean"]["value"], key) for key, g in tables.known_groups(attribute).items() if words.estimable(g.get("mean")))
    if len(values) < 2:
        return ""
    groups = attribute["groups"]
    ends = [f"{words.number(value)} ({_sized(name, key, groups[key]['mean'])})" for value, key in (values[0], values[-1])]
    return f"the mean runs from {ends[0]} to {ends[1]}{f' {unit}' if unit else ''}"


def _who(audit: Json, facts: Mapping[str, str]) -> str:
    of = f" of {facts['data']}" if facts.get("data") else ""
    split = " in the test split" if facts.get("split") == "test" else ""
    who = f"{words.plural(audit['n'], 'image')} of {words.plural(audit['n_patients'], 'patient')}{of}{split}"
    if len(audit["labels"]) > 1:
        what = "values" if audit.get("kind") == "value" else "labels"
        if _macro(audit):
            return f"{who}, judged for each of {len(audit['labels']) - 1} classes against the rest, and for their mean ('{MACRO}')."
        return f"{who}, judged for {len(audit['labels'])} {what}."
    ((label, block),) = audit["labels"].items()
    if "n_positive" not in block["overall"]:
        lacking = block["overall"].get("n_missing_value")
        without = f", not in {words.count(lacking)}" if lacking else ""
        return f"{who}; {label} was measured in {words.count(block['overall'].get('n'))}{without}."
    n, positive = block["overall"].get("n"), block["overall"].get("n_positive")
    share = f" ({positive / n:.0%})" if n and positive is not None else ""
    return f"{who}; {words.count(positive)}{share} are positive for {label}."


def _prevalences(audit: Json) -> list[str]:
    return [
        f"{label}: {words.count(b['overall']['n_positive'])} positive of {words.count(b['overall'].get('n'))} labelled"
        if "n_positive" in b["overall"]
        else f"{label}: measured in {words.plural(b['overall'].get('n') or 0, 'image')}"
        for label, b in audit["labels"].items()
    ]


def _overall_few(audit: Json) -> list[str]:
    sure, lines = confidence_of(audit), []
    for label, block in audit["labels"].items():
        overall, lead = block["overall"], f"{label}: " if len(audit["labels"]) > 1 else ""
        if "auc" not in overall:
            said = _overall_other(block, sure)
            lines.append(lead + said if lead else said[0].upper() + said[1:])
            continue
        if not words.estimable(overall.get("auc")):
            lines.append(f"{lead}AUC cannot be estimated ({words.reason((overall.get('auc') or {}).get('reason')) or 'not computed'}).")
            continue
        text = (
            f"{lead}AUC {words.with_interval(overall['auc'], sure)}: of a positive and a negative case, the "
            f"positive one gets the higher score {overall['auc']['value']:.0%} of the time."
        )
        if words.estimable(overall.get("tpr")) and words.estimable(overall.get("fpr")):
            text += (
                f" At its threshold the model finds {overall['tpr']['value']:.0%} of positive cases "
                f"and falsely alarms for {overall['fpr']['value']:.0%} of negative ones."
            )
        lines.append(text)
    return lines


def _overall_other(block: Json, sure: str) -> str:
    """The first measures of an audit without AUC: of values, their mean and median with the unit and the better side."""
    overall = block["overall"]
    unit = f" {block['unit']}" if block.get("unit") else ""
    said = [
        f"{words.measure(m).title} {words.with_interval(overall[m], sure)}{unit}"
        if words.estimable(overall[m])
        else f"{words.measure(m).title} not estimable"
        for m in tables.metrics_of([overall])[:2]
    ]
    better = f" {'Lower' if block['lower_is_better'] else 'Higher'} is better." if "lower_is_better" in block else ""
    text = "; ".join(said) or "nothing was computed"
    return f"{text}.{better}"


def _overall_many(audit: Json) -> list[str]:
    if not any("auc" in b["overall"] for b in audit["labels"].values()):
        return [f"{label}: {_overall_other(b, confidence_of(audit))}" for label, b in audit["labels"].items()]
    labels, what = single(audit), "classes" if _macro(audit) else "labels"
    ranked = sorted((b["overall"]["auc"]["value"], label) for label, b in labels.items() if words.estimable(b["overall"].get("auc")))
    total = len(labels)
    if not ranked:
        return [f"AUC can be estimated for none of the {total} {what}."]
    text = (
        f"AUC can be estimated for {len(ranked)} of {total} {what}: from {ranked[0][0]:.2f} "
        f"({ranked[0][1]}) to {ranked[-1][0]:.2f} ({ranked[-1][1]})."
    )
    collapsed = [
        label
        for label, b in labels.items()
        if (b["overall"].get("auc") or {}).get("lower") is not None and b["overall"]["auc"]["lower"] <= 0.5
    ]
    if collapsed:
        text += f" For {len(collapsed)} the interval reaches down to 0.5, a coin toss: {words.listing(collapsed)}."
    mean = audit["labels"][MACRO]["overall"].get("auc") if _macro(audit) else None
    if mean is not None and words.estimable(mean):
        text += f" Their mean: {words.with_interval(mean, confidence_of(audit))}."
    return [text]


def _macro(audit: Json) -> bool:
    return audit.get("kind") == "multiclass" and MACRO in audit["labels"]


def single(audit: Json) -> dict[str, Json]:
    """The labels without the mean over classes."""
    return {label: block for label, block in audit["labels"].items() if not (_macro(audit) and label == MACRO)}


def _tested(audit: Json) -> list[str]:
    """How many of the tested gaps have a small adjusted p."""
    level = 1 - float(audit.get("provenance", {}).get("confidence", 0.95))
    blocks = [a for block in audit["labels"].values() for a in block["attributes"].values()]
    found = [gap["p_holm"] for a in blocks for gap in a["gaps"].values() if gap.get("p_holm") is not None]
    clear = sum(p < level for p in found)
    if not found:
        return []
    said = f"Of {words.plural(len(found), 'tested gap')}, {clear or 'none'} {'have' if clear > 1 else 'has'} an adjusted p below {level:g}"
    return [f"{said}." if clear else f"{said}: a difference is shown for none, and ruled out for none."]


def _gap_sentence(gap: Json, name: str, metric: str, sure: str) -> str:
    adjusted = f"; adjusted p {_equals(gap['p_holm'])}" if gap.get("p_holm") is not None else ""
    text = f"{words.gap_title(metric)} {words.with_interval(gap, sure, 3)}".removesuffix(")")
    text += f"{adjusted})" if gap.get("lower") is not None else adjusted
    if gap.get("groups"):
        text += f", furthest apart: {' and '.join(words.group_label(name, str(key)) for key in gap['groups'])}"
    return text


def _equals(p: float) -> str:
    text = words.p_value(p)
    return text if text.startswith("<") else f"= {text}"


def _gaps_few(audit: Json) -> list[str | tuple[str, str]]:
    sure = confidence_of(audit)
    lines: list[str | tuple[str, str]] = []
    for label, block in audit["labels"].items():
        for name, attribute in block["attributes"].items():
            lead = f"{label}, by {words.group_label(name, name)}:" if len(audit["labels"]) > 1 else f"By {words.group_label(name, name)}:"
            order = dict.fromkeys(("equalized_odds", "auc", "mean", *attribute["gaps"]))
            gap, metric = next(((attribute["gaps"].get(m), m) for m in order if words.estimable(attribute["gaps"].get(m))), (None, ""))
            if gap is None:
                lines.append((lead, "no gap can be estimated; fewer than two groups have enough patients."))
                continue
            clear = " The interval includes 0: a difference is neither shown nor ruled out."
            if gap.get("lower") is not None and gap["lower"] > 0:
                clear = " The interval excludes 0."
                if (gap.get("p_holm") or 0.0) >= 1 - float(audit.get("provenance", {}).get("confidence", 0.95)):
                    clear = " The interval excludes 0, but the evidence is not strong once the number of tests is counted (adjusted p)."
            rates = rates_in_words(name, attribute) or means_in_words(name, attribute, block.get("unit"))
            shown = f" {rates[0].upper()}{rates[1:]}." if rates else ""
            lines.append((lead, f"{_gap_sentence(gap, name, metric, sure)}.{clear}{shown}"))
    return lines or ["No attribute was given, so nothing is said about groups."]


def _gaps_many(audit: Json) -> list[str | tuple[str, str]]:
    labels, what = single(audit), "classes" if _macro(audit) else "values" if audit.get("kind") == "value" else "labels"
    lines: list[str | tuple[str, str]] = []
    for name in dict.fromkeys(a for block in audit["labels"].values() for a in block["attributes"]):
        gapped = [b["attributes"][name]["gaps"] for b in labels.values() if name in b["attributes"]]
        usual = [m for m in ("auc", "equalized_odds", "mean") if any(m in g for g in gapped)]
        for metric in usual or list(dict.fromkeys(m for g in gapped for m in g))[:1]:
            gaps = {label: b["attributes"][name]["gaps"].get(metric) for label, b in labels.items() if name in b["attributes"]}
            known = {label: gap for label, gap in gaps.items() if gap is not None and words.estimable(gap)}
            clear = sorted((label for label, gap in known.items() if (gap.get("lower") or 0) > 0), key=lambda label: -known[label]["value"])
            lead = f"By {words.group_label(name, name)}, {words.gap_title(metric)}:"
            lines.append((lead, _gap_of_many(known, clear, len(gaps), what)))
    return lines or ["No attribute was given, so nothing is said about groups."]


def _gap_of_many(known: Mapping[str, Json], clear: Sequence[str], total: int, what: str) -> str:
    """One gap over many labels: for how many it can be told, where it is clear, and else the largest."""
    if not known:
        return f"cannot be estimated for any of the {total} {what}; fewer than two groups have enough patients."
    text = f"estimable for {len(known)} of {total} {what}; "
    if clear:
        named = words.listing([f"{label} {words.number(known[label]['value'])}" for label in clear])
        return f"{text}the interval excludes 0 for {len(clear)}: {named}."
    widest = max(known, key=lambda label: known[label]["value"])
    largest = f"{widest} {words.number(known[widest]['value'])}"
    return f"{text}every interval includes 0, so a difference is neither shown nor ruled out. Largest: {largest}."


def _certainty(audit: Json) -> list[str]:
    made, sure = audit.get("provenance", {}), confidence_of(audit)
    lines = [
        f"Ranges are {sure} intervals that count the {words.plural(audit['n_patients'], 'patient')}, not the images: several images of "
        "one patient do not pass for several patients. "
        "A gap whose interval excludes 0 is unlikely to be chance alone, though of many gaps some will be: adjusted p-values count the "
        "tests. A gap whose interval includes 0 is not thereby shown to be absent."
    ]
    lines += _design_effect(audit)
    family = made.get("family") or {}
    if family.get("tests"):
        lines.append(
            f"Adjusted p-values are corrected for {words.plural(family['tests'], 'test')} "
            f"({str(family.get('method', 'holm')).capitalize()}; {words.listing([words.gap_title(m) for m in family.get('metrics', [])])})."
        )
    return lines


def _design_effect(audit: Json) -> list[str]:
    """How much wider intervals are than if images were independent; nothing where every patient has one image."""
    parts = []
    for metric in ("accuracy", "auc"):
        effects = [(b["overall"].get("design_effect") or {}).get(metric) for b in audit["labels"].values()]
        wider = sorted(float(effect) ** 0.5 for effect in effects if effect is not None)
        if wider:
            middle = (wider[(len(wider) - 1) // 2] + wider[len(wider) // 2]) / 2
            spread = f" (median; {wider[0]:.1f} to {wider[-1]:.1f} over {len(wider)} labels)" if len(wider) > 1 else ""
            parts.append(f"{middle:.1f} times as wide for {'AUC' if metric == 'auc' else metric}{spread}")
    if not parts:
        return []
    return [
        f"Patients have {audit['n'] / audit['n_patients']:.1f} images on average. Because images of one patient are not independent, "
        f"overall intervals are {' and '.join(parts)} compared with taking every image for a patient of its own."
    ]


def _limits(audit: Json) -> list[str]:
    lines = []
    holes = tables.not_estimable(audit["labels"])
    if holes:
        groups = list(dict.fromkeys(f"{words.group_label(name, name)} = {words.group_label(name, key)}" for _, name, key, _, _ in holes))
        lines.append(
            f"Too few patients for at least one measure in {words.plural(len(groups), 'group')}: "
            f"{words.listing(groups)}. Such cells say 'not estimable'; they are not 0 and enter no gap."
        )
    missing = {name: a["n_missing"] for b in audit["labels"].values() for name, a in b["attributes"].items() if a.get("n_missing")}
    if missing:
        said = words.listing([f"{words.group_label(name, name)} in {words.plural(n, 'image')}" for name, n in missing.items()])
        lines.append(f"Not recorded: {said}. These are shown as rows of their own and enter no gap.")
    lines += _unseen(audit)
    unlabelled = {label: b["overall"]["n_unlabelled"] for label, b in audit["labels"].items() if b["overall"].get("n_unlabelled")}
    if unlabelled:
        lines.append(
            f"Unlabelled and therefore left out: {words.listing([f'{label} {words.count(n)}' for label, n in unlabelled.items()])}."
        )
    made = audit.get("provenance", {})
    if made.get("n_dropped"):
        lines.append(f"Left out because an attribute is not recorded: {words.plural(made['n_dropped'], 'image')}.")
    names = words.joint_names(audit["labels"])
    lines += [words.sentence(words.crossed(str(text), names)) for text in (*made.get("notes", []), *made.get("warnings", []))]
    lines.append(
        "Why groups differ: a gap may come from the model, from the labels, or from groups that differ in age, severity or equipment."
    )
    lines.append("Anything about patients, sites or devices that are not in these data.")
    return lines


def _unseen(audit: Json) -> list[str]:
    """Which gaps these data would not show, for the first attributes of a page of few labels."""
    if len(audit["labels"]) > 1:
        return []
    said = []
    for name, attribute in next(iter(audit["labels"].values()))["attributes"].items():
        power = attribute.get("power") or {}
        metric = next((m for m in ("auc", "equalized_odds", "tpr", "mean") if (power.get(m) or {}).get("detectable") is not None), None)
        if metric is not None:
            size = words.number(power[metric]["detectable"], 2)
            said.append(f"{size} by {words.group_label(name, name)} ({words.gap_title(metric)})")
    return [f"Differences smaller than {words.listing(said, 6)} would often go unseen with this many patients."] if said else []


def joined(parts: Sequence[str]) -> str:
    """Parts with middle dots between, empty ones left out."""
    return " · ".join(part for part in parts if part)
