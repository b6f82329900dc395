"""The Triton twin of the loss head: against the reference, and its gradient against float64.

On a machine without a GPU the interpreter runs the launchers, put together as the operations are.
"""

import itertools
import random

import pytest
import torch
from gpu_device import DEVICE, ON_GPU, needs_gpu, on_device
from need import need
from test_loss_head import WEIGHTS, N, draw

need("triton")

from gpu_loss_head_cases import check, check_predictions, run, run_few_programs, run_kernels

from fastdrpl.kernels import dispatch
from fastdrpl.kernels import loss_head as public
from fastdrpl.kernels.gpu import loss_head as gpu
from fastdrpl.kernels.gpu import loss_head_tiles as tiles
from fastdrpl.kernels.loss_head import loss_head, predict

# What numpy says of the interpreter where a test wants nan.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")


@pytest.fixture
def twin(monkeypatch):
    run_kernels(monkeypatch)


@pytest.fixture
def few_programs(monkeypatch):
    return run_few_programs(monkeypatch)


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
        monkeypatch.setattr(tiles, "MOST_GROUPS", 4)  # fewer programs, each with more rows
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
    assert tile.rows * tile.block <= tiles.TILE
    assert tile.block >= min(classes, tiles.LARGEST_BLOCK // 16)
    assert tile.steps == 1 or tile.block >= classes
    assert all(
        size & (size - 1) == 0 for size in (tile.rows, tile.block, gpu.warps_of(tile.rows * tile.block))
    )
    assert gpu.groups_left(batch, classes, 1) == 1
    assert gpu.groups_left(batch, classes, tiles.MOST_GROUPS) <= tiles.MOST_GROUPS
    if batch <= 128 and classes <= 1000:
        assert tile.groups(batch) <= tiles.MOST_GROUPS  # two launches


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
