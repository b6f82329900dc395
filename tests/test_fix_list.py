"""fixes.csv in the forms in which people and their programs write it, and what is said of one that does not fit."""

import csv
import io
import time
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest

from fastdrpl.errors import DataError, UserError
from fastdrpl.fixing.fix_list import read_fixes

NAMES = ("cat", 'dog, "wild"', "été")
FILES = ["cat/a b.png", "cat/=1+1.png", 'x/"q",.png', "x/new\nline.png", "été/ô.png", None]


def judged(files=FILES, given=None):
    count = len(files)
    given = np.zeros(count, np.int64) if given is None else given
    labels = SimpleNamespace(given=given, class_names=NAMES)
    suggested = np.full(count, 1)
    return SimpleNamespace(
        hash="0123456789abcdef", labels=labels, class_names=NAMES, suggested=suggested,
        files=np.array(files, dtype=object),
    )  # fmt: skip


def text_of(rows, *, mark=",", end="\n", head="# fastdrpl fixes for run 0123456789abcdef") -> str:
    """As the page writes it."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=mark, lineterminator=end)
    writer.writerows([("index", "file", "decision", "label"), *rows])
    return head + end + file.getvalue()


@pytest.fixture
def read(tmp_path):
    def read(content, run=None):
        path = tmp_path / "fixes.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        fixes = read_fixes(path, run or judged())
        return {index: (fix.decision, NAMES[fix.label]) for index, fix in fixes.items()}

    return read


ROWS = [
    (0, "cat/a b.png", "accept", NAMES[1]),
    (1, "cat/=1+1.png", "keep", "cat"),
    (2, FILES[2], "drop", ""),
    (3, FILES[3], "relabel", "été"),
    (4, FILES[4], "accept", ""),
    (5, "", "relabel", NAMES[1]),
]
MEANT = {
    0: ("accept", NAMES[1]),
    1: ("keep", "cat"),
    2: ("drop", "cat"),
    3: ("relabel", "été"),
    4: ("accept", NAMES[1]),
    5: ("relabel", NAMES[1]),
}


def test_a_list_as_the_page_writes_it(read):
    assert read(text_of(ROWS)) == MEANT


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_that_a_table_program_saved(read, mark, end):
    quoted = f'"# fastdrpl fixes for run 0123456789abcdef"{mark * 3}'
    assert read(b"\xef\xbb\xbf" + text_of(ROWS, mark=mark, end=end, head=quoted).encode()) == MEANT
    assert read(text_of([*ROWS, ("", "", "", "")], mark=mark, end=end)) == MEANT


def test_names_spelled_as_macos_spells_them(read):
    apart = [
        [unicodedata.normalize("NFD", cell) if isinstance(cell, str) else cell for cell in row]
        for row in ROWS
    ]
    assert apart != [list(row) for row in ROWS]
    assert read(text_of(apart)) == MEANT
    composed_run = judged([unicodedata.normalize("NFD", name) if name else name for name in FILES])
    assert read(text_of(ROWS), composed_run) == MEANT


def test_index_or_file_alone_will_do_and_the_columns_may_stand_in_any_order(read):
    head = "# fastdrpl fixes for run 0123456789abcdef\n"
    assert read(f"{head}label,decision,file\nété,RELABEL,cat/a b.png\n") == {0: ("relabel", "été")}
    assert read(f"{head}decision,label,index,note\ndrop,,3,blurred\n") == {3: ("drop", "cat")}


def test_the_same_decision_twice_is_harmless(read):
    assert read(text_of([ROWS[0], ROWS[1], ROWS[0]])) == {0: MEANT[0], 1: MEANT[1]}


def test_a_list_without_decisions_decides_nothing(read):
    assert read(text_of([])) == {}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([ROWS[0], (6, "", "drop", "")], "line 4: there is no sample '6': the run has 0 to 5"),
        ([(-1, "", "drop", "")], "line 3: there is no sample '-1'"),
        ([("", "cat/b.png", "drop", "")], "no file 'cat/b.png' in the run; did you mean 'cat/a b.png'?"),
        ([("", "", "drop", "")], "index and file are empty"),
        ([(0, "cat/=1+1.png", "drop", "")], "sample 0 is 'cat/a b.png' in the run, and 'cat/=1+1.png' in"),
        ([(5, "a.png", "drop", "")], "sample 5 is 'no file' in the run"),
        ([(0, "", "relabel", "catt")], "line 3: the run has no class 'catt'; did you mean 'cat'?"),
        ([(0, "", "relabel", "")], "to which class?"),
        ([(0, "", "acept", "cat")], "unknown decision 'acept'; did you mean 'accept'?"),
        ([(0, "", "drop", "cat")], "drop leaves the sample out, but there is a label: 'cat'"),
        ([(0, "", "keep", "été")], "keep means 'cat' here, and the label is 'été'"),
        ([(0, "", "accept", "été")], "accept means 'dog, \"wild\"' here"),
        ([(0, "drop")], "line 3: 2 fields, the line of names has 4"),
        (
            [(3, FILES[3], "keep", ""), (1, "", "drop", ""), (3, "", "relabel", "été")],
            "line 6: this sample is decided in another way in line 3: keep 'cat' there, relabel 'été' here",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_run_is_said_with_its_line(read, rows, said):
    with pytest.raises(DataError) as error:
        read(text_of(rows))
    assert said in str(error.value) and "fixes.csv" in str(error.value)


def test_fixes_for_another_run_are_refused(read):
    with pytest.raises(
        UserError, match="made for the run feedfeedfeedfeed, and this is the run 0123"
    ) as error:
        read(text_of(ROWS, head="# fastdrpl fixes for run feedfeedfeedfeed"))
    assert "give the run that they were made for" in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (text_of(ROWS, head="")[1:], "# fastdrpl fixes for run 0123456789abcdef"),
        ("", "does not say which run it is for"),
        ("# fastdrpl fixes for run 0123456789abcdef\n0,a.png,drop,\n", "no line of names"),
        ("# fastdrpl fixes for run 0123456789abcdef\n", "no line of names"),
        (text_of(ROWS).encode("utf-16"), "not UTF-8"),
        (text_of(ROWS).encode("cp1252", "replace"), "save it as `CSV UTF-8`"),
        (text_of([]) + '0,"a.png,drop,\n1,b,drop,\n', "a quote that is not closed"),
    ],
)
def test_what_is_no_fix_list_is_one_clear_error(read, content, said):
    with pytest.raises(DataError) as error:
        read(content)
    assert said in str(error.value)


def test_a_missing_list(tmp_path):
    with pytest.raises(UserError, match="cannot read the fix list: No such file"):
        read_fixes(tmp_path / "none.csv", judged())


def test_a_hundred_thousand_fixes_are_read_in_seconds(read):
    count = 100_000
    files = [f"class é/{number}.png" for number in range(count)]
    rows = [(number, files[number], "relabel", "été") for number in reversed(range(count))]
    began = time.process_time()
    fixes = read(text_of(rows), judged(files))
    assert len(fixes) == count and set(fixes.values()) == {("relabel", "été")}
    by_name = read(text_of([("", *row[1:]) for row in rows]), judged(files))
    assert by_name == fixes
    assert time.process_time() - began < 20  # a search through the names for each would take hours
