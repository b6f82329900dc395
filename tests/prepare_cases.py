"""Sources that the tests of prepare share, and what is looked at in a prepared folder."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def make_photos(folder: Path, count: int, *, classes: int = 2, size: int = 20) -> Path:
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"class{number % classes}" / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path, compress_level=0)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def flip_byte(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


KILLED = """
import sys
import tarfile
from pathlib import Path
sys.path.insert(0, {root!r})
from fastdrpl.loaders import prepare
prepare.SECONDS_BETWEEN_ENTRIES = 0.0
config = prepare.PrepareConfig(kind="folder", source=Path({source!r}), out=Path({out!r}), size=128,
                               store={store!r}, test_fraction=0.2, workers={workers})
if __name__ == "__main__":
    prepare.prepare(config)
"""


def find_children(parent: int) -> set[int]:
    try:
        return {int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()}
    except FileNotFoundError:
        return set()


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
