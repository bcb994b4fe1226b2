"""What an edit's training sends outside the search's budget, and what it costs: said before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evenhand.config.editing import EditMethodConfig, GeZOConfig
from evenhand.methods.base import Task
from evenhand.methods.editing.querying import Plan, Price, innermost, requests_for
from evenhand.models.embedding_cache import SHARD_ROWS


@dataclass(frozen=True)
class Beside:
    """Images that are embedded once beside a search, at most: those a cache has are not sent again.

    Attributes:
        plain: unedited training and validation images, for attribute heads, the disease head, a surrogate and the
            control without an edit.
        edited: the same under the edit, for the report and for a probe.
        noise: the same under noise of the edit's size, for the report.
        requests: about how many requests each of the three takes.
    """

    plain: int
    edited: int
    noise: int
    requests: tuple[int, int, int] = (0, 0, 0)

    @classmethod
    def of(cls, task: Task, config: EditMethodConfig, heads_given: bool = False, probe: bool = False) -> Beside:
        """What the options ask for.

        Args:
            task: its training and validation rows.
            config: the options.
            heads_given: attribute heads were fitted before.
            probe: a linear probe on edited images follows.
        """
        n = len(task.train) + len(task.val)
        reports = config.measure and len(task.val) > 0
        fits_label = config.l2_head is None and (config.utility > 0 or config.odds > 0)
        learns = isinstance(config, GeZOConfig) and config.optimizer == "surrogate"
        plain = not heads_given or fits_label or (reports and config.controls)
        edited, noise = reports or probe, reports and config.controls
        train, val = (_requests(task, len(split)) for split in (task.train, task.val))
        unedited = (n, train + val) if plain else (learns * len(task.train), learns * train)
        return cls(unedited[0], edited * n, noise * n, (unedited[1], edited * (train + val), noise * (train + val)))

    @property
    def images(self) -> int:
        """All of them."""
        return self.plain + self.edited + self.noise

    def to_json(self, price: Price) -> dict[str, Any]:
        """JSON."""
        images = {"plain": self.plain, "edited": self.edited, "noise": self.noise}
        requests = dict(zip(images, self.requests, strict=True))
        return {**images, "images": self.images, "requests": requests, "cost": price.of(self.images, sum(self.requests))}


def _requests(task: Task, n: int) -> int:
    """About how many requests embed n images: in the encoder's batches, shard by shard of the cache."""
    batch = innermost(task.embedder, "batch_size", task.batch_size)
    blocks, rest = divmod(n, SHARD_ROWS)
    return blocks * requests_for(task.embedder, SHARD_ROWS, batch) + requests_for(task.embedder, rest, batch)


def estimate(plan: Plan, beside: Beside, config: GeZOConfig) -> str:
    """One line for the user before anything is sent: the search, what comes beside it, and how to have less of that."""
    price, total, requests = plan.price, plan.most + beside.images, plan.most_requests + sum(beside.requests)
    parts = [f"{plan.most} for the search", f"{beside.plain} unedited for heads"]
    ways = []
    if beside.edited:
        parts.append(f"{beside.edited} edited" + (" for the report" if config.measure else " for the probe"))
    if beside.noise:
        parts.append(f"{beside.noise} with noise for the report's control")
        ways.append("method.controls=false leaves out the control")
    if config.measure and beside.edited:
        ways.append("method.measure=false the report")
    less = f" ({', '.join(ways)})" if ways else ""
    cost = f"{price.counted(requests, 'about ')}{price.words(total, requests)}"
    return f"images to embed, at most: {total}{cost}: {', '.join(parts)}{less}"
