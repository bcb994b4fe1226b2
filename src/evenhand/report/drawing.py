"""A drawing of lines, marks and words, written as one SVG element; and axes that place data in it.

Lengths are points (1/72 inch); a figure is shown at 4/3 CSS pixels a point, so 9 points are 12 pixels. Text stays text:
it is set in the reader's own font and can be searched and read aloud. Equal input gives equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
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
        path = _path(places)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="{_n(width)}"{dashed}/>')

    def area(self, places: Iterable[Place], fill: str, edge: str = "none", opacity: float = 1.0) -> None:
        """A closed area; an opacity below 1 lets what lies beneath shine through its filling."""
        path = _path(places)
        clear = "" if opacity == 1 else f' fill-opacity="{_n(opacity)}"'
        self.parts.append(f'<path d="M{path}Z" fill="{fill}" stroke="{edge}" stroke-width="0.8"{clear}/>')

    def mark(self, place: Place, shape: str, size: float, face: str, edge: str) -> None:
        """A mark of a diameter."""
        (x, y), r = place, size / 2
        look = f'fill="{face}" stroke="{edge}"'
        if not SHAPES[shape]:
            self.parts.append(f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(r)}" {look}/>')
            return
        path = "L".join(f"{_n(x + r * a)} {_n(y + r * b)}" for a, b in SHAPES[shape])
        self.parts.append(f'<path d="M{path}Z" {look}/>')

    def text(self, place: Place, words: str, *, size: float = 9, colour: str = INK, anchor: str = "start", style: str = "") -> None:
        """One line of words; ``anchor`` is start, middle or end, ``style`` 'italic' or 'up' (turned by a quarter)."""
        x, y = place
        more = "" if anchor == "start" else f' text-anchor="{anchor}"'
        more += ' font-style="italic"' if style == "italic" else ""
        more += f' transform="rotate(-90 {_n(x)} {_n(y)})"' if style == "up" else ""
        self.parts.append(f'<text x="{_n(x)}" y="{_n(y)}" font-size="{_n(size)}" fill="{colour}"{more}>{escape(words)}</text>')

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
            f'style="width:{96 * self.width:.0f}px" xmlns="http://www.w3.org/2000/svg">'
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
        for value, words in ticks:
            place = self.at(value, self.y[0])[0]
            if grid:
                self.drawing.line([(place, 72 * self.top), (place, bottom)], PALE, 0.8)
            self.drawing.line([(place, bottom), (place, bottom + 3)], MUTED, 0.7)
            self.drawing.text((place, bottom + 12.5), words, size=8.5, colour=MUTED, anchor="middle")
        self.drawing.line([(72 * self.left, bottom), (72 * (self.left + self.width), bottom)], RULE, 0.8)
        if title:
            self.drawing.text((72 * (self.left + self.width / 2), bottom + 26), title, colour=MUTED, anchor="middle")

    def y_axis(self, ticks: Sequence[tuple[float, str]], title: str = "", grid: bool = False, words: bool = True) -> None:
        """Ticks at the left edge and, turned, what is measured; a panel beside another needs no words."""
        left = 72 * self.left
        for value, text in ticks:
            height = self.at(0, value)[1]
            if grid:
                self.drawing.line([(left, height), (left + 72 * self.width, height)], PALE, 0.8)
            self.drawing.line([(left - 3, height), (left, height)], MUTED, 0.7)
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


def _path(places: Iterable[Place]) -> str:
    """Corners to a tenth of a point: a seventh of a pixel on a screen."""
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in places).replace(".0", "")


def _n(value: float) -> str:
    """A length with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".").replace("-0", "0") if abs(value) < 0.005 else f"{value:.2f}".rstrip("0").rstrip(".")
