"""Plans that could not be carried out are refused before anything is trained; methods of the user's own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import toy

from fastdrpl.cli import main, parse_training
from fastdrpl.errors import UserError
from fastdrpl.methods import METHODS, load_method
from fastdrpl.plan import plan_of
from fastdrpl.recipes import RECIPES, recipe_named

ROOT = Path(__file__).resolve().parent.parent
HEAD = """\
from fastdrpl.methods.ce import CrossEntropy
from fastdrpl.looks import judged_by_loss
from fastdrpl.settings import Schedule
from fastdrpl.stages import Look, Objective, Stage


def stage(name="one", **changes):
    return Stage(name=name, objective=CrossEntropy(), schedule=Schedule(epochs=2), **changes)


def judged(config, **changes):
    return judged_by_loss(stage(**changes), 0.5, "mine.gamma", config)


"""
LAST = len(HEAD.splitlines()) + 2  # of a file with one line in `stages`
PLANS = {
    "return ()": "returned tuple, not a tuple of Stage",
    "return 3": "returned int, not a tuple of Stage",
    "return (judged(config), judged(config))": "two stages are called 'one'",
    "return (stage(),)": "no stage has a detector that decides",
    "return (judged(config, decides=False),)": "no stage has a detector that decides",
    "return (judged(config, name='a/b'),)": "the stage name 'a/b' cannot name a folder",
    "return (judged(config, networks=0),)": "0 networks",
    "return (judged(config, start='previous'),)": "starts from a stage before it",
    "return (judged(config, looks=(Look(into='seen', read='loss'),)),)": "nobody reads",
    "return (judged(config, objective_typo=1),)": "unexpected keyword argument 'objective_typo'",
    "return 1 / 0": f"line {LAST}: ZeroDivisionError: division by zero",
}


@pytest.fixture
def mine(tmp_path):
    def write(body, name="mine.py"):
        path = tmp_path / name
        path.write_text(HEAD + "def stages(settings, config):\n    " + body + "\n")
        load_method.cache_clear()
        return path

    return write


@pytest.mark.parametrize("body", sorted(PLANS))
def test_a_plan_that_cannot_be_is_one_clear_error_at_the_start(mine, tmp_path, capsys, body):
    path, run = mine(body), tmp_path / "run"
    assert main(["train", "digits", "--method", str(path), "--run", str(run)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert PLANS[body] in said
    assert "mine.py" in said
    assert "Traceback" not in said
    assert not run.exists(), "a refused start leaves nothing"


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        ("x = 3\n", "mine.py", "the file has no function `stages`"),
        ("def stages(:\n", "mine.py", "line 1: "),
        ("import nowhere_at_all\n", "mine.py", "line 1: ModuleNotFoundError"),
        ("Settings = 3\ndef stages(s, c): ...\n", "mine.py", "`Settings` is no dataclass"),
        ("def stages(s, c): ...\n", "drpl.py", "'drpl' cannot name a section"),
        ("def stages(s, c): ...\n", "noise.py", "'noise' cannot name a section"),
        ("def stages(s, c): ...\n", "my-method.py", "'my-method' cannot name a section"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, capsys, content, name, said):
    path = tmp_path / name
    path.write_text(content)
    assert main(["train", "digits", "--method", str(path), "--run", str(tmp_path / "run")]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert said in error
    assert name in error
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_not_there_and_a_name_that_is_not():
    with pytest.raises(UserError, match="cannot read the method"):
        load_method("nowhere/at_all.py")
    with pytest.raises(UserError, match="did you mean 'drpl'"):
        load_method("drp")


def test_an_error_within_a_step_names_the_line(mine, tmp_path, capsys):
    path = mine(
        "return (judged_by_loss(Stage(name='one', objective=Broken(), schedule=Schedule(epochs=2)), 0.5, 'm', config),)"
    )
    path.write_text(
        path.read_text()
        + "\n\nclass Broken(Objective):\n    def loss(self, step):\n        return step.nothing\n"
    )
    line = len(path.read_text().splitlines())
    assert (
        main(
            [
                "train",
                "digits",
                "--limit",
                "60",
                "--model.width",
                "2",
                "--method",
                str(path),
                "--run",
                str(tmp_path / "r"),
            ]
        )
        == 2
    )
    said = " ".join(capsys.readouterr().err.split())
    assert f"line {line}: AttributeError" in said
    assert "mine.py" in said


def example() -> str:
    page = (ROOT / "docs" / "own-method.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return code


def test_the_method_in_the_docs_is_short_and_runs(tmp_path, capsys):
    code, path, run = example(), tmp_path / "smooth.py", tmp_path / "run"
    assert len(code.splitlines()) <= 40
    path.write_text(code)
    words = [
        "train",
        "digits",
        "--limit",
        "160",
        "--limit_test",
        "60",
        "--model.width",
        "4",
        "--batch_size",
        "32",
    ]
    words += ["--method", str(path), "--epochs_scale", "0.2", "--smooth.gamma", "0.9", "--run", str(run)]
    assert main(words) == 0
    result = json.loads((run / "result.json").read_text())
    assert result["method"] == "smooth"
    assert result["epochs_scale"] == 0.2
    assert main(words) == 0  # it is finished
    path.write_text(code + "# changed\n")
    load_method.cache_clear()
    capsys.readouterr()
    assert main(words) == 3
    assert "the method of this run folder changed" in capsys.readouterr().err


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_method_has_a_plan_for_every_recipe(method, recipe):
    plan = plan_of(recipe_named(recipe).config_for(method))
    assert any(stage.decides and stage.detector for stage in plan)


def test_the_identity_of_a_run_has_no_other_method_s_settings():
    from fastdrpl.folder import identity_of

    identity = identity_of(parse_training(["digits", "--method", "ce"]))
    assert {name.partition(".")[0] for name in identity} & set(METHODS) == {"ce"}


@pytest.mark.parametrize("method", METHODS)
def test_settings_are_read_without_torch(method):
    """Help must not wait for torch."""
    code = (
        "import sys; from fastdrpl.cli import parse_training; "
        f"parse_training(['digits', '--method', '{method}']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "False"


def test_toy_words_are_of_drpl():
    assert parse_training(toy.WORDS[1:]).method == "drpl"
