"""The compiled twin of the beta mixture beside the reference: fits, percentiles, threads."""

import os
import subprocess
import sys

import numpy as np
import pytest
from beta_mixture_cases import NASTY, make_losses

from fastdrpl.kernels.beta_mixture import fit_beta_mixture
from fastdrpl.kernels.cpu import beta_mixture as twin


@pytest.fixture(params=[0, twin.FEW], ids=["all compiled", "few by numpy"])
def few(request, monkeypatch):
    """Sets of any size by what is compiled for large ones, and as they are."""
    monkeypatch.setattr(twin, "FEW", request.param)


def check_twin(losses: np.ndarray) -> None:
    expected, got = (fit_beta_mixture(losses, backend=backend) for backend in ("reference", "numba"))
    assert (got.low, got.high) == (expected.low, expected.high)  # the same percentiles to the bit
    assert got.warnings == expected.warnings
    for name in ("alpha", "beta", "weight"):
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name), rtol=1e-6, err_msg=name)
    slow, fast = expected.posterior(losses, backend="reference"), got.posterior(losses)
    np.testing.assert_allclose(fast, slow, atol=1e-6)
    for gamma in (0.05, 0.1, 0.5):
        near = np.abs(slow - gamma) < 1e-6  # a tie within rounding may fall on either side
        assert ((fast <= gamma) == (slow <= gamma))[~near].all()


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("block", range(10))
def test_twin_on_random_sets(block):
    """R13."""
    for seed in range(20 * block, 20 * block + 20):
        count = int(np.random.default_rng(seed).integers(20, 6_000))
        check_twin(make_losses(seed, count))


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("name", NASTY)
def test_twin_on_nasty_sets(name):
    """R13."""
    check_twin(NASTY[name])


@pytest.mark.parametrize("count", [twin.FEW, twin.FEW + 1])
def test_twin_where_the_compiled_percentiles_take_over(count):
    check_twin(make_losses(count, count))


@pytest.mark.parametrize("count", [1, 2, 19, 4095, 4096, 4097, 8192, 65_537, 200_000])
def test_twin_percentiles_are_those_of_numpy(count):
    from fastdrpl.kernels.cpu.percentiles import outer_percentiles

    random = np.random.default_rng(count)
    for losses in (
        random.gamma(0.5, 1, count),
        random.normal(size=count),
        random.integers(0, 3, count) * 1.5,
    ):
        expected = (*np.percentile(losses, (5, 95)), losses.min(), losses.max())
        assert tuple(outer_percentiles(np.asarray(losses, float))) == tuple(expected)


def test_percentiles_between_two_far_values():
    """Ranks 5 % and 95 % fall between two values with all others equal to one of them."""
    from fastdrpl.kernels.cpu.percentiles import outer_percentiles

    for few in (50, 51, 949, 950):
        losses = np.repeat([1e-300, 1e300], [few, 1001 - few])
        assert tuple(outer_percentiles(losses)[:2]) == tuple(np.percentile(losses, (5, 95)))


def test_threads_do_not_change_a_bit():
    code = (
        "import numpy as np; from fastdrpl.kernels.beta_mixture import fit_beta_mixture as f;"
        "x = np.random.default_rng(0).gamma(0.7, 1, 100_003); m = f(x);"
        "print([v.hex() for v in (*m.alpha, *m.beta, *m.weight, m.low, m.high, m.posterior(x).sum())])"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {**os.environ, "PYTHONPATH": root}
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, "NUMBA_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2", "5")
    }
    assert len(outputs) == 1
