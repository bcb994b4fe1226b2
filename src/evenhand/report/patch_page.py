"""The page of a patch (`evenhand patch inspect`): which layers it changes, how much, how large it is, and where it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evenhand.report import words
from evenhand.report.drawing import MUTED, PALE, Axes, Drawing, ticks
from evenhand.report.figures import COLOURS, label_width, short
from evenhand.report.html import write_sections
from evenhand.report.page import Part, Picture, Section, picture
from evenhand.report.tables import Cell, Row, Table

Json = Mapping[str, Any]

LEAD = (
    "A patch changes the entries counted here and no others; taking it off gives the classifier as it was delivered, bit for bit. "
    "What the change is worth is another question: the report of evenhand patch make compares both on the same patients."
)
NO_SIZES = "The classifier was not given, so the size of changes is not told: give it with model=."
HISTORY = ("method", "seed", "source", "data", "attributes", "written", "package")
"""Entries of a patch's history that the page names, in this order."""
BLUE, ORANGE = COLOURS[0], COLOURS[1]


def size_words(n: float) -> str:
    """A number of bytes as people say it.

    Example:
        >>> size_words(512), size_words(2_345_678)
        ('512 B', '2.3 MB')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= scale:
            return f"{n / scale:.1f} {unit}"
    return f"{n:.0f} B"


def percent(share: float) -> str:
    """A share as a percentage with three figures; one that is not 0 is never shown as 0.

    Example:
        >>> percent(0.5), percent(0.01234), percent(0.0000012), percent(0.0), percent(1.0)
        ('50.0%', '1.23%', '0.00012%', '0%', '100%')
    """
    if share in (0.0, 1.0):
        return f"{100 * share:.0f}%"
    value = 100 * share
    return f"{value:.1f}%" if value >= 10 else f"{value:.2f}%" if value >= 0.1 else f"{value:.2g}%"


def patch_words(record: Json) -> list[tuple[str, str]]:
    """(name, value) of what a patch is: what it changes, its size, and the models it leads from and to."""
    history = record.get("history") or {}
    changes = f"{words.count(record['changed'])} of {words.count(record['n'])} entries ({percent(record['share'])})"
    touched = [item for item in record["layers"] if item["changed"]]
    size = f"{size_words(record['bytes'])}, {percent(record['share_of_bytes'])} of the model's {size_words(record['model_bytes'])}"
    model = record.get("model") or {}
    pairs = [
        ("changes", f"{changes} in {len(touched)} of {words.plural(len(record['layers']), 'layer')}"),
        ("size", size),
        ("belongs to", f"the model sha256 {record['base_hash']}"),
        ("gives", f"the model sha256 {record['result_hash']}"),
        ("given here", f"{model['name']}, {model['state']}" if model else ""),
        ("data", str(record.get("data_hash") or "")[:16]),
        ("thresholds", ", ".join(f"{name} {value:.4g}" for name, value in (history.get("thresholds") or {}).items())),
        *((name, _plain(history.get(name))) for name in HISTORY),
        ("file", f"sha256 {record['sha256']}" if record.get("sha256") else ""),
    ]
    return [(name, value) for name, value in pairs if value]


def _plain(value: Any) -> str:
    """An entry of the history in a few words: a method's options by its name."""
    if isinstance(value, Mapping):
        return str(value.get("name") or "")
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def layers_picture(record: Json, key: str = "patch-layers") -> Picture:
    """One row a layer, from the input to the head: the share of its entries that changes, and by how much."""
    layers = record["layers"]
    sized = any(item["relative"] is not None for item in layers)
    names = [str(item["name"]) for item in layers]
    row, left = max(8.0, min(15.0, 900 / max(len(names), 1))) / 72, label_width(names)
    height, wide = row * len(names), 2.7
    sheet = Drawing(left + wide * (2 if sized else 1) + (0.55 if sized else 0.25), height + 0.75)
    axes = Axes(sheet, left, 0.12, wide, height, (0.0, 100.0), (0.0, float(len(names))))
    axes.x_axis([(x, f"{x:g}") for x in (0, 25, 50, 75, 100)], "entries that change, %", grid=True)
    panels = [(axes, [100 * item["share"] for item in layers], BLUE)]
    if sized:
        moved = [100 * (item["relative"] or 0.0) for item in layers]
        limit = max(moved) or 1.0
        second = Axes(sheet, left + wide + 0.3, 0.12, wide, height, (0.0, 1.05 * limit), (0.0, float(len(names))))
        second.x_axis(ticks(0.0, 1.05 * limit, 5), "size of the change, % of the weights' norm", grid=True)
        panels.append((second, moved, ORANGE))
    for k, item in enumerate(layers):
        middle = 72 * (0.12 + row * (k + 0.5))
        sheet.text((72 * left - 5, middle + 3), short(names[k], 40), size=min(8.5, 72 * row), anchor="end", colour=MUTED)
        for place, values, colour in panels:
            start, end = place.at(0.0, 0)[0], place.at(values[k], 0)[0]
            half = 72 * row * 0.34
            if item["changed"]:
                end = max(end, start + 1.2)
                sheet.area([(start, middle - half), (end, middle - half), (end, middle + half), (start, middle + half)], colour)
            else:
                sheet.line([(start, middle), (start + 5, middle)], PALE, 2.0)
    said = "From the input (top) to the head. Left: the share of a layer's entries that changes."
    said += " Right: the norm of the change over the norm of the layer before it." if sized else ""
    said += " A layer without a bar stays as it is, to the last bit."
    return picture("What changes where", sheet.svg(said, key, "What changes where"), said, layer_table(record))


def layer_table(record: Json, rows: str = "layers") -> Table:
    """Changed entries of every layer (or of every tensor): number, share, mean and largest change, relative size."""
    columns = (rows.removesuffix("s"), "entries", "changed", "share", "mean change", "largest change", "change / weights")
    return Table(columns, tuple(_change_row(item) for item in record[rows]))


def _change_row(item: Json) -> Row:
    sizes = [("–" if item[name] is None else f"{item[name]:.3g}") for name in ("mean", "largest")]
    relative = "–" if item["relative"] is None else percent(item["relative"])
    counts = (words.count(item["n"]), words.count(item["changed"]), percent(item["share"]))
    return Row(str(item["name"]), tuple(Cell(text) for text in (*counts, *sizes, relative)))


def size_table(record: Json) -> Table:
    """The size of this patch, and of patches that change other shares of this network."""
    rows = [Row("this patch", (Cell(size_words(record["bytes"])), Cell(percent(record["share_of_bytes"]))))]
    for item in record["at_rates"]:
        rows.append(Row(f"rate {100 * item['rate']:g}%", (Cell(size_words(item["bytes"])), Cell(percent(item["share_of_bytes"])))))
    rows.append(Row("the whole model", (Cell(size_words(record["model_bytes"])), Cell("100%"))))
    return Table(("", "size", "of the model"), tuple(rows))


def patch_sections(record: Json) -> list[Section]:
    """What changes where, sizes, and every tensor; for this page, and for the page of what made the patch."""
    sized = any(item["relative"] is not None for item in record["layers"])
    note = "A rate is the share of every tensor but the head that changes; the head changes as a whole. Sizes at rates are computed."
    changed = {"tensors": [item for item in record["tensors"] if item["changed"]]}
    n = len(changed["tensors"])
    return [
        Section("layers", "What changes where", (Part(text="" if sized else NO_SIZES, figures=(layers_picture(record),)),)),
        Section("size", "How large it is", (Part(table=size_table(record), text=note),)),
        Section("tensors", "Every tensor that changes", (Part(fold=words.plural(n, "tensor"), table=layer_table(changed, "tensors")),)),
    ]


def write_patch_page(record: Json, path: Path, more: Sequence[Section] = ()) -> Path:
    """Write inspect.html.

    Args:
        record: the dictionary of inspect.json (schema ``evenhand.patch_inspect/1``).
        path: the HTML file.
        more: further sections.
    """
    sections = [*patch_sections(record), *more]
    return write_sections(
        path, title="What a patch changes", eyebrow="Patch", about=_plain((record.get("history") or {}).get("method")),
        heading="The patch", lead=LEAD, facts=patch_words(record), sections=sections,
        version=(record.get("versions") or {}).get("evenhand"), source="a patch file",
    )
