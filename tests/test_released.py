"""R21: a data set and a finished run of the first released schemas, as version 0.1.0 left them, are read by every verb.

`fixtures/released-0.1.0.tar.gz`: `prepare folder --store jpeg` of 49 photos (one unreadable), and drpl trained on it;
its table of labels is of schema 1. `fixtures/schema1` is an unfinished run (tests/test_recorded.py).
"""

import json
import tarfile
from pathlib import Path

import pyarrow.parquet
import pytest
from PIL import Image

from fastdrpl.checkpoint import list_checkpoints, verify_checkpoint
from fastdrpl.cli import main
from fastdrpl.errors import DataError
from fastdrpl.loaders.dataset import open_dataset
from fastdrpl.report.table import SCHEMA_VERSION, read_table

FIXTURES = Path(__file__).resolve().parent / "fixtures"


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    with tarfile.open(FIXTURES / "released-0.1.0.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_the_fixture_is_of_the_old_schemas(released):
    """R21: it would show nothing if it were not."""
    metadata = pyarrow.parquet.read_schema(released / "run" / "labels.parquet").metadata
    assert metadata[b"fastdrpl_schema"] == b"1"
    assert json.loads((released / "run" / "result.json").read_text())["schema"] == 1


def test_the_data_set_opens_and_every_file_verifies(released):
    """R21: prepared data."""
    data = open_dataset(released / "data", verify=True)
    assert data.class_names == ("blue", "red", "tan")
    assert sum(len(split) for split in data.splits.values()) == 49
    assert sum(int(split.valid.sum()) for split in data.splits.values()) == 48


def test_the_checkpoints_verify(released):
    """R21: checkpoints."""
    ends = list_checkpoints(released / "run" / "checkpoints")
    assert [verify_checkpoint(path)["fastdrpl"] for path in ends] == ["0.1.0"] * 3


def test_every_verb_reads_the_run(released, tmp_path, capsys):
    """R21: status, the summary of `train`, detect, predict."""
    run, data = str(released / "run"), str(released / "data")
    assert main(["status", run]) == 0
    assert main(["train", "--config", f"{run}/config.toml", "--run", run, "--data", data]) == 0
    said = capsys.readouterr().out
    assert "labels look wrong" in said and "red/5.png" in said
    assert main(["detect", run]) == 0
    assert "semi2" in capsys.readouterr().out
    Image.new("RGB", (12, 12), (40, 40, 200)).save(tmp_path / "x.png")
    assert main(["predict", run, str(tmp_path / "x.png")]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "file,class,probability"


def test_a_new_run_takes_the_old_data_set(released, tmp_path):
    """R21: it is trained on as ever."""
    words = [
        *(
            "train",
            "folder",
            "--data",
            str(released / "data"),
            "--run",
            str(tmp_path / "run"),
            "--method",
            "ce",
        ),
        *(
            "--model.name",
            "preact_resnet18",
            "--model.width",
            "1",
            "--augment.size",
            "12",
            "--batch_size",
            "13",
        ),
        *("--ce.schedule.epochs", "1", "--ce.schedule.milestones", "2", "--epochs_scale", "0.5"),
        *("--engine.threads", "1"),
    ]
    assert main(words) in (0, 5)
    assert (tmp_path / "run" / "noise.npz").exists()


def test_a_later_table_names_its_schema(released, tmp_path):
    """R21: what a later version wrote is refused with that said."""
    table = pyarrow.parquet.read_table(released / "run" / "labels.parquet")
    later = table.replace_schema_metadata({"fastdrpl_schema": str(SCHEMA_VERSION + 1)})
    pyarrow.parquet.write_table(later, tmp_path / "labels.parquet")
    with pytest.raises(DataError, match=f"of schema {SCHEMA_VERSION + 1}"):
        read_table(tmp_path / "labels.parquet")
