"""Recipes: a function each, that returns a whole configuration with the numbers of the paper, and where they come from.

`fastdrpl recipes` prints every number with its source. P = the paper (arXiv 1912.08741), C = what the published
code executes, where the paper is silent or differs; "own" is a choice of this project.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from fastdrpl.config import (
    AugmentConfig,
    CEConfig,
    Config,
    DRPLConfig,
    ModelConfig,
    OptimiserConfig,
    Schedule,
    flatten,
)
from fastdrpl.errors import UserError
from fastdrpl.names import nearest
from fastdrpl.noise import NoiseConfig

_C_REGULARISER = "C; P III-A leaves the weights to its reference 14"
_COMMON = {
    "method": "P III",
    "seed": "C (network seed 1)",
    "batch_size": "P IV",
    "epochs_scale": "own: 1 is the paper's length",
    "classes": "own: all",
    "order": "own: shuffled",
    "track": "own: losses are used after the last epoch only; C takes them after each",
    "test_every": "C",
    "model.name": "P IV",
    "model.width": "P IV",
    "augment.size": "P IV-A, IV-B",
    "augment.pad": "P IV-A, IV-B",
    "augment.crop": "P IV-A, IV-B",
    "augment.flip": "P IV-A, IV-B",
    "optimiser.lr": "P IV",
    "optimiser.momentum": "P IV; not Nesterov's: C",
    "optimiser.weight_decay": "P IV; on every parameter: C",
    "optimiser.drop": "P IV; in force in the milestone epoch: C",
    "drpl.relabel.epochs": "P IV-A",
    "drpl.relabel.milestones": "P IV-A",
    "drpl.given_epochs": "P IV-A",
    "drpl.average": "C; mean of the last 10 epochs, as in reference 14 of P III-A",
    "drpl.ring": "C",
    "drpl.semi1.epochs": "P IV-A",
    "drpl.semi1.milestones": "P IV-A",
    "drpl.semi2.epochs": "P IV-A",
    "drpl.semi2.milestones": "P IV-A",
    "drpl.gamma1": "P III-A",
    "drpl.gamma2": "P III-B",
    "drpl.prior_weight": _C_REGULARISER,
    "drpl.entropy_weight": _C_REGULARISER,
    "drpl.mixup_alpha": "C; P III-C names mixup only",
    "drpl.redraw": "C; not in P",
    "drpl.start_targets": "C; not in P",
    "drpl.semi_targets": "C; P III-C implies the mean of the last epochs",
    "drpl.warmup": "C executes none; its scripts intend `load`; not in P",
    "drpl.warmup_epochs": "C (scripts)",
    "drpl.posterior": "own: exact and monotone; C reads a table of 100 bins",
    "drpl.track_augment": "C",
    "drpl.track_passes": "C",
    "drpl.label_forward": "C",
    "ce.schedule.epochs": "own: 120 as in related code; P does not say",
    "ce.schedule.milestones": "own: as in related code",
    "ce.gamma": "own: as gamma2",
    "noise.kind": "own: add it with --noise.kind",
    "noise.ratio": "P IV gives 0.1 to 0.8",
    "noise.exact": "C; P IV-A keeps 1 - r in each class (per_class)",
    "noise.excludes_truth": "P IV-B",
    "noise.both_directions": "C; P IV-B lists cat to dog only",
    "noise.ood_direction": "C; P IV-A draws by the row of the true class",
    "noise.seed": "C",
}


@dataclass(frozen=True)
class Recipe:
    """A named configuration; `sources` overrides where a number comes from.

    `kinds`: what `fastdrpl prepare` calls the data it is made for; default: as the recipe.
    """

    name: str
    summary: str
    config: Config
    sources: dict[str, str] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", self.kinds or (self.name,))

    def source(self, name: str) -> str:
        """Where the number of a dotted field comes from; empty for fields that do not change a result."""
        return self.sources.get(name, _COMMON.get(name, ""))


def cifar10() -> Recipe:
    """CIFAR-10: a longer first stage and a looser first threshold."""
    config = Config(
        recipe="cifar10",
        augment=AugmentConfig(size=32, pad=4, flip="yes"),
        drpl=DRPLConfig(relabel=Schedule(epochs=130, milestones=(75, 110)), given_epochs=70, gamma1=0.1),
    )
    first = dict.fromkeys(("drpl.relabel.epochs", "drpl.relabel.milestones", "drpl.given_epochs"), "P IV-B")
    return Recipe("cifar10", "DRPL on CIFAR-10, 605 epochs", config, first | {"drpl.gamma1": "P IV-B"})


def cifar100() -> Recipe:
    """CIFAR-100: the schedule of ImageNet32."""
    config = Config(
        recipe="cifar100",
        augment=AugmentConfig(size=32, pad=4, flip="yes"),
        drpl=DRPLConfig(gamma1=0.1),
    )
    sources = {"drpl.gamma1": "C; P IV-B says it of CIFAR without saying which"}
    return Recipe("cifar100", "DRPL on CIFAR-100, 575 epochs", config, sources)


def imagenet32() -> Recipe:
    """ImageNet32: 100 classes to learn, the other 900 for out-of-distribution noise."""
    return _imagenet("imagenet32", size=32, pad=4)


def imagenet64() -> Recipe:
    """ImageNet64: the same with four times the pixels."""
    return _imagenet("imagenet64", size=64, pad=8)


def _imagenet(name: str, *, size: int, pad: int) -> Recipe:
    config = Config(
        recipe=name,
        classes="paper",
        augment=AugmentConfig(size=size, pad=pad, flip="yes"),
        noise=NoiseConfig(exact="per_class"),
    )
    sources = {
        "classes": "P IV-A",
        "drpl.gamma1": "P III-A (the default there)",
        "noise.exact": "P IV-A; C makes it exact in the whole set only (global)",
    }
    return Recipe(name, f"DRPL on 100 classes of ImageNet at {size} pixels, 575 epochs", config, sources)


_PHOTO_STAGES = DRPLConfig(
    semi1=Schedule(epochs=150, milestones=(100, 125)), semi2=Schedule(epochs=200, milestones=(150, 175))
)
_PHOTO_SOURCES = {
    **{
        f"drpl.{stage}.{part}": "P IV-C"
        for stage in ("relabel", "semi1", "semi2")
        for part in ("epochs", "milestones")
    },
    **dict.fromkeys(
        ("drpl.given_epochs", "augment.size", "augment.crop", "augment.pad", "augment.flip"), "P IV-C"
    ),
    "drpl.gamma1": "P III-A (the default there)",
}


def _photos(name: str) -> Config:
    return Config(
        recipe=name,
        model=ModelConfig(name="resnet18"),
        augment=AugmentConfig(size=224, pad=0, flip="yes"),
        drpl=_PHOTO_STAGES,
    )


def webvision() -> Recipe:
    """WebVision: photos found by a search for the class name; a fifth of them show something else."""
    summary = "DRPL on the first 50 classes of WebVision, 450 epochs"
    return Recipe("webvision", summary, _photos("webvision"), _PHOTO_SOURCES)


def folder() -> Recipe:
    """Own photos, however they were prepared: the settings of WebVision."""
    summary = "DRPL on photos of your own with the settings of WebVision, 450 epochs"
    kinds = ("folder", "table", "webdataset", "huggingface")
    return Recipe("folder", summary, _photos("folder"), _PHOTO_SOURCES, kinds)


def digits() -> Recipe:
    """The embedded digits with 40 % of the labels made wrong: two minutes on a laptop."""
    config = Config(
        recipe="digits",
        batch_size=64,
        augment=AugmentConfig(size=16, pad=2, flip="no"),
        noise=NoiseConfig(kind="uniform", ratio=0.4),
        model=ModelConfig(width=16),
        optimiser=OptimiserConfig(lr=0.05),
        drpl=DRPLConfig(
            relabel=Schedule(epochs=24, milestones=(14, 20)),
            given_epochs=12,
            semi1=Schedule(epochs=16, milestones=(10, 14)),
            semi2=Schedule(epochs=24, milestones=(14, 20)),
            gamma1=0.1,
        ),
        ce=CEConfig(schedule=Schedule(epochs=64, milestones=(24, 48))),
    )
    own = {
        name: "own: small and quick"
        for name in flatten(config)
        if name.startswith(("drpl.relabel", "drpl.semi1", "drpl.semi2", "ce."))
        or name in ("drpl.given_epochs", "batch_size")
    }
    own |= dict.fromkeys(("model.width", "optimiser.lr", "noise.kind", "noise.ratio"), "own: small and quick")
    own |= dict.fromkeys(
        ("augment.size", "augment.crop", "augment.pad", "augment.flip"),
        "own: a mirrored digit is another one",
    )
    own["drpl.gamma1"] = "P IV-B"
    return Recipe("digits", "DRPL on 1,438 embedded digits, 40 % of the labels wrong", config, own)


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe
    for recipe in (digits, cifar10, cifar100, imagenet32, imagenet64, webvision, folder)
}


def recipe_named(name: str) -> Recipe:
    """A recipe by name. Raises `UserError` with the nearest name."""
    if name not in RECIPES:
        raise UserError(
            f"unknown recipe {name!r}{nearest(name, RECIPES)}", fix=f"one of {', '.join(RECIPES)}"
        )
    return RECIPES[name]()


def describe(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Every number of a recipe: (dotted field, value, source)."""
    return [
        (name, " ".join(map(str, value)) if isinstance(value, tuple) else str(value), recipe.source(name))
        for name, value in flatten(recipe.config).items()
        if name not in ("recipe", "run", "data") and not name.startswith(("engine.", "checkpoint."))
    ]
