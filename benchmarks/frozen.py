"""A trial of a search with and without kept activations of what its mask freezes.

The peer is the same training with the whole network run in every epoch (no gradient goes through frozen layers there
either). The figure is one whole `train_masked` call, everything included: the cut, the pass that computes the activations,
writing and reading them. "first trial" computes them, "later trial" finds them. Processor seconds, one thread. Run it with
``python benchmarks/frozen.py``; it exits 1 when the bar is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from finetune import make_images

from evenhand.config.schema import ModelConfig, TrainerConfig
from evenhand.data.cache import CachedImages
from evenhand.methods.base import Split
from evenhand.models import build_classifier
from evenhand.models.masks import make_mask
from evenhand.models.parts import make_parts
from evenhand.runs.folder import FileStore
from evenhand.training import TrainSetup
from evenhand.training.activations import ActivationCache
from evenhand.training.prefixed import train_masked

BAR = 2.0
CASES = (("evenhand_demo_vit", False), ("mobilenetv1_075", False), ("mobilenetv1_075", True))


def rows_of(images: CachedImages, rows: np.ndarray) -> Split:
    """A split of a data set whose labels alternate."""
    return Split(images.base.images(rows), (rows[:, None] % 2).astype(np.float32), {}, rows, rows)


def trial(
    name: str, size: int, splits: tuple[Split, Split], epochs: int, folder: Path, channels_last: bool, first: float, prefix: bool
) -> float:
    """Processor seconds of one training; parts from the share ``first`` of the network's depth on are trained."""
    model = build_classifier(ModelConfig(name=name, input_size=[size, size]), 1, seed=0)
    parts = make_parts(model, "blocks")
    mask = make_mask(model, "blocks", parts, [k >= first * len(parts) for k in range(len(parts))], lr=1e-4)
    trainer = TrainerConfig(max_epochs=epochs, progress=False, channels_last=channels_last)
    with tempfile.TemporaryDirectory() as scratch:
        setup = TrainSetup("binary", trainer, FileStore(Path(scratch)), batch_size=32)
        start = time.process_time()
        train_masked(model, mask, *splits, setup, prefix=prefix, cache=ActivationCache(folder))
        return time.process_time() - start


def main() -> int:
    """Print figures, peer and bar; 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256, help="training images; a quarter as many validate")
    parser.add_argument("--size", type=int, default=64, help="side of the images, pixels")
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    write, met = sys.stdout.write, True
    write(f"{args.images} images of {args.size} px, {args.epochs} epochs, batch 32, one thread, processor seconds\n")
    write(f"{'':<40}{'trained from':>14}{'whole':>9}{'first':>9}{'later':>9}{'gain':>8}\n")
    with tempfile.TemporaryDirectory() as temporary:
        images = make_images(Path(temporary), args.images + args.images // 4, args.size)
        cut = np.arange(args.images), np.arange(args.images, len(images))
        splits = rows_of(images, cut[0]), rows_of(images, cut[1])
        for name, channels_last in CASES:
            for first in (0.34, 0.67, 1.0):
                kept = Path(temporary) / f"{name}{channels_last}{first}"
                run = lambda prefix: trial(name, args.size, splits, args.epochs, kept, channels_last, first, prefix)  # noqa: E731, B023
                whole, once, again = run(False), run(True), run(True)
                label = f"{name}{', channels last' if channels_last else ''}"
                place = "head alone" if first == 1.0 else f"{first:.0%}"
                write(f"{label:<40}{place:>14}{whole:>9.2f}{once:>9.2f}{again:>9.2f}{whole / again:>7.1f}x\n")
                met &= first < 1.0 or whole / again >= BAR
    write(f"head alone, whole / later trial: bar {BAR:g}   {'met' if met else 'MISSED'}\n")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
