"""Prepare as a user meets it: right output, damage named, kills survived, nothing half-written."""

import contextlib
import dataclasses
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastdrpl.loaders import beton, progress, shard_writer, unfinished
from fastdrpl.loaders import prepare as prepare_module
from fastdrpl.loaders.beton_tables import choose_page_size
from fastdrpl.loaders.dataset import open_dataset
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.prepare import PrepareConfig, describe, prepare
from fastdrpl.loaders.progress import Progress
from fastdrpl.loaders.sources.opening import open_source

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


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "digits"
    prepare(PrepareConfig(kind="digits", out=out), quiet=True)
    return out


@pytest.fixture
def copied(digits: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits, tmp_path / "copy"))


def test_digits(digits: Path) -> None:
    dataset = open_dataset(digits, verify=True)
    train, test = dataset.split("train"), dataset.split("test")
    assert (len(train) + len(test), train.height, train.width, train.store) == (1797, 16, 16, "raw")
    assert dataset.class_names == tuple("0123456789")
    assert (dataset.flip, dataset.pad, dataset.test_may_be_wrong) == (False, 2, False)
    assert train.valid.all() and test.valid.all() and dataset.ids("train") is None
    share = np.bincount(test.label) / (np.bincount(test.label) + np.bincount(train.label))
    assert np.abs(share - 0.2).max() < 0.01
    pixels = np.stack(
        [
            np.fromfile(train.path, np.uint8, int(n), offset=int(at))
            for at, n in zip(train.offset, train.nbytes, strict=True)
        ]
    )
    assert np.allclose(dataset.mean, pixels.mean() / 255, atol=1e-5)
    assert np.allclose(dataset.std, pixels.std() / 255, atol=1e-5)
    assert sorted(path.name for path in digits.iterdir()) == [
        "dataset.json",
        "quarantine.csv",
        "test.beton",
        "train.beton",
    ]


def test_the_same_seed_gives_the_same_bytes_and_another_one_another_split(
    digits: Path, tmp_path: Path
) -> None:
    prepare(PrepareConfig(kind="digits", out=tmp_path / "same"), quiet=True)
    other = prepare(PrepareConfig(kind="digits", out=tmp_path / "other", seed=2), quiet=True)
    assert contents(tmp_path / "same") == contents(digits)
    assert other.fingerprint != open_dataset(digits).fingerprint
    assert other.source.fingerprint == open_dataset(digits).source.fingerprint


def test_running_again_verifies_and_another_configuration_is_refused(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(PrepareConfig(kind="digits", out=copied))
    assert "verified" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"seed: 1 there, 5 asked") as caught:
        prepare(PrepareConfig(kind="digits", out=copied, seed=5, store="jpeg"))
    assert "store: raw there, jpeg asked" in str(caught.value)
    flip_byte(copied / "train.beton", -100_000)  # a pixel or the zeros behind it
    with pytest.raises(DataError, match=r"train\.beton"):
        prepare(PrepareConfig(kind="digits", out=copied))


def flip_byte(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("name", ["train.beton", "test.beton", "dataset.json", "quarantine.csv"])
def test_every_mutation_of_every_file_is_found_and_named(digits: Path, tmp_path: Path, name: str) -> None:
    random = np.random.default_rng(1)
    size = (digits / name).stat().st_size
    for number in range(50):
        folder = tmp_path / str(number)
        folder.mkdir()
        for path in digits.iterdir():
            os.link(path, folder / path.name)
        shutil.copyfile(digits / name, folder / "mutated")
        os.replace(folder / "mutated", folder / name)
        at = int(random.integers(size))
        if number % 3 == 0:
            os.truncate(folder / name, at)
        elif number % 3 == 1:
            flip_byte(folder / name, at)
        else:
            data = bytearray((folder / name).read_bytes())
            if not any(data[at : at + 500]):
                at = 0
            data[at : at + 500] = bytes(len(data[at : at + 500]))
            (folder / name).write_bytes(data)
        if name == "dataset.json" and number % 3 == 1:
            check_changed_manifest(folder, digits)
        else:
            with pytest.raises(DataError) as caught:
                open_dataset(folder, verify=True)
            assert name in str(caught.value) and "fastdrpl prepare" in str(caught.value)
        shutil.rmtree(folder)


def check_changed_manifest(folder: Path, digits: Path) -> None:
    """A changed byte of the manifest is found, or is not part of the content (a space, the name, the options)."""
    try:
        seen, sound = open_dataset(folder, verify=True), open_dataset(digits)
    except DataError as error:
        assert "dataset.json" in str(error) or ".beton" in str(error) or ".csv" in str(error)
        return
    assert seen.fingerprint == sound.fingerprint and seen.class_names == sound.class_names
    assert (seen.mean, seen.std, seen.flip, seen.pad) == (sound.mean, sound.std, sound.flip, sound.pad)


def test_a_flipped_label_is_found_without_verify(copied: Path) -> None:
    flip_byte(copied / "train.beton", 24 + 3 * 1041 + 32 * 7 + 16)
    with pytest.raises(DataError, match="tables"):
        open_dataset(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "schema version 99"),
        ({"class_names": ["a", "b"]}, "changed"),
        ({"files": {}}, "changed|missing"),
        ({"fingerprint": None}, "changed"),
        ({"splits": []}, "field|changed"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(copied: Path, change: dict[str, Any], message: str) -> None:
    manifest = json.loads((copied / "dataset.json").read_text())
    (copied / "dataset.json").write_text(json.dumps(manifest | change))
    with pytest.raises(DataError, match=message):
        open_dataset(copied)


def test_no_dataset_is_a_user_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="no prepared dataset") as caught:
            open_dataset(path)
        assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "digits", "source": Path(".")},
        {"kind": "digits", "size": 64},
        {"kind": "cifar10"},
        {"kind": "cifar10", "source": Path("/nowhere")},
        {"kind": "folder", "source": Path("."), "size": 0},
        {"kind": "folder", "source": Path("."), "quality": 101},
        {"kind": "folder", "source": Path("."), "test_fraction": float("nan")},
        {"kind": "folder", "source": Path("."), "test_fraction": 1.0},
        {"kind": "folder", "source": Path("."), "workers": -1},
        {"kind": "digits", "seed": -1},
        {"kind": "mnist"},
    ],
)
def test_wrong_options_are_user_errors(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        prepare(PrepareConfig(out=tmp_path / "out", **wrong), quiet=True)
    assert caught.value.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="something else"):
        prepare(PrepareConfig(kind="digits", out=tmp_path / "out"), quiet=True)
    assert contents(tmp_path / "out") == {"thesis.tex": b"precious"}


def test_a_second_prepare_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    with unfinished.hold_lock(tmp_path / "out"), pytest.raises(UserError, match="another process"):
        prepare(PrepareConfig(kind="digits", out=tmp_path / "out"), quiet=True)
    prepare(PrepareConfig(kind="digits", out=tmp_path / "out"), quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_too_little_disk_is_said_before_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(prepare_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match="not enough disk"):
        prepare(PrepareConfig(kind="digits", out=tmp_path / "out"), quiet=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, DataError), (errno.EROFS, UserError), (errno.EIO, DataError)]
)
def test_a_failing_disk_leaves_nothing_under_the_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[UserError]
) -> None:
    def fail(descriptor: int, data: memoryview) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(beton, "_write_all", fail)
    with pytest.raises(kind) as caught:
        prepare(PrepareConfig(kind="digits", out=tmp_path / "out"), quiet=True)
    assert type(caught.value) is kind
    assert not list(tmp_path.iterdir())


def test_a_failed_rename_leaves_nothing_and_the_next_try_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_photos(tmp_path / "photos", 6)
    config = PrepareConfig(kind="folder", source=source, out=tmp_path / "out", size=16)

    def fail(old: Path, new: Path) -> None:
        raise OSError(errno.EIO, "no rename today")

    with monkeypatch.context() as patch, pytest.raises(DataError, match="no rename"):
        patch.setattr(unfinished.os, "rename", fail)
        prepare(config, quiet=True)
    assert not config.out.exists()
    assert len(prepare(config, quiet=True).split("train")) == 6


def test_an_output_below_a_file_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError):
        prepare(PrepareConfig(kind="digits", out=tmp_path / "file" / "out"), quiet=True)


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
    journal.add({"split": "train", "rows": rows, "sizes": sizes, "bad": [[0, "truncated"]]})
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


@pytest.mark.parametrize("kind", ["folder", "webvision", "webdataset", "huggingface", "imagenet32"])
def test_an_output_inside_the_source_is_refused_and_leaves_no_trace(tmp_path: Path, kind: Any) -> None:
    source = tmp_path / "photos"
    (source / "train" / "n01440764").mkdir(parents=True)
    (tmp_path / "link").symlink_to(source)
    before = sorted(source.rglob("*"))
    for out in (
        source / "out",
        source / "new" / "out",
        source / "train" / "out",
        source,
        tmp_path / "link/out",
    ):
        for given in (source, tmp_path / "link"):
            with pytest.raises(UserError, match="inside the source"):
                prepare(PrepareConfig(kind=kind, source=given, out=out), quiet=True)
    assert sorted(source.rglob("*")) == before


def test_a_class_without_a_sound_image_says_where_and_what_to_do(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", 12)
    for path in (tmp_path / "photos" / "class1").iterdir():
        path.write_bytes(b"")
    lines = [f"photos/class{k % 2}/{k:05}.png,class{k % 2}" for k in range(12)]
    (tmp_path / "photos.csv").write_text("\n".join(["path,label", *lines]))
    for kind, source, fix in (
        ("folder", "photos", "its folder"),
        ("table", "photos.csv", "lines from the table"),
    ):
        config = PrepareConfig(kind=kind, source=tmp_path / source, out=tmp_path / "out", size=16)  # type: ignore[arg-type]
        for _ in range(2):
            with pytest.raises(DataError, match=r"'class1' can be used \(empty file\)") as caught:
                prepare(config, quiet=True)
            assert caught.value.where == str(tmp_path / source) and fix in str(caught.value.fix)


@pytest.mark.parametrize("moment", ["start", "workers", "images"])
def test_ctrl_c_is_one_line_and_the_same_command_continues(tmp_path: Path, moment: str) -> None:
    """The signal goes to the whole process group, as a terminal sends it: workers may be starting, or at work."""
    source = make_photos(tmp_path / "photos", 600, size=160)
    whole = prepare(PrepareConfig(kind="folder", source=source, out=tmp_path / "whole", size=128), quiet=True)
    command = [sys.executable, "-m", "fastdrpl", "prepare", "folder", "--source", str(source)]
    command += ["--out", str(tmp_path / "out"), "--size", "128", "--workers", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pages = tmp_path / ".out.preparing" / "train.beton"
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
                "images": pages.exists() and pages.stat().st_size > 4 << 20,
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
    assert done.returncode == 0 and "Continuing an unfinished prepare" in done.stdout
    assert open_dataset(tmp_path / "out", verify=True).fingerprint == whole.fingerprint


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
    journal.add({"split": "train", "rows": 6, "sizes": [], "bad": [], "finished": [1, "0"]})
    prepare(PrepareConfig(kind="folder", source=source, out=tmp_path / "out", size=16))
    assert "starting over" in capsys.readouterr().out
    open_dataset(tmp_path / "out", verify=True)


def test_a_torn_journal_line_counts_as_absent(tmp_path: Path) -> None:
    journal = unfinished.Journal(tmp_path / "journal", "key")
    journal.begin()
    journal.add({"split": "train", "rows": 40, "sizes": [], "bad": [[3, "truncated"]]})
    with open(tmp_path / "journal", "ab") as file:
        file.write(b'{"split": "train", "ro')
    again = unfinished.Journal(tmp_path / "journal", "key")
    assert again.load()
    assert (again.splits["train"].rows, again.splits["train"].bad) == (40, [(3, "truncated")])
    again.add({"split": "train", "rows": 80, "sizes": [], "bad": []})
    assert again.load() and again.splits["train"].rows == 80


def test_a_changed_source_is_noticed(tmp_path: Path) -> None:
    source = make_photos(tmp_path / "photos", 6)
    config = PrepareConfig(kind="folder", source=source, out=tmp_path / "out", size=16)
    prepare(config, quiet=True)
    prepare(config, quiet=True)
    shutil.copy(source / "class0" / "00000.png", source / "class1" / "more.png")
    with pytest.raises(UserError, match="files differ"):
        prepare(config, quiet=True)


def test_cifar_10_as_a_command_imports_little(real_cifar: Path, tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from fastdrpl.loaders.prepare import PrepareConfig, prepare\n"
        f"source, out = Path({str(real_cifar)!r}), Path({str(tmp_path / 'out')!r})\n"
        "prepare(PrepareConfig(kind='cifar10', source=source, out=out))\n"
        "print(sorted({'torch', 'numba', 'sklearn', 'scipy', 'PIL', 'rich'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "train: 50,000 of 50,000 images" in done.stderr
    dataset = open_dataset(tmp_path / "out", verify=True)
    assert (dataset.flip, dataset.pad, dataset.has("test")) == (True, 4, True)
    assert any("airplane, automobile, bird" in line for line in describe(dataset))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_bar_on_a_terminal() -> None:
    terminal = Terminal()
    with Progress("train", 1000, stream=terminal) as bar:
        bar.advance(500)
        bar.note("3 unreadable")
        bar.advance(500)
    assert "1000/1000" in terminal.getvalue() and "3 unreadable" in terminal.getvalue()


def test_workers_end_when_prepare_is_killed(tmp_path: Path) -> None:
    source = make_photos(tmp_path / "photos", 400, size=160)
    script, out = tmp_path / "run.py", tmp_path / "out"
    script.write_text(KILLED.format(root=str(ROOT), source=str(source), out=str(out), store="raw", workers=2))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.DEVNULL) as process:
        children: set[int] = set()
        deadline = time.monotonic() + 60
        while len(children) < 3 and process.poll() is None and time.monotonic() < deadline:
            children |= find_children(process.pid)  # two workers and multiprocessing's resource tracker
        process.kill()
    assert len(children) >= 2
    deadline = time.monotonic() + 10
    while any(is_running(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [child for child in children if is_running(child)]


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


def test_progress_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("train", 1000, unit="images", start=200) as bar:
        bar.advance(300)
        bar.note("3 unreadable")
        line = bar.line()
    assert line.startswith("train: 500 of 1,000 images (50 %), ") and line.endswith("left | 3 unreadable")
    assert capsys.readouterr().err.strip().startswith("train: 500 of 1,000 images")
    with Progress("scan", None, quiet=True) as bar:
        bar.advance()
    assert capsys.readouterr().err == ""


def test_the_last_progress_line_is_printed_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)  # every step is shown
    with Progress("train", 3) as bar:
        for _ in range(3):
            bar.advance()
    assert [line.split(" images")[0] for line in capsys.readouterr().err.splitlines()] == [
        f"train: {k} of 3" for k in (1, 2, 3)
    ]
    monkeypatch.undo()
    with Progress("train", 3) as bar:  # too quick for any other line
        bar.advance(3)
    with Progress("nothing", 0):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" images")[0] for line in lines] == ["train: 3 of 3", "nothing: 0 of 0"]


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


@pytest.mark.parametrize("out", ["/proc/x", "/dev/null/x", "/proc/deeper/x", "/sys/x"])
def test_where_nothing_can_be_written_there_is_a_fix(out: str) -> None:
    with pytest.raises(UserError) as caught:
        prepare(PrepareConfig(kind="digits", out=Path(out)), quiet=True)
    assert type(caught.value) is UserError and "--out" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("fraction", "fix"), [(0.2, "leave --test-fraction out"), (0.0, "as training images")]
)
def test_held_out_images_of_ones_own_are_said_not_to_be_judged(
    tmp_path: Path, fraction: float, fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_photos(tmp_path / "photos", 20)
    if not fraction:
        (tmp_path / "split" / "test").mkdir(parents=True)
        (tmp_path / "photos").rename(tmp_path / "split" / "train")
        shutil.copytree(tmp_path / "split" / "train" / "class0", tmp_path / "split" / "test" / "class0")
        source = tmp_path / "split"
    prepare(PrepareConfig(kind="folder", source=source, out=tmp_path / "o", size=8, test_fraction=fraction))
    said = capsys.readouterr().out
    assert "test images are held out: a run does not judge their labels" in said and fix in said
    prepare(PrepareConfig(kind="digits", out=tmp_path / "digits"))
    assert "held out" not in capsys.readouterr().out


@pytest.mark.parametrize("extension", ["tar.gz", "zip"])
def test_photos_in_one_archive_give_the_same_set_and_leave_nothing(tmp_path: Path, extension: str) -> None:
    source = make_photos(tmp_path / "photos", 12)
    kind = {"tar.gz": "gztar", "zip": "zip"}[extension]
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), kind, tmp_path, "photos"))
    plain = prepare(PrepareConfig(kind="folder", source=source, out=tmp_path / "plain", size=16), quiet=True)
    config = PrepareConfig(kind="folder", source=archive, out=tmp_path / "out", size=16)
    dataset = prepare(config, quiet=True)
    assert dataset.fingerprint == plain.fingerprint and dataset.name == "photos"
    assert dataset.ids("train") == plain.ids("train")
    prepare(config, quiet=True)  # verified; times in the archive are kept, so the source is the same
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["photos", archive.name, "plain", "out"]
    )


def test_a_hostile_archive_of_photos_leaves_nothing(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        member = tarfile.TarInfo("../class0/evil.png")
        archive.addfile(member, io.BytesIO())
    with pytest.raises(DataError, match=r"leads out(.|\n)*photos\.tar, member '\.\./class0/evil\.png'"):
        prepare(
            PrepareConfig(kind="folder", source=tmp_path / "photos.tar", out=tmp_path / "out"), quiet=True
        )
    assert [path.name for path in tmp_path.iterdir()] == ["photos.tar"]


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
