"""Measuring: base against tuned on the same rows, with intervals, baselines and the best and worst samples."""
