"""Pictures of a folder: every kind of bad image is converted or quarantined, rotation, transparency, size."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from source_cases import RED, read_image, save

from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.loaders.sources.folder import list_images
from fastdrpl.loaders.sources.pictures import Span, Unreadable, read_picture


def make_bad_tree(root: Path) -> tuple[dict[str, str], int]:
    """A folder with every kind of file; returns {bad file: part of its reason} and how many files are ignored."""
    for label in ("ant", "bee"):
        for number in range(3):
            save(root / label / f"{number}.jpg", Image.new("RGB", (50, 40), RED))
    ant, bee = root / "ant", root / "bee"
    save(ant / "grey.png", Image.new("L", (30, 30), 99))
    save(ant / "cmyk.jpg", Image.new("CMYK", (30, 30), (0, 255, 255, 0)))
    save(ant / "palette.gif", Image.new("P", (30, 30), 3))
    save(ant / "deep.png", Image.fromarray(np.full((30, 30), 51400, np.uint16)))
    save(ant / "wrong_extension.jpg", Image.new("RGB", (30, 30), RED), format="PNG")
    save(ant / "deeper" / "UPPER.JPG", Image.new("RGB", (30, 30), RED))
    frames = [Image.new("RGB", (30, 30), colour) for colour in (RED, (0, 0, 0))]
    save(bee / "animated.webp", frames[0], save_all=True, append_images=frames[1:], lossless=True)
    Path(os.fsdecode(os.fsencode(bee) + b"/caf\xe9 \n.png")).write_bytes((ant / "grey.png").read_bytes())
    sound = (ant / "0.jpg").read_bytes()
    (bee / "empty.jpg").touch()
    (bee / "cut.jpg").write_bytes(sound[: len(sound) // 2])
    (bee / "cut.png").write_bytes((ant / "grey.png").read_bytes()[:60])
    (bee / "text.png").write_text("not an image")
    Image.new("F", (5, 5)).save(bee / "float.tiff")
    (bee / "broken_link.png").symlink_to("nowhere.png")
    (bee / "loop.png").symlink_to("loop.png")
    os.mkfifo(bee / "pipe.png")
    (bee / "above").symlink_to(root, target_is_directory=True)
    (bee / "self").symlink_to("self")
    for name in ("Thumbs.db", "notes.txt", ".hidden.jpg"):
        (ant / name).write_bytes(sound)
    bad = {
        "bee/broken_link.png": "broken link",
        "bee/cut.jpg": "truncated",
        "bee/cut.png": "",
        "bee/empty.jpg": "empty",
        "bee/float.tiff": "mode F",
        "bee/loop.png": "damaged",
        "bee/pipe.png": "not a regular file",
        "bee/text.png": "not an image",
    }
    return bad, 3


def test_every_kind_of_bad_image_is_converted_or_quarantined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, ignored = make_bad_tree(tmp_path / "photos")
    (tmp_path / "photos" / "bee" / "above").unlink()
    config = PrepareConfig(kind="folder", source=tmp_path / "photos", out=tmp_path / "out", size=24)
    dataset = prepare(config)
    split, ids = dataset.split("train"), dataset.ids("train")
    assert ids is not None and len(ids) == len(split) == 6 + 8 + len(bad)  # valid + quarantined = found
    seen = {ids[row] for row in np.flatnonzero(~split.valid)}
    assert seen == set(bad)
    lines = (tmp_path / "out" / "quarantine.csv").read_text().splitlines()[1:]
    assert len(lines) == len(bad)
    for line in lines:
        row, name, where, reason = line.split(",", 3)
        assert (ids[int(row)], where) == (name, "train") and bad[name] in reason
        assert not read_image(split, int(row)).any()
    said = capsys.readouterr().out
    assert f"{ignored} other files were ignored: 1 .txt, 1 hidden, 1 of the system" in said
    assert "links that lead nowhere: bee/self\n" in said
    assert f"{len(bad)} of them quarantined" in said and "ant, bee" in said
    assert [name for name in ids if "caf" in name] == ["bee/caf\\xe9 \n.png"]
    for name, colour in (
        ("ant/0.jpg", RED),
        ("ant/grey.png", (99, 99, 99)),
        ("ant/cmyk.jpg", (255, 0, 0)),
        ("ant/deep.png", (200, 200, 200)),
        ("ant/wrong_extension.jpg", RED),
        ("ant/deeper/UPPER.JPG", RED),
        ("bee/animated.webp", RED),
    ):
        image = read_image(split, ids.index(name)).astype(int)
        assert np.abs(image - np.array(colour)).max() <= 6, name


def test_links_to_folders_above_end(tmp_path: Path) -> None:
    make_bad_tree(tmp_path / "photos")
    found = list_images(str(tmp_path / "photos" / "bee"))
    assert len(found.paths) == len(set(found.paths)) > 0
    assert found.ignored >= 1


def test_exif_rotation_is_applied_and_broken_exif_is_not_fatal(tmp_path: Path) -> None:
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[:20] = 255  # white above
    for orientation, turned in (
        (3, np.rot90(upright, 2)),
        (6, np.rot90(upright, 1)),
        (8, np.rot90(upright, 3)),
    ):
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(tmp_path / "turned.jpg", Image.fromarray(np.ascontiguousarray(turned)), exif=exif, quality=100)
        seen = read_picture(str(tmp_path / "turned.jpg"), 32).astype(int)
        assert seen[:14].min() > 240 and seen[18:].max() < 15, orientation
    save(tmp_path / "broken.jpg", Image.fromarray(upright), exif=b"Exif\0\0nonsense", quality=100)
    assert read_picture(str(tmp_path / "broken.jpg"), 32)[:14].min() > 240


def test_an_image_in_memory_or_inside_a_file_is_the_same_image(tmp_path: Path) -> None:
    save(
        tmp_path / "a.png", Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    )
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "many").write_bytes(b"before" + data + b"after")
    wanted = read_picture(str(tmp_path / "a.png"), 16)
    assert np.array_equal(read_picture(data, 16), wanted)
    assert np.array_equal(read_picture(Span(str(tmp_path / "many"), 6, len(data)), 16), wanted)
    for place, reason in (
        (b"", "empty file"),
        (data[:50], "truncated|damaged"),
        (Span(str(tmp_path / "many"), 6, 1 << 40), "truncated"),
        (Span(str(tmp_path / "many"), 6, 0), "empty file"),
        (Span(str(tmp_path / "gone"), 6, 9), "no such file"),
        (bytes(300 << 20), "more than 256 MB"),
        (str(tmp_path), "not a regular file"),
    ):
        with pytest.raises(Unreadable, match=reason):
            read_picture(place, 16)


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    save(tmp_path / "a.png", Image.new("RGBA", (20, 20), (255, 0, 0, 0)))
    assert read_picture(str(tmp_path / "a.png"), 8).min() == 255


def test_reduction_is_antialiased_and_keeps_the_mean(tmp_path: Path) -> None:
    board = (np.indices((1024, 1024)).sum(0) % 2 * 255).astype(np.uint8)
    for name in ("board.png", "board.jpg"):
        save(tmp_path / name, Image.fromarray(board))
        seen = read_picture(str(tmp_path / name), 64).astype(float)
        assert abs(seen.mean() - 127.5) < 2 and seen.std() < 12, name


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]))
def test_mangled_images_are_read_or_quarantined(tmp_path: Path, data: Any, kind: str) -> None:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (17, 13, 3), dtype=np.uint8)).save(out, kind)
    broken = bytearray(out.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        broken[data.draw(st.integers(0, min(len(broken) - 1, 300)))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.img"
    path.write_bytes(bytes(broken[: data.draw(st.integers(1, len(broken)))]))
    try:
        image = read_picture(str(path), 16)
    except Unreadable as error:
        assert str(error)
        return
    assert image.shape == (16, 16, 3) and image.dtype == np.uint8
