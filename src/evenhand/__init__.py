"""Assess and mitigate unequal performance across patient groups in medical-imaging models."""
__version__ = "0.1.0"
