"""A search that learns from whole answers: a surrogate of the encoder, and an edit trained by gradient through it.

    answers    z_ik = encoder(e_k(x_i)) of every query on training images so far, and their unedited embeddings
    surrogate  s = argmin mean of r^2 + mean of (H r)^2, r = (s(e_k(x_i)) - z_ik) / sd(z): a small convolutional network, trained on
               from round to round; H are the directions in which ridge heads read groups and labels, unedited and under the last edit
    edit       the steps of `evenhand.methods.editing.dne` with s in place of the encoder, from where the search stands
    queries    edits on the way from the last edit to this one and beyond, with noise: where s has to be right next

A loss is one number an image batch; an embedding is hundreds an image, so far fewer images are needed, and as many parameters of
the edit as a gradient can train. The surrogate proposes and never decides: every edit is measured on the encoder itself, and one that
is not better is taken back and the next step halved.

References:
    Attacks through a substitute of a model that can only be queried: N. Papernot et al., "Practical black-box attacks against machine
    learning", ASIA CCS 2017. There the substitute learns labels and the attack ends on it; here it learns embeddings, an edit for all
    images is trained, and each round is measured and learnt from.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from evenhand.config.editing import DNEConfig, EditMethodConfig, GeZOConfig
from evenhand.edits.base import Edit
from evenhand.errors import ConfigError, NonFiniteLossError
from evenhand.methods.base import Images, Task
from evenhand.methods.baselines.erm import take_rows
from evenhand.methods.editing.dne import DNE
from evenhand.methods.editing.facts import RowFacts
from evenhand.methods.editing.objectives import EditObjective
from evenhand.methods.editing.strategies import Array, Asked, Strategy, Told
from evenhand.random import derive_seed, generator

ROWS = 4096
"""Most training images that a round's edit is trained on, and most unedited ones that the surrogate learns."""

CHUNK = 16
BATCH = 64
REFIT_EVERY = 8
NARROWER = 0.25
"""Noise of queries around a step that was taken, as a share of that of the first round."""

FIRST_RATE = 2e-3
WARM_UP = 50
RIDGE = 0.03
"""Of the heads whose directions count, as a share of the mean eigenvalue."""

DOUBTFUL = 0.5


class StandIn(nn.Module):
    """Images (n, c, h, w) in [0, 1] -> embeddings (n, d): four convolutions, then mean and maximum of every map.

    The first convolution's stride grows with the image, so that the others see about 32 x 32 positions of any size.

    Args:
        grid: (c, h, w).
        mean, spread: (d,) of the embeddings.
        directions: (d, m) in standardised embeddings: what has to be right above all.
        width: maps of the first layer.
        seed: of the initial weights.
    """

    differentiable = True

    def __init__(
        self, grid: tuple[int, int, int], mean: Tensor, spread: Tensor, directions: Tensor, width: int, seed: int
    ) -> None:
        super().__init__()
        c, h, w = grid
        stride = 2 * max(1, round(min(h, w) / 64))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "surrogate"))
            layers: list[nn.Module] = []
            sizes = [(c, width, 2 * stride + 1, stride), (width, 2 * width, 3, 2), (2 * width, 4 * width, 3, 2)]
            for before, after, kernel, step in [*sizes, (4 * width, 4 * width, 3, 1)]:
                layers += [nn.Conv2d(before, after, kernel, step, kernel // 2), nn.GroupNorm(4, after), nn.GELU()]
            self.body = nn.Sequential(*layers)
            self.head = nn.Linear(8 * width, len(mean))
        self.mean: Tensor
        self.spread: Tensor
        self.directions: Tensor
        self.register_buffer("mean", mean.clone())
        self.register_buffer("spread", spread.clone())
        self.register_buffer("directions", directions.clone())
        self.channels, self.input_size, self.dim = c, (h, w), len(mean)
        self.fingerprint = f"surrogate {seed}"
        self.n_images = 0

    def standardised(self, images: Tensor) -> Tensor:
        """(n, d) in standard deviations of the unedited embeddings."""
        maps = self.body((images - 0.5) * 4)
        out: Tensor = self.head(torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1))
        return out

    def loss(self, images: Tensor, wanted: Tensor) -> Tensor:
        """What training lowers, for standardised embeddings (n, d) that are wanted."""
        missed = self.standardised(images) - wanted
        return missed.square().mean() + (missed @ self.directions).square().mean()

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings."""
        self.n_images += len(images)
        return self.standardised(images) * self.spread + self.mean

    @torch.no_grad()
    def embed(self, images: Images) -> npt.NDArray[np.float32]:
        """(n, d) of all images."""
        cuts = [np.arange(start, min(start + BATCH, len(images))) for start in range(0, len(images), BATCH)]
        parts = [self(images.batch(cut).to(self.mean.device)).cpu().numpy() for cut in cuts]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)


@dataclass
class _Scratch:
    """A store that ends with the call."""

    values: dict[str, Any] = field(default_factory=dict)

    def get(self, key: str) -> Any | None:
        return self.values.get(key)

    def put(self, key: str, value: Any) -> None:
        self.values[key] = value

    def append(self, key: str, record: Mapping[str, Any]) -> None:
        """Nothing reads it."""


@dataclass(frozen=True)
class Answers:
    """What the encoder said of training images under one edit.

    Attributes:
        point: (p,) the edit, None: unedited.
        rows: (m,) positions of the images.
        z: (m, d) float32 on the CPU, finite.
        checked: whether heads were fitted on them.
    """

    point: Array | None
    rows: npt.NDArray[np.int64]
    z: Tensor
    checked: bool = False


class Surrogate(Strategy):
    """Edits proposed by a surrogate of the encoder; see the module.

    ``step`` scales the noise of queries and the learning rate of the edit together; it is halved when a proposal was not better.

    Args:
        task: training rows, their unedited embeddings (``task.embed``), seed, device.
        edit: at its start; not changed.
        objective: what is minimised; its heads on unedited images and its L2 strength are taken over.
        config: the options.
        seed: of the draws.
        known: positions of the training images that may be learnt from: all that do not decide which edit is kept.
    """

    name = "surrogate"
    check_every = 1

    def __init__(
        self, task: Task, edit: Edit, objective: EditObjective, config: GeZOConfig, seed: int, known: npt.NDArray[np.int64]
    ) -> None:
        super().__init__(np.zeros(edit.n_parameters), config.step, seed)
        self.known = known
        self.task, self.config, self.objective = task, config, objective
        self.facts = RowFacts.of(task.train, [head.attribute for head in objective.heads])
        self.rounding = edit.bounds.rounding
        self.origin = edit.vector().double().cpu()
        scale = edit.natural_steps().double().cpu()
        self.scale = scale if config.natural_steps else torch.ones_like(scale)
        self.edit = copy.deepcopy(edit)
        self.previous = self.start.copy()
        self.answers: list[Answers] = []
        self.explained: list[float | None] = []
        self.network: StandIn | None = None
        self.lost = 0
        self._fresh = 0
        self._plain: Answers | None = None

    @staticmethod
    def points(config: GeZOConfig) -> int:
        """Edits that a round asks about.

        Raises:
            ConfigError: a width that is no multiple of 4, or a learning rate that is not above 0.
        """
        if config.surrogate_width % 4:
            width = f"method.surrogate_width is {config.surrogate_width}"
            raise ConfigError(f"{width}, but must be a multiple of 4, as maps are normalised in 4 groups; give 8, 16 or 24")
        if not config.edit_lr > 0:
            raise ConfigError(f"method.edit_lr is {config.edit_lr:g}, but must be above 0, or no edit is ever proposed")
        return config.draws

    @property
    def n_points(self) -> int:
        """One a draw."""
        return self.config.draws

    def ask(self) -> Asked:
        """Edits around the last step, at 0.5 to 1.5 of its length; around the start in the first round."""
        rng = generator(self.seed, self.name, self.round)
        length = 4 * self.step / math.sqrt(len(self.start))
        moved = self.current - self.previous
        noise = length * (NARROWER if moved.any() else 1.0)
        share = rng.uniform(0.5, 1.5, self.n_points)
        draws = rng.standard_normal((self.n_points, len(self.start))) * noise
        return Asked([self.previous + t * moved + draw for t, draw in zip(share, draws, strict=True)], [0] * self.n_points)

    def learn(
        self, rows: npt.NDArray[np.int64], points: Sequence[Array], answers: Sequence[Tensor], *, checked: bool = False
    ) -> None:
        """Keep what the encoder said of training images; embeddings that are not finite are left out."""
        for point, z in zip(points, answers, strict=True):
            good = torch.isfinite(z).all(dim=1).cpu()
            if bool(good.any()):
                kept = z.detach().float().cpu()[good]
                self.answers.append(Answers(np.array(point, np.float64), rows[good.numpy()], kept, checked))

    def judge(self, better: bool, best: Array) -> None:
        """Go back to the best edit and halve the step, where the encoder found a proposal no better."""
        if not better and self.round:
            self.previous, self.current = self.current, np.array(best, np.float64)
            self.step /= 2

    def tell(self, values: Sequence[float]) -> Told:
        """Train the surrogate on all answers, then the edit on the surrogate."""
        self._train_surrogate()
        self.previous, self.current = self.current, self._train_edit()
        self.round += 1
        finite = [value for value in values if math.isfinite(value)]
        return Told(True, float(np.mean(finite)) if finite else float("nan"))

    def _unedited(self) -> Answers:
        """Unedited training images, embedded before the search for the heads."""
        if self._plain is None:
            rows = np.sort(generator(self.seed, "unedited").permutation(self.known)[:ROWS])
            z = torch.from_numpy(np.ascontiguousarray(self.task.embed(self.task.train.x)[rows], dtype=np.float32))
            self._plain = Answers(None, rows, z)
        return self._plain

    def _new_network(self) -> StandIn:
        plain = self._unedited()
        mean, spread = plain.z.mean(dim=0), plain.z.std(dim=0, unbiased=False)
        spread = spread.clamp(min=1e-3 * float(spread.mean()) + 1e-12)
        directions = self._directions(plain, mean, spread)
        grid, width = self.task.train.x.shape, self.config.surrogate_width
        return StandIn(grid, mean, spread, torch.cat([directions] * 2, dim=1), width, self.seed).to(self.task.device)

    def _directions(self, answers: Answers, mean: Tensor, spread: Tensor) -> Tensor:
        """(d, m) of ridge heads for every group and label value, scaled to variance 1 on these embeddings."""
        facts = self.facts.take(torch.from_numpy(answers.rows))
        wanted = [codes[:, None] == torch.arange(int(self.facts.codes.max()) + 1) for codes in facts.codes]
        wanted += [level[:, None] == torch.arange(int(self.facts.levels().max()) + 1) for level in facts.levels()]
        targets = torch.cat(wanted, dim=1).double()
        z = ((answers.z - mean) / spread).double()
        z, targets = z - z.mean(dim=0), targets - targets.mean(dim=0)
        gram = z.T @ z
        ridge = RIDGE * float(gram.diagonal().mean())
        heads = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=torch.float64), z.T @ targets)
        size = (z @ heads).std(dim=0, unbiased=False)
        return torch.where(size > 1e-6, heads / size.clamp(min=1e-6), 0.0).float()

    def _train_surrogate(self) -> None:
        known = [self._unedited(), *self.answers]
        if self.network is None:
            self.network = self._new_network()
            self.explained.append(None)
        else:
            self.explained.append(self._explains(self.answers[self._fresh :]))
        self._fresh = len(self.answers)
        self._look_again()
        network, first = self.network, self.round == 0
        total = self.config.surrogate_steps if first else max(1, self.config.surrogate_steps // 3)
        peak = FIRST_RATE if first else FIRST_RATE / 2
        optimizer = torch.optim.AdamW(network.parameters(), lr=peak, weight_decay=0.01)
        network.train()
        for step, batch in enumerate(itertools.islice(self._passes(known), total)):
            images, wanted = self._batch(batch)
            warm = min(1.0, (step + 1) / WARM_UP)
            optimizer.param_groups[0]["lr"] = peak * warm * 0.5 * (1 + math.cos(math.pi * step / total))
            loss = network.loss(images, wanted)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        network.eval()

    def _passes(self, known: Sequence[Answers]) -> Iterator[list[Answers]]:
        """Batches of one pass after the other, without end."""
        for number in itertools.count():
            yield from _batches(known, generator(self.seed, "surrogate order", self.round, number))

    def _look_again(self) -> None:
        """Directions under the last edit that heads were fitted for, where there is one."""
        network = self.network
        checked = [part for part in self.answers if part.checked]
        if network is None or not checked:
            return
        found = self._directions(checked[-1], network.mean.cpu(), network.spread.cpu())
        network.directions[:, network.directions.shape[1] // 2 :] = found.to(network.directions.device)

    def _batch(self, parts: Sequence[Answers]) -> tuple[Tensor, Tensor]:
        """Images as the encoder got them, and its answers in standard deviations."""
        assert self.network is not None
        device = self.task.device
        images = torch.cat([self._edited(part) for part in parts])
        z = torch.cat([part.z for part in parts]).to(device)
        return images, (z - self.network.mean) / self.network.spread

    @torch.no_grad()
    def _edited(self, part: Answers) -> Tensor:
        images = self.task.train.x.batch(part.rows).to(self.task.device)
        if part.point is None:
            return images
        self.edit.load_vector(self._vector(part.point).to(self.task.device))
        out: Tensor = self.edit(images)
        return out

    def _vector(self, point: Array) -> Tensor:
        return (self.origin + torch.from_numpy(point) * self.scale).float()

    @torch.no_grad()
    def _explains(self, fresh: Sequence[Answers]) -> float | None:
        """Share of the variance of answers, before anything was learnt from them."""
        assert self.network is not None
        missed, whole = 0.0, 0.0
        for part in fresh:
            for batch in _batches([part], None):
                images, wanted = self._batch(batch)
                missed += float((self.network.standardised(images) - wanted).square().sum())
                whole += float(wanted.square().sum())
        return 1 - missed / whole if whole > 0 else None

    def _train_edit(self) -> Array:
        """Where the edit comes to from the present one, by the surrogate's gradient; the present one where that is not finite."""
        network, config = self.network, self.config
        assert network is not None
        rows = np.sort(generator(self.seed, "edit rows", self.round).permutation(self.known)[:ROWS])
        shared = {item.name: getattr(config, item.name) for item in fields(EditMethodConfig) if item.name != "name"}
        own = {
            "epochs": max(1, round(config.edit_steps * BATCH / len(rows))), "natural_steps": config.natural_steps,
            "lr": config.edit_lr * self.step / self.first_step,
            "batch_size": BATCH, "refit_every": REFIT_EVERY, "l2_head": self.objective.l2, "rounding": self.rounding,
            "measure": False, "controls": False,
        }  # fmt: skip
        task = replace(
            self.task, train=take_rows(self.task.train, rows), embed=network.embed, embedder=network, store=_Scratch(), augment="none",
            seed=derive_seed(self.seed, "edit", self.round), report=_silent, log=_silent,
        )  # fmt: skip
        heads = {head.attribute: head for head in self.objective.heads}
        network.requires_grad_(False)
        try:
            outcome = DNE(DNEConfig(**(shared | own))).fit_edit(task, heads, start=self._vector(self.current))
        except NonFiniteLossError:
            self.network, self.lost = None, self.lost + 1
            return self.current.copy()
        network.requires_grad_(True)
        return np.asarray(((outcome.edit.vector().double() - self.origin) / self.scale).numpy(), np.float64)

    @property
    def report(self) -> dict[str, Any]:
        """JSON: the share of variance that the surrogate explained of every round's answers before it learnt them."""
        known = [value for value in self.explained if value is not None]
        return {"surrogate": {"explained": known, "unedited_images": min(len(self.known), ROWS)}}

    @property
    def notes(self) -> tuple[str, ...]:
        """Where the surrogate is no good."""
        notes = []
        last = next((value for value in reversed(self.explained) if value is not None), None)
        if last is not None and last < DOUBTFUL:
            notes.append(
                f"the surrogate explained {last:.0%} of the variance of the last answers before it learnt them; where it knows the encoder "
                "so little, give it more images a round (method.query_images, method.draws) or search with method.optimizer=cma"
            )
        if self.lost:
            notes.append(f"in {self.lost} rounds the edit's training on the surrogate did not stay finite; lower method.edit_lr")
        return tuple(notes)

    def restart(self, point: Array) -> None:
        """From a point, with the first step; what was learnt is kept."""
        super().restart(point)
        self.previous = self.current.copy()

    def state(self) -> dict[str, Any]:
        """With all answers and the surrogate's weights."""
        points = [part.point for part in self.answers if part.point is not None]
        network = {} if self.network is None else self.network.state_dict()
        return {
            **super().state(),
            "previous": torch.from_numpy(self.previous.copy()),
            "points": torch.from_numpy(np.stack(points) if points else np.zeros((0, len(self.start)))),
            "counts": [len(part.rows) for part in self.answers],
            "checked": [part.checked for part in self.answers],
            "rows": torch.from_numpy(np.concatenate([part.rows for part in self.answers])) if self.answers else None,
            "z": torch.cat([part.z for part in self.answers]) if self.answers else None,
            "fresh": self._fresh,
            "explained": list(self.explained),
            "lost": self.lost,
            "network": {name: value.detach().cpu().clone() for name, value in network.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """With all answers and the surrogate's weights."""
        super().load_state(state)
        self.previous = np.array(state["previous"].numpy(), np.float64)
        self.answers, begin = [], 0
        for point, count, checked in zip(state["points"].numpy(), state["counts"], state["checked"], strict=True):
            rows, z = state["rows"][begin : begin + count].numpy(), state["z"][begin : begin + count]
            self.answers.append(Answers(np.array(point), rows, z, checked))
            begin += count
        self._fresh, self.explained, self.lost = int(state["fresh"]), list(state["explained"]), int(state["lost"])
        self.network = None
        if state["network"]:
            self.network = self._new_network()
            self.network.load_state_dict(state["network"])
            self.network.eval()


def _silent(_: Any) -> None:
    """The search says what there is to say."""


def _batches(known: Sequence[Answers], rng: np.random.Generator | None) -> Iterator[list[Answers]]:
    """Answers in batches of `BATCH` images, each of a few edits, so that an edit is put on several images at once.

    With ``rng`` in random order: images among those of one edit, then pieces of `CHUNK` among all.
    """
    pieces = []
    for part in known:
        order = np.arange(len(part.rows)) if rng is None else rng.permutation(len(part.rows))
        for start in range(0, len(order), CHUNK):
            chosen = np.sort(order[start : start + CHUNK])
            pieces.append(Answers(part.point, part.rows[chosen], part.z[torch.from_numpy(chosen)]))
    ranked = range(len(pieces)) if rng is None else rng.permutation(len(pieces))
    batch: list[Answers] = []
    for k in ranked:
        batch.append(pieces[k])
        if len(batch) == BATCH // CHUNK:
            yield batch
            batch = []
    if batch:
        yield batch
