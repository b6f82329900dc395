"""How much memory a run takes at most: sums of what its parts take at the moment that takes most.

Formulas and how they were checked: docs/speed.md, "Growth".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

from fastdrpl.memory.columns import StageSize
from fastdrpl.memory.network import NetworkSize

WEIGHTS = 4  # bytes of a weight, of its momentum and of its gradient each
# What the operations at work hold, in tensors like the largest that waits for the backward pass (fp32).
TRAINING, LOOKING, LOOKING_HALF = 6, 6, 4
HEAD = 10  # numbers of four bytes that a loss makes for each image and class
TARGETS = 2  # copies of all targets while the next ones are made
LIBRARIES = 140 << 20  # what libraries load and compile when they are first used, and their threads
ORDER = 450  # bytes of each sample: the order of an epoch, labels, what a detection computes
TABLES = 450  # bytes of each sample while the tables of labels are written
REPORT, SHOWN, MOST_SHOWN = (
    20 << 20,
    4000,
    17_000,
)  # bytes of the report: of itself and of each suspect it shows
CUDA_HOST = 2 << 30  # of the libraries that a GPU needs in main memory
CUDA_WORK = 512 << 20  # workspaces of cuDNN and cuBLAS on the device


@dataclass(frozen=True, kw_only=True)
class RunSize:
    """The numbers that memory depends on."""

    samples: int
    classes: int
    side: int  # pixels
    network: NetworkSize
    stages: tuple[StageSize, ...]
    eval_batch: int  # over all ranks
    half: bool  # activations of two bytes
    cuda: bool
    ranks: int
    ring: str  # device, host or file
    pixels: int = 0  # bytes that are copied to the device, or decoded into main memory
    decoded: int = 0  # of these, bytes that are in main memory first
    process: int = 0  # bytes that this process has in main memory already


@dataclass(frozen=True)
class Estimate:
    """Bytes by part, at the moment that takes most, of one rank."""

    host: Mapping[str, int]
    device: Mapping[str, int] = field(default_factory=dict)
    file: int = 0  # of a mapped ring

    @property
    def host_bytes(self) -> int:
        return sum(self.host.values())

    @property
    def device_bytes(self) -> int:
        return sum(self.device.values())

    @property
    def bytes(self) -> int:
        """Of all places together."""
        return self.host_bytes + self.device_bytes + self.file


def estimate(size: RunSize) -> Estimate:
    """The most that one rank takes."""
    moments = [_moment(size, stage, _step(size, stage)) for stage in size.stages]
    moments += [_moment(size, stage, _look(size)) for stage in size.stages]
    moments += [
        _moment(size, stage, 0, targets=TARGETS) for stage in size.stages if _has_targets(size, stage)
    ]
    moments.append(_moment(size, size.stages[-1], _look(size), end=True))
    host, device = ([moment[place] for moment in moments] for place in (0, 1))
    rings = [ceil(stage.rings * size.samples) for stage in size.stages]
    return Estimate(
        max(host, key=lambda parts: sum(parts.values())),
        max(device, key=lambda parts: sum(parts.values())) if size.cuda else {},
        max(rings) if size.ring == "file" else 0,
    )


def _moment(
    size: RunSize, stage: StageSize, activations: int, *, targets: int = 0, end: bool = False
) -> tuple[dict[str, int], dict[str, int]]:
    """Host and device in a stage, or when the run ends: the predictions of all samples are then there at once.

    `targets`: copies of them while a stage begins and the next targets are made.
    """
    compute = {
        "weights": size.network.parameters * WEIGHTS * stage.networks * (3 + (size.ranks > 1)),
        "label store": ceil(size.samples * stage.columns) + stage.shared,
        "draws": 2
        * ceil(size.samples * stage.drawn),  # those of the epoch before are there while they are made
        "activations": activations,
    }
    compute["predictions"] = _of_all(size) * (targets + end)
    # What the first stages have freed is not given back as a whole: the report comes on top of any of them.
    shown = REPORT + SHOWN * min(size.samples, MOST_SHOWN)
    tables = size.samples * (ORDER + TABLES * end) + shown
    host = {"process": size.process + LIBRARIES, "tables": tables}
    # The next epoch's targets are made between two epochs: the mean of a ring on the host goes by pieces.
    where = compute if size.ring == "device" else host if size.ring == "host" else {}
    where["ring"] = 0 if end else ceil(size.samples * stage.rings)
    if not size.cuda:
        return {**host, **compute, "pixels": size.pixels}, {}
    return (
        {**host, "CUDA": CUDA_HOST, "pixels": size.decoded},
        {**compute, "CUDA": CUDA_WORK, "pixels": size.pixels},
    )


def _step(size: RunSize, stage: StageSize) -> int:
    """What waits for the backward pass, and what the operation at work holds beside it."""
    network, batch = size.network, ceil(stage.batch_size / size.ranks)
    saved = network.saved * batch * stage.images * stage.networks
    if size.half:  # and the weights, as the operations read them
        saved = saved / 2 + 2 * network.parameters * stage.networks
    head = HEAD * 4 * size.classes
    return ceil(saved + batch * (TRAINING * network.largest + 3 * _inputs(size) + head))


def _look(size: RunSize) -> int:
    """A batch of a pass that only looks."""
    held = (LOOKING_HALF if size.half else LOOKING) * size.network.largest
    return ceil(size.eval_batch / size.ranks) * (held + _inputs(size))


def _of_all(size: RunSize) -> int:
    """Bytes of a prediction of every sample."""
    return size.samples * size.classes * 4


def _has_targets(size: RunSize, stage: StageSize) -> bool:
    return stage.columns >= 4 * size.classes


def _inputs(size: RunSize) -> int:
    """Bytes of an image as a network reads it."""
    return 4 * 3 * size.side**2
