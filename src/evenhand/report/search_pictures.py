"""Pictures of a search: the masks that were tried, the chosen one over the network, values over time, and a Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evenhand.report.drawing import MUTED, PALE, RULE, Axes, Drawing, ticks
from evenhand.report.figures import COLOURS, GREY, forest, label_width, legend_entry, short
from evenhand.report.figures import Point as Estimate
from evenhand.report.page import Picture, picture
from evenhand.report.tables import Cell, Row, Table

Json = Mapping[str, Any]

MOST_TRIALS = 60
"""Masks shown side by side, the best ones."""
RULES = {
    "utopia": "nearest to the best of both objectives, scaled over the front",
    "within": "the best second objective among those near the best first one",
}
BLUE, ORANGE = COLOURS[0], COLOURS[1]


def usable(record: Json) -> list[Json]:
    """The trials that may win, best first."""
    sign = -1 if record["objectives"][0]["maximised"] else 1
    found = [trial for trial in record["trials"] if trial["state"] == "complete" and not trial["collapsed"] and trial["values"]]
    return sorted(found, key=lambda trial: (sign * trial["values"][0], trial["number"]))


def mask_pictures(record: Json) -> list[Picture]:
    """One column a trial, best first; one row a part: filled where it was trained."""
    trials = usable(record)[:MOST_TRIALS]
    names = [str(part["name"]) for part in record["space"]["parts"]]
    if not trials or not names:
        return []
    cell, left = max(5.0, min(11.0, 420 / len(trials))), 72 * label_width(names)
    row = max(5.0, min(11.0, 560 / len(names)))
    sheet = Drawing((left + cell * len(trials) + 10) / 72, (row * len(names) + 44) / 72)
    for k, name in enumerate(names):
        if row >= 8 or k % 2 == 0:
            sheet.text((left - 4, 6 + row * (k + 0.5) + 3), short(name, 44), size=min(8.5, row + 2), anchor="end")
        boxes = [j for j, trial in enumerate(trials) if trial["params"].get(name)]
        sheet.area(_box(left, 6 + row * k, cell * len(trials), row - 1), PALE)
        for j in boxes:
            sheet.area(_box(left + cell * j, 6 + row * k, cell - 1, row - 1), ORANGE if trials[j]["number"] == record["best"] else BLUE)
    bottom = 6 + row * len(names)
    step = max(1, round(26 / cell))
    for j in range(0, len(trials), step):
        sheet.text((left + cell * (j + 0.5), bottom + 12), str(trials[j]["number"]), size=8, colour=MUTED, anchor="middle")
    sheet.text((left + cell * len(trials) / 2, bottom + 27), "trial, best first", colour=MUTED, anchor="middle")
    said = "Filled: the part was trained; orange: the chosen mask. Parts run from the input (top) to the head, which is always trained."
    left_out = len(usable(record)) - len(trials)
    said += f" The {left_out} worse masks are not shown." if left_out else ""
    return [picture("Masks that were tried", sheet.svg(said, "search-masks", "Masks that were tried"), said)]


def chosen_picture(record: Json) -> list[Picture]:
    """The chosen mask over the network: one column a block or stage, one row a role."""
    parts = {str(part["name"]): part for part in record["mask"]["parts"]}
    where = [part for part in record["space"]["parts"] if part["name"] in parts]
    if not where:
        return []
    roles = list(dict.fromkeys(str(part["role"]) for part in where))
    depths = sorted({int(part["depth"]) for part in where})
    width, height, left = max(20.0, min(44.0, 460 / len(depths))), 22.0, 72 * label_width(roles)
    sheet = Drawing((left + width * (len(depths) + 2) + 12) / 72, (height * len(roles) + 40) / 72)
    for k, role in enumerate(roles):
        sheet.text((left - 6, 8 + height * (k + 0.5) + 3), role, anchor="end")
    for part in where:
        chosen = parts[str(part["name"])]
        x, y = left + width * (1 + depths.index(int(part["depth"]))), 8 + height * roles.index(str(part["role"]))
        sheet.area(_box(x, y, width - 3, height - 3), ORANGE if chosen["train"] else PALE, RULE)
        sign = f"r{chosen['lora_rank']}" if chosen["lora_rank"] else f"×{chosen['lr_scale']:g}" if chosen["lr_scale"] != 1 else ""
        if sign:
            sheet.text((x + width / 2 - 1.5, y + height / 2 + 2), sign, size=8, anchor="middle")
    whole = height * len(roles)
    sheet.area(_box(left, 8, width - 3, whole - 3), PALE, RULE)
    sheet.text((left + width / 2 - 2, 8 + whole / 2), "input", size=8, anchor="middle", style="up" if len(roles) > 1 else "")
    end = left + width * (1 + len(depths))
    sheet.area(_box(end, 8, width - 3, whole - 3), ORANGE, RULE)
    sheet.text((end + width / 2 - 2, 8 + whole / 2), "head", size=8, anchor="middle", style="up" if len(roles) > 1 else "")
    for j, depth in enumerate(depths):
        sheet.text((left + width * (1.5 + j) - 1.5, 8 + whole + 11), str(depth), size=8.5, colour=MUTED, anchor="middle")
    sheet.text((left + width * (1 + len(depths) / 2), 8 + whole + 25), "block or stage, from the input", colour=MUTED, anchor="middle")
    share = record["mask"].get("share")
    told = "" if share is None else f" {100 * share:.1f}% of all parameters are trained."
    said = f"Orange parts are trained, pale ones keep the weights they came with.{told}"
    if any(part["lora_rank"] for part in parts.values()):
        said += " r: rank of a LoRA update."
    return [picture("The chosen mask", sheet.svg(said, "search-chosen", "The chosen mask"), said)]


def history_picture(record: Json) -> list[Picture]:
    """The objective of every trial in their order, and the best so far."""
    first = record["objectives"][0]
    trials = [trial for trial in record["trials"] if trial["values"] or trial["reported"]]
    points = [(trial, trial["values"][0] if trial["values"] else trial["reported"][-1][1]) for trial in trials]
    shown = [value for trial, value in points if trial["state"] == "complete" and not trial["collapsed"]]
    if not shown:
        return []
    low, high = min(shown), max(shown)
    pad = 0.08 * (high - low) or 0.02
    sheet = Drawing(5.6, 3.4)
    axes = Axes(sheet, 0.75, 0.3, 4.7, 2.5, (-0.5, max(trial["number"] for trial in trials) + 0.5), (low - pad, high + pad))
    axes.x_axis([(x, words) for x, words in ticks(*axes.x, 8) if float(x).is_integer()], "trial", grid=True)
    axes.y_axis(ticks(*axes.y, 6), first["name"], grid=True)
    better = max if first["maximised"] else min
    xs: list[float] = []
    ys: list[float] = []
    for trial, value in points:
        looks = {"complete": ("o", BLUE), "pruned": ("v", GREY)}.get(trial["state"], ("X", GREY))
        shape, colour = ("X", GREY) if trial["collapsed"] else looks
        axes.mark(trial["number"], min(max(value, axes.y[0]), axes.y[1]), shape, 6.0, colour)
        if trial["state"] == "complete" and not trial["collapsed"]:
            xs.append(float(trial["number"]))
            ys.append(better([value, *ys[-1:]]))
    axes.line([x for pair in zip(xs, [*xs[1:], axes.x[1]], strict=True) for x in pair], [y for y in ys for _ in range(2)], ORANGE, 1.8)
    legend_entry(sheet, (60, 12), "best so far", ORANGE)
    said = f"{first['name']} ({first['means']}) on validation rows, {'higher' if first['maximised'] else 'lower'} is better."
    said += " Circles: complete; grey triangles: stopped early; grey crosses: collapsed or failed; beyond the scale: on its edge."
    rows = [Row(str(trial["number"]), (Cell(f"{value:.4f}"), Cell(_state(trial), state="text"))) for trial, value in points]
    return [picture("Objective over time", sheet.svg(said, "search-history", "Objective over time"), said,
                    Table(("trial", first["name"], "state"), tuple(rows)))]


def front_picture(record: Json) -> list[Picture]:
    """Two objectives: every trial that may win, the Pareto front, and the one that was picked."""
    if len(record["objectives"]) < 2:
        return []
    trials = [trial for trial in usable(record) if len(trial["values"]) > 1]
    if not trials:
        return []
    (xs, ys) = ([trial["values"][k] for trial in trials] for k in (0, 1))
    sheet = Drawing(4.6, 3.6)
    axes = Axes(sheet, 0.75, 0.15, 3.6, 2.8, _range(xs), _range(ys))
    axes.x_axis(ticks(*axes.x, 5), _titled(record["objectives"][0]), grid=True)
    axes.y_axis(ticks(*axes.y, 6), _titled(record["objectives"][1]), grid=True)
    front = [trial for trial in trials if trial["number"] in record["front"]]
    for trial in trials:
        axes.mark(trial["values"][0], trial["values"][1], "o", 5.0, GREY)
    ordered = sorted(front, key=lambda trial: trial["values"][0])
    axes.line([trial["values"][0] for trial in ordered], [trial["values"][1] for trial in ordered], BLUE, 1.4)
    for trial in front:
        picked = trial["number"] == record["best"]
        shape, size, colour = ("*", 11.0, ORANGE) if picked else ("s", 6.0, BLUE)
        axes.mark(trial["values"][0], trial["values"][1], shape, size, colour)
    said = f"Squares: no other trial is better in both. Star: the one that was picked ({RULES[record['pick']]})."
    rows = [Row(f"trial {trial['number']}", tuple(Cell(f"{value:.4f}") for value in trial["values"])) for trial in ordered]
    columns = ("mask", *(objective["name"] for objective in record["objectives"]))
    return [picture("Pareto front", sheet.svg(said, "search-front", "Pareto front"), said, Table(columns, tuple(rows)))]


def difference_picture(record: Json) -> list[Picture]:
    """Paired differences of the first objective on test rows, with their intervals, against the first baseline."""
    tested, first = record.get("tested") or {}, record["objectives"][0]
    points = [
        Estimate(name, one["difference"]["value"], one["difference"]["lower"], one["difference"]["upper"], one["kind"] == "finalist")
        for name, one in (tested.get("runs") or {}).items()
        if one.get("difference")
    ]
    if not points:
        return []
    title = f"Against {tested['reference']}, on test rows"
    side = "above" if first["maximised"] else "below"
    said = f"Difference in {first['name']} to {tested['reference']}, paired by patient; {side} 0 is better. Bars: bootstrap over patients."
    svg = forest(points, key="search-differences", summary=said, axis=f"difference in {first['name']}", reference=0.0)
    return [picture(title, svg, said)]


def _titled(objective: Json) -> str:
    return f"{objective['name']} ({'higher' if objective['maximised'] else 'lower'} is better)"


def _state(trial: Json) -> str:
    return f"collapsed: {trial['collapsed']}" if trial["collapsed"] else str(trial["state"])


def _range(values: Sequence[float]) -> tuple[float, float]:
    pad = 0.08 * (max(values) - min(values)) or 0.02
    return min(values) - pad, max(values) + pad


def _box(x: float, y: float, width: float, height: float) -> list[tuple[float, float]]:
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


__all__ = ["chosen_picture", "difference_picture", "front_picture", "history_picture", "mask_pictures", "usable"]
