"""Pseudo-labels: kernels against references to the bit, ties and edges, the fp16 ring's drift, and what is refused."""

import numpy as np
import pytest
import torch
from gpu_device import DEVICE, ON_GPU, either, needs_gpu, on_device
from hypothesis import example, given, settings
from hypothesis import strategies as st
from need import need

from fastdrpl.kernels import pseudo_label as public
from fastdrpl.kernels.philox import MASK, Stream, shuffle_keys, words
from fastdrpl.kernels.pseudo_label import (
    redraw_count,
    redraw_uniform,
    renew_targets,
    ring_mean,
    ring_mean_in_order,
    ring_update,
    ring_write,
    sample_keys,
    sample_keys_reference,
)

need("triton")
from fastdrpl.kernels.gpu import pseudo_label as twin
from fastdrpl.kernels.streams import stream_tensor

put, average = (
    either(twin.launch_ring_put, twin.ring_put),
    either(twin.launch_ring_average, twin.ring_average),
)
keys_of, renew = either(twin.launch_draw_keys, twin.draw_keys), either(twin.launch_renew, twin.renew)

RING_TYPES = (torch.float32, torch.float16)
STREAM = Stream(2**63 + 11, 4, 3, 2 << 16)


def predictions(*shape: int, seed: int = 0) -> torch.Tensor:
    """Rows that sum to 1, some of them sharp."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, generator=generator) * 10 ** torch.rand(
        shape[0], generator=generator
    ).reshape(-1, *[1] * (len(shape) - 1))
    return torch.softmax(logits, -1)


def mean_slot_by_slot(ring: np.ndarray, filled: int) -> np.ndarray:
    """The mean in float32, one number after the other."""
    total = ring[:, 0].astype(np.float32)
    for slot in range(1, filled):
        total = total + ring[:, slot].astype(np.float32)
    return total / np.float32(filled)


def check_ring(
    samples: int, length: int, classes: int, epoch: int, ring_type: torch.dtype, tile: int
) -> None:
    ring = predictions(samples, length, classes, seed=epoch).to(ring_type)
    prediction = predictions(samples, classes, seed=epoch + 1)
    expected = ring.numpy().copy()
    expected[:, (epoch - 1) % length] = prediction.numpy().astype(expected.dtype)
    written, averaged, given = on_device(ring.clone(), ring.clone(), prediction)
    mean = torch.full((samples, classes), -1.0, device=DEVICE)
    put(written, epoch, given, tile)
    average(averaged, epoch, given, mean, tile)
    assert np.array_equal(written.cpu().numpy(), expected)
    assert np.array_equal(averaged.cpu().numpy(), expected)
    assert np.array_equal(mean.cpu().numpy(), mean_slot_by_slot(expected, min(epoch, length)))


@given(
    samples=st.integers(0, 30),
    length=st.integers(1, 12),
    classes=st.integers(1, 40),
    epoch=st.integers(1, 30),
    ring_type=st.sampled_from(RING_TYPES),
)
@settings(max_examples=200)
def test_the_ring_and_its_mean_are_those_of_a_loop(samples, length, classes, epoch, ring_type):
    check_ring(samples, length, classes, epoch, ring_type, tile=256)


@pytest.mark.parametrize("ring_type", RING_TYPES)
@pytest.mark.parametrize(
    ("samples", "length", "classes", "tile"),
    [
        (1, 10, 1000, 2048),  # a last block of classes that is not full
        (3, 10, 1025, 2048),
        (2, 2, 2500, 1024),
        (129, 3, 2, 256),
        (1, 40, 10, 64),
        (0, 10, 10, 64),
        (4, 10, 0, 64),
    ],
)
def test_rings_of_every_size(samples, length, classes, tile, ring_type):
    for epoch in (1, length, length + 1):
        check_ring(samples, length, classes, epoch, ring_type, tile)


@needs_gpu
def test_a_ring_of_more_numbers_than_fit_32_bits():
    samples, length, classes = 220_000, 10, 1000
    ring = torch.zeros((samples, length, classes), dtype=torch.float16, device=DEVICE)
    prediction = torch.rand((samples, classes), device=DEVICE)
    mean = torch.empty_like(prediction)
    ring_update(ring, 10, prediction, mean)
    assert torch.equal(ring[:, 9], prediction.half())
    assert not ring[:, :9].any()
    assert torch.equal(mean, prediction.half().float() / 10)


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("filled", [1, 3, 10, 16])
def test_both_orders_of_adding_agree_to_rounding(filled, classes):
    ring = predictions(500, 16, classes)
    exact = ring[:, :filled].double().mean(1)
    for mean in (ring_mean(ring, filled), ring_mean_in_order(ring, filled)):
        assert ((mean - exact).abs() <= exact * (filled + 1) * 2.0**-24).all()


def test_a_ring_of_half_precision_moves_the_means_little():
    """Ten epochs of predictions that wander; `pytest -s` prints the figures."""
    for classes in (10, 100, 1000):
        samples = 20_000 if classes < 1000 else 2_000
        generator = torch.Generator().manual_seed(classes)
        rings = [torch.zeros(samples, 10, classes, dtype=kind) for kind in RING_TYPES]
        own = torch.randn(samples, classes, generator=generator) * 2
        for epoch in range(1, 11):
            noise = torch.randn(samples, classes, generator=generator)
            prediction = torch.softmax(own + noise, 1)
            for ring in rings:
                ring_write(ring, epoch, prediction)
        full, half = (ring_mean(ring, 10) for ring in rings)
        difference, flips = (full - half).abs(), (full.argmax(1) != half.argmax(1)).sum().item()
        print(
            f"{classes} classes: largest difference {difference.max():.1e}, mean {difference.mean():.1e}, "
            f"{flips} of {samples} labels differ"
        )
        assert 0 < difference.max() < 2.0**-12
        assert difference.mean() < 2e-5 / classes**0.5
        assert flips <= samples // 1000


# --- keys ---


@given(st.builds(Stream, st.integers(0, 2**64 - 1), *3 * [st.integers(0, MASK)]), st.integers(0, 300))
@example(Stream(2**64 - 1, MASK, MASK, MASK), 257)
@settings(max_examples=200)
def test_keys_are_those_of_the_stream(stream, samples):
    expected = shuffle_keys(*words(stream, torch.arange(samples))[:2])
    assert torch.equal(keys_of(stream_tensor(stream, DEVICE), samples, 128).cpu(), expected)
    assert torch.equal(sample_keys(stream, samples, DEVICE).cpu(), expected)
    assert torch.equal(sample_keys(stream_tensor(stream, DEVICE), samples, DEVICE).cpu(), expected)
    assert torch.equal(sample_keys_reference(stream_tensor(stream, DEVICE), samples).cpu(), expected)


# --- the redraw ---


def chosen_by_sorting(labelled: np.ndarray, keys: np.ndarray, count: int) -> np.ndarray:
    """The samples to make uniform, one by one: (N,) bool."""
    order = sorted((key, sample) for sample, key in enumerate(keys.tolist()) if not labelled[sample])
    drawn = np.zeros(len(keys), bool)
    drawn[[sample for _, sample in order[:count]]] = True
    return drawn


def check_renew(labelled: torch.Tensor, keys: torch.Tensor, count: int, classes: int, **sizes: int) -> None:
    samples = len(keys)
    target, prediction = predictions(samples, classes, seed=1), predictions(samples, classes, seed=2)
    expected = np.where(labelled[:, None], target, prediction)
    expected[chosen_by_sorting(labelled.numpy(), keys.numpy(), count)] = np.float32(1 / classes)
    renewed, *given = on_device(target.clone(), prediction, labelled, keys, torch.tensor(count))
    renew(renewed, *given, **sizes)
    assert np.array_equal(renewed.cpu().numpy(), expected)
    plain = torch.where(labelled[:, None], target, prediction)
    for number in (count, torch.tensor(count)):
        assert np.array_equal(redraw_uniform(plain, ~labelled, keys, number).numpy(), expected)


KEYS = {
    "any": lambda generator, n: torch.randint(0, 2**63 - 1, (n,), generator=generator),
    "few": lambda generator, n: torch.randint(0, 4, (n,), generator=generator) << 40,
    "equal": lambda generator, n: torch.full((n,), 2**63 - 2),
    "high digits alone": lambda generator, n: torch.randint(0, 128, (n,), generator=generator) << 56,
    "low digits alone": lambda generator, n: torch.randint(0, 256, (n,), generator=generator),
    "falling": lambda generator, n: torch.arange(n).flip(0) * 1000,
}


@pytest.mark.parametrize("kind", KEYS)
def test_exactly_the_smallest_keys_become_uniform(kind):
    """Ties go to the smaller index; over one digit of the index and over two."""
    generator = torch.Generator().manual_seed(len(kind))
    for case in range(34):
        samples = int(torch.randint(1, 257, (), generator=generator)) if case % 8 else 700
        labelled = torch.rand(samples, generator=generator) < torch.rand((), generator=generator)
        unlabelled = int((~labelled).sum())
        count = (0, 1, unlabelled, unlabelled + 1, samples)[case] if case < 5 else case * unlabelled // 36
        check_renew(
            labelled,
            KEYS[kind](generator, samples),
            count,
            1 + case % 11,
            tile=8192,
            block=1024 if case % 16 else 512,
        )


@pytest.mark.parametrize(
    ("samples", "classes"), [(1, 1), (1, 10), (2, 1000), (3, 2500), (257, 2), (0, 10), (3, 0)]
)
def test_targets_of_every_size(samples, classes):
    keys = torch.arange(samples).flip(0)
    for share in (0.0, 0.5, 1.0):
        labelled = torch.arange(samples) < share * samples
        check_renew(labelled, keys, samples // 2, max(classes, 1), tile=2048)
    empty = torch.empty((samples, 0), device=DEVICE)
    renew(empty, empty, *on_device(torch.zeros(samples, dtype=torch.bool), keys, torch.tensor(1)))


@given(st.floats(0, 1) | st.sampled_from([0.2, 0.29, 0.1, 0.3, 0.7, 1 / 3]), st.integers(0, 3000))
@settings(max_examples=300)
def test_the_count_is_the_share_rounded_down(fraction, samples):
    """To a millionth, as 0.29 * 100 is 28.999..."""
    assert redraw_count(fraction, torch.ones(samples, dtype=torch.bool)) == int(round(fraction * samples, 6))


def test_each_epoch_draws_another_fifth_of_the_unlabelled():
    samples, classes = 1003, 4
    labelled = torch.arange(samples) % 3 == 0
    prediction = predictions(samples, classes)
    drawn = []
    for epoch in range(1, 6):
        target = torch.zeros((samples, classes))
        target, *given = on_device(target, prediction, labelled)
        renew_targets(target, *given, STREAM._replace(epoch=epoch), 0.2)
        drawn.append((target.cpu() == 0.25).all(1))
        assert drawn[-1].sum() == int(0.2 * 668)
        assert not (drawn[-1] & labelled).any()
        keys = shuffle_keys(*words(STREAM._replace(epoch=epoch), torch.arange(samples))[:2])
        assert keys[drawn[-1]].max() < keys[~drawn[-1] & ~labelled].min()
    counts = torch.stack(drawn).sum(0)
    assert len({tuple(row.tolist()) for row in drawn}) == 5
    assert 0.5 < (counts[~labelled] > 0).float().mean() < 0.8  # 1 - 0.8^5 = 0.67


# --- the public operations ---


def test_the_stream_of_a_redraw_may_be_a_tensor():
    """Its words are read at each call: what is copied into them draws the next epoch's set."""
    labelled = torch.arange(90) % 3 == 0
    words_of_epoch = stream_tensor(STREAM, DEVICE).clone()
    drawn = []
    for epoch in (1, 2):
        words_of_epoch.copy_(stream_tensor(STREAM._replace(epoch=epoch), DEVICE))
        target, expected, *given = on_device(
            torch.zeros((90, 4)), torch.zeros((90, 4)), predictions(90, 4), labelled
        )
        renew_targets(target, *given, words_of_epoch, 0.2)
        renew_targets(expected, *given, STREAM._replace(epoch=epoch), 0.2)
        assert torch.equal(target, expected)
        drawn.append((target == 0.25).all(1))
    assert drawn[0].sum() == 12 and not torch.equal(*drawn)


def run_public(device: torch.device) -> list[torch.Tensor]:
    """What the public operations give on a device, from inputs that are not contiguous."""
    ring = torch.zeros((50, 4, 7), device=device)
    mean = torch.zeros((50, 7), device=device)
    target = torch.zeros((50, 7), device=device)
    labelled = (torch.arange(100) % 3 == 0).to(device)[::2]
    for epoch in range(1, 7):
        prediction = predictions(7, 50, seed=epoch).to(device).T
        ring_update(ring, epoch, prediction, mean if epoch > 2 else None)
        renew_targets(target, prediction, labelled, STREAM._replace(epoch=epoch), 0.3)
    return [ring.cpu(), mean.cpu(), target.cpu(), sample_keys(STREAM, 50, device).cpu()]


def test_operations_give_what_the_references_give(monkeypatch):
    expected = run_public(torch.device("cpu"))
    if not ON_GPU:
        monkeypatch.setattr(public, "choose", lambda operation, device: "triton")
    got = run_public(DEVICE)
    for index in (0, 2, 3):
        assert torch.equal(got[index], expected[index])
    torch.testing.assert_close(got[1], expected[1], rtol=1e-6, atol=0)


@needs_gpu
def test_nothing_waits_for_the_gpu():
    ring, mean = torch.zeros((300, 10, 10), device=DEVICE), torch.zeros((300, 10), device=DEVICE)
    labelled = torch.arange(300, device=DEVICE) % 2 == 0
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ring_update(ring, 3, mean, mean)
        renew_targets(mean, mean, labelled, STREAM, 0.2)
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def operation_cases() -> dict:
    ring, matrix = torch.rand(6, 3, 5), torch.rand(6, 5)
    labelled, keys = torch.arange(6) % 2 == 0, torch.arange(6)
    return {
        "ring_put": (twin.ring_put, (ring, 2, matrix)),
        "ring_average": (twin.ring_average, (ring, 2, matrix, torch.empty(6, 5))),
        "draw_keys": (twin.draw_keys, (stream_tensor(STREAM, DEVICE), 6)),
        "renew": (twin.renew, (matrix, torch.rand(6, 5), labelled, keys, torch.tensor(2))),
    }


@pytest.mark.parametrize("name", operation_cases())
def test_operations_are_registered_well(name):
    operation, arguments = operation_cases()[name]
    arguments = [value.to(DEVICE) if isinstance(value, torch.Tensor) else value for value in arguments]
    torch.library.opcheck(operation, tuple(arguments))


@pytest.mark.parametrize("name", operation_cases())
def test_torch_compile_sees_through_the_operations(name):
    operation, arguments = operation_cases()[name]
    results = []
    for function in (operation, torch.compile(operation, fullgraph=True, backend="aot_eager")):
        copies = [
            value.clone().to(DEVICE) if isinstance(value, torch.Tensor) else value for value in arguments
        ]
        results.append([function(*copies), *copies])
    for eager, compiled in zip(*results, strict=True):
        assert torch.equal(eager, compiled) if isinstance(eager, torch.Tensor) else eager == compiled


RING = {
    "ring": torch.zeros(4, 3, 2),
    "epoch": 1,
    "prediction": torch.zeros(4, 2),
    "mean": torch.zeros(4, 2),
}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"ring": torch.zeros(4, 3, 2).double()}, TypeError, "ring: got torch.float64"),
        ({"ring": torch.zeros(4, 3)}, ValueError, r"ring: got shape \(4, 3\)"),
        ({"ring": torch.zeros(4, 2, 3).transpose(1, 2)}, ValueError, "contiguous"),
        ({"ring": torch.zeros(4, 0, 2)}, ValueError, "a ring of 0"),
        ({"epoch": 0}, ValueError, "epoch 0"),
        ({"prediction": torch.zeros(4, 2).half()}, TypeError, "prediction: got torch.float16"),
        ({"prediction": torch.zeros(3, 2)}, ValueError, r"prediction: got shape \(3, 2\), want \(4, 2\)"),
        ({"prediction": torch.zeros(4, 2, device="meta")}, ValueError, "prediction: got a tensor on meta"),
        ({"mean": torch.zeros(4, 2).half()}, TypeError, "mean: got torch.float16"),
        ({"mean": torch.zeros(2, 4)}, ValueError, "mean: got shape"),
        ({"mean": torch.zeros(2, 4).T}, ValueError, "mean: got strides"),
        ({"mean": torch.zeros(4, 2, device="meta")}, ValueError, "mean: got a tensor on meta"),
    ],
)
def test_a_ring_that_does_not_fit_is_refused(change, error, text):
    with pytest.raises(error, match=text):
        ring_update(**{**RING, **change})


TARGETS = {
    "target": torch.zeros(4, 2),
    "prediction": torch.zeros(4, 2),
    "labelled": torch.zeros(4, dtype=torch.bool),
    "stream": STREAM,
    "fraction": 0.2,
}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"fraction": 1.5}, ValueError, "got 1.5"),
        ({"fraction": float("nan")}, ValueError, "got nan"),
        ({"target": torch.zeros(4)}, ValueError, r"target: got shape \(4,\)"),
        ({"target": torch.zeros(2, 4).T}, ValueError, "target: got strides"),
        ({"target": torch.zeros(4, 2).double()}, TypeError, "target: got torch.float64"),
        ({"prediction": torch.zeros(4, 3)}, ValueError, "prediction: got shape"),
        ({"prediction": torch.zeros(4, 2).bfloat16()}, TypeError, "prediction: got torch.bfloat16"),
        ({"prediction": torch.zeros(4, 2, device="meta")}, ValueError, "prediction: got a tensor on meta"),
        ({"labelled": torch.zeros(4)}, TypeError, "labelled: got torch.float32"),
        ({"labelled": torch.zeros(3, dtype=torch.bool)}, ValueError, r"labelled: got shape \(3,\)"),
        ({"labelled": torch.zeros(4, dtype=torch.bool, device="meta")}, ValueError, "on meta"),
        ({"stream": Stream(-1)}, ValueError, "seed"),
        ({"stream": torch.zeros(5)}, TypeError, "stream: got torch.float32"),
        ({"stream": torch.zeros(5, dtype=torch.int64, device="meta")}, ValueError, "stream is on meta"),
    ],
)
def test_targets_that_do_not_fit_are_refused(change, error, text):
    with pytest.raises(error, match=text):
        renew_targets(**{**TARGETS, **change})
