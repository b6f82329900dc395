"""The plan of a run: the stages its method asks for, checked before any of them is trained."""

import re
from collections import Counter

from fastdrpl.config import Config
from fastdrpl.errors import UserError
from fastdrpl.methods import Method, load_method, where_in
from fastdrpl.stages import Objective, Stage

_NAME = re.compile(r"[\w.-]+")


def plan_of(config: Config) -> tuple[Stage, ...]:
    """The stages of a configuration. Raises `UserError` for a plan that could not be carried out to its end."""
    method = load_method(config.method)
    try:
        plan = method.stages(getattr(config, method.section), config)
    except UserError:
        raise
    except Exception as error:
        if not method.digest:
            raise
        raise UserError(where_in(method, error), where=method.name, fix="mend the file") from error
    _check(method, plan)
    return tuple(plan)


def _check(method: Method, plan: tuple[Stage, ...]) -> None:
    if not isinstance(plan, tuple | list) or not plan or not all(isinstance(stage, Stage) for stage in plan):
        raise _error(method, f"`stages` returned {type(plan).__name__}, not a tuple of Stage")
    twice = [name for name, count in Counter(stage.name for stage in plan).items() if count > 1]
    if twice:
        raise _error(method, f"two stages are called {twice[0]!r}")
    for stage in plan:
        _check_stage(method, stage)
    if plan[0].start == "previous":
        raise _error(method, f"the first stage, {plan[0].name!r}, starts from a stage before it")
    if not any(stage.detector is not None and stage.decides for stage in plan):
        raise _error(method, "no stage has a detector that decides: nothing would say which labels are wrong")


def _check_stage(method: Method, stage: Stage) -> None:
    if not _NAME.fullmatch(stage.name):
        raise _error(method, f"the stage name {stage.name!r} cannot name a folder")
    if not isinstance(stage.objective, Objective):
        raise _error(method, f"the objective of {stage.name!r} is no `stages.Objective`")
    if stage.networks < 1 or stage.batch_size < 0 or stage.batch_size == 1:
        raise _error(
            method, f"{stage.name!r} has {stage.networks} networks and batches of {stage.batch_size}"
        )
    read = set(stage.objective.reads) | set(() if stage.detector is None else stage.detector.reads)
    for look in stage.looks:
        if look.into not in read and not look.figures:
            raise _error(method, f"nobody reads what {stage.name!r} looks at: the column {look.into!r}")


def _error(method: Method, what: str) -> UserError:
    return UserError(
        f"the plan of the method cannot be carried out: {what}",
        where=method.name,
        fix="mend its `stages` (docs/own-method.md)" if method.digest else "give other settings",
    )
