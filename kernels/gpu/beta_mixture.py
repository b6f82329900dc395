"""The Triton twin of `fastdrpl.kernels.beta_mixture`: its numbers (1e-6), without leaving the device.

Percentiles come from a radix selection over the bits of the losses (`selection`), four ranks at a time. log u and
log(1 - u) are held; with two components one exponential per sample and iteration is enough. Each iteration is one
launch: at its head every program adds up, in a fixed order, what the programs of the last one left, and makes the
same parameters from it; so nothing depends on the order in which programs end. All arithmetic is float64.
The kernels of the fit stand in `beta_mixture_percentiles` and `beta_mixture_iterations`.
"""

import functools

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdrpl.kernels import beta_mixture as reference
from fastdrpl.kernels.gpu.beta_mixture_iterations import finish_kernel, iterate_kernel, log_gamma
from fastdrpl.kernels.gpu.beta_mixture_percentiles import (
    LOW_QUANTILE,
    between,
    narrow_kernel,
    normalise_kernel,
    observe_kernel,
    ordered_bits,
    ordered_number,
    percentile_place,
    settle_kernel,
)
from fastdrpl.kernels.gpu.beta_mixture_results import (
    EXTREMES_AT,
    HIGH_AT,
    INFINITE_AT,
    LOW_AT,
    OBSERVED,
    ODDS_AT,
    PARAMETERS,
    PROGRAMS,
    RESULTS,
    SPREAD_AT,
    SPREADS,
    SUMS,
    UNKNOWN_AT,
)
from fastdrpl.kernels.gpu.launch import register, wrap_triton
from fastdrpl.kernels.gpu.selection import BINS, DIGIT_BITS

__all__ = [
    "BLOCK",
    "COUNTED",
    "HIGH_AT",
    "LOW_QUANTILE",
    "ODDS_AT",
    "PARTS",
    "PROGRAMS",
    "RESULTS",
    "SPREADS",
    "SPREAD_AT",
    "SUMS",
    "between",
    "finish_kernel",
    "fit",
    "fit_on_host",
    "iterate_kernel",
    "launch_fit",
    "launch_score",
    "log_gamma",
    "look_up",
    "narrow_kernel",
    "normalise_kernel",
    "observe_kernel",
    "ordered_bits",
    "ordered_number",
    "percentile_place",
    "read_fit",
    "score",
    "score_kernel",
    "settle_kernel",
]

COUNTED = 4096  # losses whose digits a program counts
BLOCK = 1024  # losses that a program handles at a time
PARTS = 1024  # of whose observations so many are added up at a time


@triton.jit
def score_kernel(losses, odds, out, count, BLOCK: tl.constexpr):
    """The probability of the noisy component, `reference.posterior_reference`; nan for nan."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    x = tl.load(losses + at, mask=inside, other=0.0).to(tl.float64)
    u = (x - tl.load(odds + 5)) / tl.load(odds + 6)
    u = tl.minimum(tl.maximum(u, tl.load(odds + 3)), tl.load(odds + 4))
    log_odds = tl.load(odds) + tl.load(odds + 1) * tl.log(u) + tl.load(odds + 2) * tl.log(1 - u)
    tl.store(out + at, tl.where(x == x, 1 / (1 + tl.exp(-log_odds)), x), mask=inside)


# --- launchers ---


def launch_fit(
    losses: Tensor,
    iterations: int,
    counted: int = COUNTED,
    block: int = BLOCK,
    most_programs: int = PROGRAMS.value,
    parts_at_once: int = PARTS,
) -> Tensor:
    """Fit the mixture to (N,) losses, N >= 1, float32 or float64, contiguous: -> (RESULTS,) float64.

    Nan or no finite loss among them is noted in the results, whose other numbers then mean nothing. `counted`, `block`:
    losses that a program handles at a time; `most_programs`: at most 256, it changes the order of sums;
    `parts_at_once`: how many observations are added up at a time. Powers of two, but for `most_programs`.
    """
    count, double = losses.numel(), losses.dtype == torch.float64
    empty = functools.partial(torch.empty, dtype=torch.float64, device=losses.device)
    digit_bits, bins = DIGIT_BITS.value, BINS.value
    steps, parts = (8 if double else 4), triton.cdiv(count, counted)
    histograms = torch.zeros((steps, 4, bins), dtype=torch.int32, device=losses.device)
    state = torch.empty((steps + 1, 2, 4), dtype=torch.int64, device=losses.device)
    observed, places = empty((parts, OBSERVED.value)), empty(2)
    results, held = empty(RESULTS), empty((3, count))
    shift = digit_bits * (steps - 1)
    wrap_triton(observe_kernel)[(parts,)](
        losses, histograms, observed, places, count, shift, BLOCK=counted, num_warps=8
    )
    for step in range(1, steps):
        shift -= digit_bits
        wrap_triton(narrow_kernel)[(parts,)](
            losses, histograms, state, count, step, shift, BLOCK=counted, num_warps=8
        )
    wrap_triton(settle_kernel)[(1,)](
        observed, parts, histograms, state, places, results, count, steps, DOUBLE=double, PARTS=parts_at_once
    )
    blocks = triton.cdiv(count, block)
    wrap_triton(normalise_kernel)[(blocks,)](losses, results, held, count, BLOCK=block)
    programs = min(blocks, most_programs)
    parameters = empty((iterations + 1, PARAMETERS.value))
    partials = empty((2, SUMS.value, PROGRAMS.value))
    for iteration in range(iterations):
        wrap_triton(iterate_kernel)[(programs,)](
            held, parameters, partials, count, programs, iteration, BLOCK=block, num_warps=8
        )
    wrap_triton(finish_kernel)[(1,)](parameters, partials, results, programs, iterations)
    return results


def launch_score(losses: Tensor, odds: Tensor, block: int = BLOCK) -> Tensor:
    """Posterior of (N,) losses, contiguous, from the odds (7,) of a fit: -> (N,) float64; nan stays nan."""
    out = torch.empty(losses.shape, dtype=torch.float64, device=losses.device)
    if losses.numel():
        grid = (triton.cdiv(losses.numel(), block),)
        wrap_triton(score_kernel)[grid](losses, odds, out, losses.numel(), BLOCK=block)
    return out


def look_up(losses: Tensor, begin: float, scale: float, table: reference.Array) -> Tensor:
    """`reference.posterior_lookup` with tensor code, on the losses' device: (N,) -> (N,) float64; nan stays nan."""
    u = ((losses.double() - begin) / scale).clamp(reference.EDGE, 1 - reference.EDGE)
    entry = (reference.LOOKUP_BINS * u).nan_to_num().long()
    return torch.where(u.isnan(), u, torch.from_numpy(table).to(losses.device)[entry])


def read_fit(results: Tensor) -> tuple[reference.Fit, int, int]:
    """The results of `fit` on the host: the fit, and how many losses were nan and how many infinite. Waits once."""
    numbers = results.cpu().numpy()
    low, high = float(numbers[LOW_AT.value]), float(numbers[HIGH_AT.value])
    unknown, infinite = int(numbers[UNKNOWN_AT.value]), int(numbers[INFINITE_AT.value])
    spread = SPREADS[int(numbers[SPREAD_AT.value])]
    return reference.Fit(numbers[0:2], numbers[2:4], numbers[4:6], low, high, spread), unknown, infinite


# --- the operations, with their references on the CPU ---


@torch.library.custom_op("fastdrpl::beta_mixture_reference", mutates_args=())
def fit_on_host(losses: Tensor, iterations: int) -> Tensor:
    """What `launch_fit` gives, by the reference; opaque to torch.compile, which cannot see into numpy."""
    values = losses.double().numpy()
    results = torch.zeros(RESULTS, dtype=torch.float64)
    unknown, finite = np.isnan(values), np.abs(values) <= reference.INFINITE
    results[UNKNOWN_AT.value], results[INFINITE_AT.value] = unknown.sum(), (~finite & ~unknown).sum()
    if unknown.any() or not finite.any():
        return results
    extremes = values[finite].min(), values[finite].max()
    fit = reference.fit_reference(np.clip(values, *extremes), iterations)
    mixture = reference.describe_fit(fit, 0, values.size)
    odds = reference.monotone_log_odds(mixture.alpha, mixture.beta, mixture.weight)
    begin = fit.low + reference.LOW_OFFSET
    spread, scale = SPREADS.index(fit.spread), reference.scale_of(fit.low, fit.high)
    numbers = (*fit.alpha, *fit.beta, *fit.weight, fit.low, fit.high, spread)
    results[: len(numbers)] = torch.tensor(numbers, dtype=torch.float64)
    results[EXTREMES_AT.value : EXTREMES_AT.value + 2] = torch.tensor(extremes, dtype=torch.float64)
    results[ODDS_AT.value :] = torch.tensor((*odds, begin, scale), dtype=torch.float64)
    return results


@fit_on_host.register_fake
def _(losses: Tensor, iterations: int) -> Tensor:
    return losses.new_empty(RESULTS, dtype=torch.float64)


def _fit(
    losses: Tensor,
    iterations: int,
    counted: int = COUNTED,
    block: int = BLOCK,
    most_programs: int = PROGRAMS.value,
    parts_at_once: int = PARTS,
) -> Tensor:
    return fit_on_host(losses, iterations)


def _score(losses: Tensor, odds: Tensor, block: int = BLOCK) -> Tensor:
    constant, log_u, log_rest, smallest, largest, begin, scale = odds.unbind()
    u = torch.minimum(torch.maximum((losses.double() - begin) / scale, smallest), largest)
    return torch.sigmoid(constant + log_u * torch.log(u) + log_rest * torch.log1p(-u))


fit = register("beta_mixture_fit", _fit)(launch_fit)
score = register("beta_mixture_score", _score)(launch_score)
