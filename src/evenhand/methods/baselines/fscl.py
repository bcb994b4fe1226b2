"""FSCL: train the encoder by a supervised contrastive loss whose negatives come from the anchor's own group, then fit a head.

1. With z_i the projection of image i on the unit sphere, sim_ij = z_i' z_j / temperature, and in a batch

       P(i) = {j != i : y_j = y_i}                      positives, whatever their group
       N(i) = {j : y_j != y_i, a_j = a_i}               negatives, of the anchor's group only
       l_ij = -sim_ij + log sum_{k in N(i)} exp(sim_ik)

   the loss is the mean over anchors i, and over j in P(i), of l_ij. What parts two groups cannot lower it, since no image is pushed
   from one of another group. With ``normalise`` (the paper's FSCL+) every group x label cell counts equally among
   the anchors, and every group equally among an anchor's positives.
2. The projection is thrown away, and an L2-regularised logistic head fitted on the encoder's embeddings, as `linear_probe` fits one.

An anchor without a positive or without a negative in its batch is left out; the notes say how many were not. The last epoch is taken:
the loss on validation rows says nothing of a gap. Any number of groups; several classes need no change. Several labels: a
projection for each, and the mean of their losses. Rows whose attribute is missing have no negatives, so they are not in the
loss; the head is fitted on them too.

References:
    Park, Lee, Lee, Hwang, Kim, Byun, "Fair contrastive learning for facial attribute classification", CVPR 2022, arXiv
    2203.16209. There two augmented views of every image are in a batch and the encoder starts at random; here there is one
    view, so positives are other images, and the encoder starts from the run's checkpoint. In the authors' code an anchor without
    a negative still pulls its positives, the loss is scaled by temperature / 0.07, and positives of a cell of n rows are
    divided by n - 1 for all anchors; here by how many of them are positives of the anchor.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenhand.config.methods import FSCLConfig
from evenhand.errors import MethodError
from evenhand.methods.base import Images, Result, Task
from evenhand.methods.baselines.dfr import features_of, linear_head, put_head
from evenhand.methods.baselines.erm import take_rows
from evenhand.methods.baselines.linear_probe import head_spec
from evenhand.methods.cells import choose_attribute, groups_of, missing_note
from evenhand.methods.fitting import fit_head, label_columns
from evenhand.methods.heads import Embeddings
from evenhand.methods.predictors import ModelPredictor
from evenhand.methods.registry import register


def contrastive_loss(z: Tensor, y: Tensor, groups: Tensor, temperature: float, normalise: bool) -> tuple[Tensor, int]:
    """The fair supervised contrastive loss of one batch; see the module.

    Args:
        z: (n, d), rows of length 1.
        y: int64 (n,) classes, -1 where unlabelled.
        groups: int64 (n,), -1 where missing; rows without a class or a group are left out.
        temperature: of the similarities.
        normalise: every cell, and every group among the positives, counts equally.

    Returns:
        The loss, 0 where no row is an anchor, and the number of anchors.

    Example:
        >>> z = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), dim=1)
        >>> loss, anchors = contrastive_loss(z, torch.tensor([1, 1, 0]), torch.tensor([0, 0, 0]), 1.0, False)
        >>> float(loss), anchors  # -1 + log exp(0), for two anchors; the third row has no positive
        (-1.0, 2)
    """
    known = (y >= 0) & (groups >= 0)
    kept, y, groups = z[known], y[known], groups[known]
    same = y[:, None] == y
    positive = same & ~torch.eye(len(y), dtype=torch.bool, device=y.device)
    negative = ~same & (groups[:, None] == groups)
    anchor = positive.any(dim=1) & negative.any(dim=1)
    n_anchors = int(anchor.sum())
    if n_anchors == 0:
        return z.sum() * 0.0, 0
    positive, negative = positive[anchor], negative[anchor]
    similarity = kept[anchor] @ kept.T / temperature
    pushed = similarity.masked_fill(~negative, -torch.inf).logsumexp(dim=1, keepdim=True)
    share = positive.to(z.dtype)
    if normalise:
        # how many of an anchor's positives are in the group of each of them
        member = F.one_hot(groups).to(z.dtype)
        count = share @ member
        share = share / count[:, groups].clamp(min=1) / (count > 0).sum(dim=1, keepdim=True)
    else:
        share = share / share.sum(dim=1, keepdim=True)
    losses = (share * (pushed - similarity)).sum(dim=1)
    if not normalise:
        return losses.mean(), n_anchors
    _, cell, size = torch.unique(torch.stack([y, groups])[:, anchor], dim=1, return_inverse=True, return_counts=True)
    return (losses / size[cell]).sum() / len(size), n_anchors


class FSCLLoss(nn.Module):
    """`contrastive_loss` as the training loop calls it: ``loss(projections, y, cells, weight)``, cells being groups.

    Args:
        kind: kind of the task.
        n_labels: labels, each with a projection of its own.
        temperature: of the similarities.
        normalise: see `contrastive_loss`.

    Attributes:
        seen: float64 (2,) anchors, and rows with a class and a group, so far; in every checkpoint.
    """

    seen: Tensor
    needs_cells = True

    def __init__(self, kind: str, n_labels: int, temperature: float, normalise: bool) -> None:
        super().__init__()
        self.kind, self.n_labels, self.temperature, self.normalise = kind, n_labels, temperature, normalise
        self.register_buffer("seen", torch.zeros(2, dtype=torch.float64))

    def forward(self, projections: Tensor, y: Tensor, cells: Tensor | None, weight: Tensor | None = None) -> Tensor:
        """Mean over the labels that have an anchor; projections (n, n_labels * d), weights are not read."""
        if cells is None:
            raise MethodError("FSCL needs the group of every training row; pass them as cells to train_model")
        columns = y[:, None] if self.kind == "multiclass" else torch.nan_to_num(y, nan=-1.0).long()
        total, used = projections.sum() * 0.0, 0
        for column, z in enumerate(projections.chunk(self.n_labels, dim=1)):
            own = columns[:, column]
            loss, anchors = contrastive_loss(z, own, cells, self.temperature, self.normalise)
            total, used = total + loss, used + (anchors > 0)
            if self.training:
                self.seen += self.seen.new_tensor([anchors, int(((own >= 0) & (cells >= 0)).sum())])
        return total / max(used, 1)


class ProjectedEncoder(nn.Module):
    """A classifier's embeddings through one small network a label, each on the unit sphere.

    Args:
        model: a classifier with ``embed``; its head is not used.
        width: numbers in an embedding.
        n_labels: projections.
        dim: numbers in a projection.
    """

    def __init__(self, model: nn.Module, width: int, n_labels: int, dim: int) -> None:
        super().__init__()
        self.model: Any = model
        heads = [nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim)) for _ in range(n_labels)]
        self.projections = nn.ModuleList(heads)

    @property
    def network(self) -> nn.Module:
        """The timm network, from which the optimiser learns layers and what is not decayed."""
        network: nn.Module = getattr(self.model, "network", self.model)
        return network

    def forward(self, images: Tensor) -> Tensor:
        """Projections (n, n_labels * dim) of images in [0, 1]."""
        embeddings = self.model.embed(images)
        return torch.cat([F.normalize(projection(embeddings).float(), dim=1) for projection in self.projections], dim=1)


@register("fscl")
class FSCL:
    """Fair supervised contrastive training of the encoder, then a linear head.

    Args:
        config: its options; see `FSCLConfig`.
    """

    def __init__(self, config: FSCLConfig | None = None) -> None:
        self.config = config or FSCLConfig()

    def fit(self, task: Task) -> Result:
        """Train on the training rows; validation rows choose the head's L2 strength.

        Raises:
            MethodError: the attribute is unknown; fewer than two groups occur, or none has two classes of a label; the network's
                last layer is not linear; or no batch had an anchor.
        """
        attribute = choose_attribute(task, self.config.attribute)
        notes = missing_note(groups_of(task.train, attribute), "are not in the contrastive loss; the head is fitted on them")
        _check_cells(task, attribute)
        model = task.build_model(task.n_outputs)
        linear_head(model)
        history, seen = self._train_encoder(task, attribute, model)
        predictor = ModelPredictor(model, task.kind, task.n_outputs, task.batch_size, task.device)
        found: dict[str, Embeddings] = {}

        def embed(images: Images) -> Embeddings:
            if images.fingerprint not in found:
                found[images.fingerprint] = features_of(predictor, images)
            return found[images.fingerprint]

        spec = head_spec(replace(task, embed=embed), self.config)
        head = fit_head(embed(task.train.x), task.train.y, spec)
        put_head(model, head)
        return Result(predictor, history=[*history, *head.history], notes=(*head.notes, *notes, *seen))

    def _train_encoder(self, task: Task, attribute: str, model: nn.Module) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        """Train in place; the loop's records and a note on the anchors."""
        from evenhand.models.networks import forked
        from evenhand.training.loop import train_model

        head = linear_head(model)
        head.requires_grad_(False)
        n_labels = len(task.labels)
        with forked(task.seed, "fscl projection"):
            encoder = ProjectedEncoder(model, head.in_features, n_labels, self.config.dim)
        loss = FSCLLoss(task.kind, n_labels, self.config.temperature, self.config.normalise)
        # the last epoch: projections are no scores, and there is nothing on validation rows to choose an epoch by
        setup = replace(task, trainer=replace(task.trainer, monitor="last", early_stopping=0))
        nothing = take_rows(task.val, np.zeros(0, dtype=np.int64))
        codes = task.train.groups[attribute].codes
        outcome = train_model(encoder, task.train, nothing, setup, loss=loss, cells=codes)
        head.requires_grad_(True)
        anchors, rows = loss.seen.tolist()
        if task.trainer.max_epochs > 0 and anchors == 0:
            raise MethodError(
                f"no batch of {task.batch_size} images held two of one class and, of the same group, one of another class, so nothing was "
                "trained; raise data.batch_size"
            )
        said = f"{anchors / rows:.0%} of the rows had a positive and a negative of their own group in their batch" if rows else ""
        return outcome.history, (*outcome.notes, *((said,) if said else ()))


def _check_cells(task: Task, attribute: str) -> None:
    """Refuse labels whose classes never meet in a group, since then no image has a negative."""
    groups = task.train.groups[attribute].codes
    for codes, labelled in label_columns(task.train.y, task.kind):
        if any(len(np.unique(codes[labelled & (groups == group)])) > 1 for group in np.unique(groups[groups >= 0])):
            return
    names = ", ".join(task.labels)
    raise MethodError(f"no group of '{attribute}' has two classes of {names}, so no image has a negative; choose another attribute")
