"""Method names and where they live. Names are known without importing torch; a method's module is imported on first use."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from evenhand.errors import ConfigError

if TYPE_CHECKING:
    from evenhand.config.schema import MethodConfig
    from evenhand.methods.base import Method

T = TypeVar("T", bound=type)

_MODULES = {
    "linear_probe": "evenhand.methods.baselines.linear_probe",
    "finetune": "evenhand.methods.baselines.erm",
    "resample": "evenhand.methods.baselines.resample",
    "reweight": "evenhand.methods.baselines.reweight",
    "group_dro": "evenhand.methods.baselines.group_dro",
    "dfr": "evenhand.methods.baselines.dfr",
    "eo_head": "evenhand.methods.baselines.eo_head",
    "leace": "evenhand.methods.baselines.leace",
    "least_encoding": "evenhand.methods.baselines.least_encoding",
    "thresholds": "evenhand.methods.baselines.thresholds",
    "fairprune": "evenhand.methods.baselines.fairprune",
    "fscl": "evenhand.methods.baselines.fscl",
    "dne": "evenhand.methods.editing.dne",
    "gezo": "evenhand.methods.editing.gezo",
}
_CLASSES: dict[str, type] = {}


def register(name: str) -> Callable[[T], T]:
    """Class decorator: make a method known under a name. The class is called with its configuration.

    Raises:
        ConfigError: the name belongs to another class.

    Example:
        >>> @register("mine")
        ... class Mine:
        ...     def __init__(self, config):
        ...         self.config = config
        >>> "mine" in METHODS
        True
        >>> _ = _CLASSES.pop("mine")
    """

    def decorate(cls: T) -> T:
        known = _CLASSES.get(name)
        owner = f"{known.__module__}.{known.__qualname__}" if known is not None else _MODULES.get(name)
        here = f"{cls.__module__}.{cls.__qualname__}" if known is not None else cls.__module__
        if owner is not None and owner != here:
            raise ConfigError(f"method name '{name}' is taken by {owner}, so {cls.__module__}.{cls.__qualname__} needs another name")
        _CLASSES[name] = cls
        return cls

    return decorate


class _Methods(Mapping[str, type]):
    """Name -> class; iterating lists names without importing any method."""

    def __getitem__(self, name: str) -> type:
        if name not in _CLASSES and name in _MODULES:
            importlib.import_module(_MODULES[name])
        if name not in _CLASSES:
            raise KeyError(name)
        return _CLASSES[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*_MODULES, *_CLASSES]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in _MODULES or name in _CLASSES


METHODS: Mapping[str, type] = _Methods()
"""Every method by its registry name."""


def get_method(config: MethodConfig) -> Method:
    """The method a configuration names.

    Args:
        config: a method's configuration; ``config.name`` is the registry name.

    Raises:
        ConfigError: no method has this name; the known ones and the nearest are listed.

    Example:
        >>> from evenhand.config.methods import LinearProbeConfig
        >>> type(get_method(LinearProbeConfig(l2=0.1))).__name__
        'LinearProbe'
    """
    name: Any = config.name
    if name not in METHODS:
        near = difflib.get_close_matches(str(name), list(METHODS), n=1)
        hint = f" did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"method '{name}' is not known;{hint} known methods: {', '.join(METHODS)}")
    method: Method = METHODS[name](config)
    return method
