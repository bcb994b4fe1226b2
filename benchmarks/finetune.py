"""A fine-tuning epoch from the image cache, beside its floor.

The floor is bare forward, backward and optimiser step over the same batches, held in memory as float tensors, with the
same network, loss and parameter groups. The figure is one whole `train_model` call of one epoch: reading the cache,
checks, the checkpoint on disk, everything. Run it with ``python benchmarks/finetune.py``; it exits 1 when the bar is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from evenhand.config.schema import ModelConfig, TrainerConfig
from evenhand.data.cache import CachedImages, build_cache
from evenhand.methods.base import Split
from evenhand.models import ImageClassifier, build_classifier
from evenhand.runs.folder import FileStore
from evenhand.training import TrainSetup, train_model
from evenhand.training.optim import make_optimizer
from evenhand.training.sampling import epoch_order, even_batches

BAR = 1.1
Times = tuple[float, float]


def make_images(folder: Path, n: int, size: int) -> CachedImages:
    """A cache of random pictures."""
    rng = np.random.default_rng(0)
    files = []
    for k in range(n):
        files.append(folder / f"{k}.npy")
        np.save(files[-1], rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
    return build_cache(files, folder / "cache", size=size)[0].images()


def bare_epoch(model: ImageClassifier, batches: list[tuple[torch.Tensor, torch.Tensor]], trainer: TrainerConfig) -> None:
    """Forward, backward and step, and nothing else."""
    optimizer = make_optimizer(model, trainer, 1e-4)
    model.train()
    for images, y in batches:
        loss = binary_cross_entropy_with_logits(model(images), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def our_epoch(model: ImageClassifier, train: Split, trainer: TrainerConfig, batch_size: int, folder: Path) -> None:
    """One epoch of the product's loop, its checkpoint included."""
    setup = TrainSetup("binary", trainer, FileStore(folder), batch_size=batch_size)
    train_model(model, train, empty_like(train), setup)


def empty_like(train: Split) -> Split:
    """No validation rows, since the floor has none."""
    nothing = np.zeros(0, np.int64)
    return Split(train.x, train.y[:0], {}, nothing, nothing)


def measure(name: str, n: int, size: int, batch_size: int, rounds: int) -> tuple[list[Times], list[Times]]:
    """Elapsed and processor seconds of the floor and of the product, in turns."""
    floor: list[Times] = []
    ours: list[Times] = []
    trainer = TrainerConfig(max_epochs=1, monitor="last", progress=False, schedule="constant", lr=1e-4)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        images = make_images(root, n, size)
        rows = np.arange(n)
        train = Split(images, (rows[:, None] % 2).astype(np.float32), {}, rows, rows)
        order = epoch_order(rows, 0, 1)
        batches = [(images.batch(order[cut]), torch.from_numpy(train.y[order[cut]])) for cut in even_batches(n, batch_size)]
        for number in range(rounds + 1):
            for times, action in (
                (floor, lambda model: bare_epoch(model, batches, trainer)),
                (ours, lambda model, number=number: our_epoch(model, train, trainer, batch_size, root / f"store{number}")),
            ):
                model = build_classifier(ModelConfig(name=name, input_size=[size, size]), 1, seed=0)
                start, processor = time.perf_counter(), time.process_time()
                action(model)
                times.append((time.perf_counter() - start, time.process_time() - processor))
    return floor[1:], ours[1:]  # the first round warms up


def main() -> int:
    """Print figure, floor and bar; 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilenetv1_075", help="a timm name")
    parser.add_argument("--images", type=int, default=1024, help="images an epoch")
    parser.add_argument("--size", type=int, default=64, help="side of the images, pixels")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="times each is measured, in turns")
    args = parser.parse_args()
    floor, ours = measure(args.model, args.images, args.size, args.batch_size, args.rounds)
    ratios = [statistics.median(b[k] / a[k] for a, b in zip(floor, ours, strict=True)) for k in (0, 1)]
    best = [min(seconds for seconds, _ in times) for times in (floor, ours)]
    write = sys.stdout.write
    write(f"{args.model}, {args.size} px, {args.images} images an epoch, batch {args.batch_size}, best of {args.rounds} rounds\n")
    for label, value in zip(("bare forward + backward + step (floor)", "fine-tuning epoch from the cache"), best, strict=True):
        write(f"{label:<48}{value:>9.3f} s{args.images / value:>12,.0f} images/s\n")
    ratio = best[1] / best[0]
    write(f"{'median of rounds: elapsed, processor time':<48}{ratios[0]:>9.2f}{ratios[1]:>9.2f}\n")
    write(f"{'epoch / floor':<48}{ratio:>9.2f}   bar {BAR:g}   {'met' if ratio <= BAR else 'MISSED'}\n")
    return int(ratio > BAR)


if __name__ == "__main__":
    sys.exit(main())
