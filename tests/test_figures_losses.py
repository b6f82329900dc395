"""`fastdrpl figure losses`: the numbers are those of the files, whatever of them there is."""

import csv
import io
import json
from collections import Counter
from statistics import median

import numpy as np
import pytest
from made_runs import make_labels, make_run, make_stage
from PIL import Image
from scipy.stats import beta

from fastdrpl.cli import main
from fastdrpl.figures import loss_epochs, losses, posterior

GIVEN = 12  # epochs on given labels in the recipe of the made runs
ALL = sorted(
    f"{name}.{kind}" for name in ("losses", "loss_epochs", "posterior") for kind in ("csv", "png", "svg")
)


def draw(out, *runs) -> int:
    return main(["figure", "losses", *map(str, runs), "--out", str(out)])


def read(path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def unpainted(monkeypatch):
    """Numbers only: painting takes seconds."""
    for module in (losses, loss_epochs, posterior):
        monkeypatch.setattr(module, "render", lambda *words: {})


@pytest.fixture
def labels():
    return make_labels(samples=400, unknown=0.1)


@pytest.fixture
def run(tmp_path, labels):
    """A run that relabels, of which every epoch is there, and a stage of which only the end is."""
    stages = {
        "relabel": make_stage(labels, 0, epochs=20, tracked=True),
        "semi1": make_stage(labels, 1, epochs=4),
    }
    return make_run(tmp_path / "run", labels, stages)


@pytest.mark.usefixtures("unpainted")
def test_the_histograms_count_the_samples_of_each_kind(run, labels, tmp_path):
    assert draw(tmp_path / "out", run) == 0
    lines = read(tmp_path / "out" / "losses.csv")
    moments = list(dict.fromkeys((line["stage"], line["moment"], line["epoch"]) for line in lines))
    assert moments == [
        ("relabel", "before relabelling", "12"),
        ("relabel", "during relabelling", "16"),
        ("relabel", "after relabelling", "20"),
        ("semi1", "after semi1", ""),
    ]
    noisy, known = labels.is_noisy
    kind = np.where(~known, "unknown", np.where(noisy, "noisy", "clean"))
    for stage, moment, epoch in moments:
        name = f"losses/epoch-{int(epoch):04}.npy" if epoch else "losses.npy"
        values = np.load(run / "stages" / stage / name)
        own = [line for line in lines if line["moment"] == moment]
        for each in ("clean", "noisy", "unknown"):
            bins = [line for line in own if line["kind"] == each]
            ends = [float(line["low"]) for line in bins[1:]]
            expected = Counter(sum(loss >= end for end in ends) for loss in values[kind == each].tolist())
            counts = [int(line["count"]) for line in bins]
            assert sum(counts) == (kind == each).sum()
            # an end is written with seven digits: a loss beside it may fall to either side
            assert sum(abs(n - expected[k]) for k, n in enumerate(counts)) <= 2
            assert float(bins[3]["share"]) == pytest.approx(counts[3] / sum(counts))


@pytest.mark.usefixtures("unpainted")
def test_the_epochs_have_the_quantiles_of_their_losses(run, labels, tmp_path):
    with open(run / "metrics.jsonl", "w") as file:
        for epoch in range(1, 21):
            record = {"stage": "relabel", "epoch": epoch, "agreement": epoch / 40, "test_accuracy": None}
            file.write(json.dumps(record) + "\n")
    assert draw(tmp_path / "out", run) == 0
    lines = read(tmp_path / "out" / "loss_epochs.csv")
    assert len(lines) == 20 * 3  # semi1 kept no epochs
    values = np.load(run / "stages" / "relabel" / "losses" / "epoch-0007.npy")
    noisy = labels.is_noisy.noisy
    (line,) = [each for each in lines if each["epoch"] == "7" and each["kind"] == "noisy"]
    assert float(line["p50"]) == pytest.approx(median(values[noisy].tolist()), rel=1e-5)
    below = (values[noisy] < float(line["p90"])).mean()
    assert below == pytest.approx(0.9, abs=0.01)
    assert int(line["samples"]) == noisy.sum()
    assert (line["agreement"], line["test_accuracy"]) == ("0.175", "")


@pytest.mark.usefixtures("unpainted")
def test_the_posterior_is_that_of_the_samples_and_the_densities_those_of_the_mixture(run, labels, tmp_path):
    about = {"alpha": [2.0, 5.0], "beta": [6.0, 2.0], "weight": [0.7, 0.3], "low": 0.5, "high": 3.5}
    place = run / "stages" / "semi1"
    (place / "detection.json").write_text(json.dumps({"gamma": 0.3, "mixture": about}))
    assert draw(tmp_path / "out", run) == 0
    lines = [line for line in read(tmp_path / "out" / "posterior.csv") if line["stage"] == "semi1"]
    stored = np.load(place / "detection.npz")
    p_noisy = {f"{x:.7g}": p for x, p in zip(stored["doubt"], stored["p_noisy"], strict=True)}
    points = [line for line in lines if line["series"] == "p_noisy"]
    assert len(points) == 400
    for line in points:
        assert float(line["value"]) == pytest.approx(p_noisy[line["x"]], rel=1e-6)
    component = [line for line in lines if line["series"] == "density of the noisy component"]
    for line in component[50::100]:
        expected = 0.3 * beta.pdf((float(line["x"]) - 0.5) / 3.0, 5.0, 2.0) / 3.0
        assert float(line["value"]) == pytest.approx(expected, rel=1e-4)
    assert [line["value"] for line in lines if line["series"] == "gamma"] == ["0.3"]
    counts = Counter()
    for line in lines:
        if line["series"].startswith("count of "):
            counts[line["series"].split()[2]] += int(line["value"])
    assert counts == {"clean": int((~labels.is_noisy.noisy & labels.is_noisy.known).sum()),
        "noisy": int(labels.is_noisy.noisy.sum()), "unknown": int((~labels.is_noisy.known).sum())}  # fmt: skip


@pytest.mark.usefixtures("unpainted")
def test_without_truth_all_samples_are_one_kind(tmp_path):
    labels = make_labels(unknown=1.0)
    run = make_run(tmp_path / "run", labels, {"ce": make_stage(labels, 0)}, method="ce")
    assert draw(tmp_path / "out", run) == 0
    lines = read(tmp_path / "out" / "losses.csv")
    assert {(line["kind"], line["noise"]) for line in lines} == {("all", "truth unknown")}
    assert sum(int(line["count"]) for line in lines) == len(labels)


def test_without_epochs_it_says_which_flag_keeps_them(tmp_path, labels, capsys):
    run = make_run(tmp_path / "run", labels, {"ce": make_stage(labels, 0)}, method="ce")
    assert draw(tmp_path / "out", run) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        name for name in ALL if "epochs" not in name
    ]
    assert "--track every" in capsys.readouterr().err


@pytest.mark.usefixtures("unpainted")
def test_an_unfinished_run_shows_what_is_there(tmp_path, labels, run, capsys):
    stages = {"relabel": make_stage(labels, 0, epochs=2, tracked=True)}
    begun = make_run(tmp_path / "begun", labels, stages, finished=False)
    (begun / "stages" / "relabel" / "losses.npy").unlink()
    (begun / "stages" / "relabel" / "detection.npz").unlink()
    assert draw(tmp_path / "out", begun, run, tmp_path / "nothing") == 2
    said = capsys.readouterr().err
    assert "begun: the run is not finished" in said and "not a run folder" in said
    lines = read(tmp_path / "out" / "loss_epochs.csv")
    assert {line["run"] for line in lines} == {"begun", "run"}


@pytest.mark.usefixtures("unpainted")
def test_a_damaged_file_is_named_and_the_rest_is_shown(run, tmp_path, capsys):
    (run / "stages" / "semi1" / "losses.npy").write_bytes(b"no array")
    assert draw(tmp_path / "out", run) == 3
    assert "losses.npy" in capsys.readouterr().err
    assert {line["stage"] for line in read(tmp_path / "out" / "losses.csv")} == {"relabel"}
    (run / "stages" / "relabel" / "losses" / "epoch-0012.npy").write_bytes(b"no array")
    assert draw(tmp_path / "again", run) == 3
    assert "epoch-0012.npy" in capsys.readouterr().err


def test_infinite_losses_and_equal_ones_are_drawn(tmp_path, labels):
    stage = make_stage(labels, 0)
    stage.losses[:5] = np.inf
    stage.doubt[:5] = np.inf
    flat = make_stage(labels, 0)
    flat.losses[:], flat.doubt[:] = 1.0, 1.0
    run = make_run(tmp_path / "run", labels, {"one": stage, "two": flat}, method="ce")
    assert draw(tmp_path / "out", run) == 0
    lines = read(tmp_path / "out" / "losses.csv")
    for name in ("one", "two"):
        assert sum(int(line["count"]) for line in lines if line["stage"] == name) == len(labels)


def test_names_are_shown_as_they_are(tmp_path, labels, recwarn):
    runs = [
        make_run(tmp_path / name, labels, {"ce": make_stage(labels, 0)}, method="ce")
        for name in ("$x$^_{", '_b, "c"', "猫")
    ]
    assert draw(tmp_path / "out", *runs) == 0
    assert not [str(warning.message) for warning in recwarn]
    lines = read(tmp_path / "out" / "losses.csv")
    assert list(dict.fromkeys(line["run"] for line in lines)) == [run.name for run in runs]
    with Image.open(io.BytesIO((tmp_path / "out" / "losses.png").read_bytes())) as image:
        assert image.width > image.height  # three runs of one moment each stand side by side


def test_no_run_and_an_unknown_figure_are_refused(capsys):
    assert main(["figure", "loses", "run", "--out", "x"]) == 2
    assert "did you mean 'losses'" in capsys.readouterr().err
    assert main(["figure", "losses", "--out", "x"]) == 2
    assert "no run is given" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["figure", "--help"])
    assert end.value.code == 0
    assert "losses|cam|doubtful" in capsys.readouterr().out
