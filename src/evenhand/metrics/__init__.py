"""Metrics, gaps and their uncertainty in plain NumPy: arrays in, small dataclasses out."""

from evenhand.metrics.auc import auc, auc_with_variance, rank_rows, weighted_auc
from evenhand.metrics.average_precision import average_precision
from evenhand.metrics.bootstrap import bootstrap_blocks, draw_weights, percentile_interval
from evenhand.metrics.calibration import expected_calibration_error
from evenhand.metrics.cells import METRICS, Cell, make_cell
from evenhand.metrics.gaps import COMBINED, Gap, GroupValue, all_gaps
from evenhand.metrics.intervals import clustered_wilson, newcombe
from evenhand.metrics.net_benefit import net_benefit
from evenhand.metrics.paired import AucEstimate, PairedDifference, delong, mcnemar, paired_difference
from evenhand.metrics.permutation import critical_value, holm, null_maxima, p_value
from evenhand.metrics.rates import RATES, Estimate, rates, wilson
from evenhand.metrics.recalibration import Recalibration, calibration_slope_intercept
from evenhand.metrics.thresholds import choose_threshold, parse_rule

__all__ = [
    "COMBINED",
    "METRICS",
    "RATES",
    "AucEstimate",
    "Cell",
    "Estimate",
    "Gap",
    "GroupValue",
    "PairedDifference",
    "Recalibration",
    "all_gaps",
    "auc",
    "auc_with_variance",
    "average_precision",
    "bootstrap_blocks",
    "calibration_slope_intercept",
    "choose_threshold",
    "clustered_wilson",
    "critical_value",
    "delong",
    "draw_weights",
    "expected_calibration_error",
    "holm",
    "make_cell",
    "mcnemar",
    "net_benefit",
    "newcombe",
    "null_maxima",
    "p_value",
    "paired_difference",
    "parse_rule",
    "percentile_interval",
    "rank_rows",
    "rates",
    "weighted_auc",
    "wilson",
]
