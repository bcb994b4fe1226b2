"""Which weights may move: the ratio of importances for bias and prediction, and the mask of those where it is high.

    safe            r = (I_b / M_b) / (I_p / M_p + d m / M_p),   M means over the body, m the tensor's own mean of I_p, d `DAMPING`
    minmax          r = u(I_b) / (u(I_p) + 1e-10),   u scales a tensor to [0, 1] by its smallest and largest entry (published)
    released        the same as in each released code: BMFT's u of a constant tensor is NaN, and one NaN empties the mask; SWiFT's
                    (soft) leaves a constant tensor as it is, and adds 1e-10 to the range, which is much where importances are small

    mask = r > threshold (weight),   R > threshold for all entries of a tensor (layer) or block;   soft: tanh(r) (SWiFT)

The published scaling turns the smallest I_p of every tensor to zero, so that the ratio there is I_b times 1e10, and throws away how
tensors compare. The safe ratio does not change where bias or loss are multiplied by a constant, or one tensor's importances are both;
it is 0 where I_b is 0, finite everywhere, and 1 where a weight matters to bias as it does to prediction. Importances that are NaN or
infinite count in no mean and have ratio 0: such a weight never moves. A tensor or block has R, the ratio of its mean importances
(safe), or the mean of its ratios (published).

The threshold is the ratio that a share ``rate`` of the body's weights exceeds, the percentile 100 (1 - rate) as numpy defines it; the
mean ratio; or given. It is found exactly without a copy: ratios are computed in chunks, and a non-negative float32 has the order of
its bits, so that two histograms of 16 bits each hold the rank that is looked for. Where many ratios equal the threshold (zeros), fewer
weights are selected, as published: only those above.

References:
    Xue et al., "BMFT", arXiv 2408.06890 (half of all weights; in the released code ``layer`` selects every tensor), and SWiFT.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from evenhand.errors import MethodError
from evenhand.models.parameters import _unwrap, head_prefixes
from evenhand.models.parts import make_parts
from evenhand.random import derive_seed

DAMPING = 0.01
"""d: a prediction importance below a hundredth of its tensor's mean counts as that."""
TINY = 1e-10
"""What the published code adds to divisors."""
CHUNK = 2**16
"""Entries looked at together: 256 KiB of float32, so that all that is computed from them stays small, and in the processor's cache."""
DRAWN = 2**18
"""Scores of a random mask that come from one seed."""

MASK_TYPES = ("fisher", "gradient", "random", "all")
SCALES = ("weight", "layer", "block")
RATIOS = ("safe", "minmax", "released")
Score = Callable[[str, int, int], Tensor]
"""(name, start, stop) -> non-negative float32 scores of a tensor's entries."""


@dataclass(frozen=True)
class WeightMask:
    """Which weights may move.

    Attributes:
        values: parameter name -> bool tensor of its shape, of the body; soft masks float32 in [0, 1], of all parameters given.
        threshold: what scores had to exceed; None where nothing was compared.
        selected: entries of the body that may move.
        total: entries of the body.
        units: for scales layer and block: unit -> score.
    """

    values: Mapping[str, Tensor]
    threshold: float | None
    selected: int
    total: int
    units: Mapping[str, float] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Share of the body's weights that may move."""
        return self.selected / self.total if self.total else 0.0


def make_mask(
    model: nn.Module,
    bias: Mapping[str, Tensor] | None = None,
    prediction: Mapping[str, Tensor] | None = None,
    *,
    mask_type: str = "fisher",
    scale: str = "weight",
    rate: float | None = 0.5,
    ratio_threshold: float | None = None,
    ratio: str = "safe",
    soft: bool = False,
    seed: int = 0,
    allow_empty: bool = False,
) -> WeightMask:
    """The mask of a network from its importances.

    Args:
        model: an `ImageClassifier` or a timm network; names are those of the timm network.
        bias: I_b of every parameter, from `importances`; not read for random and all.
        prediction: I_p, likewise.
        mask_type: fisher and gradient differ in the importances alone; random selects as many weights blindly; all takes every one.
        scale: what is selected together: a weight, a tensor (layer), or a block of the network (`make_parts`); what lies outside
            the blocks is taken or left by top-level module.
        rate: share of the body's weights (tensors, blocks) above the threshold, in (0, 1]; None: those above the mean.
        ratio_threshold: the threshold itself, in place of ``rate``.
        ratio: "safe", "minmax" or "released".
        soft: tanh of the ratios in place of a threshold, scale weight only; the head has values too, which say what is
            initialised anew.
        seed: of a random mask.
        allow_empty: give back a mask that selects nothing, instead of refusing it.

    Returns:
        The mask; the head is never in it, other than softly.

    Raises:
        MethodError: an option is unknown or out of range, importances are missing or of another network, or nothing is selected.

    Example:
        >>> from timm import create_model
        >>> network = create_model("resnet10t", num_classes=1)
        >>> ones = {name: torch.ones_like(p) for name, p in network.named_parameters()}
        >>> uneven = {**ones, "layer1.0.conv1.weight": 9 * ones["layer1.0.conv1.weight"]}
        >>> mask = make_mask(network, uneven, ones, rate=0.01)
        >>> [name for name, chosen in mask.values.items() if chosen.all()]
        ['layer1.0.conv1.weight']
    """
    check_choice(mask_type, scale, rate, ratio_threshold, ratio, soft)
    parameters = {name: value.detach() for name, value in _unwrap(model).named_parameters()}
    heads = _heads(model)
    body = {name: value for name, value in parameters.items() if not (heads and name.startswith(heads))}
    total = sum(value.numel() for value in body.values())
    if mask_type == "all":
        return WeightMask({name: torch.ones_like(value, dtype=torch.bool) for name, value in body.items()}, None, total, total)
    if mask_type == "random":
        score, device = _random(seed), {name: value.device for name, value in body.items()}
        ratios = None
    else:
        ratios = _Ratios.of(parameters, body, bias, prediction, ratio, soft)
        score, device = ratios.score, {name: ratios.bias[name].device for name in parameters}
    shapes = {name: parameters[name].shape for name in (parameters if soft else body)}
    if soft:
        values = {name: _filled(shape, device[name], torch.float32, _tanh(score, name)) for name, shape in shapes.items()}
        return WeightMask(values, None, sum(int(values[name].count_nonzero()) for name in body), total)
    units: dict[str, float] = {}
    if scale == "weight":
        threshold = ratio_threshold if ratio_threshold is not None else _threshold(score, body, rate)
        chosen = {name: _filled(shape, device[name], torch.bool, _above(score, name, threshold)) for name, shape in shapes.items()}
    else:
        members = _units(model, list(body), scale)
        units = {unit: _unit_score(unit, own, body, score, ratios) for unit, own in members.items()}
        threshold = ratio_threshold if ratio_threshold is not None else _unit_threshold(list(units.values()), rate)
        taken = {name: units[unit] > threshold for unit, own in members.items() for name in own}
        chosen = {name: torch.full(shape, taken[name], dtype=torch.bool, device=device[name]) for name, shape in shapes.items()}
    selected = sum(int(value.count_nonzero()) for value in chosen.values())
    if not selected and not allow_empty:
        raise MethodError(_nothing(threshold, ratio))
    return WeightMask(chosen, threshold, selected, total, units)


def check_choice(mask_type: str, scale: str, rate: float | None, ratio_threshold: float | None, ratio: str, soft: bool) -> None:
    """Refuse options of a mask, named as those of `make_mask`, before any work.

    Raises:
        MethodError: one is unknown or out of range, or two contradict each other.
    """
    choices = (("mask_type", mask_type, MASK_TYPES), ("mask_scale", scale, SCALES), ("ratio", ratio, RATIOS))
    for what, value, known in choices:
        if value not in known:
            raise MethodError(f"{what} is '{value}', but must be one of {', '.join(known)}")
    if rate is not None and not 0 < rate <= 1:
        raise MethodError(f"rate is {rate:g}, but must be a share of the weights in (0, 1]; leave it out for those above the mean")
    if ratio_threshold is not None and not (math.isfinite(ratio_threshold) and ratio_threshold >= 0):
        raise MethodError(f"ratio_threshold is {ratio_threshold:g}, but must be a finite ratio of at least 0")
    if soft and (scale != "weight" or mask_type not in ("fisher", "gradient")):
        raise MethodError(f"a soft mask is of single weights and their ratios, but mask_scale is {scale} and mask_type {mask_type}")


def _nothing(threshold: float, ratio: str) -> str:
    if math.isnan(threshold):
        return f"ratio={ratio} is NaN for a tensor whose importances are all equal, so no weight is selected; use ratio=safe"
    return (
        f"no weight has a ratio above {threshold:.4g}, so nothing would be changed: the bias has no gradient, all ratios are equal, or "
        "the threshold is too high; look at the external set's groups, or use another rate or bias term"
    )


def _heads(model: nn.Module) -> tuple[str, ...]:
    network = _unwrap(model)
    has_head = hasattr(network, "get_classifier") or getattr(network, "pretrained_cfg", None)
    return head_prefixes(network) if has_head else ()


def _chunks(n: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + CHUNK, n)) for start in range(0, n, CHUNK))


def _filled(shape: torch.Size, device: torch.device, dtype: torch.dtype, values: Callable[[int, int], Tensor]) -> Tensor:
    """A tensor filled chunk by chunk."""
    out = torch.empty(shape, dtype=dtype, device=device)
    flat = out.view(-1)
    for start, stop in _chunks(flat.numel()):
        flat[start:stop] = values(start, stop)
    return out


def _above(score: Score, name: str, threshold: float) -> Callable[[int, int], Tensor]:
    return lambda start, stop: score(name, start, stop) > _rounded_down(threshold)


def _tanh(score: Score, name: str) -> Callable[[int, int], Tensor]:
    return lambda start, stop: torch.tanh(score(name, start, stop))


def _rounded_down(value: float) -> float:
    """The largest float32 that is not above a value: entries are compared in float32."""
    near = np.float32(value)
    return float(near if not near > value else np.nextafter(near, np.float32(-np.inf)))


@dataclass(frozen=True)
class _Moments:
    """What a ratio needs to know of one tensor's importances: sums and counts of finite entries, lowest and highest entry."""

    sums: tuple[float, float]
    counts: tuple[int, int]
    lows: tuple[float, float]
    highs: tuple[float, float]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> _Moments:
        sums, counts, lows, highs = [], [], [], []
        for tensor in tensors:
            flat, total, count, low, high = tensor.reshape(-1), 0.0, 0, math.inf, -math.inf
            for start, stop in _chunks(flat.numel()):
                part = flat[start:stop]
                finite = torch.isfinite(part)
                count += int(finite.sum())
                total += float(torch.where(finite, part, 0.0).sum(dtype=torch.float64))
                least, most = (float(value) for value in torch.aminmax(part))
                # NaN wins, as it does for a whole tensor
                low = least if least < low or math.isnan(least) else low
                high = most if most > high or math.isnan(most) else high
            sums.append(total)
            counts.append(count)
            lows.append(low)
            highs.append(high)
        return cls((sums[0], sums[1]), (counts[0], counts[1]), (lows[0], lows[1]), (highs[0], highs[1]))

    def mean(self, which: int) -> float:
        """Of the finite entries; 0 without any."""
        return self.sums[which] / self.counts[which] if self.counts[which] else 0.0


@dataclass(frozen=True)
class _Ratios:
    """Ratios of importances, computed where they are looked at."""

    bias: Mapping[str, Tensor]
    prediction: Mapping[str, Tensor]
    moments: Mapping[str, _Moments]
    means: tuple[float, float]
    ratio: str
    soft: bool

    @classmethod
    def of(
        cls, parameters: Mapping[str, Tensor], body: Mapping[str, Tensor], bias: Mapping[str, Tensor] | None,
        prediction: Mapping[str, Tensor] | None, ratio: str, soft: bool,
    ) -> _Ratios:
        found = []
        for what, given in (("bias", bias), ("prediction", prediction)):
            if given is None:
                raise MethodError(f"a mask by importance needs the importances for {what}; compute them, or use mask_type=random or all")
            for name, value in parameters.items():
                if name not in given or given[name].shape != value.shape:
                    got = f"of shape {tuple(given[name].shape)}" if name in given else "missing"
                    needed = f"it must have the parameter's shape {tuple(value.shape)}"
                    raise MethodError(f"importance of '{name}' for {what} is {got}, but {needed}; compute it from this network")
            found.append({name: given[name].detach() for name in parameters})
        moments = {name: _Moments.of([own[name] for own in found]) for name in parameters}
        means = []
        for which in (0, 1):
            count = sum(moments[name].counts[which] for name in body)
            means.append(sum(moments[name].sums[which] for name in body) / max(count, 1))
        return cls(found[0], found[1], moments, (means[0], means[1]), ratio, soft)

    def score(self, name: str, start: int, stop: int) -> Tensor:
        """Ratios of some entries: float32, not negative; NaN only for a hard mask of ratio=released."""
        own = self.moments[name]
        bias, prediction = (given[name].reshape(-1)[start:stop].float() for given in (self.bias, self.prediction))
        if self.ratio != "safe":
            scaled = [self._unit(value, own.lows[k], own.highs[k]) for k, value in enumerate((bias, prediction))]
            return scaled[0] / (scaled[1] + TINY)
        least = self._least(own.mean(1))
        divisor = (prediction / self.means[1] if self.means[1] > 0 else prediction * 0.0).add_(least)
        ratio = (bias / self.means[0] if self.means[0] > 0 else bias * 0.0).div_(divisor)
        usable = torch.isfinite(bias) & torch.isfinite(prediction)
        return torch.where(usable, ratio.clamp_(max=torch.finfo(torch.float32).max), 0.0)

    def _least(self, mean: float) -> float:
        """d m / M_p, with M_p for a tensor without any importance; at least the smallest normal float32."""
        relative = mean / self.means[1] if mean > 0 and self.means[1] > 0 else 1.0
        return max(DAMPING * relative, float(np.finfo(np.float32).tiny))

    def _unit(self, value: Tensor, low: float, high: float) -> Tensor:
        if high == low and (self.soft or self.ratio == "minmax"):
            return value
        reach = high - low + (TINY if self.soft and self.ratio == "released" else 0.0)
        return (value - low) / reach if high != low else torch.full_like(value, torch.nan)

    def of_unit(self, names: Sequence[str]) -> float:
        """Ratio of the mean importances of some tensors."""
        means = []
        for which in (0, 1):
            count = sum(self.moments[name].counts[which] for name in names)
            means.append(sum(self.moments[name].sums[which] for name in names) / max(count, 1))
        if self.means[0] <= 0:
            return 0.0
        relative = means[1] / self.means[1] if self.means[1] > 0 else 0.0
        return means[0] / self.means[0] / (relative + self._least(means[1]))


def _random(seed: int) -> Score:
    """Uniform scores, the same however often and in whatever parts they are asked for."""
    held: dict[tuple[str, int], Tensor] = {}

    def block(name: str, first: int) -> Tensor:
        if (name, first) not in held:
            held.clear()
            source = torch.Generator().manual_seed(derive_seed(seed, "mask", name, first))
            held[name, first] = torch.rand(DRAWN, generator=source)
        return held[name, first]

    def score(name: str, start: int, stop: int) -> Tensor:
        first = start - start % DRAWN
        parts = [block(name, own)[max(start - own, 0) : stop - own] for own in range(first, stop, DRAWN)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return score


def _every(score: Score, tensors: Mapping[str, Tensor]) -> Iterator[Tensor]:
    for name, value in tensors.items():
        for start, stop in _chunks(value.numel()):
            yield score(name, start, stop)


def _threshold(score: Score, tensors: Mapping[str, Tensor], rate: float | None) -> float:
    """The percentile 100 (1 - rate) of all scores, or their mean; below all of them for a rate of 1."""
    n = sum(value.numel() for value in tensors.values())
    if rate is None:
        return sum(float(part.sum(dtype=torch.float64)) for part in _every(score, tensors)) / max(n, 1)
    if rate == 1:
        return -1.0
    return percentile(lambda: _every(score, tensors), n, 100.0 * (1.0 - rate))


def percentile(parts: Callable[[], Iterator[Tensor]], n: int, q: float) -> float:
    """A percentile of non-negative float32 numbers that are never held together, exactly as numpy interpolates it.

    Two passes: a histogram of the upper sixteen bits finds the bin of a rank, one of the lower sixteen bits the number.

    Args:
        parts: gives the same numbers every time it is called, in tensors of any length.
        n: how many there are, at least 1.
        q: percentile in [0, 100].

    Returns:
        NaN where any number is NaN.

    Example:
        >>> percentile(lambda: iter([torch.tensor([3.0, 1.0]), torch.tensor([2.0])]), 3, 25)
        1.5
    """
    position = q / 100.0 * (n - 1)
    ranks = (math.floor(position), min(math.floor(position) + 1, n - 1))
    upper = torch.zeros(2**15, dtype=torch.int64)
    for part in parts():
        if bool(torch.isnan(part).any()):
            return math.nan
        upper += torch.bincount(part.abs().view(torch.int32) >> 16, minlength=2**15).cpu()
    before = torch.cat([torch.zeros(1, dtype=torch.int64), upper.cumsum(0)])
    bins = [int(torch.searchsorted(before, rank, right=True)) - 1 for rank in ranks]
    lower = {own: torch.zeros(2**16, dtype=torch.int64) for own in bins}
    for part in parts():
        bits = part.abs().view(torch.int32)
        for own, counts in lower.items():
            inside = bits[(bits >> 16) == own]
            counts += torch.bincount(inside & 0xFFFF, minlength=2**16).cpu()
    found = []
    for rank, own in zip(ranks, bins, strict=True):
        within = int(torch.searchsorted(lower[own].cumsum(0), rank - int(before[own]), right=True))
        found.append(float(torch.tensor((own << 16) | within, dtype=torch.int32).view(torch.float32)))
    share = position - ranks[0]
    return found[0] + (found[1] - found[0]) * share if share > 0 and found[0] < found[1] else found[0]


def _units(model: nn.Module, names: Sequence[str], scale: str) -> dict[str, list[str]]:
    """Unit -> its parameters; every parameter of the body is in one."""
    if scale == "layer":
        return {name: [name] for name in names}
    known: dict[str, str] = {}
    try:
        known = {name: part.name for part in make_parts(model, "blocks") for name in part.parameters}
    except (MethodError, AttributeError):
        # a network whose blocks are not known: by top-level module
        known = {}
    units: dict[str, list[str]] = {}
    for name in names:
        units.setdefault(known.get(name, name.split(".", 1)[0]), []).append(name)
    return units


def _unit_score(unit: str, names: Sequence[str], body: Mapping[str, Tensor], score: Score, ratios: _Ratios | None) -> float:
    if ratios is None:
        return float(score(f"unit {unit}", 0, 1)[0])
    if ratios.ratio == "safe":
        return ratios.of_unit(names)
    own = {name: body[name] for name in names}
    return _threshold(score, own, None)


def _unit_threshold(scores: Sequence[float], rate: float | None) -> float:
    if rate is None:
        return float(np.mean(scores))
    return -1.0 if rate == 1 else float(np.percentile(scores, 100.0 * (1.0 - rate)))
