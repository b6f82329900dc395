"""Folders of images with labels: loaded by the library that they are for, pixels compared to the bit."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from exported_runs import NAMES, make_data, make_finished_run
from need import need
from PIL import Image

from fastdrpl.cli import main
from fastdrpl.exports import huggingface as written
from fastdrpl.loaders.decode import decode_row, map_file
from fastdrpl.report.table import read_table


@pytest.fixture(scope="module", params=["raw", "jpeg"])
def made(request, tmp_path_factory):
    """A finished run, its data, and the pixels of its samples as the data hold them."""
    base = tmp_path_factory.mktemp(request.param)
    data = make_data(base, request.param)
    run = make_finished_run(base / "run", data)
    split, table = data.split("train"), read_table(run / "labels.parquet")
    file = map_file(split)
    return run, table, [decode_row(split, file, row) for row in table["row"].to_pylist()]


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_datasets_loads_the_folder_offline(made, tmp_path, monkeypatch, no_network):
    datasets = need("datasets")
    datasets.disable_progress_bars()
    run, table, pixels = made
    monkeypatch.setattr(written, "_SHARD", 12 * 12 * 3 * 20)  # several shards of several groups
    monkeypatch.setattr(written, "_GROUP", 12 * 12 * 3 * 7)
    out = tmp_path / "set"
    assert main(["export", str(run), "--to", "huggingface", "--out", str(out)]) == 0
    assert len(list((out / "data").iterdir())) == 3
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    train = loaded["train"]
    assert len(train) == len(table)
    assert [np.asarray(row["image"]).tobytes() for row in train] == [image.tobytes() for image in pixels]
    for column in ("label", "suggested_label", "true_label"):
        assert train.features[column].names == list(NAMES)
    wanted = table.to_pydict()
    for ours, theirs in (("label", "given"), ("suggested_label", "suggested"), ("true_label", "truth")):
        assert train[ours][:] == wanted[theirs]
    for name in ("rank", "score", "p_suggested", "p_noisy", "index", "row", "file", "is_noisy"):
        assert train[name][:] == wanted[name]
    assert train["is_suspect"][:] == [not labelled for labelled in wanted["labelled"]]
    again = train.filter(lambda row: not row["is_suspect"])
    assert len(again) == sum(wanted["labelled"])


def test_unknown_and_outside_truth(made, tmp_path):
    """Where nothing is known there is no column; an image of no class has no number, but is noisy."""
    import pyarrow

    _, table, _ = made
    table = table.set_column(
        table.column_names.index("truth"), "truth", pyarrow.array([-2, None, *[1] * (len(table) - 2)])
    )
    columns = written._columns(table)
    assert columns["true_label"].to_pylist()[:3] == [None, None, 1]
    bare = written._columns(table.drop_columns(["truth", "truth_name", "is_noisy"]))
    assert not {"true_label", "is_noisy"} & set(bare.column_names)


def test_the_folder_for_fiftyone_is_what_its_importer_reads(made, tmp_path):
    run, table, pixels = made
    out = tmp_path / "fo"
    assert main(["export", str(run), "--to", "fiftyone", "--out", str(out)]) == 0
    about = json.loads((out / "metadata.json").read_text(encoding="utf-8"))
    assert "version" not in about  # so the importer takes it for plain samples
    assert about["media_type"] == "image"
    assert about["info"]["classes"] == {"ground_truth": list(NAMES), "prediction": list(NAMES)}
    samples = json.loads((out / "samples.json").read_text(encoding="utf-8"))["samples"]
    for sample, row, image in zip(samples, table.to_pylist(), pixels, strict=True):
        assert np.array_equal(np.asarray(Image.open(out / sample["filepath"])), image)
        assert sample["ground_truth"] == {"_cls": "Classification", "label": row["given_name"]}
        assert sample["prediction"]["label"] == row["suggested_name"]
        assert sample["prediction"]["confidence"] == row["p_suggested"]
        assert sample["mistakenness"] == row["score"]
        assert ("suspect" in sample["tags"]) == (not row["labelled"])
        assert sample["truth"]["label"] == row["truth_name"]
        assert sample["file"] == row["file"] and sample["rank"] == row["rank"]
    assert len({sample["filepath"] for sample in samples}) == len(samples)


_IMPORT = """
import json, sys
from fiftyone.utils.data.importers import FiftyOneDatasetImporter
importer = FiftyOneDatasetImporter(sys.argv[1])
assert importer._is_legacy_format_data()
with importer._to_legacy_importer() as samples:
    read = [
        [s.filepath, s.ground_truth.label, s.prediction.confidence, s.mistakenness, s.tags] for s in samples
    ]
print(json.dumps(read))
"""


def test_the_importer_of_fiftyone_reads_the_folder(made, tmp_path):
    """Its own code up to its samples; what puts these into a database needs a MongoDB server, and is not run."""
    python = os.environ.get("FASTDRPL_FIFTYONE_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import fiftyone"], capture_output=True).returncode:
        pytest.skip("fiftyone is not installed: FASTDRPL_FIFTYONE_PYTHON names a python that has it")
    run, table, _ = made
    out = tmp_path / "fo"
    assert main(["export", str(run), "--to", "fiftyone", "--out", str(out)]) == 0
    done = subprocess.run([python, "-c", _IMPORT, str(out)], capture_output=True, text=True, check=True)
    read = json.loads(done.stdout.splitlines()[-1])
    for (path, label, confidence, score, tags), row in zip(read, table.to_pylist(), strict=True):
        assert os.path.isfile(path)
        assert (label, confidence, score) == (row["given_name"], row["p_suggested"], row["score"])
        assert tags == ["train", *([] if row["labelled"] else ["suspect"])]


def test_damaged_data_leave_nothing_behind(tmp_path, capsys):
    data = make_data(tmp_path, "jpeg")
    run = make_finished_run(tmp_path / "run", data)
    split = data.split("train")
    with open(split.path, "r+b") as file:
        file.seek(int(split.offset[40]))
        file.write(b"\0" * int(split.nbytes[40]))
    for to in ("huggingface", "fiftyone"):
        assert main(["export", str(run), "--to", to, "--out", str(tmp_path / "out")]) == 3
        assert "row 40" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "data", "run"}
