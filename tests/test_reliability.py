"""The table of promises: complete, and every test that it names exists and carries the promise's number."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROWS = re.findall(r"^\| (R\d+) \|(.*)$", (ROOT / "docs" / "reliability.md").read_text(), re.MULTILINE)


@cache
def read_tests(name: str) -> dict[str, tuple[str, bool]]:
    """Docstring, and whether it is a slow one, of each test in a file."""
    tree = ast.parse((ROOT / "tests" / name).read_text())
    return {
        node.name: (
            ast.get_docstring(node) or "",
            any("slow" in ast.unparse(mark) for mark in node.decorator_list),
        )
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }


def test_every_promise_has_a_row():
    assert [number for number, _ in ROWS] == [f"R{k}" for k in range(1, 26)]


@pytest.mark.parametrize(("number", "row"), ROWS, ids=[number for number, _ in ROWS])
def test_the_tests_of_a_promise_exist_and_carry_its_number(number, row):
    cells = row.strip(" |").split(" | ")
    assert len(cells) == 4 and all(cell.strip() for cell in cells)
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", cells[1])
    assert named
    slow_ones = re.findall(r"`(test_\w+\.py)::(test_\w+)`", cells[1].partition("slow:")[2])
    for file, test in named:
        docstring, slow = read_tests(file)[test]
        assert re.search(rf"\b{number}\b", docstring), f"{file}::{test} does not carry {number}"
        if (file, test) in slow_ones:
            assert slow, f"{file}::{test} is not marked slow"
    assert any(pair not in slow_ones for pair in named), "CI runs none of them"
