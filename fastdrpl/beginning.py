"""The beginning of a run: everything that may be refused is opened and checked before the folder is written to."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fastdrpl.checkpoint import list_checkpoints, remove_leftovers
from fastdrpl.config import Config
from fastdrpl.console import say, warn
from fastdrpl.errors import DataError, UserError
from fastdrpl.eyes import BEFORE_IT_WAS_CHOSEN, Eyes, choose_look_batch
from fastdrpl.files import read_json, write_json
from fastdrpl.fixing.origin import FIELD
from fastdrpl.folder import RunFolder, claim, fingerprint_of, is_bound
from fastdrpl.journal import NoJournal
from fastdrpl.loaders.batch import Batch
from fastdrpl.loaders.dataset import Dataset
from fastdrpl.loading import choose_loaders, open_loader, order_of
from fastdrpl.machine import Machine, describe_versions
from fastdrpl.memory.estimate import RunSize
from fastdrpl.memory.room import Plan, Room, plan_memory, refuse, tell
from fastdrpl.memory.sizes import size_of
from fastdrpl.methods import load_method
from fastdrpl.noise import achieved
from fastdrpl.pixels import resolve_transform
from fastdrpl.recipes import recipe_named
from fastdrpl.rings import ring_maker
from fastdrpl.settings import flatten
from fastdrpl.stages import Stage
from fastdrpl.state import RunState
from fastdrpl.view import View, open_data, test_view, training_view

MANIFEST_VERSION = 1


@dataclass(frozen=True)
class Beginning:
    """What a run begins, or goes on, with."""

    data: Dataset
    train: View
    test: View | None
    loaders: dict[str, str]
    memory: Plan
    train_eyes: Eyes
    test_eyes: Eyes | None
    test_label: torch.Tensor | None
    state: RunState

    def say_what_runs(self) -> None:
        """A line on machine and data, from rank 0."""
        machine = self.state.machine
        if machine.main:
            where = machine.describe()
            say(
                f"{where['gpu'] or 'CPU'}, {machine.precision}, {machine.world} rank(s), "
                f"{machine.threads} threads, {where['mode']} steps, loader {type(self.train_eyes.loader).__name__}, "
                f"{len(self.train.labels)} training images, {self.state.classes} classes"
            )

    def close(self) -> None:
        """Give back the loaders."""
        for eyes in (self.train_eyes, self.test_eyes):
            if eyes is not None:
                eyes.loader.close()


def open_beginning(config: Config, plan: tuple[Stage, ...], folder: RunFolder, machine: Machine) -> Beginning:
    """Data, labels, loaders, networks. Raises `UserError` or `DataError` for what cannot be had; writes nothing but
    the embedded digits."""
    if machine.main:
        say(f"run folder {folder.path}")
    recipe = recipe_named(config.recipe)
    if recipe.label_file and config.noise.file is None and config.labels is None:
        raise UserError(
            f"the recipe {recipe.name} trains on labels from a file, {recipe.label_file}",
            where="noise.file",
            fix="give --noise.file FILE --noise.file_column SET (its authors publish it at noisylabels.com)",
        )
    with machine.main_first():
        data = open_data(config, folder)
    if machine.main and data.source.kind not in recipe.kinds:
        warn(f"the recipe is {config.recipe}, the data are {data.source.kind}")
    train, test = training_view(config, data), test_view(config, data)
    transform = resolve_transform(config.augment, data)
    identity = identity_of_run(config, data, train)
    if list_checkpoints(folder.checkpoints):
        refuse_others(folder, identity)
    before = read_json(folder.manifest) if is_bound(folder) else {}
    views = [train] if test is None else [train, test]
    loaders = choose_loaders(config.engine, views, machine, config.order, before.get("loaders"))
    look_batch = choose_look_batch(
        config.engine.eval_batch,
        machine,
        transform.size,
        config.model.width,
        before.get("eval_batch", BEFORE_IT_WAS_CHOSEN) if before else None,
    )
    size = size_of(config, plan, views, loaders, look_batch, transform, machine)
    memory = make_room(config, size, before, machine, folder)
    given = torch.tensor(train.labels.given, device=machine.device)
    classes = len(train.labels.class_names)
    rings = ring_maker(memory.ring, machine.device, folder.path)
    state = RunState(config, plan, folder, machine, identity, NoJournal(), given, classes, rings)
    eyes = [
        Eyes(
            open_loader(loaders[view.split.name], config.engine, view, machine),
            transform,
            len(view.labels),
            order_of(config.order, view),
            look_batch,
        )
        for view in views
    ]
    if machine.main:
        for note in train.notes:
            say(note)
    if machine.ladder.mode != "eager":
        state.learners.rehearse(_like_a_step(config, plan, eyes[0], train, machine))
    label = None if test is None else torch.tensor(test.labels.truth, device=machine.device)
    return Beginning(data, train, test, loaders, memory, eyes[0], eyes[1] if test else None, label, state)


def make_room(
    config: Config, size: RunSize, before: Mapping[str, Any], machine: Machine, folder: RunFolder
) -> Plan:
    """What the run will take, said in a line, and where its rings go. Raises `UserError` where it does not fit.

    `before`: the manifest of a run that goes on.
    """
    room = Room.here(machine, folder.path)
    memory = plan_memory(size, config.engine.ring, before.get("memory", {}).get("ring"), machine, room)
    refuse(memory, room, machine, config.engine.memory, flatten(config))
    if machine.main:
        say(tell(memory, room))
    return memory


def _like_a_step(
    config: Config, plan: tuple[Stage, ...], eyes: Eyes, train: View, machine: Machine
) -> torch.Tensor:
    """Inputs of the kind and size that the first stage's steps have on a rank, all black."""
    size = -(-(plan[0].batch_size or config.batch_size) // machine.world)
    pixels = torch.zeros(
        (1, train.split.height, train.split.width, 3), dtype=torch.uint8, device=machine.device
    )
    nothing = torch.zeros(size, dtype=torch.int64, device=machine.device)
    return eyes.transform.plain(Batch(pixels, nothing, nothing))


def write_beginning(config: Config, beginning: Beginning, folder: RunFolder, machine: Machine) -> None:
    """config.toml, manifest.json and the labels of a run that has no checkpoint yet."""
    claim(folder, config)
    if not list_checkpoints(folder.checkpoints):
        labels = beginning.train.labels
        labels.save(folder.noise)
        write_json(folder.noise_rates, achieved(labels))
        origin = {} if beginning.train.origin is None else {FIELD: asdict(beginning.train.origin)}
        write_json(
            folder.manifest,
            {
                "schema": MANIFEST_VERSION,
                "identity": beginning.state.identity,
                "data": str(beginning.data.path.resolve()),
                **origin,
                "samples": len(labels),
                "classes": list(labels.class_names),
                "machine": machine.describe(),
                "loaders": beginning.loaders,
                "eval_batch": beginning.train_eyes.batch_size,
                "memory": beginning.memory.describe(),
                "versions": describe_versions(),
            },
        )
    ladder = machine.ladder
    ladder.note = lambda: _note_mode(folder, machine)
    if read_json(folder.manifest)["machine"].get("mode") != ladder.mode:
        ladder.note()
    for place in (folder.path, folder.checkpoints):
        remove_leftovers(place)


def _note_mode(folder: RunFolder, machine: Machine) -> None:
    """Keep in the manifest how steps are carried out from now on."""
    manifest, now = read_json(folder.manifest), machine.describe()
    manifest["machine"] |= {name: now[name] for name in ("mode", "mode_reasons")}
    write_json(folder.manifest, manifest)


def identity_of_run(config: Config, data: Dataset, train: View) -> dict[str, str]:
    """What decides the result, as hashes."""
    identity = {
        "config": fingerprint_of(config),
        "data": data.fingerprint,
        "labels": train.labels.fingerprint,
    }
    method = load_method(config.method)
    return {**identity, "method": method.digest} if method.digest else identity


def refuse_others(folder: RunFolder, identity: dict[str, str]) -> None:
    """Raise `DataError` where data, labels or the file of a method are not those that the run began with."""
    before = read_json(folder.manifest)["identity"]
    for name in ("data", "labels", "method"):
        if before.get(name) != identity.get(name):
            raise DataError(
                f"the {name} of this run folder changed since the run began",
                where=str(folder.path),
                fix=f"give another --run, or bring the {name} back to what they were",
            )
