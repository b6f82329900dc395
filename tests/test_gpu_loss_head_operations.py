"""The operations of the loss head on a GPU as torch knows them: registered, compiled, captured."""

import pytest
import torch
from gpu_device import DEVICE, needs_gpu, on_device
from need import need
from test_loss_head import N, draw
from torch import Tensor

need("triton")

from gpu_loss_head_cases import by_reference, run, run_kernels

from fastdrpl.kernels import dispatch
from fastdrpl.kernels.gpu import loss_head as gpu
from fastdrpl.kernels.loss_head import loss_head, predict

# What numpy says of the interpreter where a test wants nan.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")


@pytest.fixture
def twin(monkeypatch):
    run_kernels(monkeypatch)


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
