"""What a report says: facts against the files they come from, sizes, missing parts, refusals."""

import html
import json
import re
import shutil
import stat
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_cases import NAMES, SCRIPT, finish_run, prepare_hostile

from fastdrpl.cli import main
from fastdrpl.errors import DataError, UserError
from fastdrpl.folder import RunFolder
from fastdrpl.loaders.dataset import open_dataset
from fastdrpl.report.agreement import compare_suspects
from fastdrpl.report.command import ReportCommand, report_runs, write_report
from fastdrpl.report.facts import run_hash
from fastdrpl.report.losses import read_losses_of
from fastdrpl.report.pages.markup import element, island, safe_json
from fastdrpl.report.pages.page import render_run
from fastdrpl.report.run_page import read_run_page
from fastdrpl.results import write_pages


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with prepared data and a finished run over them."""
    place = tmp_path_factory.mktemp("report")
    finish_run(place / "run", prepare_hostile(place))
    return place


@pytest.fixture
def run(place, tmp_path) -> Path:
    """A copy of the run that a test may change; its data stay where they are."""
    return shutil.copytree(place / "run", tmp_path / "run")


def text_of(page: bytes) -> str:
    """The words of a page without tags, styles and scripts."""
    body = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", page.decode(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", "", body)))


def rows_of(page: bytes) -> list[list]:
    return json.loads(re.search(rb'id="suspects-data">(.*?)</script>', page, re.DOTALL)[1])["rows"]


# --- markup ---


@given(st.text())
def test_no_text_becomes_markup(text):
    written = element("b", text, title=text)
    assert re.fullmatch(r'<b title="[^<>"]*">[^<>]*</b>', written, re.DOTALL)
    assert "<" not in safe_json([text]) and json.loads(safe_json([text])) == [text]


def test_an_island_ends_where_it_should():
    text = "</script><script>alert(1)</script><!--"
    written = island("x", {"name": text})
    assert written.count("<") == 2 and written.count("</script>") == 1
    assert json.loads(written.partition(">")[2].rpartition("<")[0]) == {"name": text}


# --- facts ---


def test_pairs_and_quality_are_those_of_the_table(place):
    page = read_run_page(place / "run")
    table = pyarrow.parquet.read_table(place / "run" / "labels.parquet").to_pylist()
    suspects = sorted((row for row in table if not row["labelled"]), key=lambda row: row["rank"])
    judged = page.judged
    assert [row["index"] for row in suspects] == judged.suspects["index"].to_pylist()
    pairs = {(pair.given, pair.suggested): pair.suspects for pair in judged.pairs}
    for pair, count in pairs.items():
        assert count == sum((row["given"], row["suggested"]) == pair for row in suspects)
    assert sum(pairs.values()) == len(suspects)
    wrong = [row["is_noisy"] for row in suspects]
    assert judged.quality.precision == pytest.approx(np.mean(wrong))
    assert judged.quality.recall == pytest.approx(sum(wrong) / sum(row["is_noisy"] for row in table))
    assert judged.quality.first == ((20, pytest.approx(np.mean(wrong[:20]))),)


def test_losses_are_counted_by_truth(place):
    from fastdrpl.labels import load_labels

    labels = load_labels(place / "run" / "noise.npz")
    facts = read_losses_of(place / "run" / "stages" / "relabel", labels.is_noisy)
    found = {heap.name: heap.total for heap in facts.heaps}
    right = int((labels.given == labels.truth).sum())
    assert found == {"right": right, "wrong": len(labels) - right}
    stored = np.load(place / "run" / "stages" / "relabel" / "detection.npz")
    assert facts.cut == stored["doubt"][stored["labelled"]].max()


def test_curves_of_a_detector_reach_the_page(run, place):
    """Their integral over the doubt is the number of samples they explain."""
    folder = run / "stages" / "relabel"
    stored = dict(np.load(folder / "detection.npz"))
    x = np.linspace(-1, 5, 400)
    stored["curve_0"] = np.stack([x, 0.7 * np.exp(-((x - 2) ** 2) / 0.5) / np.sqrt(0.5 * np.pi)])
    np.savez(folder / "detection.npz", **stored)
    about = {"detector": "mixture", "measure": "loss", "curves": ["clean component"], "warnings": []}
    (folder / "detection.json").write_text(json.dumps(about))
    from fastdrpl.labels import load_labels

    facts = read_losses_of(folder, load_labels(run / "noise.npz").is_noisy)
    curve = facts.curves[0]
    bins = (curve.x[-1] - curve.x[0]) / (facts.edges[1] - facts.edges[0])
    assert curve.density.mean() * bins == pytest.approx(0.7 * len(stored["doubt"]), rel=0.01)
    text = text_of(render_run(read_run_page(run), most_bytes=10**6))
    assert "clean component" in text and "samples by loss" in text
    np.savez(folder / "detection.npz", **{**stored, "curve_1": x})
    with pytest.raises(DataError, match=r"detection\.npz is damaged"):
        read_run_page(run)


# --- the page ---


def test_everything_is_on_the_page_in_its_order(place):
    page = render_run(read_run_page(place / "run"), most_bytes=5 * 10**6)
    text = text_of(page)
    parts = [
        "26 of 79 labels look wrong (32.9%)",
        "Key figures",
        "All 26 suspects are shown",
        "Doubtful labels by class",
        "Which classes are mixed up",
        "Losses, and what was fitted to them",
        "Training loss",
        "no sample counts as clean in <script>",
        "images that could not be read (quarantined)",
        "images that are there more than once (1 under two labels)",
        "fastdrpl train --config",
        "3.11.7",
    ]
    places = [text.find(part) for part in parts]
    assert -1 not in places and places == sorted(places), dict(zip(parts, places, strict=True))
    assert SCRIPT not in page.decode() and page.count(b"<script") == 2
    assert not re.findall(rb"""(?:src|href)="(?!data:image/|#)""", page)


def test_as_many_suspects_as_fit_and_the_page_says_so(place):
    facts = read_run_page(place / "run")
    whole = render_run(facts, most_bytes=5 * 10**6)
    assert len(rows_of(whole)) == 26
    most = len(whole) - 2000
    page = render_run(facts, most_bytes=most)
    shown = rows_of(page)
    assert 0 < len(shown) < 26 and len(page) <= most < len(page) + 1000
    assert shown == rows_of(whole)[: len(shown)]
    assert f"The {len(shown)} most doubtful of 26 are shown" in text_of(page)
    assert rows_of(render_run(facts, most_bytes=10)) == []


def test_rows_hold_what_the_table_has(place):
    rows = rows_of(render_run(read_run_page(place / "run"), most_bytes=5 * 10**6))
    table = pyarrow.parquet.read_table(place / "run" / "labels.parquet").to_pylist()
    for row in rows:
        wanted = table[row[0]]
        assert row[1] == wanted["file"] and [row[2], row[3]] == [wanted["given"], wanted["suggested"]]
        assert row[4:9] == pytest.approx(
            [wanted[name] for name in ("p_suggested", "p_noisy", "score", "rank", "truth")], abs=1e-4
        )
    assert any(NAMES[2] in row[1] for row in rows)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("tested", [True, False])
def test_what_is_not_known_is_left_out(place, tmp_path, known, tested):
    data = open_dataset(place / "data")
    run = finish_run(tmp_path / "run", data, known=known, tested=tested)
    text = text_of(render_run(read_run_page(run), most_bytes=10**6))
    assert ("The right labels are known here" in text) == known
    assert ("Test accuracy 80.00%" in text) == tested
    assert ("no test set" in text) == (not tested)


def test_a_run_without_suspects_and_one_without_losses(place, tmp_path, run):
    clean = finish_run(tmp_path / "clean", open_dataset(place / "data"), noisy=0.0)
    assert "No label looks wrong." in text_of(render_run(read_run_page(clean), most_bytes=10**6))
    shutil.rmtree(run / "stages")
    assert "No stage has left losses." in text_of(render_run(read_run_page(run), most_bytes=10**6))


def test_many_classes_are_listed_not_drawn(place, tmp_path):
    """1,000 classes: the most frequent pairs, and a page that stays small."""
    import pyarrow

    run = finish_run(tmp_path / "run", open_dataset(place / "data"))
    names = [f"class {k:03}" for k in range(1000)]
    manifest = json.loads((run / "manifest.json").read_text()) | {"classes": names}
    (run / "manifest.json").write_text(json.dumps(manifest))
    draw, n = np.random.default_rng(0), 20_000
    given, suggested = draw.integers(0, 1000, (2, n))
    given[:500], suggested[:500] = 7, 9
    columns = {
        "index": np.arange(n),
        "row": draw.integers(1, 80, n),
        "file": pyarrow.nulls(n, pyarrow.string()),
        "given": given,
        "given_name": np.array(names)[given],
        "suggested": suggested,
        "suggested_name": np.array(names)[suggested],
        "p_suggested": draw.random(n),
        "p_noisy": draw.random(n),
        "labelled": draw.random(n) < 0.1,
        "rank": draw.permutation(n) + 1,
        "score": draw.random(n),
    }
    table = pyarrow.table(columns, metadata={"fastdrpl_schema": "2"})
    pyarrow.parquet.write_table(table, run / "labels.parquet")
    page = render_run(read_run_page(run), most_bytes=400_000)
    text = text_of(page)
    assert len(page) < 400_000 and "1,000 classes are too many for a map" in text
    assert "class 007 → class 009" in text and "the next 188 classes (of 1,000 in all)" in text


# --- several runs ---


def test_runs_side_by_side(place, tmp_path):
    data = open_dataset(place / "data")
    first, second = place / "run", finish_run(tmp_path / "other", data, noisy=0.6)
    pages = [read_run_page(first), read_run_page(second)]
    (facts,) = compare_suspects(pages)
    a, b = (pyarrow.parquet.read_table(run / "labels.parquet").to_pylist() for run in (first, second))
    same = [(x, y) for x, y in zip(a, b, strict=True) if x["given"] == y["given"]]
    assert facts.images == len(a) and facts.relabelled == len(a) - len(same)
    assert facts.both == sum(not x["labelled"] and not y["labelled"] for x, y in same)
    assert facts.only_second == sum(x["labelled"] and not y["labelled"] for x, y in same)
    out = tmp_path / "both.html"
    report_runs(ReportCommand(runs=(first, second), out=out))
    text = text_of(out.read_bytes())
    assert "2 runs side by side" in text and "sha256.labels" in text and "run and other" in text


def test_runs_over_other_data_are_not_compared(place, run):
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["identity"]["data"] = "d" * 64
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert compare_suspects([read_run_page(place / "run"), read_run_page(run)]) == ()


def test_what_corrected_labels_changed(place, run, tmp_path):
    """The run after `fix`: its labels come from `run`, whose first suspects were accepted."""
    table = pyarrow.parquet.read_table(run / "labels.parquet").to_pylist()
    after = finish_run(tmp_path / "after", open_dataset(place / "data"), noisy=0.0)
    result = json.loads((run / "result.json").read_text())
    manifest = json.loads((after / "manifest.json").read_text())
    origin = {"run": str(run), "hash": run_hash(result), "data": result["identity"]["data"], "dropped": []}
    (after / "manifest.json").write_text(json.dumps({**manifest, "labels_from": origin}))
    changed = sum(row["given"] != row["truth"] for row in table)
    text = text_of(render_run(read_run_page(after), most_bytes=10**6))
    assert "What the corrected labels changed" in text and f"{changed} labels were changed" in text
    assert f"{changed} wrong labels were put right" in text
    report_runs(ReportCommand(runs=(run, after), out=tmp_path / "both.html"))
    assert f"{changed} labels were changed" in text_of((tmp_path / "both.html").read_bytes())
    shutil.rmtree(run)
    assert "no longer there" in text_of(render_run(read_run_page(after), most_bytes=10**6))


# --- what is refused, and what is missing ---


def test_an_unfinished_run_shows_what_it_has(run):
    (run / "result.json").unlink()
    (run / "progress.json").write_text(
        json.dumps({"failed": "only 1 of 79 samples count as clean", "exit_code": 5})
    )
    report_runs(ReportCommand(runs=(run,)))
    text = text_of((run / "report.html").read_bytes())
    assert "This run is not finished: ended with exit code 5: only 1 of 79 samples count as clean" in text
    assert "epoch 4 of the stage semi1" in text and "Training loss" in text and "after relabel" in text


def test_data_that_moved(run, tmp_path):
    manifest = json.loads((run / "manifest.json").read_text())
    data = shutil.move(shutil.copytree(manifest["data"], tmp_path / "here"), tmp_path / "there")
    (run / "manifest.json").write_text(json.dumps({**manifest, "data": str(tmp_path / "here")}))
    page = render_run(read_run_page(run), most_bytes=10**6)
    assert all(row[-1] is None for row in rows_of(page))
    assert "Without images: no prepared dataset here" in text_of(page) and "--data DIR" in text_of(page)
    page = render_run(read_run_page(run, data=Path(data)), most_bytes=10**6)
    assert all(row[-1].startswith("data:image/webp;base64,") for row in rows_of(page))


def test_data_of_another_run_are_refused(run, tmp_path):
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["identity"]["data"] = "d" * 64
    data = manifest["data"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="not the images that the run was trained on"):
        report_runs(ReportCommand(runs=(run,), data=Path(data)))
    assert not (run / "report.html").exists()
    assert "not the images" in text_of(render_run(read_run_page(run), most_bytes=10**6))


def test_a_finished_run_survives_a_report_that_cannot_be_written(run, monkeypatch, capsys):
    folder = RunFolder(run)
    (run / "metrics.jsonl").write_text("no record\n")
    write_pages(folder)
    assert "warning: there is no report: " in capsys.readouterr().err
    assert folder.result.exists() and not folder.report.exists()


def test_what_is_no_run_and_sizes_that_are_none(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err
    assert main(["report", str(tmp_path), "--max_mb", "0"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(run, tmp_path, monkeypatch):
    """As on a read-only file system (root may write anywhere else)."""

    def refuse(path, data):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("fastdrpl.files.write_synced", refuse)
    with pytest.raises(UserError, match="--out") as caught:
        write_report(run, run / "report.html")
    assert str(run / "report.html") in str(caught.value)
    monkeypatch.undo()
    write_report(run, tmp_path / "elsewhere.html")
    assert stat.S_ISREG((tmp_path / "elsewhere.html").stat().st_mode) and not (run / "report.html").exists()
