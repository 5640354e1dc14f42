"""Folds, probes, metrics with intervals, paired comparisons, robustness and result tables."""
