"""A run: from a configuration to a run folder with a classifier and a list of the wrong labels."""

from typing import Any

import torch

from fastdrpl.checkpoint import remove_leftovers
from fastdrpl.config import Config
from fastdrpl.console import say, warn
from fastdrpl.errors import CollapseError, DataError, NonFiniteError, UserError
from fastdrpl.eyes import Eyes
from fastdrpl.files import read_json, write_json
from fastdrpl.folder import RunFolder, claim, fingerprint_of, run_folder
from fastdrpl.journal import Journal, NoJournal
from fastdrpl.loaders.dataset import Dataset
from fastdrpl.loading import choose_loaders, open_loader, order_of
from fastdrpl.lock import RunLock
from fastdrpl.loop import Loop
from fastdrpl.machine import Machine, build_machine, describe_versions
from fastdrpl.methods import load_method, where_in
from fastdrpl.noise import achieved
from fastdrpl.pixels import Transform, resolve_transform
from fastdrpl.plan import plan_of
from fastdrpl.recipes import recipe_named
from fastdrpl.results import finish
from fastdrpl.signals import StopRequest
from fastdrpl.stages import Stage
from fastdrpl.state import RunState
from fastdrpl.view import View, open_data, test_view, training_view

MANIFEST_VERSION = 1


def run(config: Config) -> dict[str, Any]:
    """Carry out a configuration, from where its folder stands: -> the content of result.json.

    A finished run only returns its result. Raises the errors of `fastdrpl.errors`; PreemptedError after a
    signal, with the state saved.
    """
    plan = plan_of(config)
    folder = run_folder(config)
    if folder.result.exists():
        return _earlier_result(config, folder)
    before = read_json(folder.manifest) if folder.manifest.exists() else {}
    machine = build_machine(config.engine, before.get("machine"))
    with StopRequest() as stop:
        if not machine.main:
            machine.wait()  # until rank 0 holds the folder; if it cannot, the launcher ends us
            return _run_here(config, plan, folder, machine, stop)
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make the run folder: {error.strerror}", where=str(folder.path)
            ) from error
        with RunLock(folder.path):
            claim(folder, config)
            machine.wait()
            try:
                return _run_here(config, plan, folder, machine, stop)
            except (CollapseError, NonFiniteError) as error:
                failed = {"failed": error.what.splitlines()[0], "exit_code": error.exit_code}
                if isinstance(error, CollapseError):
                    failed["adjustable"] = list(error.adjustable)
                write_json(folder.progress, failed)
                raise


def _earlier_result(config: Config, folder: RunFolder) -> dict[str, Any]:
    """The result of a finished run; an error if it was of another configuration, other data or other labels."""
    claim(folder, config)
    if config.data is None or config.data.exists():  # a result can be shown without its data
        data = open_data(config, folder)
        _refuse_others(folder, _identity(config, data, training_view(config, data)))
    return read_json(folder.result)


def _run_here(
    config: Config, plan: tuple[Stage, ...], folder: RunFolder, machine: Machine, stop: StopRequest
) -> dict[str, Any]:
    if machine.main:
        say(f"run folder {folder.path}")
    with machine.main_first():
        data = open_data(config, folder)
    if machine.main and data.source.kind not in recipe_named(config.recipe).kinds:
        warn(f"the recipe is {config.recipe}, the data are {data.source.kind}")
    train, test = training_view(config, data), test_view(config, data)
    identity = _identity(config, data, train)
    before = read_json(folder.manifest).get("loaders") if folder.manifest.exists() else None
    views = [train] if test is None else [train, test]
    loaders = choose_loaders(config.engine, views, machine, config.order, before)
    if machine.main:
        for note in train.notes:
            say(note)
        _write_beginnings(folder, machine, data, train, identity, loaders)
    machine.wait()
    identity["config"] = read_json(folder.manifest)["identity"]["config"]  # `claim` compared the fields
    with Journal(folder.metrics) if machine.main else NoJournal() as journal:
        given = torch.tensor(train.labels.given, device=machine.device)
        classes = len(train.labels.class_names)
        state = RunState(config, plan, folder, machine, identity, journal, given, classes)
        transform = resolve_transform(config.augment, data)
        eyes = [_open_eyes(view, config, transform, loaders, machine) for view in views]
        try:
            _say_what_runs(state, eyes[0], len(train.labels))
            label = None if test is None else torch.tensor(test.labels.truth, device=machine.device)
            state.resume_or_begin()
            Loop(state, train.labels, eyes[0], eyes[1] if test else None, label, stop).run()
            return finish(state, data, train, test, eyes[0])
        except UserError:
            raise
        except Exception as error:
            method = load_method(config.method)
            if not method.digest:
                raise
            raise UserError(where_in(method, error), where=method.name, fix="mend the file") from error
        finally:
            for each in eyes:
                each.loader.close()


def _open_eyes(
    view: View, config: Config, transform: Transform, loaders: dict[str, str], machine: Machine
) -> Eyes:
    loader = open_loader(loaders[view.split.name], config.engine, view, machine)
    order = order_of(config.order, view)
    return Eyes(loader, transform, len(view.labels), order, config.engine.eval_batch)


def _say_what_runs(state: RunState, eyes: Eyes, samples: int) -> None:
    machine = state.machine
    if machine.main:
        where = machine.describe()
        say(
            f"{where['gpu'] or 'CPU'}, {machine.precision}, {machine.world} rank(s), {machine.threads} threads, "
            f"loader {type(eyes.loader).__name__}, {samples} training images, {state.classes} classes"
        )


def _identity(config: Config, data: Dataset, train: View) -> dict[str, str]:
    """What decides the result, as hashes."""
    return {
        "config": fingerprint_of(config),
        "data": data.fingerprint,
        "labels": train.labels.fingerprint,
    }


def _refuse_others(folder: RunFolder, identity: dict[str, str]) -> None:
    """Raise `DataError` where the data or labels are not those that the run began with."""
    before = read_json(folder.manifest)["identity"]
    for name, value in identity.items():
        if name != "config" and before.get(name) != value:
            raise DataError(
                f"the {name} of this run folder changed since the run began",
                where=str(folder.path),
                fix="give another --run, or bring the data back to what they were",
            )


def _write_beginnings(
    folder: RunFolder,
    machine: Machine,
    data: Dataset,
    train: View,
    identity: dict[str, str],
    loaders: dict[str, str],
) -> None:
    """manifest.json and the labels, or the check that they are those of the run's first part."""
    if folder.manifest.exists():
        _refuse_others(folder, identity)
    else:
        train.labels.save(folder.noise)
        write_json(folder.noise_rates, achieved(train.labels))
        write_json(
            folder.manifest,
            {
                "schema": MANIFEST_VERSION,
                "identity": identity,
                "data": str(data.path.resolve()),
                "samples": len(train.labels),
                "classes": list(train.labels.class_names),
                "machine": machine.describe(),
                "loaders": loaders,
                "versions": describe_versions(),
            },
        )
    for place in (folder.path, folder.checkpoints):
        remove_leftovers(place)
