"""The Triton twin of the loss head: against the reference, and its gradient against float64.

On a machine without a GPU the interpreter runs the launchers, put together as the operations are.
"""

import itertools
import math
import random

import pytest
import torch
from gpu_device import DEVICE, ON_GPU, needs_gpu, on_device
from need import need
from test_loss_head import (
    WEIGHTS,
    N,
    Ranks,
    draw,
    loss_by_hand,
    mixed_by_hand,
    relative_error,
)
from torch import Tensor

need("triton")

from fastdrpl.kernels import dispatch
from fastdrpl.kernels import loss_head as public
from fastdrpl.kernels.gpu import loss_head as gpu
from fastdrpl.kernels.loss_head import LossHead, Regulariser, Share, loss_head, predict

# What numpy says of the interpreter where a test wants nan.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")


class Interpreted(torch.autograd.Function):
    """The launchers put together as the operation `loss_value` is."""

    @staticmethod
    def forward(*inputs):
        return gpu.launch_value(*inputs)

    @staticmethod
    def setup_context(ctx, inputs, output):
        gpu.save_for_gradient(ctx, inputs, output)

    @staticmethod
    def backward(ctx, *gradients):
        return gpu.pass_gradient(ctx, *gradients)


@pytest.fixture
def twin(monkeypatch):
    """`loss_head` and `predict` run the kernels: the operations on a GPU, else the launchers."""
    monkeypatch.setattr(dispatch, "choose", lambda operation, device: "triton")
    if not ON_GPU:
        monkeypatch.setattr(gpu, "loss_rows", gpu.launch_rows)
        monkeypatch.setattr(gpu, "loss_value", Interpreted.apply)
        monkeypatch.setattr(gpu, "loss_gradient", gpu.launch_gradient)


@pytest.fixture
def few_programs(monkeypatch, twin):
    """Sizes at which small batches take every way through the kernels, in few programs."""

    def set_sizes(most_groups=2, many_groups=3, tile=16, largest_block=16, fold=2):
        monkeypatch.setattr(gpu, "MOST_GROUPS", most_groups)
        monkeypatch.setattr(gpu, "MANY_GROUPS", many_groups)
        monkeypatch.setattr(gpu, "TILE", tile)
        monkeypatch.setattr(gpu, "LARGEST_BLOCK", largest_block)
        monkeypatch.setattr(gpu, "FOLD", fold)

    set_sizes()
    return set_sizes


def run(
    function, case: dict[str, Tensor], *, labels=False, mixed=True, given=False, store=None, **options
) -> tuple[LossHead, Tensor, Tensor | None]:
    """The loss head of a case on the device, the gradient (by that of four times the loss), and the store."""
    names = ("logits", "labels" if labels else "target", "index", "partner", "coefficient", "given")
    logits, target, index, partner, coefficient, column = on_device(*(case[name] for name in names))
    store = None if store is None else store.clone().to(DEVICE)
    logits = logits.detach().requires_grad_()
    pair = (partner, coefficient) if mixed and not labels else (None, None)
    more = {"partner": pair[0], "coefficient": pair[1], "given": column if given else None, "store": store}
    head = function(logits, target, index, **more, **options)
    (gradient,) = torch.autograd.grad(4.0 * head.loss, logits)
    return head, gradient / 4.0, store


def by_reference(
    *arguments, prior_weight=0.0, entropy_weight=0.0, share=None, keep_prediction=False, **named
):
    share = share or Share(len(arguments[2]))
    regulariser = Regulariser(prior_weight, entropy_weight)
    return public.loss_head_reference(
        *arguments, share, regulariser=regulariser, keep_prediction=keep_prediction, **named
    )


# How far gradients may lie apart, relative to the component and to the largest one. The last bits of two float32
# computations differ, and then two neighbours may be what the one and the other is rounded to. (The interpreter cuts
# bf16 off where a GPU rounds.)
GRADIENT_TOLERANCE = {torch.float32: (0, 3e-6), torch.bfloat16: (2**-7, 1e-6), torch.float16: (2**-10, 1e-6)}


def check(case: dict[str, Tensor], **options) -> None:
    """Everything that comes back and is written is what the reference gives."""
    head, gradient, store = run(loss_head, case, **options)
    expected, slope, written = run(by_reference, case, **options)
    dtype = case["logits"].dtype
    assert head.loss.dtype == torch.float32 and head.loss.shape == ()
    torch.testing.assert_close(head.loss, expected.loss, rtol=3e-6, atol=1e-6)
    assert gradient.dtype == dtype and gradient.shape == slope.shape
    component, largest = GRADIENT_TOLERANCE[dtype]
    size = slope.float().abs()
    allowed = (
        component * size
        + largest * max(float(size.max()), 0.1 / len(slope))
        + 2.0**-23 * (dtype == torch.float16)
    )
    assert ((gradient.float() - slope.float()).abs() <= allowed).all()
    if dtype == torch.float32:
        hand = {name: value for name, value in options.items() if name.endswith("weight")}
        kind = {name: options[name] for name in ("labels", "mixed") if name in options}
        exact, exact_slope = loss_by_hand(case["logits"], mixed_by_hand(case, **kind), **hand)
        assert head.loss.item() == pytest.approx(exact.item(), rel=2e-6, abs=2e-6)
        assert relative_error(gradient.cpu(), exact_slope) < 1e-6
    check_predictions(case["logits"], head.prediction, expected.prediction, head.predicted)
    assert torch.equal(head.wanted, expected.wanted)
    assert (head.label_loss is None) == (expected.label_loss is None)
    if head.label_loss is not None:
        torch.testing.assert_close(head.label_loss, expected.label_loss, rtol=2e-6, atol=2e-6)
    if store is not None:
        torch.testing.assert_close(store, written, rtol=3e-6, atol=1e-7)
    for tensor in (head.prediction, head.label_loss, head.predicted, head.wanted):
        assert tensor is None or not tensor.requires_grad


def check_predictions(logits, prediction, expected, predicted) -> None:
    assert (prediction is None) == (expected is None)
    assert predicted.dtype == torch.int64 and predicted.shape == logits.shape[:1]
    if prediction is None:
        # Of two that are equal up to rounding either may be the largest.
        p = torch.softmax(logits.float().to(DEVICE), 1)
        chosen = p.gather(1, predicted[:, None])[:, 0]
        assert (chosen >= p.amax(1) * (1 - 1e-6)).all()
    else:
        torch.testing.assert_close(prediction, expected, rtol=3e-6, atol=1e-7)
        assert torch.equal(predicted, prediction.argmax(1))


LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.T.contiguous().T,
    "columns of wider ones": lambda x: torch.stack([x, -x, x + 1], 2).flatten(1)[:, ::3],
    "every second row": lambda x: torch.stack([x, -x], 1).flatten(0, 1)[::2],
    "the same row": lambda x: x[:1].expand(x.shape),
}
DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("block", range(20))
def test_random_cases(few_programs, block):
    """Ten cases in each block: sizes, types, layouts, and what is asked for."""
    for seed in range(10 * block, 10 * block + 10):
        choose = random.Random(seed)
        batch, classes = choose.randint(1, 9), choose.choice((1, 2, 3, 7, 10, 16, 17, 33))
        few_programs(
            most_groups=choose.choice((1, 2, 4)),
            many_groups=choose.choice((2, 3)),
            tile=choose.choice((16, 64)),
            largest_block=choose.choice((16, 64)),
            fold=choose.choice((2, 4)),
        )
        case = draw(batch, classes, seed=seed, scale=choose.choice((0.5, 3.0)))
        case["logits"] = LAYOUTS[choose.choice(list(LAYOUTS))](case["logits"].to(choose.choice(DTYPES)))
        labels = choose.random() < 0.25
        prior_weight, entropy_weight = choose.choice(WEIGHTS)
        case["index"] = torch.randperm(N, generator=torch.Generator().manual_seed(seed))[:batch]
        if choose.random() < 0.5:  # every second number of a longer one
            for name in ("index", "partner"):
                case[name] = torch.stack([case[name], torch.zeros_like(case[name])], 1)[:, 0]
        check(
            case,
            labels=labels,
            mixed=choose.random() < 0.6 and not labels,
            given=choose.random() < 0.5,
            store=torch.full((N, classes), 7.0) if choose.random() < 0.5 else None,
            keep_prediction=choose.random() < 0.5,
            prior_weight=prior_weight,
            entropy_weight=entropy_weight,
        )


@pytest.mark.parametrize(
    ("batch", "classes"), [(130, 10), (33, 100), (5, 1000), (2, 2048), (2, 2049), (1, 10_000)]
)
def test_sizes_as_they_are_used(twin, monkeypatch, batch, classes):
    if not ON_GPU:
        monkeypatch.setattr(gpu, "MOST_GROUPS", 4)  # fewer programs, each with more rows
    for dtype in (torch.float32, torch.bfloat16):
        case = draw(batch, classes, scale=1.0, samples=150)
        case["index"] = torch.randperm(150)[:batch]
        case["logits"] = case["logits"].to(dtype)
        store = torch.zeros(150, classes)
        check(case, given=True, store=store, prior_weight=0.8, entropy_weight=0.4)


@needs_gpu
@pytest.mark.parametrize(("batch", "classes"), [(65_536, 10), (4096, 1000), (700, 10_000), (100_001, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_batches(twin, batch, classes, dtype):
    case = draw(batch, classes, scale=1.0, samples=batch)
    case["logits"], case["index"] = case["logits"].to(dtype), torch.randperm(batch)
    store = torch.zeros(batch, classes)
    check(case, given=True, store=store, prior_weight=0.8, entropy_weight=0.4)


@pytest.mark.parametrize("options", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize(("labels", "mixed"), [(True, False), (False, False), (False, True)])
def test_every_argument_on_and_off(few_programs, options, labels, mixed):
    given, keep, has_store = options
    case = draw(3, 5)
    case["index"] = torch.tensor([7, 29, 0])
    store = torch.full((N, 5), 7.0) if has_store else None
    for prior_weight, entropy_weight in WEIGHTS if given == keep == has_store else WEIGHTS[:2]:
        weights = {"prior_weight": prior_weight, "entropy_weight": entropy_weight}
        check(case, labels=labels, mixed=mixed, given=given, keep_prediction=keep, store=store, **weights)


def test_targets_need_not_add_up_to_1(few_programs):
    case = draw(5, 7)
    case["target"] *= torch.rand((N, 1), generator=torch.Generator().manual_seed(3)) + 0.5
    check(case, prior_weight=0.8, entropy_weight=0.4)
    check(case, mixed=False)


def test_groups_are_folded_until_few_are_left(few_programs):
    few_programs(most_groups=1, many_groups=100, tile=16, fold=2)
    case = draw(150, 3, samples=150)
    case["index"] = torch.randperm(150)
    assert gpu.tile_of(150, 3).groups(150) == 19  # 19, 10, 5, 3, 2, 1
    check(case, prior_weight=0.8, entropy_weight=0.4)
    check(case, entropy_weight=0.4)


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 100, 1000, 2048, 2049, 10_000])
@pytest.mark.parametrize("batch", [1, 6, 128, 133, 512, 65_536, 1_281_167])
def test_batches_are_cut_into_groups_that_cover_them(batch, classes):
    tile = gpu.tile_of(batch, classes)
    rows = tile.rows * tile.steps
    assert (tile.groups(batch) - 1) * rows < batch <= tile.groups(batch) * rows
    assert tile.rows * tile.block <= gpu.TILE
    assert tile.block >= min(classes, gpu.LARGEST_BLOCK // 16)
    assert tile.steps == 1 or tile.block >= classes
    assert all(
        size & (size - 1) == 0 for size in (tile.rows, tile.block, gpu.warps_of(tile.rows * tile.block))
    )
    assert gpu.groups_left(batch, classes, 1) == 1
    assert gpu.groups_left(batch, classes, gpu.MOST_GROUPS) <= gpu.MOST_GROUPS
    if batch <= 128 and classes <= 1000:
        assert tile.groups(batch) <= gpu.MOST_GROUPS  # two launches


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


@pytest.mark.parametrize("classes", [1, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_predict_is_softmax_returned_or_written(few_programs, classes, dtype):
    case = draw(5, classes)
    index = torch.tensor([4, 9, 2, 29, 0])
    logits, index = on_device(case["logits"].to(dtype), index)
    store, written = torch.zeros(2, N, classes, device=DEVICE)
    alone, stored = predict(logits), predict(logits, index, store)
    expected = public.predict_reference(logits, None, None)
    public.predict_reference(logits, index, written)
    check_predictions(logits, alone.prediction, expected.prediction, alone.predicted)
    assert stored.prediction is None
    assert torch.equal(alone.predicted, stored.predicted)
    assert torch.equal(store.index_select(0, index), alone.prediction)
    torch.testing.assert_close(store, written, rtol=3e-6, atol=1e-7)


def test_the_same_bits_every_time(twin):
    case = draw(70, 7)
    results = [
        run(loss_head, case, prior_weight=0.8, entropy_weight=0.4, keep_prediction=True) for _ in range(2)
    ]
    for first, second in zip(
        *((head.loss, head.prediction, slope) for head, slope, _ in results), strict=True
    ):
        assert torch.equal(first, second)


def test_debugging_looks_at_ranges_before_a_launch(twin, monkeypatch):
    monkeypatch.setattr(dispatch, "debugging", lambda: True)
    case = draw(3, 5)
    case["index"][1] = N
    with pytest.raises(ValueError, match=r"index\[1\] is 30"):
        run(loss_head, case)


# --- the operations ---


def operation_cases() -> dict[str, tuple[object, tuple[object, ...]]]:
    """What each operation takes, with every optional argument and with none."""
    case = draw(6, 5)
    case["index"] = torch.tensor([4, 9, 2, 29, 0, 11])
    tensors = on_device(
        *(case[name] for name in ("logits", "target", "index", "partner", "coefficient", "given"))
    )
    logits, target, index, partner, coefficient, given = tensors
    labels = on_device(case["labels"])[0]
    store, nothing = torch.zeros(N, 5, device=DEVICE), (None, None)
    whole = (logits, target, index, partner, coefficient, given, store, 0.4, True, True, 2)
    plain = (logits, labels, index, *nothing, None, None, 0.0, False, False, 2)
    cases = {
        "rows": (gpu.loss_rows, whole),
        "rows, labels": (gpu.loss_rows, plain),
        "rows, no target": (gpu.loss_rows, (logits, None, None, *nothing, None, None, 0.0, False, True, 2)),
    }
    for name, arguments, prior_weight in (("soft", whole, 0.8), ("labels", plain, 0.0)):
        _, _, _, _, rows, sums, peaks, totals = gpu.rows_reference(*arguments[:6], None, *arguments[7:])
        leaf = logits.clone().requires_grad_()
        weights = (arguments[7], prior_weight, 6, 1)
        cases[f"value, {name}"] = (
            gpu.loss_value,
            (leaf, *arguments[1:5], rows, sums, peaks, totals, *weights),
        )
        _, log_sums = gpu.value_reference(*arguments[:5], rows, sums, peaks, totals, *weights)
        one = torch.ones((), device=DEVICE)
        cases[f"gradient, {name}"] = (gpu.loss_gradient, (one, *arguments[:5], rows, log_sums, *weights))
    return cases


@pytest.mark.parametrize("name", operation_cases())
def test_operations_are_registered_well(name):
    operation, arguments = operation_cases()[name]
    torch.library.opcheck(operation, arguments)


LAUNCHERS = {"rows": gpu.launch_rows, "value": gpu.launch_value, "gradient": gpu.launch_gradient}


@pytest.mark.parametrize("name", operation_cases())
def test_what_operations_do_on_the_cpu_is_what_the_kernels_do(name):
    operation, arguments = operation_cases()[name]
    launch = LAUNCHERS[name.partition(",")[0]]
    copies = [
        [value.clone() if isinstance(value, Tensor) else value for value in arguments] for _ in range(2)
    ]
    results = []
    for function, own in zip((launch, operation), copies, strict=True):
        with torch.no_grad():
            outputs = function(*own)
        results.append([*(outputs if isinstance(outputs, tuple) else (outputs,)), *own])
    for mine, theirs in zip(*results, strict=True):
        if not isinstance(mine, Tensor):
            assert mine == theirs
            continue
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
        if name == "rows" and mine.ndim == 2 and len(mine) == 2:
            continue  # how a sum is spread over groups differs
        if name.startswith("rows") and mine.shape == (2,):
            mine, theirs = mine.sum(), theirs.sum()
        torch.testing.assert_close(mine, theirs, rtol=3e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools:UserWarning")
@pytest.mark.parametrize("mixed", [True, False])
def test_torch_compile_sees_through_the_loss_head(monkeypatch, mixed):
    """One graph, forward and backward, with the write to the store in it."""
    monkeypatch.setattr(dispatch, "choose", lambda operation, device: "triton")
    case = draw(6, 5)
    case["index"] = torch.tensor([4, 9, 2, 29, 0, 11])
    options = {"given": True, "mixed": mixed, "prior_weight": 0.8, "entropy_weight": 0.4}
    store = torch.zeros(N, 5)
    compiled = torch.compile(loss_head, fullgraph=True, backend="aot_eager")
    results = [run(function, case, store=store, **options) for function in (compiled, by_reference)]
    for mine, theirs in zip(*([*head, slope, written] for head, slope, written in results), strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=3e-6, atol=1e-6)
    logits, index = on_device(case["logits"], case["index"])
    written = torch.zeros(N, 5, device=DEVICE)
    found = torch.compile(predict, fullgraph=True, backend="aot_eager")(logits, index, written)
    assert torch.equal(found.predicted, predict(logits, index, torch.zeros_like(written)).predicted)
    torch.testing.assert_close(written[index], torch.softmax(logits, 1))


@needs_gpu
def test_a_captured_step_is_replayed_for_other_tensors(twin):
    """Loss, gradient and store of new logits, rows, partners and coefficient: nothing was read by the host."""
    first, second = draw(128, 10, seed=1), draw(128, 10, seed=2)
    for case in (first, second):
        case["index"] = torch.randperm(200)[:128]
        case.update({name: draw(1, 10, samples=200)[name] for name in ("target", "given", "labels")})
    static = {name: value.to(DEVICE) for name, value in first.items()}
    static["logits"].requires_grad_()
    store = torch.zeros(200, 10, device=DEVICE)

    def step():
        names = ("partner", "coefficient", "given")
        head = loss_head(
            static["logits"],
            static["target"],
            static["index"],
            **{name: static[name] for name in names},
            prior_weight=0.8,
            entropy_weight=0.4,
            store=store,
        )
        (gradient,) = torch.autograd.grad(head.loss, static["logits"])
        return head, gradient

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        head, gradient = step()
    with torch.no_grad():
        for name, value in second.items():
            static[name].copy_(value)
    store.zero_()
    graph.replay()
    expected, slope, written = run(
        loss_head, second, given=True, prior_weight=0.8, entropy_weight=0.4, store=torch.zeros(200, 10)
    )
    for mine, theirs in zip((*head, gradient, store), (*expected, slope, written), strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs)
