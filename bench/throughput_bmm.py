"""How fast the beta mixture is: `python bench/throughput_bmm.py [samples ...]`.

Claims, numba against scipy on the same losses, 10 iterations: EM alone at least 200 times at 50,000 samples and 250
times above; percentiles + fit + posterior at least 100 times. Rows go to bench/results/throughput_bmm.jsonl.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout needs no installation

import numba
import numpy as np

from bench.rows import RESULTS, measure_in_turns, write_row
from fastdrpl.kernels import beta_mixture as reference
from fastdrpl.kernels.beta_mixture import BetaMixture, fit_beta_mixture
from fastdrpl.kernels.cpu import beta_mixture as twin

SIZES = {50_000: 15, 127_000: 9, 1_281_167: 5}  # samples: turns
ITERATIONS = 10
WARMUP = 2
INNER = 7  # calls of the twin per turn, of which the median counts: one call is shorter than a hiccup


def make_losses(count: int, noisy: float = 0.4, seed: int = 1) -> np.ndarray:
    """(count,) losses as after the first stage: a clean heap near 0 with a tail, a broad noisy one near 4."""
    random = np.random.default_rng(seed)
    wrong = random.random(count) < noisy
    return np.where(wrong, random.gamma(12.0, 0.35, count), random.gamma(0.9, 0.35, count)) + 1e-4


def main(sizes: list[int]) -> None:
    """Measure, compare, print, and store."""
    print(f"{numba.get_num_threads()} threads, {ITERATIONS} iterations; medians")
    print(f"{'samples':>9}  {'part':<5} {'scipy ms':>9} {'numba ms':>9} {'ratio':>6}  largest difference")
    for count in sizes:
        turns = SIZES.get(count, 5)
        losses = make_losses(count)
        low, high = np.percentile(losses, reference.OUTER_PERCENTILES)
        u = reference._normalise_for_fit(losses[(losses >= low) & (losses <= high)], low, high)
        *normalised, _, _ = twin._normalise(losses, low, high)
        parts = {
            "EM": (
                lambda u=u: reference._fit_by_moments(u, ITERATIONS),
                lambda n=normalised: twin._fit_by_moments(*n, ITERATIONS),
            ),
            "whole": (
                lambda x=losses: _fit_and_score(x, "reference"),
                lambda x=losses: _fit_and_score(x, "numba"),
            ),
        }
        difference = _compare(losses)
        for part, (slow, fast) in parts.items():
            seconds = measure_in_turns(
                {"reference": slow, **{f"numba {i}": fast for i in range(INNER)}},
                warmup=WARMUP,
                repeats=turns,
            )
            twins = np.median([seconds[f"numba {i}"] for i in range(INNER)], axis=0)
            times = {"reference": seconds["reference"], "numba": [float(value) for value in twins]}
            medians = {name: float(np.median(values)) for name, values in times.items()}
            ratio = medians["reference"] / medians["numba"]
            for name, values in times.items():
                write_row(
                    RESULTS / "throughput_bmm.jsonl",
                    what=f"beta mixture, {part}",
                    shape=(count,),
                    dtype="float64",
                    backend=name,
                    seconds=values,
                    warmup=WARMUP,
                    threads=numba.get_num_threads(),
                    iterations=ITERATIONS,
                    ratio_to_reference=1.0 if name == "reference" else ratio,
                    largest_difference=difference,
                )
            slow_ms, fast_ms = medians["reference"] * 1e3, medians["numba"] * 1e3
            print(f"{count:>9}  {part:<5} {slow_ms:>9.2f} {fast_ms:>9.3f} {ratio:>5.0f}x  {difference:.1e}")


def _fit_and_score(losses: np.ndarray, backend: reference.Backend) -> tuple[BetaMixture, np.ndarray]:
    fit = fit_beta_mixture(losses, backend=backend, iterations=ITERATIONS)
    return fit, fit.posterior(losses, backend=backend)


def _compare(losses: np.ndarray) -> float:
    """Largest relative difference of a parameter or absolute one of a posterior. Raises where they disagree."""
    (slow, p_slow), (fast, p_fast) = (_fit_and_score(losses, backend) for backend in ("reference", "numba"))
    expected, got = (np.array([fit.alpha, fit.beta, fit.weight]) for fit in (slow, fast))
    difference = max(float(np.abs(got / expected - 1).max()), float(np.abs(p_fast - p_slow).max()))
    if difference > 1e-6:
        raise RuntimeError(f"numba and reference differ by {difference:.1e} at {losses.size} samples")
    return difference


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or list(SIZES))
