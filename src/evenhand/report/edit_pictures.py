"""Pictures of an edit: its change as a signed colour picture, as a curve of tones or frequencies, and on images.

Arrays come in, `Picture`s go out; a picture of pixels is a PNG within the page. Blue is darker, red brighter than before.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.report.drawing import MUTED, Axes, Drawing, ticks
from evenhand.report.figures import COLOURS, FIFTHS, width_of
from evenhand.report.page import Picture
from evenhand.report.tables import Cell, Row, Table

Array = npt.NDArray[np.floating[Any]]
Pixels = npt.NDArray[np.uint8]

SHOWN = 420
"""Width of a picture of pixels, in CSS pixels."""
DARKER, BRIGHTER = np.array([0x00, 0x72, 0xB2]), np.array([0xD5, 0x5E, 0x00])


def signed_colours(change: Array, limit: float) -> Pixels:
    """A change (h, w) as colours (h, w, 3): white is none, full blue ``-limit`` or darker, full red ``limit`` or brighter.

    Example:
        >>> signed_colours(np.array([[0.0, -1.0, 2.0]]), 1.0).tolist()
        [[[255, 255, 255], [0, 114, 178], [213, 94, 0]]]
    """
    share = np.clip(np.asarray(change, dtype=np.float64) / max(limit, 1e-12), -1.0, 1.0)[..., None]
    end = np.where(share < 0, DARKER, BRIGHTER)
    return np.asarray(np.round(255 + np.abs(share) * (end - 255.0)), dtype=np.uint8)


def strength(values: Array, limit: float) -> Pixels:
    """Amounts (h, w) as grey (h, w): white is none, black ``limit`` or more."""
    return np.asarray(np.round(255 * (1 - np.clip(np.asarray(values) / max(limit, 1e-12), 0, 1))), dtype=np.uint8)


def as_pixels(image: Array) -> Pixels:
    """An image (c, h, w) in [0, 1] as 8-bit pixels, (h, w) or (h, w, 3)."""
    levels = np.asarray(np.round(255 * np.clip(image, 0, 1)), dtype=np.uint8)
    return levels[0] if len(levels) == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0))


def pixel_picture(title: str, pixels: Pixels, caption: str, width: int = SHOWN, colours: int = 0) -> Picture:
    """A picture of pixels, (h, w) grey or (h, w, 3) colour, as a PNG within the page; ``colours``: at most so many, for a smaller page."""
    from markupsafe import Markup
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if colours and pixels.ndim == 3:
        image = image.quantize(colours, dither=Image.Dither.NONE)
    image.save(buffer, "PNG", optimize=True)
    address = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    look = "width:100%;height:auto;image-rendering:pixelated;border:1px solid #c9d1d8"
    text = escape(f"{title}. {caption}", quote=True)
    return Picture(title, Markup(f'<img src="{address}" alt="{text}" style="{look}">'), caption, width)


def change_pictures(change: Array, title: str, caption: str) -> list[Picture]:
    """A signed change (c, h, w), one picture for all channels where they are equal, else one a channel; one scale for all."""
    limit = float(np.abs(change).max())
    same = len(change) == 1 or bool((change == change[:1]).all())
    names = [""] if same else [f", channel {k + 1}" for k in range(len(change))]
    scale = f" Full colour is {255 * limit:.1f} grey levels of 255." if limit else " There is no change."
    planes = [signed_colours(plane, limit) for plane in change[: len(names)]]
    return [pixel_picture(f"{title}{name}", plane, caption + scale) for name, plane in zip(names, planes, strict=True)]


def amount_picture(mean_abs: Array, title: str, caption: str) -> Picture:
    """Mean absolute change (h, w) as grey, black at the largest."""
    limit = float(mean_abs.max())
    return pixel_picture(title, strength(mean_abs, limit), f"{caption} Black is {255 * limit:.1f} grey levels of 255.")


def tone_picture(levels: Array, tones: Array, key: str = "tone") -> Picture:
    """The tone curve: grey value in, grey values (k, n) of each channel out, and the identity as a dashed line."""
    sheet = Drawing(4.3, 3.5)
    axes = Axes(sheet, 0.65, 0.15, 3.4, 2.8)
    axes.x_axis(FIFTHS, "grey value of the image", grid=True)
    axes.y_axis(FIFTHS, "grey value of the edited image", grid=True)
    axes.line((0, 1), (0, 1), MUTED, 1.0, "4 3")
    curves = tones[:1] if bool((tones == tones[:1]).all()) else tones
    for k, curve in enumerate(curves):
        axes.line(levels, np.clip(curve, 0, 1), COLOURS[k], 1.8)
    shift = 255 * float(np.abs(curves - levels).max())
    return _drawn("Tone curve", sheet, f"What the edit makes of every grey value. The largest shift is {shift:.1f} grey levels.", key,
                  _numbers(("grey value", *_channels(curves)), levels, curves, 11))


def gain_picture(frequency: Array, gain: Array, key: str = "gain") -> Picture:
    """The gain over radial frequency, in cycles a pixel up to 0.5: one curve a channel (k, n); 1 is no change."""
    low, high = min(0.0, float(gain.min())), max(1.2, float(gain.max()))
    sheet = Drawing(4.6, 3.3)
    axes = Axes(sheet, 0.7, 0.15, 3.7, 2.6, (0.0, 0.5), (low, high + 0.05 * (high - low)))
    axes.x_axis([(i / 10, f"{i / 10:.1f}") for i in range(6)], "frequency, cycles a pixel", grid=True)
    axes.y_axis(ticks(*axes.y, 6), "gain", grid=True)
    axes.line((0.0, 0.5), (1.0, 1.0), MUTED, 1.0, "4 3")
    curves = gain[:1] if bool(np.allclose(gain, gain[:1])) else gain
    for k, curve in enumerate(curves):
        axes.line(frequency, curve, COLOURS[k], 1.8)
    said = "How much of every spatial frequency is left: coarse structures are on the left, fine texture on the right, 1 is no change."
    return _drawn("Gain over frequency", sheet, said, key, _numbers(("cycles a pixel", *_channels(curves)), frequency, curves, 12))


def _drawn(title: str, sheet: Drawing, caption: str, key: str, numbers: Table) -> Picture:
    from markupsafe import Markup

    svg = sheet.svg(f"{title}. {caption}", key, title)
    return Picture(title, Markup(svg), caption, width_of(svg), numbers)


def _channels(curves: Array) -> tuple[str, ...]:
    return ("value",) if len(curves) == 1 else tuple(f"channel {k + 1}" for k in range(len(curves)))


def _numbers(columns: Sequence[str], xs: Array, curves: Array, most: int) -> Table:
    chosen = np.unique(np.linspace(0, len(xs) - 1, most).astype(int))
    rows = [Row(f"{xs[i]:.3f}", tuple(Cell(f"{curve[i]:.3f}") for curve in curves)) for i in chosen]
    return Table(tuple(columns), tuple(rows))
