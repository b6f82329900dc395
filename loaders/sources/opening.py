"""From a configuration of `prepare` to its source. What a source needs is imported when it is asked for."""

from typing import Any

from fastdrpl.loaders.errors import UserError
from fastdrpl.loaders.prepare_config import PrepareConfig
from fastdrpl.loaders.sources.source import OpenedSource


def open_source(config: PrepareConfig) -> OpenedSource:
    """Find and check the source. Raises UserError (not there, another layout) or DataError (damaged)."""
    if config.kind == "digits":
        from fastdrpl.loaders.sources.digits import open_digits

        return open_digits(config.seed)
    if config.source is None:
        raise UserError(f"{config.kind} needs --source")
    if config.kind in ("cifar10", "cifar100"):
        from fastdrpl.loaders.sources.cifar import open_cifar

        return open_cifar(config.kind, config.source)
    if config.kind in ("imagenet32", "imagenet64"):
        from fastdrpl.loaders.sources.imagenet_small import open_imagenet_small

        return open_imagenet_small(
            config.kind,
            config.source,
            subset=config.subset,
            store=config.store,
            quality=config.quality,
            workers=config.workers,
        )
    from fastdrpl.loaders.sources.pictures import Target  # needs Pillow

    target = Target(config.size, config.store, config.quality)
    if config.kind == "webvision":
        from fastdrpl.loaders.sources.webvision import open_webvision

        return open_webvision(
            config.source,
            target=target,
            first=config.first,
            google_only=config.google_only,
            workers=config.workers,
        )
    own: dict[str, Any] = {
        "target": target,
        "test_fraction": config.test_fraction,
        "classes": config.classes,
        "workers": config.workers,
        "seed": config.seed,
    }
    if config.kind == "table":
        from fastdrpl.loaders.sources.columns import Wanted
        from fastdrpl.loaders.sources.table import open_table

        columns = Wanted(path=config.path_column, label=config.label_column, split=config.split_column)
        return open_table(config.source, images=config.images, columns=columns, **own)
    if config.kind == "webdataset":
        from fastdrpl.loaders.sources.tar_shards import open_webdataset

        return open_webdataset(config.source, **own)
    if config.kind == "huggingface":
        from fastdrpl.loaders.sources.huggingface import open_huggingface

        return open_huggingface(config.source, **own)
    from fastdrpl.loaders.sources.folder import open_folder

    return open_folder(config.source, **own)
