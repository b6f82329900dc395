"""The loss terms against the formulas written out, in float64."""

import math

import pytest
import torch

from fastdrpl.kernels.loss_head import Regulariser, Share, cross_entropy, entropy, label_loss, prior


def draw(n=37, classes=10, dtype=torch.float64, scale=3.0):
    torch.manual_seed(n * classes)
    logits = scale * torch.randn(n, classes, dtype=dtype)
    target = torch.softmax(torch.randn(n, classes, dtype=dtype), 1)
    return logits, target


@pytest.mark.parametrize(("n", "classes"), [(1, 2), (6, 10), (128, 100), (133, 1000)])
def test_terms_equal_the_formulas_summed_by_hand(n, classes):
    logits, target = draw(n, classes)
    p = [[math.exp(v) for v in row] for row in logits.tolist()]
    p = [[v / sum(row) for v in row] for row in p]
    ce = [
        -sum(s * math.log(v) for s, v in zip(t, row, strict=True))
        for t, row in zip(target.tolist(), p, strict=True)
    ]
    ent = [-sum(v * math.log(v) for v in row) for row in p]
    mean = [sum(row[c] for row in p) / n for c in range(classes)]
    pri = -sum(math.log(m) for m in mean) / classes
    log_p = torch.log_softmax(logits, 1)
    assert cross_entropy(log_p, target).tolist() == pytest.approx(ce, rel=1e-12)
    assert entropy(log_p).tolist() == pytest.approx(ent, rel=1e-12)
    assert prior(log_p, Share(n)).item() == pytest.approx(pri, rel=1e-12)
    total = Regulariser(0.8, 0.4)(log_p, Share(n)).item()
    assert total == pytest.approx(0.8 * pri + 0.4 * sum(ent) / n, rel=1e-12)


def test_label_loss_is_cross_entropy_to_the_one_hot_label():
    logits, _ = draw()
    log_p, label = torch.log_softmax(logits, 1), torch.arange(37) % 10
    one_hot = torch.nn.functional.one_hot(label, 10).double()
    assert torch.equal(label_loss(log_p, label), cross_entropy(log_p, one_hot))


def test_prior_is_log_c_at_the_uniform_mean_and_larger_elsewhere():
    uniform = torch.full((5, 7), 1 / 7, dtype=torch.float64).log()
    assert prior(uniform, Share(5)).item() == pytest.approx(math.log(7), abs=1e-12)
    log_p = torch.log_softmax(draw()[0], 1)
    assert prior(log_p, Share(37)).item() > math.log(10)


def test_prior_stays_finite_where_the_naive_mean_underflows():
    logits = torch.zeros(128, 100)
    logits[:, 0] = 200.0  # every other class has probability e^-200, zero in float32
    log_p = torch.log_softmax(logits, 1)
    assert torch.isinf(log_p.exp().mean(0).log()).any()
    assert torch.isfinite(prior(log_p, Share(128)))


@pytest.mark.parametrize("cut", [1, 8, 19])
def test_two_shares_add_up_to_the_whole_in_value_and_gradient(cut):
    """What two ranks compute from their slices, averaged as data parallelism does, is the single rank's result."""
    logits, target = draw(38, 10)
    regulariser = Regulariser(0.8, 0.4)

    def loss_of(part, share, own_target):
        log_p = torch.log_softmax(part, 1)
        return share.mean(cross_entropy(log_p, own_target)) + regulariser(log_p, share)

    whole = logits.clone().requires_grad_()
    loss = loss_of(whole, Share(38), target)
    loss.backward()
    parts = [logits[:cut].clone().requires_grad_(), logits[cut:].clone().requires_grad_()]
    sums = [torch.logsumexp(torch.log_softmax(p.detach(), 1), 0) for p in parts]
    peak = torch.maximum(*sums)
    total = sum((s - peak).exp() for s in sums)
    share = Share(38, 2, lambda _: total, lambda _: peak)
    losses = [loss_of(p, share, t) for p, t in zip(parts, (target[:cut], target[cut:]), strict=True)]
    for each in losses:
        each.backward()
    # The mean over ranks counts the prior once: both ranks hold the whole of it.
    assert sum(each.item() for each in losses) / 2 == pytest.approx(loss.item(), rel=1e-12)
    gradient = torch.cat([p.grad for p in parts]) / 2
    assert torch.allclose(gradient, whole.grad, rtol=1e-10, atol=1e-14)
