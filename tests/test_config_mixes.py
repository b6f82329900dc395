"""R6: whatever stands in a configuration file or among the flags is a plan, or exit 2 with the name of a field."""

import contextlib
import io
import random
import re
from pathlib import Path

import pytest
from config_mixes import NAMES, odd_file, odd_flags, typo

from fastdrpl import config_file
from fastdrpl.cli import parse_training
from fastdrpl.config import Config
from fastdrpl.errors import UserError
from fastdrpl.folder import run_folder
from fastdrpl.methods import METHODS
from fastdrpl.plan import plan_of
from fastdrpl.recipes import recipe_named


def plan_or_message(words: list[str]) -> str | None:
    """What `fastdrpl train` says of a request that it refuses with 2; None for one that it takes. Nothing else is
    raised, or the test fails."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            config = parse_training(words)
        assert isinstance(config, Config)
        assert len(plan_of(config)) > 0 and run_folder(config).path.parts
        config_file.dumps(config)
    except UserError as error:
        assert error.exit_code == 2
        return str(error)
    except SystemExit as stopped:
        assert stopped.code == 2
        return re.sub(r"\s+", " ", said.getvalue())
    return None


def check_mixes(folder: Path, seeds: range, *, flags: bool) -> None:
    """Each seed is a mix; a failure names its seed."""
    taken = 0
    for seed in seeds:
        chance = random.Random(seed)
        method, words = chance.choice(list(METHODS)), []
        if not flags or chance.random() < 0.4:
            (folder / "mix.toml").write_bytes(odd_file(chance, method))
            words = ["--config", str(folder / "mix.toml")]
        extra = odd_flags(chance, method) if flags else []
        try:
            said = plan_or_message(["digits", "--method", method, *words, *extra])
            taken += said is None
            assert said is None or names_a_part(said, method, words, extra), said
        except Exception as error:
            error.add_note(f"seed {seed}: --method {method} {words} {extra}")
            raise
    assert 0 < taken < len(seeds)


def names_a_part(said: str, method: str, words: list[str], extra: list[str]) -> bool:
    """Whether a message names a field, the file, or the word that nobody asked for."""
    fields = {name.rpartition(".")[2] for known in NAMES.values() for name in known}
    return any(
        part and part in said
        for part in (
            *words[1:],
            *fields,
            method,
            *(word.lstrip("-").partition("=")[0][:40] for word in extra),
        )
    )


def test_thousand_files_are_a_plan_or_a_named_field(tmp_path, monkeypatch):
    """R6: 1,000 files of wrong types, nan, huge numbers, unknown keys, deep nesting, other encodings."""
    # Flags are not asked for here; reading none of them takes most of the time.
    monkeypatch.setattr("fastdrpl.cli._parse", lambda *given, default: default)
    check_mixes(tmp_path, range(1000), flags=False)


def test_mixes_of_files_and_flags_are_a_plan_or_a_named_field(tmp_path):
    """R6: the same through the command line."""
    check_mixes(tmp_path, range(40), flags=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousand_mixes_of_files_and_flags(tmp_path):
    """R6: 1,000 through the command line."""
    check_mixes(tmp_path, range(1000), flags=True)


def share_of_typos_with_a_hint(names: list[tuple[str, str]], tries: int, ask) -> float:
    """Over mistyped last parts of names (method, dotted name): how many are answered with the name that was meant."""
    chance, hits, total = random.Random(6), 0, 0
    for method, name in names:
        for _ in range(tries):
            outer, _, last = name.rpartition(".")
            wrong = f"{outer}.{typo(chance, last)}".strip(".")
            if wrong in NAMES[method] or wrong.endswith(".") or not wrong:
                continue
            total += 1
            hits += name in (ask(method, wrong) or "")
    return hits / total


ALL = sorted(
    {(next(m for m in METHODS if name in NAMES[m]), name) for method in METHODS for name in NAMES[method]}
)


def ask_file(method: str, wrong: str) -> str | None:
    table: dict = {}
    inner, (*outer, key) = table, wrong.split(".")
    for part in outer:
        inner = inner.setdefault(part, {})
    inner[key] = 1
    try:
        config_file.overlay_run(recipe_named("digits").config_for(method), table, where="x")
    except UserError as error:
        return str(error)
    return None


def ask_flags(method: str, wrong: str) -> str | None:
    return plan_or_message(["digits", "--method", method, f"--{wrong}", "1"])


def test_a_typo_in_a_file_is_answered_with_the_name():
    """R6: the nearest name in at least 95 % of one-letter typos, over the settings of all methods."""
    assert share_of_typos_with_a_hint(ALL, 8, ask_file) >= 0.95


def test_a_typo_among_the_flags_is_answered_with_the_name():
    """R6: the same for flags, some of them."""
    assert share_of_typos_with_a_hint(ALL[:: len(ALL) // 25], 1, ask_flags) >= 0.9


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_typo_among_all_flags_is_answered_with_the_name():
    """R6: at least 95 % over all flags of all methods."""
    share = share_of_typos_with_a_hint(ALL, 3, ask_flags)
    print(f"{share:.1%} of one-letter typos in {len(ALL)} flags are answered with the flag that was meant")
    assert share >= 0.95
