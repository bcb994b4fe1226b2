"""GeZO, black box: an image edit searched by queries alone, for encoders behind an API.

    theta = theta_0 + s * u,      u from a strategy of `evenhand.methods.editing.strategies`, told L at every point it asks about

L is the same number that the white-box method differentiates (`evenhand.methods.editing.objectives`), computed without gradients
on images as the encoder really gets them: edited, projected to valid images, rounded as a file is. s are the family's natural
steps. Searching needs the more images the more parameters there are, so the default family has a few dozen; the published plane of
50,176 numbers is ``family=[pixel]``.

References:
    "Debiased Noise Editing on Foundation Models for Fair Medical Image Classification", MICCAI 2024, arXiv 2403.06104.
"""

from __future__ import annotations

from collections.abc import Mapping

from evenhand.config.editing import GeZOConfig
from evenhand.edits.build import build_edit
from evenhand.methods.base import Result, Task
from evenhand.methods.editing.attribute_head import AttributeHead
from evenhand.methods.editing.costs import Beside, estimate
from evenhand.methods.editing.outcome import EditOutcome, edit_report, finish
from evenhand.methods.editing.search import make_plan, search
from evenhand.methods.editing.setup import choose_attributes, needs_embedder, prepare
from evenhand.methods.registry import register


@register("gezo")
class GeZO:
    """An image edit searched by queries, then a linear probe on edited embeddings.

    Args:
        config: its options; see `GeZOConfig`.
    """

    def __init__(self, config: GeZOConfig | None = None) -> None:
        self.config = config or GeZOConfig()

    def fit(self, task: Task) -> Result:
        """Search the edit, then fit a linear probe on edited training images.

        Raises:
            MethodError: no encoder, a budget too small for one round, an unknown attribute, or one group.
            BudgetError: the encoder's own budget ended before the start was measured; what was answered is kept.
        """
        return finish(task, self.fit_edit(task, probe=True), self.config)

    def fit_edit(self, task: Task, heads: Mapping[str, AttributeHead] | None = None, probe: bool = False) -> EditOutcome:
        """Search the edit; a second call with the same store continues where a kill left it.

        The budget is of the search alone: heads are fitted on embeddings of unedited images, and the report measures edited ones,
        which the run's cache of embeddings holds. What all of it comes to is said before anything is sent, and stands in the report.

        Args:
            task: what a method is given; ``task.embedder`` need not give gradients. With ``many`` (`evenhand.models.PaidEmbedder`)
                several requests are in flight at once, and none is paid for twice.
            heads: attribute heads fitted before; default: they are fitted here.
            probe: a linear probe on edited images follows, which belongs to the estimate.
        """
        needs_embedder(task)
        edit = build_edit(self.config, task.train.x.shape, task.seed).to(task.device)
        choose_attributes(task, self.config.attributes)
        plan = make_plan(task, edit, self.config)[0]
        plan.require()
        beside = Beside.of(task, self.config, heads is not None, probe)
        task.report(estimate(plan, beside, self.config))
        setup = prepare(task, self.config, heads)
        searched = search(task, edit, setup.objective, self.config, (setup.train, setup.val))
        edit = edit.cpu().requires_grad_(False)
        report = edit_report(task, setup, edit, self.config)
        report["search"] = {**searched.report, "beside": beside.to_json(plan.price)}
        notes = (*setup.notes, *searched.notes)
        if task.augment != "none":
            notes += (f"data.augment={task.augment} has no part in a search: every augmented image would be one more to be paid",)
        return EditOutcome(edit, searched.history, report, notes, setup.heads)
