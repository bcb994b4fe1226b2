"""What every test shares: one thread, no network, no display, and where the real data lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("evenhand", deadline=None)  # a busy machine is no failure
settings.load_profile("evenhand")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["HF_HUB_OFFLINE"] = "1"

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and weights: ``EVENHAND_SHARED``, or ``../shared`` beside the repository."""
    folder = Path(os.environ.get("EVENHAND_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("real data are not here: no folder ../shared beside the repository, and EVENHAND_SHARED is not set")
    return folder


def _part(shared: Path, *parts: str) -> Path:
    folder = shared.joinpath(*parts)
    if not folder.is_dir():
        pytest.skip(f"{'/'.join(parts)} is not in the shared folder")
    return folder


@pytest.fixture(scope="session")
def ham10000(shared: Path) -> Path:
    """The folder of ham10000-mini; skips where absent."""
    return _part(shared, "data", "ham10000-mini")


@pytest.fixture(scope="session")
def nih_cxr64(shared: Path) -> Path:
    """The folder of nih-cxr64-mini; skips where absent."""
    return _part(shared, "data", "nih-cxr64-mini")


@pytest.fixture(scope="session")
def covid_cxr(shared: Path) -> Path:
    """The folder of covid-cxr-mini; skips where absent."""
    return _part(shared, "data", "covid-cxr-mini")


@pytest.fixture(scope="session")
def pad_ufes(shared: Path) -> Path:
    """The folder of pad-ufes-mini; skips where absent."""
    return _part(shared, "data", "pad-ufes-mini")


@pytest.fixture(scope="session")
def mobilenet(shared: Path) -> Path:
    """The folder of the ImageNet MobileNet v1 0.75 weights; skips where absent."""
    return _part(shared, "weights", "mobilenet_v1_075")
