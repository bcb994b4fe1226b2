"""The pages about an edit: what it is (`evenhand edit inspect`), and what it hides (`evenhand edit measure`).

Both are one self-contained file, readable offline. Images of the data set stand on a page only where they were asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evenhand.report import words
from evenhand.report.html import write_sections
from evenhand.report.leakage_table import EXPLAINED, doubt_words, leakage_table, pixel_table, within_table
from evenhand.report.page import Part, Picture, Section
from evenhand.report.tables import Cell, Row, Table

Json = Mapping[str, Any]

FAMILY_WORDS = {
    "pixel": "a pattern added to every image, one number a pixel",
    "lowres": "a coarse pattern, enlarged and added to every image",
    "dct": "a pattern of low frequencies added to every image",
    "border": "a pattern added to the frame of every image",
    "tone": "a curve that every grey value goes through",
    "spectral": "a filter that strengthens or weakens spatial frequencies",
    "residual": "a small convolutional network whose output is added to the image",
}
VISIBILITY = (
    ("psnr", "PSNR", "{:.1f} dB"),
    ("ssim", "SSIM", "{:.4f}"),
    ("max_grey", "largest change", "{:.1f} grey levels"),
    ("mean_abs_grey", "mean change", "{:.2f} grey levels"),
    ("l2", "Euclidean norm of the change", "{:.2f}"),
)
"""Name in the record, name on the page, how the number is written. Grey levels are of 255."""


def visibility_words(record: Json) -> list[tuple[str, str]]:
    """(name, number) of every measure of visibility in a record, and the number of images.

    Example:
        >>> visibility_words({"psnr": 40.0, "ssim": 0.99, "max_grey": 3.0, "n": 20})[0]
        ('PSNR', '40.0 dB')
    """
    if record.get("max_grey") == 0:
        return [("change", "none, to the last bit"), ("images", words.count(record["n"]))]
    known = [(title, form.format(record[key])) for key, title, form in VISIBILITY if record.get(key) is not None]
    return [*known, ("images", words.count(record["n"]))] if record.get("n") else known


def edit_facts(record: Json) -> list[tuple[str, str]]:
    """(name, value) of what an edit is: kind, grid, parameters, bounds, and what it was trained on."""
    kinds = str(record["kind"]).split("+")
    c, h, w = record["grid"]
    facts = record.get("facts") or {}
    pairs = [
        ("kind", str(record["kind"])),
        ("what it does", "; then ".join(FAMILY_WORDS.get(kind, kind) for kind in record.get("parts") or kinds)),
        ("grid", f"{c} x {h} x {w} (channels, height, width), values in [0, 1]"),
        ("parameters", words.count(record["n_parameters"])),
        ("bounds", bounds_words(record["bounds"])),
        ("edit", str(record["hash"])[:16]),
        ("trained by", str(facts.get("method", ""))),
        ("against", ", ".join(facts.get("attributes") or ())),
        ("encoder", str(facts.get("encoder") or "")[:16]),
        ("data", str(facts.get("data") or "")[:16]),
        ("history", history_words(record.get("history") or {})),
    ]
    return [(name, value) for name, value in pairs if value]


def history_words(history: Json) -> str:
    """How the training went, in a few words: how many records, and the first and last objective that was kept."""
    if not history.get("n"):
        return ""
    found = [f"{words.plural(history['n'], 'record')}"]
    first, last = history.get("first") or {}, history.get("last") or {}
    both = [name for name in first if name in last and isinstance(first[name], float) and isinstance(last[name], float)]
    found += [f"{name} {first[name]:.4g} → {last[name]:.4g}" for name in both[:3]]
    return ", ".join(found)


def bounds_words(bounds: Json) -> str:
    """What edited images must keep to, in words.

    Example:
        >>> bounds_words({"clamp": True, "linf": 0.02, "l2": None, "min_ssim": None, "rounding": "8bit"})
        'pixels stay in [0, 1]; no pixel changes by more than 5.1 grey levels; rounded to 8 bits'
    """
    said = ["pixels stay in [0, 1]" if bounds.get("clamp") else "pixels may leave [0, 1]"]
    if bounds.get("linf") is not None:
        said.append(f"no pixel changes by more than {255 * bounds['linf']:.1f} grey levels")
    if bounds.get("l2") is not None:
        said.append(f"norm of the change at most {bounds['l2']:g}")
    if bounds.get("min_ssim") is not None:
        said.append(f"SSIM at least {bounds['min_ssim']:g}")
    if bounds.get("rounding", "none") != "none":
        said.append(f"rounded to {str(bounds['rounding']).removesuffix('bit')} bits")
    return "; ".join(said)


def write_inspect_page(record: Json, pictures: Mapping[str, Sequence[Picture]], path: Path) -> Path:
    """Write inspect.html.

    Args:
        record: the dictionary of inspect.json.
        pictures: of the edit itself ("edit") and of its effect on images ("images"); either may be empty.
        path: the HTML file.
    """
    seen = record.get("visibility")
    otherwise = PICTURE_BELOW if pictures.get("images") else NO_PICTURE
    sections = [Section("edit", "The edit as a picture", (_figures(pictures.get("edit", ()), otherwise),))]
    if seen:
        told = Table(("measure", "value"), tuple(Row(name, (Cell(value),)) for name, value in visibility_words(seen)))
        note = f"Edited images of {record['data']['name']} against the same images before; the largest change is over all of them."
        sections.append(Section("visible", "How visible it is", (Part(table=told, text=note),)))
    if pictures.get("images"):
        sections.append(Section("images", "On images", (_figures(pictures["images"], ""),)))
    return _write(path, "What an image edit is", "The edit", edit_facts(record), sections, record, NO_CLAIM)


NO_PICTURE = "What this edit does depends on the image: give data= for a picture of where it changes images."
PICTURE_BELOW = "What this edit does depends on the image: see below."
NO_CLAIM = (
    "This page shows what the edit does to images. Whether it hides anything is another question: "
    "evenhand edit measure answers it for one encoder, one data set and one finding at a time."
)


NOT_MEASURED = "Not measured here: no validation rows, or method.measure=false. evenhand edit measure does so on test rows."


def _figures(pictures: Sequence[Picture], otherwise: str) -> Part:
    return Part(figures=tuple(pictures)) if pictures else Part(text=otherwise)


def _write(
    path: Path, title: str, heading: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section], record: Json, lead: str
) -> Path:
    return write_sections(
        path, title=title, eyebrow="Image edit", about=str((record.get("data") or {}).get("name") or ""), heading=heading, lead=lead,
        facts=facts, sections=sections, version=(record.get("versions") or {}).get("evenhand"), source="a stored edit",
    )


def leakage_sections(found: Json) -> list[Section]:
    """Fooled and hidden beside the controls, one section an attribute, then how visible edit and noise are."""
    sections = []
    for k, (attribute, record) in enumerate(found["attributes"].items()):
        parts = [Part(text=EXPLAINED if k == 0 else "", table=leakage_table(record), caption="Intervals are 95% (patient bootstrap)")]
        if record.get("doubt"):
            parts.append(Part(text=doubt_words(record)))
        inner = within_table(record)
        if inner.rows:
            parts.append(Part(fold="Within each value of the label", table=inner))
        pixels = (found.get("pixels") or {}).get(attribute)
        if pixels:
            text = "What an image classifier reads of it that was trained afresh on the pixels: the edit may hide from one encoder only."
            text = f"{text} {doubt_words(pixels)}" if pixels.get("doubt") else text
            parts.append(Part(heading="From pixels", text=text, table=pixel_table(pixels)))
        hint = f"Measured on {words.plural(found['n'], 'image')} of {words.plural(found['n_patients'], 'patient')}; "
        hint += f"fresh heads were fitted on {words.plural(found['n_train'], 'image')}."
        sections.append(Section(f"leakage-{k}", f"What still tells {attribute}", tuple(parts), hint))
    seen = found.get("visibility") or {}
    names = [name for name in ("edit", "noise") if seen.get(name)]
    if names:
        values = [dict(visibility_words(seen[name])) for name in names]
        rows = [Row(title, tuple(Cell(value.get(title, "–")) for value in values)) for title in values[0]]
        sections.append(Section("visible", "How visible it is", (Part(table=Table(("measure", *names), tuple(rows))),)))
    return sections


def transfer_section(lines: Sequence[str]) -> Section:
    """In what a measurement differs from the edit's training."""
    return Section("transfer", "Measured elsewhere than it was trained", (Part(text="; ".join(lines) + "."),))


def cost_section(search: Json) -> Section:
    """How many images a search and the rest of its run embedded, in how many requests, and what that costs."""
    price, each, beside = float(search["price_per_1000"]), float(search["price_per_request"]), search["beside"]
    what = {"plain": "unedited, for heads", "edited": "under the edit, for this page", "noise": "under noise, for the control"}
    counts = [("the search", search.get("n_sent", search["images"]), search["requests"], f"at most {words.count(search['budget'])}")]
    counts += [(name, beside[key], beside["requests"][key], "beside the budget") for key, name in what.items() if beside[key]]
    counts.append(("together", sum(n for _, n, _, _ in counts), sum(asked for _, _, asked, _ in counts), ""))
    rows = []
    for name, n, asked, limit in counts:
        cost = Cell(f"{n * price / 1000 + asked * each:.2f}" if price or each else "–")
        rows.append(Row(name, (Cell(words.count(n)), Cell(words.count(asked)), cost, Cell(limit))))
    note = "Beside the budget, the most that can have been sent: images that were answered before are not sent again."
    prices = [f"{price:g} for 1000 images"] if price else []
    prices += [f"{each:g} for a request"] if each else []
    if prices:
        note += f" Cost at {' and '.join(prices)}."
    table = Table(("for", "images", "requests", "cost", "limit"), tuple(rows))
    return Section("images-sent", "Images embedded", (Part(table=table, text=note),))


def write_measure_page(record: Json, found: Json | None, path: Path, more: Sequence[Section] = ()) -> Path:
    """Write the page of a measured edit.

    Args:
        record: the edit's own record, as of `write_inspect_page`, with ``data.name`` and ``versions``.
        found: what `measure_leakage` gives, None where it was not measured.
        path: the HTML file.
        more: further sections.
    """
    lead = "What follows holds for this encoder, these data and this finding; another encoder may read what this one does not."
    sections = [Section("leakage", "What it hides", (Part(text=NOT_MEASURED),))] if found is None else leakage_sections(found)
    return _write(path, "What an image edit hides", "The edit", edit_facts(record), [*sections, *more], record, lead)
