"""A drawing of lines, marks and words, written as one SVG element; and axes that place data in it.

Lengths are points (1/72 inch); a figure is shown at 4/3 CSS pixels a point, so 9 points are 12 pixels. Text stays text:
it is set in the reader's own font and can be searched and read aloud. Equal input gives equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from math import ceil, cos, floor, log10, pi, sin

INK, MUTED, RULE, PALE = "#1c2733", "#5b6773", "#c9d1d8", "#eef2f5"

Place = tuple[float, float]


def star(points: int, inner: float, turn: float = 0.0) -> tuple[Place, ...]:
    """Corners of a star (inner < 1) or a polygon (inner = 0: outer corners only) of radius 1, the first one up."""
    steps = points * (2 if inner else 1)
    radius = [inner if inner and i % 2 else 1.0 for i in range(steps)]
    return tuple((r * sin(2 * pi * i / steps + turn), -r * cos(2 * pi * i / steps + turn)) for i, r in enumerate(radius))


_W = 0.36
SHAPES: dict[str, tuple[Place, ...]] = {
    "o": (),
    "s": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "^": star(3, 0),
    "D": star(4, 0),
    "v": star(3, 0, pi),
    "P": (
        (-_W, -1), (_W, -1), (_W, -_W), (1, -_W), (1, _W), (_W, _W), (_W, 1), (-_W, 1), (-_W, _W), (-1, _W), (-1, -_W), (-_W, -_W),
    ),
    "X": star(4, 0.42, pi / 4),
    "*": star(5, 0.42),
}
"""Shape of a mark -> its corners around (0, 0) at radius 1; none: a circle."""


@dataclass
class Drawing:
    """A sheet of a size in inches; things are drawn in the order they are added."""

    width: float
    height: float
    parts: list[str] = field(default_factory=list)

    def line(self, places: Iterable[Place], colour: str, width: float = 1.0, dash: str = "") -> None:
        """A line through places."""
        self.lines([places], colour, width, dash)

    def lines(self, each: Iterable[Iterable[Place]], colour: str, width: float = 1.0, dash: str = "") -> None:
        """Several lines of one look, written as one element; the sheet itself says that lines are not filled."""
        path = "".join(_path(places) for places in each)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<path d="{path}" stroke="{colour}" stroke-width="{_n(width)}"{dashed}/>')

    def area(self, places: Iterable[Place], fill: str, edge: str = "none", opacity: float = 1.0) -> None:
        """A closed area; an opacity below 1 lets what lies beneath shine through its filling."""
        path = _path(places)
        line = "" if edge == "none" else f' stroke="{edge}" stroke-width="0.8"'
        clear = "" if opacity == 1 else f' fill-opacity="{_n(opacity)}"'
        self.parts.append(f'<path d="{path}Z" fill="{fill}"{line}{clear}/>')

    def mark(self, place: Place, shape: str, size: float, face: str, edge: str) -> None:
        """A mark of a diameter."""
        self.marks([place], shape, size, face, edge)

    def marks(self, places: Iterable[Place], shape: str, size: float, face: str, edge: str) -> None:
        """Marks of one look."""
        look, r = f'fill="{face}" stroke="{edge}"', size / 2
        if not SHAPES[shape]:
            self.parts += [f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(r)}" {look}/>' for x, y in places]
            return
        path = "".join(_path(((x + r * a, y + r * b) for a, b in SHAPES[shape]), 100) + "Z" for x, y in places)
        self.parts.append(f'<path d="{path}" {look}/>')

    def text(self, place: Place, words: str, *, size: float = 9, colour: str = INK, anchor: str = "start", style: str = "") -> None:
        """One line of words; ``anchor`` is start, middle or end, ``style`` 'italic' or 'up' (turned by a quarter)."""
        x, y = place
        more = "" if anchor == "start" else f' text-anchor="{anchor}"'
        more += ' font-style="italic"' if style == "italic" else ""
        more += f' transform="rotate(-90 {_n(x)} {_n(y)})"' if style == "up" else ""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="{_n(size)}" fill="{colour}"{more}>{escape(words)}</text>')

    def hatch(self, name: str, colour: str) -> str:
        """A fill of slanted lines, to be given as ``fill``; ``name`` is one that no other figure of the page has."""
        self.parts.append(
            f'<defs><pattern id="{escape(name)}" width="4" height="4" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
            f'<path d="M0 0V4" stroke="{colour}" stroke-width="1.6"/></pattern></defs>'
        )
        return f"url(#{escape(name)})"

    def svg(self, summary: str, key: str, title: str = "") -> str:
        """The drawing as an SVG element with a title and, as its description, the numbers; ``key`` is the figure's own name."""
        name, words = escape(key), escape(title or summary.split(".")[0])
        head = (
            f'<svg role="img" aria-labelledby="{name}-t {name}-d" viewBox="0 0 {72 * self.width:.0f} {72 * self.height:.0f}" '
            f'style="width:{96 * self.width:.0f}px" fill="none" xmlns="http://www.w3.org/2000/svg">'
            f'<title id="{name}-t">{words}</title><desc id="{name}-d">{escape(summary)}</desc>'
        )
        return head + "".join(self.parts) + "</svg>"


@dataclass
class Axes:
    """A rectangle of a drawing (inches from its left and top edge) with data limits."""

    drawing: Drawing
    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float] = (0.0, 1.0)
    y: tuple[float, float] = (0.0, 1.0)

    def at(self, x: float, y: float) -> Place:
        """Where a data point lies; y grows from y[0] at the bottom to y[1] at the top."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return 72 * (self.left + self.width * across), 72 * (self.top + self.height * (1 - up))

    def line(self, xs: Iterable[float], ys: Iterable[float], colour: str, width: float = 1.0, dash: str = "") -> None:
        """A line through data points."""
        self.drawing.line((self.at(float(x), float(y)) for x, y in zip(xs, ys, strict=True)), colour, width, dash)

    def band(self, xs: Iterable[float], low: Iterable[float], high: Iterable[float], colour: str, opacity: float = 0.13) -> None:
        """The area between two curves over the same places."""
        places = list(xs)
        there = [self.at(float(x), float(y)) for x, y in zip(places, high, strict=True)]
        back = [self.at(float(x), float(y)) for x, y in zip(places, low, strict=True)]
        self.drawing.area([*there, *reversed(back)], colour, opacity=opacity)

    def rule(self, x: float, width: float = 0.9) -> None:
        """A dashed upright rule over the whole height."""
        self.line((x, x), self.y, INK, width, "4 2")

    def mark(self, x: float, y: float, shape: str, size: float, colour: str, face: str = "", edge: str = "") -> None:
        """A mark at a data point."""
        self.drawing.mark(self.at(x, y), shape, size, face or colour, edge or colour)

    def x_axis(self, ticks: Sequence[tuple[float, str]], title: str = "", grid: bool = False) -> None:
        """The lower edge with its ticks and, below, what is measured."""
        bottom = 72 * (self.top + self.height)
        places = [self.at(value, self.y[0])[0] for value, _ in ticks]
        if grid:
            self.drawing.lines(([(place, 72 * self.top), (place, bottom)] for place in places), PALE, 0.8)
        self.drawing.lines(([(place, bottom), (place, bottom + 3)] for place in places), MUTED, 0.7)
        for place, (_, words) in zip(places, ticks, strict=True):
            self.drawing.text((place, bottom + 12.5), words, size=8.5, colour=MUTED, anchor="middle")
        self.drawing.line([(72 * self.left, bottom), (72 * (self.left + self.width), bottom)], RULE, 0.8)
        if title:
            self.drawing.text((72 * (self.left + self.width / 2), bottom + 26), title, colour=MUTED, anchor="middle")

    def y_axis(self, ticks: Sequence[tuple[float, str]], title: str = "", grid: bool = False, words: bool = True) -> None:
        """Ticks at the left edge and, turned, what is measured; a panel beside another needs no words."""
        left = 72 * self.left
        heights = [self.at(0, value)[1] for value, _ in ticks]
        if grid:
            self.drawing.lines(([(left, height), (left + 72 * self.width, height)] for height in heights), PALE, 0.8)
        self.drawing.lines(([(left - 3, height), (left, height)] for height in heights), MUTED, 0.7)
        for height, (_, text) in zip(heights, ticks, strict=True):
            if words:
                self.drawing.text((left - 5, height + 3), text, size=8.5, colour=MUTED, anchor="end")
        if title:
            self.drawing.text((left - 29, 72 * (self.top + self.height / 2)), title, colour=MUTED, anchor="middle", style="up")


def ticks(low: float, high: float, most: int = 7) -> list[tuple[float, str]]:
    """Round numbers from low to high, at most ``most``, with their words.

    Example:
        >>> [words for _, words in ticks(-0.02, 0.62)]
        ['0.0', '0.1', '0.2', '0.3', '0.4', '0.5', '0.6']
        >>> [words for _, words in ticks(-1.2, 1.3)]
        ['−1.0', '−0.5', '0.0', '0.5', '1.0']
    """
    size = 10.0 ** floor(log10((high - low) / most))
    for step in (size, 2 * size, 5 * size, 10 * size, 20 * size):
        first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
        if last - first < most:
            break
    digits = max(0, -floor(log10(step) + 1e-9))
    numbers = [step * i for i in range(first, last + 1)]
    return [(value, f"{value + 0.0:.{digits}f}".replace("-", "−")) for value in numbers]


def _path(places: Iterable[Place], parts: int = 10) -> str:
    """Corners to a tenth of a point, a seventh of a pixel on a screen: the first one, then steps from one to the next.

    Steps are taken between rounded corners, so that roundings do not add up. A step along an axis is written as one, and steps
    that go on straight along an axis are joined.

    Example:
        >>> _path([(1, 2), (1, 3.04), (1, 3.5), (2.25, 3), (2.25, 3)])
        'M1 2v1.5l1.2-.5'
        >>> _path([(5, 5), (5, 5)])
        'M5 5h0'
    """
    corners = [(round(parts * x), round(parts * y)) for x, y in places]
    steps: list[list[int]] = []
    for (x, y), (to_x, to_y) in pairwise(corners):
        across, down = to_x - x, to_y - y
        if not (across or down):
            continue
        last = steps[-1] if steps else [0, 0]
        on_down, on_across = across == last[0] == 0 and down * last[1] > 0, down == last[1] == 0 and across * last[0] > 0
        if on_down or on_across:
            last[0], last[1] = last[0] + across, last[1] + down
        else:
            steps.append([across, down])
    (first_x, first_y), found, before = corners[0], [], ""
    for across, down in steps:
        kind = "h" if not down else "v" if not across else "l"
        text = _tenths(across if across else down, parts)
        if kind == "l":
            other = _tenths(down, parts)
            text += other if other.startswith("-") else f" {other}"
        found.append(text if kind == before and text.startswith("-") else f" {text}" if kind == before else f"{kind}{text}")
        before = kind
    start = f"M{_tenths(first_x, parts)} {_tenths(first_y, parts)}"
    return start + ("".join(found) or "h0")


def _tenths(value: int, parts: int) -> str:
    """A number of tenths (hundredths) as a length: 5 is '.5', -12 is '-1.2'."""
    text = f"{value / parts:g}"
    return text[1:] if text.startswith("0.") else f"-{text[2:]}" if text.startswith("-0.") else text


def _n(value: float) -> str:
    """A length with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".").replace("-0", "0") if abs(value) < 0.005 else f"{value:.2f}".rstrip("0").rstrip(".")
