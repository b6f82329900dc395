"""Grid files: what they become, every mistake in one, and the folder that holds another grid."""

import itertools
import json
import re
import shlex
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fastdrpl.cli import main, parse_training
from fastdrpl.compare.cells import flag_words, plan_cells, select_cells
from fastdrpl.compare.folder import check_folder, claim_folder, identity_of
from fastdrpl.compare.grid import read_grid
from fastdrpl.errors import UserError
from fastdrpl.methods import METHODS
from fastdrpl.settings import flatten

GRID = """
[grid]
recipe = "digits"
methods = ["ce", "drpl"]
noises = [{ kind = "uniform", ratio = 0.4 }, { kind = "none" }]
seeds = [1, 2]

[flags]
epochs_scale = 0.5
noise.exact = "per_class"

[flags.checkpoint]
every = 10

[methods.drpl.drpl]
gamma1 = 0.2
relabel.milestones = [3, 5]
"""


def write(folder, text=GRID, name="mine.toml"):
    file = folder / name
    file.write_text(text)
    return file


def read(folder, text=GRID, **more):
    return read_grid(write(folder, text), known_methods=list(METHODS), **more)


# --- cells ---


def test_a_cell_for_each_method_noise_and_seed(tmp_path):
    grid = read(tmp_path)
    cells = plan_cells(grid).cells
    wanted = {f"digits/{m}/{n}/seed-{s}" for m in ("ce", "drpl") for n in ("U-0.4", "0") for s in (1, 2)}
    assert {cell.name for cell in cells} == wanted and len(cells) == len(wanted)
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells), "seed by seed"
    assert grid.name == "mine" and grid.out == tmp_path / "runs" / "mine"


def test_the_commands_say_what_the_grid_says(tmp_path):
    """Read back by the command line itself."""
    for cell in plan_cells(read(tmp_path)).cells:
        assert cell.words[0] == "train"
        fields = flatten(parse_training(list(cell.words[1:])))
        assert fields["recipe"] == "digits" and fields["method"] == cell.method.label
        assert fields["seed"] == cell.seed and fields["run"] == Path(cell.name)
        assert (fields["noise.kind"], fields["noise.ratio"]) == (
            ("uniform", 0.4) if cell.noise.label == "U-0.4" else ("none", 0)
        )
        assert fields["epochs_scale"] == 0.5 and fields["noise.exact"] == "per_class"
        assert fields["checkpoint.every"] == 10
        if cell.method.label == "drpl":
            assert fields["drpl.relabel.milestones"] == (3, 5) and fields["drpl.gamma1"] == 0.2


def test_flags_of_every_type_are_read_as_they_were_meant():
    values = {
        "noise.excludes_truth": False,
        "noise.both_directions": True,
        "drpl.relabel.milestones": [],
        "optimiser.lr": 1e-5,
        "batch_size": 32,
        "engine.sync_bn": True,
    }
    words = [word for key, value in values.items() for word in flag_words(key, value)]
    fields = flatten(parse_training(["digits", *words]))
    assert {key: fields[key] for key in values} == values | {"drpl.relabel.milestones": ()}


def test_paths_mean_what_they_mean_where_the_file_lies(tmp_path, monkeypatch):
    (tmp_path / "grids").mkdir()
    np.savetxt(tmp_path / "grids" / "mix.csv", np.full((10, 10), 0.1), delimiter=",")
    text = GRID.replace("[grid]", '[grid]\ndata = "../data"\nout = "out"').replace(
        '{ kind = "none" }', '{ kind = "matrix", matrix = "mix.csv", ratio = 0 }'
    )
    text = text.replace('noise.exact = "per_class"\n', "")
    monkeypatch.chdir(tmp_path)
    grid = read(tmp_path / "grids", text)
    plan = plan_cells(grid)
    assert grid.out == tmp_path / "grids" / "out"
    assert grid.data[0].path == tmp_path / "data"
    (name,) = plan.files
    assert plan.files[name] == tmp_path / "grids" / "mix.csv"
    for cell in plan.cells:
        assert cell.words[cell.words.index("--data") + 1] == str(tmp_path / "data")
        assert ("--noise.matrix" in cell.words) == (cell.noise.label == "matrix-0")
        assert cell.options.get("noise.matrix", name) == name
    claim_folder_at = grid.out
    claim_folder_at.mkdir()
    claim_folder(grid.out, identity_of(grid, plan), plan)
    assert (grid.out / name).read_bytes() == (tmp_path / "grids" / "mix.csv").read_bytes()
    # Another content is another grid, although the path is the same.
    np.savetxt(tmp_path / "grids" / "mix.csv", np.eye(10), delimiter=",")
    other = plan_cells(grid)
    with pytest.raises(UserError, match="another grid") as caught:
        check_folder(grid.out, identity_of(grid, other))
    assert "noise.matrix" in str(caught.value)


def test_out_can_be_given(tmp_path):
    assert read(tmp_path, out=tmp_path / "elsewhere").out == tmp_path / "elsewhere"


def test_several_data_sets(tmp_path):
    text = GRID.replace('recipe = "digits"\n', "") + (
        '[[data]]\nrecipe = "digits"\n[[data]]\nrecipe = "cifar10"\npath = "c"\nlabel = "C10"\n'
    )
    cells = plan_cells(read(tmp_path, text)).cells
    assert Counter(cell.data.label for cell in cells) == {"digits": 8, "C10": 8}
    assert {cell.words[1] for cell in cells if cell.data.label == "C10"} == {"cifar10"}


def test_only_some_cells(tmp_path):
    cells = plan_cells(read(tmp_path)).cells

    def chosen(*patterns):
        return {cell.name.rpartition("/")[0] for cell in select_cells(cells, patterns)}

    everything = {cell.name.rpartition("/")[0] for cell in cells}
    assert chosen() == everything
    assert chosen("ce") == {"digits/ce/U-0.4", "digits/ce/0"}
    assert chosen("*/0") == {"digits/ce/0", "digits/drpl/0"}
    assert chosen("drpl/U-*", "digits/ce/0") == {"digits/drpl/U-0.4", "digits/ce/0"}
    assert [cell.name for cell in select_cells(cells, ["*"])] == [cell.name for cell in cells]
    with pytest.raises(UserError, match="did you mean 'drpl'"):
        select_cells(cells, ["ce", "drppl"])


# --- mistakes ---

MISTAKES = [
    ('"drpl"]', '"dprl"]', "unknown method 'dprl'; did you mean 'drpl'"),
    ('kind = "uniform"', 'kind = "unifrom"', "unknown noise kind 'unifrom'; did you mean 'uniform'"),
    ('recipe = "digits"', 'recipe = "digit"', "unknown recipe 'digit'; did you mean 'digits'"),
    ("epochs_scale", "epoch_scale", "unknown flag 'epoch_scale'; did you mean 'epochs_scale'"),
    ("[flags]", "[flag]", "unknown section 'flag'; did you mean 'flags'"),
    ("seeds =", "seed =", "unknown key 'grid.seed'; did you mean 'grid.seeds'"),
    ("ratio = 0.4", "rate = 0.4", "unknown key 'grid.noises.rate'; did you mean 'grid.noises.ratio'"),
    ("[methods.drpl.drpl]", "[methods.drlp.drpl]", "unknown method 'methods.drlp'"),
    ("epochs_scale = 0.5", "drpl.gamma1 = 0.5", "'drpl.gamma1' is a setting of one method"),
    ("gamma1", "gama1", "unknown flag 'drpl.gama1'; did you mean 'drpl.gamma1'"),
    ('"ce", "drpl"', '"ce", "ce"', "method ce occurs twice"),
    ("[1, 2]", "[1, 1]", "seed 1 occurs twice"),
    ('{ kind = "none" }', '{ kind = "uniform", ratio = 0.40 }', "U-0.4 occurs twice"),
    ('{ kind = "none" }', '{ kind = "uniform", ratio = 0.4, label = "x" }', "noise .* occurs twice"),
    ('["ce", "drpl"]', "[]", "grid.methods is empty"),
    ("[1, 2]", "[]", "grid.seeds is empty"),
    ('[{ kind = "uniform", ratio = 0.4 }, { kind = "none" }]', "[]", "grid.noises is empty"),
    ("[1, 2]", "[1, true]", "True is not a whole number"),
    ("[1, 2]", "[-1]", "grid.seeds are"),
    ("[1, 2]", "3", "'seeds' is 3, wanted a list"),
    ('["ce", "drpl"]', '["ce", 3]', "3 is not text"),
    ("seeds = [1, 2]", "", "'seeds' is missing"),
    ('recipe = "digits"', "", "'recipe' is missing"),
    ('{ kind = "none" }', "{ ratio = 0.1 }", "'kind' is missing"),
    ("ratio = 0.4", 'ratio = "0.4"', "wanted a number"),
    ("ratio = 0.4", "ratio = 1.4", "noise ratio must be in 0..1"),
    ("epochs_scale = 0.5", 'epochs_scale = "half"', "--epochs_scale: .*'half'"),
    ("epochs_scale = 0.5", "epochs_scale = nan", "epochs_scale"),
    ("epochs_scale = 0.5", "seed = 3", "sets 'seed'"),
    ('noise.exact = "per_class"', "noise.ratio = 0.2", "sets 'noise.ratio'"),
    ('{ kind = "none" }', '{ kind = "none", label = "../x" }', "cannot be the name of a folder"),
    ("[grid]", '[grid]\ntable = "V"', "grid.table is 'V'"),
    ("[grid]", '[grid]\nname = ".."', "grid.name"),
    ("[1, 2]", "[1, 2", "not a TOML file"),
    ('"ce", "drpl"', '"ce", "own.py"', "no file 'own.py'"),
    ('{ kind = "none" }', '{ kind = "none", file = "no.npz" }', "noise.file names a file that is not there"),
]


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES, ids=[m[2] for m in MISTAKES])
def test_a_mistake_is_named_before_anything_is_written(tmp_path, monkeypatch, capsys, old, new, message):
    assert GRID.count(old) == 1, old
    file = write(tmp_path, GRID.replace(old, new))
    monkeypatch.chdir(tmp_path)
    assert main(["compare", str(file)]) == 2
    said = capsys.readouterr().err
    assert re.search(message, " ".join(said.split())), said
    assert "Traceback" not in said and "╭" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


def test_data_named_twice_and_data_that_are_not_there(tmp_path, capsys):
    both = write(tmp_path, GRID + '[[data]]\nrecipe = "digits"\n')
    assert main(["compare", str(both)]) == 2
    assert "both in [grid] and in [[data]]" in capsys.readouterr().err
    missing = write(tmp_path, GRID.replace("[grid]", '[grid]\ndata = "nowhere"'))
    assert main(["compare", str(missing)]) == 2
    assert "fastdrpl prepare digits" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.toml"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["no-such-grid"], "there is no grid"),
        (["tabel4"], "did you mean 'table4'"),
        ([], "a name is missing"),
        (["mine.toml", "--jobs", "-1"], "--jobs is -1"),
        (["mine.toml", "--per_gpu", "0"], "--per_gpu is 0"),
        (["mine.toml", "--only", "cee"], "did you mean 'ce'"),
        (["mine.toml", "--tables"], "nothing of this grid yet"),
    ],
)
def test_mistakes_in_the_command(tmp_path, monkeypatch, capsys, words, part):
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *words]) == 2
    assert part in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


def test_dry_run_shows_commands_and_writes_nothing(tmp_path, capsys):
    file = write(tmp_path, GRID.replace("[grid]", '[grid]\ndata = "not-there-yet"'))
    assert main(["compare", str(file), "--dry_run", "--only", "ce/*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line) for line in lines if not line.startswith("#")]
    assert commands[0] == ["cd", str(tmp_path / "runs" / "mine")]
    assert len(commands) == 1 + 4
    for words in commands[1:]:
        assert words[1:4] == ["-m", "fastdrpl", "train"]
        assert flatten(parse_training(words[4:]))["method"] == "ce"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


# --- the folder ---


def claimed(folder, text=GRID):
    """A grid whose folder holds it."""
    grid = read(folder, text)
    plan = plan_cells(grid)
    identity = check_folder(grid.out, identity_of(grid, plan))
    grid.out.mkdir(parents=True, exist_ok=True)
    claim_folder(grid.out, identity, plan)
    return grid


def test_more_cells_may_come_to_a_grid(tmp_path):
    claimed(tmp_path, GRID.replace('"ce", "drpl"', '"drpl"'))
    claimed(tmp_path, GRID.replace("[1, 2]", "[1, 2, 3]").replace('"none"', '"uniform", ratio = 0.8'))
    grid = claimed(tmp_path, GRID + "[slurm]\ntimeout_min = 3\n")
    names = set(json.loads((grid.out / "grid.json").read_text())["cells"])
    noises = ("U-0.4", "U-0.8", "0")
    assert names == {f"digits/{m}/{n}" for m, n in itertools.product(("ce", "drpl"), noises)}
    (
        claimed(tmp_path, GRID.replace("every = 10", "every = 20")),
        "how often it is saved is no part of the result",
    )


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("epochs_scale = 0.5", "epochs_scale = 0.25", "epochs_scale: 0.5 there, 0.25 now"),
        ("epochs_scale = 0.5", "", "epochs_scale: 0.5 there, None now"),
        ("gamma1 = 0.2", "gamma1 = 0.3", "drpl.gamma1: 0.2 there, 0.3 now"),
        ("[grid]", '[grid]\nname = "other"\nout = "runs/mine"', "name: 'mine' there, 'other' now"),
        ('recipe = "digits"', "", "data.digits.recipe: 'digits' there, 'cifar10' now"),
    ],
)
def test_a_folder_with_another_grid_is_refused_with_the_differing_fields(tmp_path, capsys, old, new, field):
    out = claimed(tmp_path).out
    before = (out / "grid.json").read_bytes()
    text = GRID.replace(old, new)
    if "recipe" in old:
        text += '[[data]]\nrecipe = "cifar10"\nlabel = "digits"\n'
    assert main(["compare", str(write(tmp_path, text))]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "holds another grid" in said and field in said
    assert (out / "grid.json").read_bytes() == before
    assert sorted(path.name for path in out.iterdir()) == ["grid.json"]


def test_a_folder_with_something_else_is_refused(tmp_path, capsys):
    file = write(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    assert main(["compare", str(file), "--out", str(tmp_path / "photos")]) == 2
    assert "cat.jpg" in capsys.readouterr().err
    assert main(["compare", str(file), "--out", str(file)]) == 2
    assert "must be a folder" in capsys.readouterr().err


def test_a_damaged_grid_json_is_named(tmp_path, capsys):
    out = claimed(tmp_path).out
    (out / "grid.json").write_text("{")
    assert main(["compare", str(tmp_path / "mine.toml")]) == 3
    assert "grid.json" in capsys.readouterr().err
