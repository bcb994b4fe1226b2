"""A search that learns from whole answers: a surrogate of the encoder, and an edit trained by gradient through it.

    answers    z_ik = encoder(e_k(x_i)) of every query on training images so far, and their unedited embeddings
    surrogate  s = argmin mean of r^2 + mean of (H r)^2, r = (s(e_k(x_i)) - z_ik) / sd(z): a small convolutional network, trained on
               from round to round; H are the directions in which ridge heads read groups and labels, unedited and under the last edit
    edit       the steps of `evenhand.methods.editing.dne` with s in place of the encoder, from where the search stands
    queries    edits on the way from the last edit to this one and beyond, with noise: where s has to be right next

A loss is one number an image batch; an embedding is hundreds an image, so far fewer images are needed, and as many parameters of
the edit as a gradient can train. The surrogate proposes and never decides: every edit is measured on the encoder itself, and one that
is not better is taken back and the next step halved (without held-out images nothing can be taken back).

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
from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from evenhand.config.editing import DNEConfig, EditMethodConfig, GeZOConfig
from evenhand.edits.base import Edit
from evenhand.errors import ConfigError, InputError, NonFiniteLossError
from evenhand.methods.base import MemoryStore, Task
from evenhand.methods.baselines.erm import take_rows
from evenhand.methods.editing.dne import DNE
from evenhand.methods.editing.facts import RowFacts
from evenhand.methods.editing.objectives import EditObjective
from evenhand.methods.editing.processes import Processes
from evenhand.methods.editing.stand_in import BATCH, Answers, StandIn, batches
from evenhand.methods.editing.strategies import Array, Asked, Strategy, Told
from evenhand.random import derive_seed, generator

ROWS = 4096
"""Most training images that a round's edit is trained on, and most unedited ones that the surrogate learns."""

REFIT_EVERY = 8
REFERENCE = 2048
"""Least training images, where there are as many, that heads are fitted on while the edit is trained: the surrogate's answers are free."""

OFTEN = 64
"""Rows of every group that are always among them, where there are as many."""

FARTHEST = 20.0
"""Answers count to so many standard deviations of the unedited ones, so that no dimension that hardly varies there rules."""

NARROWER = 0.25
"""Noise of queries around a step that was taken, as a share of that of the first round."""

FIRST_RATE = 2e-3
WARM_UP = 50
STEEPEST = 10.0
RIDGE = 0.03
"""Of the heads whose directions count, as a share of the mean eigenvalue."""

LEAST_READ = 1e-2
"""Standard deviation of a 0/1 target that a head has to explain for its direction to count."""

DOUBTFUL = 0.5
PART = "search-answers-{:04d}"
"""Key in the store of answers that came between two states."""


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
    OPTIONS = ("edit_lr", "edit_steps", "surrogate_steps", "surrogate_width")

    def __init__(
        self, task: Task, edit: Edit, objective: EditObjective, config: GeZOConfig, seed: int, known: npt.NDArray[np.int64]
    ) -> None:
        super().__init__(np.zeros(edit.n_parameters), config.step, seed)
        self.known = known
        self.task, self.config, self.objective = task, config, objective
        self.facts = RowFacts.of(task.train, [head.attribute for head in objective.heads])
        self.rounding = edit.bounds.rounding
        self.origin = edit.vector().double().cpu()
        self.scale = edit.natural_steps().double().cpu()
        self.edit = copy.deepcopy(edit)
        self.previous = self.start.copy()
        self.answers: list[Answers] = []
        self.explained: list[float | None] = []
        self.network: StandIn | None = None
        self.lost = 0
        self._fresh = self._stored = self._parts = 0
        self._plain: Answers | None = None

    @staticmethod
    def points(config: GeZOConfig) -> int:
        """Edits that a round asks about.

        Raises:
            ConfigError: a width that is no multiple of 4, a learning rate or a step that is not a number above 0, or no natural steps.
        """
        if config.surrogate_width % 4 or config.surrogate_width < 4:
            width = f"method.surrogate_width is {config.surrogate_width}"
            raise ConfigError(f"{width}, but must be a multiple of 4, as maps are normalised in 4 groups; give 8, 16 or 24")
        for name, value in (("edit_lr", config.edit_lr), ("step", config.step)):
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"method.{name} is {value:g}, but must be a number above 0, or no edit is ever proposed")
        if not config.natural_steps:
            raise ConfigError(
                "method.natural_steps=false measures steps in units of each parameter, which a surrogate's do not have; leave it out, or "
                "choose another method.optimizer"
            )
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
        if better and self.round:
            self.step = min(self.first_step, 2 * self.step)
        elif self.round:
            self.previous, self.current = self.current, np.array(best, np.float64)
            self.step /= 2

    def tell(self, values: Sequence[float]) -> Told:
        """Train the surrogate on all answers, then the edit on the surrogate."""
        n = sum(len(part.rows) for part in self.answers)
        self.task.report(f"round {self.round + 1}: training the surrogate on {n} answers, then the edit on it")
        self._train_surrogate()
        self.previous, self.current = self.current, self._train_edit()
        self.round += 1
        moved = not np.array_equal(self.previous, self.current)
        finite = [value for value in values if math.isfinite(value)]
        return Told(moved, float(np.mean(finite)) if finite else float("nan"))

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
        spread = spread.clamp(min=0.1 * float(spread.mean()))
        spread = torch.where(spread > 1e-6 * plain.z.abs().amax(dim=0), spread, 1.0)
        directions = self._directions(plain, mean, spread)
        grid, width = self.task.train.x.shape, self.config.surrogate_width
        return StandIn(grid, mean, spread, torch.cat([directions] * 2, dim=1), width, self.seed).to(self.task.device)

    def _directions(self, answers: Answers, mean: Tensor, spread: Tensor) -> Tensor:
        """(d, m) of ridge heads for every group and label value, scaled to variance 1 on these embeddings."""
        facts = self.facts.take(torch.from_numpy(answers.rows))
        wanted = [codes[:, None] == torch.arange(int(self.facts.codes.max()) + 1) for codes in facts.codes]
        wanted += [level[:, None] == torch.arange(int(self.facts.levels().max()) + 1) for level in facts.levels()]
        targets = torch.cat(wanted, dim=1).double()
        z = ((answers.z - mean) / spread).clamp(-FARTHEST, FARTHEST).double()
        z, targets = z - z.mean(dim=0), targets - targets.mean(dim=0)
        gram = z.T @ z
        ridge = max(RIDGE * float(gram.diagonal().mean()), 1e-3 * len(z))
        heads = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=torch.float64), z.T @ targets)
        size = (z @ heads).std(dim=0, unbiased=False)
        return torch.where(size > LEAST_READ, heads / size.clamp(min=LEAST_READ), 0.0).float()

    def _train_surrogate(self) -> None:
        known, first = [self._unedited(), *self.answers], self.network is None
        if self.network is None:
            self.network = self._new_network()
            self.explained.append(None)
        else:
            self.explained.append(self._explains(self.answers[self._fresh :]))
        self._fresh = len(self.answers)
        self._look_again()
        network = self.network
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
            torch.nn.utils.clip_grad_norm_(network.parameters(), STEEPEST)
            optimizer.step()
        network.eval()

    def _passes(self, known: Sequence[Answers]) -> Iterator[list[Answers]]:
        """Batches of one pass after the other, without end."""
        for number in itertools.count():
            yield from batches(known, generator(self.seed, "surrogate order", self.round, number))

    def _look_again(self) -> None:
        """Directions under the last edit that heads were fitted for, where there is one."""
        network = self.network
        checked = [part for part in self.answers if part.checked]
        if network is None or not checked:
            return
        found = self._directions(checked[-1], network.mean.cpu(), network.spread.cpu())
        network.directions[:, network.directions.shape[1] // 2 :] = found.to(network.directions.device)

    def _batch(self, parts: Sequence[Answers]) -> tuple[Tensor, Tensor]:
        """Edited images, and the encoder's answers in standard deviations."""
        assert self.network is not None
        device = self.task.device
        images = torch.cat([self._edited(part) for part in parts])
        z = torch.cat([part.z for part in parts]).to(device)
        return images, ((z - self.network.mean) / self.network.spread).clamp(-FARTHEST, FARTHEST)

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
            for batch in batches([part], None):
                images, wanted = self._batch(batch)
                missed += float((self.network.standardised(images) - wanted).square().sum())
                whole += float(wanted.square().sum())
        return 1 - missed / whole if whole > 0 else None

    def _train_edit(self) -> Array:
        """Where the edit comes to from the present one, by the surrogate's gradient; the present one where that is not finite."""
        network, config = self.network, self.config
        assert network is not None
        if not all(bool(torch.isfinite(value).all()) for value in network.state_dict().values()):
            self.network, self.lost = None, self.lost + 1
            return self.current.copy()
        rows = self._edit_rows()
        shared = {item.name: getattr(config, item.name) for item in fields(EditMethodConfig) if item.name != "name"}
        own = {
            "epochs": max(1, round(config.edit_steps / math.ceil(len(rows) / BATCH))), "lr": config.edit_lr * self.step / self.first_step,
            "batch_size": BATCH, "refit_every": REFIT_EVERY, "reference_images": max(REFERENCE, config.reference_images),
            "l2_head": self.objective.l2, "rounding": self.rounding, "measure": False, "controls": False,
        }  # fmt: skip
        task = replace(
            self.task, train=take_rows(self.task.train, rows), embed=network.embed, embedder=network, store=MemoryStore(), augment="none",
            seed=derive_seed(self.seed, "edit", self.round), report=_silent, log=_silent,
        )  # fmt: skip
        heads = {head.attribute: head for head in self.objective.heads}
        network.requires_grad_(False)
        try:
            outcome = DNE(DNEConfig(**(shared | own))).fit_edit(
                task, heads, start=self._vector(self.current), peers=Processes()
            )
        except (NonFiniteLossError, LinAlgError):
            self.lost += 1
            return self.current.copy()
        finally:
            network.requires_grad_(True)
        return np.asarray(((outcome.edit.vector().double() - self.origin) / self.scale).numpy(), np.float64)

    def _edit_rows(self) -> npt.NDArray[np.int64]:
        """At most `ROWS` of the images that may be learnt from, `OFTEN` of every group first."""
        order = generator(self.seed, "edit rows", self.round).permutation(self.known)
        first = np.zeros(len(order), bool)
        for codes in self.facts.codes.numpy()[:, order]:
            for code in np.unique(codes[codes >= 0]):
                first[np.flatnonzero(codes == code)[:OFTEN]] = True
        return np.sort(np.concatenate([order[first], order[~first]])[: max(ROWS, int(first.sum()))])

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
                f"the surrogate explained {max(last, 0.0):.0%} of the variance of the last answers before it learnt them; where it knows "
                "the encoder so little, give it more images a round (method.query_images, method.draws) or search with method.optimizer=cma"
            )
        if self.lost:
            notes.append(f"in {self.lost} rounds training on the surrogate did not stay finite; lower method.edit_lr")
        return tuple(notes)

    def restart(self, point: Array) -> None:
        """From a point, with the first step; what was learnt is kept."""
        super().restart(point)
        self.previous = self.current.copy()

    def state(self) -> dict[str, Any]:
        """With the surrogate's weights; answers since the last state go into the store, as a part that is written once."""
        fresh = self.answers[self._stored :]
        if fresh:
            points = [part.point for part in fresh if part.point is not None]
            self.task.store.put(PART.format(self._parts), {
                "points": torch.from_numpy(np.stack(points)),
                "counts": [len(part.rows) for part in fresh],
                "checked": [part.checked for part in fresh],
                "rows": torch.from_numpy(np.concatenate([part.rows for part in fresh])),
                "z": torch.cat([part.z for part in fresh]),
            })  # fmt: skip
            self._parts, self._stored = self._parts + 1, len(self.answers)
        network = {} if self.network is None else self.network.state_dict()
        return {
            **super().state(),
            "previous": torch.from_numpy(self.previous.copy()),
            "parts": self._parts,
            "fresh": self._fresh,
            "explained": list(self.explained),
            "lost": self.lost,
            "network": {name: value.detach().cpu().clone() for name, value in network.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """With the surrogate's weights, and all answers from the store.

        Raises:
            InputError: answers are missing from it.
        """
        super().load_state(state)
        self.previous = np.array(state["previous"].numpy(), np.float64)
        self._parts, self.answers = int(state["parts"]), []
        for number in range(self._parts):
            stored = self.task.store.get(PART.format(number))
            if stored is None:
                raise InputError(
                    f"the state of a search found here asks for {self._parts} parts of answers, and {PART.format(number)} is missing; "
                    "put it back, or delete the whole state to start again"
                )
            self.answers += _unpacked(stored)
        self._stored = len(self.answers)
        self._fresh, self.explained, self.lost = int(state["fresh"]), list(state["explained"]), int(state["lost"])
        self.network = None
        if state["network"]:
            self.network = self._new_network()
            self.network.load_state_dict(state["network"])
            self.network.eval()


def _unpacked(stored: Mapping[str, Any]) -> Iterator[Answers]:
    """Answers of one part of a stored state."""
    begin = 0
    for point, count, checked in zip(stored["points"].numpy(), stored["counts"], stored["checked"], strict=True):
        rows, z = stored["rows"][begin : begin + count].numpy(), stored["z"][begin : begin + count]
        yield Answers(np.array(point), rows, z, checked)
        begin += count


def _silent(_: Any) -> None:
    """The search says what there is to say."""
