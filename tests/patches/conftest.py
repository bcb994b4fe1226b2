"""Small networks with random weights, and the same ones with some weights changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from timm import create_model
from torch import Tensor, nn

from evenhand.random import derive_seed

State = dict[str, Tensor]


def small_network(seed: int = 0) -> nn.Module:
    """A ViT of two blocks and a batch-norm buffer's worth of variety: 20 thousand weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=32, num_heads=2, num_classes=2).eval()


def changed_copy(state: State, rate: float, seed: int = 0) -> State:
    """A share of every floating-point tensor moved a little, all of the head anew."""
    draw = torch.Generator().manual_seed(derive_seed(seed, "changed"))
    out = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            out[name] = tensor.clone()
            continue
        share = 1.0 if name.startswith("head.") else rate
        moved = torch.rand(tensor.shape, generator=draw) < share
        out[name] = torch.where(moved, tensor + 0.01 * torch.randn(tensor.shape, generator=draw).to(tensor.dtype), tensor)
    return out


def same_bits(left: State, right: State) -> bool:
    """Whether two states are equal to the last bit, told by numpy alone."""
    return list(left) == list(right) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        == b.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for a, b in zip(left.values(), right.values(), strict=True)
    )


@pytest.fixture(scope="session")
def before() -> State:
    return {name: value.detach().clone() for name, value in small_network().state_dict().items()}


@pytest.fixture(scope="session")
def after(before: State) -> State:
    return changed_copy(before, 0.1)


@pytest.fixture
def changed() -> Callable[..., State]:
    return changed_copy
