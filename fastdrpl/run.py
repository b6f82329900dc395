"""A run: from a configuration to a run folder with a classifier and a list of the wrong labels."""

import contextlib
import os
from typing import Any

from fastdrpl.beginning import Beginning, identity_of_run, open_beginning, refuse_others, write_beginning
from fastdrpl.checkpoint import remove_leftovers
from fastdrpl.config import Config
from fastdrpl.console import warn
from fastdrpl.errors import CollapseError, PreemptedError, UserError
from fastdrpl.files import read_json, write_json
from fastdrpl.folder import RunFolder, check_claim, is_bound, run_folder
from fastdrpl.journal import NoJournal
from fastdrpl.lock import RunLock, lock_holder
from fastdrpl.loop import Loop
from fastdrpl.machine import Machine, build_machine
from fastdrpl.memory.exhausted import explain_out_of_memory, is_out_of_memory
from fastdrpl.methods import arose_in, load_method, where_in
from fastdrpl.metrics import Metrics
from fastdrpl.modes import first_line
from fastdrpl.plan import plan_of
from fastdrpl.results import finish, lacks_pages, write_pages
from fastdrpl.settings import flatten
from fastdrpl.signals import StopRequest
from fastdrpl.stages import Stage
from fastdrpl.traces import Traces
from fastdrpl.tracking import Trackers, parse_trackers
from fastdrpl.view import open_data, training_view


def run(config: Config) -> dict[str, Any]:
    """Carry out a configuration, from where its folder stands: -> the content of result.json.

    A finished run only returns its result, and writes pages that it could not write. A start that is refused, for
    whatever reason, leaves the folder as it was.
    Raises the errors of `fastdrpl.errors`; PreemptedError after a signal, with the state saved.
    """
    plan = plan_of(config)
    folder = run_folder(config)
    if folder.result.exists():
        result = _earlier_result(config, folder)
        _make_up_for_pages(folder)
        return result
    parse_trackers(config.track_with)  # what is not there is refused before anything begins
    before = read_json(folder.manifest) if is_bound(folder) else {}
    machine = build_machine(config.engine, before.get("machine"))
    with StopRequest() as stop:
        if not machine.main:
            machine.wait()  # until rank 0 holds the folder; if it cannot, the launcher ends us
            return _train(config, _open(config, plan, folder, machine), folder, machine, stop)
        with Traces(folder.path) as traces:
            check_claim(folder, config)
            machine.wait()
            beginning = _open(config, plan, folder, machine)
            write_beginning(config, beginning, folder, machine)
            traces.keep()
            _forget_failure(folder)
            try:
                return _train(config, beginning, folder, machine, stop)
            except PreemptedError:
                raise
            except UserError as error:
                _note_failure(folder, error)
                raise


def _open(config: Config, plan: tuple[Stage, ...], folder: RunFolder, machine: Machine) -> Beginning:
    """`open_beginning`, with an error for people where memory runs out on the way."""
    try:
        return open_beginning(config, plan, folder, machine)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"memory is used up before training begins: {first_line(error)}",
            where=f"{folder.path}; nothing was written there",
            fix="take a smaller --model.width, --engine.loader worker or fewer ranks on this machine, or end what else "
            "takes memory here, and give the same command",
        ) from error


def _note_failure(folder: RunFolder, error: UserError) -> None:
    """Leave for `fastdrpl status` why a run ended."""
    failed: dict[str, Any] = {"failed": error.what.splitlines()[0], "exit_code": error.exit_code}
    if isinstance(error, CollapseError):
        failed["adjustable"] = list(error.adjustable)
    with contextlib.suppress(UserError):  # a full disk may be the failure itself, which is told in any case
        write_json(folder.progress, failed)


def _forget_failure(folder: RunFolder) -> None:
    """An attempt begins: what the one before ended with says nothing any more, but what it may be changed by."""
    before = read_json(folder.progress) if folder.progress.exists() else {}
    if "failed" in before:
        kept = {name: value for name, value in before.items() if name not in ("failed", "exit_code")}
        write_json(folder.progress, kept)


def _open_metrics(config: Config, folder: RunFolder) -> Metrics:
    names = parse_trackers(config.track_with)
    return Metrics(folder, Trackers(names, folder.tracking, folder.path, flatten(config)))


def _earlier_result(config: Config, folder: RunFolder) -> dict[str, Any]:
    """The result of a finished run; an error if it was of another configuration, other data or other labels."""
    check_claim(folder, config)
    if config.data is None or config.data.exists():  # a result can be shown without its data
        data = open_data(config, folder)
        refuse_others(folder, identity_of_run(config, data, training_view(config, data)))
    return read_json(folder.result)


def _make_up_for_pages(folder: RunFolder) -> None:
    """Write what a finished run lacks; a folder that cannot be written, or that another process has, stays as it is."""
    if int(os.environ.get("RANK", "0")) or not lacks_pages(folder) or lock_holder(folder.path):
        return
    try:
        with RunLock(folder.path):
            remove_leftovers(folder.path)
            write_pages(folder)
    except UserError as error:
        warn(f"the run is finished, but not all of its pages are there: {error.what}")


def _train(
    config: Config, beginning: Beginning, folder: RunFolder, machine: Machine, stop: StopRequest
) -> dict[str, Any]:
    state, train, test = beginning.state, beginning.train, beginning.test
    try:
        machine.wait()
        fingerprint = state.identity["config"]
        state.identity = {**state.identity, "config": read_json(folder.manifest)["identity"]["config"]}
        with _open_metrics(config, folder) if machine.main else NoJournal() as journal:
            state.journal = journal
            beginning.say_what_runs()
            state.resume_or_begin()
            Loop(
                state, train.labels, beginning.train_eyes, beginning.test_eyes, beginning.test_label, stop
            ).run()
            eyes = beginning.train_eyes, beginning.test_eyes
            return finish(state, beginning.data, train, test, *eyes, fingerprint)
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise explain_out_of_memory(error, beginning.state, beginning.memory) from error
        method = load_method(config.method)
        if not method.digest or not arose_in(method, error):
            raise
        raise UserError(where_in(method, error), where=method.name, fix="mend the file") from error
    finally:
        beginning.close()
