"""Shards that cannot be used, are hostile or damaged: refused and named."""

import gzip
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tar_shard_cases import Members, hostile, run, sample, write_shard

from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.sources import shard_scan

# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "parts"),
    [
        (
            [*sample(0), ("a.png", b"x"), ("b.png", b"x"), ("b.txt", b"cat")],
            ["without a label: x.tar/a, x.tar/b"],
        ),
        ([*sample(0), ("a.png", b"x"), ("a.cls", b" \n")], ["without a label: x.tar/a"]),
        ([*sample(0), ("a.png", b"x"), ("a.json", b'{"caption": "x"}')], ["without a label: x.tar/a"]),
        ([*sample(0), ("a.png", b"x"), ("a.json", b"[1]")], ["without a label: x.tar/a"]),
        ([*sample(0), *sample(0)], ["'000000' has '.cls' twice"]),
        ([*sample(0), ("000000.jpg", b"x")], ["'000000' has two images"]),
        ([*sample(0), ("a.png", b"x"), ("a.json", b'{"label": 1.5}')], ["a label is float", "a.json"]),
        ([*sample(0), ("a.png", b"x"), ("a.json", b'{"label": [1]}')], ["a label is list", "a.json"]),
        ([*sample(0), ("a.png", b"x"), ("a.json", b'{"label": true}')], ["a label is bool", "a.json"]),
        ([*sample(0), ("a.png", b"x"), ("a.json", b'{"label": ')], ["label cannot be read", "a.json"]),
        ([*sample(0), ("a.png", b"x"), ("a.json", b"[" * 100_000)], ["label cannot be read", "a.json"]),
        ([*sample(0), ("a.png", b"x"), ("a.cls", b"\xff")], ["label cannot be read", "a.cls"]),
        (
            [*sample(0), ("a.png", b"x"), ("a.json", b" " * (2 << 20))],
            ["a label of 2,097,152 bytes", "a.json"],
        ),
        ([*sample(0), *sample(3)], ["one class, '0'"]),
        ([("a.txt", b"")], ["no images"]),
    ],
)
def test_samples_that_cannot_be_used_are_named(tmp_path: Path, members: Members, parts: list[str]) -> None:
    source = write_shard(tmp_path / "x.tar", members)
    with pytest.raises(DataError) as caught:
        run(source, tmp_path / "out")
    assert all(part in str(caught.value) for part in parts) and not (tmp_path / "out").exists()


def test_a_class_that_training_has_not(tmp_path: Path) -> None:
    write_shard(tmp_path / "s" / "train.tar", [*sample(0), *sample(1)])
    write_shard(tmp_path / "s" / "test.tar", sample(2))
    with pytest.raises(DataError, match="'2' has no training image"):
        run(tmp_path / "s", tmp_path / "out")


def test_layouts_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.zip").touch()
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "train-0.tar.zst").touch()
    write_shard(tmp_path / "mixed" / "train-0.tar", sample(0))
    write_shard(tmp_path / "mixed" / "extra.tar", sample(1))
    write_shard(tmp_path / "tests" / "test-0.tar", sample(1))
    for name, message in (
        ("empty", "no shards here"),
        ("a.zip", r"no folder and no tar(.|\n)*unpack .*a\.zip"),
        ("packed", r"no shards here(.|\n)*unpack .*train-0\.tar\.zst"),
        ("mixed", r"some are not: .*extra\.tar"),
        ("tests", "no shards for training"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            run(tmp_path / name, tmp_path / "out")
        assert caught.value.exit_code == 2


HOSTILE = [
    "cut in an image",
    "cut between members",
    "broken header",
    "empty",
    "text",
    "name of 4 GB",
    "pax header of 4 GB",
    "size 2**62",
    "negative size",
    "bomb",
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_and_damaged_shards_are_named(tmp_path: Path, kind: str, packed: bool) -> None:
    data = hostile(kind)
    if packed:
        if kind == "bomb":
            return  # it is packed already
        data = gzip.compress(data)
    write_shard(tmp_path / "s" / "0.tar", sample(0))
    (tmp_path / "s" / "1.tar").write_bytes(data)
    with pytest.raises(DataError, match=r"1\.tar"):
        run(tmp_path / "s", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cut", [10, 200, -100, -30, -9])
def test_a_cut_compressed_shard_is_named(tmp_path: Path, cut: int) -> None:
    path = write_shard(tmp_path / "s" / "0.tar.gz", [m for k in range(6) for m in sample(k)], "w:gz")
    data = path.read_bytes()
    path.write_bytes(data[:cut])
    with pytest.raises(DataError, match=r"0\.tar\.gz"):
        run(tmp_path / "s", tmp_path / "out")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mangled_shards_are_read_or_refused(tmp_path: Path, data: Any) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in [*sample(0), *sample(1), *sample(2, key="\u00e9" * 60)]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    broken = bytearray(out.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, 12 * 512))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(broken[: data.draw(st.integers(1, len(broken)))]))
    try:
        shard = shard_scan.scan(str(path))
    except DataError as error:
        assert "x.tar" in str(error)
        return
    size = path.stat().st_size
    assert all(at > 0 and at + n <= size for at, n in zip(shard.offsets, shard.sizes, strict=True))
