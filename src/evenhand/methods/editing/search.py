"""The black-box loop: an edit searched by queries alone, under a hard budget of images, and continued after a kill.

    check:  heads re-fitted on reference images under the present edit, then the objective on held-out images, 0 rounds and
            every ``refit_every`` rounds after (with a surrogate: every round); the edit with the least held-out objective is
            kept, the start among them
    round:  the strategy asks for points; each is the objective on the round's query images (the same for all points, unless
            ``same_batch`` is off); the strategy is told

Every held-out objective is that of heads fitted on its own edit, so an edit is not kept for having outrun old heads. The kept one
is the least of several measured on the same images, so it is optimistic; what an edit hides is measured on other rows.

Candidates of a round are compared by the objective with the heads of the last check. Closed-form heads of the round's images alone order
random candidates better, but a search by them ends higher: 32 images do not hold the label's utility up.

Query images are training rows drawn from ``generator(seed, "queries", round)``; queries are what the encoder would really be sent:
edited, projected, rounded. State is kept after every round. A round that a kill cut short is asked again, to the byte, so a log of
paid answers (`evenhand.models.PaidEmbedder`) has its images; images are counted as asked, so such a round still counts once. Such an
encoder counts more than was asked: its width, requests that were lost or repeated. Where its own budget has too little left for a round
and a check, the search ends as by its budget, with the best edit that was measured.

A query whose embeddings or loss are not finite is left out, counted, and paid once; heads are never fitted on such embeddings. Only the
unedited images of the first check must be finite.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from evenhand.config.editing import GeZOConfig
from evenhand.edits.base import Edit
from evenhand.errors import BudgetError, InputError, NonFiniteLossError
from evenhand.methods.base import Task
from evenhand.methods.baselines.erm import take_rows
from evenhand.methods.editing.attribute_head import needs_two_groups
from evenhand.methods.editing.facts import RowFacts
from evenhand.methods.editing.objectives import EditObjective
from evenhand.methods.editing.querying import Plan, Price, Querier, QueryRows, Rows, requests_for, withheld
from evenhand.methods.editing.setup import choose_attributes
from evenhand.methods.editing.strategies import Array, Strategy, build_strategy
from evenhand.methods.editing.surrogate import Surrogate
from evenhand.random import derive_seed

HeldOut = tuple[torch.Tensor, RowFacts, torch.Tensor | None]
SCHEMA = "evenhand.search/1"
STATE, HEADS = "search", "search-heads"


@dataclass(frozen=True)
class Searched:
    """What a search gives; the edit that was searched holds the kept parameters.

    Attributes:
        history: one JSON record a round, the first for the start: round, images (sent so far), objective, held_out (None where
            it was not measured), step, accepted, failed.
        report: JSON: images, cost, estimate, rounds, checks, the held-out objective before and after, why it ended.
        notes: sentences for the report.
    """

    history: tuple[dict[str, Any], ...]
    report: dict[str, Any]
    notes: tuple[str, ...]


def make_plan(task: Task, edit: Edit, config: GeZOConfig) -> tuple[Plan, QueryRows]:
    """How many images a search will send, and which; sends nothing.

    Raises:
        MethodError: too few training images, or one group among those that a surrogate may learn from.
    """
    needs_heads = config.objective != "published" or config.utility > 0 or config.odds > 0
    rows = QueryRows.draw(task, config, needs_heads)
    learns = config.optimizer == Surrogate.name
    n_points = Surrogate.points(config) if learns else build_strategy(config, np.zeros(edit.n_parameters), 0).n_points
    every = Surrogate.check_every if learns else config.refit_every
    if learns:
        for name in choose_attributes(task, config.attributes):
            needs_two_groups(take_rows(task.train, rows.known), name)
    check = len(rows.reference) + len(rows.held_out)
    # a search that has begun ends by its budget; it is not refused
    gone, again = (0, 0) if task.store.get(STATE) is not None else withheld(task.embedder, config.budget)
    a_query = min(config.query_images, len(rows.pool))
    requests = [requests_for(task.embedder, n, task.batch_size) for n in (a_query, len(rows.reference), len(rows.held_out))]
    asked = (n_points * requests[0], requests[1] + requests[2])
    return Plan(config.budget, n_points * a_query, check, every, config.rounds, Price.asked(config), gone, again, *asked), rows


def search(task: Task, edit: Edit, objective: EditObjective, config: GeZOConfig, facts: tuple[RowFacts, RowFacts]) -> Searched:
    """Search the parameters of an edit; see the module.

    Args:
        task: rows, encoder, store, seed.
        edit: at its start; it is changed in place and holds the kept parameters afterwards.
        objective: what is minimised; evaluated without gradients.
        config: the options.
        facts: groups and labels of the training and of the validation rows.

    Raises:
        MethodError: the budget is too small for one round; nothing was sent, and the smallest budget that does is in the text.
        NonFiniteLossError: the objective of the start is not finite.
        BudgetError: the encoder's own budget ended before the start was measured; later it ends the search as this one's does.
        RunError: the encoder failed; the state is kept, and a second call goes on.
    """
    plan, rows = make_plan(task, edit, config)
    plan.require()
    run = _Search(task, edit, objective, config, facts, plan, rows)
    run.resume()
    return run.go()


class _Search:
    """The state of one search."""

    def __init__(
        self,
        task: Task,
        edit: Edit,
        objective: EditObjective,
        config: GeZOConfig,
        facts: tuple[RowFacts, RowFacts],
        plan: Plan,
        rows: QueryRows,
    ) -> None:
        self.task, self.config, self.objective = task, config, objective
        self.facts, self.plan, self.rows = facts, plan, rows
        self.querier = Querier(task, edit, config)
        note = self.querier.stricter()
        seed = derive_seed(task.seed, "search")
        self.strategy: Strategy
        if config.optimizer == Surrogate.name:
            self.strategy = Surrogate(task, edit, objective, config, seed, rows.known)
        else:
            self.strategy = build_strategy(config, np.zeros(edit.n_parameters), seed)
        self.notes = [note] if note else []
        self.best, self.best_value, self.best_round = self.strategy.start.copy(), math.inf, 0
        self.first_value = math.nan
        self.checked = -1
        self.restarts = self.failed = 0
        self.history: list[dict[str, Any]] = []
        self.ended: str | None = None
        self.unmeasured = False
        self.digest = self._digest()

    def _digest(self) -> str:
        """sha256 of what decides the result; the budget and what ends a search early may change between calls."""
        task = self.task
        free: tuple[str, ...] = ("budget", "price", "price_per_request", "rounds", "patience", "concurrency", "controls", "measure")
        if self.config.optimizer != Surrogate.name:
            free += Surrogate.OPTIONS
        options = {name: value for name, value in asdict(self.config).items() if name not in free}
        said = {"config": options, "seed": task.seed, "encoder": self.querier.embedder.fingerprint}
        said |= {"data": task.train.x.fingerprint, "val": task.val.x.fingerprint}
        digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
        for head in self.objective.heads:
            digest.update(head.weight.tobytes())
        for facts in self.facts:
            digest.update(facts.codes.cpu().numpy().tobytes() + facts.y.cpu().numpy().tobytes())
        return digest.hexdigest()

    @property
    def judged(self) -> bool:
        """Whether held-out images decide which edit is kept."""
        return len(self.rows.held_out) > 0

    def go(self) -> Searched:
        """Rounds until something ends them."""
        if self.ended is None and not self.history:
            self.task.report(f"search in {len(self.strategy.start)} parameters: {self.plan.describe()}")
        while self.ended is None:
            try:
                self._advance()
            except BudgetError:
                if self.checked < 0:
                    raise
                self.ended = "budget"
        if self.checked < self.strategy.round and self.judged:
            try:
                self._check()
                self._save()
            except BudgetError:
                self.unmeasured = True
        return self._outcome()

    def _advance(self) -> None:
        """A check where one is due, and a round unless something ends them."""
        if self.checked < self.strategy.round and self.strategy.round % self.plan.every == 0:
            self._check()
            self._save()
        self.ended = self._ending()
        if self.ended is None:
            self._round()
        self._save()

    def _ending(self) -> str | None:
        """Why no further round is made, None where one is; restarts a search that has shrunk."""
        config, done = self.config, self.strategy.round
        if config.rounds and done >= config.rounds:
            return "rounds"
        needed = self.plan.round + self.plan.check
        if self.querier.n_images + needed > self.plan.budget or not self.querier.affords(needed):
            return "budget"
        patience = config.patience * self.plan.every / config.refit_every
        if self.judged and patience and self.checked == done and done - self.best_round >= patience:
            return "patience"
        if self.strategy.exhausted:
            if self.restarts >= config.restarts:
                return "step"
            self.restarts += 1
            self.strategy.restart(self.best if self.judged else self.strategy.current)
        return None

    def _round(self) -> None:
        """Ask, evaluate, tell."""
        strategy, number = self.strategy, self.strategy.round
        asked = strategy.ask()
        values = [math.nan] * len(asked.points)
        for part in sorted(set(asked.batches)):
            members = [k for k, batch in enumerate(asked.batches) if batch == part]
            rows = self.rows.batch(self.task.seed, number, part, self.config.query_images)
            facts = _take(self.facts[0], rows)
            points = [asked.points[k] for k in members]
            answers = self.querier.embed(self.task.train.x, rows, points)
            strategy.learn(rows, points, [z for z, _ in answers])
            for k, (z, norm) in zip(members, answers, strict=True):
                values[k] = self._value(z, facts, norm)
        failed = sum(not math.isfinite(value) for value in values)
        self.failed += failed
        step = strategy.step
        told = strategy.tell(values)
        told_of = {"images": self.querier.n_images, "objective": _finite(told.value), "accepted": told.accepted, "failed": failed}
        self.history.append(_record(strategy.round, step) | told_of)

    def _value(self, z: torch.Tensor, facts: RowFacts, norm: torch.Tensor | None) -> float:
        if not bool(torch.isfinite(z).all()):
            return math.nan
        with torch.no_grad():
            return float(self.objective(z, facts, norm=norm, pooled=False)[0])

    def _check(self) -> None:
        """Heads on reference images and the objective on held-out ones, both under the current edit; keep it if it is the best."""
        point, number = self.strategy.current, self.strategy.round
        self.querier.require(self.plan.check)
        first, finite = number == 0, True
        reference, held_out = self._checked_images(point, strict=first)
        if reference is not None:
            finite = bool(torch.isfinite(reference).all())
            if finite:
                self.objective.refit(reference, _take(self.facts[0], self.rows.reference))
                self.task.store.put(HEADS, {"round": number, "state": self.objective.state()})
        value = math.nan if held_out is None else self._value(*held_out)
        self.checked = number
        if reference is not None:
            self.strategy.learn(self.rows.reference, [point], [reference], checked=True)
        failed = not finite or (self.judged and not math.isfinite(value))
        if first:
            self.first_value = value
            if failed:
                raise NonFiniteLossError(
                    "the objective of unedited images is not finite, so there is nothing to improve on; check the encoder's embeddings "
                    "and the labels of the validation rows"
                )
        if first:
            self.history.append(_record(0, self.strategy.step))
        better = finite and value < self.best_value
        if better:
            self.best, self.best_value, self.best_round = point.copy(), value, number
        if self.judged:
            self.strategy.judge(better, self.best)
            self.history[-1]["accepted"] &= bool(np.array_equal(self.strategy.current, point))
        self.failed += failed
        failures = self.history[-1]["failed"] + failed
        self.history[-1].update(held_out=_finite(value), images=self.querier.n_images, failed=failures)
        if self.judged:
            spent = f"{self.querier.n_images} of {self.plan.budget} images"
            self.task.report(f"round {number}: held-out objective {value:.4f}, best {self.best_value:.4f}, {spent}")

    def _checked_images(self, point: Array, strict: bool) -> tuple[torch.Tensor | None, HeldOut | None]:
        """Embeddings of the reference images, and of the held-out ones with their facts and norm; None where there are no such images.

        All are there before heads change, so that a check that is cut short changes nothing.
        """
        reference, held_out = None, None
        if len(self.rows.reference):
            reference = self.querier.embed(self.task.train.x, self.rows.reference, [point], strict=strict)[0][0]
        if self.judged:
            in_val = self.rows.held_out_is_val
            split, facts = (self.task.val, self.facts[1]) if in_val else (self.task.train, self.facts[0])
            z, norm = self.querier.embed(split.x, self.rows.held_out, [point], strict=strict)[0]
            held_out = (z, _take(facts, self.rows.held_out), norm)
        return reference, held_out

    def _save(self) -> None:
        self.querier.n_stored = self.querier.n_answers
        state = {
            "schema": SCHEMA,
            "digest": self.digest,
            "strategy": self.strategy.state(),
            "images": self.querier.n_images,
            "requests": self.querier.n_requests,
            "answers": self.querier.n_stored,
            "best": torch.from_numpy(self.best.copy()),
            "best_value": self.best_value,
            "best_round": self.best_round,
            "first_value": self.first_value,
            "checked": self.checked,
            "restarts": self.restarts,
            "failed": self.failed,
            "history": self.history,
        }
        self.task.store.put(STATE, state)

    def resume(self) -> None:
        """Go on from the store, where it holds a search."""
        state = self.task.store.get(STATE)
        if state is None:
            return
        if state.get("schema") != SCHEMA or state.get("digest") != self.digest:
            raise InputError(
                "the state of a search found here belongs to other data, options or another encoder; choose another out= folder or "
                "delete this one"
            )
        self.strategy.load_state(state["strategy"])
        self.querier.n_images, self.querier.n_requests = int(state["images"]), int(state.get("requests", 0))
        self.querier.n_stored = int(state.get("answers", self.querier.n_answers))
        self.best, self.best_value = state["best"].numpy().copy(), float(state["best_value"])
        self.best_round, self.first_value = int(state["best_round"]), float(state["first_value"])
        self.checked, self.restarts, self.failed = int(state["checked"]), int(state["restarts"]), int(state["failed"])
        self.history = [dict(record) for record in state["history"]]
        heads = self.task.store.get(HEADS)
        if heads is not None:
            self.objective.load_state(heads["state"])
        self.task.report(f"search continued at round {self.strategy.round}, {self.querier.n_images} images sent")

    def _outcome(self) -> Searched:
        kept = self.best if self.judged else self.strategy.current
        self.querier.place(kept)
        paid = {name: getattr(self.querier.embedder, name) for name in ("n_sent", "n_reused") if hasattr(self.querier.embedder, name)}
        # an encoder that is paid for knows what was billed, repeats and earlier processes among it
        sent, requests = self.querier.n_images, self.querier.n_requests
        if "n_sent" in paid:
            sent, requests = paid["n_sent"], getattr(self.querier.embedder, "n_requests", requests)
        price, rounds = self.plan.price, self.strategy.round
        report: dict[str, Any] = {
            "optimizer": self.config.optimizer,
            "parameters": len(self.strategy.start),
            "images": self.querier.n_images,
            "budget": self.plan.budget,
            "requests": requests,
            "cost": price.of(sent, requests),
            "price_per_1000": price.per_1000,
            "price_per_request": price.per_request,
            "rounds": rounds,
            "restarts": self.restarts,
            "failed_queries": self.failed,
            "ended_by": self.ended,
            "kept_round": self.best_round if self.judged else rounds,
            "held_out_start": _finite(self.first_value),
            "held_out_kept": _finite(self.best_value),
            "held_out_images": len(self.rows.held_out),
            **self.strategy.report,
            **paid,
        }
        if price.known:
            self.task.report(f"{sent} images were sent{price.counted(requests)}{price.words(sent, requests)}")
        return Searched(tuple(self.history), report, (*self.notes, *self.strategy.notes, *self._doubts()))

    def _doubts(self) -> list[str]:
        """What a reader of the result should know."""
        doubts = []
        if self.failed:
            doubts.append(f"{self.failed} queries gave embeddings or losses that are not finite; they were left out")
        if self.unmeasured:
            doubts.append(
                f"the encoder's budget had too little left to measure the edit of round {self.strategy.round}: it counts lost and repeated "
                f"requests too; the best edit that was measured is kept, of round {self.best_round}"
            )
        if self.judged and self.best_round == 0:
            doubts.append("no edit of the search had a lower held-out objective than unedited images, so the edit is the identity")
        if self.judged and not self.rows.held_out_is_val:
            doubts.append(f"there are no validation rows, so {len(self.rows.held_out)} training images decided which edit was kept")
        if not self.judged:
            doubts.append("validation_images=0: the last edit of the search was kept, whether or not it is the best")
        return doubts


def _record(number: int, step: float) -> dict[str, Any]:
    return {"round": number, "images": 0, "objective": None, "held_out": None, "step": step, "accepted": False, "failed": 0}


def _take(facts: RowFacts, rows: Rows) -> RowFacts:
    return facts.take(torch.from_numpy(rows).to(facts.codes.device))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
