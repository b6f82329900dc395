"""What changed between a run and the one on its corrected labels, counted by hand."""

import json

import fix_cases
import numpy as np
import pytest
from fix_cases import hash_of, judge

from fastdrpl.cli import main
from fastdrpl.errors import DataError, UserError
from fastdrpl.fixing.changes import Changes, PairChanges, SuspectChanges, TruthChanges, changes, earlier_run

NAMES = ("ant", "bee", "cow")
TRUTH = np.arange(12) // 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    for number in range(12):
        fix_cases.paint(folder / "photos" / NAMES[number // 4] / f"{number:02}.png", number // 4, number)
    return fix_cases.prepare("folder", folder / "photos", folder / "data")


def given(**wrong: int) -> np.ndarray:
    labels = TRUTH.copy()
    for row, label in wrong.items():
        labels[int(row[1:])] = label
    return labels


@pytest.fixture
def two(data, tmp_path):
    """Before: rows 0, 1, 4 and 8 are wrong. After: 0 is right, 1 wrong in another way, 5 spoiled, 8 and 9 dropped."""
    old = given(r0=1, r1=1, r4=0, r8=0)
    # suspects: 0, 1, 5, 8 and 9; of the later run, by its own numbers, those that show rows 1, 5 and 10
    before = judge(
        tmp_path / "before", data, {k: (2, 0.9, 0.9) for k in (0, 1, 5, 8, 9)},
        truth=TRUTH, given=old, accuracy=0.5,
    )  # fmt: skip
    rows = np.array([0, 1, 2, 3, 4, 5, 6, 7, 10, 11])
    new = given(r1=2, r4=0, r5=2)[rows]
    later = {1: (0, 0.7, 0.9), 5: (1, 0.8, 0.9), 8: (0, 0.9, 0.9)}
    after = judge(tmp_path / "after", data, later, truth=TRUTH[rows], given=new, rows=rows, accuracy=0.75)
    return before, after


def test_everything_is_counted_by_the_row_of_the_image(two):
    assert changes(*two) == Changes(
        before=two[0],
        after=two[1],
        samples_before=12,
        samples_after=10,
        relabelled=3,
        dropped=2,
        added=0,
        pairs=(PairChanges("bee", "cow", 2, 0), PairChanges("bee", "ant", 1, 1)),
        suspects=SuspectChanges(before=5, after=3, resolved=1, stayed=2, dropped=2, new=1, new_indices=(8,)),
        truth=TruthChanges(
            wrong_before=4, wrong_after=3, corrected=1, still_wrong=1, spoiled=1, dropped_wrong=1, dropped_right=1
        ),
        best_before=0.5,
        best_after=0.75,
        last_before=0.5,
        last_after=0.75,
    )  # fmt: skip


def test_where_no_truth_is_known_nothing_is_said_of_it(data, tmp_path):
    before = judge(tmp_path / "before", data, {0: (1, 0.9, 0.9)})
    labels = TRUTH.copy()
    labels[0] = 1
    found = changes(before, judge(tmp_path / "after", data, {}, given=labels))
    assert found.truth is None and found.pairs == (PairChanges("ant", "bee", 1, None),)
    assert found.last_after is None and found.suspects.resolved == 1


def test_samples_that_only_the_later_run_has(two):
    found = changes(two[1], two[0])
    assert (found.added, found.dropped, found.suspects.new) == (2, 0, 3)
    assert found.suspects.new_indices == (0, 8, 9)


def test_runs_that_cannot_be_compared(data, two, tmp_path):
    for number in range(4):
        fix_cases.paint(tmp_path / "o" / "ab"[number % 2] / f"{number}.png", number % 2, number)
    other = judge(tmp_path / "other", fix_cases.prepare("folder", tmp_path / "o", tmp_path / "od"), {})
    with pytest.raises(UserError, match="of different prepared data"):
        changes(two[0], other)
    twice = judge(tmp_path / "twice", data, {}, rows=np.array([0, 1, 1]))
    with pytest.raises(DataError, match="an image is in this run twice"):
        changes(two[0], twice)
    (two[1] / "result.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        changes(*two)


def come_from(run, before, hash) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    origin = {"run": str(before), "hash": hash, "data": manifest["identity"]["data"], "dropped": []}
    (run / "manifest.json").write_text(json.dumps(manifest | {"labels_from": origin}))


def test_the_run_before_is_found_or_said_to_be_gone(two):
    before, after = two
    assert earlier_run(after) is None
    come_from(after, before, hash_of(before))
    assert earlier_run(after).folder == before
    come_from(after, before, "feed")
    assert earlier_run(after).folder is None and "another run by now" in earlier_run(after).missing
    come_from(after, before.with_name("gone"), hash_of(before))
    assert earlier_run(after).folder is None and "no longer there" in earlier_run(after).missing


def test_the_comparison_is_printed_in_the_order_of_the_runs(two, capsys):
    before, after = two
    come_from(after, before, hash_of(before))
    printed = []
    for words in ((before, after), (after, before)):
        assert main(["fix", str(words[0]), "--compare", str(words[1])]) == 0
        printed.append(" ".join(capsys.readouterr().out.replace("│", " ").split()))
    assert printed[0] == printed[1]
    assert "3 labels changed, 2 samples dropped" in printed[0]
    assert "of 5 suspects 1 no longer look wrong, 2 were dropped, 2 still do; 1 are new" in printed[0]
    assert "accuracy, last 50.00% 75.00%" in printed[0]
    assert (
        "1 were wrong and are right now, 1 are wrong in another way, 1 were right and are wrong" in printed[0]
    )
