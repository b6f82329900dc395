"""One script per claim; each writes rows to `results/`. Not part of the wheel."""
