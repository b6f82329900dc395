"""What a comparison shows while its cells run."""

import io
import json

from test_compare import many

from fastdrpl.compare.display import Display, duration, look_at
from fastdrpl.compare.folder import last_error, record_ending, state_of


def test_the_live_view_shows_running_cells(tmp_path, monkeypatch):
    grid, cells = many(tmp_path, 3)

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    folder = cells[1].folder(grid.out)
    folder.mkdir(parents=True)
    progress = {"stage": "ce", "epoch": 3, "epochs": 9, "images_per_second": 1234.5, "stage_seconds_left": 75}
    (folder / "progress.json").write_text(json.dumps(progress))
    (folder / "metrics.jsonl").write_text('{"test_accuracy": 0.5}\n{"test_accuracy": null}\n')
    with Display(grid.out, 3, 0, stream=stream) as display:
        display.started(cells[0], None)
        display.ended(cells[0], 5, "too few labels", 61.0, False)
        display.refresh([cells[1]], 1)
    said = stream.getvalue()
    assert "FAILED  digits/ce/U-0.2/seed-0 (exit 5): too few labels" in said
    for part in ("0 of 3 done, 1 running, 1 waiting, 1 failed", "3/9", "1,234", "50.00%", "1:15"):
        assert part in said, part
    assert look_at(cells[2].folder(grid.out))[0] == "starting"


def test_piped_it_is_a_line_at_each_start_and_end(tmp_path):
    grid, cells = many(tmp_path, 2)
    stream = io.StringIO()
    folder = cells[1].folder(grid.out)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text('{"accuracy": {"best": 0.5, "last": 0.25}}')
    with Display(grid.out, 2, 0, stream=stream) as display:
        display.started(cells[0], "7")
        display.refresh(cells[:1], 1)
        display.ended(cells[0], 75, "", 1.0, True)
        display.ended(cells[1], 0, "", 61.0, False)
    assert stream.getvalue().splitlines() == [
        "start   digits/ce/U-0.2/seed-0 on GPU 7",
        "stopped digits/ce/U-0.2/seed-0; the same command continues it",
        "done    digits/ce/U-0.2/seed-1 in 1:01, best 50.00%, last 25.00% (1 of 2)",
    ]


def test_durations():
    assert [duration(s) for s in (0, 59.6, 3599, 3600, 90061)] == [
        "0:00",
        "1:00",
        "59:59",
        "1:00:00",
        "25:01:01",
    ]


def test_the_last_error_of_a_log(tmp_path):
    log = tmp_path / "log"
    log.write_text("error: an earlier attempt\n")
    offset = log.stat().st_size
    log.write_text(log.read_text() + "training\n")
    assert last_error(log, offset) == "training"
    log.write_text(log.read_text() + "error: too few labels\n  where: here\n  fix:   do that\n\n")
    assert last_error(log, offset) == "too few labels"
    log.write_bytes(log.read_bytes() + b"Traceback ...\nMemoryError \xff\n")
    assert last_error(log, log.read_bytes().index(b"Traceback")) == "MemoryError �"
    (tmp_path / "empty").touch()
    assert last_error(tmp_path / "empty") == ""


def test_the_states_of_a_cell(tmp_path):
    grid, (cell, *_) = many(tmp_path, 2)
    assert state_of(grid.out, cell).kind == "missing"
    cell.folder(grid.out).mkdir(parents=True)
    assert state_of(grid.out, cell).kind == "missing", "a folder without a configuration"
    (cell.folder(grid.out) / "config.toml").touch()
    assert state_of(grid.out, cell).kind == "stopped", "compare itself was killed"
    record_ending(grid.out, cell, 4, "not finite", 1.0, stopped=False)
    assert state_of(grid.out, cell).kind == "failed"
    record_ending(grid.out, cell, 143, "", 1.0, stopped=True)
    assert state_of(grid.out, cell).kind == "stopped", "asked to stop before it had handlers of its own"
    (cell.folder(grid.out) / "result.json").touch()
    assert state_of(grid.out, cell).kind == "done"
