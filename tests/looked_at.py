"""Commands of the pages that set up a machine: looked at, not run."""

import os
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def look_at_quickstart(words: list[str]) -> None:
    assert os.access(ROOT / "quickstart", os.X_OK)
    assert words[1] in re.findall(r"^ +(\w+)\) verb=", (ROOT / "quickstart").read_text(), re.MULTILINE)


def look_at_pip(words: list[str]) -> None:
    assert words[words.index("pip") + 1] == "install"
    for word in words[words.index("install") + 1 :]:
        if word.startswith("."):
            extras = re.fullmatch(r"\.(?:\[([\w,]+)\])?", word)
            assert extras, word
            assert set((extras[1] or "").split(",")) <= {"", *PROJECT["optional-dependencies"]}, word
        else:
            assert re.fullmatch(r"-e|[\w.=<>-]+", word), word


def look_at_git(words: list[str]) -> None:
    assert words[1] == "clone" and len(words) >= 3


def look_at_cd(words: list[str]) -> None:
    assert words[1:] == [PROJECT["name"]]


def look_at_apt(words: list[str]) -> None:
    assert words[words.index("apt-get") + 1] in ("install", "update")


def look_at_bench(words: list[str]) -> None:
    assert (ROOT / words[1]).is_file() and words[1].startswith("bench/"), words


SET_UP = {
    "./quickstart": look_at_quickstart,
    "pip": look_at_pip,
    "git": look_at_git,
    "cd": look_at_cd,
    "apt-get": look_at_apt,
    "sudo": look_at_apt,
    "python": look_at_bench,
}
