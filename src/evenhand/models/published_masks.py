"""Masks of the released code of FairTune: a ``.npy`` file with a vector of bits in the order of the search space's parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from evenhand.errors import InputError, MethodError
from evenhand.models.masks import Mask, make_mask
from evenhand.models.parts import SPACES, available_spaces, make_parts

PUBLISHED_SPACES = tuple(space for space in SPACES if space not in ("stages", "conv|norm", "conv|norm|se", "bitfit"))
"""Spaces that the released code searches."""


def read_published(path: Path, model: nn.Module, lr: float | None, space: str | None) -> Mask:
    """A published vector of bits as a mask; arguments as `evenhand.models.masks.read_mask` has them.

    Raises:
        InputError: the file is no vector of zeros and ones, there is no learning rate, or the space is not told.
        MethodError: the network has no space of this length, or the space given has another one.
    """
    bits = _bits(path)
    if lr is None:
        raise InputError(
            f"mask {path} holds no learning rate, and none is assumed (the released code then used 0.1 and collapsed); "
            "give the one that its search found, with method.mask_lr=…"
        )
    lengths = {name: len(make_parts(model, name)) for name in ([space] if space else _published(model))}
    fitting = [name for name, length in lengths.items() if length == len(bits)]
    if not fitting:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise MethodError(f"mask {path} has {len(bits)} bits, but the spaces of this network have other lengths ({listed})")
    if len(fitting) > 1:
        raise InputError(
            f"mask {path} has {len(bits)} bits, which fits the spaces {', '.join(fitting)}; say which with method.mask_space=…"
        )
    return make_mask(model, fitting[0], make_parts(model, fitting[0]), bits.tolist(), lr=lr)


def _published(model: nn.Module) -> list[str]:
    return [space for space in available_spaces(model) if space in PUBLISHED_SPACES]


def _bits(path: Path) -> npt.NDArray[np.bool_]:
    try:
        vector: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"mask {path} cannot be read ({error}); give a .npy file with a vector of zeros and ones") from error
    if not isinstance(vector, np.ndarray) or vector.ndim != 1 or vector.dtype.kind not in "biuf" or not np.isin(vector, (0, 1)).all():
        what = f"shape {vector.shape}, {vector.dtype}" if isinstance(vector, np.ndarray) else "an archive"
        raise InputError(f"mask {path} is no vector of zeros and ones ({what}); give the mask that search_mask.py saved")
    return vector.astype(bool)
