"""Near copies, blank and tiny images: found where they are, not where they are not, and the same after a kill."""

import csv
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from prepare_cases import ROOT, contents
from test_prepare_continued import stop_in_the_middle

from fastdrpl.loaders import near, problem_search
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.marks import MARK, mark_images
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.loaders.problem_search import _forest
from fastdrpl.loaders.problems import describe_problems, read_problems

SIZE = 48


def scene(seed: int, size: int = 96) -> Image.Image:
    """A picture of shapes before a shaded ground, as unlike others as photos are."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    pixels = np.zeros((size, size, 3))
    for colour in range(3):
        for _ in range(12):
            fx, fy, phase = [*random.uniform(-9, 9, 2).tolist(), random.uniform(0, 6)]
            pixels[..., colour] += np.sin(fx * x + fy * y + phase)
    for _ in range(5):
        cx, cy, r = [*random.uniform(0.1, 0.9, 2).tolist(), random.uniform(0.05, 0.3)]
        pixels[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = random.uniform(-4, 4, 3)
    return Image.fromarray(np.clip(128 + 25 * pixels, 0, 255).astype(np.uint8))


def save(image: Image.Image, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


COPIES = {  # what is done to a picture: it stays the same one
    "quality": lambda image: image,  # saved as a poor JPEG
    "size": lambda image: image.resize((61, 61), Image.Resampling.BICUBIC),
    "bright": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "border": lambda image: image.crop((1, 1, 95, 95)),
    "dark": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 pictures in two classes, 20 of them for tests, and among them copies, blank ones and tiny ones."""
    source = tmp_path_factory.mktemp("problems") / "photos"
    for k in range(120):
        split = "test" if k >= 100 else "train"
        save(scene(k), source / split / ("cat", "dog")[k % 2] / f"{k:03}.png")
    for k, (name, change) in enumerate(COPIES.items()):
        where = ("train/cat", "train/dog", "test/cat")[k % 3]  # of pictures that are cats in training
        save(change(scene(2 * k)), source / where / f"{name}.jpg", quality=40 if name == "quality" else 90)
    noise = np.random.default_rng(0).integers(118, 121, (SIZE, SIZE, 3), dtype=np.uint8)
    save(Image.fromarray(noise), source / "train" / "dog" / "plain.png")
    save(Image.new("RGB", (300, 20), "white"), source / "train" / "dog" / "white.png")
    (source / "train" / "dog" / "bad.png").write_text("no image")  # is black, and no blank image
    save(scene(500, 31), source / "test" / "dog" / "small.png")
    return source


@pytest.fixture(scope="module")
def prepared(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "out"
    prepare(PrepareConfig(kind="folder", source=photos, out=out, size=SIZE), quiet=True)
    return out


def entry_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "dataset.json").read_text())["problems"]


def test_every_copy_is_found_with_its_original_and_nothing_else(prepared: Path) -> None:
    found = [problem for problem in read_problems(prepared) if problem.kind == "near"]
    pairs = {frozenset(Path(image.id).stem for image in problem.images) for problem in found}
    assert pairs == {frozenset([f"{2 * k:03}", name]) for k, name in enumerate(COPIES)}
    assert all(0.6 <= problem.similarity <= 1 for problem in found if problem.similarity is not None)
    interest = [2 * problem.two_labels + problem.train_and_test for problem in found]
    assert interest == [2, 2, 1, 1, 0, 0]
    assert [image.split for image in found[2].images] == ["train", "test"]


def test_blank_and_tiny_ones(prepared: Path) -> None:
    found = [(p.kind, p.images[0].id, p.size) for p in read_problems(prepared) if p.kind != "near"]
    assert found == [
        ("blank", "train/dog/plain.png", None),
        ("blank", "train/dog/white.png", None),
        ("tiny", "train/dog/white.png", (300, 20)),
        ("tiny", "test/dog/small.png", (31, 31)),
    ]


def test_the_entry_counts_what_the_list_holds(prepared: Path) -> None:
    entry, problems = entry_of(prepared), list(read_problems(prepared))
    with open(prepared / entry["file"], newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(problems)
    assert set(entry["counts"]) == set(entry["first"]) == set(entry["searched"])
    for kind, counts in entry["counts"].items():
        own = [problem for problem in problems if problem.kind == kind]
        assert counts == {
            "count": len(own),
            "two_labels": sum(len({image.label for image in problem.images}) > 1 for problem in own),
            "train_and_test": sum(len({image.split for image in problem.images}) > 1 for problem in own),
        }
        for first, problem in zip(entry["first"][kind], own, strict=False):
            assert [image["id"] for image in first["images"]] == [image.id for image in problem.images]
            assert first["similarity"] == problem.similarity
            assert first["size"] == (None if problem.size is None else list(problem.size))
    ids = [json.loads(line) for line in (prepared / "train.ids.jsonl").read_text().splitlines()]
    train = [image for problem in problems for image in problem.images if image.split == "train"]
    assert all(ids[image.row] == image.id and image.id.startswith(f"train/{image.label}/") for image in train)


def test_it_is_said_in_a_few_lines(prepared: Path) -> None:
    lines = describe_problems(entry_of(prepared))
    assert len(lines) == 4
    assert lines[0].startswith(
        "warning: 6 images look the same as another (2 under two labels, 2 in the training set and the test set)"
    )
    assert lines[1].startswith("2 images are blank") and lines[2].startswith("2 images were tiny")
    assert "problems.csv" in lines[3]
    assert describe_problems(None) == []  # a set from before


def test_a_bounded_search_says_so_and_takes_the_interesting_pairs_first(
    photos: Path,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = entry_of(prepared)["searched"]["near"]
    assert whole["compared"] == whole["candidates"] >= 6 and (whole["differing_bits"], whole["cut"]) == (
        7,
        False,
    )

    config = PrepareConfig(kind="folder", source=photos, out=tmp_path / "few", size=SIZE)
    monkeypatch.setattr(problem_search, "COMPARED", 3)
    prepare(config)
    said = capsys.readouterr()
    assert entry_of(config.out)["searched"]["near"] == whole | {"compared": 3}
    found = [(p.two_labels, p.train_and_test) for p in read_problems(config.out) if p.kind == "near"]
    assert found == [(True, False), (True, False), (False, True)]
    assert f"only 3 of {whole['candidates']} pairs that may look the same were compared" in said.out
    assert "looking for copies" not in said.err  # of so few

    pairs = near.close_pairs
    monkeypatch.setattr(near, "close_pairs", lambda looks, most, limit: pairs(looks, most, 2))
    monkeypatch.setattr(problem_search, "_SHOWN", 1)
    for quiet in (False, True):
        config = PrepareConfig(kind="folder", source=photos, out=tmp_path / f"cut {quiet}", size=SIZE)
        prepare(config, quiet=quiet)
        said = capsys.readouterr()
        near_entry = entry_of(config.out)["searched"]["near"]
        assert near_entry["cut"] and near_entry["differing_bits"] < 7
        candidates = near_entry["candidates"]
        assert ("looking for copies: " in said.err) is not quiet
        assert (f" of more than {candidates} pairs that may look the same" in said.out) is not quiet


@pytest.mark.parametrize("store", ["raw", "jpeg"])
def test_a_stopped_prepare_finds_the_same(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    options: dict[str, Any] = {"kind": "folder", "source": photos, "size": SIZE, "store": store}
    prepare(PrepareConfig(out=tmp_path / "whole", **options), quiet=True)
    config = PrepareConfig(out=tmp_path / "out", workers=1, **options)
    stop_in_the_middle(config, monkeypatch)
    prepare(config, quiet=True)
    assert contents(config.out) == contents(tmp_path / "whole")
    assert entry_of(config.out)["counts"]["near"]["count"] == 6


def test_refused_kinds_end_it_and_without_them_it_goes_on(
    photos: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"kind": "folder", "source": photos, "size": SIZE, "out": tmp_path / "out"}
    with pytest.raises(DataError) as caught:
        prepare(PrepareConfig(refuse=("duplicates", "tiny", "near"), **options), quiet=True)
    assert caught.value.exit_code == 3
    assert caught.value.what.splitlines()[0] == (
        "refused: 2 images were tiny before they were enlarged, 6 images look the same as another"
    )
    assert "  tiny: train/dog/white.png" in caught.value.what.splitlines()
    assert not (tmp_path / "out").exists()
    listed = Path(caught.value.where or "")
    assert listed.read_bytes() == (prepared / "problems.csv").read_bytes()
    prepare(PrepareConfig(refuse=("duplicates",), **options))
    assert "Continuing an unfinished prepare: 130 images are done" in capsys.readouterr().out
    assert contents(tmp_path / "out") == contents(prepared)
    with pytest.raises(DataError, match="refused: 2 images are blank"):
        prepare(PrepareConfig(refuse=("blank",), **options), quiet=True)
    entry = json.loads((tmp_path / "out" / "dataset.json").read_text())
    del entry["problems"]
    (tmp_path / "out" / "dataset.json").write_text(json.dumps(entry))
    with pytest.raises(UserError, match="before such problems were looked for"):
        prepare(PrepareConfig(refuse=("blank",), **options), quiet=True)


def test_the_command_refuses_with_exit_code_3(photos: Path, tmp_path: Path) -> None:
    words = ["prepare", "folder", "--source", str(photos), "--size", "48", "--out", str(tmp_path / "o")]
    done = subprocess.run(
        [sys.executable, "-m", "fastdrpl", *words, "--refuse", "near", "blank"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3 and "refused: 6 images look the same as another" in done.stderr


def test_drawings_and_digits_that_are_only_alike_are_not_taken_for_copies(tmp_path: Path) -> None:
    prepare(PrepareConfig(kind="digits", out=tmp_path / "digits"), quiet=True)
    assert [counts["count"] for counts in entry_of(tmp_path / "digits")["counts"].values()] == [0, 0, 0, 0]


def pairs_of(found: near.Close) -> set[tuple[int, int, int]]:
    return set(zip(found.first.tolist(), found.second.tolist(), found.bits.tolist(), strict=True))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 7), st.integers(1, 400))
def test_pairs_are_those_of_a_search_of_all(seed: int, most: int, count: int) -> None:
    random = np.random.default_rng(seed)
    looks = random.integers(0, 1 << 64, count, dtype=np.uint64)
    for _ in range(count):  # copies with a few flipped bits
        flips = np.bitwise_or.reduce(np.uint64(1) << random.integers(0, 64, 4, dtype=np.uint64))
        looks[random.integers(count)] = looks[random.integers(count)] ^ flips
    looks = np.unique(looks)
    wanted = {
        (a, b, bits)
        for a, b in itertools.combinations(range(len(looks)), 2)
        if (bits := int(looks[a] ^ looks[b]).bit_count()) <= most
    }
    found = near.close_pairs(looks, most, 1 << 20)
    assert pairs_of(found) == wanted
    limit = len(wanted) // 2
    fewer = near.close_pairs(looks, most, limit)
    assert pairs_of(fewer) <= wanted and len(pairs_of(fewer)) == limit
    assert sorted(fewer.bits.tolist()) == sorted(bits for _, _, bits in wanted)[:limit]
    assert (found.most, found.cut) == (most, False)
    assert (fewer.most, fewer.cut) == (
        (max(fewer.bits.tolist(), default=0), True) if wanted else (most, False)
    )


def test_of_a_video_the_closest_pairs_are_kept_and_not_none() -> None:
    random = np.random.default_rng(0)
    scenes = np.repeat(random.integers(0, 1 << 64, 10, dtype=np.uint64), 150)
    flips = np.uint64(1) << random.integers(0, 64, (1500, 2), dtype=np.uint64)
    looks = np.unique(
        scenes ^ flips[:, 0] ^ flips[:, 1]
    )  # 2 bits from their scene, and 2 or 4 from each other
    everything = near.close_pairs(looks, 3, 1 << 20)
    assert len(everything.bits) > 6000 and everything.bits.min() == 2 and not everything.cut
    found = near.close_pairs(looks, 3, 1500)  # is cut while it searches, and at its end
    assert len(pairs_of(found)) == len(found.bits) == 1500 and pairs_of(found) <= pairs_of(everything)
    assert (found.most, found.cut) == (2, True)
    assert len(np.union1d(found.first, found.second)) > 0.8 * len(
        looks
    )  # and not the first looks with all theirs


def test_many_copies_of_one_picture_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "_WIDEST", 8)
    looks = np.arange(2000, dtype=np.uint64)  # all in the same bands but one
    found = near.close_pairs(looks, 3, 10_000)
    assert 0 < len(found.bits) <= 10_000 and found.bits.max() <= 3


@pytest.mark.parametrize("size", [1, 7, 16, 32, 48, 50, 64, 96])
def test_marks_do_not_depend_on_the_batch_nor_on_the_layout(size: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (37, size, size, 3), dtype=np.uint8)
    images[5] = 77
    marks = mark_images(images)
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    assert np.array_equal(mark_images(planes), marks)
    assert np.array_equal(np.concatenate([mark_images(images[k : k + 1]) for k in range(37)]), marks)
    assert marks["look"][5] == 0 and marks["contrast"][5] == 0
    deviation = images[..., 1].reshape(37, -1).std(1)
    assert (marks["contrast"] <= deviation + 0.6).all()
    assert marks.dtype == MARK and (marks["width"] == 0).all()


def test_likenesses_do_not_depend_on_how_the_pairs_are_dealt(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 40, 50, 3), dtype=np.uint8)
    images[8] = images[0] // 2
    pairs = np.array([[0, 8], *np.random.default_rng(1).integers(0, 9, (39, 2)).tolist()])
    monkeypatch.setattr(near, "_BLOCK", 7)
    monkeypatch.setattr(near, "_KEPT", 5)
    steps: list[int] = []
    found = near.similarities(pairs, images.__getitem__, steps.append)
    edges = np.stack([near.find_edges(image) for image in images])
    assert np.allclose(found, (edges[pairs[:, 0]] * edges[pairs[:, 1]]).sum(1), atol=1e-6)
    assert found[0] > 0.99 and sum(steps) == len(pairs) and len(steps) > 1


def test_a_forest_joins_everything_with_the_first_pairs() -> None:
    pairs = np.array([[1, 2], [2, 3], [1, 3], [5, 6], [3, 1], [6, 3], [2, 5]])
    assert _forest(pairs) == [0, 1, 3, 5]
