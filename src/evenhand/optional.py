"""A guard for packages that are extras, and for torch and torchvision builds that do not match."""

from __future__ import annotations

import importlib
from types import ModuleType

from evenhand.errors import DependencyError


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Args:
        module: the module to import, for example ``"mlflow"``.
        extra: the extra of this package that brings it, for example ``"mlflow"``.
        purpose: what it is needed for; begins the error's sentence.

    Raises:
        DependencyError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DependencyError(
            f"{purpose} needs the package '{module.split('.')[0]}', which is not installed; "
            f"install it with: pip install 'evenhand[{extra}]'"
        ) from error


def require_torch() -> ModuleType:
    """Import torch and torchvision together, and say plainly when the two do not match.

    Wheels of torch and torchvision from two indexes fail at import with "operator torchvision::nms does not exist",
    which says nothing to a user. There is no shim: the two must come from one index.

    Raises:
        DependencyError: one of the two is missing, or they were built for different versions.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise DependencyError(f"torch cannot be imported ({error}); install torch, torchvision and timm together") from error
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, AttributeError) as error:
        raise DependencyError(
            f"torch {torch.__version__} and the installed torchvision do not match ({str(error).splitlines()[0]}); "
            "install both from one index, in one command: pip install --force-reinstall torch torchvision timm"
        ) from error
    return torch
