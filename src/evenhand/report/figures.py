"""Pictures as inline SVG: intervals, ROC curves, score distributions, and AUC against gap.

Every figure is drawn with matplotlib's object interface (no pyplot, no global figures), is the same bytes for the same
input, and names its groups by marker shape and line style as well as by a colour that colour-blind readers can tell
apart (Okabe and Ito). Text stays text: it is set in the reader's own font and can be searched and read aloud.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7A6A00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1, 1.2)),
    (0, (6, 1.5, 1, 1.5)),
    (0, (3, 1)),
    (0, (6, 1, 1, 1, 1, 1)),
    (0, (2, 2)),
    (0, (8, 2)),
)
INK, MUTED, RULE, PALE = "#1c2733", "#5b6773", "#c9d1d8", "#eef2f5"
MOST_CURVES = len(COLOURS)
MOST_HISTOGRAMS = 6

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """An estimate with its interval; ``value`` is None where it could not be made."""

    label: str
    value: float | None
    lower: float | None = None
    upper: float | None = None
    emphasis: bool = True


@dataclass(frozen=True)
class Panel:
    """One column of `group_panels`: a measure of every group, and of everyone."""

    title: str
    points: tuple[Point, ...]
    overall: float | None = None


@dataclass(frozen=True)
class Curve:
    """One group's ROC curve and the point (FPR, TPR) at which the model is used."""

    label: str
    fpr: Array
    tpr: Array
    point: tuple[float, float] | None = None
    emphasis: bool = True


@dataclass(frozen=True)
class Scores:
    """One group's scores, by true label."""

    label: str
    positive: Array
    negative: Array


@dataclass(frozen=True)
class Position:
    """One run in the picture of AUC against gap."""

    label: str
    x: Point
    y: Point


def forest(
    points: Sequence[Point], *, key: str, summary: str, axis: str, reference: float = 0.0, ends: tuple[str, str] | None = None
) -> str:
    """A forest plot: one row an estimate, its interval a line, the reference a dashed rule.

    Args:
        points: rows, from top to bottom; those with a value of None say "not estimable".
        key: a name that no other figure of the page has.
        summary: the text alternative.
        axis: what is measured, under the axis.
        reference: where "no difference" lies.
        ends: words for what lies left and right of the reference.
    """
    left = _label_width([p.label for p in points], most=3.0)
    figure, axes = _canvas(
        left + 4.1, 0.29 * len(points) + (0.95 if ends else 0.75), left=left, bottom=0.68 if ends else 0.48, top=0.12, right=0.25
    )
    axes.axvline(reference, color=INK, linewidth=0.9, linestyle=(0, (4, 2)))
    _interval_rows(axes, points, colour=COLOURS[0])
    _limits(axes, points, reference)
    _rows(axes, [p.label for p in points])
    axes.set_xlabel(axis, fontsize=9, color=MUTED, labelpad=4)
    if ends:
        where = {"va": "top", "fontsize": 8, "color": MUTED, "parse_math": False, "clip_on": False}
        low = -0.46 / (axes.get_position().height * figure.get_figheight())
        axes.text(0.0, low, f"← {ends[0]}", transform=axes.transAxes, ha="left", **where)
        axes.text(1.0, low, f"{ends[1]} →", transform=axes.transAxes, ha="right", **where)
    return _svg(figure, key, summary)


def group_panels(panels: Sequence[Panel], *, key: str, summary: str) -> str:
    """Measures side by side, one row a group, everyone's value as a dashed rule."""
    labels = [p.label for p in panels[0].points]
    left, width, space = _label_width(labels), 2.35, 0.3
    total, height = left + len(panels) * (width + space), 0.27 * len(labels) + 0.78
    figure = _figure(total, height)
    for column, panel in enumerate(panels):
        x = left + column * (width + space)
        axes = figure.add_axes((x / total, 0.34 / height, width / total, (height - 0.72) / height))
        if panel.overall is not None:
            axes.axvline(panel.overall, color=INK, linewidth=0.9, linestyle=(0, (4, 2)))
        _interval_rows(axes, panel.points, colour=COLOURS[column % len(COLOURS)], marker=MARKERS[column % len(MARKERS)])
        axes.set_xlim(-0.02, 1.02)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
        _rows(axes, labels if column == 0 else [""] * len(labels))
        axes.set_title(panel.title, fontsize=9.5, color=INK, loc="left", pad=6, parse_math=False)
    return _svg(figure, key, summary)


def roc_curves(curves: Sequence[Curve], *, key: str, summary: str, note: str = "") -> str:
    """ROC curves of the groups; curves without emphasis are thin and grey and share one legend entry (``note``)."""
    shown = [curve for curve in curves if curve.emphasis]
    rows = len(shown) + bool(note)
    figure, axes = _canvas(4.5, 4.45 + 0.21 * rows, left=0.55, bottom=0.68 + 0.21 * rows, top=0.1, right=0.28)
    axes.plot([0, 1], [0, 1], color=RULE, linewidth=1)
    grey = None
    for curve in curves:
        if not curve.emphasis:
            (grey,) = axes.plot(*decimate(curve.fpr, curve.tpr, 60), color="#b4bcc4", linewidth=0.6)
    handles = []
    for i, curve in enumerate(shown):
        style = {"color": COLOURS[i % MOST_CURVES], "marker": MARKERS[i % MOST_CURVES]}
        axes.plot(*decimate(curve.fpr, curve.tpr), color=style["color"], linestyle=LINES[i % MOST_CURVES], linewidth=1.6)
        if curve.point is not None:
            spot = {"markersize": 7.5, "markeredgecolor": "white", "linestyle": "none", "clip_on": False, "zorder": 5}
            axes.plot([curve.point[0]], [curve.point[1]], **style, **spot)
        (handle,) = axes.plot([], [], **style, linestyle=LINES[i % MOST_CURVES], linewidth=1.6, markersize=5.5)
        handles.append((handle, curve.label))
    if grey is not None:
        handles.append((grey, note))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.005)
    axes.grid(color=PALE, linewidth=0.8)
    axes.set_xlabel("false alarms among negative cases (FPR)", fontsize=9, color=MUTED)
    axes.set_ylabel("found among positive cases (TPR)", fontsize=9, color=MUTED)
    _legend(axes, handles, below=True)
    return _svg(figure, key, summary)


def score_histograms(groups: Sequence[Scores], *, key: str, summary: str, threshold: float | None = None, bins: int = 25) -> str:
    """Mirrored histograms: positive cases above the line, negative cases below, each as a share of its own cases."""
    left, row = _label_width([g.label for g in groups]), 0.78
    total, height = left + 4.25, row * len(groups) + 0.62
    figure = _figure(total, height)
    edges = np.linspace(0.0, 1.0, bins + 1)
    for i, group in enumerate(groups):
        axes = figure.add_axes((left / total, (height - 0.16 - row * (i + 1) + 0.06) / height, 4.0 / total, (row - 0.06) / height))
        _frame(axes)
        for scores, sign, colour, hatch in ((group.positive, 1, COLOURS[1], None), (group.negative, -1, COLOURS[5], "////")):
            share = np.histogram(np.clip(scores, 0, 1), edges)[0] / max(len(scores), 1)
            axes.stairs(sign * share / max(share.max(), 1e-9), edges, fill=hatch is None, color=colour, linewidth=0.8, hatch=hatch)
        axes.axhline(0, color=INK, linewidth=0.7)
        if threshold is not None:
            axes.axvline(threshold, color=INK, linewidth=1, linestyle=(0, (4, 2)))
        axes.set_xlim(0, 1)
        axes.set_ylim(-1.08, 1.08)
        axes.set_yticks([0], [_short(group.label)], fontsize=9, color=INK, parse_math=False)
        axes.tick_params(axis="y", length=0)
        if i == len(groups) - 1:
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
            axes.set_xlabel("model's score", fontsize=9, color=MUTED)
        else:
            axes.set_xticks([])
    return _svg(figure, key, summary)


def score_ranges(groups: Sequence[Scores], *, key: str, summary: str, threshold: float | None = None) -> str:
    """Ranges of the scores, for many groups: median as a mark, middle half as a thick line, 5% to 95% as a thin one."""
    left = _label_width([g.label for g in groups])
    figure, axes = _canvas(left + 4.35, 0.33 * len(groups) + 0.65, left=left, bottom=0.48, top=0.12, right=0.25)
    for i, group in enumerate(groups):
        for scores, shift, colour, marker in ((group.positive, -0.17, COLOURS[1], "s"), (group.negative, 0.17, COLOURS[0], "o")):
            if len(scores) < 5:
                continue
            low, first, middle, third, high = np.quantile(scores, [0.05, 0.25, 0.5, 0.75, 0.95])
            y = i + shift
            axes.plot([low, high], [y, y], color=colour, linewidth=0.8)
            axes.plot([first, third], [y, y], color=colour, linewidth=2.6)
            face = colour if marker == "s" else "white"
            axes.plot([middle], [y], color=colour, marker=marker, markersize=4.2, markerfacecolor=face, linestyle="none")
    if threshold is not None:
        axes.axvline(threshold, color=INK, linewidth=1, linestyle=(0, (4, 2)))
    axes.set_xlim(-0.01, 1.01)
    _rows(axes, [g.label for g in groups])
    axes.set_xlabel("model's score", fontsize=9, color=MUTED)
    return _svg(figure, key, summary)


def tradeoff(positions: Sequence[Position], *, key: str, summary: str, x_axis: str, y_axis: str) -> str:
    """Overall performance against the gap, with intervals in both directions; better is up and to the left."""
    legend = _label_width([p.label for p in positions], most=3.2) + 0.35
    figure, axes = _canvas(4.1 + legend, 3.6, left=0.62, bottom=0.5, top=0.28, right=legend)
    handles = []
    for i, place in enumerate(positions):
        x, y, colour = place.x, place.y, COLOURS[i % MOST_CURVES]
        if x.value is None or y.value is None:
            continue
        if x.lower is not None and x.upper is not None:
            axes.plot([x.lower, x.upper], [y.value, y.value], color=colour, linewidth=1, alpha=0.75)
        if y.lower is not None and y.upper is not None:
            axes.plot([x.value, x.value], [y.lower, y.upper], color=colour, linewidth=1, alpha=0.75)
        face = colour if (i // MOST_CURVES) % 2 == 0 else "white"
        (handle,) = axes.plot(
            [x.value],
            [y.value],
            color=colour,
            marker=MARKERS[i % len(MARKERS)],
            markersize=7.5,
            markerfacecolor=face,
            linestyle="none",
            zorder=5,
        )
        handles.append((handle, place.label))
    axes.grid(color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(x_axis, fontsize=9, color=MUTED, parse_math=False)
    axes.set_ylabel(y_axis, fontsize=9, color=MUTED, parse_math=False)
    axes.set_title("↖ higher performance, smaller gap", fontsize=8.5, color=MUTED, loc="left", pad=5)
    _legend(axes, handles)
    return _svg(figure, key, summary)


def roc_points(y_true: Array, y_score: Array) -> tuple[Array, Array]:
    """False and true positive rates at every distinct score, from (0, 0) to (1, 1); needs both classes.

    Example:
        >>> roc_points(np.array([0.0, 1.0, 1.0]), np.array([0.2, 0.9, 0.2]))
        (array([0., 0., 1.]), array([0. , 0.5, 1. ]))
    """
    order = np.argsort(-y_score, kind="stable")
    scores, positive = y_score[order], y_true[order] > 0
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    found, alarms = np.cumsum(positive)[last], np.cumsum(~positive)[last]
    return np.append(0.0, alarms / max(alarms[-1], 1)), np.append(0.0, found / max(found[-1], 1))


def decimate(x: Array, y: Array, most: int = 200) -> tuple[Array, Array]:
    """At most ``most`` points of a curve, evenly along its length, both ends kept."""
    if len(x) <= most:
        return x, y
    length = np.append(0.0, np.cumsum(np.hypot(np.diff(x), np.diff(y))))
    picked = np.unique(np.searchsorted(length, np.linspace(0.0, length[-1], most)).clip(0, len(x) - 1))
    picked[0], picked[-1] = 0, len(x) - 1
    return x[picked], y[picked]


def width_of(svg: str) -> int:
    """The width, in CSS pixels, at which a figure's text has its intended size."""
    found = re.search(r'style="width:(\d+)px"', svg)
    return int(found[1]) if found else 0


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor="none")


def _canvas(width: float, height: float, *, left: float, bottom: float, top: float, right: float) -> tuple[Any, Any]:
    """A figure with one plain axes; all sizes in inches."""
    figure = _figure(width, height)
    axes = figure.add_axes((left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height))
    _frame(axes)
    return figure, axes


def _frame(axes: Any) -> None:
    axes.set_facecolor("none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(labelsize=8.5, colors=MUTED, length=3, width=0.7)


def _rows(axes: Any, labels: Sequence[str]) -> None:
    """Row labels from top to bottom, a hairline under each row."""
    _frame(axes)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)), [_short(label) for label in labels], fontsize=9, color=INK, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)


def _interval_rows(axes: Any, points: Sequence[Point], *, colour: str, marker: str = "o") -> None:
    for row, point in enumerate(points):
        if point.value is None:
            axes.text(
                0.02, row, "not estimable", transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=MUTED, style="italic"
            )
            continue
        if point.lower is not None and point.upper is not None:
            axes.plot([point.lower, point.upper], [row, row], color=colour, linewidth=1.5, solid_capstyle="butt")
            axes.plot([point.lower, point.upper], [row, row], color=colour, marker="|", markersize=5.5, linestyle="none")
        face = colour if point.emphasis else "white"
        axes.plot([point.value], [row], color=colour, marker=marker, markersize=5.5, markerfacecolor=face, linestyle="none", zorder=5)


def _limits(axes: Any, points: Sequence[Point], reference: float) -> None:
    values = [reference, *(v for p in points for v in (p.value, p.lower, p.upper) if v is not None)]
    low, high = min(values), max(values)
    pad = 0.04 * max(high - low, 0.05)
    axes.set_xlim(low - pad, max(high, low + 0.05) + pad)


def _legend(axes: Any, handles: Sequence[tuple[Any, str]], *, below: bool = False) -> None:
    """Names of the marks, beside the axes or below them; one a line, so that long names stay whole."""
    if not handles:
        return
    inches = axes.get_position().height * axes.figure.get_figheight()
    place = (0.0, -0.52 / inches) if below else (1.02, 1.0)
    look = {"frameon": False, "fontsize": 9, "handlelength": 3.2, "borderaxespad": 0, "borderpad": 0, "labelspacing": 0.55}
    labels = [_short(label, 48) for _, label in handles]
    drawn = axes.legend([h for h, _ in handles], labels, loc="upper left", bbox_to_anchor=place, **look)
    for text in drawn.get_texts():
        text.set_parse_math(False)
        text.set_color(INK)


def _label_width(labels: Sequence[str], most: float = 2.9) -> float:
    """Inches that the longest label needs at 9 points."""
    return float(min(most, 0.25 + 0.078 * max((len(_short(label, 44)) for label in labels), default=0)))


def _short(label: str, most: int = 38) -> str:
    """A label on one line, cut where it is very long, and shown even when it begins with an underscore."""
    line = " ".join(label.split())
    line = line if len(line) <= most else line[: most - 1] + "…"
    return "\u200b" + line if line.startswith("_") else line


def _svg(figure: Any, key: str, summary: str) -> str:
    """The figure as an SVG element: no header, no ids but those it refers to, two decimals, a text alternative."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"evenhand-{key}",
        "path.simplify": True,
        "hatch.linewidth": 0.8,
        "axes.unicode_minus": False,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    body = buffer.getvalue()
    body = body[body.index("<svg") :]
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<defs>\s*</defs>", "", body, flags=re.S)
    body = re.sub(r"<g id=\"[^\"]*\"", "<g", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d{2})\d+", r"\1", " ".join(tag[0].split())), body)
    body = re.sub(r">\s+<", "><", body)
    width, height = (72 * size for size in figure.get_size_inches())
    head = (
        f'<svg role="img" aria-label="{escape(summary)}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'style="width:{width * 4 / 3:.0f}px" xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return head + body[body.index(">") + 1 :].strip()
