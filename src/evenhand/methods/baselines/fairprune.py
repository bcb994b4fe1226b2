"""FairPrune: set to zero the weights of a trained network that matter to the privileged group and little to the others.

1. Train the whole network (ERM).
2. The saliency of a weight for group g is what removing it adds to the group's mean loss, to second order at a minimum:

       s_g = 1/2 theta^2 h_g,       h_g the weight's entry of the diagonal of the loss's curvature on the group's rows
       s   = s_u - beta s_p         p the privileged group, u the unprivileged one

3. Set the weights with the smallest s to zero, up to ``share`` of them in ``rounds``; h is measured anew in each, and each
   ends with twice as many zeros as the one before, so that the first, which cost most, are looked at closely. Nothing is
   trained afterwards.
4. pick=gap: of the network as trained and after each round, the one with the smallest gap of AUC on the validation rows
   among those that give up at most ``tolerance`` of AUC there (ties: fewest zeros). pick=last: the last round.

h is the diagonal of the generalised Gauss-Newton matrix, sum_n J_n' H_n J_n / n with H_n the curvature of the loss in the
logits: diag(p) - p p' for classes, p (1 - p) for one logit. It is never negative, and where the network is piecewise linear (ReLU) it
is the diagonal of the Hessian itself. One backward pass through a sum of the rows' terms with random signs gives its
unbiased estimate for a batch of ``curvature_batch`` images; with 1 it is exact. Its noise makes weights look as if they
served p alone, and those go first, so the batches are small.

Weights are parameters of more than one dimension; biases, norms, tokens and position embeddings stay. p is the group named, else
the one with the highest AUC on validation rows. More than two groups: u is the one with the lowest AUC (pairs=max), or h_u the
mean over all but p (pairs=mean). Several labels: curvature of the summed loss, AUCs relative to a label's mean over groups, gaps
averaged over labels; several classes: as labels, each against the rest. Rows whose attribute is missing train the
network, and are in no group.

References:
    Wu, Zeng, Xu, Shi, Hu, "FairPrune: achieving fairness through pruning for dermatological disease diagnosis", MICCAI
    2022, arXiv 2203.02110: two groups, the privileged one given, convolutional networks, second derivatives by LeCun's rule
    of back-propagation, pruned until a fairness target is met. No code was released.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from evenhand.config.methods import FairPruneConfig
from evenhand.data.groups import Groups
from evenhand.errors import MethodError
from evenhand.methods.base import Images, Result, Split, Task
from evenhand.methods.baselines.erm import train_network
from evenhand.methods.cells import choose_attribute, groups_of, missing_note
from evenhand.methods.editing.attribute_head import LEAST
from evenhand.methods.fitting import label_columns
from evenhand.methods.heads import Array
from evenhand.methods.predictors import ModelPredictor
from evenhand.methods.registry import register
from evenhand.metrics.auc import auc
from evenhand.random import derive_seed, generator

Rows = npt.NDArray[np.int64]
KEPT_ROLES = ("norm", "position", "token", "scale")
USED_VALIDATION = "validation rows chose how much is pruned, so figures on them flatter the choice; judge it by other rows"


@dataclass(frozen=True)
class GroupAUCs:
    """AUC of every group for every output.

    Attributes:
        values: float64 (K, C), a column a label (several classes: a class against the rest); NaN where not estimable.
    """

    values: Array

    @classmethod
    def of(cls, split: Split, scores: Array, groups: Groups, kind: str) -> GroupAUCs:
        """Of scores (n, C); a group counts with at least 10 patients that have the label and 10 that do not."""
        values = np.full((len(groups.keys), scores.shape[1]), np.nan)
        for column, (codes, labelled) in enumerate(label_columns(split.y, kind)):
            for output in range(scores.shape[1]) if kind == "multiclass" else (column,):
                truth = codes == (output if kind == "multiclass" else 1)
                for group in range(len(groups.keys)):
                    rows = labelled & (groups.codes == group)
                    sides = (split.patient[rows & truth], split.patient[rows & ~truth])
                    if min(len(np.unique(side)) for side in sides) >= LEAST:
                        values[group, output] = auc(truth[rows], scores[rows, output])
        return cls(values[:, (~np.isnan(values)).sum(axis=0) > 1])

    @property
    def estimable(self) -> bool:
        """Whether any output has two groups to compare."""
        return bool(self.values.shape[1])

    @property
    def gap(self) -> float:
        """Highest minus lowest AUC of a group, mean over outputs."""
        return float((np.nanmax(self.values, axis=0) - np.nanmin(self.values, axis=0)).mean())

    @property
    def advantage(self) -> Array:
        """(K,) how far a group's AUC is above the mean over groups, mean over outputs; NaN for a group without any.

        Example:
            >>> GroupAUCs(np.array([[0.9, np.nan], [0.8, 0.7], [np.nan, 0.8]])).advantage.round(3)
            array([ 0.05, -0.05,  0.05])
        """
        above = self.values - np.nanmean(self.values, axis=0)
        count = (~np.isnan(above)).sum(axis=1)
        return np.where(count > 0, np.nansum(above, axis=1) / np.maximum(count, 1), np.nan)


def prunable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Weights that may be set to zero, by name in the timm network: of more than one dimension, no norm, token or position."""
    from evenhand.models.parameters import parameter_roles

    network: Any = getattr(model, "network", model)
    roles = parameter_roles(network)
    return {name: value for name, value in network.named_parameters() if value.ndim > 1 and roles[name] not in KEPT_ROLES}


def curvature_terms(logits: torch.Tensor, labelled: torch.Tensor, kind: str) -> torch.Tensor:
    """Terms (n, C) whose squared gradients sum to the diagonal of the Gauss-Newton matrix of the summed cross-entropy.

    sqrt(p_c) (z_c - sum_k p_k z_k) for classes, sqrt(p (1 - p)) z for every labelled logit z, with p held constant.
    """
    if kind == "multiclass":
        p = torch.softmax(logits.detach(), dim=1)
        return p.sqrt() * (logits - (p * logits).sum(dim=1, keepdim=True)) * labelled
    p = torch.sigmoid(logits.detach())
    return (p * (1.0 - p)).sqrt() * logits * labelled


def curvature(
    model: torch.nn.Module,
    images: Images,
    rows: Rows,
    labelled: npt.NDArray[np.bool_],
    kind: str,
    weights: Sequence[torch.Tensor],
    batch: int,
    seed: int,
) -> list[torch.Tensor]:
    """Diagonal of the Gauss-Newton matrix of the mean cross-entropy of some rows, one entry a weight.

    Args:
        model: images in [0, 1] -> logits, in evaluation mode.
        images: where to read.
        rows: (m,) positions, with a label each.
        labelled: (n, L) of all rows; several classes (n, 1).
        kind: kind of the task.
        weights: parameters of the model.
        batch: images a backward pass; their terms are summed with random signs. With 1 every term is squared by itself.
        seed: of the signs.

    Returns:
        Tensors shaped like the weights, none negative.
    """
    device = weights[0].device
    rng = torch.Generator().manual_seed(seed)
    total = [torch.zeros_like(weight) for weight in weights]
    for start in range(0, len(rows), batch):
        own = rows[start : start + batch]
        logits = model(images.batch(own).to(device)).float()
        terms = curvature_terms(logits, torch.from_numpy(labelled[own]).to(device), kind)
        signs = torch.randint(0, 2, terms.shape, generator=rng).to(device) * 2 - 1
        sums = [(terms * signs).sum()] if batch > 1 else list(terms.flatten())
        for k, value in enumerate(sums):
            found = torch.autograd.grad(value, weights, retain_graph=k + 1 < len(sums), allow_unused=True)
            for entry, gradient in zip(total, found, strict=True):
                if gradient is not None:
                    entry.addcmul_(gradient, gradient)
    return [entry / int(labelled[rows].sum()) for entry in total]


class Pruner:
    """Weights that are set to zero round by round, and can be had back.

    Args:
        weights: parameters; changed in place.

    Attributes:
        removed: int16 (n,), the round in which a weight was set to zero, 0 for those that are left.
    """

    def __init__(self, weights: Sequence[torch.nn.Parameter]) -> None:
        self.weights = weights
        self.original = torch.cat([weight.detach().flatten() for weight in weights])
        self.removed = torch.zeros(len(self.original), dtype=torch.int16, device=self.original.device)

    def prune(self, saliency: Sequence[torch.Tensor], count: int, number: int) -> None:
        """Set the weights of smallest saliency to zero, so that ``count`` are zero in all, as round ``number``."""
        flat = torch.cat([value.flatten() for value in saliency]).masked_fill(self.removed > 0, torch.inf)
        more = count - int((self.removed > 0).sum())
        self.removed[torch.topk(flat, max(more, 0), largest=False, sorted=False).indices] = number
        self.restore(number)

    def restore(self, number: int) -> None:
        """The weights as they were after a round; 0: as trained."""
        kept = self.original.masked_fill((self.removed > 0) & (self.removed <= number), 0.0)
        with torch.no_grad():
            for weight, values in zip(self.weights, torch.split(kept, [weight.numel() for weight in self.weights]), strict=True):
                weight.copy_(values.view_as(weight))

    def share(self, number: int) -> float:
        """The share of weights that are zero after a round."""
        return float(((self.removed > 0) & (self.removed <= number)).float().mean())


def choose_round(aucs: Sequence[float], gaps: Sequence[float], tolerance: float) -> int:
    """Position of the smallest gap among those with an AUC within ``tolerance`` of the first; the earliest of equals.

    Example:
        >>> choose_round([0.9, 0.895, 0.8], [0.10, 0.05, 0.01], tolerance=0.02)
        1
    """
    enough = [k for k, value in enumerate(aucs) if value >= aucs[0] - tolerance]
    return min(enough, key=lambda k: (gaps[k], k))


@register("fairprune")
class FairPrune:
    """Pruning by the difference of group-wise saliencies.

    Args:
        config: its options; see `FairPruneConfig`.
    """

    def __init__(self, config: FairPruneConfig | None = None) -> None:
        self.config = config or FairPruneConfig()

    def fit(self, task: Task) -> Result:
        """Train on the training rows, prune by their curvature, and choose on the validation rows.

        Raises:
            MethodError: the attribute or the privileged group is unknown; fewer than two groups occur; or the groups' AUCs are
                needed and not estimable.
        """
        attribute = choose_attribute(task, self.config.attribute)
        groups = groups_of(task.train, attribute)
        judged = task.val if len(task.val) else task.train
        self._check(task, groups, judged)
        result = train_network(task, task.train)
        predictor = result.predictor
        assert isinstance(predictor, ModelPredictor)
        aucs = GroupAUCs.of(judged, predictor.predict(judged.x)[0], judged.groups[attribute], task.kind)
        privileged, others = self._sides(groups, _labelled_rows(task.train, groups, task.kind), aucs)
        pruner = Pruner(list(prunable(predictor.model).values()))
        records = self._rounds(task, attribute, predictor, pruner, privileged, others)
        chosen = len(records) - 1
        if self.config.pick == "gap":
            chosen = choose_round([r["val_auc"] for r in records], [r["val_gap"] for r in records], self.config.tolerance)
        pruner.restore(chosen)
        records = [{**record, "chosen": k == chosen} for k, record in enumerate(records)]
        notes = missing_note(groups, "train the network, but are in no group when weights are chosen")
        notes = (*result.notes, *notes, *self._words(groups, privileged, others, pruner, records, chosen))
        return Result(predictor, history=[*result.history, *records], notes=notes)

    def _check(self, task: Task, groups: Groups, judged: Split) -> None:
        """What can be refused is refused before anything is trained."""
        config = self.config
        if config.privileged is not None and config.privileged not in groups.keys:
            near = difflib.get_close_matches(config.privileged, groups.keys, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "name one of them, or leave it out"
            raise MethodError(f"method.privileged is '{config.privileged}', but '{groups.attribute}' has {', '.join(groups.keys)}; {hint}")
        if config.share >= 1:
            raise MethodError(f"method.share is {config.share:g}, which leaves no weight; set it below 1")
        if config.pick == "gap" and len(task.val) == 0:
            raise MethodError("fairprune chooses how much to prune by validation rows, but there are none; set method.pick=last")
        known = _labelled_rows(task.train, groups, task.kind)
        if config.privileged is not None and len(known.get(groups.keys.index(config.privileged), ())) == 0:
            raise MethodError(f"the privileged group '{config.privileged}' has no labelled training row; name another one")
        blank = np.zeros((len(judged), task.n_outputs))
        advantage = GroupAUCs.of(judged, blank, judged.groups[groups.attribute], task.kind).advantage
        told = config.privileged is not None and (config.pairs == "mean" or len(known) == 2)
        if np.isfinite(advantage[list(known)]).sum() < 2 and (config.pick == "gap" or not told):
            where = "validation" if len(task.val) else "training"
            raise MethodError(
                f"the AUC of two groups of '{groups.attribute}' cannot be estimated on {len(judged)} {where} rows: each needs {LEAST} "
                f"patients with a label and {LEAST} without it; use a larger val split, or set method.pick=last and method.privileged"
            )

    def _sides(self, groups: Groups, known: dict[int, Rows], aucs: GroupAUCs) -> tuple[int, list[int]]:
        """The privileged group and the ones it is compared with."""
        advantage = np.where([code in known for code in range(len(groups.keys))], aucs.advantage, np.nan)
        named = self.config.privileged
        privileged = int(np.nanargmax(advantage)) if named is None else groups.keys.index(named)
        others = [code for code in known if code != privileged]
        if self.config.pairs == "mean" or len(others) == 1:
            return privileged, others
        return privileged, [min(others, key=lambda code: np.nan_to_num(advantage[code], nan=np.inf))]

    def _rounds(
        self, task: Task, attribute: str, predictor: ModelPredictor, pruner: Pruner, privileged: int, others: list[int]
    ) -> list[dict[str, Any]]:
        """Prune round by round; a record of each, the first of the network as trained."""
        config = self.config
        labelled = np.stack([mask for _, mask in label_columns(task.train.y, task.kind)], axis=1)
        known = _labelled_rows(task.train, task.train.groups[attribute], task.kind)
        rows = {}
        for code in (privileged, *others):
            drawn = generator(task.seed, "fairprune", "rows", code).permutation(known[code])[: config.images]
            rows[code] = np.sort(drawn)
        records = [self._record(task, attribute, predictor, pruner, 0)]
        for number in range(1, config.rounds + 1):
            found = {}
            for code, own in rows.items():
                seed = derive_seed(task.seed, "fairprune", number, code)
                found[code] = curvature(
                    predictor.model, task.train.x, own, labelled, task.kind, pruner.weights, config.curvature_batch, seed
                )
            saliency = []
            for k, weight in enumerate(pruner.weights):
                unprivileged = torch.stack([found[code][k] for code in others]).mean(dim=0)
                saliency.append(0.5 * weight.detach() ** 2 * (unprivileged - config.beta * found[privileged][k]))
            pruner.prune(saliency, round(config.share * len(pruner.removed) * 2.0 ** (number - config.rounds)), number)
            records.append(self._record(task, attribute, predictor, pruner, number))
            task.report(f"fairprune: {records[-1]['pruned_share']:.1%} of the weights are zero")
        return records

    def _record(self, task: Task, attribute: str, predictor: ModelPredictor, pruner: Pruner, number: int) -> dict[str, Any]:
        from evenhand.training.selection import pooled_auc

        record: dict[str, Any] = {"round": number, "pruned_share": pruner.share(number)}
        if len(task.val) == 0:
            return record
        scores = predictor.predict(task.val.x)[0]
        aucs = GroupAUCs.of(task.val, scores, task.val.groups[attribute], task.kind)
        return {**record, "val_auc": pooled_auc(task.val.y, scores, task.kind), "val_gap": aucs.gap if aucs.estimable else None}

    def _words(
        self, groups: Groups, privileged: int, others: list[int], pruner: Pruner, records: list[dict[str, Any]], chosen: int
    ) -> tuple[str, ...]:
        """Who was compared, how much is zero, and what that did on the validation rows."""
        how = "named" if self.config.privileged is not None else "highest AUC"
        against = ", ".join(groups.keys[code] for code in others)
        sides = f"'{groups.attribute}': {groups.keys[privileged]} is privileged ({how}), against {against}"
        if chosen == 0 and self.config.pick == "gap":
            rule = f"no round has a smaller validation gap within {self.config.tolerance:g} of the AUC, so the network is as trained"
            return (f"{sides}; {rule}", USED_VALIDATION)
        done = f"{records[chosen]['pruned_share']:.1%} of {len(pruner.removed)} weights are zero (round {chosen} of {self.config.rounds})"
        first, last = records[0], records[chosen]
        if last.get("val_gap") is not None and last["val_auc"] is not None:
            done += f"; on validation rows the gap of AUC went from {first['val_gap']:.3f} to {last['val_gap']:.3f}"
            done += f" and the AUC from {first['val_auc']:.3f} to {last['val_auc']:.3f}"
        return (f"{sides}; {done}", *((USED_VALIDATION,) if self.config.pick == "gap" else ()))


def _labelled_rows(split: Split, groups: Groups, kind: str) -> dict[int, Rows]:
    """Group code -> positions of its rows that have a label, for the groups that have any."""
    labelled = np.any([mask for _, mask in label_columns(split.y, kind)], axis=0)
    found = {code: np.flatnonzero(labelled & (groups.codes == code)) for code in range(len(groups.keys))}
    return {code: rows for code, rows in found.items() if len(rows)}
