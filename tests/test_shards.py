"""Tar shards: what is in them, who can read them, and that a kill, a cut or a change is noticed."""

import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from need import need
from PIL import Image

from fastdrpl.loaders import prepare as prepare_module
from fastdrpl.loaders import shard_writer, shards
from fastdrpl.loaders.beton import BetonWriter
from fastdrpl.loaders.dataset import Split, open_dataset
from fastdrpl.loaders.decode import decode_row, map_file
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.loaders.shard_writer import write_shards
from fastdrpl.loaders.shards import count_samples, deal_rows

IMAGES, BAD, SIDE = 61, 17, 24


def photos(folder: Path) -> Path:
    random = np.random.default_rng(4)
    for number in range(IMAGES):
        place = folder / f"class{number // 21}"
        place.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        small.resize((40, 30), Image.Resampling.BICUBIC).save(place / f"{number:03}.png")
    (folder / "class0" / f"{BAD:03}.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("photos"))


def config(source: Path, out: Path, store: Any = "raw") -> PrepareConfig:
    return PrepareConfig(
        kind="folder", source=source, out=out, size=SIDE, store=store, format="shards", workers=1
    )


@pytest.fixture(scope="module", params=["raw", "jpeg"])
def prepared(request: Any, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / request.param
    prepare(config(source, out, request.param), quiet=True)
    return out


def train(folder: Path) -> Split:
    return open_dataset(folder, verify=True).split("train")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def members(shard: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(shard, "r:") as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            yield member, file.read()


def test_every_valid_row_lies_in_one_shard(prepared: Path) -> None:
    split = train(prepared)
    assert len(split.shards) == 4
    rows = np.concatenate([shard.rows for shard in split.shards])
    assert sorted(rows.tolist()) == [row for row in range(IMAGES) if row != BAD]
    assert {len(shard.rows) for shard in split.shards} == {15}


def test_the_members_are_row_pixels_and_label(prepared: Path) -> None:
    split, file = train(prepared), map_file(train(prepared))
    for shard in split.shards:
        seen = list(members(shard.path))
        assert len(seen) == 3 * len(shard.rows)
        for place, row in enumerate(shard.rows):
            (a, row_bytes), (b, pixels), (c, label) = seen[3 * place : 3 * place + 3]
            extension = "ppm" if split.store == "raw" else "jpg"
            assert [m.name for m in (a, b, c)] == [f"{row:010}.{e}" for e in ("row", extension, "cls")]
            assert int.from_bytes(row_bytes, "little") == row and len(row_bytes) == 8
            assert label == str(split.label[row]).encode()
            with Image.open(io.BytesIO(pixels)) as image:
                assert np.array_equal(np.asarray(image), decode_row(split, file, row))
            for member in (a, b, c):
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
                assert member.isreg() and member.mode == 0o644


def test_the_index_is_that_of_dalis_own_tool(prepared: Path) -> None:
    """Its rules, carried out plainly: members with one name up to the first dot are a sample, in order."""
    for shard in train(prepared).shards:
        samples: dict[str, list[str]] = {}
        with tarfile.open(shard.path, "r:") as archive:
            for member in archive:
                key, _, extension = member.name.partition(".")
                line = f"{extension} {member.offset_data} {member.size} {member.name}"
                samples.setdefault(key, []).append(line)
        lines = [f"v1.2 {len(samples)}", *(" ".join(sample) for sample in samples.values())]
        assert shard.index_path.read_text().splitlines() == lines


def test_gnu_tar_has_nothing_to_say(prepared: Path) -> None:
    shard = train(prepared).shards[0]
    done = subprocess.run(["tar", "tf", shard.path], capture_output=True, text=True, check=True)
    assert done.stderr == "" and len(done.stdout.splitlines()) == 3 * len(shard.rows)


def test_the_webdataset_library_reads_them(prepared: Path) -> None:
    webdataset = need("webdataset")

    split, file = train(prepared), map_file(train(prepared))
    urls = [str(shard.path) for shard in split.shards]
    dataset = webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8")
    seen = []
    for pixels, label, row_bytes, key in dataset.to_tuple("ppm;jpg", "cls", "row", "__key__"):
        row = int.from_bytes(row_bytes, "little")
        assert int(key) == row and label == split.label[row]
        assert np.array_equal(pixels, decode_row(split, file, row))
        seen.append(row)
    assert seen == np.concatenate([shard.rows for shard in split.shards]).tolist()


def test_every_shard_has_images_of_every_class(prepared: Path) -> None:
    """The source comes sorted by class; read in that order nothing would be learnt."""
    split = train(prepared)
    assert (np.diff(split.label) >= 0).all()
    for shard in split.shards:
        assert set(split.label[shard.rows]) == {0, 1, 2}
        assert (np.diff(split.label[shard.rows]) != 0).sum() >= 4


def test_the_bytes_are_the_same_every_time(prepared: Path, source: Path, tmp_path: Path) -> None:
    prepare(config(source, tmp_path / "again", prepared.name), quiet=True)
    assert content(tmp_path / "again") == content(prepared)


def test_a_repeated_command_checks_the_shards(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    prepare(config(source, out))
    prepare(config(source, out))
    assert "Already prepared" in (said := capsys.readouterr().out) and "4 tar shards" in said
    with pytest.raises(UserError, match="format: shards there, None asked"):
        prepare(PrepareConfig(kind="folder", source=source, out=out, size=SIDE, workers=1))


def test_without_the_option_there_are_none(source: Path, tmp_path: Path) -> None:
    options = PrepareConfig(kind="folder", source=source, out=tmp_path / "out", size=SIDE, workers=1)
    assert prepare(options, quiet=True).split("train").shards == ()
    assert not {path.suffix for path in (tmp_path / "out").iterdir()} & {".tar", ".idx"}


class Killed(BaseException):
    """Ends a prepare where a signal would."""


@pytest.mark.parametrize("after", [0, 3])
def test_an_interrupted_prepare_ends_in_the_same_bytes(
    prepared: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    wanted = config(source, tmp_path / "out", prepared.name)
    write, written = shard_writer._write_shard, []

    def count(split: Split, rows: np.ndarray, path: Path) -> Any:
        if len(written) == after:
            path.write_bytes(b"half of it")
            raise Killed
        written.append(path.name)
        return write(split, rows, path)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "_write_shard", count)
        with pytest.raises(Killed):
            prepare(wanted, quiet=True)
    work = tmp_path / ".out.preparing"
    if after:
        with open(work / shard_writer.JOURNAL, "ab") as file:
            file.write(b'{"name": "train-0000')  # a torn line
    again = []
    monkeypatch.setattr(
        shard_writer,
        "_write_shard",
        lambda split, rows, path: again.append(path.name) or write(split, rows, path),
    )
    prepare(wanted, quiet=True)
    assert written + again == [f"train-00000{number}.tar" for number in range(4)]
    assert content(tmp_path / "out") == content(prepared) and not work.exists()


def copy(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


@pytest.mark.parametrize("name", ["train-000002.tar", "train-000001.idx"])
def test_a_cut_or_missing_shard_is_named(prepared: Path, tmp_path: Path, name: str) -> None:
    folder = copy(prepared, tmp_path)
    os.truncate(folder / name, 512)
    with pytest.raises(DataError, match=name):
        open_dataset(folder)
    (folder / name).unlink()
    with pytest.raises(DataError, match=name):
        open_dataset(folder)


@pytest.mark.parametrize("name", ["train-000003.tar", "train-000000.idx"])
def test_a_changed_byte_is_found_by_verifying(prepared: Path, tmp_path: Path, name: str) -> None:
    folder = copy(prepared, tmp_path)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    open_dataset(folder)
    with pytest.raises(DataError, match=rf"(?s)sha256.*{name}"):
        open_dataset(folder, verify=True)


@pytest.mark.parametrize(
    "change",
    [
        {"samples": 14},
        {"samples": -1},
        {"name": "../train-000001.tar"},
        {"name": "train-000007.tar"},
    ],
)
def test_a_manifest_with_other_shards_is_refused(
    prepared: Path, tmp_path: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy(prepared, tmp_path)
    manifest = json.loads((folder / "dataset.json").read_text())
    manifest["splits"]["train"]["shards"][1] |= change
    (folder / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="was changed"):
        open_dataset(folder)
    from fastdrpl.loaders import dataset

    monkeypatch.setattr(dataset, "content_fingerprint", lambda manifest: manifest["fingerprint"])
    with pytest.raises(DataError, match="match its manifest"):
        open_dataset(folder)


def test_too_small_a_disk_is_said_before_writing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shard_writer, "_write_shard", lambda *_: pytest.fail("wrote a shard"))
    monkeypatch.setattr(
        prepare_module, "_check_space", lambda *_: None
    )  # as if it had been filled since then
    monkeypatch.setattr(shard_writer.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DataError, match="not enough disk for the shards"):
        prepare(config(source, tmp_path / "out"), quiet=True)


def test_prepare_counts_the_shards_when_it_asks_for_space(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [10**12]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(prepare_module.shutil, "disk_usage", lambda _: usage._replace(free=free[0]))
    prepare(config(source, tmp_path / "out"), quiet=True)
    free[0] = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    shutil.rmtree(tmp_path / "out")
    free[0] -= 1 << 21
    with pytest.raises(DataError, match="not enough disk"):
        prepare(config(source, tmp_path / "out"), quiet=True)


@pytest.mark.parametrize("store", ["raw", "jpeg"])
def test_long_labels_and_pieces_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Any
) -> None:
    random = np.random.default_rng(0)
    labels = np.array([0, 9, 10, 999, 123_456, 2**31, 7, 100])
    images = random.integers(0, 256, (8, 10, 14, 3), np.uint8)
    writer = BetonWriter(tmp_path / "train.beton", labels, height=10, width=14, store=store)
    if store == "raw":
        writer.write_raw(images)
    else:
        files = []
        for number, image in enumerate(images):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "JPEG", quality=20 + 10 * number)
            files.append(buffer.getvalue())
        writer.write_jpeg(files)
    writer.finish()
    seen = []
    for chunk in (1, 3000, 10_000, 1 << 23):
        monkeypatch.setattr(shard_writer, "CHUNK_BYTES", chunk)
        (shard,) = write_shards(tmp_path, {"train": [6]}, quiet=True)["train"]
        seen.append((tmp_path / shard.name).read_bytes())
    assert len(set(seen)) == 1 and shard.samples == 7
    labels_seen = {m.name: data for m, data in members(tmp_path / shard.name) if m.name.endswith(".cls")}
    assert labels_seen == {
        f"{row:010}.cls": str(label).encode() for row, label in enumerate(labels) if row != 6
    }


@given(st.integers(0, 10**7), st.integers(0, 10**6))
def test_shards_are_even_and_not_too_large(samples: int, each: int) -> None:
    counts = count_samples(samples, samples * each)
    assert sum(counts) == samples
    if samples:
        assert max(counts) - min(counts) <= 1 <= min(counts)
        assert max(counts) * each <= shards.SHARD_BYTES + each
        assert len(counts) >= min(16, samples // 16)


def test_the_deal_is_pinned() -> None:
    """A change here makes every set of shards another one."""
    valid = np.ones(12, bool)
    valid[3] = False
    assert [rows.tolist() for rows in deal_rows(valid, [6, 5])] == [
        [6, 5, 7, 4, 11, 0],
        [8, 10, 2, 1, 9],
    ]
    with pytest.raises(ValueError, match="11 valid rows"):
        deal_rows(valid, [6, 6])
