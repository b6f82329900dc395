"""The finished cells of a grid as rows, the paper's number beside ours. `python bench/table4_rows.py`.

It is told what `fastdrpl compare` was told: the grid (default: table4) and `--out`, if that was given. A run that has
its row already gets no second one. Rows go to bench/results/table4.jsonl or to `--rows`.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout needs no installation

from bench.rows import RESULTS, write_row
from fastdrpl.compare.cells import plan_cells
from fastdrpl.compare.facts import Run, read_runs
from fastdrpl.compare.grid import find_grid, read_grid
from fastdrpl.compare.published import accuracy
from fastdrpl.files import read_json
from fastdrpl.methods import METHODS
from fastdrpl.report.facts import run_hash


def write_rows(name: str, out: Path | None, rows: Path) -> tuple[int, int]:
    """Append what is new: -> (rows written, cells that are not finished)."""
    grid = read_grid(find_grid(name), known_methods=list(METHODS), out=out)
    runs = read_runs(grid.out, plan_cells(grid).cells)
    there = set()
    if rows.exists():
        there = {json.loads(line)["run"] for line in rows.read_text(encoding="utf-8").splitlines()}
    written = 0
    for run in runs:
        if run.state.kind == "done":
            written += _write(run, grid.out, rows, there)
    return written, sum(run.state.kind != "done" for run in runs)


def _write(run: Run, out: Path, rows: Path, there: set[str]) -> bool:
    cell, figures = run.cell, run.figures
    folder = cell.folder(out)
    result, manifest = read_json(folder / "result.json"), read_json(folder / "manifest.json")
    name = run_hash(result)
    if name in there:
        return False
    options = {key[6:]: value for key, value in cell.options.items() if key.startswith("noise.")}
    paper = None if run.scaled else accuracy(cell.data.recipe, cell.method.value, options)
    write_row(
        rows,
        what=f"{cell.data.label}, {cell.noise.label}",
        shape=(manifest["samples"],),
        dtype=manifest["machine"]["precision"],
        backend=cell.method.label,
        seconds=[figures["seconds"] or 0.0],
        warmup=0,
        threads=manifest["machine"]["threads"],
        run=name,
        seed=cell.seed,
        mode=manifest["machine"]["mode"],
        gpu=manifest["machine"]["gpu"],
        best=figures["best"],
        last=figures["last"],
        auc=figures["auc"],
        paper_best=None if paper is None else paper.value / 100,
        scaled=list(run.scaled),
    )
    return True


def main() -> None:
    """Write the rows and say how many."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("grid", nargs="?", default="table4")
    parser.add_argument("--out", type=Path, help="folder of the grid")
    parser.add_argument("--rows", type=Path, default=RESULTS / "table4.jsonl")
    words = parser.parse_args()
    written, unfinished = write_rows(words.grid, words.out, words.rows)
    print(f"{written} new rows in {words.rows}; {unfinished} cells are not finished")


if __name__ == "__main__":
    main()
