"""Images that an edit's training sends outside the search's budget, and what they cost: said before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evenhand.config.editing import EditMethodConfig, GeZOConfig
from evenhand.methods.base import Task
from evenhand.methods.editing.querying import Plan


@dataclass(frozen=True)
class Beside:
    """Images that are embedded once beside a search, at most: those a cache has are not sent again.

    Attributes:
        plain: unedited training and validation images, for attribute heads, the disease head, a surrogate and the
            control without an edit.
        edited: the same under the edit, for the report and for a probe.
        noise: the same under noise of the edit's size, for the report.
    """

    plain: int
    edited: int
    noise: int

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
        unedited = n if plain else learns * len(task.train)
        return cls(unedited, (reports or probe) * n, (reports and config.controls) * n)

    @property
    def images(self) -> int:
        """All of them."""
        return self.plain + self.edited + self.noise

    def to_json(self, price: float) -> dict[str, Any]:
        """JSON."""
        return {"plain": self.plain, "edited": self.edited, "noise": self.noise, "images": self.images, "cost": self.images * price / 1000}


def estimate(plan: Plan, beside: Beside, config: GeZOConfig) -> str:
    """One line for the user before anything is sent: the search, what comes beside it, and how to have less of that."""
    total = plan.most + beside.images
    parts = [f"{plan.most} for the search", f"{beside.plain} unedited for heads"]
    ways = []
    if beside.edited:
        parts.append(f"{beside.edited} edited" + (" for the report" if config.measure else " for the probe"))
    if beside.noise:
        parts.append(f"{beside.noise} with noise for the report's control")
        ways.append("method.controls=false leaves out the control")
    if config.measure and beside.edited:
        ways.append("method.measure=false the report")
    price = f", {total * config.price / 1000:.2f} at {config.price:g} per 1000" if config.price else ""
    less = f" ({', '.join(ways)})" if ways else ""
    return f"images to embed, at most: {total}{price}: {', '.join(parts)}{less}"
