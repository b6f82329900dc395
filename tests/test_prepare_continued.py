"""Prepares that were stopped, killed or damaged half-way: what is kept, and what is made again."""

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prepare_cases import KILLED, ROOT, contents, find_children, flip_byte, is_running, make_photos

from fastdrpl.loaders import prepare as prepare_module
from fastdrpl.loaders import shard_writer, unfinished
from fastdrpl.loaders.beton_tables import choose_page_size
from fastdrpl.loaders.dataset import open_dataset
from fastdrpl.loaders.errors import UserError
from fastdrpl.loaders.marks import MARK
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.loaders.sources.opening import open_source


def stop_in_the_middle(config: PrepareConfig, monkeypatch: pytest.MonkeyPatch, *, shards: int = 0) -> Path:
    """A prepare that ends when its training images (and so many shards) are done; returns its unfinished folder."""

    class Stopped(BaseException):
        pass

    def stop(*_: Any, **__: Any) -> None:
        raise Stopped

    left = [shards]
    write_shard = shard_writer._write_shard

    def write_or_stop(*arguments: Any) -> Any:
        left[0] -= 1
        return write_shard(*arguments) if left[0] >= 0 else stop()

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(shard_writer, "_write_shard", write_or_stop)
        patch.setattr(prepare_module, "write_manifest", stop)
        prepare(config, quiet=True)
    return unfinished.work_folder(config.out)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("few") / "photos", 60)


def both(photos: Path, folder: Path, **options: Any) -> tuple[PrepareConfig, Path]:
    """A configuration, and the same set prepared without a break."""
    options = {"kind": "folder", "source": photos, "size": 16, "test_fraction": 0.2} | options
    prepare(PrepareConfig(out=folder / "whole", **options), quiet=True)
    return PrepareConfig(out=folder / "out", **options), folder / "whole"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda work: flip_byte(work / "train.beton", 5000), "train.beton .* has changed"),
        (lambda work: os.truncate(work / "train.beton", 5000), "train.beton .* has 5,000 bytes"),
        (lambda work: (work / "train.beton").unlink(), "train.beton .* is missing"),
        (
            lambda work: append(work / "journal", bytes(100) + b"\n"),
            "journal .* cannot be read: starting over",
        ),
        (lambda work: append(work / "journal", b"0\n"), "journal .* cannot be read: starting over"),
        (lambda work: append(work / "journal", b'{"split": "val", "rows": 1}\n'), "cannot be read"),
        (lambda work: append(work / "journal", bytes(100)), "Continuing"),
        (lambda work: None, "Continuing an unfinished prepare: 60 images"),
    ],
)
@pytest.mark.parametrize("store", ["raw", "jpeg"])
def test_a_damaged_unfinished_folder_is_made_again(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Any,
    message: str,
    store: str,
) -> None:
    config, whole = both(photos, tmp_path, store=store)
    work = stop_in_the_middle(config, monkeypatch)
    change(work)
    prepare(config)
    assert re.search(message, capsys.readouterr().out)
    assert contents(config.out) == contents(whole)


def append(path: Path, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)


@pytest.mark.parametrize("store", ["raw", "jpeg"])
@pytest.mark.parametrize("left", [None, 0, 4096])
def test_an_unfinished_file_that_is_missing_or_short_is_made_again(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], store: str, left: int | None
) -> None:
    """The journal reached the disk, the pages did not."""
    config, whole = both(photos, tmp_path, store=store, size=256)
    work = unfinished.work_folder(config.out)
    work.mkdir()
    journal = unfinished.Journal(work / "journal", prepare_module._key(config, open_source(config)))
    journal.begin()
    rows = choose_page_size(256 * 256 * 3) // (256 * 256 * 3) if store == "raw" else 4
    sizes = [1000] * rows if store == "jpeg" else []
    marks = unfinished.pack(np.zeros(rows, MARK).tobytes())
    journal.add({"split": "train", "rows": rows, "sizes": sizes, "bad": [[0, "truncated"]], "marks": marks})
    if left is not None:
        (work / "train.beton").write_bytes(bytes(left))
    for _ in range(2):  # the second time it is there
        prepare(config)
    said = capsys.readouterr().out
    assert "train.beton" in said and said.count("it is made again") == 1 and "verified" in said
    assert contents(config.out) == contents(whole)


@pytest.mark.parametrize("what", ["changed", "short", "missing", "index", "line", "nothing"])
def test_finished_shards_are_checked_before_they_are_published(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    what: str,
) -> None:
    config, whole = both(photos, tmp_path, format="shards")
    work = stop_in_the_middle(config, monkeypatch, shards=1)
    (shard,) = work.glob("*.tar")
    if what == "changed":
        flip_byte(shard, 3000)
    elif what == "short":
        os.truncate(shard, 3000)
    elif what == "missing":
        shard.unlink()
    elif what == "index":
        flip_byte(shard.with_suffix(".idx"), 3)
    elif what == "line":
        append(work / shard_writer.JOURNAL, bytes(50) + b"\n")
    prepare(config)
    said = capsys.readouterr().out
    total = 2 if what == "line" else 1
    assert (f"1 of {total} finished shards have changed" in said) == (what != "nothing")
    assert contents(config.out) == contents(whole)


@pytest.mark.parametrize("moment", ["start", "workers", "images"])
def test_ctrl_c_is_one_line_and_the_same_command_continues(tmp_path: Path, moment: str) -> None:
    """The signal goes to the whole process group, as a terminal sends it: workers may be starting, or at work."""
    source = make_photos(tmp_path / "photos", 600, size=160)
    whole = prepare(PrepareConfig(kind="folder", source=source, out=tmp_path / "whole", size=128), quiet=True)
    program = (  # an entry in the journal for each page, however fast the machine is
        "import sys\nfrom fastdrpl.loaders import prepare\nprepare.SECONDS_BETWEEN_ENTRIES = 0\n"
        "from fastdrpl.cli import main\nsys.exit(main())\n"
    )
    command = [sys.executable, "-c", program, "prepare", "folder", "--source", str(source)]
    command += ["--out", str(tmp_path / "out"), "--size", "128", "--workers", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pages, journal = (tmp_path / ".out.preparing" / name for name in ("train.beton", "journal"))
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        children: set[int] = set()
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            children |= find_children(process.pid)
            ready = {
                "start": pages.exists(),
                "workers": len(children) >= 2,
                "images": journal.exists() and b'"rows"' in journal.read_bytes(),
            }
            if ready[moment]:
                break
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=60)[1]
        children |= find_children(process.pid)
    assert process.returncode == 130, said
    lines = [line for line in said.splitlines() if not line.startswith("train: ")]  # the progress
    assert lines == ["stopped; the same command continues"], said
    deadline = time.monotonic() + 10
    while any(is_running(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [child for child in children if is_running(child)]
    assert not (tmp_path / "out").exists()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0
    if moment == "images":  # elsewhere nothing may have been done yet, and nothing is said
        assert "Continuing an unfinished prepare" in done.stdout
    assert open_dataset(tmp_path / "out", verify=True).fingerprint == whole.fingerprint


@pytest.mark.parametrize(("store", "workers"), [("raw", 2), ("jpeg", 1)])
def test_killed_prepares_end_in_the_bytes_of_an_unbroken_one(
    tmp_path: Path, store: Any, workers: int
) -> None:
    source = make_photos(tmp_path / "photos", 800, size=160)  # JPEG: six lines of the journal
    (source / "class0" / "00010.png").write_bytes(b"")
    (source / "class1" / "00391.png").write_bytes(b"no image")
    whole = PrepareConfig(
        kind="folder",
        source=source,
        out=tmp_path / "whole",
        size=128,
        store=store,
        test_fraction=0.2,
        workers=1,
    )
    assert (~prepare(whole, quiet=True).split("train").valid).sum() >= 1
    script = tmp_path / "run.py"
    out = tmp_path / "out"
    script.write_text(
        KILLED.format(root=str(ROOT), source=str(source), out=str(out), store=store, workers=workers)
    )
    journal = tmp_path / ".out.preparing" / "journal"
    kills = 0
    for entries in (2, 3, 4):  # one kill after each new line of the journal
        with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(FileNotFoundError):  # not begun, or over
                    if journal.read_bytes().count(b"\n") >= entries:
                        process.send_signal(signal.SIGKILL)
                        break
            process.wait()
            kills += process.returncode == -signal.SIGKILL
    assert kills >= 2
    assert not out.exists()
    done = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, check=True)
    assert "Continuing an unfinished prepare" in done.stdout
    assert contents(out) == contents(tmp_path / "whole")
    assert not journal.parent.exists()


def test_an_unfinished_folder_of_other_work_is_started_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_photos(tmp_path / "photos", 6)
    work = unfinished.work_folder(tmp_path / "out")
    work.mkdir()
    journal = unfinished.Journal(work / "journal", "other work")
    journal.begin()
    journal.add({"split": "train", "rows": 6, "sizes": [], "bad": [], "marks": "", "finished": [1, "0"]})
    prepare(PrepareConfig(kind="folder", source=source, out=tmp_path / "out", size=16))
    assert "starting over" in capsys.readouterr().out
    open_dataset(tmp_path / "out", verify=True)


def test_a_torn_journal_line_counts_as_absent(tmp_path: Path) -> None:
    journal = unfinished.Journal(tmp_path / "journal", "key")
    journal.begin()
    journal.add({"split": "train", "rows": 40, "sizes": [], "bad": [[3, "truncated"]], "marks": "AAEC"})
    with open(tmp_path / "journal", "ab") as file:
        file.write(b'{"split": "train", "ro')
    again = unfinished.Journal(tmp_path / "journal", "key")
    assert again.load()
    assert (again.splits["train"].rows, again.splits["train"].bad) == (40, [(3, "truncated")])
    again.add({"split": "train", "rows": 80, "sizes": [], "bad": [], "marks": "/w=="})
    assert again.load() and again.splits["train"].rows == 80
    assert again.splits["train"].marks == bytes([0, 1, 2, 255])


def test_a_changed_source_is_noticed(tmp_path: Path) -> None:
    source = make_photos(tmp_path / "photos", 6)
    config = PrepareConfig(kind="folder", source=source, out=tmp_path / "out", size=16)
    prepare(config, quiet=True)
    prepare(config, quiet=True)
    shutil.copy(source / "class0" / "00000.png", source / "class1" / "more.png")
    with pytest.raises(UserError, match="files differ"):
        prepare(config, quiet=True)


def test_work_of_which_nothing_was_noted_is_not_called_continued(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kill before the first note of the journal: 32 images may have been shown as done, none of them is."""
    config, whole = both(photos, tmp_path)
    source = open_source(config)
    reader = source.parts["train"].read

    def stop(row: int) -> Any:
        for number, piece in enumerate(reader(row)):
            if number == 2:
                raise KeyboardInterrupt
            yield piece

    source.parts["train"] = dataclasses.replace(source.parts["train"], read=stop)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "open_source", lambda _: source)
        with pytest.raises(KeyboardInterrupt):
            prepare(config, quiet=True)
    prepare(config)
    assert "Continuing" not in capsys.readouterr().out and contents(config.out) == contents(whole)


def test_what_a_killed_process_unpacked_is_used_again_unless_the_archive_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_photos(tmp_path / "photos", 12)
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "tar", tmp_path / "photos"))
    config = PrepareConfig(kind="folder", source=archive, out=tmp_path / "out", size=16)
    killed = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from fastdrpl.loaders import prepare\n"
        "prepare.open_source = lambda config: os._exit(9)\n"
        f"config = prepare.PrepareConfig(kind='folder', source=Path({str(archive)!r}),"
        f" out=Path({str(config.out)!r}), size=16)\n"
        "prepare.prepare(config)\n"
    )
    for changed in (False, True):
        assert subprocess.run([sys.executable, "-c", killed], capture_output=True).returncode == 9
        if changed:
            os.utime(archive, (1, 1))
        prepare(config)
        assert ("Unpacking" in capsys.readouterr().out) == changed
        assert not (tmp_path / ".out.unpacked").exists()
        shutil.rmtree(config.out)


@pytest.mark.parametrize("extension", ["tar.gz", "zip"])
def test_a_prepare_from_an_archive_that_was_killed_continues_where_it_was(
    tmp_path: Path, extension: str
) -> None:
    """What was unpacked is used again, and so are the images that were done; the archive is not read anew."""
    source = make_photos(tmp_path / "photos", 400, size=160)
    kind = {"tar.gz": "gztar", "zip": "zip"}[extension]
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), kind, source))
    out, script = tmp_path / "out", tmp_path / "run.py"
    whole = PrepareConfig(kind="folder", source=archive, out=tmp_path / "whole", size=128, test_fraction=0.2)
    prepare(whole, quiet=True)
    script.write_text(
        KILLED.format(root=str(ROOT), source=str(archive), out=str(out), store="raw", workers=1)
    )
    journal = tmp_path / ".out.preparing" / "journal"
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if journal.exists() and journal.read_bytes().count(b"\n") >= 2:
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL and (tmp_path / ".out.unpacked").is_dir()
    done = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, check=True)
    assert "Continuing an unfinished prepare" in done.stdout and "Unpacking" not in done.stdout
    assert contents(out) == contents(tmp_path / "whole")
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")]
