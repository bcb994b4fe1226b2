"""Re-weighting: every group x label cell has the same total weight in the loss.

    w_i = n / (G n_c(i))       for the n labelled rows with a known group, in G cells that occur, n_c rows in cell c

Any number of groups. Rows whose attribute is missing weigh 1, the mean of the others. Multi-label: every label has cells
and weights of its own. scope=head fits the linear head, scope=full the whole network.

References:
    F. Kamiran, T. Calders, "Data preprocessing techniques for classification without discrimination", KAIS 33 (2012),
    where weights make group and label independent (w = p(g) p(y) / p(g, y)); here cells are made equal, as in the
    group-robustness literature (Idrissi et al., "Simple data balancing achieves competitive worst-group-accuracy",
    arXiv 2110.14503), so that rare labels gain weight too.
"""

from __future__ import annotations

from dataclasses import replace

from evenhand.config.methods import ReweightConfig
from evenhand.methods.base import Result, Task
from evenhand.methods.baselines.erm import train_network
from evenhand.methods.baselines.linear_probe import head_result, head_spec
from evenhand.methods.cells import choose_attribute, equal_weights, groups_of, missing_note, split_cells, stacked
from evenhand.methods.fitting import fit_head
from evenhand.methods.registry import register


@register("reweight")
class Reweight:
    """Empirical risk with equal total weight of every group x label cell.

    Args:
        config: its options; see `ReweightConfig`.
    """

    def __init__(self, config: ReweightConfig | None = None) -> None:
        self.config = config or ReweightConfig()

    def fit(self, task: Task) -> Result:
        """Fit on the training rows.

        Raises:
            MethodError: the attribute is unknown or has fewer than two groups.
        """
        config = self.config
        attribute = choose_attribute(task, config.attribute)
        notes = missing_note(groups_of(task.train, attribute), "weigh 1, the mean of the others")
        weights = [equal_weights(cells) for cells in split_cells(task.train, task, attribute)]
        if config.scope == "full":
            result = train_network(task, task.train, sample_weight=stacked(weights))
            return replace(result, notes=(*result.notes, *notes))
        spec = head_spec(task, config, max_iter=config.max_iter, tol=config.tol)
        return head_result(task, fit_head(task.embed(task.train.x), task.train.y, spec, weights=weights), notes)
