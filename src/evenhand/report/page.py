"""What a page is made of, as plain values for the templates: sections of parts, each of words, a table or pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evenhand.report import figures
from evenhand.report.tables import Table

Point = str | tuple[str, str]


@dataclass(frozen=True)
class Picture:
    """A figure with its heading, its caption, and the numbers it is drawn from.

    Attributes:
        title: set in bold before the caption.
        svg: the drawing.
        caption: how to read it.
        width: CSS pixels at which its text has the intended size.
        numbers: the same numbers as a table, folded below it; None where a table of the page has them.
    """

    title: str
    svg: Any
    caption: str
    width: int = 0
    numbers: Table | None = None


@dataclass(frozen=True)
class Part:
    """One piece of a section; what is empty is not shown.

    Attributes:
        heading: above it.
        text: a paragraph.
        points: a list; a pair has a lead, set in bold.
        table: a table, with its caption and CSS classes.
        over: headings over the table's columns, with how many each spans.
        figures: pictures, side by side where there is room.
        fold: where given, the part is folded under these words (and printed all the same).
        shades: words of the steps of a heat map's key.
        parts: further parts within this one.
    """

    heading: str = ""
    text: str = ""
    points: tuple[Point, ...] = ()
    table: Table | None = None
    caption: str = ""
    classes: str = ""
    over: tuple[tuple[str, int], ...] = ()
    figures: tuple[Picture, ...] = ()
    fold: str = ""
    shades: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Section:
    """A heading with an address on the page, and its parts."""

    id: str
    title: str
    parts: tuple[Part, ...]
    hint: str = ""


def picture(title: str, svg: str, caption: str, numbers: Table | None = None) -> Picture:
    """A picture from figures.py or curve_figures.py, which escape every text they write."""
    from markupsafe import Markup

    return Picture(title, Markup(svg), caption, figures.width_of(svg), numbers)
