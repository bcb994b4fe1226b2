"""Independent random generators from one seed: the same seed and names give the same stream on every machine."""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one named purpose, from the run's seed.

    ``sha256("seed/name/…")`` cut to 63 bits, so that streams of different names are independent and adding a new
    consumer of randomness does not shift the numbers of the others.

    Args:
        seed: the run's seed, any integer.
        names: what the stream is for, for example ``"split"`` or ``("bootstrap", 3)``.

    Returns:
        An integer in [0, 2**63).

    Example:
        >>> derive_seed(0, "split") == derive_seed(0, "split")
        True
        >>> derive_seed(0, "split") == derive_seed(0, "bootstrap")
        False
    """
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for one named purpose, from the run's seed (see `derive_seed`).

    Example:
        >>> float(generator(0, "demo").random()) == float(generator(0, "demo").random())
        True
    """
    return np.random.default_rng(derive_seed(seed, *names))
