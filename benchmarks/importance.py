"""What importances and masks cost, against the bars that are set for them.

    together            both importances from one forward pass / two separate forward-backward passes      at most 0.88
    twice               importances of single images for both terms / for one term after the other         at most 0.6, one logit
    against batches     importances of single images / of batches, both terms                              at most 2.5
    percentile          memory beside weights and importances / size of the weights, 100 M weights         at most 0.3

The first three are ratios of processor time on a CPU (another load on the machine shifts them less than a clock's) and of seconds on
a GPU, the least of ``--repeats``. "Separate" passes are plain ones: forward, backward, squares added up, for one term and then the
other. The first batch, on which every layer's formula is tried, counts.

    python benchmarks/importance.py                               # ViT-S and ResNet-18 at 224 pixels, minutes
    python benchmarks/importance.py --networks resnet18 --batch 4 --batches 2 --weights 10

It exits 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

from evenhand.methods.patching.bias import BiasTerm
from evenhand.methods.patching.importance import importances
from evenhand.methods.patching.losses import batch_balanced_loss
from evenhand.methods.patching.selection import make_mask

NETWORKS = ("vit_small_patch16_224", "resnet18")
BARS = {"together": 0.88, "twice": 0.6, "against batches": 2.5, "percentile": 0.3, "percentile and mask": 0.3}
TERMS = (BiasTerm(least_rows=1), lambda logits, y, groups: batch_balanced_loss(logits, y))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--weights", type=float, default=100.0, help="millions of weights for the percentile")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def seconds(works: list[Callable[[], object]], device: torch.device, repeats: int) -> list[float]:
    """The least time of a few runs of each, taken in turns so that another load on the machine falls on all of them."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    found: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for own, work in zip(found, works, strict=True):
            start = clock()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            own.append(clock() - start)
    return [min(own) for own in found]


def separate(network: nn.Module, batches: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    """Batch importances as published: for each term its own forward pass."""
    parameters = list(network.parameters())
    for term in TERMS:
        totals = [torch.zeros_like(parameter) for parameter in parameters]
        for images, y, groups in batches:
            value = term(network(images), y, groups)
            for total, gradient in zip(totals, torch.autograd.grad(value, parameters), strict=True):
                total.addcmul_(gradient, gradient)


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """The three ratios of one network."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=1).to(device).eval()
    y = (torch.arange(options.batch) % 2).float()[:, None].to(device)
    groups = (torch.arange(options.batch) // 2 % 2).to(device)
    batches = [(torch.rand(options.batch, 3, options.size, options.size, device=device), y, groups) for _ in range(options.batches)]

    def found(kind: str, *terms: object) -> Callable[[], object]:
        return lambda: importances(network, batches, terms, kind=kind)  # type: ignore[arg-type]

    singles = [found("sample", term) for term in TERMS]
    works = [lambda: separate(network, batches), found("batch", *TERMS), found("sample", *TERMS), *singles]
    apart, by_batch, by_image, *alone = seconds(works, device, options.repeats)
    one_by_one = sum(alone)
    images = options.batch * options.batches
    print(f"{name}: {images} images; separate passes {apart:.2f} s, batches {by_batch:.2f} s, single images {by_image:.2f} s")
    return {"together": by_batch / apart, "twice": by_image / one_by_one, "against batches": by_image / by_batch}


def peak() -> int:
    """Most memory this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure_percentile(millions: float) -> dict[str, float]:
    """Memory of a mask of a network of many weights, beside the network and its importances."""
    side = 1000
    network = nn.Sequential(*[nn.Linear(side, side, bias=False) for _ in range(max(1, round(millions)))])
    weights = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    found = []
    for seed in (0, 1):
        rng = torch.Generator().manual_seed(seed)
        found.append({name: torch.empty_like(p).exponential_(generator=rng) for name, p in network.named_parameters()})
    for layer in network:
        nn.init.ones_(layer.weight)
    before, start = peak(), time.process_time()
    # all of it: moments, percentile, mask (one byte a weight)
    mask = make_mask(network, *found, rate=0.5)
    taken = peak() - before
    spent = time.process_time() - start
    bytes_of_mask = sum(value.numel() for value in mask.values.values())
    sizes = f"{taken / 1e6:.0f} MB more, of which the mask is {bytes_of_mask / 1e6:.0f} MB"
    print(f"mask of {mask.total / 1e6:.0f} M weights: {spent:.1f} s, {sizes}")
    return {"percentile": max(taken - bytes_of_mask, 0) / weights, "percentile and mask": taken / weights}


def main() -> int:
    options = arguments()
    rows = []
    # first, before the others have raised the peak
    rows += [("-", what, value) for what, value in measure_percentile(options.weights).items()]
    for name in options.networks:
        rows += [(name, what, value) for what, value in measure(name, options).items()]
    missed = 0
    print(f"\n{'network':24} {'what':20} {'ratio':>7} {'bar':>6}")
    for name, what, value in rows:
        kept = value <= BARS[what]
        missed += not kept
        print(f"{name:24} {what:20} {value:7.3f} {BARS[what]:6.2f} {'' if kept else '  missed'}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
