"""Whether new rows are slower than the stored ones: `python bench/check.py NEW.jsonl [STORED.jsonl]`.

Rows belong together that measured the same thing on the same processor with as many threads; the last of each counts.
More than 10 % slower (p50) is a failure, exit code 1. Rows that have no partner are named. On a machine that does other
work meanwhile this says little.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout needs no installation

from bench.rows import RESULTS

ALLOWED = 1.10


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two rows comparable."""
    hardware = row["hardware"]
    return (
        *(row["what"], tuple(row["shape"]), row["dtype"], row["backend"], row["threads"]),
        *(hardware["processor"], hardware["accelerator"]),
    )


def read_rows(path: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The last row of each kind in a file of rows."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {key_of(row): row for row in rows}


def compare(new: dict[tuple[Any, ...], dict[str, Any]], stored: dict[tuple[Any, ...], dict[str, Any]]) -> int:
    """Print a line for each new row; how many are slower than allowed."""
    slower = 0
    for key, row in new.items():
        what = f"{row['what']}, {row['backend']}, {row['shape']}"
        if key not in stored:
            print(f"no stored row: {what}")
            continue
        factor = row["p50"] / stored[key]["p50"]
        slower += factor > ALLOWED
        print(f"{factor:6.2f} x stored{'  SLOWER' if factor > ALLOWED else ''}: {what}")
    return slower


if __name__ == "__main__":
    new_file = Path(sys.argv[1])
    stored_file = Path(sys.argv[2]) if len(sys.argv) > 2 else RESULTS / new_file.name
    sys.exit(1 if compare(read_rows(new_file), read_rows(stored_file)) else 0)
