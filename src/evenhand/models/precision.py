"""Which arithmetic an embedding is computed in, and the check that half precision gives the same embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from evenhand.data.amounts import counted
from evenhand.errors import InputError

PRECISIONS = ("auto", "fp32", "bf16")
MIN_COSINE = 0.999
MIN_SCORE_CORRELATION = 0.999
N_SCORES = 64


@dataclass(frozen=True)
class Agreement:
    """How close embeddings b in bf16 came to embeddings a in fp32 on a sample of images.

    Attributes:
        n_images: size of the sample.
        min_cosine: smallest cosine between a_i and b_i.
        max_relative_error: largest ``|a_i - b_i| / |a_i|``.
        spread_error: root mean square of ``|a_i - b_i|`` over root mean square of ``|a_i - mean(a)|``. A probe sees only
            what differs between images, so this is the noise it meets relative to the signal it has; NaN for one image
            or identical ones.
        score_correlation: median over 64 random linear scores of the correlation between a's scores and b's, both
            standardised by a as a probe does: about 1 - e^2 / 2 for noise of e standard deviations. NaN where no
            dimension varies.
        accepted: ``min_cosine >= 0.999`` and ``score_correlation >= 0.999`` (the latter is skipped where it is NaN).
    """

    n_images: int
    min_cosine: float
    max_relative_error: float
    spread_error: float
    score_correlation: float
    accepted: bool

    def __str__(self) -> str:
        """In words, for the log."""
        images = counted(self.n_images, "image", "images")
        return f"of {images} the cosine is at least {self.min_cosine:.4f}, and scores correlate by {self.score_correlation:.4f}"

    def to_json(self) -> dict[str, Any]:
        """As a dictionary; NaN becomes None."""
        return {key: None if value != value else value for key, value in asdict(self).items()}


def measure_agreement(exact: torch.Tensor, approximate: torch.Tensor) -> Agreement:
    """Compare embeddings (n, d) of the same images in two precisions; see `Agreement`.

    Example:
        >>> a = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> measure_agreement(a, a).accepted
        True
    """
    a, b = exact.double(), approximate.double()
    error = (a - b).norm(dim=1)
    relative = error / a.norm(dim=1).clamp_min(1e-12)
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1)
    cosine = torch.where(error == 0, torch.ones_like(cosine), cosine)
    spread = (a - a.mean(dim=0)).norm(dim=1).square().mean().sqrt()
    spread_error = float(error.square().mean().sqrt() / spread) if spread > 0 else float("nan")
    lowest = float(cosine.min())
    correlation = _score_correlation(a, b)
    accepted = bool(torch.isfinite(b).all()) and lowest >= MIN_COSINE and not correlation < MIN_SCORE_CORRELATION
    return Agreement(len(a), lowest, float(relative.max()), spread_error, correlation, accepted)


def _score_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """See `Agreement`; the directions are always the same."""
    mean, scale = a.mean(dim=0), a.std(dim=0, correction=0)
    varies = scale > 1e-6 * mean.abs() + 1e-12
    if not varies.any():
        return float("nan")
    shape = (int(varies.sum()), N_SCORES)
    directions = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(a.device)
    first, second = (((part - mean) / scale)[:, varies] @ directions for part in (a, b))
    pairs = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(first.T, second.T, strict=True)]
    return float(torch.stack(pairs).nan_to_num(0.0).median())


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 instructions (AMX or AVX-512 BF16 on a CPU, compute capability 8 on an NVIDIA GPU)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    # Newer versions of torch list the instructions; older ones have a private function for each.
    if hasattr(torch.cpu, "get_capabilities"):
        flags = torch.cpu.get_capabilities()
        return any(bool(flags.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(bool(getattr(torch.cpu, name)()) for name in names if hasattr(torch.cpu, name))


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Forward passes inside run in ``precision``: fp32 as they are, bf16 through autocast."""
    if precision == "fp32":
        yield
        return
    with torch.autocast(device.type, dtype=torch.bfloat16):
        yield


def check_precision(precision: str) -> None:
    """Refuse an unknown name.

    Raises:
        InputError: not one of auto, fp32, bf16.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision is '{precision}', but must be one of {', '.join(PRECISIONS)}")
