"""What users download: read right, or refused with a reason; nothing in it is ever run."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastdrpl.loaders.sources.digits import enlarge
from fastdrpl.loaders.sources.stratify import choose_test_rows

# --- digits and division -------------------------------------------------------------------------------------------


def test_enlarge_equals_pillow() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (5, 8, 8)).astype(np.float64)
    for small, large in zip(grey, enlarge(grey), strict=True):
        wanted = Image.fromarray(small.astype(np.float32), "F").resize((16, 16), Image.Resampling.BILINEAR)
        assert np.abs(large - np.asarray(wanted)).max() <= 0.5 + 1e-3


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    fraction=st.floats(0, 0.99),
    seed=st.integers(0, 2**64 - 1),
)
def test_test_rows_are_of_every_class_in_proportion(counts: list[int], fraction: float, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng(1).shuffle(labels)
    rows = choose_test_rows(labels, fraction, seed)
    assert np.array_equal(rows, np.unique(rows))
    chosen = np.bincount(labels[rows], minlength=len(counts))
    for n, k in zip(counts, chosen, strict=True):
        assert k < n and (abs(k - fraction * n) <= 0.5 + 1e-9 or k == n - 1)
    assert np.array_equal(rows, choose_test_rows(labels, fraction, seed))
