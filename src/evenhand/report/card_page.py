"""The page of a data card (`evenhand card`): what stands out, who is in the set, labels by group, images, leaks, and what can be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evenhand.report import words
from evenhand.report.card_figures import age_picture, prevalence_picture, statistics_picture
from evenhand.report.card_tables import (
    association_part,
    expected_table,
    given_table,
    group_reading_table,
    label_reading_table,
    overview_table,
    prevalence_table,
    reading_table,
    size_table,
    statistics_table,
)
from evenhand.report.edit_pictures import pixel_picture
from evenhand.report.html import write_sections
from evenhand.report.page import Part, Picture, Section

Json = Mapping[str, Any]

LEAD = "What there is to know of these images and their patients before a model of disease is trained on them. None was trained here."
FOOT = (
    "This page describes one set of data: what it holds, and what a model could learn from it beside the disease. It says nothing about "
    "patients, sites or devices that are not in these data, and what it does not find may still be there."
)
FINDINGS = {
    "no_groups": "No groups",
    "leak": "Leak",
    "near_duplicates": "Near-duplicates",
    "shortcut": "Possible shortcut",
    "association": "Association",
    "readable": "Readable attribute",
    "statistics": "Label from grey levels",
    "missing": "Missing attribute",
    "small_group": "Small group",
    "counts": "Other counts",
}
NOTHING = (
    "Nothing stands out. This is not a finding that the set is free of shortcuts: with few patients a real one can go unseen. "
    "Read the intervals below."
)
OPEN_LABELS = 3
OPEN_ATTRIBUTES = 4
COLOURS = 64


def write_card_page(card: Json, pictures: Mapping[str, Sequence[Json]], path: Path) -> Path:
    """Write the page.

    Args:
        card: the dictionary of card.json (schema ``evenhand.card/1``).
        pictures: ``examples`` and ``pairs``, as of `evenhand.runs.card_pictures.card_pictures`; empty: no images stand on the page.
        path: the HTML file; replaced as a whole or not at all.
    """
    found = [
        _findings(card),
        _definitions(card),
        _sizes(card),
        _labels(card),
        _images(card, pictures),
        _leaks(card),
        _near(card, pictures),
        _reading(card),
        _made(card),
    ]
    return write_sections(
        path,
        title=f"Data card: {card['source'].get('title') or card['data']['name']}",
        eyebrow="Data card",
        about=card["data"]["name"],
        heading="What the set is",
        lead=LEAD,
        facts=_facts(card),
        sections=[section for section in found if section is not None],
        version=card["provenance"]["versions"].get("evenhand"),
        source="a prepared data set",
        foot=FOOT,
    )


def _facts(card: Json) -> list[tuple[str, str]]:
    data, source = card["data"], card["source"]
    image = data["image"]
    per = data["images_per_patient"]
    verified = {True: "checked against a real download", False: "as documented by the provider, not checked against a real download"}
    size = f"{image.get('size', '?')} pixels, {words.plural(int(image.get('channels', 1)), 'channel')}, {image.get('dtype', '')}"
    pairs = [
        ("source", source.get("title") or source.get("table") or source.get("kind") or ""),
        ("version", source.get("version") or ""),
        ("layout", verified.get(source.get("verified"), "")),
        ("licence", source.get("licence") or ""),
        ("link", source.get("link") or ""),
        ("cite", source.get("citation") or ""),
        ("images", f"{words.count(data['n'])} of {words.plural(data['n_patients'], 'patient')}"),
        ("images a patient", f"median {per['median']:g}, at most {words.count(per['most'])}"),
        ("splits", "; ".join(f"{name} {words.plural(own['n'], 'image')}" for name, own in card["splits"].items() if name != "all")),
        ("stored as", size),
        ("modality", str(data["modality"]).replace("_", " ")),
        ("task", {"multiclass": "multi-class", "multilabel": "multi-label"}.get(data["kind"], data["kind"])),
        ("labels", words.listing(data["classes"] or data["labels"], 8)),
        ("attributes", words.listing([words.group_label(name, name) for name in data["attributes"]], 8) or "none"),
        ("left out", _left_out(card)),
        ("data hash", str(data["hash"])[:16]),
    ]
    return [(name, str(value)) for name, value in pairs if value]


def _left_out(card: Json) -> str:
    names = {"missing_attribute": "missing attribute", "unreadable_image": "unreadable image", "definition": "not in the definition"}
    return ", ".join(f"{n} rows ({names.get(key, key)})" for key, n in card["excluded"].items() if n)


def _findings(card: Json) -> Section:
    names = words.joint_names({"": {"attributes": {name: {"groups": groups} for name, groups in card["attributes"].items()}}})
    found = [(FINDINGS.get(item["code"], item["code"]) + ".", words.crossed(item["text"], names)) for item in card["findings"]]
    part = Part(points=tuple(found)) if found else Part(text=NOTHING)
    hint = "Each is shown with its numbers below. None is a verdict: whether a model uses what it can read is for the audit to tell."
    return Section("findings", "What stands out", (part,), hint)


def _definitions(card: Json) -> Section | None:
    source, data = card["source"], card["data"]
    points = []
    if source.get("task"):
        points.append((f"Task {source['task']['name']}:", source["task"]["text"]))
    chosen = dict.fromkeys(part for name in data["attributes"] for part in name.split("*"))
    points += [(f"{name}:", source["attributes"][name]) for name in chosen if name in source.get("attributes", {})]
    points += [(f"{name}:", f"cut at {', '.join(f'{edge:g}' for edge in edges)}") for name, edges in data["bins"].items()]
    split = source.get("split") or {}
    if split.get("text"):
        points.append(("Split:", f"{split['text']}" + (f" ({split['rule']} was asked for)" if split.get("rule") else "")))
    points += [(f"Option {name}:", str(value)) for name, value in (source.get("options") or {}).items()]
    parts = [Part(points=tuple(points))] if points else []
    if source.get("expected"):
        parts.append(Part(heading="Counts", table=expected_table(source["expected"]), classes="narrow"))
    if source.get("traps"):
        parts.append(Part(heading="Known of this set", points=tuple(source["traps"])))
    if card["notes"]:
        parts.append(
            Part(fold=f"Notes of the preparation ({len(card['notes'])})", points=tuple(words.sentence(note) for note in card["notes"]))
        )
    return Section("definitions", "Definitions and counts", tuple(parts)) if parts else None


def _sizes(card: Json) -> Section:
    least = card["provenance"]["min_cell"]
    note = "Images over patients, by group and split."
    if least > 1:
        note += f" Counts of fewer than {least} patients are shown as <{least}; withheld: they would follow from such a count."
    parts = [Part(text=note)]
    for name, groups in card["attributes"].items():
        table = size_table(name, groups)
        parts.append(_folded(words.group_label(name, name), Part(table=table), len(table.rows) > 14))
    pictures = tuple(age_picture(name, found, f"ages-{k}") for k, (name, found) in enumerate(card["ages"].items()))
    if pictures:
        parts.append(Part(figures=pictures))
    if not card["attributes"]:
        parts.append(Part(text="No attribute was prepared, so that nothing can be said by group."))
        parts.append(Part(table=size_table("", {"(everyone)": card["splits"]})))
    return Section("sizes", "Who is in it", tuple(parts))


def _folded(title: str, part: Part, fold: bool) -> Part:
    return Part(fold=title, parts=(part,)) if fold else Part(heading=title, parts=(part,))


def _labels(card: Json) -> Section:
    labels = card["labels"]
    parts: list[Part] = []
    if card["attributes"] and len(labels) > OPEN_LABELS:
        text = (
            "Of every label and attribute the group whose odds of the label differ the most surely from those of the others, where a model "
            "learns. ▲: p below 0.05 after Holm's correction over all of them."
        )
        parts.append(Part(text=text, table=overview_table(card), caption="Odds ratio (95% interval) and group", classes="narrow"))
    for k, (label, block) in enumerate(labels.items()):
        own = [_label_part(f"label-{k}-{j}", label, name, found, card) for j, (name, found) in enumerate(block["attributes"].items())]
        if not own:
            own = [Part(table=_plain_prevalence(block))]
        heading = f"{label}" + (f" (unlabelled: {words.count(n) if isinstance(n, int) else n})" if (n := block["n_unlabelled"]) else "")
        parts.append(_folded(heading, Part(parts=tuple(own)), len(labels) > OPEN_LABELS))
    hint = (
        "Share of images with the label, with 95% intervals that count patients. A label that goes with a group in training, and a "
        "group that "
        "can be read from the images, make a shortcut."
    )
    return Section("labels", "Labels by group", tuple(parts), hint)


def _plain_prevalence(block: Json) -> Any:
    return prevalence_table("", {"(everyone)": block["everyone"]})


def _label_part(key: str, label: str, attribute: str, found: Json, card: Json) -> Part:
    figure = prevalence_picture(label, attribute, found["prevalence"], key)
    return Part(
        heading=f"By {words.group_label(attribute, attribute)}", figures=(figure,), parts=association_part(attribute, found, card["splits"])
    )


def _images(card: Json, pictures: Mapping[str, Sequence[Json]]) -> Section:
    parts = []
    text = (
        "Mean grey level, contrast (standard deviation of grey levels) and sharpness (mean step between neighbouring pixels) of the stored "
        "images, of 255 grey levels. Groups that differ here may have been imaged by other devices or settings, which a model can read."
    )
    for k, (name, groups) in enumerate(card["statistics"]["attributes"].items()):
        figure = statistics_picture(name, groups, card["statistics"]["everyone"], f"statistics-{k}")
        parts.append(_folded(words.group_label(name, name), Part(figures=(figure,)), k >= OPEN_ATTRIBUTES))
    if not parts:
        parts.append(Part(table=statistics_table("", {}, card["statistics"]["everyone"]), classes="narrow"))
    parts.insert(0, Part(text=text))
    strips = pictures.get("examples", ())
    if strips:
        parts.append(Part(heading="Examples", text=EXAMPLES, parts=tuple(_strips(strips))))
    elif not card["provenance"]["images"]:
        parts.append(Part(text="Images were left out of this page on request."))
    return Section("images", "The images", tuple(parts))


EXAMPLES = "Drawn at random with the card's seed from training images of different patients; groups of few patients are left out."


def _strips(strips: Sequence[Json]) -> list[Part]:
    titles = dict.fromkeys((item["label"], item["attribute"]) for item in strips)
    parts = []
    for k, (label, attribute) in enumerate(titles):
        own = [item for item in strips if (item["label"], item["attribute"]) == (label, attribute)]
        figures = tuple(_strip_picture(item) for item in own)
        title = f"{label} by {words.group_label(attribute, attribute)}" if attribute else label
        parts.append(Part(fold=title, figures=figures) if k else Part(heading=title, figures=figures))
    return parts


def _strip_picture(item: Json) -> Picture:
    said = f"{item['label']}: {'yes' if item['value'] else 'no'}"
    title = f"{item['group']}, {said}" if item["group"] else said
    return pixel_picture(title, item["pixels"], "", 430, COLOURS)


def _leaks(card: Json) -> Section:
    found = card["leaks"]
    points = (
        ("Patients in more than one split:", words.count(found["patients"])),
        ("Images of equal content in more than one split:", words.count(found["images"])),
        ("Images of equal content that occur more than once:", words.count(found["equal_images"])),
        ("of these under different patients:", words.count(found["equal_across_patients"])),
    )
    rows = "; ".join(f"rows {', '.join(map(str, own))}" for own in found["rows"])
    parts = [Part(text="Content is compared by a hash of the stored pixels.", points=points)]
    if rows:
        parts.append(Part(fold="Rows of table.csv with equal content in more than one split", text=rows))
    return Section("leaks", "Leaks", tuple(parts))


def _near(card: Json, pictures: Mapping[str, Sequence[Json]]) -> Section:
    found = card["near_duplicates"]
    rule = found["rule"]
    text = (
        f"Two images are called nearly equal where at most {rule['most_bits']} of the 64 bits of a perceptual hash differ and the "
        "cosine of their "
        f"255 lowest frequencies, standardised over the set, is at least {rule['least_cosine']:g}. The rule finds copies that were "
        "saved, scaled, "
        "brightened or slightly cropped anew; mirrored and turned copies it does not find."
    )
    chance = "It could not be tried on random pairs, as there are too few patients."
    if found["random_pairs"]:
        hits, n = found["random_hits"], found["random_pairs"]
        chance = (
            f"Of {words.count(n)} random pairs of different patients {words.count(hits) if hits else 'none'} met it: a share of at most "
            f"{found['random_upper']:.1g} (95%)"
        )
        chance += ", real near-duplicates among them included." if hits else "."
        chance += f" Among all pairs of the set that would be {words.count(round(found['expected_by_chance']))}." if hits else ""
    points = (
        (
            "Pairs across splits:",
            f"{words.count(found['across_splits'])}, of different patients {words.count(found['across_splits_and_patients'])}",
        ),
        ("Pairs of different patients in one split:", words.count(found["across_patients"])),
        ("Pairs of one patient in one split:", words.count(found["within"])),
    )
    parts = [Part(text=f"{text} {chance}", points=points)]
    if not found["complete"]:
        parts.append(Part(text="The search ended early: so many images are nearly equal that the counts above are lower limits."))
    shown = pictures.get("pairs", ())
    figures = [_pair_picture(item, shown[k]["pixels"]) for k, item in enumerate(found["pairs"]) if k < len(shown)]
    if figures:
        parts.append(Part(heading="The closest pairs, those across splits first", figures=tuple(figures)))
    elif found["pairs"]:
        parts.append(Part(heading="The closest pairs", points=tuple(_pair_words(item) for item in found["pairs"])))
    return Section("near", "Near-duplicates", tuple(parts))


def _pair_words(item: Json) -> str:
    a, b = item["rows"]
    whose = "one patient" if item["same_patient"] else "different patients"
    return f"Rows {a} ({item['splits'][0]}) and {b} ({item['splits'][1]}), {whose}, cosine {item['cosine']:.2f}, {item['bits']} bits differ"


def _pair_picture(item: Json, pixels: Any) -> Picture:
    return pixel_picture(f"{item['splits'][0]} and {item['splits'][1]}", pixels, f"{_pair_words(item)}.", 430, COLOURS)


def _reading(card: Json) -> Section | None:
    probe = card["probe"]
    if probe is None:
        return None
    text = (
        f"Linear readers on {words.plural(probe['n'], 'image')} outside the test split, cross-validated by patient; each is then "
        "fitted to all of "
        f"these and tried once on {words.plural(probe['n_test'], 'test image')}. AUC of one group against the rest, of more than two "
        "groups their mean: "
        "0.5 is a coin toss. Given the label: pairs of images of equal label are compared, so that what the label shows does not count."
    )
    if probe["sampled"]:
        text += " Patients were drawn at random, as the set is larger than that."
    parts = [Part(text=text)]
    if probe["attributes"]:
        encoder = probe["encoder"]
        caption = f"Attributes read with {encoder['name']} ({encoder['dim']} features), and with grey level, contrast and sharpness alone"
        parts.append(Part(table=reading_table(probe), caption=caption))
        parts.append(
            Part(
                fold="Given each label, within each of its values, and each group",
                parts=(
                    Part(table=given_table(probe), caption="Cross-validated AUC of the encoder's features"),
                    *(Part(table=table) for table in [group_reading_table(probe)] if table.rows),
                ),
            )
        )
    parts.append(
        Part(
            heading="Labels without looking at the picture",
            table=label_reading_table(probe),
            text=(
                "How well each label is told by grey level, contrast and sharpness alone, and by each attribute alone: what a "
                "shortcut is worth."
            ),
        )
    )
    return Section("reading", "What can be read", tuple(parts))


def _made(card: Json) -> Section:
    made = card["provenance"]
    points = (
        "Shares: Wilson's interval with patients as clusters. Odds ratios: the patient-clustered interval on the logarithmic scale, "
        "that of a "
        "logistic regression on the group with cluster-robust errors; half a patient is added to each cell where one is empty.",
        "Means: Student's interval with patients as clusters. AUC: intervals on the logit scale from a patient bootstrap.",
        f"Chance: the same reader on groups given out anew among patients, {made['permutations']} times; the middle 95%.",
        f"Seed {made['seed']}. Versions: {', '.join(f'{name} {version}' for name, version in made['versions'].items())}.",
    )
    return Section("made", "How every number was made", (Part(points=points),))
