"""The figures of the paper (arXiv 1912.08741), made from finished runs: as PNG, as SVG, and their numbers as CSV."""
