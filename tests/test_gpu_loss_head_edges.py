"""The loss head on a GPU where numbers or sizes are extreme, and over ranks."""

import math

import pytest
import torch
from gpu_device import DEVICE
from need import need
from test_loss_head import WEIGHTS, N, Ranks, draw, loss_by_hand, mixed_by_hand, relative_error

need("triton")

from gpu_loss_head_cases import by_reference, check, run, run_few_programs, run_kernels

from fastdrpl.kernels.loss_head import loss_head, predict

# What numpy says of the interpreter where a test wants nan.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")


@pytest.fixture
def twin(monkeypatch):
    run_kernels(monkeypatch)


@pytest.fixture
def few_programs(monkeypatch):
    return run_few_programs(monkeypatch)


# --- a batch spread over ranks ---


@pytest.mark.parametrize("cuts", [[1], [8], [5, 6]])
@pytest.mark.parametrize(("prior_weight", "entropy_weight"), WEIGHTS)
def test_ranks_together_compute_what_one_does(few_programs, cuts, prior_weight, entropy_weight):
    case = draw(11, 10)
    options = {"mixed": False, "prior_weight": prior_weight, "entropy_weight": entropy_weight}
    head, gradient, _ = run(loss_head, case, **options)
    places = list(zip([0, *cuts], [*cuts, 11], strict=True))
    ranks, references = Ranks(len(places)), Ranks(len(places))
    for _ in range(3):  # in round 1 the largest become known to all, in round 2 the sums
        results, expected = [], []
        for rank, (start, end) in enumerate(places):
            own = {**case, **{name: case[name][start:end] for name in ("logits", "index", "partner")}}
            results.append(run(loss_head, own, share=ranks.share(rank, 11), **options))
            expected.append(run(by_reference, own, share=references.share(rank, 11), **options))
    for (mine, slope, _), (theirs, theirs_slope, _) in zip(results, expected, strict=True):
        torch.testing.assert_close(mine.loss, theirs.loss, rtol=2e-6, atol=1e-6)
        assert relative_error(slope.cpu(), theirs_slope.cpu().double()) < 1e-6
    mean = sum(mine.loss.item() for mine, _, _ in results) / len(places)
    assert mean == pytest.approx(head.loss.item(), rel=2e-6)
    averaged = torch.cat([slope for _, slope, _ in results]) / len(places)
    assert relative_error(averaged.cpu(), gradient.cpu().double()) < 1e-6


def test_a_rank_without_samples_takes_part(twin):
    """It launches nothing, and the reductions over ranks do not wait for it in vain."""
    case, ranks = draw(0, 4), Ranks(2)
    _, gradient, _ = run(loss_head, case, share=ranks.share(0, 5), prior_weight=0.8)
    assert gradient.shape == (0, 4)
    assert ranks.parts["maximum"][0] is not None and ranks.parts["total"][0] is not None


@pytest.mark.parametrize("batch", [0, 4])
def test_no_reduction_where_there_is_no_prior(few_programs, batch):
    """Neither on a rank without samples: it would wait for the others in vain."""
    ranks = Ranks(2)
    run(loss_head, draw(batch, 3), share=ranks.share(0, 8), entropy_weight=0.4)
    assert ranks.parts["maximum"] == [None, None]


def test_ranks_with_and_without_samples_reduce_the_same_shapes(few_programs):
    shapes = []
    for batch in (0, 4):
        ranks = Ranks(2)
        run(loss_head, draw(batch, 3), share=ranks.share(0, 8), prior_weight=0.8)
        shapes.append([ranks.parts[kind][0].shape for kind in ("maximum", "total")])
    assert shapes[0] == shapes[1]


# --- at the edges ---


def test_an_empty_batch_has_loss_0(twin):
    head, gradient, store = run(loss_head, draw(0, 4), prior_weight=0.8, given=True, store=torch.ones(N, 4))
    assert head.loss.item() == 0 and gradient.shape == (0, 4)
    assert (store == 1).all()
    assert predict(torch.zeros(0, 4, device=DEVICE)).predicted.shape == (0,)


@pytest.mark.parametrize("blocks", [1024, 256])
def test_extreme_logits_have_a_finite_loss_and_gradient(few_programs, blocks):
    """One class takes all: the others underflow in float32 for every sample."""
    few_programs(tile=2048, largest_block=blocks)
    case = draw(5, 1000)
    case["logits"][:] = torch.randn(5, 1000)
    case["logits"][:, 3] = 1e4
    case["logits"][:, 5] = -1e4
    weights = {"prior_weight": 0.8, "entropy_weight": 0.4}
    head, gradient, _ = run(loss_head, case, **weights)
    expected, slope = loss_by_hand(case["logits"], mixed_by_hand(case), **weights)
    assert head.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.isfinite(gradient).all()
    # Log probabilities near -2e4 are exact to 1e-3 only, and the prior's gradient holds their exponentials.
    assert relative_error(gradient.cpu(), slope) < 2e-3


@pytest.mark.parametrize("largest_block", [16, 4])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_make_the_loss_so(few_programs, bad, largest_block):
    few_programs(largest_block=largest_block)
    case = draw(6, 9)
    case["logits"][4, 2] = bad
    store = torch.zeros(N, 9)
    head, _, store = run(loss_head, case, prior_weight=0.8, entropy_weight=0.4, store=store)
    assert not math.isfinite(head.loss.item())
    expected, _, written = run(
        by_reference, case, prior_weight=0.8, entropy_weight=0.4, store=torch.zeros(N, 9)
    )
    torch.testing.assert_close(store, written, rtol=3e-6, atol=1e-7, equal_nan=True)
    assert torch.equal(head.predicted, expected.predicted)
    assert torch.equal(head.wanted, expected.wanted)


@pytest.mark.parametrize("largest_block", [16, 2])
def test_a_class_that_is_ruled_out_does_not_spoil_the_loss_to_another_label(few_programs, largest_block):
    few_programs(largest_block=largest_block)
    case = draw(3, 5)
    case["logits"][:, 1] = -math.inf
    case["logits"][0, 0] = -math.inf  # with the one before it a whole block of width 2
    case["labels"] = torch.full((N,), 4)
    head, gradient, _ = run(loss_head, case, labels=True)
    expected, slope, _ = run(by_reference, case, labels=True)
    torch.testing.assert_close(head.loss, expected.loss)
    torch.testing.assert_close(gradient, slope)
    case["labels"] = torch.full((N,), 1)
    assert run(loss_head, case, labels=True)[0].loss.item() == math.inf


@pytest.mark.parametrize("label", [-1, 5, 2**40])
def test_a_label_that_is_no_class_makes_the_loss_nan(few_programs, label):
    case = draw(3, 5)
    case["labels"][case["index"][1]] = label
    case["given"] = case["labels"]
    head, _, _ = run(loss_head, case, labels=True, given=True)
    assert math.isnan(head.loss.item())
    assert torch.isnan(head.label_loss.cpu()).tolist() == (case["index"] == case["index"][1]).tolist()


@pytest.mark.parametrize("largest_block", [16, 2])
def test_of_equals_the_first_class_is_predicted_and_wanted(few_programs, largest_block):
    few_programs(largest_block=largest_block)
    logits = torch.tensor([[0.0, 2.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, -3.0, -1.0]]).to(DEVICE)
    target = torch.tensor([[0.2, 0.1, 0.35, 0.35], [0.4, 0.1, 0.1, 0.4], [0.25, 0.25, 0.25, 0.25]]).to(DEVICE)
    head = loss_head(logits, target, torch.arange(3, device=DEVICE))
    assert head.predicted.tolist() == [1, 0, 0]
    assert head.wanted.tolist() == [2, 0, 0]
    assert predict(logits).predicted.tolist() == [1, 0, 0]


def test_repeated_rows_count_each_time(few_programs):
    case = draw(6, 5)
    case["index"] = torch.tensor([4, 4, 2, 4, 29, 2])
    check(case, prior_weight=0.8, given=True)
    case["logits"][:] = case["logits"][case["index"] % 3]  # equal predictions for equal rows
    check(case, store=torch.zeros(N, 5))
