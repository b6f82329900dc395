"""Tables as Markdown, CSV and LaTeX, and every run as a line of cells.csv."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from fastdrpl.compare.facts import MEASURES, Run
from fastdrpl.compare.tables import Table
from fastdrpl.files import write_atomic

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "`": r"\textquotesingle{}",
    "±": r"$\pm$",
}


def write_tables(out: Path, name: str, tables: Sequence[Table], runs: Sequence[Run]) -> list[Path]:
    """Write tables.md, tables.csv, tables.tex and cells.csv into the folder of a grid: -> the paths."""
    texts = {
        "tables.md": markdown(name, tables),
        "tables.csv": comma_separated(tables),
        "tables.tex": latex(tables),
        "cells.csv": runs_as_csv(runs),
    }
    for file, text in texts.items():
        write_atomic(out / file, text.encode())
    return [out / file for file in texts]


def markdown(name: str, tables: Sequence[Table]) -> str:
    """One heading and one table each, with its notes below."""
    parts = [f"# {name}"]
    for table in tables:
        rows = [
            [f"**{cell}**" if (i, j) in table.bold else cell for j, cell in enumerate(row)]
            for i, row in enumerate(table.rows)
        ]
        aligned = ["---" if k < table.labels else "---:" for k in range(len(table.columns))]
        lines = [_pipes(table.columns), f"|{'|'.join(aligned)}|", *map(_pipes, rows)]
        parts += [f"## {table.title}", "\n".join(lines), *table.notes]
    return "\n\n".join(parts) + "\n"


def comma_separated(tables: Sequence[Table]) -> str:
    """The same layout: title, columns, rows and notes, an empty line after each table."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for table in tables:
        writer.writerow([table.title])
        writer.writerow(table.columns)
        writer.writerows(table.rows)
        writer.writerows([note] for note in table.notes)
        writer.writerow([])
    return text.getvalue()


def latex(tables: Sequence[Table]) -> str:
    """A `table` with a `tabular` in the manner of the package booktabs for each."""
    return "% needs \\usepackage{booktabs} and \\usepackage{textcomp}\n" + "\n".join(map(_tabular, tables))


def runs_as_csv(runs: Sequence[Run]) -> str:
    """A line for every run of the grid: names, state, figures as fractions and seconds, what was scaled."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ["data", "method", "noise", "seed", "state", "exit_code", *MEASURES, "scaled", "error"]
    writer.writerow(names)
    for run in runs:
        cell, state = run.cell, run.state
        figures = ["" if run.figures.get(m) is None else repr(run.figures[m]) for m in MEASURES]
        labels = [cell.data.label, cell.method.label, cell.noise.label, cell.seed]
        code = "" if state.code is None else state.code
        writer.writerow([*labels, state.kind, code, *figures, "; ".join(run.scaled), state.error])
    return text.getvalue()


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _escape(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _tabular(table: Table) -> str:
    rows = [
        " & ".join(
            f"\\textbf{{{_escape(cell)}}}" if (i, j) in table.bold else _escape(cell)
            for j, cell in enumerate(row)
        )
        for i, row in enumerate(table.rows)
    ]
    kinds = "l" * table.labels + "r" * (len(table.columns) - table.labels)
    lines = [
        "\\begin{table}",
        f"\\caption{{{_escape(table.title)}}}",
        f"\\begin{{tabular}}{{{kinds}}}",
        "\\toprule",
        " & ".join(map(_escape, table.columns)) + " \\\\",
        "\\midrule",
        *(f"{row} \\\\" for row in rows),
        "\\bottomrule",
        "\\end{tabular}",
        *(f"\\par\\footnotesize {_escape(note)}" for note in table.notes),
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"
