"""Reading a 224 px cache, beside its floor and its peer.

uint8 batches against decoding and resizing 1024 px JPEG files with Pillow (the peer), and normalised float32 batches against a
bare copy and conversion of the same rows (the floor), into new memory of the same kind, with the same threads or with one,
whichever is faster. Run it with ``python benchmarks/cache.py``; it exits 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from evenhand.data.cache import ImageCache, build_cache

PEER = "Pillow decode + resize, 1024 px JPEG (peer)"
FLOOR = "bare copy + convert (floor)"
FLOOR_ONE = "bare copy + convert, one thread (floor)"
FLOOR_BUFFER = "bare copy + convert, into one buffer (floor)"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write_jpegs(folder: Path, n: int, side: int = 1024) -> list[Path]:
    """Photograph-like JPEGs: smooth colour, some texture."""
    rng = np.random.default_rng(0)
    files = []
    for k in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        noise = rng.integers(-12, 13, (side, side, 1))
        files.append(folder / f"{k}.jpg")
        Image.fromarray(np.clip(np.asarray(coarse).astype(int) + noise, 0, 255).astype(np.uint8)).save(files[-1], quality=90)
    return files


def write_grid_images(folder: Path, n: int) -> list[Path]:
    """224 px arrays, so that the cache under test is quickly built."""
    rng = np.random.default_rng(1)
    files = []
    for k in range(n):
        files.append(folder / f"{k}.npy")
        np.save(files[-1], rng.integers(0, 256, (224, 224, 3), dtype=np.uint8))
    return files


def decode_loop(files: list[Path]) -> None:
    """What a data set without a cache does for every image of every epoch."""
    for file in files:
        with Image.open(file) as image:
            np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR))


def interleaved(actions: dict[str, tuple[Callable[[], object], int]], seconds: float) -> dict[str, float]:
    """Images a second of each action: the best of many rounds in which all take turns, so that a busy machine hits all alike."""
    best = dict.fromkeys(actions, float("inf"))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for label, (action, _) in actions.items():
            start = time.perf_counter()
            action()
            best[label] = min(best[label], time.perf_counter() - start)
    return {label: n / best[label] for label, (_, n) in actions.items()}


def measure(cache: ImageCache, jpegs: list[Path], batch: int, seconds: float) -> dict[str, float]:
    """Images a second of every way of reading."""
    rng = np.random.default_rng(2)
    rows = rng.permutation(len(cache))[:batch]
    images = cache.images()
    out = torch.empty((batch, *cache.shape))
    pixels = torch.from_numpy(np.asarray(np.memmap(cache.folder / "images.bin", np.uint8, "c", shape=(len(cache), *cache.shape))))
    index, plain = torch.from_numpy(rows), pixels.numpy()

    return interleaved(
        {
            PEER: (lambda: decode_loop(jpegs), len(jpegs)),
            "cache, uint8 batch": (lambda: images.raw(rows), batch),
            FLOOR: (lambda: torch.from_numpy(np.empty(tuple(out.shape), np.float32)).copy_(pixels.index_select(0, index)), batch),
            FLOOR_ONE: (lambda: np.take(plain, rows, axis=0).astype(np.float32), batch),
            "cache, float32 in [0, 1]": (lambda: images.batch(rows), batch),
            "cache, normalised": (lambda: images.normalized_batch(rows, MEAN, STD), batch),
            FLOOR_BUFFER: (lambda: out.copy_(pixels.index_select(0, index)), batch),
            "cache, normalised, into one buffer": (lambda: images.normalized_batch(rows, MEAN, STD, out=out), batch),
        },
        seconds,
    )


def main() -> int:
    """Print figures, floors and bars; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1024, help="images in the cache")
    parser.add_argument("--jpegs", type=int, default=16, help="1024 px JPEG files of the peer's loop")
    parser.add_argument("--batch", type=int, default=64, help="images a batch")
    parser.add_argument("--seconds", type=float, default=20.0, help="time for all measurements")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "jpeg").mkdir()
        (folder / "grid").mkdir()
        jpegs = write_jpegs(folder / "jpeg", options.jpegs)
        cache, _ = build_cache(write_grid_images(folder / "grid", options.images), folder / "cache", workers=1)
        rates = measure(cache, jpegs, options.batch, options.seconds)
    for label, value in rates.items():
        sys.stdout.write(f"{label:<48}{value:>12,.0f} images/s\n")
    floor = max(rates[FLOOR], rates[FLOOR_ONE])  # on a busy machine torch's threads wait for each other
    bars = {
        "uint8 batch / Pillow loop": (rates["cache, uint8 batch"] / rates[PEER], 20.0),
        "float32 in [0, 1] / floor": (rates["cache, float32 in [0, 1]"] / floor, 0.8),
        "normalised / floor": (rates["cache, normalised"] / floor, 0.8),
    }
    buffered = rates["cache, normalised, into one buffer"] / rates[FLOOR_BUFFER]
    sys.stdout.write(f"{'normalised / floor, both into one buffer':<48}{buffered:>12.2f}\n")
    for label, (ratio, bar) in bars.items():
        sys.stdout.write(f"{label:<48}{ratio:>12.2f}   bar {bar:g}   {'met' if ratio >= bar else 'MISSED'}\n")
    return 0 if all(ratio >= bar for ratio, bar in bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
