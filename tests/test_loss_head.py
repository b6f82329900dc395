"""The loss head: the reference against equations 1 and 2 written out in float64, and what it refuses."""

import math

import pytest
import torch
from torch import Tensor

from fastdrpl.kernels import dispatch
from fastdrpl.kernels.loss_head import LossHead, Share, loss_head, predict

N = 30


def draw(
    batch: int, classes: int, *, seed: int = 0, scale: float = 3.0, samples: int = N
) -> dict[str, Tensor]:
    """Tensors as `loss_head` takes them."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "logits": scale * torch.randn(batch, classes, generator=generator),
        "target": torch.softmax(2 * torch.randn(samples, classes, generator=generator), 1),
        "index": torch.randint(0, samples, (batch,), generator=generator),
        "partner": torch.randperm(batch, generator=generator),
        "coefficient": torch.rand((), generator=generator),
        "given": torch.randint(0, classes, (samples,), generator=generator),
        "labels": torch.randint(0, classes, (samples,), generator=generator),
    }


def loss_by_hand(
    logits: Tensor, target: Tensor, *, prior_weight: float = 0.0, entropy_weight: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Loss and gradient of equations 1 and 2 in float64; `target` (b, C) is mixed already."""
    x = logits.double().requires_grad_()
    log_p = x - torch.logsumexp(x, 1, keepdim=True)
    loss = -(target.double() * log_p).sum() / len(x)
    loss = loss - entropy_weight * (log_p.exp() * log_p).sum() / len(x)
    log_mean = torch.logsumexp(log_p, 0) - math.log(len(x))
    loss = loss - prior_weight * log_mean.sum() / logits.shape[1]
    return loss.detach(), torch.autograd.grad(loss, x)[0]


def mixed_by_hand(case: dict[str, Tensor], *, labels: bool = False, mixed: bool = True) -> Tensor:
    own = case["target"][case["index"]].double()
    if labels:
        return torch.eye(own.shape[1], dtype=torch.float64)[case["labels"][case["index"]]]
    if not mixed:
        return own
    weight = case["coefficient"].double()
    return weight * own + (1 - weight) * own[case["partner"]]


def relative_error(gradient: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected component: the gradient of one batch is one vector.

    A batch that is fitted already has next to no gradient, the difference of two distributions over n: it is not
    measured by less than 0.1 / n.
    """
    difference = (gradient.double() - expected).abs().max()
    return float(difference / max(float(expected.abs().max()), 0.1 / len(expected)))


def run(
    case: dict[str, Tensor], *, labels: bool = False, mixed: bool = True, **options
) -> tuple[LossHead, Tensor]:
    """The loss head of a case, and the gradient."""
    logits = case["logits"].detach().requires_grad_()
    pair = {"partner": case["partner"], "coefficient": case["coefficient"]} if mixed and not labels else {}
    target = case["labels" if labels else "target"]
    head = loss_head(logits, target, case["index"], **pair, **options)
    (gradient,) = torch.autograd.grad(head.loss, logits)
    return head, gradient


WEIGHTS = [(0.0, 0.0), (0.8, 0.4), (0.8, 0.0), (0.0, 0.4)]


@pytest.mark.parametrize(("batch", "classes"), [(1, 2), (6, 10), (133, 100), (37, 1000), (5, 1)])
@pytest.mark.parametrize(("prior_weight", "entropy_weight"), WEIGHTS)
@pytest.mark.parametrize(("labels", "mixed"), [(True, False), (False, False), (False, True)])
def test_loss_and_gradient_are_those_of_the_equations(
    batch, classes, prior_weight, entropy_weight, labels, mixed
):
    case = draw(batch, classes)
    weights = {"prior_weight": prior_weight, "entropy_weight": entropy_weight}
    head, gradient = run(case, labels=labels, mixed=mixed, **weights)
    expected, slope = loss_by_hand(case["logits"], mixed_by_hand(case, labels=labels, mixed=mixed), **weights)
    assert head.loss.item() == pytest.approx(expected.item(), rel=2e-6, abs=1e-6)
    if classes == 1:
        assert not gradient.any()
    else:
        assert relative_error(gradient, slope) < 1e-6


def test_what_is_not_asked_for_does_not_come_and_changes_nothing():
    case = draw(7, 5)
    store = torch.full((N, 5), -1.0)
    plain, _ = run(case)
    whole, _ = run(case, given=case["given"], store=store, keep_prediction=True)
    assert plain.prediction is None and plain.label_loss is None
    assert torch.equal(plain.loss, whole.loss)
    assert torch.equal(plain.wanted, whole.wanted)
    p = torch.softmax(case["logits"].double(), 1)
    index = case["index"]
    torch.testing.assert_close(whole.prediction.double(), p, rtol=1e-6, atol=1e-7)
    expected = -p[torch.arange(7), case["given"][index]].log()
    torch.testing.assert_close(whole.label_loss.double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(whole.predicted, p.argmax(1))
    assert torch.equal(whole.wanted, case["target"][index].argmax(1))  # of the sample, not of the mixture
    for row in range(N):
        places = (index == row).nonzero()[:, 0]
        if len(places):
            assert torch.equal(store[row], whole.prediction[places[-1]])
        else:
            assert (store[row] == -1).all()
    for tensor in (whole.prediction, whole.label_loss, whole.predicted, whole.wanted, store):
        assert not tensor.requires_grad


def test_of_equals_the_first_class_is_predicted_and_wanted():
    logits = torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0], [-1.0, -1.0, -3.0]])
    target = torch.tensor([[0.2, 0.2, 0.6], [0.4, 0.4, 0.2], [0.5, 0.0, 0.5]])
    head = loss_head(logits, target, torch.arange(3), keep_prediction=True)
    assert head.predicted.tolist() == [1, 0, 0]
    assert head.wanted.tolist() == [2, 0, 0]
    assert predict(logits).predicted.tolist() == [1, 0, 0]


def test_predict_is_softmax_returned_or_written():
    case, store = draw(7, 5), torch.zeros(N, 5)
    case["index"] = torch.tensor([4, 9, 2, 29, 0, 11, 3])
    logits = case["logits"].requires_grad_()
    alone, written = predict(logits), predict(logits, case["index"], store)
    expected = torch.softmax(logits.detach(), 1)
    assert torch.equal(alone.prediction, expected)
    assert written.prediction is None
    assert torch.equal(store[case["index"]], expected)
    assert torch.equal(store.sum(1) > 0, torch.zeros(N, dtype=torch.bool).index_fill(0, case["index"], True))
    assert torch.equal(alone.predicted, written.predicted)
    assert not alone.prediction.requires_grad


# --- a batch spread over ranks ---


class Ranks:
    """Reductions over ranks that take turns: what the others gave in the round before is their part of this one."""

    def __init__(self, world: int):
        self.parts: dict[str, list[Tensor | None]] = {kind: [None] * world for kind in ("total", "maximum")}
        self.world = world

    def share(self, rank: int, count: int) -> Share:
        return Share(count, self.world, self._reduction("total", rank), self._reduction("maximum", rank))

    def _reduction(self, kind, rank):
        def reduce(values: Tensor) -> Tensor:
            assert not values.requires_grad
            self.parts[kind][rank] = values.clone()
            known = torch.stack([part for part in self.parts[kind] if part is not None])
            return known.sum(0) if kind == "total" else known.amax(0)

        return reduce


def run_on_ranks(case: dict[str, Tensor], cuts: list[int], **options) -> tuple[float, Tensor]:
    """Mean of the ranks' losses, and their gradients one after the other, averaged as data parallelism does."""
    places = list(zip([0, *cuts], [*cuts, len(case["index"])], strict=True))
    ranks = Ranks(len(places))
    for _ in range(3):  # in round 1 the largest become known to all, in round 2 the sums
        results = []
        for rank, (start, end) in enumerate(places):
            own = {**case, "logits": case["logits"][start:end], "index": case["index"][start:end]}
            results.append(run(own, mixed=False, share=ranks.share(rank, len(case["index"])), **options))
    loss = sum(head.loss.item() for head, _ in results) / len(places)
    return loss, torch.cat([gradient for _, gradient in results]) / len(places)


@pytest.mark.parametrize("cuts", [[1], [8], [19], [5, 11], [0], [38], [4, 4]])
@pytest.mark.parametrize(("prior_weight", "entropy_weight"), WEIGHTS)
def test_ranks_together_compute_what_one_does(cuts, prior_weight, entropy_weight):
    """Also where one of them has no sample at all."""
    case = draw(38, 10)
    weights = {"prior_weight": prior_weight, "entropy_weight": entropy_weight}
    head, gradient = run(case, mixed=False, **weights)
    loss, averaged = run_on_ranks(case, cuts, **weights)
    assert loss == pytest.approx(head.loss.item(), rel=1e-6)
    assert relative_error(averaged, gradient.double()) < 1e-6


# --- at the edges ---


def test_an_empty_batch_has_loss_0():
    case = draw(0, 4)
    store = torch.full((N, 4), 7.0)
    head, gradient = run(
        case, prior_weight=0.8, entropy_weight=0.4, given=case["given"], store=store, keep_prediction=True
    )
    assert head.loss.item() == 0
    assert gradient.shape == (0, 4)
    assert head.prediction.shape == (0, 4)
    assert head.label_loss.shape == head.predicted.shape == head.wanted.shape == (0,)
    assert (store == 7).all()
    assert predict(case["logits"]).prediction.shape == (0, 4)


def test_extreme_logits_have_a_finite_loss_and_gradient():
    """One class takes all: the others underflow in float32 for every sample."""
    case = draw(9, 1000)
    case["logits"][:] = torch.randn(9, 1000)
    case["logits"][:, 3] = 1e4
    case["logits"][:, 5] = -1e4
    head, gradient = run(case, prior_weight=0.8, entropy_weight=0.4)
    expected, slope = loss_by_hand(case["logits"], mixed_by_hand(case), prior_weight=0.8, entropy_weight=0.4)
    assert head.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    # Log probabilities near -2e4 are exact to 1e-3 only, and the prior's gradient holds their exponentials.
    assert relative_error(gradient, slope) < 2e-3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_make_the_loss_so(bad):
    case = draw(6, 5)
    case["logits"][4, 2] = bad
    head, _ = run(case, prior_weight=0.8, entropy_weight=0.4)
    assert not math.isfinite(head.loss.item())
    assert ((head.predicted >= 0) & (head.predicted < 5)).all()


def test_a_class_that_is_ruled_out_does_not_spoil_the_loss_to_another_label():
    logits = torch.tensor([[0.5, -math.inf, 1.0]])
    head = loss_head(logits, torch.tensor([2]), torch.tensor([0]))
    assert head.loss.item() == pytest.approx(math.log(1 + math.exp(-0.5)), rel=1e-6)
    assert math.isinf(loss_head(logits, torch.tensor([1]), torch.tensor([0])).loss.item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types_are_computed_in_float32(dtype):
    case = draw(6, 5)
    rounded = {**case, "logits": case["logits"].to(dtype)}
    head, gradient = run(rounded, prior_weight=0.8)
    same, exact = run({**case, "logits": rounded["logits"].float()}, prior_weight=0.8)
    assert gradient.dtype == dtype and head.loss.dtype == torch.float32
    assert torch.equal(head.loss, same.loss)
    assert torch.equal(gradient, exact.to(dtype))


# --- what is refused ---


def good() -> dict[str, object]:
    case = draw(6, 5)
    del case["labels"]
    return {**case, "store": torch.zeros(N, 5), "share": Share(6)}


BAD = {
    "integer logits": ({"logits": torch.zeros(6, 5, dtype=torch.int64)}, TypeError, "logits: got torch.int64"),
    "flat logits": ({"logits": torch.zeros(6)}, TypeError, r"logits: got torch.float32 \(6,\)"),
    "no classes": ({"logits": torch.zeros(6, 0)}, TypeError, "C >= 1"),
    "short index": ({"index": torch.arange(5)}, TypeError, r"index: got torch.int64 \(5,\), want int64 \(6,\)"),
    "int32 index": ({"index": torch.arange(6).int()}, TypeError, "index: got torch.int32"),
    "index elsewhere": ({"index": torch.arange(6, device="meta")}, ValueError, "index is on meta"),
    "bf16 target": ({"target": torch.zeros(N, 5).bfloat16()}, TypeError, "target: got contiguous torch.bfloat16"),
    "narrow target": ({"target": torch.zeros(N, 4)}, TypeError, r"target: .* want contiguous torch.float32 \(30, 5\)"),
    "strided target": ({"target": torch.zeros(5, N).T}, TypeError, "target: got strided"),
    "target elsewhere": ({"target": torch.zeros(N, 5, device="meta")}, ValueError, "target is on meta"),
    "labels to mix": ({"target": torch.zeros(N, dtype=torch.int64)}, ValueError, "integer labels"),
    "one-hot int labels": ({"target": torch.zeros(N, 5, dtype=torch.int64)}, TypeError, r"target: .* \(30,\)"),
    "partner alone": ({"coefficient": None}, ValueError, "partner and coefficient"),
    "coefficient alone": ({"partner": None}, ValueError, "partner and coefficient"),
    "long partner": ({"partner": torch.arange(7)}, TypeError, "partner: got"),
    "coefficient (1,)": ({"coefficient": torch.ones(1)}, TypeError, r"coefficient: .* \(1,\)"),
    "double coefficient": ({"coefficient": torch.ones((), dtype=torch.float64)}, TypeError, "coefficient"),
    "short given": ({"given": torch.zeros(6, dtype=torch.int64)}, TypeError, r"given: .* want .* \(30,\)"),
    "soft given": ({"given": torch.zeros(N)}, TypeError, "given: got"),
    "half store": ({"store": torch.zeros(N, 5).half()}, TypeError, "store: got"),
    "short store": ({"store": torch.zeros(6, 5)}, TypeError, "store: got"),
    "half a share": ({"share": Share(6, 2, lambda x: x)}, ValueError, "total and maximum"),
    "too small a share": ({"share": Share(5)}, ValueError, "share: got 5 samples"),
    "no world": ({"share": Share(6, 0)}, ValueError, "over 0 ranks"),
    "nan weight": ({"prior_weight": math.nan}, ValueError, "weights: got nan"),
    "infinite weight": ({"entropy_weight": math.inf}, ValueError, "weights"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    change, error, text = BAD[name]
    loss_head(**good())
    with pytest.raises(error, match=text):
        loss_head(**{**good(), **change})


def test_targets_are_not_overwritten():
    arguments = good()
    with pytest.raises(ValueError, match="store: got the targets themselves"):
        loss_head(**{**arguments, "store": arguments["target"]})
    with pytest.raises(ValueError, match="store: got the targets themselves"):
        loss_head(**{**arguments, "store": arguments["target"].view(arguments["target"].shape)})


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"logits": torch.zeros(3, 2, 2)}, TypeError, "logits"),
        ({"index": None}, ValueError, "index and store"),
        ({"store": None}, ValueError, "index and store"),
        ({"index": torch.arange(3)}, TypeError, "index"),
        ({"store": torch.zeros(N, 4)}, TypeError, "store"),
    ],
)
def test_bad_arguments_of_predict_are_named(change, error, text):
    arguments = {"logits": torch.zeros(6, 5), "index": torch.arange(6), "store": torch.zeros(N, 5)}
    predict(**arguments)
    with pytest.raises(error, match=text):
        predict(**{**arguments, **change})


OUT_OF_RANGE = {
    "index": ({"index": torch.tensor([0, 1, N, 2, 3, 4])}, r"index\[2\] is 30"),
    "partner": ({"partner": torch.tensor([0, 1, 2, 3, 4, -1])}, r"partner\[5\] is -1"),
    "given": ({"given": torch.full((N,), 5)}, r"given\[0\] is 5"),
    "label": ({"target": torch.full((N,), -2), "partner": None, "coefficient": None}, r"target\[0\] is -2"),
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_debugging_names_what_is_out_of_range(name, monkeypatch):
    monkeypatch.setattr(dispatch, "debugging", lambda: True)
    change, text = OUT_OF_RANGE[name]
    loss_head(**good())
    with pytest.raises(ValueError, match=text):
        loss_head(**{**good(), **change})
    if name == "index":
        with pytest.raises(ValueError, match=text):
            predict(good()["logits"], change["index"], torch.zeros(N, 5))


def test_the_cpu_takes_the_reference():
    assert dispatch.choose("loss_head", "cpu") == "reference"
