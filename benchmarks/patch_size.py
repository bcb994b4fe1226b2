"""The size of a patch at rates 1, 5, 10 and 50%, and how long it takes to make, keep, apply and take off, on real networks.

A rate is the share of the weights that changes, drawn over all tensors but the head; the head changes as a whole. The floor of
the size is what any file of changed entries needs: the bits of each, and for its position four bytes or one bit an entry, whichever
is less. The floor of applying is to hash the network before and after, which is how a wrong model is noticed. Run it with
``python benchmarks/patch_size.py``; it exits 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import Tensor

from evenhand.models.parameters import state_fingerprint
from evenhand.patches import apply_patch, load_patch, make_patch, revert_patch, save_patch
from evenhand.patches.facts import HEAD, RATES, layer_of

SIZE_BAR = 1.03
"""Bytes of the file over the floor: what names, types, shapes and hashes may add."""
TIME_BAR = 2.0
"""Seconds of applying over those of hashing twice."""
NETWORKS = ("resnet18", "vit_small_patch16_224")

State = dict[str, Tensor]


def changed(state: State, rate: float, seed: int) -> State:
    """A share of the weights moved as a step of training moves them, and a new head."""
    draw = torch.Generator().manual_seed(seed)
    out = {}
    for name, value in state.items():
        if not value.is_floating_point():
            out[name] = value
            continue
        moved = torch.rand(value.shape, generator=draw) < (1.0 if layer_of(name) == HEAD else rate)
        out[name] = torch.where(moved, value + 1e-4 * torch.randn(value.shape, generator=draw), value)
    return out


def floor_bytes(old: State, new: State) -> int:
    """The bits of every changed entry, and where they are."""
    total = 0
    for name, value in old.items():
        k = int((value.view(torch.int32) != new[name].view(torch.int32)).sum()) if value.is_floating_point() else 0
        total += 4 * k + (0 if k == value.numel() else min(4 * k, (value.numel() + 7) // 8))
    return total


def timed(action: Callable[[], object], repeats: int = 3) -> float:
    """Seconds, the least of some repeats."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def same(left: State, right: State) -> bool:
    """Equal to the last bit."""
    return all(left[name].reshape(-1).view(torch.uint8).equal(right[name].reshape(-1).view(torch.uint8)) for name in right)


def measure(name: str, folder: Path) -> bool:
    """Print the rows of one network; whether its bars hold."""
    torch.manual_seed(0)
    before: State = timm.create_model(name, num_classes=1).eval().state_dict()
    whole = sum(value.nbytes for key, value in before.items() if not key.endswith("num_batches_tracked"))
    hashing = 2 * timed(lambda: state_fingerprint(before))
    print(f"{name}: {whole / 2**20:.1f} MiB, hashing it twice takes {hashing:.2f} s")
    print("  rate      size  of the model  floor  make s  save s  load s  apply s  revert s")
    good = True
    for rate in RATES:
        after = changed(before, rate, seed=1)
        patch, file = make_patch(before, after), folder / "patch.safetensors"
        making = timed(lambda after=after: make_patch(before, after), 1)
        saving = timed(lambda patch=patch, file=file: save_patch(file, patch), 1)
        loading = timed(lambda file=file: load_patch(file), 1)
        loaded, size = load_patch(file), file.stat().st_size
        applying = timed(lambda loaded=loaded: apply_patch(before, loaded))
        reverting = timed(lambda loaded=loaded, after=after: revert_patch(after, loaded))
        exact = same(apply_patch(before, loaded), after) and same(revert_patch(after, loaded), before)
        over = size / floor_bytes(before, after)
        times = f"{making:6.2f}  {saving:6.2f}  {loading:6.2f}  {applying:7.2f}  {reverting:8.2f}"
        print(f"  {rate:4.0%}  {size / 2**20:5.2f} MiB  {size / whole:12.1%}  {over:5.3f}  {times}  {'exact' if exact else 'NOT EXACT'}")
        good &= exact and over <= SIZE_BAR and applying <= TIME_BAR * hashing
    return good


def main() -> int:
    """Measure and compare with the bars."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        held = [measure(name, Path(temporary)) for name in arguments.networks]
    good = all(held)
    print(f"bars: file at most {SIZE_BAR} times its floor, applying at most {TIME_BAR} times two hashes: {'met' if good else 'MISSED'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
