"""Optimiser steps under a mask that keep every other entry bit for bit.

    SGD     u = m (g + w theta),  v <- mu v + u,   theta <- theta - lr v                              (m in {0, 1} or [0, 1])
    Adam    moments of g,                           theta <- theta - lr m (g_hat / (sqrt(s_hat) + eps) + w theta)
    L1      on weights: u gains l1 sign(theta); on the change: theta - theta_0 is soft-thresholded by lr l1

and where m is 0 theta is not written at all: no decay, no momentum, and not even the sign of a zero changes. Multiplying
gradients by a mask and calling an ordinary optimiser, as the released code does, lets decay move every entry, and with Adam a
soft mask hardly acts: m divides out of m g_hat / sqrt(m^2 s_hat). ``exact=False`` is that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from evenhand.errors import MethodError

BETAS, EPS = (0.9, 0.999), 1e-8


class MaskedUpdate:
    """Steps of SGD or Adam on the parameters of a mask.

    Args:
        parameters: name -> parameter.
        mask: name -> mask of its shape, bool or in [0, 1]; a parameter without one, or with none but ones, moves in full.
        optimizer: "sgd" or "adam".
        momentum: of SGD.
        weight_decay: of the entries that move.
        l1: weight of the L1 term.
        l1_on: "weights" or "change".
        exact: whether entries outside the mask keep their bits.

    Raises:
        MethodError: a mask of another shape, or one that leaves nothing to move.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.ones_(layer.weight)
        >>> update = MaskedUpdate({"w": layer.weight}, {"w": torch.tensor([[True, False]])}, weight_decay=0.5)
        >>> layer.weight.grad = torch.ones(1, 2)
        >>> update.step(0.1)
        >>> layer.weight.tolist()
        [[0.8500000238418579, 1.0]]
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        mask: Mapping[str, Tensor] | None = None,
        *,
        optimizer: str = "sgd",
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        l1: float = 0.0,
        l1_on: str = "weights",
        exact: bool = True,
    ) -> None:
        if optimizer not in ("sgd", "adam"):
            raise MethodError(f"optimizer is '{optimizer}', but must be sgd or adam")
        self.optimizer, self.momentum, self.weight_decay, self.l1, self.l1_on = optimizer, momentum, weight_decay, l1, l1_on
        self.exact, self.steps = exact, 0
        kept = {name: _checked(name, parameter, (mask or {}).get(name)) for name, parameter in parameters.items()}
        self.names = [name for name, value in kept.items() if not exact or value is None or bool(value.any())]
        if not self.names:
            raise MethodError("the mask leaves no weight to move; raise the rate, or lower the threshold on the ratio")
        self.parameters = [parameters[name] for name in self.names]
        self.masks = [kept[name] for name in self.names]
        self.scales = [value if value is None or value.is_floating_point() else value.to(self.parameters[k].dtype)
                       for k, value in enumerate(self.masks)] if not exact else self.masks
        self.buffers: dict[str, list[Tensor]] = {}
        self.start = [parameter.detach().clone() for parameter in self.parameters] if l1 > 0 and l1_on == "change" else []

    def clear(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Move the parameters by their gradients; parameters without a gradient in this step have one of zero."""
        self.steps += 1
        values = [parameter.detach() for parameter in self.parameters]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        if self.l1 > 0 and self.l1_on == "weights":
            grads = list(torch._foreach_add(grads, torch._foreach_sign(values), alpha=self.l1))
        moved = self._sgd(grads, values, lr) if self.optimizer == "sgd" else self._adam(grads, values, lr)
        if self.start:
            moved = [_shrunk(value, first, lr * self.l1) for value, first in zip(moved, self.start, strict=True)]
        for parameter, value, mask in zip(self.parameters, moved, self.masks, strict=True):
            parameter.copy_(value if mask is None or not self.exact else torch.where(mask > 0, value, parameter))

    def _sgd(self, grads: list[Tensor], values: list[Tensor], lr: float) -> list[Tensor]:
        if not self.exact:
            grads = self._scaled(grads)
        if self.weight_decay:
            grads = list(torch._foreach_add(grads, values, alpha=self.weight_decay))
        if self.exact:
            grads = self._scaled(grads)
        if not self.momentum:
            return list(torch._foreach_add(values, grads, alpha=-lr))
        if "momentum" not in self.buffers:
            self.buffers["momentum"] = [grad.clone() for grad in grads]
        else:
            torch._foreach_mul_(self.buffers["momentum"], self.momentum)
            torch._foreach_add_(self.buffers["momentum"], grads)
        return list(torch._foreach_add(values, self.buffers["momentum"], alpha=-lr))

    def _adam(self, grads: list[Tensor], values: list[Tensor], lr: float) -> list[Tensor]:
        if not self.exact:
            grads = self._scaled(grads)
        if "first" not in self.buffers:
            self.buffers = {name: [torch.zeros_like(grad) for grad in grads] for name in ("first", "second")}
        first, second = self.buffers["first"], self.buffers["second"]
        torch._foreach_mul_(first, BETAS[0])
        torch._foreach_add_(first, grads, alpha=1 - BETAS[0])
        torch._foreach_mul_(second, BETAS[1])
        torch._foreach_addcmul_(second, grads, grads, 1 - BETAS[1])
        spread = list(torch._foreach_sqrt(second))
        torch._foreach_div_(spread, (1 - BETAS[1] ** self.steps) ** 0.5)
        torch._foreach_add_(spread, EPS)
        moved = list(torch._foreach_mul(values, 1 - lr * self.weight_decay)) if self.weight_decay else list(torch._foreach_clone(values))
        torch._foreach_addcdiv_(moved, first, spread, -lr / (1 - BETAS[0] ** self.steps))
        return self._softened(values, moved) if self.exact else moved

    def _scaled(self, grads: list[Tensor]) -> list[Tensor]:
        """Gradients times soft masks; a hard mask acts where values are written, unless it is not exact."""
        pairs = zip(grads, self.scales, strict=True)
        return [grad if scale is None or not scale.is_floating_point() else grad * scale for grad, scale in pairs]

    def _softened(self, values: list[Tensor], moved: list[Tensor]) -> list[Tensor]:
        """As much of a step as a soft mask lets through: Adam's does not depend on the size of gradients."""
        triples = zip(values, moved, self.masks, strict=True)
        return [new if mask is None or not mask.is_floating_point() else torch.lerp(old, new, mask) for old, new, mask in triples]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers, for a checkpoint."""
        return {"steps": self.steps, "buffers": self.buffers, "start": self.start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.steps = int(state["steps"])
        self.buffers = {name: self._placed(tensors) for name, tensors in state["buffers"].items()}
        self.start = self._placed(state["start"]) if state["start"] else []

    def _placed(self, tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.to(parameter.device, copy=True) for tensor, parameter in zip(tensors, self.parameters, strict=True)]


def _checked(name: str, parameter: Tensor, mask: Tensor | None) -> Tensor | None:
    """A mask on the parameter's device; None where it holds nothing back."""
    if mask is None:
        return None
    if mask.shape != parameter.shape:
        raise MethodError(f"the mask of '{name}' has shape {tuple(mask.shape)}, but the weight has {tuple(parameter.shape)}")
    if mask.is_floating_point() and not bool(torch.isfinite(mask).all()):
        raise MethodError(f"the mask of '{name}' holds NaN or infinity; make it anew from finite importances")
    mask = mask.to(parameter.device)
    return None if bool((mask == 1).all()) else mask


def _shrunk(value: Tensor, first: Tensor, by: float) -> Tensor:
    """Towards where it started, by at most ``by``; exactly there where it is nearer."""
    change = value - first
    size = change.abs() - by
    return torch.where(size > 0, first + change.sign() * size, first)
