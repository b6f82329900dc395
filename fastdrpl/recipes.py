"""Recipes: a function each, that returns what a data set needs, and where the numbers come from.

What a recipe changes in a method's settings stands in the method's file. `fastdrpl recipes` prints every number with
its source. P = the paper (arXiv 1912.08741), C = what the published code executes, where the paper is silent or
differs; "own" is a choice of this project.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastdrpl.config import AugmentConfig, Config, ModelConfig, OptimiserConfig, config_class
from fastdrpl.errors import UserError
from fastdrpl.methods import load_method
from fastdrpl.names import nearest
from fastdrpl.noise_config import NoiseConfig
from fastdrpl.settings import flatten, sources


@dataclass(frozen=True)
class Recipe:
    """A named configuration; `sources` overrides where a number comes from.

    `kinds`: what `fastdrpl prepare` calls the data it is made for; default: as the recipe. `like`: the recipe whose
    changes of a method's settings it takes; default: its own. `label_file`: where its labels are published, if it
    needs a file of them.
    """

    name: str
    summary: str
    config: Config
    sources: dict[str, str] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()
    like: str = ""
    label_file: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", self.kinds or (self.name,))
        object.__setattr__(self, "like", self.like or self.name)

    def source(self, name: str) -> str:
        """Where the number of a dotted field comes from; empty for fields that do not change a result."""
        return self.sources.get(name, sources(self.config).get(name, ""))

    def config_for(self, method: str) -> Config:
        """The whole configuration, with a method's settings. Raises `UserError` for a method that there is not."""
        chosen = load_method(method)
        common: dict[str, Any] = {
            item.name: getattr(self.config, item.name) for item in dataclasses.fields(Config)
        }
        common |= {"method": chosen.name, chosen.section: chosen.settings_for(self.like)}
        return config_class(chosen.section, chosen.settings)(**common)


def cifar10() -> Recipe:
    """CIFAR-10: a longer first stage and a looser first threshold."""
    config = Config(
        recipe="cifar10",
        augment=AugmentConfig(size=32, pad=4, flip="yes"),
    )
    return Recipe("cifar10", "CIFAR-10; DRPL takes 605 epochs", config)


def cifar100() -> Recipe:
    """CIFAR-100: the schedule of ImageNet32."""
    config = Config(
        recipe="cifar100",
        augment=AugmentConfig(size=32, pad=4, flip="yes"),
    )
    return Recipe("cifar100", "CIFAR-100; DRPL takes 575 epochs", config)


def cifar10n() -> Recipe:
    """CIFAR-10N: CIFAR-10 with the labels that people on the internet gave (Wei et al., ICLR 2022)."""
    return _relabelled(cifar10(), "CIFAR-10_human.pt: aggre_label, random_label1 to 3, worse_label")


def cifar100n() -> Recipe:
    """CIFAR-100N: CIFAR-100 with the labels that people on the internet gave (Wei et al., ICLR 2022)."""
    return _relabelled(cifar100(), "CIFAR-100_human.pt: noisy_label, noisy_coarse_label")


def _relabelled(base: Recipe, label_file: str) -> Recipe:
    name = f"{base.name}n"
    config = dataclasses.replace(base.config, recipe=name)
    summary = f"{base.summary.partition(';')[0]} with labels that people gave: --noise.file"
    return Recipe(name, summary, config, base.sources, base.kinds, base.name, label_file)


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
    given = {
        "classes": "P IV-A",
        "noise.exact": "P IV-A; C makes it exact in the whole set only (global)",
    }
    return Recipe(name, f"100 classes of ImageNet at {size} pixels; DRPL takes 575 epochs", config, given)


_PHOTO_SOURCES = dict.fromkeys(("augment.size", "augment.crop", "augment.pad", "augment.flip"), "P IV-C")


def _photos(name: str) -> Config:
    return Config(
        recipe=name,
        model=ModelConfig(name="resnet18"),
        augment=AugmentConfig(size=224, pad=0, flip="yes"),
    )


def webvision() -> Recipe:
    """WebVision: photos found by a search for the class name; a fifth of them show something else."""
    summary = "the first 50 classes of WebVision; DRPL takes 450 epochs"
    return Recipe("webvision", summary, _photos("webvision"), _PHOTO_SOURCES)


def folder() -> Recipe:
    """Own photos, however they were prepared: the settings of WebVision."""
    summary = "photos of your own with the settings of WebVision; DRPL takes 450 epochs"
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
    )
    own = dict.fromkeys(
        ("batch_size", "model.width", "optimiser.lr", "noise.kind", "noise.ratio"), "own: small and quick"
    )
    own |= dict.fromkeys(
        ("augment.size", "augment.crop", "augment.pad", "augment.flip"),
        "own: a mirrored digit is another one",
    )
    return Recipe("digits", "1,438 embedded digits, 40 % of the labels wrong", config, own)


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe
    for recipe in (digits, cifar10, cifar100, cifar10n, cifar100n, imagenet32, imagenet64, webvision, folder)
}


def recipe_named(name: str) -> Recipe:
    """A recipe by name. Raises `UserError` with the nearest name."""
    if name not in RECIPES:
        raise UserError(
            f"unknown recipe {name!r}{nearest(name, RECIPES)}", fix=f"one of {', '.join(RECIPES)}"
        )
    return RECIPES[name]()


def describe(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Every number of a recipe but those of methods: (dotted field, value, source)."""
    return [
        (name, _text(value), recipe.source(name))
        for name, value in flatten(recipe.config).items()
        if name not in ("recipe", "run", "data", "method") and not name.startswith(("engine.", "checkpoint."))
    ]


def describe_method(recipe: Recipe, method: str) -> list[tuple[str, str, str]]:
    """Every number of a method in a recipe: (dotted field, value, source)."""
    chosen = load_method(method)
    given = chosen.sources_for(recipe.like)
    values = flatten(chosen.settings_for(recipe.like), f"{chosen.section}.")
    return [(name, _text(value), given[name]) for name, value in values.items()]


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
