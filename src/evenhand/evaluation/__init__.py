"""Judging predictions: audits, comparisons and verdicts. Sees only tables of predictions."""

from evenhand.evaluation.evaluate import AuditResult, evaluate
from evenhand.evaluation.interop import from_metric_frame, to_metric_frame
from evenhand.evaluation.predictions import make_predictions, write_predictions
from evenhand.evaluation.reading import read_predictions

__all__ = ["AuditResult", "evaluate", "from_metric_frame", "make_predictions", "read_predictions", "to_metric_frame", "write_predictions"]
