"""`fastdrpl detect`: what it finds in run folders, what it refuses, what it says is missing, and its exit code."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
from made_runs import make_labels, make_run, make_stage
from sklearn import metrics

from fastdrpl.cli import main
from fastdrpl.detect.collecting import collect
from fastdrpl.errors import DataError

STAGES = ("relabel", "semi1", "semi2")


@pytest.fixture
def labels():
    return make_labels()


@pytest.fixture
def drpl(tmp_path, labels):
    """Three stages; the second one's split was kept, every epoch of the first was."""
    stages = {name: make_stage(labels, k, apart=2 + k, tracked=k == 0) for k, name in enumerate(STAGES)}
    return make_run(tmp_path / "drpl", labels, stages, decides="semi1")


def detectors(*words) -> list[dict]:
    """What is printed as JSON for runs that all must be whole."""
    code, out = said(*words, "--format", "json")
    assert code == 0
    return [row for group in out["groups"] for row in group["detectors"]]


def said(*words):
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out)
        code = main(["detect", *map(str, words)])
    text = out.getvalue()
    return code, json.loads(text) if "json" in words else text


def test_every_figure_is_that_of_sklearn(drpl, labels):
    noisy = labels.is_noisy.noisy
    rows = detectors(drpl, "--k", 7, 100)
    assert len(rows) == 7
    for row in rows:
        place = drpl / "stages" / row["stage"]
        if row["detector"].startswith("mean loss"):
            score = np.mean([np.load(path) for path in sorted((place / "losses").glob("*"))], axis=0)
        else:
            score = np.load(place / "losses.npy")
        assert row["auc"] == pytest.approx(metrics.roc_auc_score(noisy, score))
        assert row["average_precision"] == pytest.approx(metrics.average_precision_score(noisy, score))
        first = np.argsort(-score, kind="stable")
        assert row["precision_at_noisy"] == pytest.approx(noisy[first[: noisy.sum()]].mean())
        assert row["precision_at"] == {k: pytest.approx(noisy[first[: int(k)]].mean()) for k in ("7", "100")}
        if row["detector"] != "detection":
            assert (row["labelled"], row["tpr"], row["fpr"]) == (None, None, None)
            continue
        kept = np.load(place / "detection.npz")["labelled"]
        (right, lost), (wrong, gone) = metrics.confusion_matrix(~noisy, kept, labels=[True, False])
        assert row["tpr"] == pytest.approx(right / (right + lost))
        assert row["fpr"] == pytest.approx(wrong / (wrong + gone))
        assert row["labelled"] == right + wrong


def test_the_detectors_of_each_stage_in_order_and_the_split_that_decided(drpl):
    rows = detectors(drpl)
    assert [(row["stage"], row["detector"]) for row in rows] == [
        ("relabel", "last loss"),
        ("relabel", "mean loss of 3 epochs"),
        ("relabel", "detection"),
        ("semi1", "last loss"),
        ("semi1", "detection"),
        ("semi2", "last loss"),
        ("semi2", "detection"),
    ]
    assert [row["stage"] for row in rows if row["final"]] == ["semi1"]
    assert {row["method"] for row in rows} == {"drpl"}


def test_the_name_of_a_detector_is_what_its_evidence_says(drpl):
    about = drpl / "stages" / "relabel" / "detection.json"
    about.write_text(json.dumps({"detector": "beta mixture"}))
    assert [row["detector"] for row in detectors(drpl)][2] == "beta mixture"


def test_small_loss_is_read_after_the_epoch_asked_for(tmp_path, labels):
    stage = make_stage(labels, 5, apart=1, epochs=45, tracked=True)
    run = make_run(tmp_path / "ce", labels, {"ce": stage}, method="ce")
    found = {row["detector"]: row for row in detectors(run)}
    assert list(found) == ["last loss", "mean loss of 45 epochs", "loss after epoch 40", "detection"]
    noisy = labels.is_noisy.noisy
    wanted = metrics.roc_auc_score(noisy, stage.tracked[:, 39])
    assert found["loss after epoch 40"]["auc"] == pytest.approx(wanted)
    assert "loss after epoch 2" in [row["detector"] for row in detectors(run, "--epoch", 2)]
    assert not any("after epoch" in row["detector"] for row in detectors(run, "--epoch", 46))


def test_small_loss_splits_only_where_it_is_told_the_noise_rate(drpl, labels):
    rows = [row for row in detectors(drpl, "--noise_rate", 0.4) if "loss" in row["detector"]]
    assert {row["labelled"] for row in rows} == {round(0.6 * len(labels))}
    losses = np.load(drpl / "stages" / "semi2" / "losses.npy")
    kept = losses <= np.sort(losses)[round(0.6 * len(labels)) - 1]
    assert rows[-1]["tpr"] == pytest.approx(kept[~labels.is_noisy.noisy].mean())


def test_runs_over_other_labels_are_another_group(tmp_path, drpl, labels):
    other = make_labels(7, samples=200)
    runs = [
        make_run(tmp_path / "b", other, {"ce": make_stage(other, 1)}, method="ce"),
        drpl,
        make_run(tmp_path / "c", labels, {"ce": make_stage(labels, 2)}, method="ce"),
    ]
    code, out = said(*runs, "--format", "json")
    assert code == 0
    assert [group["labels"] for group in out["groups"]] == [other.fingerprint, labels.fingerprint]
    assert [group["samples"] for group in out["groups"]] == [200, 300]
    assert [dict.fromkeys(row["run"] for row in group["detectors"]) for group in out["groups"]] == [
        {str(runs[0]): None},
        {str(drpl): None, str(runs[2]): None},
    ]
    assert [group["noisy"] for group in out["groups"]] == [
        int(found.is_noisy.noisy.sum()) for found in (other, labels)
    ]


def test_a_run_named_twice_is_shown_once(drpl):
    assert len(detectors(drpl, drpl, drpl / ".." / "drpl")) == 7


def test_samples_of_unknown_truth_are_left_out_and_that_is_said(tmp_path, capsys):
    labels = make_labels(3, unknown=0.2)
    run = make_run(tmp_path / "run", labels, {"ce": make_stage(labels, 1)}, method="ce")
    known = labels.is_noisy.known
    row = detectors(run)[0]
    wanted = metrics.roc_auc_score(labels.is_noisy.noisy[known], np.load(run / "stages/ce/losses.npy")[known])
    assert row["auc"] == pytest.approx(wanted)
    assert f"{300 - known.sum()} of 300 samples are of unknown truth" in capsys.readouterr().err


def test_without_wrong_labels_there_is_nothing_to_find(tmp_path):
    labels = make_labels(rate=0.0)
    run = make_run(tmp_path / "run", labels, {"ce": make_stage(labels, 1)}, method="ce")
    row = detectors(run)[-1]
    assert (row["auc"], row["average_precision"], row["precision_at_noisy"], row["fpr"]) == (None,) * 4
    assert row["tpr"] == pytest.approx(row["labelled"] / 300)
    code, text = said(run, "--out", tmp_path / "out")
    assert code == 0 and "0.0% of 300 labels are wrong" in text
    assert (tmp_path / "out" / "roc.png").exists()


# --- what is refused or missing ---


def test_a_run_of_unknown_truth_is_refused_by_name_and_the_others_are_shown(tmp_path, drpl, capsys):
    unknown = make_labels(unknown=1.0)
    mine = make_run(tmp_path / "mine", unknown, {"ce": make_stage(unknown, 1)}, method="ce")
    code, out = said(mine, drpl, "--format", "json")
    assert code == 2
    assert {row["run"] for group in out["groups"] for row in group["detectors"]} == {str(drpl)}
    assert [problem["run"] for problem in out["problems"]] == [str(mine)]
    assert "the right labels are not known" in out["problems"][0]["what"]
    assert f"error: {mine}: the right labels are not known" in capsys.readouterr().err


def test_an_unfinished_run_shows_what_it_has(tmp_path, labels, capsys):
    stages = {name: make_stage(labels, k) for k, name in enumerate(("z-first", "a-second"))}
    run = make_run(tmp_path / "run", labels, stages, finished=False)
    code, out = said(run, "--format", "json")
    assert code == 2
    rows = out["groups"][0]["detectors"]
    assert [row["stage"] for row in rows] == ["z-first", "z-first", "a-second", "a-second"]
    assert not any(row["final"] for row in rows)
    error = capsys.readouterr().err
    assert "not finished" in error and f"--config {run / 'config.toml'}" in error


def damage_losses(run):
    path = run / "stages/semi1/losses.npy"
    path.write_bytes(path.read_bytes()[:-40])


def damage_with_nan(run):
    path = run / "stages/semi1/losses.npy"
    np.save(path, np.full(300, np.nan, np.float32))


def damage_with_other_samples(run):
    np.save(run / "stages/semi1/losses.npy", np.zeros(299, np.float32))


def damage_split(run):
    np.savez(run / "stages/semi1/detection.npz", doubt=np.zeros(300))


def damage_split_type(run):
    np.savez(run / "stages/semi1/detection.npz", doubt=np.zeros(300), labelled=np.array([None] * 300))


def damage_zip(run):
    path = run / "stages/semi1/detection.npz"
    path.write_bytes(path.read_bytes()[:200])


def lose_split(run):
    (run / "stages/semi1/detection.npz").unlink()


def lose_losses(run):
    (run / "stages/semi2/losses.npy").unlink()


def lose_an_epoch(run):
    (run / "stages/relabel/losses/epoch-0002.npy").unlink()


def lose_the_table(run):
    (run / "labels.parquet").unlink()


def damage_the_table(run):
    (run / "labels.parquet").write_bytes(b"PAR1")


DAMAGE = {
    damage_losses: ("losses.npy is damaged", 6),
    damage_with_nan: ("300 of 300 values are nan", 6),
    damage_with_other_samples: ("(299,)", 6),
    damage_split: ("no array 'labelled'", 6),
    damage_split_type: ("detection.npz is damaged", 6),
    damage_zip: ("detection.npz is damaged", 6),
    lose_split: ("detection.npz is missing", 6),
    lose_an_epoch: ("1 of 3 epochs are missing (2)", 6),
    lose_the_table: ("labels.parquet", 7),
    damage_the_table: ("labels.parquet", 7),
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damage_is_named_and_all_else_is_shown(drpl, tmp_path, labels, damage, capsys):
    text, left = DAMAGE[damage]
    other = make_run(tmp_path / "ce", labels, {"ce": make_stage(labels, 9)}, method="ce")
    damage(drpl)
    code, out = said(drpl, other, "--format", "json")
    assert code == 3
    rows = out["groups"][0]["detectors"]
    assert len([row for row in rows if row["run"] == str(drpl)]) == left
    assert len([row for row in rows if row["run"] == str(other)]) == 2
    error = capsys.readouterr().err
    assert f"error: {drpl}: " in error and text in error
    assert {problem["exit_code"] for problem in out["problems"]} == {3}


def test_a_stage_without_losses_needs_none(drpl, labels):
    """A detector may read something else; then the table of labels has no column of losses for the stage."""
    lose_losses(drpl)
    assert [row["detector"] for row in detectors(drpl)][-1] == "detection"
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(drpl / "labels.parquet")
    losses = table["loss_last"].to_numpy()
    pyarrow.parquet.write_table(table.append_column("loss_semi2", [losses]), drpl / "labels.parquet")
    code, out = said(drpl, "--format", "json")
    assert code == 3 and "losses.npy is missing" in out["problems"][0]["what"]


def test_a_table_that_is_of_none_of_the_splits_is_named(drpl):
    splits = {name: np.load(drpl / "stages" / name / "detection.npz") for name in STAGES}
    semi1 = splits["semi1"]
    np.savez(drpl / "stages/semi1/detection.npz", **{**semi1, "labelled": ~semi1["labelled"]})
    code, out = said(drpl, "--format", "json")
    assert code == 3
    assert "none of its detections" in out["problems"][0]["what"]
    assert not any(row["final"] for row in out["groups"][0]["detectors"])


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"method": "ce", "recipe": "x", "stages": 3}', "nothing",
                '{"method": "ce", "recipe": "x", "stages": [{"name": "../ce", "epochs": 1, "detection": null}]}'],
)  # fmt: skip
def test_a_broken_result_is_named(drpl, content, capsys):
    (drpl / "result.json").write_text(content)
    code, out = said(drpl, "--format", "json")
    assert code == 3 and out["groups"] == []
    assert str(drpl) in capsys.readouterr().err


def test_what_is_no_run_is_named(tmp_path, drpl):
    (tmp_path / "empty").mkdir()
    broken = shutil.copytree(drpl, tmp_path / "broken")
    (broken / "noise.npz").write_bytes(b"")
    gone = shutil.copytree(drpl, tmp_path / "gone")
    (gone / "noise.npz").unlink()
    code, out = said(tmp_path / "empty", tmp_path / "nowhere", broken, gone, drpl, "--format", "json")
    assert code == 3
    assert [(problem["run"].rpartition("/")[2], problem["exit_code"]) for problem in out["problems"]] == [
        ("empty", 2),
        ("nowhere", 2),
        ("broken", 3),
        ("gone", 2),
    ]
    assert len(out["groups"][0]["detectors"]) == 7


def test_a_run_in_which_nothing_detects_says_so(tmp_path, labels):
    run = make_run(tmp_path / "run", labels, {"ce": make_stage(labels, 1)}, method="ce")
    result = json.loads((run / "result.json").read_text())
    result["stages"][0]["detection"] = None
    (run / "result.json").write_text(json.dumps(result))
    shutil.rmtree(run / "stages")
    code, out = said(run, "--format", "json")
    assert code == 2 and "no stage of this run looks" in out["problems"][0]["what"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "no run is given"),
        (["x", "--k", "3", "0"], "--k 0"),
        (["x", "--epoch", "0"], "--epoch 0"),
        (["x", "--noise_rate", "nan"], "--noise_rate nan"),
        (["x", "--noise_rate", "1.2"], "--noise_rate 1.2"),
    ],
)
def test_requests_that_cannot_be_are_refused(words, text, capsys):
    assert main(["detect", *words]) == 2
    assert text in capsys.readouterr().err


# --- what is printed and written ---


def test_nothing_is_written_without_out(drpl, tmp_path, monkeypatch):
    def everything():
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    monkeypatch.chdir(tmp_path)
    before = everything()
    said(drpl)
    assert everything() == before


def test_out_holds_the_same_figures_in_each_form(drpl, tmp_path):
    out = tmp_path / "new" / "out"
    code, printed = said(drpl, "--out", out, "--k", 9, "--format", "json")
    assert code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        *("detect.csv", "detect.json", "roc.csv", "roc.png", "roc.svg")
    ]
    assert json.loads((out / "detect.json").read_text()) == printed
    _, text = said(drpl, "--k", 9, "--format", "csv")
    assert (out / "detect.csv").read_text() == text
    lines = list(csv.DictReader(io.StringIO(text)))
    rows = printed["groups"][0]["detectors"]
    assert [line["detector"] for line in lines] == [row["detector"] for row in rows]
    for line, row in zip(lines, rows, strict=True):
        assert float(line["auc"]) == pytest.approx(row["auc"], abs=1e-6)
        assert float(line["precision_at_9"]) == pytest.approx(row["precision_at"]["9"], abs=1e-6)
        assert line["tpr"] == ("" if row["tpr"] is None else f"{row['tpr']:.6f}")
        assert line["final"] == ("yes" if row["final"] else "no")


def test_out_that_cannot_be_a_folder_is_refused_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["detect", str(tmp_path / "nowhere"), "--out", str(tmp_path / "file")]) == 2
    assert "cannot write file" in capsys.readouterr().err


def test_collecting_raises_nothing_and_names_the_damage(drpl):
    damage_losses(drpl)
    found = collect(drpl)
    assert [type(problem) for problem in found.problems] == [DataError]
    assert len(found.run.scores) == 6
