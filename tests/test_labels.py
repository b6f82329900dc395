"""Labels: what is refused, what is derived, and files that users share."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdrpl.labels import OUTSIDE, UNKNOWN, Labels, load_labels
from fastdrpl.loaders.errors import DataError, UserError

NAMES = ("cat", "dog", "schöner Fisch, groß", '"quoted"')


def make_labels(samples: int = 9, seed: int = 0) -> Labels:
    rng = np.random.default_rng(seed)
    return Labels(
        rng.integers(0, 4, samples),
        rng.integers(-2, 4, samples),
        rng.integers(0, 100, samples),
        class_names=NAMES,
    )


def same(a: Labels, b: Labels) -> bool:
    return a.class_names == b.class_names and all(
        np.array_equal(getattr(a, name), getattr(b, name))
        and getattr(a, name).dtype == getattr(b, name).dtype
        for name in ("given", "truth", "source_row")
    )


def test_is_noisy_follows_the_truth_where_it_is_known():
    labels = Labels(
        np.array([0, 1, 2, 3]), np.array([0, 2, UNKNOWN, OUTSIDE]), np.arange(4), class_names=NAMES
    )
    assert labels.is_noisy.noisy.tolist() == [False, True, False, True]
    assert labels.is_noisy.known.tolist() == [True, True, False, True]


def test_arrays_are_copies_and_read_only():
    mine = np.array([0, 1], dtype=np.int32)
    labels = Labels(mine, np.array([0, 1]), np.array([5, 4]), class_names=NAMES)
    mine[0] = 3
    assert labels.given.tolist() == [0, 1] and labels.given.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        labels.given[0] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"given": np.array([0, 4])}, r"given: 1 of 2 values are outside 0\.\.3, the first is 4 at sample 1"),
        ({"given": np.array([-1, 0])}, "given"),
        ({"truth": np.array([-3, 0])}, "truth"),
        ({"truth": np.array([0, 4])}, "truth"),
        ({"truth": np.array([0, 1, 2])}, "truth has 3 values, given has 2"),
        ({"source_row": np.array([0, -1])}, "source_row"),
        ({"given": np.array([0.0, 1.0])}, "float64"),
        ({"given": np.array([True, False])}, "bool"),
        ({"given": [0, 1]}, "list"),
        ({"given": np.zeros((2, 1), dtype=np.int64)}, r"\(2, 1\)"),
        ({"given": np.array([2**63, 0], dtype=np.uint64)}, "given"),
        ({"class_names": ("a", "a", "b", "c")}, "twice"),
        ({"class_names": ()}, "class names"),
        ({"class_names": ("a", 1)}, "class names"),
    ],
)
def test_bad_values_are_refused(change: dict, message: str):
    good = {
        "given": np.array([0, 1]),
        "truth": np.array([0, 1]),
        "source_row": np.array([0, 1]),
        "class_names": NAMES,
    }
    Labels(**good)
    with pytest.raises(DataError, match=message):
        Labels(**(good | change))


@pytest.mark.parametrize("ending", [".npz", ".csv", ".parquet"])
@settings(max_examples=10, deadline=None)
@given(samples=st.integers(0, 40), seed=st.integers(0, 1000))
def test_saved_labels_come_back(
    ending: str, samples: int, seed: int, tmp_path_factory: pytest.TempPathFactory
):
    path = tmp_path_factory.mktemp("labels") / f"labels{ending}"
    labels = make_labels(samples, seed)
    labels.save(path)
    loaded = Labels.load(path)
    assert same(labels, loaded)
    assert loaded.fingerprint == labels.fingerprint
    assert same(load_labels(path, samples=samples, class_names=NAMES), labels)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_fingerprint_depends_on_every_part_and_is_fixed():
    labels = make_labels()
    other = [
        Labels((labels.given + 1) % 4, labels.truth, labels.source_row, NAMES),
        Labels(labels.given, np.zeros_like(labels.truth), labels.source_row, NAMES),
        Labels(labels.given, labels.truth, labels.source_row + 1, NAMES),
        Labels(labels.given, labels.truth, labels.source_row, (*NAMES[:3], "bird")),
        Labels(labels.given[:-1], labels.truth[:-1], labels.source_row[:-1], NAMES),
    ]
    assert len({entry.fingerprint for entry in [labels, *other]}) == 6
    fixed = Labels(np.array([0, 1]), np.array([0, -1]), np.array([3, 4]), ("a", "b"))
    assert fixed.fingerprint == "bbd32f5f9e239e9552326b1b710b0a33ffbc4d31e86ed1d2db64836d83ed1e5e"


def test_csv_is_readable_and_its_lines_may_be_in_any_order(tmp_path: Path):
    labels = make_labels()
    labels.save(tmp_path / "labels.csv")
    names, header, *lines = (tmp_path / "labels.csv").read_text().splitlines()
    assert json.loads(names.removeprefix("# class_names: ")) == list(NAMES)
    assert header.replace('"', "") == "index,row,given,truth"
    (tmp_path / "other.csv").write_text("\n".join([names, header, *reversed(lines)]))
    assert same(load_labels(tmp_path / "other.csv"), labels)


def test_csv_without_names_takes_those_of_the_data_set(tmp_path: Path):
    path = tmp_path / "mine.csv"
    path.write_text("given,truth,index,row,remark\n1,-1,0,7,x\n0,0,1,8,y\n")
    labels = load_labels(path, samples=2, class_names=("a", "b"))
    assert (labels.given.tolist(), labels.truth.tolist(), labels.source_row.tolist()) == (
        [1, 0],
        [-1, 0],
        [7, 8],
    )
    with pytest.raises(DataError, match="no class names"):
        load_labels(path)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"samples": 8}, "has 9 samples, the data set has 8"),
        ({"class_names": NAMES[:3]}, "has 4 classes, the data set has 3"),
        ({"class_names": (*NAMES[:3], "bird")}, "class 3 is .* and 'bird' in the data set"),
        ({"class_names": (NAMES[1], NAMES[0], *NAMES[2:])}, "class 0 is 'cat' .* and 'dog' .*another order"),
    ],
)
def test_a_file_of_other_data_says_what_differs(expected: dict, message: str, tmp_path: Path):
    make_labels().save(tmp_path / "labels.npz")
    with pytest.raises(DataError, match=message) as caught:
        load_labels(tmp_path / "labels.npz", **expected)
    assert str(tmp_path / "labels.npz") in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "index,row,given,truth\n0,0,zero,0\n",
        "index,row,given\n0,0,0\n",
        "index,row,given,truth\n0,0,0,\n",
        "index,row,given,truth\n0,0,0,0\n0,0,0,0\n",
        "index,row,given,truth\n1,0,0,0\n",
        "index,row,given,truth\n-1,0,0,0\n",
        "index,row,given,truth\n0,0,9,0\n",
        "# class_names: {}\nindex,row,given,truth\n0,0,0,0\n",
        "# class_names: [\nindex,row,given,truth\n0,0,0,0\n",
    ],
)
def test_damaged_csv_is_a_data_error(text: str, tmp_path: Path):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        load_labels(path, class_names=("a", "b"))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("ending", [".npz", ".csv", ".parquet"])
def test_cut_and_garbled_files_never_escape_as_other_errors(ending: str, tmp_path: Path):
    path = tmp_path / f"labels{ending}"
    make_labels(50).save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole[: rng.integers(0, len(whole))] if rng.random() < 0.5 else whole)
        for at in rng.integers(0, max(len(damaged), 1), 3 if damaged else 0):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            load_labels(path)
        except DataError:
            refused += 1
    assert refused > 50


def test_pickles_are_refused(tmp_path: Path):
    np.savez(tmp_path / "labels.npz", index=np.array([{}], dtype=object))
    with pytest.raises(DataError):
        load_labels(tmp_path / "labels.npz")


def test_missing_files_and_unknown_endings_are_user_errors(tmp_path: Path):
    with pytest.raises(UserError, match="no such label file"):
        load_labels(tmp_path / "labels.npz")
    with pytest.raises(UserError, match=r"unknown kind of label file: \.pt"):
        load_labels(tmp_path / "labels.pt")
    with pytest.raises(UserError, match=r"\.json"):
        make_labels().save(tmp_path / "labels.json")
    with pytest.raises(UserError, match="no such folder"):
        make_labels().save(tmp_path / "none" / "labels.npz")
