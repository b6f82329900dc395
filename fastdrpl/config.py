"""The configuration of a run: frozen dataclasses, whose field texts are the command line's help."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastdrpl.errors import UserError
from fastdrpl.noise import NoiseConfig


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    name: Literal["preact_resnet18", "resnet18", "inception_resnet_v2"] = "preact_resnet18"
    """preact_resnet18 for 20 to 64 pixels, resnet18 (torchvision's) for photos, inception_resnet_v2 (timm's, an
    extra) for photos of 299 pixels."""
    width: int = 64
    """Channels of the first of four groups of blocks (64 in the paper); preact_resnet18 only."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random crop and flip of training images; test images get the centre crop."""

    size: int = 0
    """Side of the network's input in pixels; 0 = the size that the images are stored in."""
    crop: Literal["pad", "resized"] = "pad"
    """pad = a window of the padded image; resized = 8 to 100 % of the area at a ratio of 3:4 to 4:3 (photos)."""
    pad: int = -1
    """Black pixels added on each side before the crop (pad only); -1 = what suits the data set."""
    flip: Literal["auto", "yes", "no"] = "auto"
    """Mirror half of the images; auto = what suits the data set (never for digits)."""


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """Stochastic gradient descent; weight decay acts on every parameter, as published."""

    lr: float = 0.1
    """Learning rate until the first milestone."""
    momentum: float = 0.9
    """Momentum, not Nesterov's."""
    weight_decay: float = 1e-4
    """Weight decay."""
    drop: float = 0.1
    """Factor on the learning rate in, and from, each milestone epoch."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long a stage lasts and when its learning rate drops."""

    epochs: int
    """Epochs."""
    milestones: tuple[int, ...] = ()
    """Epochs (the first is 1) in which the learning rate has dropped already."""

    def scaled(self, factor: float) -> "Schedule":
        """The same shape over `factor` times as many epochs; the first always runs at the full rate."""
        return Schedule(
            epochs=scale_epoch(self.epochs, factor),
            milestones=tuple(max(2, scale_epoch(milestone, factor)) for milestone in self.milestones),
        )


def scale_epoch(epoch: int, factor: float) -> int:
    """An epoch number on a schedule that is `factor` times as long, at least 1."""
    return max(1, round(epoch * factor))


@dataclass(frozen=True, kw_only=True)
class DRPLConfig:
    """The three stages of DRPL (paper III)."""

    relabel: Schedule = field(default_factory=lambda: Schedule(epochs=100, milestones=(45, 80)))
    """Stage 1: training with relabelling of all samples (III-A)."""
    given_epochs: int = 40
    """q of equation 1: how many epochs use the given labels; pseudo-labels take over in the next."""
    average: int = 10
    """Stage 1's pseudo-label is the mean prediction of this many epochs."""
    ring: Literal["fp32", "fp16"] = "fp32"
    """Type in which those predictions are kept; fp16 halves their memory and moves a mean by less than 2.5e-4."""
    semi1: Schedule = field(default_factory=lambda: Schedule(epochs=175, milestones=(100, 150)))
    """Stage 2: semi-supervised training that sharpens the detection (III-B)."""
    semi2: Schedule = field(default_factory=lambda: Schedule(epochs=300, milestones=(150, 225)))
    """Stage 3: semi-supervised training of the final network (III-C)."""
    gamma1: float = 0.05
    """After stage 1 a sample keeps its label if its posterior of being noisy is at most this (equation 3)."""
    gamma2: float = 0.5
    """The same after stage 2."""
    prior_weight: float = 0.8
    """Weight of R_A, the pull of the mean prediction to the uniform one (lambda 2 of equation 2)."""
    entropy_weight: float = 0.4
    """Weight of R_H, the entropy of predictions (lambda 1 of equation 2)."""
    mixup_alpha: float = 1.0
    """Mixing coefficients are drawn from Beta(alpha, alpha), one a batch."""
    redraw: float = 0.2
    """Fraction of the unlabelled samples whose target is made uniform after each epoch."""
    start_targets: Literal["random", "uniform"] = "random"
    """First targets of unlabelled samples: a random class each (published code), or uniform."""
    semi_targets: Literal["current", "mean"] = "current"
    """Pseudo-labels of stages 2 and 3: this epoch's prediction (published code), or the mean of the last
    `average` epochs, as the paper's text implies."""
    warmup: Literal["none", "load"] = "none"
    """none = stages 2 and 3 start from fresh weights, as the published code does; load = they continue a
    warm-up on the labelled samples, as its scripts intend."""
    warmup_epochs: int = 10
    """Length of that warm-up."""
    posterior: Literal["exact", "lookup"] = "exact"
    """exact = pointwise and monotone; lookup = the published table of 100 bins."""
    track_augment: Literal["train", "none"] = "train"
    """Losses for detection are taken on augmented images (published code) or on plain ones."""
    track_passes: Literal[2, 1] = 2
    """2 = the mixture is fitted to one pass and the posterior read from another (published code)."""
    label_forward: Literal["update", "freeze"] = "update"
    """Whether the forward pass that makes pseudo-labels updates the batch normalisation's statistics."""


@dataclass(frozen=True, kw_only=True)
class CEConfig:
    """Plain cross entropy on the given labels: the baseline that every other method must beat."""

    schedule: Schedule = field(default_factory=lambda: Schedule(epochs=120, milestones=(40, 80)))
    """Length and milestones."""
    gamma: float = 0.5
    """A label counts as right if its posterior of being noisy is at most this, from the final losses."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where and how the training loop runs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto = a GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto = bf16 on a GPU that has it, else fp32. Losses are fp32 always."""
    ranks: int = 0
    """Number of processes that must take part; 0 = as many as the launcher started."""
    threads: int = 0
    """CPU threads of each process; 0 = cores / processes. Resolved once and kept when a run continues."""
    loader: Literal["auto", "resident", "ffcv", "dali", "worker"] = "auto"
    """resident = pixels memory-mapped (CPU) or copied whole (GPU); ffcv, dali = those libraries (extras);
    worker = plain torch DataLoader; auto = resident if it fits, else the fastest that is installed."""
    workers: int = 2
    """Threads (ffcv, dali) or processes (worker) that read and decode."""
    eval_batch: int = 500
    """Global batch size of passes that do not train."""
    sync_bn: bool = False
    """Batch normalisation over all ranks (CUDA only)."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state of a run is written."""

    every: float = 300.0
    """Seconds between checkpoints; stage ends and signals write one too."""
    keep: int = 2
    """How many are kept beside those of stage ends."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run. Defaults < recipe < --config FILE < flags."""

    recipe: Annotated[str, tyro.conf.Suppress] = "cifar10"
    data: Path | None = None
    """Prepared dataset (made by `fastdrpl prepare`); the digits recipe needs none."""
    run: Path | None = None
    """Folder of the run; default runs/<recipe>-<hash of the configuration>."""
    method: Literal["drpl", "ce"] = "drpl"
    """drpl = the paper's method; ce = plain cross entropy."""
    seed: int = 1
    """Keys every draw but the noise (which has a seed of its own)."""
    batch_size: int = 128
    """Images in a step, over all processes."""
    epochs_scale: float = 1.0
    """Multiplies every schedule: 0.1 makes a tenth of the epochs. For trials; a result is the paper's only at 1."""
    classes: Literal["all", "paper"] = "all"
    """paper = the 100 of 1000 ImageNet classes that the paper trains on; images of the others are outside."""
    order: Literal["index", "shards"] = "index"
    """index = all images shuffled; shards = shard after shard in random order, as tar shards can be read."""
    limit: int = 0
    """Train on this many images only, drawn by the seed; 0 = all."""
    limit_test: int = 0
    """Test on this many images only; 0 = all."""
    track: Literal["final", "every"] = "final"
    """Take the losses of all samples after a stage's last epoch only, or after each (for figures)."""
    test_every: int = 1
    """Test after every this many epochs, and after the last of a stage; 0 = after the last only."""
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    drpl: DRPLConfig = field(default_factory=DRPLConfig)
    ce: CEConfig = field(default_factory=CEConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        check(self)


# Smallest and largest value of each number; a name stands for the field wherever it occurs.
_POSITIVE = (1, 2**31 - 1)
_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "batch_size": (2, 2**31 - 1),
    "epochs_scale": (1e-6, 1e6),
    "limit": (0, 2**31 - 1),
    "limit_test": (0, 2**31 - 1),
    "test_every": (0, 2**31 - 1),
    "model.width": _POSITIVE,
    "augment.size": (0, 65536),
    "augment.pad": (-1, 65536),
    "optimiser.lr": (0.0, 1e6),
    "optimiser.momentum": (0.0, 1.0),
    "optimiser.weight_decay": (0.0, 1e6),
    "optimiser.drop": (0.0, 1e6),
    "drpl.given_epochs": _POSITIVE,
    "drpl.average": _POSITIVE,
    "drpl.gamma1": (0.0, 1.0),
    "drpl.gamma2": (0.0, 1.0),
    "drpl.prior_weight": (0.0, 1e6),
    "drpl.entropy_weight": (0.0, 1e6),
    "drpl.mixup_alpha": (1e-3, 1e6),
    "drpl.redraw": (0.0, 1.0),
    "drpl.warmup_epochs": _POSITIVE,
    "ce.gamma": (0.0, 1.0),
    "engine.ranks": (0, 65536),
    "engine.threads": (0, 65536),
    "engine.workers": (0, 65536),
    "engine.eval_batch": _POSITIVE,
    "checkpoint.every": (0.0, 1e9),
    "checkpoint.keep": _POSITIVE,
}


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every field of nested dataclasses under its dotted name, in order."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value, name = getattr(config, item.name), f"{prefix}{item.name}"
        if dataclasses.is_dataclass(value):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def check(config: Config) -> None:
    """Refuse numbers outside their range and schedules that cannot be; raises `UserError` with the field's name."""
    flat = flatten(config)
    for name, (low, high) in _RANGES.items():
        value = flat[name]
        if not low <= value <= high:  # false for nan as well
            raise UserError(
                f"--{name} is {value}, out of range", fix=f"give a number from {low:g} to {high:g}"
            )
    for name in ("drpl.relabel", "drpl.semi1", "drpl.semi2", "ce.schedule"):
        epochs, milestones = flat[f"{name}.epochs"], flat[f"{name}.milestones"]
        if not 1 <= epochs < 2**31:
            raise UserError(f"--{name}.epochs is {epochs}, out of range", fix="give a whole number from 1 up")
        if any(milestone < 1 for milestone in milestones) or list(milestones) != sorted(milestones):
            raise UserError(
                f"--{name}.milestones is {milestones}", fix="give epochs from 1 up, in rising order"
            )
    if config.method == "drpl" and config.drpl.given_epochs >= config.drpl.relabel.epochs:
        raise UserError(
            f"--drpl.given_epochs is {config.drpl.given_epochs} of {config.drpl.relabel.epochs} epochs: "
            "nothing would be relabelled",
            fix="give fewer, or shorten all stages alike with --epochs_scale",
        )
