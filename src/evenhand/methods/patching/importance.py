"""How much every weight matters to the bias and to the prediction: mean squared gradients, both from one forward pass.

    kind=batch      I = mean over batches of (gradient of the batch)^2                        as published
    kind=sample     I = mean over images of g_i^2,  g_i = m * dF/dz_i * dz_i/dtheta           diagonal of the empirical Fisher

F is the bias term or the prediction loss of a batch of m images with logits z, so that the mean of g_i is the gradient of the batch.
A batch's square is the square of a mean: it shrinks as gradients of single images cancel, and depends on the batch size. With one
logit the gradients of image i for the two F differ by a scalar alone, so that one backward pass serves both: those of images are
squared once and summed with two weights, those of batches are made of the same outputs' gradients, weighted twice.
``measure="gradient"`` takes absolute values in place of squares.

The network is in evaluation mode throughout: batch norms use and keep their running statistics, nothing is dropped.

References:
    Xue et al., "BMFT", arXiv 2408.06890. Its released code sums squares of batch gradients in two passes, each with a forward pass of
    its own, and leaves batch norms in the mode they happen to be in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from evenhand.errors import MethodError, NonFiniteLossError, nearest
from evenhand.methods.patching.sample_gradients import Plan, _grad, make_plan, remaining, watched
from evenhand.models.parameters import _unwrap

Batch = tuple[Tensor, Tensor, Tensor]
"""Images (m, c, h, w) in [0, 1], labels as in `Split`, group codes (m,) or (m, A)."""
Term = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits, y, groups) -> scalar with a gradient."""

KINDS = ("sample", "batch")
MEASURES = ("fisher", "gradient")
CHUNK_BYTES = 2**25
"""How much of single images' gradients is held at once on a CPU; on a GPU sixteen times as much."""


def importances(
    model: nn.Module,
    batches: Iterable[Batch],
    terms: Sequence[Term],
    *,
    kind: str = "sample",
    measure: str = "fisher",
    names: Sequence[str] | None = None,
    chunk_bytes: int | None = None,
) -> tuple[dict[str, Tensor], ...]:
    """Importance of every weight for every term, from one forward pass over the batches.

    Args:
        model: an `ImageClassifier`, or any module from images to logits (m, C); its mode and gradient flags are left as they were.
        batches: moved to the model's device one by one.
        terms: functions of a batch, for example `BiasTerm` (or `WholeSet.surrogate`) and `batch_balanced_loss`; a term that a batch
            says nothing about may be constant.
        kind: "sample" or "batch".
        measure: "fisher" for squares, "gradient" for absolute values.
        names: parameters, named as in the timm network; default: all.
        chunk_bytes: memory for gradients of single images, beside activations.

    Returns:
        For every term a dictionary from name to a float tensor shaped like the parameter, none negative; zeros for parameters that
        the logits do not depend on.

    Raises:
        MethodError: no batch, an unknown option or name.
        NonFiniteLossError: logits or a term are NaN or infinite.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> batch = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1), torch.zeros(2)
        >>> loss = lambda logits, y, groups: (logits - y).mean()  # gradients of the images: 1 and 2; of the batch: 1.5
        >>> importances(model, [batch], [loss], kind="sample")[0]["weight"].item()
        2.5
        >>> importances(model, [batch], [loss], kind="batch")[0]["weight"].item()
        2.25
    """
    for value, known, what in ((kind, KINDS, "kind"), (measure, MEASURES, "measure")):
        if value not in known:
            raise MethodError(f"importance {what} is '{value}', but must be one of {', '.join(known)}")
    parameters = dict(_unwrap(model).named_parameters())
    wanted = list(parameters) if names is None else list(names)
    unknown = [name for name in wanted if name not in parameters]
    if unknown:
        hint = nearest(unknown[0], list(parameters), otherwise=f"its first is '{next(iter(parameters))}'")
        raise MethodError(f"parameter '{unknown[0]}' is not in the network; {hint}")
    # one tensor for all terms, so that a weighted sum over images is one product
    totals = {name: parameters[name].detach().new_zeros(len(terms), *parameters[name].shape) for name in wanted}
    device = next(iter(parameters.values())).device
    room = chunk_bytes or CHUNK_BYTES * (16 if device.type == "cuda" else 1)
    seen, plan = 0, None
    with _evaluating(model, {name: parameters[name] for name in wanted}):
        for images, y, groups in batches:
            batch = images.to(device), y.to(device), groups.to(device)
            plan = plan or make_plan(model, wanted, batch[0])
            if kind == "batch":
                _add_batch(model, batch, terms, totals, measure, plan, room)
                seen += 1
            else:
                _add_images(model, batch, terms, totals, measure, plan, room)
                seen += len(images)
    if not seen:
        raise MethodError("importances got no images; give at least one batch")
    for total in totals.values():
        total.div_(seen)
    return tuple({name: total[k] for name, total in totals.items()} for k in range(len(terms)))


@contextmanager
def _evaluating(model: nn.Module, wanted: dict[str, nn.Parameter]) -> Iterator[None]:
    """Evaluation mode, gradients on for the wanted parameters and off for the others; all as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    mine = {id(parameter) for parameter in wanted.values()}
    try:
        with torch.enable_grad():
            for parameter, _ in flags:
                parameter.requires_grad_(id(parameter) in mine)
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, required in flags:
            parameter.requires_grad_(required)


def _values(logits: Tensor, y: Tensor, groups: Tensor, terms: Sequence[Term]) -> list[Tensor]:
    """The terms of a batch.

    Raises:
        NonFiniteLossError: something is NaN or infinite.
    """
    if not bool(torch.isfinite(logits).all()):
        raise NonFiniteLossError(
            f"{int((~torch.isfinite(logits)).any(dim=1).sum())} of {len(logits)} images have NaN or infinite logits; "
            "check the checkpoint and the images"
        )
    found = [term(logits, y, groups) for term in terms]
    for position, value in enumerate(found):
        if not bool(torch.isfinite(value)):
            raise NonFiniteLossError(f"term {position + 1} of {len(found)} is {float(value.detach())} on a batch; check labels and options")
    return found


def _add_batch(
    model: nn.Module, batch: Batch, terms: Sequence[Term], totals: dict[str, Tensor], measure: str, plan: Plan, chunk_bytes: int
) -> None:
    images, y, groups = batch
    if plan.n_outputs == 1 and plan.fast.issuperset(totals):
        with watched(model, plan, len(images)) as watch:
            logits = model(images)
            # one backward pass for all terms: only the factors on the images differ
            pulls = _pulls(logits, y, groups, terms)[..., 0] / len(images)
            for name, gradients in watch.weighted(logits, pulls, chunk_bytes=chunk_bytes):
                totals[name].add_(gradients.square_() if measure == "fisher" else gradients.abs_())
        return
    parameters = dict(_unwrap(model).named_parameters())
    values = _values(model(images), y, groups, terms)
    moving = [value.requires_grad for value in values]
    last = max((k for k, moves in enumerate(moving) if moves), default=-1)
    for k, value in enumerate(values):
        if not moving[k]:
            continue
        found = _grad(value, [parameters[name] for name in totals], retain_graph=k < last)
        for total, gradient in zip(totals.values(), found, strict=True):
            if measure == "fisher":
                total[k].addcmul_(gradient, gradient)
            else:
                total[k].add_(gradient.abs_())


def _add_images(
    model: nn.Module, batch: Batch, terms: Sequence[Term], totals: dict[str, Tensor], measure: str, plan: Plan, chunk_bytes: int
) -> None:
    images, y, groups = batch
    power = 2 if measure == "fisher" else 1
    with watched(model, plan, len(images)) as watch:
        logits = model(images)
        pulls = _pulls(logits, y, groups, terms)
        runs = list(_runs(pulls))
        for k, (cotangent, weights) in enumerate(runs):
            for name, rows, gradient in watch.gradients(logits, cotangent, chunk_bytes=chunk_bytes, retain_graph=k + 1 < len(runs)):
                _add(totals[name], gradient, weights[:, rows], power)
    for cotangent, weights in runs:
        for name, rows, gradient in remaining(model, plan, images, cotangent, chunk_bytes=chunk_bytes):
            _add(totals[name], gradient, weights[:, rows], power)


def _pulls(logits: Tensor, y: Tensor, groups: Tensor, terms: Sequence[Term]) -> Tensor:
    """m dF/dz of every term: (F, m, C)."""
    leaf = logits.detach().requires_grad_()
    pulls = []
    for value in _values(leaf, y, groups, terms):
        pulls.append(_grad(value, [leaf])[0] if value.requires_grad else torch.zeros_like(leaf))
    return torch.stack(pulls) * len(logits)


def _runs(pulls: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Backward passes that are needed: cotangents (m, C) and, for every term, the factor (F, m) on the gradients they give."""
    if pulls.shape[2] == 1:
        yield torch.ones_like(pulls[0]), pulls[..., 0]
        return
    for k, pull in enumerate(pulls):
        weights = torch.zeros_like(pulls[..., 0])
        weights[k] = 1.0
        yield pull, weights


def _add(total: Tensor, gradient: Tensor, weights: Tensor, power: int) -> None:
    """total_f += sum_i |w_fi G_i|^power; the gradient is used up.

    Args:
        total: (F, *shape).
        gradient: (m, *shape).
        weights: (F, m).
        power: 1 or 2.
    """
    flat = gradient.reshape(len(gradient), -1)
    flat = flat.square_() if power == 2 else flat.abs_()
    factors = weights.square() if power == 2 else weights.abs()
    used = factors.any(dim=1)
    if bool(used.all()):
        total.view(len(total), -1).addmm_(factors, flat)
        return
    for k in used.nonzero().flatten().tolist():
        total[k].view(-1).addmv_(flat.T, factors[k])
