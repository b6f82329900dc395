"""The configuration of a run: what all methods have in common. A method's own settings are in its file.

Field texts are the command line's help; ranges and sources stand at the fields. P = the paper (arXiv 1912.08741),
C = what the published code executes, where the paper is silent or differs; "own" is a choice of this project.
"""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, cast

import tyro

from fastdrpl.errors import UserError
from fastdrpl.noise_config import NoiseConfig
from fastdrpl.settings import COUNT, POSITIVE, SHARE, WEIGHT, check, setting


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    name: Literal["preact_resnet18", "resnet18", "inception_resnet_v2"] = setting("preact_resnet18", "P IV")
    """preact_resnet18 for 20 to 64 pixels, resnet18 (torchvision's) for photos, inception_resnet_v2 (timm's, an
    extra) for photos of 299 pixels."""
    width: int = setting(64, "P IV", POSITIVE)
    """Channels of the first of four groups of blocks (64 in the paper); preact_resnet18 only."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random crop and flip of training images; test images get the centre crop."""

    size: int = setting(0, "P IV-A, IV-B", (0, 65536))
    """Side of the network's input in pixels; 0 = the size that the images are stored in."""
    crop: Literal["pad", "resized"] = setting("pad", "P IV-A, IV-B")
    """pad = a window of the padded image; resized = 8 to 100 % of the area at a ratio of 3:4 to 4:3 (photos)."""
    pad: int = setting(-1, "P IV-A, IV-B", (-1, 65536))
    """Black pixels added on each side before the crop (pad only); -1 = what suits the data set."""
    flip: Literal["auto", "yes", "no"] = setting("auto", "P IV-A, IV-B")
    """Mirror half of the images; auto = what suits the data set (never for digits)."""


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """Stochastic gradient descent; weight decay acts on every parameter, as published."""

    lr: float = setting(0.1, "P IV", WEIGHT)
    """Learning rate until the first milestone."""
    momentum: float = setting(0.9, "P IV; not Nesterov's: C", SHARE)
    """Momentum, not Nesterov's."""
    weight_decay: float = setting(1e-4, "P IV; on every parameter: C", WEIGHT)
    """Weight decay."""
    drop: float = setting(0.1, "P IV; in force in the milestone epoch: C", WEIGHT)
    """Factor on the learning rate in, and from, each milestone epoch."""


@dataclass(frozen=True, kw_only=True)
class DetectConfig:
    """How the statistics that a method looks at become a split of the samples."""

    augment: Literal["train", "none"] = setting("train", "C")
    """Losses for detection are taken on augmented images (published code) or on plain ones."""
    passes: Literal[2, 1] = setting(2, "C")
    """2 = the mixture is fitted to one pass and the posterior read from another (published code)."""
    posterior: Literal["exact", "lookup"] = setting(
        "exact", "own: exact and monotone; C reads a table of 100 bins"
    )
    """exact = pointwise and monotone; lookup = the published table of 100 bins."""
    rescue: Literal["yes", "no"] = setting("yes", "own: C leaves such a class without labels")
    """yes = a class without a clean sample keeps the labels of its lowest-loss 1 %."""
    collapse: Literal["stop", "relax"] = setting("stop", "own: C goes on with next to no labels")
    """When fewer labels than classes look right: stop (exit 5; the run goes on with another threshold), or relax =
    keep `collapse_share` of each class."""
    collapse_share: float = setting(0.1, "own", (1e-6, 1.0))
    """Share of each class, of the lowest losses, that `relax` keeps."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where and how the training loop runs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto = a GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto = bf16 on a GPU or a CPU that multiplies it itself, else fp32; resolved once, and kept when a run continues.
    Losses are fp32 always."""
    mode: Literal["auto", "eager", "compiled", "captured"] = "auto"
    """How steps are carried out: captured = each as one CUDA graph, compiled = networks by torch.compile; auto = the
    best of these on a GPU, eager on a CPU (docs/speed.md)."""
    ranks: int = setting(0, within=(0, 65536))
    """Number of processes that must take part; 0 = as many as the launcher started."""
    threads: int = setting(0, within=(0, 65536))
    """CPU threads of each process; 0 = cores / processes. Resolved once and kept when a run continues."""
    loader: Literal["auto", "resident", "ffcv", "dali", "worker"] = "auto"
    """resident = pixels memory-mapped (CPU) or copied whole (GPU); ffcv, dali = those libraries (extras);
    worker = plain torch DataLoader; auto = resident if it fits, else the fastest that is installed."""
    workers: int = setting(2, within=(0, 65536))
    """Threads (ffcv, dali) or processes (worker) that read and decode."""
    eval_batch: int = setting(0, within=COUNT)
    """Global batch size of passes that do not train; 0 = what suits a CPU's cache or fills a GPU. Resolved once, and
    kept when a run continues."""
    forwards: Literal["apart", "joined"] = "apart"
    """joined = the two forward passes of a semi-supervised step go through each convolution in one call; same up to
    rounding."""
    ring: Literal["auto", "device", "host", "file"] = "auto"
    """Where the last predictions lie that pseudo-labels are the mean of: on the device, in main memory, or in a file in
    the run folder that is mapped into it; auto = the first of these that fits. The result is the same."""
    memory: Literal["refuse", "warn"] = "refuse"
    """What becomes of a run that is estimated to take more memory than there is: refused, or tried after a warning."""
    sync_bn: bool = False
    """Batch normalisation over all ranks (CUDA only)."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state of a run is written."""

    every: float = setting(300.0, within=(0.0, 1e9))
    """Seconds between checkpoints; stage ends and signals write one too."""
    keep: int = setting(2, within=POSITIVE)
    """How many are kept beside those of stage ends."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run. Defaults < recipe < --config FILE < flags."""

    recipe: Annotated[str, tyro.conf.Suppress] = "cifar10"
    data: Path | None = None
    """Prepared dataset (made by `fastdrpl prepare`); the digits recipe needs none."""
    run: Path | None = None
    """Folder of the run; default runs/<recipe>-<hash of the configuration>."""
    method: str = setting("drpl", "P III")
    """Name of a method (`fastdrpl recipes` lists them), or the path of a .py file with one of your own. Its settings
    are flags under its name: `--method ce --help` shows those of ce."""
    seed: int = setting(1, "C (network seed 1)", (0, 2**63 - 1))
    """Keys every draw but the noise (which has a seed of its own)."""
    batch_size: int = setting(128, "P IV", (2, 2**31 - 1))
    """Images in a step, over all processes."""
    epochs_scale: float = setting(1.0, "own: 1 is the paper's length", (1e-6, 1e6))
    """Multiplies every schedule: 0.1 makes a tenth of the epochs. For trials; a result is the paper's only at 1."""
    classes: Literal["all", "paper"] = setting("all", "own: all")
    """paper = the 100 of 1000 ImageNet classes that the paper trains on; images of the others are outside."""
    order: Literal["index", "shards"] = setting("index", "own: shuffled")
    """index = all images shuffled; shards = shard after shard in random order, as tar shards can be read."""
    limit: int = setting(0, within=COUNT)
    """Train on this many images only, drawn by the seed; 0 = all."""
    limit_test: int = setting(0, within=COUNT)
    """Test on this many images only; 0 = all."""
    track: Literal["final", "every"] = setting(
        "final", "own: losses are used after the last epoch only; C takes them after each"
    )
    """Take the losses of all samples after a stage's last epoch only, or after each (for figures)."""
    judge: Literal["training", "all"] = "training"
    """all = say of held-out images too which labels look wrong, by the final network (held_out.csv in the run folder);
    for data whose test labels are as unchecked as the others."""
    test_every: int = setting(1, "C", COUNT)
    """Test after every this many epochs, and after the last of a stage; 0 = after the last only."""
    labels: Path | None = None
    """Labels to train on, as `fastdrpl fix` writes them: with the samples of this file, and no noise is added."""
    track_with: str = ""
    """Trackers that are told every epoch, with commas: tensorboard, wandb, mlflow, ... (docs/runs.md). Files lie in
    the run folder."""
    noise: NoiseConfig = dataclasses.field(default_factory=NoiseConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    optimiser: OptimiserConfig = dataclasses.field(default_factory=OptimiserConfig)
    detect: DetectConfig = dataclasses.field(default_factory=DetectConfig)
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        check(self)
        if self.labels is not None and (self.noise.kind != "none" or self.noise.file is not None):
            raise UserError(
                "labels of a file are trained on as they are: no noise is added to them",
                where=f"--labels {self.labels}",
                fix="leave --noise... out, or --labels",
            )


@functools.cache
def config_class(section: str, settings: type) -> type[Config]:
    """The configuration with the settings of one method under their name: `--<section>.<field>`."""
    field = (section, settings, dataclasses.field(default_factory=settings))
    return cast(
        type[Config],
        dataclasses.make_dataclass(
            "Config",
            [field],
            bases=(Config,),
            frozen=True,
            kw_only=True,
            namespace={"__doc__": Config.__doc__},
        ),
    )
