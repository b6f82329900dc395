"""Detectors: from statistics of the samples to a score and a split, each a pure function with its thresholds."""
