"""Configuration: ranges, TOML in and out, flags over file over recipe, and errors that name the field."""

import dataclasses
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdrpl import config_file
from fastdrpl.cli import main, parse_training
from fastdrpl.config import OptimiserConfig
from fastdrpl.errors import UserError
from fastdrpl.methods import METHODS
from fastdrpl.recipes import RECIPES, describe, describe_method, recipe_named
from fastdrpl.settings import flatten


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_survives_toml(name, method):
    config = recipe_named(name).config_for(method)
    table = tomllib.loads(config_file.dumps(config))
    assert table["method"] == method
    bare = recipe_named("webvision").config_for(method)
    assert config_file.overlay_run(bare, table, where="x") == config


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_number_of_a_recipe_has_a_source(name):
    recipe = recipe_named(name)
    rows = [*describe(recipe), *(row for method in METHODS for row in describe_method(recipe, method))]
    without = [field for field, _, source in rows if not source]
    # Fields that pick files or images, or who is told; they have no number from anywhere.
    assert set(without) <= {
        "judge",
        "labels",
        "track_with",
        "limit",
        "limit_test",
        "noise.matrix",
        "noise.confusion",
        "noise.matrix_diagonal",
        "noise.file",
        "noise.file_column",
        "noise.legacy_rng",
    }


def test_flag_beats_file_beats_recipe(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("seed = 5\nbatch_size = 32\n[noise]\nratio = 0.3\n[drpl.semi1]\nepochs = 14\n")
    config = parse_training(["digits", "--config", str(file), "--seed", "9", "--drpl.semi2.epochs", "30"])
    assert (config.seed, config.batch_size, config.noise.ratio) == (9, 32, 0.3)
    assert config.noise.kind == "uniform"  # the recipe's, though the file has a [noise] table
    digits = recipe_named("digits").config_for("drpl")
    assert config.drpl.semi1.milestones == digits.drpl.semi1.milestones
    assert (config.drpl.semi1.epochs, config.drpl.semi2.epochs) == (14, 30)
    assert config.drpl.semi2.milestones == digits.drpl.semi2.milestones


def test_the_config_of_a_run_runs_it_again(tmp_path):
    config = parse_training(
        ["cifar10", "--noise.kind", "uniform", "--noise.ratio", "0.8", "--data", "x", "--seed", "3"]
    )
    (tmp_path / "config.toml").write_text(config_file.dumps(config))
    again = parse_training(["--config", str(tmp_path / "config.toml")])
    assert again == dataclasses.replace(config, data=Path("x").absolute())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "cifar11"], "did you mean 'cifar10'"),
        (["trian", "digits"], "did you mean 'train'"),
        (["train"], "name is missing"),
        (["train", "digits", "--batch_size", "1"], "--batch_size is 1"),
        (["train", "digits", "--epochs_scale", "nan"], "--epochs_scale is nan"),
        (["train", "digits", "--optimiser.lr", "inf"], "--optimiser.lr is inf"),
        (["train", "digits", "--optimiser.lr", "-1"], "--optimiser.lr is -1"),
        (["train", "digits", "--noise.ratio", "1.5"], "1.5"),
        (["train", "digits", "--drpl.gamma1", "2"], "--drpl.gamma1 is 2"),
        (["train", "digits", "--drpl.semi1.milestones", "9", "3"], "rising order"),
        (["train", "digits", "--drpl.given_epochs", "99"], "nothing would be relabelled"),
        (["train", "digits", "--method", "dprl"], "did you mean 'drpl'"),
        (["train", "digits", "--ce.gamma", "0.3"], "a setting of the method 'ce'"),
        (["train", "digits", "--drpl.posterior", "lookup"], "called --detect.posterior"),
        (["train", "cifar10"], "needs a prepared dataset"),
        (["train", "digits", "--config", "absent.toml"], "absent.toml"),
        (["status", "nowhere"], "not a run folder"),
        (["recipes", "digit"], "did you mean 'digits'"),
        (["prepare", "cifar10", "--source", "nowhere", "--out", "o"], "nowhere"),
    ],
)
def test_a_bad_request_is_one_clear_error(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = main(words)
    error = capsys.readouterr().err
    assert code in (2, 3)
    assert said in error.replace("\n", " ")
    assert "Traceback" not in error


def test_an_unknown_flag_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "digits", "--batchsize", "3"])
    assert stopped.value.code == 2
    assert "batch_size" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sede = 1", "unknown key 'sede'; did you mean 'seed'"),
        ("[drpl]\ngama1 = 0.1", "did you mean 'drpl.gamma1'"),
        ("seed = true", "seed = True is not of type int"),
        ("seed = 1.5", "seed = 1.5 is not of type int"),
        ("[optimiser]\nlr = nan", "optimiser.lr is nan"),
        ("[optimiser]\nlr = -inf", "optimiser.lr is -inf"),
        ("drpl = 3", "'drpl' must be a table"),
        ("method = 'dprl'", "did you mean 'drpl'"),
        ("[drpl.relabel]\nmilestones = 3", "drpl.relabel.milestones"),
        ("[drpl.relabel]\nmilestones = ['x']", "drpl.relabel.milestones"),
        ("seed = ", "not a TOML file"),
    ],
)
def test_a_bad_file_names_the_field(text, said, tmp_path):
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        parse_training(["digits", "--config", str(file)])
    assert said in str(caught.value)


def nested(flat):
    table = {}
    for name, value in flat.items():
        *outer, key = name.split(".")
        inner = table
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[key] = value
    return table


_CONFIG = recipe_named("digits").config_for("drpl")
_NAMES = sorted(flatten(_CONFIG))
_VALUES = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.booleans(),
    st.text(max_size=5),
    st.lists(st.integers(-5, 5), max_size=3),
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(_NAMES), _VALUES, max_size=4))
def test_any_table_is_a_valid_plan_or_a_named_error(flat):
    try:
        config = config_file.overlay(_CONFIG, nested(flat), where="x")
    except UserError:
        return
    for name, value in flat.items():
        read = flatten(config)[name]
        assert (
            list(read) if isinstance(read, tuple) else str(read) if isinstance(value, str) else read
        ) == value


def test_changing_any_number_changes_the_fingerprint():
    from fastdrpl.folder import fingerprint_of

    base = recipe_named("cifar10").config_for("drpl")
    assert fingerprint_of(base) == fingerprint_of(recipe_named("cifar10").config_for("drpl"))
    assert fingerprint_of(base) != fingerprint_of(recipe_named("cifar10").config_for("ce"))
    changed = dataclasses.replace(base, optimiser=OptimiserConfig(lr=0.05))
    assert fingerprint_of(changed) != fingerprint_of(base)
    assert fingerprint_of(dataclasses.replace(base, limit=5)) != fingerprint_of(base)


@pytest.mark.parametrize("name", ["cifar10n", "cifar100n"])
def test_recipes_of_human_labels_are_those_of_their_data_and_want_the_file(name, tmp_path, capsys):
    human, plain = recipe_named(name), recipe_named(name[:-1])
    for method in METHODS:
        ours, theirs = flatten(human.config_for(method)), flatten(plain.config_for(method))
        assert {key for key in ours if ours[key] != theirs[key]} == {"recipe"}
        assert describe_method(human, method) == describe_method(plain, method)
    assert human.kinds == plain.kinds
    assert main(["train", name, "--data", str(tmp_path), "--run", str(tmp_path / "run")]) == 2
    assert "trains on labels from a file" in capsys.readouterr().err
    words = ["--data", str(tmp_path), "--run", str(tmp_path / "run"), "--labels", str(tmp_path / "l.csv")]
    assert main(["train", name, *words]) != 0  # there is no such data, but the labels are given
    assert "trains on labels from a file" not in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
