"""The table of labels: its columns, its order, its two files, and tables of earlier versions."""

import csv

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fastdrpl.errors import DataError
from fastdrpl.labels import Labels
from fastdrpl.report.ranking import rank_labels
from fastdrpl.report.table import Said, build_table, read_table, write_table

NAMES = ('a, "b"', "line\nbreak", "狐")
FILES = ("x/1.png", 'x/"2", 3.png', "x/\n.png", "狐.png", "=1+1.png", "b\udcff.png")
COLUMNS = ["index", "row", "file", "given", "given_name", "suggested", "suggested_name"]
COLUMNS += ["p_suggested", "p_given", "p_noisy", "labelled", "rank", "score", "loss_one", "loss_two"]
TRUTH = ["truth", "truth_name", "is_noisy"]


def make_table(truth: list[int]) -> pyarrow.Table:
    labels = Labels(np.array([0, 1, 2, 0]), np.array(truth), np.array([5, 3, 0, 1]), NAMES)
    losses = {"one": np.float32([9, 0, 0, 0]), "two": np.float32([0.1, 3, 2, 0.2])}
    labelled = np.array([True, False, False, True])
    suggested, sure = np.array([0, 1, 0, 2]), np.float32([0.9, 0.5, 0.75, 0.6])
    said = Said(suggested, sure, np.float32([0.9, 0.0, 0.25, 0.4]))
    return build_table(labels, FILES, said, np.array([0.1, 0.9, 0.9, 0.1]), labelled, losses)


@pytest.mark.parametrize("truth", [[0, 1, -1, -2], [-1] * 4], ids=["known", "unknown"])
def test_columns_stand_where_something_is_known(truth):
    table = make_table(truth)
    assert table.column_names == COLUMNS + (TRUTH if truth[0] >= 0 else [])
    # 1 - (p p p)^(1/3) of the losses of both stages and what the final network gives; one of them is nothing.
    product = np.exp([-9.1, -3, -2, -0.2]) * [0.9, 0, 0.25, 0.4]
    assert table["score"].to_pylist() == pytest.approx(1 - np.cbrt(product), abs=1e-6)
    assert table["rank"].to_pylist() == [2, 1, 3, 4]
    if truth[0] >= 0:
        assert table["is_noisy"].to_pylist() == [False, False, None, True]
        assert table["truth_name"].to_pylist() == [NAMES[0], NAMES[1], None, None]


def test_both_files_hold_the_same(tmp_path):
    table = make_table([0, 1, -1, -2])
    for name in ("t.parquet", "t.csv"):
        write_table(tmp_path / name, table)
    assert read_table(tmp_path / "t.parquet").equals(table)
    with open(tmp_path / "t.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == table.column_names
    for got, wanted in zip(rows, table.to_pylist(), strict=True):
        for name, value in wanted.items():
            text = got[name]
            if value is None:
                assert text == ""
            elif isinstance(value, bool):
                assert text == str(value).lower()
            else:
                assert (
                    type(value)(text) == pytest.approx(value)
                    if isinstance(value, float)
                    else text == str(value)
                )


evidence = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        arrays(np.float64, n, elements=st.sampled_from([0.0, 0.5, 0.912, 1.0])),
        st.lists(arrays(np.float32, n, elements=st.sampled_from([0, 0.25, 3, 60, np.inf])), max_size=3),
    )
)


@given(evidence)
def test_the_rank_has_no_ties_and_the_score_goes_with_it(drawn):
    p_noisy, losses = drawn
    rank, score = rank_labels(p_noisy, losses)
    assert sorted(rank) == list(range(1, len(rank) + 1))
    assert ((score >= 0) & (score <= 1)).all()

    def doubt(i):
        return sum(float(loss[i]) for loss in losses) / len(losses) if losses else p_noisy[i]

    by_hand = sorted(range(len(rank)), key=lambda i: (-doubt(i), -p_noisy[i], i))
    assert np.argsort(rank).tolist() == by_hand
    assert (np.diff(score[by_hand]) <= 0).all()
    wanted = [1 - np.exp(-doubt(i)) if losses else p_noisy[i] for i in range(len(rank))]
    assert score.tolist() == pytest.approx(wanted, abs=1e-12)


def test_a_table_of_the_first_schema_is_read_as_of_today(tmp_path):
    table = make_table([-1] * 4)
    old = table.drop_columns(["p_suggested", "p_given", "rank", "score"])
    for name, kind in zip(TRUTH, (pyarrow.int64(), pyarrow.string(), pyarrow.bool_()), strict=True):
        old = old.append_column(name, pyarrow.nulls(4, kind))
    pyarrow.parquet.write_table(
        old.replace_schema_metadata({"fastdrpl_schema": "1"}), tmp_path / "old.parquet"
    )
    got = read_table(tmp_path / "old.parquet")
    assert got.column_names == table.column_names
    assert got["p_suggested"].null_count == got["p_given"].null_count == 4
    unlike = ("p_suggested", "p_given", "rank", "score")
    same = [name for name in COLUMNS if name not in unlike]
    assert got.select(same).equals(table.select(same))
    assert got["rank"].to_pylist() == [1, 2, 3, 4]  # by the losses of the stages alone: 9.1, 3, 2, 0.2


def test_a_table_of_a_later_version_is_refused(tmp_path):
    later = make_table([-1] * 4).replace_schema_metadata({"fastdrpl_schema": "3"})
    pyarrow.parquet.write_table(later, tmp_path / "later.parquet")
    with pytest.raises(DataError, match="schema 3"):
        read_table(tmp_path / "later.parquet")
