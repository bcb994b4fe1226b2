"""Judging predictions: audits, comparisons and verdicts. Sees only tables of predictions."""

from evenhand.evaluation.evaluate import AuditResult, evaluate
from evenhand.evaluation.predictions import make_predictions, write_predictions
from evenhand.evaluation.reading import read_predictions

__all__ = ["AuditResult", "evaluate", "make_predictions", "read_predictions", "write_predictions"]
