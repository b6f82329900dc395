"""`fastdrpl export`: tables and the card as others read them, and what is refused without a trace."""

import csv
import errno
import os
import shutil

import numpy as np
import pandas
import pytest
from exported_runs import NAMES, make_data, make_finished_run
from need import need

from fastdrpl.cli import main
from fastdrpl.errors import UserError
from fastdrpl.exports import verb
from fastdrpl.exports.places import new_folder
from fastdrpl.loaders import extras
from fastdrpl.loaders.dataset import open_dataset
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.report.table import read_table


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run and, beside it, its data."""
    base = tmp_path_factory.mktemp("made")
    return make_finished_run(base / "run", make_data(base))


@pytest.fixture
def run(made, tmp_path):
    """A copy that may be spoilt."""
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files_in(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_the_csv_is_the_table(made, tmp_path):
    assert main(["export", str(made), "--to", "csv", "--out", str(tmp_path / "deep" / "t.csv")]) == 0
    rows, table = read_csv(tmp_path / "deep" / "t.csv"), read_table(made / "labels.parquet")
    assert list(rows[0]) == table.column_names
    for row, wanted in zip(rows, table.to_pylist(), strict=True):
        for name, value in wanted.items():
            if isinstance(value, bool):
                assert row[name] == str(value).lower()
            elif isinstance(value, float):
                assert float(row[name]) == pytest.approx(value, rel=1e-6)
            else:
                assert row[name] == str(value)
    assert {row["given_name"] for row in rows} == set(NAMES)
    assert all("a, " in row["file"] for row in rows)


def test_cleanlab_trains_without_what_its_table_calls_an_issue(made, tmp_path):
    need("cleanlab")
    from cleanlab import Datalab
    from cleanlab.classification import CleanLearning
    from sklearn.linear_model import LogisticRegression

    out = tmp_path / "issues.csv"
    assert main(["export", str(made), "--format", "cleanlab", "--out", str(out)]) == 0
    issues, table = pandas.read_csv(out), read_table(made / "labels.parquet").to_pandas()
    assert issues["is_label_issue"].dtype == bool
    assert issues["is_label_issue"].tolist() == (~table["labelled"]).tolist()
    assert issues["label_score"].between(0, 1).all()
    assert issues["label_score"].rank().tolist() == table["rank"].rank().tolist()  # low = likely wrong
    number = {name: k for k, name in enumerate(NAMES)}
    given = issues["given_label"].map(number)
    assert given.tolist() == table["given"].tolist()
    assert issues["predicted_label"].map(number).tolist() == table["suggested"].tolist()

    class Watched(LogisticRegression):
        def fit(self, x, y, sample_weight=None):
            seen.append(x[:, 0].tolist())
            return super().fit(x, y)

    seen: list[list[float]] = []
    features = np.arange(len(issues), dtype=float)[:, None]
    learner = CleanLearning(Watched())
    learner.fit(features, given.to_numpy(), label_issues=issues.assign(given_label=given))
    assert seen == [np.flatnonzero(table["labelled"]).tolist()]
    # the names are those of cleanlab's own table
    probabilities = np.eye(3)[table["suggested"]] * 0.8 + 0.2 / 3
    lab = Datalab({"label": table["given_name"].tolist()}, label_name="label", verbosity=0)
    lab.find_issues(pred_probs=probabilities, issue_types={"label": {}})
    assert issues.columns.tolist() == ["index", "file", *lab.get_issues("label").columns]


def test_the_table_of_cleanlab_gives_labels_to_train_on(made, tmp_path):
    """What is exported, `--noise.file` reads."""
    from fastdrpl.label_files import Rows, is_foreign, read_labels
    from fastdrpl.labels import load_labels

    assert main(["export", str(made), "--to", "cleanlab", "--out", str(tmp_path / "issues.csv")]) == 0
    labels = load_labels(made / "noise.npz")
    rows = Rows(
        truth=labels.truth,
        given=labels.given,
        source_row=labels.source_row,
        total=60,
        class_names=labels.class_names,
        ids=open_dataset(made.parent / "data").ids("train"),
    )
    assert is_foreign(tmp_path / "issues.csv")
    read = read_labels(tmp_path / "issues.csv", "predicted_label", rows)
    assert read.given.tolist() == read_table(made / "labels.parquet")["suggested"].to_pylist()


def test_the_card_says_what_the_run_says(made, tmp_path):
    import hashlib

    assert main(["export", str(made), "--to", "card", "--out", str(tmp_path / "card.md")]) == 0
    text = (tmp_path / "card.md").read_text(encoding="utf-8")
    table = read_table(made / "labels.parquet")
    suspects = sum(not labelled for labelled in table["labelled"].to_pylist())
    assert f"{suspects} of {len(table)} labels look wrong" in text
    digest = hashlib.sha256((made / "export" / "model.safetensors").read_bytes()).hexdigest()
    for part in (
        "80.00%",
        "81.00%",
        "temperature 2, fitted to 70 test labels",
        "0.200 before",
        digest,
        "c" * 64,
    ):
        assert part in text
    assert "same hands" in text  # the test labels of a folder are nobody's
    assert "<script" not in text and "&lt;script" in text
    assert r"Bär \| 熊" in text
    rows = [line for line in text.splitlines() if line.startswith("| semi2")]
    assert rows == ["| semi2 | 3 | 40 | 16 | 0.900 | 0.950 | - |"]


def test_the_card_that_a_run_ends_with_is_renewed(run, tmp_path):
    card = run / "export" / "card.md"
    fresh = card.read_text(encoding="utf-8")
    card.write_text("of an older version")
    assert main(["export", str(run), "--to", "card"]) == 0
    assert card.read_text(encoding="utf-8") == fresh
    (tmp_path / "card.md").write_text("mine")  # anywhere else it is somebody's
    assert main(["export", str(run), "--to", "card", "--out", str(tmp_path / "card.md")]) == 2
    assert (tmp_path / "card.md").read_text() == "mine"


def test_several_at_once_go_into_the_run_or_a_folder(run, tmp_path, capsys):
    assert main(["export", str(run), "--to", "csv", "cleanlab", "card"]) == 0
    assert {"labels.csv", "cleanlab.csv", "card.md"} <= files_in(run / "export")
    said = capsys.readouterr().err
    assert str(run / "export" / "cleanlab.csv") in said
    assert main(["export", str(run), "--to", "csv", "cleanlab", "--out", str(tmp_path / "all")]) == 0
    assert files_in(tmp_path / "all") == {"labels.csv", "cleanlab.csv"}


def test_what_is_there_is_replaced_only_on_request(run, tmp_path, capsys):
    out = tmp_path / "out.csv"
    out.write_text("mine")
    assert main(["export", str(run), "--to", "csv", "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main(["export", str(run), "--to", "csv", "--out", str(out), "--overwrite"]) == 0
    assert out.read_text().startswith('"index"')
    # one place that is taken refuses all
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "cleanlab.csv").write_text("mine")
    assert main(["export", str(run), "--to", "csv", "cleanlab", "--out", str(tmp_path / "all")]) == 2
    assert files_in(tmp_path / "all") == {"cleanlab.csv"}


def test_a_folder_of_somebody_is_never_replaced(run, tmp_path, capsys):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    words = ["export", str(run), "--to", "huggingface", "--out", str(home), "--overwrite"]
    assert main(words) == 2
    assert "not made by" in capsys.readouterr().err
    assert files_in(home) == {"thesis.tex"}
    assert main(["export", str(run), "--to", "csv", "--out", str(home), "--overwrite"]) == 2
    words[-2] = str(tmp_path / "set")
    assert main(words) == 0
    (tmp_path / "set" / "README.md").write_text("older")
    assert main(words) == 0
    assert "older" not in (tmp_path / "set" / "README.md").read_text()
    assert not [name for name in files_in(tmp_path) if ".tmp" in name]


@pytest.mark.parametrize("to", sorted(verb.TARGETS))
def test_a_run_that_is_not_finished_exports_nothing(run, tmp_path, capsys, to):
    (run / "result.json").unlink()
    before = files_in(tmp_path)
    assert main(["export", str(run), "--to", to, "--out", str(tmp_path / "out.csv")]) == 2
    said = capsys.readouterr().err
    assert "not finished" in said and "fastdrpl status" in said and "Traceback" not in said
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("to", ["huggingface", "fiftyone"])
def test_data_that_moved_are_asked_for(run, made, tmp_path, capsys, to):
    manifest = (run / "manifest.json").read_text()
    (run / "manifest.json").write_text(manifest.replace(str(made.parent / "data"), str(tmp_path / "gone")))
    words = ["export", str(run), "--to", to, "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "gone" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    prepare(PrepareConfig(kind="digits", out=other / "digits"))
    assert main([*words, "--data", str(other / "digits")]) == 3
    assert "--data" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words, "--data", str(made.parent / "data")]) == 0


def test_one_target_that_cannot_be_made_refuses_all(run, made, tmp_path, monkeypatch, capsys):
    manifest, before = (run / "manifest.json").read_text(), files_in(run)
    words = ["export", str(run), "--to", "csv"]
    (run / "manifest.json").write_text(manifest.replace(str(made.parent / "data"), str(tmp_path / "gone")))
    assert main([*words, "huggingface"]) == 2
    monkeypatch.setattr(extras, "require", lambda module: None)
    assert main([*words, "onnx", "--data", str(tmp_path / "gone")]) == 2  # it was named
    monkeypatch.undo()
    (run / "manifest.json").write_text(manifest)
    capsys.readouterr()
    monkeypatch.setattr(extras.importlib, "import_module", _without_onnx(extras.importlib.import_module))
    assert main([*words, "huggingface", "onnx"]) == 2
    assert "onnx is not installed" in capsys.readouterr().err
    monkeypatch.undo()
    (run / "export" / "model.safetensors").write_bytes(b"cut")
    assert main([*words, "fiftyone"]) == 3
    assert files_in(run) == before


def test_a_folder_is_back_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    out, rename = tmp_path / "set", os.rename

    def write(text):
        with new_folder(out, {}) as folder:
            (folder / "file").write_text(text)

    write("older")

    def fail(source, place):
        if "-new-" in str(source):
            raise OSError(errno.EIO, "the disk is gone")
        rename(source, place)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(UserError, match=r"disk is gone|Input/output"):
        write("newer")
    assert files_in(tmp_path) == {"set", "set/file", "set/fastdrpl.json"}
    assert (out / "file").read_text() == "older"


def test_a_missing_extra_is_named_with_the_line_that_installs_it(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(extras.importlib, "import_module", _without_onnx(extras.importlib.import_module))
    assert main(["export", str(run), "--to", "onnx", "--out", str(tmp_path / "m.onnx")]) == 2
    said = capsys.readouterr().err
    assert "onnx is not installed" in said and "pip install 'onnx" in said
    assert not (tmp_path / "m.onnx").exists()


def _without_onnx(load):
    def find(name, *rest):
        if name == "onnx":
            raise ModuleNotFoundError("No module named 'onnx'", name="onnx")
        return load(name, *rest)

    return find


def test_a_place_that_cannot_be_written_is_one_clear_error(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    before = files_in(tmp_path)
    for to, out in (("csv", "file/x.csv"), ("huggingface", "file/x"), ("csv", "x.txt")):
        assert main(["export", str(run), "--to", to, "--out", str(tmp_path / out)]) == 2
        said = capsys.readouterr().err
        assert "error:" in said and "Traceback" not in said
    assert files_in(tmp_path) == before
