"""Bias terms: one differentiable number for how unequally a network treats groups, from its logits on some rows.

With z_ic row i's log-odds of output c (its logit; of a class against the rest for several classes) and s_ic its soft decision,

    s_ic = sigmoid((z_ic - logit(threshold)) / temperature)              1 and 1/2: its probability
    r_cgk = mean of s_ic over the rows of group k on side g              side: label 1 (TPR), label 0 (FPR), all (positive rate)
    D_cg = worst pair of groups  max_kl |r_cgk - r_cgl|                  over the groups with at least `least_rows` rows there
    B = sum over attributes of  mean over outputs of  sum over sides of  D_cg

Each mode measures its own way:

- ``corrected``: as above. |x| is s(x) = sqrt(x^2 + e) - sqrt(e) and the worst pair is tau log mean exp(v / tau), so that B is smooth
  and 0 exactly where nothing differs. Gaps of different rates are added, never subtracted. Rows without a label or a group, and
  groups with too few rows, are left out instead of counted; an output where no two groups can be compared does not enter the mean.
- ``paper``: probabilities, the exact worst pair, and the mean of the two gaps for equalized odds.
- ``released``: the number of the released code, its faults included: raw logits, two groups, |dFPR + dTPR| / 2 so that opposite gaps
  cancel, an empty cell counts as rate 0, and ``tnr_diff`` and ``fnr_diff`` average over all rows outside a cell.

A batch holds few rows of a rare cell, so that its rates are mostly noise. `WholeSet` takes the rates from all rows first; the
gradient of its surrogate, averaged over the batches, is then the exact gradient of B on the whole set.

References:
    Xue, Dutt, Tsaftaris et al., "BMFT: achieving fairness via bias-based weight masking fine-tuning", FAIMI at MICCAI 2024,
    arXiv 2408.06890, and its successor SWiFT, MELBA 2025. The terms follow Savani, White, Govindarajulu, "Intra-processing methods
    for debiasing neural networks", NeurIPS 2020, arXiv 2006.08564.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from evenhand.errors import MethodError, nearest
from evenhand.methods.base import Kind
from evenhand.methods.editing.odds import EPS, TAU

RATES: Mapping[str, str] = MappingProxyType(
    {"tpr": "label 1", "fnr": "label 1", "fpr": "label 0", "tnr": "label 0", "positive_rate": "all labelled rows"}
)
"""Rate -> the rows it is a mean over. A gap of TNR is that of FPR, a gap of FNR that of TPR."""

BIASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "spd": ("positive_rate",),
        "eodds": ("tpr", "fpr"),
        "eopp": ("tpr",),
        "tpr_diff": ("tpr",),
        "fpr_diff": ("fpr",),
        "fnr_diff": ("fnr",),
        "tnr_diff": ("tnr",),
    }
)
"""Published name of a bias -> the rates whose gaps it adds. Any other sum is written with plus signs: ``tpr+positive_rate``."""

MODES = ("corrected", "paper", "released")
_SIDES = {"label 1": 0, "label 0": 1, "all labelled rows": 2}
_RELEASED = ("spd", "eodds", "eopp", "fpr_diff", "fnr_diff", "tnr_diff")


@dataclass(frozen=True)
class BiasTerm:
    """How bias is measured; call it with ``(logits, y, groups)``.

    Attributes:
        name: a key of `BIASES`, or rates of `RATES` joined by ``+``.
        mode: one of `MODES`.
        kind: "binary", "multiclass" or "multilabel".
        attributes: "sum" or "max": how several attributes become one number.
        least_rows: rows a group needs on a side to be compared there. A rate of fewer rows is left out.
        temperature: below 1 soft decisions approach hard ones, and rows far from the threshold stop pulling.
        threshold: probability at which a decision is made, in (0, 1).
        raw: take logits for scores, as released BMFT does; None: as the mode does. SWiFT's are probabilities.

    Raises:
        MethodError: an unknown name or mode, or a number outside its range.

    Example:
        >>> logits = torch.tensor([[4.0], [-4.0], [0.0], [0.0]])
        >>> y, groups = torch.tensor([[1.0], [0.0], [1.0], [0.0]]), torch.tensor([0, 0, 1, 1])
        >>> corrected = BiasTerm(least_rows=1)(logits, y, groups)
        >>> cancelling = BiasTerm(mode="released")(logits, y, groups)
        >>> round(float(corrected), 2), round(float(cancelling), 2)
        (0.94, 0.0)
    """

    name: str = "eodds"
    mode: str = "corrected"
    kind: Kind = "binary"
    attributes: str = "sum"
    least_rows: int = 2
    temperature: float = 1.0
    threshold: float = 0.5
    raw: bool | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise MethodError(f"bias mode is '{self.mode}', but must be one of {', '.join(MODES)}")
        if self.mode == "released" and self.name not in _RELEASED:
            raise MethodError(f"bias is '{self.name}', but the released code has {', '.join(_RELEASED)}; use one, or mode=corrected")
        if self.mode == "released" and self.kind != "binary":
            raise MethodError(f"the released bias terms are of one binary label, but this task is {self.kind}; use mode=corrected")
        for rate in self.rates:
            if rate not in RATES:
                raise MethodError(f"bias '{self.name}' is not known; {nearest(self.name, [*BIASES, *RATES])}")
        if self.attributes not in ("sum", "max"):
            raise MethodError(f"attributes are combined by '{self.attributes}', but must be by sum or max")
        if self.least_rows < 1 or not self.temperature > 0 or not 0 < self.threshold < 1:
            raise MethodError(
                f"least_rows is {self.least_rows}, temperature {self.temperature:g} and threshold {self.threshold:g}, but must be at "
                "least 1, above 0, and between 0 and 1"
            )

    @property
    def rates(self) -> tuple[str, ...]:
        """The rates whose gaps are added."""
        return BIASES.get(self.name) or tuple(self.name.split("+"))

    @property
    def is_raw(self) -> bool:
        """Whether scores are the logits themselves."""
        return self.mode == "released" if self.raw is None else self.raw

    def scores(self, logits: Tensor) -> Tensor:
        """s: (b, C) in [0, 1], or the logits where `is_raw`."""
        if self.is_raw:
            return logits
        centre = math.log(self.threshold / (1.0 - self.threshold))
        return torch.sigmoid((_log_odds(logits, self.kind) - centre) / self.temperature)

    def __call__(self, logits: Tensor, y: Tensor, groups: Tensor) -> Tensor:
        """B of some rows; see `bias_term`."""
        if self.mode == "released":
            return self._released(logits, y, groups)
        sums, counts = self.tabulate(self.scores(logits), y, groups)
        return self.combine(sums, counts)

    def tabulate(self, scores: Tensor, y: Tensor, groups: Tensor, n_groups: Sequence[int] = ()) -> tuple[list[Tensor], list[Tensor]]:
        """Sums of scores and numbers of rows of every cell, for every attribute.

        Args:
            scores: (b, C).
            y: labels as in `Split`: (b, L) with NaN where unlabelled; multi-class (b,), -1 where unlabelled.
            groups: (b,) or (b, A) codes, -1 where missing.
            n_groups: groups of every attribute; default: as many as occur.

        Returns:
            A tensors (C, 3, K) of sums, and as many of counts. Sides are label 1, label 0, and both.
        """
        y, groups = y.to(scores.device), groups.to(scores.device)
        truth, known = _truth(y, scores, self.kind)
        sides = torch.stack([known & truth, known & ~truth, known]).to(scores.dtype)
        sums, counts = [], []
        for position, codes in enumerate((groups[:, None] if groups.ndim == 1 else groups).unbind(1)):
            k = n_groups[position] if n_groups else _highest(codes) + 1
            member = (codes[:, None] == torch.arange(k, device=codes.device)).to(scores.dtype)
            sums.append(torch.einsum("sbc,bk->csk", sides * scores, member))
            counts.append(torch.einsum("sbc,bk->csk", sides, member))
        return sums, counts

    def combine(self, sums: Sequence[Tensor], counts: Sequence[Tensor]) -> Tensor:
        """B of what `tabulate` gives; differentiable in the sums."""
        values = [self._attribute(own, n) for own, n in zip(sums, counts, strict=True)]
        stacked = torch.stack(values)
        return stacked.max() if self.attributes == "max" else stacked.sum()

    def _attribute(self, sums: Tensor, counts: Tensor) -> Tensor:
        sides = [_SIDES[RATES[rate]] for rate in self.rates]
        rates = (sums / counts.clamp(min=1))[:, sides]
        present = (counts >= self.least_rows)[:, sides]
        first, second = torch.triu_indices(rates.shape[2], rates.shape[2], 1, device=rates.device)
        usable = present[..., first] & present[..., second]
        if not bool(usable.any()):
            return sums.sum() * 0.0
        difference = torch.where(usable, rates[..., first] - rates[..., second], 0.0)
        gaps = self._worst(difference, usable).sum(dim=1)
        if self.mode == "paper":
            gaps = gaps / len(sides)
        estimable = usable.any(dim=2).any(dim=1)
        return gaps[estimable].mean()

    def _worst(self, difference: Tensor, usable: Tensor) -> Tensor:
        """(C, S, pairs) -> (C, S); 0 where no pair is usable."""
        if self.mode == "paper":
            return difference.abs().amax(dim=2)
        sizes = torch.sqrt(difference.square() + EPS) - EPS**0.5
        number = usable.sum(dim=2).clamp(min=1).to(sizes.dtype)
        # pairs that cannot be compared have no weight: the mean is over the others
        powers = torch.where(usable, sizes / TAU, -torch.inf)
        powers = torch.where(usable.any(dim=2, keepdim=True), powers, 0.0)
        return TAU * (torch.logsumexp(powers, dim=2) - number.log()) * usable.any(dim=2)

    def _released(self, logits: Tensor, y: Tensor, groups: Tensor) -> Tensor:
        """The published function, on the rows that have a label and a group of a single attribute of two."""
        codes = (groups[:, None] if groups.ndim == 1 else groups).to(logits.device)
        if codes.shape[1] != 1 or _highest(codes) > 1 or logits.shape[1:] not in ((), (1,)):
            raise MethodError(
                f"the released bias terms compare two groups of one attribute by one logit, but got {codes.shape[1]} attributes, group "
                f"codes up to {_highest(codes)} and logits of shape {tuple(logits.shape)}; use mode=corrected"
            )
        truth, codes = y.to(logits.device).reshape(-1), codes[:, 0]
        kept = ~torch.isnan(truth) & (codes >= 0)
        scores, positive, member = self.scores(logits).reshape(-1)[kept], truth[kept] == 1, codes[kept] == 1

        def mean(rows: Tensor) -> Tensor:
            return scores[rows].mean() if bool(rows.any()) else scores.sum() * 0.0

        def gap(rows: Tensor) -> Tensor:
            return mean(~member & rows) - mean(member & rows)

        if self.name == "eodds":
            return 0.5 * (gap(~positive) + gap(positive)).abs()
        if self.name in ("fnr_diff", "tnr_diff"):
            rows = positive if self.name == "tnr_diff" else ~positive
            return (mean(~(~member & rows)) - mean(~(member & rows))).abs()
        rows = {"spd": torch.ones_like(positive), "eopp": positive, "fpr_diff": ~positive}[self.name]
        return gap(rows).abs()


def bias_term(logits: Tensor, y: Tensor, groups: Tensor, **options: object) -> Tensor:
    """How unequally groups are treated: a scalar with a gradient, 0 where nothing differs or nothing can be compared.

    Args:
        logits: (b, 1) binary, (b, L) multi-label, (b, C) multi-class.
        y: (b, L) in {0, 1}, NaN where unlabelled; multi-class int64 (b,), -1 where unlabelled.
        groups: int64 (b,), or (b, A) for several attributes; -1 where missing.
        options: fields of `BiasTerm`.

    Returns:
        B, with at most the number of rates for one attribute (mode corrected).

    Raises:
        MethodError: an option is not usable, or the released mode is asked for more than two groups.

    Example:
        >>> logits = torch.tensor([[9.0], [9.0], [-9.0], [-9.0]])
        >>> round(float(bias_term(logits, torch.ones(4, 1), torch.tensor([0, 0, 1, 1]), name="eopp")), 2)
        0.99
    """
    return BiasTerm(**options)(logits, y, groups)  # type: ignore[arg-type]


class WholeSet:
    """Rates of all rows, then per-row weights: the bias of a whole set, seen a batch at a time.

        s_cgk, n_cgk    sums of scores and counts over all N rows: first pass, `add`
        w_ic = sum over attributes and sides of  dB/ds_cgk  for the cells that row i is in
        surrogate of a batch of m rows  =  N/m sum_ic w_ic s_ic,  with the value of B

    Averaged over batches by their size, the gradient of the surrogate is that of B on all rows, exactly, as long as the network is
    the one the rates were taken from; later steps on the same rates follow a plane that touches B there.

    Args:
        term: how bias is measured; not the released mode, which is defined on batches.
        n_groups: groups of every attribute.
        n_outputs: number of logits.

    Raises:
        MethodError: the released mode.

    Example:
        >>> logits, y, groups = torch.tensor([[2.0], [0.0]]), torch.ones(2, 1), torch.tensor([0, 1])
        >>> whole = WholeSet(BiasTerm("eopp", least_rows=1), n_groups=(2,), n_outputs=1)
        >>> whole.add(logits, y, groups)
        >>> abs(float(whole.surrogate(logits, y, groups)) - float(whole.term(logits, y, groups))) < 1e-6
        True
    """

    def __init__(self, term: BiasTerm, n_groups: Sequence[int], n_outputs: int) -> None:
        if term.mode == "released":
            raise MethodError("the released bias terms are defined on batches; use mode=corrected or paper for rates of the whole set")
        self.term, self.n_groups = term, tuple(n_groups)
        self.rows = 0
        self._sums = [torch.zeros(n_outputs, 3, k, dtype=torch.float64) for k in n_groups]
        self._counts = [torch.zeros_like(own) for own in self._sums]
        self._pull: list[Tensor] | None = None

    @torch.no_grad()
    def add(self, logits: Tensor, y: Tensor, groups: Tensor) -> None:
        """Count a batch of the first pass; arguments as of `bias_term`."""
        sums, counts = self.term.tabulate(self.term.scores(logits), y, groups, self.n_groups)
        for total, own in zip([*self._sums, *self._counts], [*sums, *counts], strict=True):
            total += own.to(total)
        self.rows, self._pull = self.rows + len(logits), None

    def value(self) -> float:
        """B of all rows counted."""
        return float(self.term.combine(self._sums, self._counts))

    def surrogate(self, logits: Tensor, y: Tensor, groups: Tensor) -> Tensor:
        """A scalar with the value of B on all rows, whose mean gradient over batches is that of B.

        Raises:
            MethodError: no rows were counted.
        """
        if self.rows == 0:
            raise MethodError("no rows were counted yet; add every batch of the set first")
        if self._pull is None:
            leaves = [own.clone().requires_grad_() for own in self._sums]
            found = torch.autograd.grad(self.term.combine(leaves, self._counts), leaves)
            self._pull = list(found)
        sums, _ = self.term.tabulate(self.term.scores(logits), y, groups, self.n_groups)
        pulls = [(own * pull.to(own)).sum() for own, pull in zip(sums, self._pull, strict=True)]
        plane = torch.stack(pulls).sum() * (self.rows / len(logits))
        return plane + (self.value() - plane.detach())


def _log_odds(logits: Tensor, kind: Kind) -> Tensor:
    """(b, C) log of p / (1 - p): the logits, or z_c - log sum_{k != c} exp z_k for classes."""
    if kind != "multiclass":
        return logits
    n = logits.shape[1]
    others = logits[:, None, :].expand(-1, n, n).masked_fill(torch.eye(n, dtype=torch.bool, device=logits.device), -torch.inf)
    return logits - torch.logsumexp(others, dim=2)


def _truth(y: Tensor, scores: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Whether an output is right for a row, and whether that is known: both bool (b, C)."""
    if kind == "multiclass":
        classes = torch.arange(scores.shape[1], device=y.device)
        return y[:, None] == classes, (y >= 0)[:, None].expand_as(scores)
    if (y[:, None] if y.ndim == 1 else y).shape != scores.shape:
        raise MethodError(f"labels have shape {tuple(y.shape)} and logits {tuple(scores.shape)}; the model must give one logit a label")
    y = y.reshape(scores.shape)
    return y == 1, ~torch.isnan(y)


def _highest(codes: Tensor) -> int:
    """The highest code; -1 where there is none."""
    return int(codes.max()) if codes.numel() else -1
