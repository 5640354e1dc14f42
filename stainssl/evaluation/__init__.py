"""From predictions to a table: folds, probes, metrics with intervals, comparisons, robustness."""
