"""The posterior inside a step against that of the whole column."""

import numpy as np
import pytest
import torch
from toy_steps import new_store

from fastdrpl.kernels.beta_mixture import BetaMixture, fit_beta_mixture
from fastdrpl.posteriors import keep_mixture, posterior_of

MIXTURES = {
    "right tail held": BetaMixture((1.5, 3.0), (4.0, 6.0), (0.6, 0.4), 0.1, 5.0),
    "left tail held": BetaMixture((2.0, 1.2), (9.0, 1.5), (0.5, 0.5), 0.0, 3.0),
    "rising": BetaMixture((1.0, 4.0), (5.0, 2.0), (0.7, 0.3), 0.2, 4.0),
    "constant": BetaMixture((2.0, 2.0), (2.0, 2.0), (0.3, 0.7), 0.0, 1.0),
    "all clean": BetaMixture((1.0, 1.0), (1.0, 1.0), (1.0, 0.0), 2.0, 2.0),
    "all noisy": BetaMixture((1.0, 2.0), (3.0, 1.0), (0.0, 1.0), 0.0, 1.0),
}


@pytest.mark.parametrize("compat", ["exact", "lookup"])
@pytest.mark.parametrize("name", MIXTURES)
def test_it_is_the_posterior_of_the_mixture(name, compat):
    fit = MIXTURES[name]
    losses = np.concatenate([[-1.0, 0.0, fit.low, fit.high, 99.0, np.inf], np.linspace(-0.2, 6.0, 301)])
    store = new_store(1, 2)
    keep_mixture(store, "mixture", fit, compat)
    found = posterior_of(store.shared("mixture"), torch.from_numpy(losses), compat)
    expected = fit.posterior(losses, compat=compat, backend="reference")
    assert found.dtype == torch.float64
    assert np.allclose(found.numpy(), expected, atol=1e-12)


def test_a_fit_of_real_losses_in_float32_and_its_place_is_kept():
    draw = np.random.default_rng(0)
    losses = np.concatenate([draw.exponential(0.3, 600), draw.normal(4.0, 0.7, 400)]).astype(np.float32)
    store = new_store(1, 2)
    keep_mixture(store, "mixture", fit_beta_mixture(losses * 2))
    address = store.shared("mixture").data_ptr()
    fit = fit_beta_mixture(losses)
    keep_mixture(store, "mixture", fit)
    assert store.shared("mixture").data_ptr() == address  # what a captured step reads does not move
    found = posterior_of(store.shared("mixture"), torch.from_numpy(losses))
    assert np.allclose(found, fit.posterior(losses), atol=1e-9)
    assert found.max() - found.min() > 0.9


@pytest.mark.parametrize("compat", ["exact", "lookup"])
def test_what_is_not_a_number_stays_so(compat):
    """The step's finite check must see it."""
    store = new_store(1, 2)
    keep_mixture(store, "mixture", MIXTURES["rising"], compat)
    found = posterior_of(store.shared("mixture"), torch.tensor([float("nan"), 1.0]), compat)
    assert found.isnan().tolist() == [True, False]
