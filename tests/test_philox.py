"""Philox: known answers, the twin's bits, and what the draws made of its words must hold."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastdrpl.kernels.cpu import philox as twin
from fastdrpl.kernels.philox import (
    MASK,
    Stream,
    beta_symmetric,
    integers,
    permutation,
    philox,
    shuffle_keys,
    uniform,
    words,
)

# Random123's kat_vectors for philox4x32-10: counter, key, answer.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MASK, MASK, MASK, MASK), (MASK, MASK), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
WORD = st.integers(0, MASK)
STREAMS = st.builds(Stream, st.integers(0, 2**64 - 1), WORD, WORD, WORD)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter, key, answer):
    assert philox(counter, key) == answer
    for array in (np.array, torch.tensor):
        drawn = philox(tuple(array([word]) for word in counter), key)
        assert tuple(int(word[0]) for word in drawn) == answer
    compiled = twin.philox_words(*(np.uint64(word) for word in (*counter, *key)))
    assert tuple(int(word) for word in compiled) == answer


@given(STREAMS, st.lists(WORD, max_size=20))
@settings(deadline=None, max_examples=200)
def test_numpy_torch_and_numba_have_the_same_bits(stream, index):
    index = np.array(index, np.int64)
    reference = words(stream, index)
    on_torch = words(stream, torch.from_numpy(index))
    compiled = twin.words(stream, index)
    for k in range(4):
        assert reference[k].dtype == np.int64 and on_torch[k].dtype == torch.int64
        assert np.array_equal(reference[k], on_torch[k].numpy())
        assert np.array_equal(reference[k], compiled[k])


def test_a_single_integer_draws_what_its_array_draws():
    assert words(Stream(7), 3) == tuple(int(word[3]) for word in words(Stream(7), np.arange(5)))


def test_every_part_of_the_key_and_counter_matters():
    base = Stream(seed=2**33 + 1, epoch=2, stage=3, purpose_view=4)
    others = [base._replace(**{name: value + 1}) for name, value in base._asdict().items()]
    others += [base._replace(seed=1), base._replace(epoch=3, stage=2)]
    drawn = [tuple(word.tobytes() for word in words(stream, np.arange(8))) for stream in (base, *others)]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize(
    "stream",
    [Stream(-1), Stream(2**64), Stream(0, -1), Stream(0, 2**32), Stream(0, 0, -1), Stream(0, 0, 0, 2**32)],
)
def test_a_stream_out_of_range_is_refused(stream):
    with pytest.raises(ValueError, match="random stream"):
        words(stream, np.arange(3))
    with pytest.raises(ValueError, match="random stream"):
        twin.words(stream, np.arange(3))


@pytest.mark.parametrize("dtype", [np.int32, np.uint64, np.float64])
def test_an_index_of_another_type_is_refused(dtype):
    with pytest.raises(TypeError, match="want int64"):
        words(Stream(0), np.arange(3).astype(dtype))


@given(WORD)
def test_uniform_is_in_the_unit_interval_and_exact_in_float32(word):
    value = uniform(word)
    assert 0 <= value < 1
    assert float(np.float32(value)) == value == float(uniform(torch.tensor([word]))[0])


@given(WORD, st.integers(1, 2**31 - 1))
def test_integers_are_the_floor_of_the_product(word, n):
    assert integers(word, n) == word * n // 2**32 < n
    assert int(integers(np.array([word]), n)[0]) == word * n // 2**32


@pytest.mark.parametrize("n", [0, -1, 2**31])
def test_integers_below_a_bound_out_of_range_are_refused(n):
    with pytest.raises(ValueError, match="integers below n"):
        integers(5, n)


def test_words_are_uniform_and_independent():
    drawn = np.stack([uniform(word) for word in words(Stream(1, 2, 3, 4), np.arange(200_000))])
    for values in drawn:
        assert stats.kstest(values, "uniform").pvalue > 1e-4
    off_diagonal = np.corrcoef(drawn)[~np.eye(4, dtype=bool)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(200_000)


def test_shuffle_keys_use_63_bits():
    assert int(shuffle_keys(np.int64(MASK), np.int64(MASK))) == 2**63 - 1
    assert int(shuffle_keys(np.int64(1), np.int64(0))) == 1 << 31
    assert int(shuffle_keys(np.int64(0), np.int64(3))) == 1


@given(STREAMS, st.sets(st.integers(0, 10**6), max_size=60), st.randoms())
@settings(deadline=None)
def test_a_permutation_belongs_to_the_set(stream, chosen, shuffler):
    given_order = list(chosen)
    shuffler.shuffle(given_order)
    one, other = np.array(sorted(chosen), np.int64), np.array(given_order, np.int64)
    walk = one[permutation(stream, one)]
    assert sorted(walk) == sorted(chosen)
    assert np.array_equal(walk, other[permutation(stream, other)])


def test_a_permutation_sorts_the_keys_across_chunks():
    n = 20_000
    keys = [
        a << 31 | b >> 1
        for a, b in zip(*(w.tolist() for w in words(Stream(5), np.arange(n))[:2]), strict=True)
    ]
    assert permutation(Stream(5), n).tolist() == sorted(range(n), key=keys.__getitem__)


def test_places_of_a_permutation_are_uniform():
    counts = np.zeros((6, 6))
    for epoch in range(6000):
        counts[np.arange(6), permutation(Stream(9, epoch), 6)] += 1
    assert stats.chisquare(counts.ravel()).pvalue > 1e-4


@pytest.mark.parametrize("a", [0.3, 1, 4.0])
def test_beta_follows_its_distribution(a):
    drawn = beta_symmetric(a, words(Stream(3), np.arange(1_000_000))[0])
    assert stats.kstest(drawn, stats.beta(a, a).cdf).pvalue > 1e-4


def test_beta_of_one_is_the_uniform_itself():
    assert beta_symmetric(1, 12345 << 8) == uniform(12345 << 8) == 12345 * 2.0**-24


@pytest.mark.parametrize("a", [0, -1, float("nan"), float("inf")])
def test_beta_of_a_bad_parameter_is_refused(a):
    with pytest.raises(ValueError, match="Beta"):
        beta_symmetric(a, 1)
