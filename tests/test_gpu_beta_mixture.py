"""The beta mixture on a GPU: kernels against the reference on every kind of losses, and what the public calls say."""

import itertools
import math

import numpy as np
import pytest
import torch
from beta_mixture_cases import NASTY, make_losses
from gpu_device import DEVICE, ON_GPU, either, needs_gpu
from need import need
from scipy import special

from fastdrpl.kernels import beta_mixture as public
from fastdrpl.kernels.beta_mixture import BetaMixture, fit_beta_mixture, monotone_log_odds

need("triton")
import gpu_beta_mixture_kernel as single

from fastdrpl.kernels.gpu import beta_mixture as twin

fit, score = either(twin.launch_fit, twin.fit), either(twin.launch_score, twin.score)

DOUBLE, SINGLE = torch.float64, torch.float32
ODDS = twin.ODDS_AT.value

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy, in the interpreter


def relative_difference(got, expected) -> float:
    got, expected = np.array(got), np.array(expected)
    return float(np.max(np.abs(got - expected) / np.where(expected == 0, 1, np.abs(expected))))


def check_fit(losses: torch.Tensor, iterations: int, **sizes: int) -> np.ndarray:
    """Fit and posterior against the reference; the posterior is returned."""
    values = losses.double().numpy()
    expected = fit_beta_mixture(values, backend="reference", iterations=iterations)
    on_device = losses.to(DEVICE)
    results = fit(on_device, iterations, **sizes)
    found, unknown, infinite = twin.read_fit(results)
    assert (unknown, infinite) == (0, int(np.sum(np.abs(values) > public.INFINITE)))
    got = public.describe_fit(found, infinite, values.size)
    assert got.warnings == expected.warnings
    for name in ("alpha", "beta", "weight"):
        assert relative_difference(getattr(got, name), getattr(expected, name)) < 1e-6, name
    # A GPU multiplies and adds in one step: the last bit of an interpolation may differ.
    assert relative_difference((got.low, got.high), (expected.low, expected.high)) <= (1e-15 if ON_GPU else 0)
    odds = results[ODDS:].cpu().numpy()
    own = monotone_log_odds(got.alpha, got.beta, got.weight)
    if math.isinf(own.constant):
        assert odds[0] == own.constant
    else:
        np.testing.assert_allclose(odds[:5], own, rtol=1e-9, atol=1e-9)
    posterior = score(on_device, results[ODDS:]).cpu().numpy()
    np.testing.assert_allclose(posterior, expected.posterior(values, backend="reference"), atol=1e-6)
    assert posterior.dtype == np.float64
    assert (np.diff(posterior[np.argsort(values, kind="stable")]) >= -1e-12).all()
    return posterior


@pytest.mark.parametrize("name", NASTY)
def test_nasty_sets(name):
    check_fit(torch.from_numpy(NASTY[name]), 10)


@pytest.mark.parametrize(
    "name", ["zeros", "two values", "huge outlier", "infinite", "both infinities", "negative", "float32 ties"]
)
def test_nasty_sets_in_single_precision(name):
    check_fit(torch.from_numpy(NASTY[name]).float(), 2)


@pytest.mark.parametrize("block", range(10))
def test_random_sets(block):
    """Two hundred sets of odd sizes, some in several programs of several blocks each."""
    for seed in range(20 * block, 20 * block + 20):
        count = int(np.random.default_rng(seed).integers(1, 1500))
        losses = torch.from_numpy(make_losses(seed, count))
        small = {"counted": 512, "block": 256, "most_programs": 2, "parts_at_once": 2}
        whole = {"counted": 2048, "block": 2048}
        check_fit(
            losses if seed % 5 == 0 else losses.float(),
            1 + (seed % 7 == 0),
            **small if seed % 7 == 0 else whole,
        )


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
@pytest.mark.parametrize(("count", "iterations"), [(6000, 10), (4097, 3)])
def test_many_blocks_and_programs(count, iterations, dtype):
    check_fit(torch.from_numpy(make_losses(count, count)).to(dtype), iterations)


def test_the_same_losses_give_the_same_bits():
    losses = torch.from_numpy(make_losses(5, 3000)).float().to(DEVICE)
    results = [fit(losses, 3, block=512) for _ in range(2)]
    assert torch.equal(*results)


@needs_gpu
def test_large_sets():
    for count in (2_001, 50_000, 50_001, 1_281_167, 1_281_181):  # of some a percentile is one of the losses
        check_fit(torch.from_numpy(make_losses(count, count)).float(), 10)


# --- parts ---


def test_log_gamma_over_the_whole_range_of_parameters():
    smallest, largest = public.SMALLEST_PARAMETER, public.LARGEST_CONCENTRATION
    x = np.concatenate(
        [np.geomspace(smallest, 2 * largest, 30_000), np.arange(1, 41) / 4, np.nextafter(8, [0, 9])]
    )
    out = torch.empty(x.size, dtype=DOUBLE, device=DEVICE)
    single.log_gamma_kernel[(1,)](torch.from_numpy(x).to(DEVICE), out, x.size, BLOCK=32_768)
    expected = special.gammaln(x)
    assert np.max(np.abs(out.cpu().numpy() - expected) / np.maximum(1, np.abs(expected))) < 2e-14


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
def test_ordered_bits_are_in_the_order_of_the_numbers(dtype):
    limits = torch.finfo(dtype)
    special_numbers = [0.0, -0.0, limits.max, limits.min, limits.tiny, -limits.tiny, math.inf, -math.inf, 1.0]
    random = torch.randn(1000, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    x = torch.cat([torch.tensor(special_numbers, dtype=DOUBLE), random * 10.0 ** (random * 8)]).to(dtype)
    keys, back = torch.empty(len(x), dtype=torch.int64), torch.empty(len(x), dtype=DOUBLE)
    keys, back, on_device = keys.to(DEVICE), back.to(DEVICE), x.to(DEVICE)
    single.order_kernel[(1,)](on_device, keys, back, len(x), DOUBLE=dtype == DOUBLE, BLOCK=1024)
    assert torch.equal(back.cpu(), x.double())
    unsigned = keys.cpu().numpy().view(np.uint64)
    assert unsigned[0] == unsigned[1]  # both zeros
    order = np.argsort(x.double().numpy(), kind="stable")
    assert (np.diff(x.double().numpy()[order]) > 0).tolist() == (
        unsigned[order][1:] > unsigned[order][:-1]
    ).tolist()
    assert (unsigned[order][1:] >= unsigned[order][:-1]).all()


def test_percentiles_lie_where_numpy_puts_them():
    counts = torch.cat([torch.arange(1, 1000), torch.tensor([50_000, 127_000, 1_281_167, 2**31 - 1])])
    places = torch.empty(len(counts), dtype=DOUBLE, device=DEVICE)
    single.place_kernel[(1,)](counts.to(DEVICE), places, len(counts), BLOCK=1024)
    assert np.array_equal(places.cpu().numpy(), (counts.numpy() - 1) * (5.0 / 100))


def test_percentiles_between_two_losses_are_those_of_numpy():
    random = np.random.default_rng(0)
    below, above = 10.0 ** random.uniform(-8, 2, 500), 10.0 ** random.uniform(2, 9, 500)
    share = random.random(500)
    expected = [np.quantile(pair, q) for *pair, q in zip(below, above, share, strict=True)]
    out = torch.empty(500, dtype=DOUBLE, device=DEVICE)
    moved = (torch.from_numpy(values).to(DEVICE) for values in (below, above, share))
    single.between_kernel[(1,)](*moved, out, 500, BLOCK=512)
    assert relative_difference(out.cpu().numpy(), expected) <= (1e-15 if ON_GPU else 0)


def test_a_loss_that_neither_component_explains_is_half_of_either():
    """Both densities lie below the floor between two narrow components."""
    u = torch.tensor([0.2, 0.4, 0.8], dtype=DOUBLE, device=DEVICE)
    held = torch.stack([u, u.log(), (1 - u).log()])
    partials = torch.zeros((2, twin.SUMS.value, twin.PROGRAMS.value), dtype=DOUBLE, device=DEVICE)
    for k, mean in enumerate((0.2, 0.8)):
        sums = [1.0, mean, 1e-4 + (mean - 0.5) ** 2]
        partials[0, 3 * k : 3 * k + 3, 0] = torch.tensor(sums, dtype=DOUBLE, device=DEVICE)
    parameters = torch.full((2, 8), 0.5, dtype=DOUBLE, device=DEVICE)
    twin.iterate_kernel[(1,)](held, parameters, partials, 3, 1, 1, BLOCK=16)
    shares = partials[1, :, 0].cpu().numpy()
    np.testing.assert_allclose(shares[[0, 1, 3, 4]], [1.5, 0.4, 1.5, 1.0], rtol=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_components_in_either_order_give_the_odds_of_the_noisy_one(seed):
    """The last step from given sums: moments of any sign of the differences, first component first or not."""
    random = np.random.default_rng(seed)
    share, mean = random.uniform(1, 9, 2), random.uniform(0.1, 0.9, 2)
    variance = mean * (1 - mean) * random.uniform(0.01, 0.5, 2)
    expected = [public.match_moments(m, v) for m, v in zip(mean, variance, strict=True)]
    order = np.argsort(mean)
    alpha, beta = np.array(expected)[order].T
    odds = monotone_log_odds(alpha, beta, share[order] / share.sum())
    partials = torch.zeros((2, twin.SUMS.value, twin.PROGRAMS.value), dtype=DOUBLE)
    for k in (0, 1):
        sums = share[k] * np.array([1, mean[k], variance[k] + (mean[k] - 0.5) ** 2])
        partials[0, 3 * k : 3 * k + 3, :2] = torch.from_numpy(sums)[:, None] * torch.tensor([0.25, 0.75])
    parameters, results = torch.full((2, 8), 0.5, dtype=DOUBLE), torch.zeros(twin.RESULTS, dtype=DOUBLE)
    results[twin.HIGH_AT.value], results[twin.SPREAD_AT.value] = 3.0, 2.0
    parameters, partials, results = (x.to(DEVICE) for x in (parameters, partials, results))
    twin.finish_kernel[(1,)](parameters, partials, results, 2, 1)
    got = results.cpu().numpy()
    np.testing.assert_allclose(got[:4], np.array(expected).T.ravel(), rtol=1e-9)
    np.testing.assert_allclose(got[4:6], share / share.sum(), rtol=1e-12)
    np.testing.assert_allclose(got[ODDS : ODDS + 5], odds, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(got[ODDS + 5 :], (1e-5, public.scale_of(0.0, 3.0)), rtol=1e-12)


# --- edges of single functions ---


def test_scores_of_odd_losses():
    odds = torch.tensor([0.3, 2.0, -1.5, 1e-12, 1 - 1e-12, 0.1, 3.0], dtype=DOUBLE, device=DEVICE)
    for count, dtype in itertools.product((0, 1, 1024, 1025), (SINGLE, DOUBLE)):
        losses = torch.from_numpy(make_losses(count, count)).to(dtype)
        u = ((losses.double() - 0.1) / 3).clamp(1e-12, 1 - 1e-12)
        expected = torch.sigmoid(0.3 + 2.0 * u.log() - 1.5 * torch.log1p(-u))
        torch.testing.assert_close(score(losses.to(DEVICE), odds).cpu(), expected, atol=1e-9, rtol=0)
    got = score(torch.tensor([math.nan, math.inf, -math.inf, 0.5], device=DEVICE), odds).cpu()
    assert got.isnan().tolist() == [True, False, False, False]
    assert got[1] > 1 - 1e-6
    assert got[2] < 1e-6


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
def test_nan_and_infinity_are_counted(dtype):
    losses = torch.from_numpy(make_losses(2, 5000)).to(dtype)
    losses[[4, 50, 4999]] = math.nan
    losses[[7, 4098]] = torch.tensor([math.inf, -math.inf], dtype=dtype)
    _, unknown, infinite = twin.read_fit(fit(losses.to(DEVICE), 1, counted=1024, parts_at_once=2))
    assert (unknown, infinite) == (3, 2)
    _, unknown, infinite = twin.read_fit(fit(torch.full((3,), math.inf, device=DEVICE), 1))
    assert (unknown, infinite) == (0, 3)


@pytest.mark.parametrize("count", [1, 100])
def test_the_odds_of_a_fit_are_read_by_the_kernel_that_a_warm_up_compiles(count):
    """Triton compiles one kernel for pointers to a multiple of 16 bytes, another for the rest: none inside a graph."""
    results = fit(torch.from_numpy(make_losses(3, count)).to(DEVICE), 2)
    assert len(results) == twin.RESULTS and len(results[ODDS:]) == 7
    assert results.data_ptr() % 16 == results[ODDS:].data_ptr() % 16 == 0
    assert results[ODDS - 1] == 0


# --- the public calls: here by the operations' references, on a GPU by the kernels ---


@pytest.fixture
def on_gpu(monkeypatch):
    """Moves losses to where the public calls take them for losses on a GPU."""
    if not ON_GPU:
        monkeypatch.setattr(public, "choose", lambda operation, device: "triton")
    return lambda losses: torch.as_tensor(losses).to(DEVICE)


@pytest.mark.parametrize("name", ["two values", "constant", "infinite", "both infinities", "shifted"])
def test_public_calls_agree_with_the_reference(name, on_gpu):
    losses = NASTY[name]
    expected, got = fit_beta_mixture(losses, backend="reference"), fit_beta_mixture(on_gpu(losses))
    assert got.warnings == expected.warnings
    for field in ("alpha", "beta", "weight"):
        assert relative_difference(getattr(got, field), getattr(expected, field)) < 1e-6
    for compat in ("exact", "lookup"):
        posterior = got.posterior(on_gpu(losses), compat=compat)
        assert posterior.device.type == DEVICE.type
        assert posterior.dtype == DOUBLE
        wanted = got.posterior(losses, compat=compat, backend="reference")
        np.testing.assert_allclose(posterior.cpu().numpy(), wanted, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_other_types_are_widened(dtype, on_gpu):
    losses = torch.from_numpy(make_losses(4) * 10).to(dtype)
    got = fit_beta_mixture(on_gpu(losses.repeat_interleave(2))[::2])  # and strides are followed
    expected = fit_beta_mixture(losses.double(), backend="reference")
    assert relative_difference(got.alpha, expected.alpha) < 1e-6
    posterior = got.posterior(on_gpu(losses)).cpu().numpy()
    np.testing.assert_allclose(posterior, expected.posterior(losses.double(), backend="reference"), atol=1e-6)


def test_nan_is_refused_by_number_and_place(on_gpu):
    losses = make_losses(2, 100)
    losses[[4, 50]] = np.nan
    mixture = BetaMixture((1, 2), (2, 1), (0.5, 0.5), 0, 1)
    for call in (
        lambda: fit_beta_mixture(on_gpu(losses)),
        lambda: mixture.posterior(on_gpu(losses)),
        lambda: mixture.posterior(on_gpu(losses), compat="lookup"),
    ):
        with pytest.raises(ValueError, match=r"2 of 100 losses are nan \(positions 4, 50\)"):
            call()


@pytest.mark.parametrize(
    ("losses", "error", "text"),
    [
        (torch.empty(0), ValueError, "no losses"),
        (torch.full((2,), math.inf), ValueError, "all 2 losses are infinite"),
        (torch.ones(1, 2), ValueError, r"shape \(1, 2\)"),
        (torch.ones(2, dtype=torch.bool), TypeError, "dtype torch.bool"),
        (torch.ones(2, dtype=torch.complex64), TypeError, "dtype torch.complex64"),
    ],
)
def test_input_without_a_meaning_is_refused(losses, error, text, on_gpu):
    with pytest.raises(error, match=text):
        fit_beta_mixture(on_gpu(losses))


def test_a_back_end_that_cannot_run_there_is_refused():
    with pytest.raises(ValueError, match="'triton' and the losses are on cpu"):
        fit_beta_mixture(make_losses(0), backend="triton")
    with pytest.raises(ValueError, match="backend is 'scipy'"):
        fit_beta_mixture(make_losses(0)).posterior(make_losses(0), backend="scipy")


@needs_gpu
@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_losses_on_a_gpu_may_be_fitted_on_the_host(backend):
    losses = make_losses(6)
    on_host, moved = (fit_beta_mixture(x, backend=backend) for x in (losses, torch.from_numpy(losses).cuda()))
    assert on_host == moved
    posterior = moved.posterior(torch.from_numpy(losses).cuda(), backend=backend)
    assert posterior.is_cuda
    np.testing.assert_array_equal(posterior.cpu().numpy(), on_host.posterior(losses, backend=backend))


@needs_gpu
def test_a_fit_and_its_scores_are_captured_and_replayed():
    losses = torch.from_numpy(make_losses(1, 5000)).float().cuda()
    fit(losses, 10)
    score(losses, torch.ones(7, dtype=DOUBLE, device=DEVICE))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = twin.fit(losses, 10)
        posterior = twin.score(losses, results[ODDS:])
    losses.copy_(torch.from_numpy(make_losses(2, 5000)))
    graph.replay()
    assert torch.equal(results, twin.fit(losses, 10))
    assert torch.equal(posterior, twin.score(losses, results[ODDS:]))


# --- the operations ---


def operation_cases() -> dict:
    losses = torch.from_numpy(make_losses(0, 100))
    odds = torch.tensor([0.3, 2.0, -1.5, 1e-12, 1 - 1e-12, 0.1, 3.0], dtype=DOUBLE)
    return {"fit": (twin.fit, (losses, 2)), "score": (twin.score, (losses, odds))}


@pytest.mark.parametrize("name", operation_cases())
def test_operations_are_registered_well(name):
    operation, arguments = operation_cases()[name]
    arguments = tuple(value.to(DEVICE) if isinstance(value, torch.Tensor) else value for value in arguments)
    torch.library.opcheck(operation, arguments)


@pytest.mark.parametrize("name", operation_cases())
def test_torch_compile_sees_through_the_operations(name):
    operation, arguments = operation_cases()[name]
    arguments = [value.to(DEVICE) if isinstance(value, torch.Tensor) else value for value in arguments]
    compiled = torch.compile(operation, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), operation(*arguments))


def test_the_operations_reference_is_the_fit_that_kernels_give():
    losses = torch.from_numpy(NASTY["infinite"])
    results, expected = twin.launch_fit(losses.to(DEVICE), 2).cpu(), twin.fit_on_host(losses, 2)
    torch.testing.assert_close(results, expected, rtol=1e-9, atol=1e-12)
