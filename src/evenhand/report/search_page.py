"""The page of a search: what was tried, what was chosen, what mattered, and what is left of it on test rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evenhand.report import words
from evenhand.report.html import write_sections
from evenhand.report.page import Part, Section
from evenhand.report.search_pictures import chosen_picture, difference_picture, front_picture, history_picture, mask_pictures
from evenhand.report.tables import Cell, Row, Table

Json = Mapping[str, Any]

LEAD = (
    "The mask was chosen because it did best on validation rows, so its value there is too good. What it is worth stands in the "
    "columns of test rows, which the search never saw."
)
JUDGED = {
    "holdout": "on the validation rows",
    "cv": "by cross-validation over all rows outside test",
    "seeds": "as the mean over re-drawn splits",
}
FEW = "Nothing is said on the importance of parts: too few trials ended."
NOT_TESTED = "The finalists were not trained and tested (finalists=0)."


def write_search_page(record: Json, path: Path) -> Path:
    """Write report.html of a search.

    Args:
        record: the dictionary of search.json (schema ``evenhand.search/1``).
        path: the HTML file.
    """
    sections = [
        Section("chosen", "The chosen mask", (Part(text=words.sentence(str(record["summary"])), figures=tuple(chosen_picture(record))),)),
        Section("tested", "On test rows", tuple(_tested_parts(record))),
        Section("tried", "What was tried", (Part(figures=(*history_picture(record), *front_picture(record), *mask_pictures(record))),)),
        Section("importance", "What mattered", tuple(_importance_parts(record))),
        Section("trials", "Every trial", (Part(fold=f"{len(record['trials'])} trials", table=trials_table(record)),)),
    ]
    if record.get("notes"):
        sections.append(Section("notes", "Notes", (Part(points=tuple(map(str, record["notes"]))),)))
    return write_sections(
        path, title="Which parts of a network to fine-tune", eyebrow="Search", about=str(record["data"].get("name") or ""),
        heading="The search", lead=LEAD, facts=search_facts(record), sections=sections,
        version=(record.get("versions") or {}).get("evenhand"), source="a search",
    )


def search_facts(record: Json) -> list[tuple[str, str]]:
    """(name, value) of what was searched, how, and how much of it was done."""
    options, space = record["options"], record["space"]
    aims = [f"{aim['name']}: {aim['means']} ({'higher' if aim['maximised'] else 'lower'} is better)" for aim in record["objectives"]]
    most = words.count(record["epochs"] * sum(trial["state"] != "lost" for trial in record["trials"]))
    trained = sum(trial["epochs"] for trial in record["trials"])
    seconds = sum(trial["seconds"] for trial in record["trials"])
    pairs = [
        ("objective", "; and ".join(aims)),
        ("judged", JUDGED[options["outer"]]),
        ("attributes", ", ".join(record["attributes"])),
        ("network", f"{record['model'].get('name') or ''} ({str(record['model'].get('hash') or '')[:16]})"),
        ("data", f"{record['data'].get('name') or ''} ({str(record['data'].get('hash') or '')[:16]})"),
        ("space", f"{space['name']}, {words.plural(len(space['parts']), 'part')}"),
        ("learning rate", " to ".join(f"{rate:g}" for rate in space["lr"])),
        ("trials", _ends(record["trials"])),
        ("trained", f"{words.plural(trained, 'epoch')} of at most {most}, {_time(seconds)} over all workers"),
        ("sampler and pruner", f"{options['sampler']}, {options['pruner']}; seed {options['seed']}"),
        ("study", f"{record['study']['name']} in {record['study']['storage']}"),
    ]
    return [(name, value) for name, value in pairs if value]


def _ends(trials: Sequence[Json]) -> str:
    names = {"complete": "complete", "pruned": "stopped early", "failed": "failed", "lost": "lost and run again"}
    found = {name: sum(trial["state"] == state for trial in trials) for state, name in names.items()}
    collapsed = sum(bool(trial["collapsed"]) for trial in trials)
    same = sum(trial["same_as"] is not None for trial in trials)
    more = [f"{collapsed} collapsed, which can never win"] * bool(collapsed) + [f"{same} looked up instead of trained again"] * bool(same)
    return "; ".join([", ".join(f"{n} {name}" for name, n in found.items() if n), *more])


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _tested_parts(record: Json) -> list[Part]:
    tested = record.get("tested") or {}
    if not tested:
        return [Part(text=NOT_TESTED)]
    first = record["objectives"][0]
    said = (
        f"Finalists are the best masks on validation rows, trained once more. The drop is the change of {first['name']} from validation "
        "rows (of finalists: as the search judged them) to test rows, below 0 where it is worse there."
    )
    said += _rates_said(tested["runs"])
    if tested.get("reference"):
        said += f" Differences are to {tested['reference']}, on the same patients."
    parts = [Part(text=said, table=finalist_table(record)), Part(figures=tuple(difference_picture(record)))]
    parts += [Part(points=(words.sentence(text),)) for text in finalist_sentences(record)]
    if tested.get("compare"):
        parts.append(Part(text=f"Every metric of every group, with audit-grade intervals: {tested['compare']}."))
    return parts


def _rates_said(runs: Mapping[str, Json]) -> str:
    """How the learning rates of fixed choices were found; nothing where there was none to find."""
    kinds = {one.get("rates_on", "val") for one in runs.values() if one.get("rates") or "rates_on" in one}
    said = {
        "val": " Fixed choices were trained at several learning rates, and the best on validation rows is shown: a searched rate is no "
               "merit of the mask.",
        "fold": " Fixed choices were trained at several learning rates. The data set has no validation rows that could choose one, so "
                "those of the search's first fold did, and the best rate was trained once more: a searched rate is no merit of the mask.",
        None: " No validation rows could choose a learning rate for fixed choices, so each was trained at one. The comparison is with an "
              "untuned one: what the chosen mask gains on it may be its searched rate.",
    }
    return "".join(text for kind, text in said.items() if kind in kinds)


def finalist_table(record: Json) -> Table:
    """Finalists and baselines: the objectives on validation and on test rows, the drop, and the paired difference."""
    runs, first = record["tested"]["runs"], record["objectives"][0]["name"]
    known = next((one for one in runs.values() if "test" in one), None)
    others = [name for name in (known or {"test": {}})["test"] if name != first]
    columns = ("run", f"{first}, validation", f"{first}, test", "drop", f"difference to {record['tested']['reference'] or 'none'}",
               *(f"{name}, test" for name in others))
    rows = []
    for name, one in runs.items():
        marks = ["chosen"] * (name == f"trial-{record['best']}") + ["collapsed"] * bool(one.get("collapsed"))
        marks += [f"at {rate:.2g}, the best of {len(one['rates'])} rates" for rate, _ in one.get("rates", [])[:1]]
        marks += [f"at {one['rate']:.2g}, untuned" for kind in [one.get("rates_on", "val")] if kind is None]
        title = f"{name} ({', '.join(marks)})" if marks else name
        if "failed" in one:
            rows.append(Row(title, (), merged=str(one["failed"])))
            continue
        gap = one.get("difference") or {}
        interval = "" if gap.get("lower") is None else f"{words.number(gap['lower'])} to {words.number(gap['upper'])}"
        cells = [_cell(one["searched"]), _cell(one["test"][first]), _cell(one["drop"], signed=True)]
        cells += [Cell(_signed(gap["value"]), interval) if gap.get("value") is not None else Cell("–", "", "empty")]
        rows.append(Row(title, (*cells, *(_cell(one["test"][other]) for other in others)), "run"))
    return Table(columns, tuple(rows))


def finalist_sentences(record: Json) -> list[str]:
    """What the paired difference of the chosen mask says, what the drop says, and which runs have collapsed on test rows."""
    tested, first = record["tested"], record["objectives"][0]
    one = tested["runs"].get(f"trial-{record['best']}") or {}
    gap, reference, said = one.get("difference") or {}, tested["reference"], []
    if gap.get("lower") is not None:
        sure = gap["lower"] > 0 or gap["upper"] < 0
        better = (gap["value"] > 0) == first["maximised"]
        how = f"{abs(gap['value']):.3f} {'better' if better else 'worse'} than {reference} in {first['name']} on test rows"
        interval = f"{words.number(gap['lower'])} to {words.number(gap['upper'])}"
        open_ = "and its interval excludes 0" if sure else "but its interval holds 0, so that this is open"
        said.append(f"the chosen mask is {how}: the difference is {_signed(gap['value'])} ({interval}), {open_}")
    if one.get("drop") is not None and one["drop"] < 0:
        said.append(f"its {first['name']} is {-one['drop']:.3f} worse on test than on validation rows")
    said += [f"{name} has collapsed on test rows: {text}" for name, run in tested["runs"].items() for text in run.get("collapse", ())]
    return said


def _importance_parts(record: Json) -> list[Part]:
    found, effects = record.get("importance") or {}, record.get("effects") or {}
    if not found:
        return [Part(text=FEW)]
    first = record["objectives"][0]["name"]
    said = (
        f"Importance: a choice's part in what sets the best tenth of the trials by {first} apart from all (PED-ANOVA). Beside it the mean "
        f"{first} of the trials that trained a part, and of those that froze it; these are not experiments, since other parts differ too."
    )
    ordered = sorted(found, key=lambda name: -found[name])
    top = max(found.values()) or 1.0
    rows = []
    for name in ordered:
        one = effects.get(name) or {}
        cells = (Cell(f"{100 * found[name]:.1f}%", "", "bar", bar=found[name] / top), *(_mean(one, bit) for bit in ("trained", "frozen")))
        rows.append(Row("learning rate" if name == "lr" else name, cells))
    shown = Table(("choice", "importance", f"mean {first}, trained", f"mean {first}, frozen"), tuple(rows))
    return [Part(text=said, table=shown)]


def _mean(effect: Json, bit: str) -> Cell:
    if effect.get(bit) is None:
        return Cell("–", "", "empty")
    return Cell(words.number(effect[bit]), words.plural(effect[f"n_{bit}"], "trial"))


def trials_table(record: Json) -> Table:
    """One row a trial: values, learning rate, share trained, epochs, and how it ended."""
    names = [objective["name"] for objective in record["objectives"]]
    rows = []
    for trial in record["trials"]:
        values = [*trial["values"], *[None] * (len(names) - len(trial["values"]))]
        share = "–" if trial["share"] is None else f"{100 * trial['share']:.1f}%"
        how = f"collapsed: {trial['collapsed']}" if trial["collapsed"] else str(trial["failure"] or trial["state"])
        how += f", as trial {trial['same_as']}" if trial["same_as"] is not None else ""
        lr = trial["params"].get("lr")
        cells = (*map(_cell, values), Cell("–" if lr is None else f"{lr:.2g}"), Cell(share), Cell(str(trial["epochs"]), "", "count"),
                 Cell(how, "", "text"))
        rows.append(Row(str(trial["number"]), cells))
    return Table(("trial", *names, "learning rate", "trained", "epochs", "end"), tuple(rows))


def _cell(value: float | None, signed: bool = False) -> Cell:
    if value is None:
        return Cell("–", "", "empty")
    return Cell(_signed(value) if signed else words.number(value))


def _signed(value: float) -> str:
    text = words.number(value)
    return text if value <= 0 else f"+{text}"
