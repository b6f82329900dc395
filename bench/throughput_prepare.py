"""From what was downloaded to a prepared set, beside what the machine can do: `python bench/throughput_prepare.py`.

Claims: `prepare` of ImageNet64's published batch files (streamed, turned from colour planes to images, hashed,
synced) runs at 80 % of the speed of a synced copy of the same files, in less than 2 GB of memory; photos to 256
pixels at 90 % of what decoder and resizer reach alone on all cores. Beside them: FFCV's own writer and a
WebDataset writer, which store the same raw images out of memory.

Turns alternate, and every side starts with an empty output and synced disks. `--full` takes the whole published
size instead (1,281,167 images, 15.7 GB; up to 33 GB of disk): copy and prepare, then a prepare that is killed in
the middle and resumed, whose files must be those of the unbroken one.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the repository, not this folder

import numpy as np

from bench.generate_imagenet import IMAGES, draw_pool, generate
from bench.rows import RESULTS, write_row
from fastdrpl.loaders.sources.pictures import Target, read_pictures

SIDE, CHUNK = 64, 16
PEER_IMAGES, PHOTOS = 40_000, 6_000
PHOTO = (500, 375)  # pixels, about ImageNet's median
WRITER_LIMIT = 300  # seconds; FFCV's writer waits for ever when one of its workers fails

CHILD = """
import json, resource, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from fastdrpl.loaders.prepare import PrepareConfig, prepare
if __name__ == "__main__":
    start = time.perf_counter()
    prepare(PrepareConfig(**json.loads(sys.argv[1], object_hook=lambda o: {{
        key: Path(value) if key in ("source", "out") else value for key, value in o.items()}})), quiet=True)
    seconds = time.perf_counter() - start
    peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
    print(json.dumps({{"seconds": seconds, "peak_bytes": int(peak) * 1024}}))
"""


def copy_files(source: Path, out: Path) -> dict[str, Any]:
    """Read and write every file in blocks of 1 MiB, and sync it."""
    start = time.perf_counter()
    out.mkdir()
    block = bytearray(1 << 20)
    for path in files_of(source):
        with open(path, "rb", buffering=0) as old, open(out / path.name, "wb", buffering=0) as new:
            while n := old.readinto(block):
                new.write(memoryview(block)[:n])
            os.fsync(new.fileno())
    return {"seconds": time.perf_counter() - start}


def start_prepare(**options: Any) -> subprocess.Popen[str]:
    """`prepare` in a process of its own, which times itself and tells its peak of memory."""
    options = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
    command = [sys.executable, "-c", CHILD.format(root=sys.path[0]), json.dumps(options)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def run_prepare(**options: Any) -> dict[str, Any]:
    """Wait for `start_prepare`; {"seconds", "peak_bytes"}."""
    with start_prepare(**options) as process:
        said = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(f"prepare ended with {process.returncode}")
    return json.loads(said)


def files_of(folder: Path) -> list[Path]:
    """All files below, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def measure_sides(
    sides: dict[str, Callable[[Path], dict[str, Any]]], folder: Path, turns: int
) -> dict[str, Any]:
    """Each side in turn; what it wrote is removed, and the disks are synced, outside the measured time."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for turn in range(turns):
        order = list(sides) if turn % 2 == 0 else list(reversed(sides))  # none always comes first
        for name in order:
            side, out = sides[name], folder / "out"
            os.sync()
            results[name].append(side(out))
            shutil.rmtree(out)
            print(f"  turn {turn + 1}, {name}: {results[name][-1]['seconds']:.2f} s", flush=True)
    return results


def report(
    what: str, images: int, nbytes: int, results: dict[str, list[dict[str, Any]]], yardstick: str, **more: Any
) -> None:
    """Print a line and store a row for each side; the ratio is the median of the turns' ratios."""
    base = np.array([result["seconds"] for result in results[yardstick]])
    for name, of in results.items():
        seconds = np.array([result["seconds"] for result in of])
        count = of[0].get("images", images)
        rate = images / base if name == yardstick else count / seconds
        ratio = float(np.median(rate / (images / base)))
        figures: dict[str, Any] = {"images": count, "images_per_second": round(float(np.median(rate)))}
        if "peak_bytes" in of[0]:
            figures["peak_bytes"] = max(result["peak_bytes"] for result in of)
        if nbytes:
            figures["gb_per_second"] = round(nbytes * count / images / 1e9 / float(np.median(seconds)), 3)
        write_row(
            RESULTS / "throughput_prepare.jsonl",
            what=what,
            shape=(count, *more["shape"]),
            dtype="uint8",
            backend=name,
            seconds=seconds.tolist(),
            warmup=0,
            threads=len(os.sched_getaffinity(0)),
            yardstick=yardstick,
            ratio=round(ratio, 3),
            **figures,
        )
        shown = ", ".join(f"{key} {value:,}" for key, value in figures.items() if key != "images")
        print(f"{what}: {name}: {np.median(seconds):.2f} s, {shown}, {ratio:.2f} x {yardstick}", flush=True)


def load_rows(count: int) -> np.ndarray:
    """Images for the writers that take them out of memory: (count, 64, 64, 3) uint8."""
    pool = draw_pool(SIDE).reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pool[np.arange(count) % len(pool)])


class Rows:
    """Images and labels as FFCV's writer wants them."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return self.images[row], row % 1000


def _write_ffcv(out: Path, told: Any) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    rows = Rows(load_rows(PEER_IMAGES))
    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
    start = time.perf_counter()
    writer = DatasetWriter(str(out / "ffcv.beton"), fields, num_workers=len(os.sched_getaffinity(0)))
    writer.from_indexed_dataset(rows)
    with open(out / "ffcv.beton", "rb") as file:
        os.fsync(file.fileno())
    told.send(time.perf_counter() - start)


def write_ffcv(out: Path) -> dict[str, Any]:
    """FFCV's DatasetWriter, raw, all cores, in a process that can be ended when it hangs."""
    out.mkdir()
    context = multiprocessing.get_context("fork")  # its own workers must be forks, or they copy the images
    told, telling = context.Pipe(duplex=False)
    process = context.Process(target=_write_ffcv, args=(out, telling))
    process.start()
    try:
        if not told.poll(WRITER_LIMIT):
            raise RuntimeError(f"FFCV's writer did not end within {WRITER_LIMIT} s")
        return {"seconds": told.recv(), "images": PEER_IMAGES}
    finally:
        process.kill()
        process.join()


def write_webdataset(out: Path) -> dict[str, Any]:
    """WebDataset's own shard writer, raw bytes and label of each image, on one core as it works."""
    from webdataset import ShardWriter

    images = load_rows(PEER_IMAGES)
    out.mkdir()
    start = time.perf_counter()
    with ShardWriter(str(out / "%06d.tar"), maxcount=10_000, verbose=0) as writer:
        for row, image in enumerate(images):
            writer.write({"__key__": f"{row:08}", "rgb": image.tobytes(), "cls": row % 1000})
    for path in files_of(out):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    return {"seconds": time.perf_counter() - start, "images": PEER_IMAGES}


def compare_raw(folder: Path, images: int, turns: int) -> None:
    """prepare beside a copy and the two writers."""
    source = generate(folder / "source", images=images, val=images // 25)
    for path in files_of(source):
        path.read_bytes()  # both sides find the files in memory
    nbytes = sum(path.stat().st_size for path in files_of(source))
    total = images + images // 25
    options = {"kind": "imagenet64", "source": source, "subset": True}
    results = measure_sides(
        {
            "copy, 1 thread": lambda out: copy_files(source, out),
            "fastdrpl prepare": lambda out: run_prepare(out=out, **options),
            "ffcv.DatasetWriter": write_ffcv,
            "webdataset.ShardWriter": write_webdataset,
        },
        folder,
        turns,
    )
    shape = (SIDE, SIDE, 3)
    report("prepare imagenet64, raw", total, nbytes, results, "copy, 1 thread", shape=shape)
    shutil.rmtree(source)


def write_photos(folder: Path, count: int) -> Path:
    """JPEG photos of 500 x 375 in two class folders, each different: copies would be looked for, pixel by pixel."""
    from PIL import Image

    random = np.random.default_rng(0)
    fine = random.integers(0, 40, (PHOTO[1], PHOTO[0], 3), np.uint8)
    for number in range(count):
        path = folder / f"class{number % 2}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 216, (6, 8, 3), np.uint8))
        pixels = np.asarray(coarse.resize(PHOTO, Image.Resampling.BICUBIC))
        Image.fromarray(pixels + fine).save(path, quality=90)
    return folder


def _decode(paths: list[str]) -> int:
    return len(read_pictures(paths, Target(256, "raw", 95))[0])


def compare_photos(folder: Path, turns: int) -> None:
    """prepare of photos beside the same decoder and resizer alone, on all cores."""
    source = write_photos(folder / "photos", PHOTOS)
    paths = [str(path) for path in files_of(source)]
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    workers = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_decode, chunks[: 4 * workers]))  # the processes have started

        def decode_alone(out: Path) -> dict[str, Any]:
            out.mkdir()
            start = time.perf_counter()
            done = sum(pool.map(_decode, chunks))
            if done != PHOTOS * 256 * 256 * 3:
                raise RuntimeError("not all photos were decoded")
            return {"seconds": time.perf_counter() - start}

        results = measure_sides(
            {
                "decoder + resizer": decode_alone,
                "fastdrpl prepare": lambda out: run_prepare(kind="folder", source=source, out=out, size=256),
            },
            folder,
            turns,
        )
    report("prepare photos to 256, raw", PHOTOS, 0, results, "decoder + resizer", shape=(256, 256, 3))
    shutil.rmtree(source)


def run_full(folder: Path, images: int, val: int, keep: bool, turns: int) -> None:
    """The whole published size: copy, prepare, and a prepare that is killed in the middle and resumed."""
    start = time.perf_counter()
    source = generate(folder / "source", images=images, val=val)
    nbytes = sum(path.stat().st_size for path in files_of(source))
    print(f"generated {nbytes / 1e9:.2f} GB in {time.perf_counter() - start:.0f} s", flush=True)
    options = {"kind": "imagenet64", "source": source, "subset": (images, val) != IMAGES}
    sums: list[dict[str, Any]] = []

    def prepare_once(out: Path) -> dict[str, Any]:
        result = run_prepare(out=out, **options)
        sums.append(json.loads((out / "dataset.json").read_text())["files"])
        return result

    sides = {"copy, 1 thread": lambda out: copy_files(source, out), "fastdrpl prepare": prepare_once}
    results = measure_sides(sides, folder, turns)
    what = "prepare imagenet64, raw, whole"
    report(what, images + val, nbytes, results, "copy, 1 thread", shape=(SIDE, SIDE, 3))

    out = folder / "prepared"
    journal = out.with_name(f".{out.name}.preparing") / "journal"
    with start_prepare(out=out, **options) as process:
        while process.poll() is None and rows_done(journal) < images // 2:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    done = rows_done(journal)
    if process.returncode != -signal.SIGKILL or out.exists():
        raise RuntimeError("prepare ended before it could be killed")
    result = run_prepare(out=out, **options)
    if json.loads((out / "dataset.json").read_text())["files"] != sums[0]:
        raise RuntimeError("the resumed files are not those of the unbroken run")
    print(
        f"killed at {done:,} images, resumed in {result['seconds']:.1f} s with a peak of "
        f"{result['peak_bytes'] / 1e6:.0f} MB: the same sha256 of every file"
    )
    shutil.rmtree(source)
    if keep:
        print(f"kept: {out}")
    else:
        shutil.rmtree(out)


def rows_done(journal: Path) -> int:
    """Training images that an unfinished prepare has safely on the disk."""
    try:
        lines = journal.read_bytes().split(b"\n")[1:-1]
    except FileNotFoundError:
        return 0
    return max((entry["rows"] for entry in map(json.loads, lines) if entry["split"] == "train"), default=0)


@contextmanager
def working_folder(parent: Path | None, keep: bool) -> Iterator[Path]:
    """A new folder, removed at the end unless it is to be kept."""
    folder = Path(tempfile.mkdtemp(prefix="fastdrpl-bench-", dir=parent))
    try:
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, help="where to work; default: the system's temporary folder")
    parser.add_argument(
        "--images", type=int, default=0, help="training images; default 116,000, or all with --full"
    )
    parser.add_argument("--turns", type=int, help="default 5, or 3 with --full")
    parser.add_argument("--only", choices=("raw", "photos"))
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--keep", action="store_true", help="with --full: keep the prepared set")
    options = parser.parse_args()
    with working_folder(options.folder, options.keep) as folder:
        if options.full:
            images = options.images or IMAGES[0]
            run_full(folder, images, IMAGES[1] * images // IMAGES[0], options.keep, options.turns or 3)
            return
        if options.only != "photos":
            compare_raw(folder, options.images or 116_000, options.turns or 5)
        if options.only != "raw":
            compare_photos(folder, options.turns or 5)


if __name__ == "__main__":
    main()
