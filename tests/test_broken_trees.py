"""R7: of a thousand broken folders and tables each is refused with a reason, or every file in it is accounted for."""

import csv
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from broken_trees import BAD, LEFT, LOOSE, LOST, SOUND, Tree, make_tree

from fastdrpl.loaders.errors import UserError
from fastdrpl.loaders.prepare import PrepareConfig, prepare


def numbers(pattern: str, said: str) -> int:
    return sum(int(found.replace(",", "")) for found in re.findall(pattern, said))


def count_left(said: str) -> int:
    """How many files prepare says that it did not take."""
    unread = numbers(r"([\d,]+) of [\d,]+ files are not read", said)
    ignored = numbers(r"([\d,]+) other files were ignored", said)
    loose = numbers(r"([\d,]+) images of .* lie in no class folder", said)
    return unread + ignored + loose


def count_quarantined(out: Path) -> int:
    with open(out / "quarantine.csv", encoding="utf-8", newline="") as file:
        return sum(1 for _ in csv.DictReader(file))


def check_tree(base: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> bool:
    """Whether the tree of a seed was taken."""
    chance = random.Random(seed)
    tree = make_tree(base / "s", chance)
    out = base / "o"
    config = PrepareConfig(
        kind="folder",
        source=base / "s",
        out=out,
        size=8,
        workers=1,
        store=chance.choice(["raw", "jpeg"]),
        test_fraction=chance.choice([0.0, 0.0, 0.3]),
    )
    capsys.readouterr()
    try:
        dataset = prepare(config)
    except UserError as error:
        assert error.exit_code in (2, 3) and str(error) and not out.exists()
        return False
    said = capsys.readouterr().out
    assert tree.empty_classes == 0
    rows = [
        row
        for name, split in dataset.splits.items()
        for row in zip(dataset.ids(name) or (), split.valid.tolist(), strict=True)
    ]
    seen = dict(rows)
    assert len(seen) == len(rows)
    assert seen == {name: end == SOUND for name, end in tree.wanted.items() if end in (SOUND, BAD)}
    bad = count_quarantined(out)
    assert bad == tree.count(BAD)
    lost = tree.count(LOST)
    shown = re.search(r"links that lead nowhere: (.*)", said)
    assert bool(shown) == bool(lost)
    # valid + quarantined + left out = found
    assert sum(seen.values()) + bad + count_left(said) + lost == len(tree.wanted)
    assert count_left(said) == tree.count(LEFT, LOOSE)
    return True


def check_table(base: Path, seed: int) -> bool:
    """A table with missing labels, twice listed and missing files; whether it was taken."""
    chance = random.Random(seed)
    tree = Tree(base / "s")
    for name in ("ant", "bee"):
        (base / "s" / name).mkdir(parents=True)
        for number in range(chance.randrange(1, 5)):
            tree.put(chance, name, number)
    files = [name for name, end in tree.wanted.items() if end in (SOUND, BAD) and "\\x" not in name]
    rows = [(name, name.split("/")[0]) for name in files]
    faults = chance.choices(["none", "no label", "twice", "missing"], [6, 1, 1, 2])[0]
    if faults == "missing":
        rows += [(f"gone{k}.png", "ant") for k in range(chance.randrange(1, 3))]
    elif rows and faults == "no label":
        rows[chance.randrange(len(rows))] = (rows[0][0] + "x", "")
    elif rows and faults == "twice":
        rows.append(chance.choice(rows))
    with open(base / "s" / "t.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    try:
        dataset = prepare(
            PrepareConfig(kind="table", source=base / "s" / "t.csv", out=base / "o", size=8, workers=1),
            quiet=True,
        )
    except UserError as error:
        assert error.exit_code in (2, 3) and not (base / "o").exists()
        return False
    assert faults in ("none", "missing")
    ids, valid = dataset.ids("train"), dataset.split("train").valid
    assert ids is not None and len(ids) == len(rows)
    assert valid.tolist() == [tree.wanted.get(name) == SOUND for name in ids]
    assert int(np.count_nonzero(valid)) + count_quarantined(base / "o") == len(rows)
    return True


def check(base: Path, seeds: range, capsys: pytest.CaptureFixture[str]) -> None:
    taken = 0
    for seed in seeds:
        try:
            taken += check_table(base, seed) if seed % 4 == 3 else check_tree(base, seed, capsys)
        except (AssertionError, Exception) as error:
            error.add_note(f"seed {seed}")
            raise
        shutil.rmtree(base)
        base.mkdir()
    print(f"{taken} of {len(seeds)} broken sources were taken, the others refused")
    assert len(seeds) / 4 < taken < len(seeds)


def test_every_file_of_a_broken_source_is_accounted_for(tmp_path, capsys):
    """R7: a few of them."""
    check(tmp_path / "x", range(40), capsys)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_file_of_thousand_broken_sources_is_accounted_for(tmp_path, capsys):
    """R7: 1,000 sources; exit 2 or 3 and nothing left behind, or valid + quarantined + left out = found."""
    check(tmp_path / "x", range(1000), capsys)
    with capsys.disabled():
        print(capsys.readouterr().out)
