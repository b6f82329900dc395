"""Random configurations as nobody would write them: TOML files, flags, and one-letter typos of their names."""

import datetime
import random
import string
from typing import Any

import tomli_w

from fastdrpl.methods import METHODS
from fastdrpl.recipes import recipe_named
from fastdrpl.settings import flatten

NAMES = {
    method: sorted(set(flatten(recipe_named("digits").config_for(method))) - {"recipe"}) for method in METHODS
}
TEXTS = (
    "",
    "x",
    "nan",
    "-inf",
    "é",
    "猫",
    "\u202e",
    "\x00",
    "../..",
    "a\nb",
    "x" * 5000,
    "1e400",
    "-1",
    "0x10",
)


def odd_value(chance: random.Random, depth: int = 0) -> Any:
    """A TOML value of any type, most of them out of place."""
    kind = chance.randrange(9 if depth < 4 else 6)
    if kind == 0:
        return chance.choice([0, 1, -1, 2, 2**31, -(2**63), 2**63, 2**70])
    if kind == 1:
        return chance.choice([0.0, -0.0, 0.5, -1.5, 1e308, float("nan"), float("inf"), float("-inf")])
    if kind == 2:
        return chance.random() < 0.5
    if kind in (3, 4):
        return chance.choice(TEXTS)
    if kind == 5:
        return chance.choice([datetime.date(2000, 1, 2), datetime.time(3, 4), datetime.datetime(1, 1, 1)])
    if kind == 6:
        return {odd_key(chance): odd_value(chance, depth + 1) for _ in range(chance.randrange(3))}
    return [odd_value(chance, depth + 1) for _ in range(chance.randrange(4))]


def odd_key(chance: random.Random) -> str:
    return chance.choice(["", "é", "猫", "a.b", "x" * 300, "run", "seed", "epochs", "drpl", "\x00"])


def typo(chance: random.Random, name: str) -> str:
    """The name with one letter more, fewer, another, or two changed places."""
    at, letter = chance.randrange(len(name)), chance.choice(string.ascii_lowercase)
    kind = chance.randrange(4)
    if kind == 0:
        return name[:at] + letter + name[at:]
    if kind == 1:
        return name[:at] + name[at + 1 :]
    if kind == 2:
        return name[:at] + letter + name[at + 1 :]
    return name[:at] + name[at : at + 2][::-1] + name[at + 2 :]


def odd_table(chance: random.Random, method: str) -> dict[str, Any]:
    """Settings with odd values, unknown ones, tables in place of values and the other way round."""
    table: dict[str, Any] = {}
    for _ in range(chance.randrange(1, 4)):
        name = chance.choice(NAMES[chance.choice([method, *METHODS])])
        if chance.random() < 0.3:
            name = ".".join([*name.split(".")[:-1], typo(chance, name.split(".")[-1])])
        if chance.random() < 0.1:
            name = chance.choice([odd_key(chance), name.split(".")[0], f"{name}.deeper"])
        inner, (*outer, key) = table, name.split(".")
        for part in outer:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                break
        else:
            inner[key] = odd_value(chance)
    return table


def odd_file(chance: random.Random, method: str) -> bytes:
    """A configuration file: mostly TOML, sometimes cut, mangled, in another encoding, or nested without end."""
    kind = chance.randrange(10)
    if kind == 0:
        depth = chance.choice([100, 5000])
        return chance.choice([b"seed = " + b"[" * depth, b"[" + b".".join([b"a"] * depth) + b"]\nx = 1\n"])
    data = tomli_w.dumps(odd_table(chance, method)).encode()
    if kind == 1:
        return data[: chance.randrange(len(data) + 1)]
    if kind == 2:
        at = chance.randrange(len(data) + 1)
        return data[:at] + chance.randbytes(3) + data[at:]
    return data.decode().encode("utf-16") if kind == 3 else data


def odd_flags(chance: random.Random, method: str) -> list[str]:
    """Up to three flags: good, odd, mistyped, of other methods, without or with too many values."""
    words: list[str] = []
    for _ in range(chance.randrange(4)):
        name = chance.choice(NAMES[method if chance.random() < 0.8 else chance.choice([*METHODS])])
        if chance.random() < 0.2:
            name = typo(chance, name)
        value = chance.choice(
            ["1", "2", "0.5", "nan", "inf", "-1", "1e999", "x", "é", "", "a b", "9" * 400, "--"]
        )
        words += chance.choice(
            [[f"--{name}", value], [f"--{name}={value}"], [f"--{name}"], [f"--{name}", value, value]]
        )
    return words
