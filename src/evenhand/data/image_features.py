"""One pass over a cache: the grey level, contrast and sharpness of every image, and a perceptual hash of it.

The hash is a pHash with the data set's own middle as threshold. Of a 32 x 32 thumbnail, the 255 lowest frequencies of the cosine
transform are taken (the mean is left out), each standardised over the data set and cut at three deviations. The signs of the
64 lowest against the data set's medians are the hash; all 255, as one signed byte each, are the detail that two images
are compared by. Plain pHash compares an image with itself, so that films of one projection, which all look alike, share most bits;
against the data set's medians they differ as much as photographs do (docs/guide/card.md has the measured numbers).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.data.cache import ImageCache
from evenhand.random import generator

FloatArray = npt.NDArray[np.float32]

STATISTICS = ("brightness", "contrast", "sharpness")
"""Mean grey level, its standard deviation, and the mean absolute difference of neighbouring pixels, all of 255 grey levels."""

THUMBNAIL = 32
HASH_BITS = 64
DETAIL = 255
CUT = 3.0
NOISE = 2.0
SAMPLE = 4096
"""Images that the medians, means and deviations are taken from."""
BLOCK = 32
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class ImageFeatures:
    """What one pass over the images gives; a quarter of a kilobyte an image.

    Attributes:
        statistics: float32 (n, 3), `STATISTICS`.
        hashes: uint64 (n,), 64 signs.
        detail: int8 (n, 255), standardised frequencies in 127ths of three deviations.
    """

    statistics: FloatArray
    hashes: npt.NDArray[np.uint64]
    detail: npt.NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.hashes)


def image_features(images: ImageCache, seed: int = 0, progress: bool = False) -> ImageFeatures:
    """Read every image once, in blocks.

    Args:
        images: of a prepared data set.
        seed: draws the sample that medians and deviations are taken from.
        progress: show a progress bar.
    """
    n = len(images)
    chosen = np.sort(generator(seed, "image features").choice(n, min(n, SAMPLE), replace=False))
    sample = np.concatenate([frequencies(grey_levels(images.raw(chosen[i : i + BLOCK]))) for i in range(0, len(chosen), BLOCK)])
    middle, mean, spread = np.median(sample, axis=0), sample.mean(axis=0), sample.std(axis=0)
    statistics = np.empty((n, len(STATISTICS)), np.float32)
    hashes, detail = np.empty(n, np.uint64), np.empty((n, DETAIL), np.int8)
    for start in _blocks(n, progress):
        rows = slice(start, min(start + BLOCK, n))
        grey = grey_levels(images.raw(rows))
        statistics[rows] = grey_statistics(grey)
        found = frequencies(grey)
        hashes[rows] = sign_hashes(found[:, :HASH_BITS], middle[:HASH_BITS])
        detail[rows] = standardised(found, mean, spread)
    return ImageFeatures(statistics, hashes, detail)


def _blocks(n: int, progress: bool) -> Iterator[int]:
    starts = range(0, n, BLOCK)
    if not progress:
        yield from starts
        return
    from rich.progress import track

    yield from track(starts, description="images")


def grey_levels(raw: npt.NDArray[Any]) -> FloatArray:
    """Stored images (n, c, h, w) as grey levels from 0 to 255, float32 (n, h, w); colours by luma."""
    weights = (1.0,) if raw.shape[1] == 1 else _LUMA
    grey = raw[:, 0].astype(np.float32)
    grey *= np.float32(weights[0])
    for channel, weight in enumerate(weights[1:], start=1):
        grey += raw[:, channel] * np.float32(weight)
    return grey / np.float32(257) if raw.dtype == np.uint16 else grey


def grey_statistics(grey: FloatArray) -> FloatArray:
    """`STATISTICS` of images (n, h, w): (n, 3).

    Example:
        >>> grey_statistics(np.array([[[0.0, 255.0], [0.0, 255.0]]], np.float32)).tolist()
        [[127.5, 127.5, 127.5]]
    """
    n = len(grey)
    flat = grey.reshape(n, -1)
    mean = flat.mean(axis=1)
    centred = flat - mean[:, None]
    contrast = np.sqrt(np.einsum("ij,ij->i", centred, centred) / flat.shape[1])
    steps = [np.subtract(grey[:, :, 1:], grey[:, :, :-1]), np.subtract(grey[:, 1:], grey[:, :-1])]
    sizes = [np.abs(step, out=step).reshape(n, -1) for step in steps if step.size]
    sharpness = sum((size.mean(axis=1) for size in sizes), np.zeros(n, np.float32)) / max(len(sizes), 1)
    return np.stack([mean, contrast, sharpness], axis=1).astype(np.float32)


def frequencies(grey: FloatArray) -> FloatArray:
    """The lowest 255 frequencies of thumbnails of images (n, h, w), lowest first, without the mean: float32 (n, 255)."""
    from scipy.fft import dctn

    height, width = grey.shape[1:]
    columns = (grey.reshape(-1, width) @ _area(width).T).reshape(len(grey), height, THUMBNAIL)
    small = np.matmul(_area(height), columns)
    return np.asarray(dctn(small, axes=(1, 2), norm="ortho").reshape(len(grey), -1)[:, _order()], dtype=np.float32)


@cache
def _area(size: int) -> FloatArray:
    """(32, size): weights that average the pixels under each pixel of the thumbnail."""
    edges = np.linspace(0, size, THUMBNAIL + 1)
    pixels = np.arange(size)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = np.maximum(covered, 0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


@cache
def _order() -> npt.NDArray[np.int64]:
    i, j = np.indices((THUMBNAIL, THUMBNAIL)).reshape(2, -1)
    return np.lexsort((i, np.maximum(i, j), i + j))[1 : DETAIL + 1]


def sign_hashes(found: FloatArray, middle: FloatArray) -> npt.NDArray[np.uint64]:
    """Whether each of 64 frequencies is above its middle, as one number an image.

    Bits are dealt out so that every 16 of them hold low and high frequencies alike.
    """
    bits = (found > middle)[:, np.arange(HASH_BITS).reshape(-1, 4).T.ravel()]
    return np.ascontiguousarray(np.packbits(bits, axis=1)).view(np.uint64).ravel()


def standardised(found: FloatArray, mean: FloatArray, spread: FloatArray) -> npt.NDArray[np.int8]:
    """Frequencies in deviations from the data set's mean, cut at three, as signed bytes.

    Deviations have a floor, the noise that saving an image again leaves: what varies less tells no images apart.
    """
    scaled = (found - mean) / np.hypot(spread, NOISE)
    return np.asarray(np.rint(np.clip(scaled, -CUT, CUT) * (127 / CUT)), dtype=np.int8)
