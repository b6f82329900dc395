"""Prepare as a user meets it: right output, damage named, kills survived, nothing half-written."""

import errno
import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prepare_cases import contents, flip_byte, make_photos

from fastdrpl.loaders import beton, unfinished
from fastdrpl.loaders import prepare as prepare_module
from fastdrpl.loaders.dataset import open_dataset
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.prepare import PrepareConfig, prepare


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
        "problems.csv",
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


@pytest.mark.parametrize("name", ["train.beton", "test.beton", "dataset.json", "quarantine.csv"])
def test_every_mutation_of_every_file_is_found_and_named(digits: Path, tmp_path: Path, name: str) -> None:
    """R4."""
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
