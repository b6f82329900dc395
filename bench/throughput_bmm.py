"""How fast the beta mixture is: `python bench/throughput_bmm.py [--device cuda] [--out FILE] [samples ...]`.

Claims, against scipy on the same losses, 10 iterations. numba on the CPU: EM alone at least 200 times at 50,000 samples
and 250 times above; percentiles + fit + posterior at least 100 times. A GPU: percentiles + fit + posterior at least
1,500 times at 50,000 samples and 10,000 times at 1,281,167. With `--device cuda` the GPU is measured in the same turns,
from losses that are there already, until it is done: the public calls, which hand the fit to the host, and a captured
graph of the same kernels, whose results stay. Rows go to bench/results/throughput_bmm.jsonl, or to `--out`.
"""

import argparse
import sys
from collections.abc import Callable
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
INNER = 7  # calls of a twin per turn, of which the median counts: one call is shorter than a hiccup


def make_losses(count: int, noisy: float = 0.4, seed: int = 1) -> np.ndarray:
    """(count,) losses as after the first stage: a clean heap near 0 with a tail, a broad noisy one near 4."""
    random = np.random.default_rng(seed)
    wrong = random.random(count) < noisy
    return np.where(wrong, random.gamma(12.0, 0.35, count), random.gamma(0.9, 0.35, count)) + 1e-4


def main(sizes: list[int], device: str, out: Path) -> None:
    """Measure, compare, print, and store."""
    print(f"{numba.get_num_threads()} threads, {ITERATIONS} iterations; medians")
    print(f"{'samples':>9}  {'part':<5} {'by':<14} {'ms':>10} {'ratio':>8}  largest difference")
    for count in sizes:
        # What a network gives, so that all sides get the same numbers.
        losses = make_losses(count).astype(np.float32).astype(np.float64)
        on_gpu = _on_gpu(losses) if device == "cuda" else {}
        differences = {"numba": _compare(losses, _fit_and_score(losses, "numba"))}
        differences |= {name: _compare(losses, run()) for name, run in on_gpu.items()}
        low, high = np.percentile(losses, reference.OUTER_PERCENTILES)
        u = reference._normalise_for_fit(losses[(losses >= low) & (losses <= high)], low, high)
        *normalised, _, _ = twin._normalise(losses, low, high)
        parts: dict[str, dict[str, Callable[[], object]]] = {
            "EM": {
                "reference": lambda u=u: reference._fit_by_moments(u, ITERATIONS),
                "numba": lambda n=normalised: twin._fit_by_moments(*n, ITERATIONS),
            },
            "whole": {
                "reference": lambda x=losses: _fit_and_score(x, "reference"),
                "numba": lambda x=losses: _fit_and_score(x, "numba"),
                **on_gpu,
            },
        }
        for part, functions in parts.items():
            _measure(part, count, functions, differences, out)


def _measure(
    part: str,
    count: int,
    functions: dict[str, Callable[[], object]],
    differences: dict[str, float],
    out: Path,
) -> None:
    """Time the functions in turns, those that are not the reference INNER times each; print and store rows."""
    calls = {"reference": functions["reference"]}
    twins = [name for name in functions if name != "reference"]
    calls |= {f"{name} {i}": functions[name] for name in twins for i in range(INNER)}
    seconds = measure_in_turns(calls, warmup=WARMUP, repeats=SIZES.get(count, 5))
    times = {"reference": seconds["reference"]}
    for name in twins:
        medians = np.median([seconds[f"{name} {i}"] for i in range(INNER)], axis=0)
        times[name] = [float(value) for value in medians]
    slowest = float(np.median(times["reference"]))
    for name, values in times.items():
        ratio = slowest / float(np.median(values))
        difference = differences.get(name, 0.0)
        write_row(
            out,
            what=f"beta mixture, {part}",
            shape=(count,),
            dtype="float32" if name.startswith("triton") else "float64",
            backend=name,
            seconds=values,
            warmup=WARMUP,
            threads=numba.get_num_threads(),
            iterations=ITERATIONS,
            ratio_to_reference=ratio,
            largest_difference=difference,
        )
        milliseconds = float(np.median(values)) * 1e3
        print(f"{count:>9}  {part:<5} {name:<14} {milliseconds:>10.3f} {ratio:>7.0f}x  {difference:.1e}")


def _fit_and_score(losses: np.ndarray, backend: reference.Backend) -> tuple[BetaMixture, np.ndarray]:
    fit = fit_beta_mixture(losses, backend=backend, iterations=ITERATIONS)
    return fit, fit.posterior(losses, backend=backend)


def _on_gpu(losses: np.ndarray) -> dict[str, Callable[[], tuple[BetaMixture, object]]]:
    """Functions that fit and score on the GPU and wait for its end: by the public calls, and by a captured graph."""
    import torch

    from fastdrpl.kernels.gpu import beta_mixture as gpu

    values = torch.from_numpy(losses).float().cuda()
    mixture = fit_beta_mixture(values, iterations=ITERATIONS)
    mixture.posterior(values)  # compiles, before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = gpu.fit(values, ITERATIONS)
        scores = gpu.score(values, results[gpu.ODDS_AT.value :])

    def call() -> tuple[BetaMixture, object]:
        fit = fit_beta_mixture(values, iterations=ITERATIONS)
        posterior = fit.posterior(values)
        torch.cuda.synchronize()
        return fit, posterior

    def replay() -> tuple[BetaMixture, object]:
        graph.replay()
        torch.cuda.synchronize()
        return mixture, scores

    return {"triton": call, "triton graph": replay}


def _compare(losses: np.ndarray, got: tuple[BetaMixture, object]) -> float:
    """Largest relative difference of a parameter or absolute one of a posterior. Raises where they disagree."""
    (slow, p_slow), (fast, p_fast) = _fit_and_score(losses, "reference"), got
    if not isinstance(p_fast, np.ndarray):
        p_fast = p_fast.cpu().numpy()  # type: ignore[attr-defined]
    expected, parameters = (np.array([fit.alpha, fit.beta, fit.weight]) for fit in (slow, fast))
    difference = max(float(np.abs(parameters / expected - 1).max()), float(np.abs(p_fast - p_slow).max()))
    if difference > 1e-6:
        raise RuntimeError(f"a twin and the reference differ by {difference:.1e} at {losses.size} samples")
    return difference


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("samples", nargs="*", type=int, default=list(SIZES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS / "throughput_bmm.jsonl")
    arguments = parser.parse_args()
    main(arguments.samples, arguments.device, arguments.out)
