"""A start for fine-tuning: the head fitted on the embeddings of the network as it comes, before anything else moves.

With a head at random the first epochs send noise through the trained parts; a fitted one is where a linear probe ends. The
embeddings come from the run's cache, so that this costs one pass over the training images for all runs together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from evenhand.errors import MethodError
from evenhand.methods.fitting import HeadSpec, fit_head

if TYPE_CHECKING:
    from evenhand.methods.base import Task


def warm_head(model: nn.Module, task: Task, *, l2: float = 1e-3) -> tuple[str, ...]:
    """Fit the head of a network on cached embeddings of the training rows, in place; nothing else changes.

        W, b = argmin  mean_i w_i * loss(W phi(x_i) + b, y_i) + l2 / 2 * ||W S||^2,     S the embeddings' deviations

    with the trainer's class weights.

    Args:
        model: an `ImageClassifier` with the weights of the task's encoder, whose head is one linear layer.
        task: gives rows, labels and embeddings.
        l2: L2 strength on standardised embeddings.

    Returns:
        Notes: labels whose score is constant, for lack of a second class.

    Raises:
        MethodError: the head is not one linear layer on the embedding, or no label has two classes.

    Example:
        >>> model = task.build_model(task.n_outputs)  # doctest: +SKIP
        >>> warm_head(model, task)  # doctest: +SKIP
        ()
    """
    from evenhand.models.parameters import head_prefixes

    network = getattr(model, "network", model)
    names = head_prefixes(network)
    head = network.get_submodule(names[0].rstrip("."))
    embeddings = task.embed(task.train.x)
    if len(names) != 1 or not isinstance(head, nn.Linear) or head.in_features != embeddings.shape[1] or head.bias is None:
        what = f"{len(names)} heads" if len(names) != 1 else f"a {type(head).__name__}"
        raise MethodError(
            f"the network's head is {what}, but only one linear layer on embeddings of width {embeddings.shape[1]} can be fitted "
            "beforehand; start from a head at random (warm_head=false)"
        )
    spec = HeadSpec(task.kind, task.labels, task.classes, l2=l2, class_weights=task.trainer.class_weights)
    fitted = fit_head(embeddings, task.train.y, spec)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(fitted.weight))
        head.bias.copy_(torch.from_numpy(fitted.bias))
    return fitted.notes
