"""ImageNet32 and ImageNet64: every published layout gives the same bytes, and a wrong one is named."""

import hashlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imagenet_small_cases import (
    IMAGES,
    MAKERS,
    NAMES,
    VAL,
    batch_file,
    copy,
    generate_sources,
    load,
    make,
    make_wanted,
    prepare_small,
    read_all,
)

from bench.generate_imagenet import draw_labels, generate, write_pickle
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.loaders.sources.imagenet_small import class_order, open_imagenet_small


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return generate_sources(tmp_path_factory)


@pytest.fixture(scope="module")
def wanted(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return make_wanted(sources, tmp_path_factory)


ROOT = Path(__file__).resolve().parent.parent


# --- the classes -----------------------------------------------------------------------------------------------------


def test_the_class_order_is_that_of_map_clsloc() -> None:
    order = class_order()
    assert len(order) == len(set(order)) == 1000
    known = {0: "n02119789", 521: "n02708093", 737: "n07715103", 740: "n07717410", 660: "n03761084"}
    known |= {411: "n01824575", 999: "n03255030"}
    assert {k: order[k] for k in known} == known
    assert sorted(order)[:2] == ["n01440764", "n01443537"] and sorted(order)[-1] == "n15075141"
    digest = hashlib.sha256("\n".join(order).encode()).hexdigest()
    assert digest == "930a31901625f2149f8bab016254025ad225daf9efafa3f00011daf6f5f919f9"


def test_class_names_of_a_prepared_set_are_the_ids_in_that_order(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    dataset = prepare_small(sources["pickle"], tmp_path / "out")
    assert dataset.class_names == class_order()
    assert (dataset.mean, dataset.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (dataset.flip, dataset.pad, dataset.name) == (True, 4, "imagenet32")
    labels = np.concatenate([load(sources["pickle"], name)[1] for name in NAMES[:-1]])
    assert np.array_equal(dataset.split("train").label, labels - 1)
    assert np.array_equal(dataset.split("test").label, load(sources["pickle"], "val_data")[1] - 1)


@pytest.mark.parametrize("good", [True, False])
def test_a_list_beside_the_data_is_compared(sources: dict[str, Path], tmp_path: Path, good: bool) -> None:
    source = copy(sources["pickle"], tmp_path / "in")
    order = list(class_order() if good else sorted(class_order()))
    (source / "map_clsloc.txt").write_text("".join(f"{name} {k + 1} x\n" for k, name in enumerate(order)))
    if good:
        prepare_small(source, tmp_path / "out")
    else:
        with pytest.raises(DataError, match=r"class 1 is n01440764.*n02119789"):
            prepare_small(source, tmp_path / "out")


LAYOUTS = [*MAKERS, "packed npz", "packed npz in a stored zip", "half unpacked", "python 2"]
LAYOUTS += [f"protocol {protocol}" for protocol in (2, 4, 5)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_bytes(
    sources: dict[str, Path], wanted: dict[str, bytes], tmp_path: Path, layout: str
) -> None:
    source = make(layout, sources, tmp_path / "in")
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    prepare_small(source, tmp_path / "out")
    for name, data in wanted.items():
        assert (tmp_path / "out" / name).read_bytes() == data
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before  # nothing unpacked there


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reading_goes_on_from_any_row(sources: dict[str, Path], tmp_path: Path, layout: str) -> None:
    source = make(layout, sources, tmp_path / "in")
    part = open_imagenet_small("imagenet32", source, subset=True).parts["train"]
    whole = np.concatenate([piece.images for piece in part.read(0)])
    assert len(whole) == IMAGES == len(part.labels)
    for start in (1, 202, 203, 204, 1000, IMAGES - 1):
        assert np.array_equal(np.concatenate([piece.images for piece in part.read(start)]), whole[start:])
    assert not list(part.read(IMAGES))


def test_imagenet64(sources: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = PrepareConfig(kind="imagenet64", source=sources["64"], out=tmp_path / "out", subset=True)
    dataset = prepare(config)
    said = capsys.readouterr().out
    assert "Layout: 10 + 1 published batch files, pickled" in said
    assert "A subset: 2,030 training and 70 validation images; the whole set has 1,281,167 and 50,000" in said
    assert (dataset.pad, dataset.split("train").height) == (8, 64)
    planes = load(sources["64"], "val_data")[0]
    assert np.array_equal(read_all(dataset, "test"), planes.reshape(-1, 3, 64, 64).transpose(0, 2, 3, 1))
    prepare(config)
    assert "verified" in capsys.readouterr().out


def test_counts_are_checked(sources: dict[str, Path], tmp_path: Path) -> None:
    whole = open_imagenet_small("imagenet32", sources["npz"], subset=False, rows=(IMAGES, VAL))
    assert not any("subset" in note for note in whole.notes) and not whole.may_lack_classes
    with pytest.raises(DataError, match=r"2,030 training and 70 validation(.|\n)*--subset"):
        prepare(PrepareConfig(kind="imagenet32", source=sources["npz"], out=tmp_path / "out"), quiet=True)
    with pytest.raises(DataError, match="the whole set has 2,029") as caught:
        open_imagenet_small("imagenet32", sources["npz"], subset=True, rows=(IMAGES - 1, VAL))
    assert "--subset" not in str(caught.value)
    with pytest.raises(UserError, match="subset is for kind"):
        prepare(PrepareConfig(kind="digits", out=tmp_path / "out", subset=True), quiet=True)


def test_a_part_may_lack_batches_and_classes(sources: dict[str, Path], tmp_path: Path) -> None:
    source = copy(sources["pickle"], tmp_path / "in")
    for name in NAMES[1:-1]:
        (source / name).unlink()
    dataset = prepare_small(source, tmp_path / "out")
    assert len(dataset.split("train")) == 203 and len(dataset.class_names) == 1000
    assert len(np.unique(dataset.split("train").label)) < 1000


# --- size, changes and kills -----------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_file(sources: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    write_pickle(source / "train_data_batch_1", draw_labels(0, 20_000, 0), 64, 0)
    shutil.copy(batch_file(sources["64"], "val_data"), source)
    assert (source / "train_data_batch_1").stat().st_size > 240_000_000
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\n"
        "from fastdrpl.loaders.prepare import PrepareConfig, prepare\n"
        f"source, out = Path({str(source)!r}), Path({str(tmp_path / 'out')!r})\n"
        "prepare(PrepareConfig(kind='imagenet64', source=source, out=out, subset=True), quiet=True)\n"
        "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])\n"
        "print([name for name in ('torch', 'numba', 'PIL') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    peak, loaded = done.stdout.splitlines()
    assert int(peak) < 120_000  # KiB: half of the file
    assert loaded == "[]"
    shutil.rmtree(tmp_path / "out")
    source.joinpath("train_data_batch_1").unlink()


@pytest.mark.parametrize("what", ["label", "pixel", "name"])
def test_a_changed_source_is_noticed(sources: dict[str, Path], tmp_path: Path, what: str) -> None:
    source = copy(sources["pickle"], tmp_path / "in")
    prepare_small(source, tmp_path / "out")
    prepare_small(source, tmp_path / "out")

    def change(name: str, content: dict[str, Any]) -> None:
        if name == "train_data_batch_3" and what == "label":
            content["labels"][7] = content["labels"][7] % 1000 + 1
        if name == "train_data_batch_3" and what == "pixel":
            content["data"][-1, -1] ^= 1

    changed = copy(sources["pickle"], tmp_path / "changed", change)
    if what == "name":
        (changed / "train_data_batch_3").rename(changed / "third")
        (changed / "train_data_batch_4").rename(changed / "train_data_batch_3")
        (changed / "third").rename(changed / "train_data_batch_4")
    with pytest.raises(UserError, match="files differ"):
        prepare_small(changed, tmp_path / "out")


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from fastdrpl.loaders import prepare
prepare.SECONDS_BETWEEN_ENTRIES = 0.0
prepare.prepare(prepare.PrepareConfig(kind="imagenet64", source=Path({source!r}), out=Path({out!r}), subset=True))
"""


@pytest.mark.parametrize("layout", ["pickle", "npz-zip"])
def test_killed_in_the_middle_and_resumed_ends_in_the_same_bytes(tmp_path: Path, layout: Any) -> None:
    images = 6_000 if layout == "pickle" else 2_500
    source = generate(tmp_path / "in", images=images, val=200, size=64, layout=layout)
    prepare_small(source, tmp_path / "whole", "imagenet64")
    out, journal = tmp_path / "out", tmp_path / ".out.preparing" / "journal"
    script = KILLED.format(root=str(ROOT), source=str(source), out=str(out))
    command = [sys.executable, "-c", script]
    kills, done_rows = 0, []
    for entries in (2, 4):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                if journal.exists() and journal.read_bytes().count(b"\n") >= entries:
                    process.send_signal(signal.SIGKILL)
                    break
                time.sleep(0.0005)
            process.wait()
            kills += process.returncode == -signal.SIGKILL
        done_rows.append(journal.read_bytes())
    assert kills == 2 and not out.exists() and b'"finished"' not in done_rows[0]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Continuing an unfinished prepare" in done.stdout
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in (tmp_path / "whole").iterdir()}
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not journal.parent.exists()
