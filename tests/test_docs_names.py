"""Every name in README.md and docs/ exists: flags, fields, places in the code, links, defaults, exit codes, verbs."""

import ast
import re
from pathlib import Path

import pytest
from test_docs import LAUNCHER_FLAGS, OTHER_FLAGS, PAGES, ROOT, SETTINGS

from fastdrpl import errors
from fastdrpl.cli import VERBS
from fastdrpl.errors import UserError
from fastdrpl.methods import METHODS
from fastdrpl.recipes import recipe_named
from fastdrpl.settings import flatten


def every_field() -> dict[str, object]:
    """The fields of a training run, those of every method included, with their defaults."""
    recipe = recipe_named("cifar100")
    return {k: v for method in METHODS for k, v in flatten(recipe.config_for(method)).items()} | {
        "smooth.smoothing": 0.1,  # of the method in docs/own-method.md
        "smooth.gamma": 0.5,
    }


def bench_flags() -> set[str]:
    """What the scripts of bench/ take, by their own text."""
    text = "".join(path.read_text() for path in sorted((ROOT / "bench").glob("*.[ps][yh]")))
    return set(re.findall(r"[\" ]--(\w+)[\")]", text))


@pytest.mark.parametrize("name", PAGES)
def test_every_flag_named_exists(name):
    training = set(every_field())
    others = {field for settings in SETTINGS for field in settings.__dataclass_fields__}
    sections = {field.rpartition(".")[0] for field in training}
    others |= bench_flags() if name == "speed.md" else set()
    named = re.findall(r"(?<![\w-])--([A-Za-z][\w.-]*)(\*?)", PAGES[name].read_text())
    for flag, star in named:
        flag = flag.replace("-", "_").rstrip(".").replace(".no_", ".")
        known = sections if star else training | sections | others | LAUNCHER_FLAGS | OTHER_FLAGS
        assert flag in known, f"--{flag}"


def test_the_flags_of_launchers_are_theirs():
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    options = {*launch_command_parser()._option_string_actions, *get_args_parser()._option_string_actions}
    assert {f"--{flag}" for flag in LAUNCHER_FLAGS} <= options


@pytest.mark.parametrize("name", PAGES)
def test_every_field_named_exists(name):
    """`drpl.warmup` and the like."""
    fields = every_field()
    sections = "|".join({field.partition(".")[0] for field in fields if "." in field})
    for field in re.findall(rf"`((?:{sections})\.[\w.]+)`", PAGES[name].read_text()):
        if not field.endswith((".json", ".npz", ".csv", ".safetensors")):  # noise.npz is a file
            assert any(name == field or name.startswith(f"{field}.") for name in fields), field


def defined_in(path: Path) -> set[str]:
    """Functions and classes of a module, and the methods of the latter as Class.method."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    top = [node for node in ast.parse(path.read_text()).body if isinstance(node, kinds)]
    inner = {f"{node.name}.{part.name}" for node in top for part in node.body if isinstance(part, kinds)}
    return {node.name for node in top} | inner


@pytest.mark.parametrize("name", PAGES)
def test_every_place_in_the_code_exists(name):
    """`fastdrpl/losses.py:prior` and the like."""
    for path, definition in re.findall(r"`([\w/]+\.py)(?::([\w.]+))?`", PAGES[name].read_text()):
        assert (ROOT / path).is_file(), path
        assert not definition or definition in defined_in(ROOT / path), f"{path}:{definition}"


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name):
    for target in re.findall(r"\]\(([^)#\s]+)", PAGES[name].read_text()):
        if not target.startswith("https://"):
            assert (PAGES[name].parent / target).exists(), target


def test_the_defaults_in_the_table_of_differences_are_the_defaults():
    fields, checked = every_field(), 0
    for line in PAGES["method.md"].read_text().splitlines():
        cells = [cell.strip().replace("**", "") for cell in line.strip("|").split(" | ")]
        if len(cells) == 5 and cells[3].strip("`") in fields and (first := re.match(r"`(\S+)`", cells[4])):
            assert str(fields[cells[3].strip("`")]) == first[1], line
            checked += 1
    assert checked >= 15


def test_the_exit_codes_are_those_of_the_errors():
    codes = re.findall(r"^\| (\d+) \|", PAGES["runs.md"].read_text(), re.MULTILINE)
    classes = [getattr(errors, name) for name in errors.__all__]
    assert all(issubclass(error, UserError) for error in classes)
    assert sorted(map(int, codes)) == sorted({0, *(error.exit_code for error in classes)})


def test_every_verb_is_shown_somewhere():
    text = "\n".join(page.read_text() for page in PAGES.values())
    for verb in VERBS:
        assert f"fastdrpl {verb}" in text, verb
