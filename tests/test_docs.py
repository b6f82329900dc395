"""Every command shown in README.md and docs/ runs, and every name in them exists.

Commands of a page run in order in one folder, in this process where possible. Those that train are given further
flags, which make them short and change nothing else; those that set up a machine are only looked at.
"""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from looked_at import SET_UP
from PIL import Image

from bench.generate_imagenet import generate
from fastdrpl.bench_loaders import BenchConfig
from fastdrpl.cli import main
from fastdrpl.compare.verb import CompareConfig
from fastdrpl.config_file import read_table
from fastdrpl.confusion import ConfusionConfig
from fastdrpl.detect.command import DetectCommand
from fastdrpl.exports.verb import ExportConfig
from fastdrpl.figures.command import CamFigure, DoubtfulFigure, LossesFigure
from fastdrpl.figures.probe import ProbeCommand
from fastdrpl.fixing.command import FixCommand
from fastdrpl.loaders.prepare_config import PrepareConfig
from fastdrpl.predict import PredictConfig
from fastdrpl.report.command import ReportCommand
from fastdrpl.watch import StatusConfig

ROOT = Path(__file__).resolve().parent.parent
PAGES = {path.name: path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}
SCRIPT = "fastdrpl/train.py"

# gamma 0.9: after one epoch on few images hardly any label looks right, and too few of them end a run (code 5).
SHORT = {
    "--epochs_scale": "0.005",
    "--limit": "100",
    "--limit_test": "50",
    "--model.width": "4",
    "--drpl.gamma1": "0.9",
    "--drpl.gamma2": "0.9",
    "--detect.collapse": "relax",
    "--engine.threads": "1",
}
SHORTER = {  # than SHORT, for some recipes
    "cifar100": {"--limit": "400"},
    "folder": {"--augment.size": "32", "--batch_size": "12", "--model.width": "64", "--limit_test": "0"},
    "imagenet32": {"--limit": "300"},
    "imagenet64": {"--limit": "300"},
}
SHORT_PREPARE = {
    "imagenet32": ["--subset"],
    "imagenet64": ["--subset"],
}  # the real ones have 1,281,167 images
LAUNCHER_FLAGS = {"cpu", "mixed_precision", "multi_gpu", "num_processes", "nproc_per_node", "standalone"}
SETTINGS = (
    PrepareConfig,
    PredictConfig,
    BenchConfig,
    ConfusionConfig,
    DetectCommand,
    ExportConfig,
    FixCommand,
    CompareConfig,
    ReportCommand,
    LossesFigure,
    CamFigure,
    DoubtfulFigure,
    ProbeCommand,
    StatusConfig,
)  # of verbs other than train
OTHER_FLAGS = {"config", "debug", "help", "version"}  # read by fastdrpl's command line itself


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page: (language, text)."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """What a reader types, of a console block: lines after `$ `, continued where a line ends in a backslash."""
    lines = text.replace("\\\n", " ").splitlines()
    return [part.strip() for line in lines if line.startswith("$ ") for part in line[2:].split("&&")]


def all_commands(page: Path) -> list[str]:
    return [command for language, text in blocks(page) if language == "console" for command in commands(text)]


# --- commands that run ---


def recipe_of(words: list[str]) -> str:
    """The recipe of the words after `train`, which may be named by a configuration file."""
    if not words[0].startswith("-"):
        return words[0]
    return read_table(Path(words[words.index("--config") + 1]))["recipe"]


def method_of(words: list[str]) -> str:
    """The method of the words after `train`."""
    if "--method" in words:
        return words[words.index("--method") + 1]
    file = words[words.index("--config") + 1] if "--config" in words else ""
    return read_table(Path(file)).get("method", "drpl") if file else "drpl"


def shortened(words: list[str]) -> list[str]:
    """The words after `train`, with flags that make it short; a later flag wins over an earlier one."""
    flags = SHORT | SHORTER.get(recipe_of(words), {})
    if method_of(words) != "drpl":
        flags = {flag: value for flag, value in flags.items() if not flag.startswith("--drpl.")}
    return [*words, *(word for flag in flags.items() for word in flag)]


def run_verb(words: list[str]) -> None:
    if words[0] == "train":
        words = ["train", *shortened(words[1:])]
    if words[0] == "prepare":
        words = [*words, *SHORT_PREPARE.get(words[1], [])]
    try:
        code = main(words)
    except SystemExit as end:  # tyro's
        code = end.code
    assert code in (0, None), f"fastdrpl {shlex.join(words)} ended with {code}"
    if words[0] == "train" and "--run" in words:
        assert (Path(words[words.index("--run") + 1]) / "result.json").exists()


def run_process(words: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *words], env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"


def run_accelerate(words: list[str], environment: dict[str, str], page: str) -> None:
    """As a process for the README; elsewhere, where GPUs are asked for too, options are read and one rank runs."""
    assert words[1] == "launch", words
    options, rest = words[2 : words.index(SCRIPT)], words[words.index(SCRIPT) + 1 :]
    if page == "README.md":
        assert not options, "the README's command is for any machine"
        module = ["accelerate.commands.accelerate_cli", "launch", str(ROOT / SCRIPT)]
        run_process([*module, *shortened(rest)], environment)
        return
    from accelerate.commands.launch import launch_command_parser

    asked = launch_command_parser().parse_args([*options, SCRIPT])
    if "--engine.ranks" in rest:
        position = rest.index("--engine.ranks")
        assert int(rest[position + 1]) == asked.num_processes
        rest = rest[:position] + rest[position + 2 :]
    run_verb(["train", *rest])


def run_torchrun(words: list[str], environment: dict[str, str]) -> None:
    options, rest = words[1 : words.index(SCRIPT)], words[words.index(SCRIPT) + 1 :]
    run_process(["torch.distributed.run", *options, str(ROOT / SCRIPT), *shortened(rest)], environment)


def treat(command: str, page: str) -> None:
    """Run a command or look at it; fails for one that no rule covers."""
    words = shlex.split(command, comments=True)
    environment = {}
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        name, _, environment[name] = words.pop(0).partition("=")
    if words[0] in SET_UP:
        SET_UP[words[0]](words)
    elif words[0] == "fastdrpl" and not environment:
        run_verb(words[1:])
    elif words[0] == "accelerate":
        run_accelerate(words, environment, page)
    elif words[0] == "torchrun":
        run_torchrun(words, environment)
    else:
        pytest.fail(f"{page} shows a command that this test does not know how to treat: {command}")


# --- what the commands find on the disk ---


def make_photos(folder: Path) -> None:
    """36 small pictures of three kinds, some grey, of different sizes."""
    draw = np.random.default_rng(0)
    for k, name in enumerate(("bird", "cat", "dog")):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            pixels = draw.integers(0, 80, (40 + number, 60, 3), dtype=np.uint8)
            pixels[..., k] += 100
            image = Image.fromarray(pixels)
            (image.convert("L") if number == 3 else image).save(folder / name / f"{number}.jpg")


def make_other_forms(place: Path) -> None:
    """The same photos as a table, as a tar shard and as a saved Hugging Face dataset."""
    import datasets

    files = sorted((place / "photos").glob("*/*.jpg"))
    lines = [f"{file.relative_to(place)},{file.parent.name}\n" for file in files]
    (place / "photos.csv").write_text("path,label\n" + "".join(lines))
    (place / "shards").mkdir()
    with tarfile.open(place / "shards" / "000.tar", "w") as shard:
        for number, file in enumerate(files):
            label = io.BytesIO(file.parent.name.encode())
            shard.add(file, f"{number:03}.jpg")
            about = tarfile.TarInfo(f"{number:03}.cls")
            about.size = len(label.getvalue())
            shard.addfile(about, label)
    columns = {"image": [str(file) for file in files], "label": [file.parent.name for file in files]}
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    datasets.Dataset.from_dict(columns, features=kinds).save_to_disk(place / "saved")


def make_webvision(folder: Path) -> None:
    """Fifty classes with two images each, one of them from Flickr, and one for testing."""
    (folder / "info").mkdir(parents=True)
    (folder / "val_images_256").mkdir()
    (folder / "info" / "synsets.txt").write_text("".join(f"n{k:08} thing\n" for k in range(50)))
    for name, path in (
        ("train_filelist_google", "google/q{0}.jpg"),
        ("train_filelist_flickr", "flickr/q{0}.jpg"),
        ("val_filelist", "{0}.jpg"),
    ):
        (folder / "info" / f"{name}.txt").write_text("".join(f"{path.format(k)} {k}\n" for k in range(50)))
        for k in range(50):
            place = folder / ("val_images_256" if name == "val_filelist" else "") / path.format(k)
            place.parent.mkdir(exist_ok=True)
            Image.new("RGB", (30, 20), (5 * k, 90, 0)).save(place)


def make_imagenet(folder: Path, size: int) -> Path:
    """Ten images of each class and one for testing, as published."""
    return generate(folder, images=10_000, val=1000, size=size, layout="pickle")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory):
    """Makes prepared data, once: (kind, source) -> folder."""
    base = tmp_path_factory.mktemp("prepared")

    def make(kind: str, source: Path | None) -> Path:
        out = base / kind
        if not out.exists():
            given = [] if source is None else ["--source", str(source)]
            given += SHORT_PREPARE.get(kind, [])
            assert main(["prepare", kind, *given, "--out", str(out)]) == 0
        return out

    return make


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to stand in; torch's number of threads is given back afterwards."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def furnish(place: Path, page: Path, request: pytest.FixtureRequest, prepared) -> None:
    """What a page takes for granted: downloads, photos, a matrix, its own TOML files, data that it does not prepare."""
    text = "\n".join(all_commands(page))
    downloads = place / "downloads"
    downloads.mkdir()
    if re.search(r"\bcifar", text):
        for folder in Path(request.getfixturevalue("real_cifar")).glob("cifar-*"):
            (downloads / folder.name).symlink_to(folder)
    for kind in ("imagenet32", "imagenet64"):
        if f"prepare {kind} " in text:
            make_imagenet(downloads, int(kind[-2:]))
    if "downloads/webvision" in text:
        make_webvision(downloads / "webvision")
    make_photos(place / "photos")
    if "photos.csv" in text:
        make_other_forms(place)
    if "counts.npz" in text:
        counts = np.random.default_rng(0).integers(0, 3, (1000, 1000)) + 50 * np.eye(1000, dtype=np.int64)
        np.savez(place / "counts.npz", resnet50=counts)
    np.savetxt(place / "matrix.csv", 0.9 * np.eye(10) + 0.01, delimiter=",")
    for language, block in blocks(page):
        if language == "toml":
            (place / re.match(r"# (\S+\.toml)\n", block)[1]).write_text(block)
    for kind in sorted(set(re.findall(r"--data data/(digits|cifar100?|imagenet\d+)(?![\w-])", text))):
        if not re.search(rf"prepare {kind} .*--out data/{kind}(?![\w-])", text):
            (place / "data").mkdir(exist_ok=True)
            source = None if kind == "digits" else downloads
            if kind.startswith("imagenet"):
                source = make_imagenet(place / kind, int(kind[-2:]))
            (place / "data" / kind).symlink_to(prepared(kind, source))


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_of_a_page_run(name, place, request, prepared):
    """R23."""
    page = PAGES[name]
    furnish(place, page, request, prepared)
    for language, text in blocks(page):
        if language == "console":
            assert commands(text), f"{name}: a console block without a line that starts with `$ `"
            for command in commands(text):
                treat(command, name)
        elif language == "python":
            exec(compile(text, name, "exec"), {"__name__": "__main__"})
    if name == "runs.md":
        check_description(page.read_text(), place / "runs" / "digits")


def check_description(text: str, run: Path) -> None:
    """All that lies in a run folder is named on the page: files, columns of the table, keys of the result."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"`([^`]+)`", prose))
    files = {path.name + "/" * path.is_dir() for path in run.iterdir()}
    missing = {file for file in files if not any(name.startswith(file) for name in named)}
    assert not missing, missing
    assert b"Suspects" in (run / "report.html").read_bytes()
    table = pyarrow.parquet.read_table(run / "labels.parquet")
    assert len(table) == int(SHORT["--limit"])
    assert set(table.column_names) <= named, set(table.column_names) - named
    result = json.loads((run / "result.json").read_text())
    keys = {*result, *result["stages"][0], *result["stages"][0]["detection"]}
    assert keys <= named, keys - named


def test_a_command_that_no_rule_covers_fails():
    with pytest.raises(pytest.fail.Exception):
        treat("rm -rf runs", "README.md")
    with pytest.raises(AssertionError):
        treat("./quickstart everything", "README.md")
    with pytest.raises(AssertionError):
        treat("fastdrpl train digits --widht 4", "README.md")
