"""A table read again: what makes it another source, and how quickly a large one opens."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from test_table import make_images, run, write

from fastdrpl.loaders.errors import UserError
from fastdrpl.loaders.sources.pictures import Target
from fastdrpl.loaders.sources.table import open_table


def test_folder_names_are_no_columns(tmp_path: Path) -> None:
    folder = tmp_path / "split=test" / "label=q"
    folder.mkdir(parents=True)
    source = write(folder / "t.parquet", {"path": make_images(folder, 4), "label": ["x", "y"] * 2})
    dataset = run(source, tmp_path / "out")
    assert dataset.class_names == ("x", "y") and not dataset.has("test")


def test_a_changed_image_or_table_is_another_source(tmp_path: Path) -> None:
    names = make_images(tmp_path, 6)
    source = write(tmp_path / "t.csv", {"path": names, "label": ["x", "y"] * 3})
    dataset = run(source, tmp_path / "out")
    assert run(source, tmp_path / "out").fingerprint == dataset.fingerprint
    os.utime(tmp_path / names[3], (1, 1))
    with pytest.raises(UserError, match="files differ"):
        run(source, tmp_path / "out")
    write(source, {"path": names, "label": ["y", "x"] * 3})
    with pytest.raises(UserError, match="files differ"):
        run(source, tmp_path / "out")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_large_table_opens_in_seconds(tmp_path: Path, kind: str) -> None:
    rows = 200_000
    columns: dict[str, list[Any]] = {
        "path": [f"folder/of/images/{row:08}.jpg" for row in range(rows)],
        "label": [row * 7919 % 1000 for row in range(rows)],
        "split": ["test" if row % 51 == 0 else "train" for row in range(rows)],
    }
    columns["path"][7] = "there.jpg"  # where none is, it is an error
    (tmp_path / "there.jpg").touch()
    source = write(tmp_path / f"t.{kind}", columns)
    began = time.perf_counter()
    opened = open_table(
        source, target=Target(8, "raw", 95), test_fraction=0.0, classes=None, workers=1, seed=1
    )
    took = time.perf_counter() - began
    assert len(opened.parts["train"].labels) + len(opened.parts["test"].labels) == rows
    assert opened.class_names == tuple(str(label) for label in range(1000))
    assert took < 10, took  # about 0.6 s on a quiet machine
