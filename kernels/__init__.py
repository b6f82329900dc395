"""Numbers on arrays: counter-based random numbers, augmentation, the beta mixture. Knows nothing of runs."""
