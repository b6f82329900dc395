"""What others do with the same images: pillow in a DataLoader, FFCV and DALI with their own augmentation, or bare.

Each function returns one that walks an epoch. `bench/throughput_loaders.py` measures them in turns with ours.
"""

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.decode import map_file

Walk = Callable[[], None]
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class PillowImages(Dataset[torch.Tensor]):
    """The usual way: a pillow image of each row, torchvision's random crop and flip, uint8 or normalised."""

    def __init__(self, split: Split, images: int, *, size: int, pad: int, normalised: bool) -> None:
        self.split, self.images, self.file = split, images, map_file(split)
        last = (
            [transforms.ToTensor(), transforms.Normalize(*IMAGENET.values())]
            if normalised
            else [transforms.PILToTensor()]
        )
        self.transform = transforms.Compose(
            [transforms.RandomCrop(size, pad or None), transforms.RandomHorizontalFlip(), *last]
        )

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, row: int) -> torch.Tensor:
        start = self.split.offset[row]
        data = self.file[start : start + self.split.nbytes[row]]
        if self.split.store == "raw":
            return self.transform(Image.fromarray(data.reshape(self.split.height, self.split.width, 3)))
        return self.transform(Image.open(io.BytesIO(data.tobytes())).convert("RGB"))


def walk_pillow(
    split: Split, images: int, batch_size: int, workers: int, *, size: int, pad: int, normalised: bool
) -> Walk:
    """Its processes start at the first call, which is the warm-up."""
    dataset = PillowImages(split, images, size=size, pad=pad, normalised=normalised)
    loader = DataLoader(dataset, batch_size, shuffle=True, num_workers=workers, persistent_workers=True)

    def walk() -> None:
        for _ in loader:
            pass

    return walk


def walk_ffcv(
    split: Split, images: int, batch_size: int, workers: int, *, size: int, pad: int, augment: bool
) -> Walk:
    """FFCV alone: decoded uint8, or with its own crop and flip on the CPU."""
    threads = torch.get_num_threads()
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, RandomTranslate, ToTensor

    image: list[Any] = [SimpleRGBImageDecoder()]
    if augment and size < split.height:
        image = [RandomResizedCropRGBImageDecoder((size, size)), RandomHorizontalFlip()]
    elif augment:
        image += [RandomHorizontalFlip(), RandomTranslate(padding=pad, fill=(0, 0, 0))]
    loader = Loader(
        str(split.path),
        batch_size=batch_size,
        num_workers=workers,
        os_cache=True,
        order=OrderOption.RANDOM,
        indices=np.arange(images),
        drop_last=False,
        pipelines={"image": [*image, ToTensor()], "label": None},
    )

    def walk() -> None:
        for _ in loader:
            pass
        torch.set_num_threads(threads)

    return walk


def walk_dali(
    split: Split, images: int, batch_size: int, workers: int, *, size: int, pad: int, augment: bool
) -> Walk:
    """DALI alone on the CPU: batches from an external source, decoded, or with its own crop and flip."""
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali import math as dali_math

    file, nbytes = map_file(split), split.height * split.width * 3
    order = np.random.default_rng(0)
    chunks: Iterator[np.ndarray] = iter(())
    if split.store == "raw":  # as its users have them: one array in memory
        pixels = np.stack([file[start : start + nbytes] for start in split.offset[:images]])
        pixels = pixels.reshape(images, split.height, split.width, 3)

    def read() -> Any:
        rows = next(chunks)
        if split.store == "raw":
            return pixels[rows]
        return [np.asarray(file[split.offset[row] :][: split.nbytes[row]]) for row in rows]

    @pipeline_def(batch_size=batch_size, num_threads=workers, device_id=None, prefetch_queue_depth=2)
    def pipeline() -> Any:
        out = fn.external_source(source=read, batch=True, dtype=types.DALIDataType.UINT8)
        if split.store == "jpeg":
            out = fn.decoders.image(out, device="cpu", output_type=types.DALIImageType.RGB)
        if augment:
            low, high = -pad, split.height + pad - size
            corner = fn.random.uniform(range=[low, high + 1 - 1e-3], shape=2)
            start = fn.cast(dali_math.floor(corner), dtype=types.DALIDataType.INT32)
            out = fn.slice(out, start, [size, size], axes=[0, 1], out_of_bounds_policy="pad", fill_values=0)
            out = fn.flip(out, horizontal=fn.random.coin_flip())
        return out

    pipe = pipeline()
    pipe.build()

    def walk() -> None:
        nonlocal chunks
        rows = order.permutation(images)
        chunks = iter([rows[i : i + batch_size] for i in range(0, images, batch_size)])
        try:
            while True:
                (images_out,) = pipe.run()
                torch.from_dlpack(images_out.as_tensor())
        except StopIteration:
            pipe.reset()

    return walk
