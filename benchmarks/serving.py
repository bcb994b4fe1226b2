"""Embeddings over loopback HTTP, beside the bare forward pass on a tensor that is ready.

The floor is the same network, arithmetic, threads and batch size on one normalised batch that already lies in memory. The figure is the
whole way: the project's client encodes a binary FP32 tensor, the server in another process reads, checks and embeds it, the client reads
the embeddings. Once with one request after the other, and once with two in flight, as a search with concurrency=2 sends them: then one is
encoded, sent and read while the other is in the network. The bar is 15% more time than the floor in the median turn, for the better of the
two; client and server share the machine. Run it with ``python benchmarks/serving.py``;
it exits 1 when the bar is missed. MobileNet v1 0.75 is used where its weights are in ``../shared/weights`` (or EVENHAND_SHARED), else the
bundled encoder.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from evenhand.config.schema import ModelConfig
from evenhand.models import LocalEmbedder, build_classifier
from evenhand.models.remote import RemoteEmbedder
from evenhand.serve.app import EmbeddingApp, ServedModel
from evenhand.serve.images import Grid
from evenhand.serve.limits import Limits
from evenhand.serve.run import serving

BAR = 1.15
IN_TURN = 6
WEIGHTS = Path("weights", "mobilenet_v1_075", "mobilenet_v1_075_224_imagenet.safetensors")


def weights() -> Path:
    """Where the real weights lie, if they do."""
    return Path(os.environ.get("EVENHAND_SHARED", Path(__file__).resolve().parents[1].parent / "shared")) / WEIGHTS


@contextmanager
def server(model: str, *options: str) -> Iterator[str]:
    """`evenhand serve` in a process of its own: its address; stopped at the end."""
    words = [sys.executable, "-m", "evenhand", "serve", f"model={model}", "port=0", "accelerator=cpu", *options]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout is None or not (line := process.stdout.readline().strip()):
            raise SystemExit("the server did not start")
        yield line.split()[-1]
    finally:
        process.terminate()
        process.communicate()


def compare(embedder: LocalEmbedder, remote: RemoteEmbedder, batch: torch.Tensor, repeats: int) -> list[tuple[float, float]]:
    """Seconds a batch, (best, median of the ratios to the floor): bare forward, one request after the other, two in flight.

    They take turns, so that a busy machine hits all alike.
    """
    ready = embedder.classifier.normalise(batch).contiguous(memory_format=torch.channels_last)
    times: list[tuple[float, float, float]] = []
    with ThreadPoolExecutor(2) as pool:
        for repeat in range(repeats + 1):
            start = time.perf_counter()
            with torch.inference_mode():
                embedder.classifier.features(ready)
            forward = time.perf_counter()
            remote(batch)
            single = time.perf_counter()
            list(pool.map(remote, [batch] * IN_TURN))
            end = time.perf_counter()
            if repeat:
                times.append((forward - start, single - forward, (end - single) / IN_TURN))
    return [(min(row[k] for row in times), statistics.median(row[k] / row[0] for row in times)) for k in range(3)]


def protocol_seconds(batch: torch.Tensor, form: str, repeats: int) -> float:
    """Processor seconds of client and server together for a batch whose embeddings cost nothing: what the protocol itself takes."""
    model = ServedModel("nothing", Grid(*batch.shape[1:]), 768, lambda images: np.zeros((len(images), 768), np.float32))
    app = EmbeddingApp(model, Limits(), batch_wait=0.0)
    best = float("inf")
    with serving(app.gate) as address:
        remote = RemoteEmbedder(address, api_format=form, batch_size=len(batch))
        for _ in range(repeats + 1):
            start = time.process_time()
            remote(batch)
            best = min(best, time.process_time() - start)
        remote.close()
    app.close()
    return best


def forward_seconds(embedder: LocalEmbedder, batch: torch.Tensor, repeats: int) -> float:
    """Processor seconds of the bare forward pass."""
    ready = embedder.classifier.normalise(batch).contiguous(memory_format=torch.channels_last)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(repeats + 1):
            start = time.process_time()
            embedder.classifier.features(ready)
            best = min(best, time.process_time() - start)
    return best


def main() -> int:
    """Measure, print figure, floor and ratio; 1 when the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--format", default="binary", choices=("binary", "binary_uint8", "json", "png"))
    options = parser.parse_args()
    real = weights().is_file()
    name = "mobilenetv1_075" if real else "evenhand_demo_vit"
    config = ModelConfig(name=name, checkpoint=str(weights()) if real else None)
    embedder = LocalEmbedder(build_classifier(config, 1, 0), "fp32", device="cpu")
    levels = torch.randint(0, 256, (options.batch_size, 3, *embedder.input_size), generator=torch.Generator().manual_seed(0))
    batch = levels.float() / 255
    with server(str(weights()) if real else name, f"architecture={name}", f"threads={torch.get_num_threads()}", "batch_wait=0") as address:
        remote = RemoteEmbedder(address, api_format=options.format, batch_size=options.batch_size)
        difference = float((remote(batch) - embedder(batch)).abs().max() / embedder(batch).abs().max())
        found = compare(embedder, remote, batch, options.repeats)
        remote.close()
    n = options.batch_size
    own, floor_cpu = protocol_seconds(batch, options.format, options.repeats), forward_seconds(embedder, batch, min(options.repeats, 5))
    floor = found[0][0]
    head = f"{name} fp32, {options.format}, batch {n}, bar {100 * (BAR - 1):.0f}%"
    sys.stdout.write(f"{head}; bare forward {n / floor:.1f} images/s (floor)\n")
    for label, (best, ratio) in zip(("one request after the other", "two in flight"), found[1:], strict=True):
        sys.stdout.write(
            f"loopback HTTP, {label}: {n / best:.1f} images/s, overhead {100 * (best / floor - 1):.1f}% of the best times, "
            f"{100 * (ratio - 1):.1f}% median\n"
        )
    sys.stdout.write(f"largest difference of embeddings {difference:.1e}\n")
    sys.stdout.write(
        f"processor time a batch: client and server {1000 * own:.0f} ms, bare forward {1000 * floor_cpu:.0f} ms "
        f"({100 * own / floor_cpu:.1f}%)\n"
    )
    return 0 if min(ratio for _, ratio in found[1:]) <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
