"""What making a patch costs: a step of step one against an ordinary step, and step two on kept features.

``step``   a masked step (half of the weights, bias over the whole set) against one of torch's SGD with the same batch, taken in
           turns; the least of each counts. Bar: at most 1.1 times.
``head``   seconds of step two on features that are made once, against running the frozen body in every pass.

Run one with ``python benchmarks/patching.py step head``; it exits 1 when a bar is missed. Times are of one thread;
those of steps are the process's own. Importances and masks are in ``importance.py``, fairness against cost in ``patch_curve.py``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
from torch.nn import functional as F

from evenhand.config.schema import TrainerConfig
from evenhand.data.groups import Groups
from evenhand.methods.base import Split, Task
from evenhand.methods.patching.bias import BiasTerm
from evenhand.methods.patching.heads import Body, FeatureImages, head_names
from evenhand.methods.patching.outcome import Cost
from evenhand.methods.patching.rows import PatchRows
from evenhand.methods.patching.selection import make_mask
from evenhand.methods.patching.steps import Objective, Passes, all_logits, run_epoch, trainable_only
from evenhand.methods.patching.updates import MaskedUpdate
from evenhand.models.backbones import ImageClassifier

STEP_BAR = 1.1
CPU = torch.device("cpu")


@dataclass
class Pictures:
    """Images in memory."""

    values: torch.Tensor
    fingerprint: str = "pictures"

    @property
    def shape(self) -> tuple[int, int, int]:
        c, h, w = self.values.shape[1:]
        return c, h, w

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, positions: Any) -> torch.Tensor:
        return self.values[positions if isinstance(positions, slice) else torch.from_numpy(np.asarray(positions))]


class Memory:
    """A store that keeps nothing on disk."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def get(self, key: str) -> Any | None:
        return self.values.get(key)

    def put(self, key: str, value: Any) -> None:
        self.values[key] = value

    def append(self, key: str, record: Any) -> None:
        pass


def scene(n: int, seed: int, agreement: float, size: int) -> Split:
    """A spot, hard to see, that is the label; a bright frame that tells the label in ``agreement`` of the second group alone."""
    rng = np.random.default_rng(seed)
    group, y = rng.integers(0, 2, n), rng.integers(0, 2, n)
    frame = np.where(group == 1, np.where(rng.random(n) < agreement, y, 1 - y), rng.integers(0, 2, n))
    x = rng.uniform(0.3, 0.5, (n, 1, size, size)).astype(np.float32)
    middle = slice(3 * size // 8, 5 * size // 8)
    x[:, 0, middle, middle] += (0.04 * (y * 2 - 1) + rng.normal(0, 0.035, n))[:, None, None]
    x[:, 0, : size // 8, :] += 0.3 * frame[:, None, None]
    groups = {"sex": Groups("sex", ("f", "m"), group.astype(np.int64))}
    pictures = Pictures(torch.from_numpy(x.clip(0, 1)), f"{n}/{seed}/{agreement}/{size}")
    return Split(pictures, y[:, None].astype(np.float32), groups, np.arange(n), np.arange(n))


def classifier(name: str, size: int, **options: Any) -> ImageClassifier:
    """At random, the same every time."""
    torch.manual_seed(0)
    sized = {"img_size": size} if "vit" in name else {}
    network = timm.create_model(name, num_classes=1, **sized, **options)
    return ImageClassifier(network, mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(size, size), name=name).eval()


def task_of(train: Split, val: Split, batch_size: int = 64) -> Task:
    """The external set as a method gets it."""
    return Task(
        train, val, "binary", ("ill",), (), ("sex",), 0, CPU, Memory(), lambda images: np.zeros((len(images), 1), np.float32),
        lambda n_outputs, **_: classifier("resnet18", 32), TrainerConfig(progress=False), batch_size,
    )


def measure_step(name: str, size: int, batch: int, repeats: int) -> bool:
    """Print seconds of both kinds of step; whether the bar is met."""
    split = scene(batch, 1, 0.5, size)
    rows = PatchRows.of(split, task_of(split, split), ("sex",))
    x, y = split.x.batch(slice(None)), torch.from_numpy(split.y)
    plain, masked = classifier(name, size), classifier(name, size)
    optimizer = torch.optim.SGD(plain.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
    mask = make_mask(masked, mask_type="random", rate=0.5).values
    update = MaskedUpdate(trainable_only(masked, set(mask)), mask, momentum=0.9, weight_decay=5e-4)
    objective = Objective(BiasTerm(), "binary", 1.0, 0.1, "set", all_logits(masked, rows, batch, CPU))
    part = next(iter(rows.batches(np.arange(batch), batch, CPU)))

    def ordinary() -> None:
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(plain(x), y).backward()
        optimizer.step()

    def impair() -> None:
        update.clear()
        objective(masked(part.x), part, rows)[0].backward()
        update.step(1e-4)

    seconds: list[list[float]] = [[], []]
    for _ in range(repeats):
        for own, action in zip(seconds, (ordinary, impair), strict=True):
            own.append(timed(action))
    ratio = min(seconds[1]) / min(seconds[0])
    figures = f"ordinary {min(seconds[0]):.3f} s, masked {min(seconds[1]):.3f} s, {ratio:.2f} times (bar {STEP_BAR})"
    show(f"step {name} {size} px, {batch} images: {figures}")
    return ratio <= STEP_BAR


def measure_head(name: str, size: int, n: int, epochs: int) -> bool:
    """Print seconds of step two on kept features and with the body run in every pass; they must end with the same head."""
    split = scene(n, 1, 0.5, size)
    rows = PatchRows.of(split, task_of(split, split), ("sex",))
    passes = Passes("repair", epochs, 1e-3, "constant", 64, True, True, 0, CPU)
    found = []
    for kept in (True, False):
        model = classifier(name, size)
        body = Body.of(model)
        start = time.perf_counter()
        inputs = FeatureImages(body.features(split.x, 64, CPU)) if kept else None
        made = time.perf_counter() - start
        network: Any = body.split.suffix if kept and body.split is not None else model
        update = MaskedUpdate(trainable_only(model, head_names(model)))
        for epoch in range(1, epochs + 1 if kept else 2):
            run_epoch(epoch, network, model, rows, Objective(BiasTerm(), "binary", 0.1, 1.0), update, passes, Cost(), inputs=inputs)
        found.append((time.perf_counter() - start, made))
    whole = found[1][0] * epochs
    figures = f"{found[0][0]:.2f} s on kept features ({found[0][1]:.2f} s to make them), {whole:.1f} s with the body in every pass"
    show(f"head {name} {size} px, {n} images, {epochs} passes: {figures} (one pass timed)")
    return True


def timed(action: Callable[[], object]) -> float:
    """Seconds of this process: one thread, so that what else runs on the machine does not count."""
    start = time.process_time()
    action()
    return time.process_time() - start


def show(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Run what was asked for; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["step", "head"], help="step, head; default: both")
    parser.add_argument("--networks", nargs="+", default=["resnet18", "vit_small_patch16_224"], help="timm names")
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--batch", type=int, default=32, help="images a step")
    parser.add_argument("--repeats", type=int, default=5, help="steps of each kind")
    parser.add_argument("--rows", type=int, default=256, help="external rows")
    parser.add_argument("--epochs", type=int, default=10, help="passes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    met = True
    if "step" in options.what:
        for name in options.networks:
            met &= measure_step(name, options.size, options.batch, options.repeats)
    if "head" in options.what:
        met &= measure_head(options.networks[0], options.size, options.rows, options.epochs)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
