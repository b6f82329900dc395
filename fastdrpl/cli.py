"""The command line. A verb is a function here; what it needs is imported inside it, so that help is quick."""

import dataclasses
import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdrpl.spinning import spin_briefly
from fastdrpl.terminal import ReaderGone, accept_everything, outlive_readers, refusal

if TYPE_CHECKING:
    from fastdrpl.config import Config
    from fastdrpl.folder import RunFolder

HELP = """\
fastdrpl: train an image classifier from partly wrong labels, and learn which labels are wrong.

  fastdrpl prepare KIND --source DIR --out DIR   compile images once: `fastdrpl prepare --help` lists the kinds
  fastdrpl train RECIPE [--data DIR] [flags]     train, detect, report; the same command continues a stopped run
  fastdrpl compare GRID [flags]                  methods x noises x seeds as runs, and the paper's tables from them
  fastdrpl recipes [NAME [METHOD]]               recipes and methods, with every number and where it comes from
  fastdrpl status RUN... [--watch]               how runs get on, from their files
  fastdrpl report RUN... [--out FILE]            the page about a run: suspects to decide on, charts; runs side by side
  fastdrpl fix RUN [--fixes FILE] [--out FILE]   corrected labels from what you decided about the suspects
  fastdrpl predict RUN PATH [--out FILE]         label new images with a finished run's network
  fastdrpl export RUN --to FORM...               labels, images or network for other tools: csv, cleanlab, onnx ...
  fastdrpl detect RUN... [--out DIR]             how well each detector of finished runs finds the wrong labels
  fastdrpl figure KIND RUN... --out DIR          the paper's figures of finished runs: losses, cam, doubtful
  fastdrpl probe RUN... --data DIR               what the features of a run are worth for classes it never saw
  fastdrpl confusion --images DIR --out FILE     which ImageNet class is taken for which, for its non-uniform noises
  fastdrpl bench loaders --data DIR              how fast each loader feeds your data here, and which to take
  fastdrpl doctor [PATH]                         what this machine has, what is missing and what installs it

`fastdrpl VERB --help` says more. Exit codes: 0 done, 2 request, 3 data, 4 not finite, 5 detection collapsed,
75 stopped by a signal (run the same command to continue), 130 stopped by Ctrl-C.
--debug shows where an error came from.
Several processes: accelerate launch fastdrpl/train.py RECIPE ... (see docs/ranks.md).
"""


READER_GONE = 141  # as shells have it for a command whose reader went away
STOPPED = 130  # the exit code of a command that Ctrl-C ended, as shells have it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    accept_everything()
    spin_briefly()
    try:
        return _main(words)
    except KeyboardInterrupt as interrupt:  # a run that trains has handlers of its own
        if "--debug" in words:
            raise
        print("; ".join(("stopped", *map(str, interrupt.args))), file=sys.stderr)
        return STOPPED


def _main(words: list[str]) -> int:
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0 if words else 2
    if words[0] == "--version":
        from fastdrpl import __version__

        print(f"fastdrpl {__version__}")
        return 0
    from fastdrpl.console import fail
    from fastdrpl.errors import UserError
    from fastdrpl.files import explain_system_error
    from fastdrpl.names import nearest

    verb = VERBS.get(words[0])
    try:
        if verb is None:
            raise UserError(f"unknown verb {words[0]!r}{nearest(words[0], VERBS)}", fix="see fastdrpl --help")
        code = verb(words[1:])
        sys.stdout.flush()
        error = refusal()
        if isinstance(error, BrokenPipeError):
            return READER_GONE
        if error is not None and code == 0:
            raise UserError(
                f"the work is done, but its output could not be written: {error.strerror}",
                where="standard output",
                fix="make room there, or name another place; a finished run is printed again by the same command",
            )
        return code
    except ReaderGone:
        return READER_GONE
    except UserError as error:
        if debug:
            raise
        fail(str(error))
        return error.exit_code
    except OSError as error:  # a disk or a machine that refuses, wherever it was asked
        if debug or error.strerror is None:
            raise
        refused = explain_system_error(error)
        fail(str(refused))
        return refused.exit_code


def _prepare(words: list[str]) -> int:
    import tyro

    from fastdrpl.loaders.prepare import PrepareConfig, prepare

    kind, rest = _split_name(words, "prepare KIND")
    prepare(
        _parse(
            tyro.cli, PrepareConfig, f"fastdrpl prepare {kind}", [*(["--kind", kind] if kind else []), *rest]
        )
    )
    return 0


def _train(words: list[str]) -> int:
    config = parse_training(words)
    from fastdrpl.folder import run_folder
    from fastdrpl.run import run

    outlive_readers()  # a training goes on without them
    folder = run_folder(config)  # before it runs: a label file may be another afterwards
    run(config)
    if int(os.environ.get("RANK", "0")) == 0:
        from fastdrpl.report.facts import read_facts
        from fastdrpl.report.summary import print_summary

        print_summary(read_facts(folder.path))
        if config.labels is not None:
            from fastdrpl.fixing.summary import print_progress

            print_progress(folder.path)
        if config.judge == "all":
            _judge_held_out(folder)
    return 0


def _judge_held_out(folder: "RunFolder") -> None:
    from fastdrpl.held_out import judge_held_out

    found = judge_held_out(folder)
    if found is None:
        print("There are no held-out images whose labels may be wrong: --judge all changes nothing.")
    else:
        print(f"{found[0]:,} of {found[1]:,} held-out labels look wrong: {folder.held_out[1]}")


def parse_training(words: list[str]) -> "Config":
    """Recipe first, then flags: default < recipe < --config FILE < flag. `--method` decides which flags there are."""
    import tyro

    from fastdrpl import config_file
    from fastdrpl.errors import UserError
    from fastdrpl.noise_config import NoiseConfig
    from fastdrpl.recipes import recipe_named

    file, words = _take_option(words, "--config")
    table = {} if file is None else config_file.read_table(Path(file))
    if isinstance(table.get("recipe"), str) and (not words or words[0].startswith("-")):
        words = [table["recipe"], *words]  # the config.toml of a run names its recipe
    name, rest = _split_name(words, "train RECIPE")
    if name and table.get("recipe", name) != name:
        raise UserError(f"the recipe is {name!r}, but the file is for {table['recipe']!r}", where=file)
    method, rest = _take_option(rest, "--method")
    recipe = recipe_named(name or "digits")  # without a name only help is printed
    method = str(method or table.get("method", recipe.config.method))
    config = recipe.config_for(method)
    _refuse_flags_of_others(rest, method)
    if "labels" in table or any(word == "--labels" or word.startswith("--labels=") for word in rest):
        config = dataclasses.replace(config, noise=NoiseConfig())  # the noise is in the labels
        table = table if "labels" in table else {k: v for k, v in table.items() if k != "noise"}
    if file is not None:
        table = {**table, "recipe": name, "method": config.method}
        config = config_file.overlay_run(config, table, where=file)
    return _parse(tyro.cli, type(config), f"fastdrpl train {name or 'RECIPE'}", rest, default=config)


def _refuse_flags_of_others(words: list[str], method: str) -> None:
    """Raise `UserError` for a flag of another method, or of an older name."""
    from fastdrpl.config_file import RENAMED
    from fastdrpl.errors import UserError
    from fastdrpl.methods import METHODS

    for word in words:
        flag = word.removeprefix("--").partition("=")[0].replace("-", "_")
        section = flag.partition(".")[0]
        if not word.startswith("--") or "." not in flag:
            continue
        if flag in RENAMED:
            raise UserError(f"--{flag} is called --{RENAMED[flag]}", fix=f"give --{RENAMED[flag]}")
        if section in METHODS and section != method:
            raise UserError(
                f"--{flag} is a setting of the method {section!r}, and this run is of {method!r}",
                fix=f"add --method {section}, or leave the flag out",
            )


def _compare(words: list[str]) -> int:
    import tyro

    from fastdrpl.compare.verb import CompareConfig, compare

    name, rest = ("", words) if "--list" in words else _split_name(words, "compare GRID")
    return compare(name, _parse(tyro.cli, CompareConfig, "fastdrpl compare GRID", rest))


def _recipes(words: list[str]) -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fastdrpl.methods import METHODS, load_method
    from fastdrpl.recipes import RECIPES, describe, describe_method, recipe_named

    _refuse_flags(words, "recipes [NAME [METHOD]]", most=2)
    console = Console(highlight=False)

    def show(title: str, rows: list[tuple[str, str, str]]) -> None:
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for column in ("field", "value", "source"):
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table, "")

    for recipe in [recipe_named(name) for name in (words[:1] or RECIPES)]:
        show(f"{recipe.name}: {recipe.summary}", describe(recipe))
        for method in words[1:] or (METHODS if words else ()):
            show(f"--method {method}: {load_method(method).summary}", describe_method(recipe, method))
    if not words:
        show("methods", [(name, load_method(name).summary, "") for name in METHODS])
        console.print("`fastdrpl recipes NAME` shows the numbers of every method for that recipe.")
    console.print(
        "P = paper, arXiv 1912.08741; C = what the published code executes; own = a choice of fastdrpl."
    )
    return 0


def _figure(words: list[str]) -> int:
    import tyro

    from fastdrpl.errors import UserError
    from fastdrpl.figures.command import FIGURES
    from fastdrpl.names import nearest

    kind, rest = _split_name(words, f"figure {'|'.join(FIGURES)} RUN...")
    if kind not in FIGURES:
        if not kind:
            print(f"usage: fastdrpl figure {'|'.join(FIGURES)} RUN... --out DIR   (each has --help)")
            raise SystemExit(0)
        raise UserError(
            f"there is no figure {kind!r}{nearest(kind, FIGURES)}", fix=f"one of {', '.join(FIGURES)}"
        )
    settings, draw = FIGURES[kind]
    return draw(_parse(tyro.cli, settings, f"fastdrpl figure {kind}", rest))


def _bench(words: list[str]) -> int:
    import tyro

    from fastdrpl.bench_loaders import BenchConfig, bench_loaders
    from fastdrpl.errors import UserError

    what, rest = _split_name(words, "bench loaders --data DIR")
    if what not in ("loaders", ""):
        raise UserError(f"there is no bench {what!r}", fix="fastdrpl bench loaders --data DIR")
    bench_loaders(_parse(tyro.cli, BenchConfig, "fastdrpl bench loaders", rest))
    return 0


def _doctor(words: list[str]) -> int:
    from fastdrpl.doctor import doctor

    _refuse_flags(words, "doctor [PATH]", most=1)
    return doctor(Path(words[0]) if words else None)


# Verbs that are a dataclass of flags and a function of it.
_PLAIN = {
    "status": ("fastdrpl.watch", "StatusConfig", "show_status"),
    "report": ("fastdrpl.report.command", "ReportCommand", "report_runs"),
    "fix": ("fastdrpl.fixing.command", "FixCommand", "fix"),
    "predict": ("fastdrpl.predict", "PredictConfig", "predict"),
    "export": ("fastdrpl.exports.verb", "ExportConfig", "export"),
    "detect": ("fastdrpl.detect.command", "DetectCommand", "detect_runs"),
    "probe": ("fastdrpl.figures.probe", "ProbeCommand", "probe"),
    "confusion": ("fastdrpl.confusion", "ConfusionConfig", "make_confusion"),
}


def _plain(verb: str, words: list[str]) -> int:
    import tyro

    module, settings, function = _PLAIN[verb]
    found = importlib.import_module(module)
    config = _parse(tyro.cli, getattr(found, settings), f"fastdrpl {verb}", words)
    code = getattr(found, function)(config)
    return code if verb in ("status", "detect") else 0  # the others return what they made


VERBS: dict[str, Callable[[list[str]], int]] = {
    "prepare": _prepare,
    "train": _train,
    "compare": _compare,
    "recipes": _recipes,
    "figure": _figure,
    "bench": _bench,
    "doctor": _doctor,
    **{verb: functools.partial(_plain, verb) for verb in _PLAIN},
}


def _split_name(words: list[str], usage: str) -> tuple[str, list[str]]:
    """The leading name of a verb's words, and the rest; no name only where help is asked for."""
    from fastdrpl.errors import UserError

    if words and not words[0].startswith("-"):
        return words[0], words[1:]
    if any(word in ("-h", "--help") for word in words):
        return "", words
    raise UserError("a name is missing", fix=f"fastdrpl {usage} ...")


def _take_option(words: list[str], option: str) -> tuple[str | None, list[str]]:
    """The value of an option given as `--x VALUE` or `--x=VALUE`, and the words without it."""
    from fastdrpl.errors import UserError

    for position, word in enumerate(words):
        if word.startswith(f"{option}="):
            return word.partition("=")[2], words[:position] + words[position + 1 :]
        if word == option:
            if position + 1 == len(words):
                raise UserError(f"{option} needs a value")
            return words[position + 1], words[:position] + words[position + 2 :]
    return None, words


def _refuse_flags(words: list[str], usage: str, *, least: int = 0, most: int = 0) -> None:
    """Check the words of a verb that takes names only."""
    from fastdrpl.errors import UserError

    if any(word in ("-h", "--help") for word in words):
        print(f"usage: fastdrpl {usage}")
        raise SystemExit(0)
    if not least <= len(words) <= most or any(word.startswith("-") for word in words):
        raise UserError(f"cannot read {' '.join(words)!r}", fix=f"fastdrpl {usage}")


def _parse(
    parser: Callable[..., Any], settings: type, program: str, words: list[str], default: Any = None
) -> Any:
    """A dataclass from flags; tyro prints its own message and ends with code 2 for flags it cannot read."""
    given = {} if default is None else {"default": default}
    return parser(settings, prog=program, args=words, use_underscores=True, **given)
