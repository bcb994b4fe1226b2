"""Names without torch, and sentences for wrong ones."""

from __future__ import annotations

import subprocess
import sys

import pytest

from evenhand.config.methods import LinearProbeConfig
from evenhand.errors import ConfigError
from evenhand.methods import registry


def test_names_are_known_without_torch():
    code = "import sys; from evenhand.methods import METHODS; print(len(list(METHODS)), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(registry.METHODS)), "False"]


def test_unknown_name_lists_the_known_ones_and_the_nearest():
    with pytest.raises(ConfigError, match=r"'linear_prob' is not known; did you mean 'linear_probe'\?.*group_dro.*thresholds"):
        registry.get_method(LinearProbeConfig(name="linear_prob"))


def test_duplicates_are_refused(monkeypatch):
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))
    first = type("First", (), {})
    registry.register("one")(first)
    assert registry.register("one")(first) is first  # the same class again, as a reload does
    with pytest.raises(ConfigError, match="'one' is taken by"):
        registry.register("one")(type("Second", (), {}))
    with pytest.raises(ConfigError, match="'leace' is taken by"):
        registry.register("leace")(type("Third", (), {}))


def test_public_names_are_importable():
    import evenhand.methods as methods

    assert all(getattr(methods, name) is not None for name in methods.__all__)
    with pytest.raises(AttributeError, match="Nothing"):
        methods.Nothing  # noqa: B018
