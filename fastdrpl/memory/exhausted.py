"""Memory that ran out while a run was under way: what was being done, and what takes less."""

import dataclasses

import torch

from fastdrpl.checkpoint import list_checkpoints
from fastdrpl.config import Config
from fastdrpl.errors import UserError
from fastdrpl.machine import cpu_computes_bf16
from fastdrpl.memory.estimate import RunSize, estimate
from fastdrpl.memory.room import Plan, amount
from fastdrpl.state import RunState

# What torch raises as a plain RuntimeError where the system gives no more.
_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "could not create a memory",
    "CUDA out of memory",
    "std::bad_alloc",
    "bad allocation",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is what libraries raise for want of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def explain_out_of_memory(error: BaseException, state: RunState, plan: Plan) -> UserError:
    """What a user is told: the place where it happened, how much was asked for, what would take less."""
    on_device = isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error)
    place = str(state.machine.device) if on_device else "main memory"
    kept = list_checkpoints(state.folder.checkpoints)
    after = f"the last checkpoint, {kept[-1].name}, is kept" if kept else "there is no checkpoint yet"
    return UserError(
        f"{place} is used up while {state.doing}: {str(error).strip().splitlines()[0]}",
        where=f"{state.folder.path}; {after}",
        fix=_fix(state.config, plan, going_on=bool(kept)),
    )


def _fix(config: Config, plan: Plan, *, going_on: bool) -> str:
    """What takes less memory: for the same run first, then for another one."""
    size, same, other = plan.size, [], []
    if plan.ring == "device" and any(stage.rings for stage in size.stages):
        same.append("--engine.ring host (or file)" if size.cuda else "--engine.ring file")
    if size.pixels:
        same.append("--engine.loader worker")
    if size.ranks > 1:
        same.append("fewer ranks on this machine")
    now, looks = estimate(size).bytes, size.eval_batch // 2
    if looks and now > (less := estimate(dataclasses.replace(size, eval_batch=looks)).bytes):
        same.append(f"--engine.eval_batch {looks} ({amount(now - less)} less)")
    if now > (less := estimate(_halved(size)).bytes):
        other.append(f"--batch_size {config.batch_size // 2} ({amount(now - less)} less)")
    if not size.half and (size.cuda or cpu_computes_bf16()):
        other.append("--engine.precision bf16")
    parts = []
    if same:
        parts.append(f"{'the same command goes on' if going_on else 'start again'} with {' or '.join(same)}")
    if other:
        parts.append(f"{'begin another --run' if going_on else 'start again'} with {' or '.join(other)}")
    parts.append("end what else takes memory on this machine and give the same command")
    return "; or ".join(parts)


def _halved(size: RunSize) -> RunSize:
    stages = tuple(
        dataclasses.replace(stage, batch_size=max(1, stage.batch_size // 2)) for stage in size.stages
    )
    return dataclasses.replace(size, stages=stages)
