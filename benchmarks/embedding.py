"""Embedding images from the cache, beside the bare forward pass on tensors that are ready.

The floor is the same network, arithmetic and batch size on one normalised batch that already lies in memory. The bar is 0.9 of
it. Run it with ``python benchmarks/embedding.py``; it exits 1 when the bar is missed in the arithmetic that ``precision=auto``
takes. MobileNet v1 0.75 is used where its weights are in ``../shared/weights`` (or EVENHAND_SHARED), else the bundled encoder.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from evenhand.config.schema import ModelConfig
from evenhand.data.cache import CachedImages, build_cache
from evenhand.models import ImageClassifier, LocalEmbedder, build_classifier
from evenhand.models.precision import arithmetic, has_fast_bf16

BAR = 0.9
WEIGHTS = Path("weights", "mobilenet_v1_075", "mobilenet_v1_075_224_imagenet.safetensors")


def shared_folder() -> Path:
    """Where the real weights lie, if they do."""
    return Path(os.environ.get("EVENHAND_SHARED", Path(__file__).resolve().parents[1].parent / "shared"))


def make_classifier(name: str) -> ImageClassifier:
    """The encoder under test."""
    if name == "mobilenetv1_075":
        return build_classifier(ModelConfig(name=name, checkpoint=str(shared_folder() / WEIGHTS)), 1, 0)
    return build_classifier(ModelConfig(name=name), 1, 0)


def make_images(folder: Path, n: int, size: int) -> CachedImages:
    """A synthetic cache: smooth colours with texture."""
    rng = np.random.default_rng(0)
    files = []
    for k in range(n):
        coarse = rng.integers(0, 200, (size // 8, size // 8, 3), dtype=np.uint8)
        files.append(folder / f"{k}.npy")
        np.save(files[-1], np.kron(coarse, np.ones((8, 8, 1), np.uint8)) + rng.integers(0, 40, (size, size, 3), dtype=np.uint8))
    cache, _ = build_cache(files, folder / "cache", size=size, workers=1, keep_going=False, progress=False)
    return cache.images()


def bare_forward(embedder: LocalEmbedder, batch: torch.Tensor, rounds: int) -> Callable[[], object]:
    """The floor: the network alone, on a batch that is ready."""
    ready = embedder.classifier.normalise(batch).contiguous(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.inference_mode(), arithmetic(embedder.precision, embedder.device):
            for _ in range(rounds):
                embedder.classifier.features(ready)

    return forward


def interleaved(actions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of each action: the best of several rounds in which all take turns, so that a busy machine hits all alike."""
    for action in actions.values():
        action()
    best = dict.fromkeys(actions, float("inf"))
    for _ in range(repeats):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def main() -> int:
    """Measure, print figure, floor and ratio for each arithmetic; 1 when the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mobilenetv1_075" if (shared_folder() / WEIGHTS).is_file() else "evenhand_demo_vit")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    classifier = make_classifier(options.model)
    n = options.batch_size * options.batches
    with tempfile.TemporaryDirectory() as folder:
        images = make_images(Path(folder), n, classifier.input_size[0])
        chosen = LocalEmbedder(classifier, "auto").settle(images)
        actions: dict[str, Callable[[], object]] = {}
        for precision in ("fp32", "bf16"):
            embedder = LocalEmbedder(classifier, precision, options.batch_size)
            actions[precision] = lambda embedder=embedder: embedder.embed_images(images)
            actions[f"{precision} bare"] = bare_forward(embedder, images.batch(slice(0, options.batch_size)), options.batches)
        seconds = interleaved(actions, options.repeats)
    ratios = {}
    for precision in ("fp32", "bf16"):
        ratios[precision] = seconds[f"{precision} bare"] / seconds[precision]
        line = f"{options.model} {precision}: from the cache {n / seconds[precision]:.1f} images/s"
        sys.stdout.write(f"{line}, bare forward {n / seconds[f'{precision} bare']:.1f} images/s (floor), ratio {ratios[precision]:.3f}\n")
    gain = seconds["fp32"] / seconds["bf16"]
    instructions = "" if has_fast_bf16(classifier.mean.device) else " (no bf16 instructions here)"
    sys.stdout.write(f"bf16 gain {gain:.2f}x{instructions}; auto takes {chosen}; bar: {BAR} at batch size {options.batch_size}\n")
    return 0 if ratios[chosen] >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
