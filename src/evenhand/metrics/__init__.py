"""Metrics, gaps and their uncertainty in plain NumPy: arrays in, small dataclasses out."""

from evenhand.metrics.auc import auc, auc_with_variance, rank_rows, weighted_auc
from evenhand.metrics.bootstrap import bootstrap_blocks, draw_weights, percentile_interval
from evenhand.metrics.cells import METRICS, Cell, make_cell
from evenhand.metrics.gaps import COMBINED, Gap, GroupValue, all_gaps
from evenhand.metrics.permutation import critical_value, holm, null_maxima, p_value
from evenhand.metrics.rates import RATES, Estimate, rates, wilson
from evenhand.metrics.thresholds import choose_threshold, parse_rule

__all__ = [
    "COMBINED",
    "METRICS",
    "RATES",
    "Cell",
    "Estimate",
    "Gap",
    "GroupValue",
    "all_gaps",
    "auc",
    "auc_with_variance",
    "bootstrap_blocks",
    "choose_threshold",
    "critical_value",
    "draw_weights",
    "holm",
    "make_cell",
    "null_maxima",
    "p_value",
    "parse_rule",
    "percentile_interval",
    "rank_rows",
    "rates",
    "weighted_auc",
    "wilson",
]
