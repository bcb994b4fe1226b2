"""Ways to get a classifier: one file a method, all behind the same seam (`Method.fit(task) -> Result`)."""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "DFR": "evenhand.methods.baselines.dfr",
    "EOHead": "evenhand.methods.baselines.eo_head",
    "FSCL": "evenhand.methods.baselines.fscl",
    "FairPrune": "evenhand.methods.baselines.fairprune",
    "Finetune": "evenhand.methods.baselines.erm",
    "GroupDRO": "evenhand.methods.baselines.group_dro",
    "LEACE": "evenhand.methods.baselines.leace",
    "LeastEncoding": "evenhand.methods.baselines.least_encoding",
    "LinearProbe": "evenhand.methods.baselines.linear_probe",
    "METHODS": "evenhand.methods.registry",
    "Resample": "evenhand.methods.baselines.resample",
    "Result": "evenhand.methods.base",
    "Reweight": "evenhand.methods.baselines.reweight",
    "Split": "evenhand.methods.base",
    "Task": "evenhand.methods.base",
    "Thresholds": "evenhand.methods.baselines.thresholds",
    "get_method": "evenhand.methods.registry",
    "predictor_from_state": "evenhand.methods.predictors",
    "register": "evenhand.methods.registry",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that the names of methods are known without torch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'evenhand.methods' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
