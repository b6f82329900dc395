"""`fastdrpl fix --out-table`: the user's own table with other labels, and not a byte else."""

import csv
import io

import fix_cases
import pytest
from fix_cases import judge

from fastdrpl.cli import main

# Names that must be quoted, cells that programs would write in another way, rows of three splits, an empty line.
TABLE = (
    'id,path,"label",price,split\r\n'
    '007,a b.png,cat,"1,50",train\r\n'
    '008,"c""q"".png","dog, wild",2.0,train\r\n'
    "\r\n"
    "009,e.png, cat ,+3,train\r\n"
    '010,"f\ng.png","dog, wild",,train\r\n'
    "011,h.png,cat,5,test\r\n"
    '012,i.png,"dog, wild",6,val'
)
FILES = ("a b.png", 'c"q".png', "e.png", "f\ng.png", "h.png", "i.png")


def make(place, content: bytes, name="table.csv", *more):
    for number, file in enumerate(FILES):
        fix_cases.paint(place / "images" / file, number % 2, number)
    (place / "images" / name).write_bytes(content)
    return fix_cases.prepare("table", place / "images" / name, place / "data", *more)


def fix(run, out, *words) -> int:
    return main(
        ["fix", str(run), "--accept", "0.9", "--drop", "0.9", "--out-table", str(out), *map(str, words)]
    )


@pytest.mark.parametrize(
    ("mark", "end", "bom"), [(",", "\r\n", b""), (";", "\n", b"\xef\xbb\xbf"), ("\t", "\n", b"")]
)
def test_labels_change_and_nothing_else(tmp_path, mark, end, bom):
    rows = list(csv.reader(io.StringIO(TABLE, newline="")))
    text = TABLE.replace("\r\n", end)
    if mark != ",":  # the same table, by the standard library
        buffer = io.StringIO(newline="")
        csv.writer(buffer, delimiter=mark, lineterminator=end).writerows(rows)
        text = buffer.getvalue()
    data = make(tmp_path, bom + text.encode())
    # classes: cat 0, "dog, wild" 1; the samples are the four rows of the training split
    run = judge(tmp_path / "run", data, {0: (1, 0.99, 0.99), 1: (0, 0.99, 0.99), 3: (0, 0.99, 0.2)})
    assert fix(run, tmp_path / "new.csv") == 0
    new = (tmp_path / "new.csv").read_bytes()
    assert new.startswith(bom + b"id") and new.count(b"\r\n") == (6 if end == "\r\n" else 0)
    found = list(csv.reader(io.StringIO(new.removeprefix(bom).decode(), newline=""), delimiter=mark))
    expected = [row for row in rows if row[:1] != ["010"]]
    expected[1][2], expected[2][2] = "dog, wild", "cat"
    assert found == expected
    if mark == ",":
        line = '010,"f\ng.png","dog, wild",,train\r\n'
        changed = (
            TABLE.replace(line, "")
            .replace('.png,cat,"1', '.png,"dog, wild","1')
            .replace('.png","dog, wild",2', '.png",cat,2')
        )
        assert new.decode() == changed


def test_a_table_that_nothing_changes_in_stays_as_it_is_to_the_byte(tmp_path):
    data = make(tmp_path, TABLE.encode())
    assert fix(judge(tmp_path / "run", data, {}), tmp_path / "new.csv") == 0
    assert (tmp_path / "new.csv").read_bytes() == TABLE.encode()


def test_columns_of_other_names_and_images_elsewhere(tmp_path, capsys):
    text = "datei;klasse;path\n" + "".join(
        f"{f};k{n % 2};x\n" for n, f in enumerate(FILES) if "\n" not in f and '"' not in f
    )
    for number, file in enumerate(FILES):
        fix_cases.paint(tmp_path / "images" / file, number % 2, number)
    (tmp_path / "t.csv").write_text(text)
    words = ("--images", str(tmp_path / "images"), "--path-column", "datei", "--label-column", "klasse")
    data = fix_cases.prepare("table", tmp_path / "t.csv", tmp_path / "data", *words)
    (tmp_path / "out").mkdir()
    assert fix(judge(tmp_path / "run", data, {1: (1, 0.99, 0.99)}), tmp_path / "out" / "new.csv") == 0
    assert (tmp_path / "out" / "new.csv").read_text() == text.replace("e.png;k0", "e.png;k1")
    said = "".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"prepareitwith--images{tmp_path / 'images'}" in said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("e.png", "z.png", "1 of 4 images of the run are not in the table"),
        ('"dog, wild"', "wolf", "the table has no row of the class 'dog, wild'"),
    ],
)
def test_a_table_that_is_not_the_one_that_was_prepared(tmp_path, capsys, old, new, said):
    run = judge(tmp_path / "run", make(tmp_path, TABLE.encode()), {0: (1, 0.99, 0.99)})
    other = tmp_path / "images" / "other.csv"
    other.write_bytes(TABLE.replace(old, new).encode())
    assert fix(run, tmp_path / "new.csv", "--source", other) == 3
    assert said in capsys.readouterr().err
    assert fix(run, tmp_path / "images" / "table.csv", "--overwrite") == 2
    assert "the source of the data" in capsys.readouterr().err
    assert (tmp_path / "images" / "table.csv").read_bytes() == TABLE.encode()
    assert not (tmp_path / "new.csv").exists()


def test_forms_of_a_table_that_are_not_written_say_what_to_do(tmp_path, capsys):
    one_hot = "path,cat,dog\n" + "".join(
        f"{f},{n % 2},{1 - n % 2}\n" for n, f in enumerate(FILES) if "\n" not in f and '"' not in f
    )
    lines = "".join(f"{f} k{n % 2}\n" for n, f in enumerate(("e.png", "h.png", "i.png")))
    for number, (name, text) in enumerate((("hot.csv", one_hot), ("keys.txt", lines))):
        place = tmp_path / str(number)
        data = make(place, text.encode(), name)
        assert fix(judge(place / "run", data, {0: (1, 0.99, 0.99)}), place / "new.csv") == 2
        assert "--out labels.csv" in capsys.readouterr().err and not (place / "new.csv").exists()
