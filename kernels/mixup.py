"""Mixing of images and soft targets (mixup; Zhang et al. 2018, used in section III-C of the DRPL paper).

A step needs each image twice: as it is, for the pseudo-label, and mixed with a partner's, to learn from. Augmenting
first and mixing then costs, for a 32 x 32 image in bfloat16, 3 KB read and 6 KB written, then 12 KB read and 6 KB
written; `augment_pair` reads the partner's bytes again and not what was made of them: 6 KB read, 12 KB written, one
launch.

The references stand first and run on every device. A GPU uses the twin `fastdrpl.kernels.gpu.mixup`.
"""

from dataclasses import replace

import torch
from torch import Tensor

from fastdrpl.kernels.augment import augment, augment_reference
from fastdrpl.kernels.augment_checks import check_augment
from fastdrpl.kernels.crop import Crop
from fastdrpl.kernels.dispatch import check_range, choose
from fastdrpl.kernels.philox import Stream
from fastdrpl.kernels.streams import words_on


def partners(keys: Tensor) -> Tensor:
    """A permutation of a batch from one key a sample: (b,) int64 -> (b,) int64, the stable order of the keys."""
    return torch.argsort(keys, stable=True)


def mix(values: Tensor, partner: Tensor, coefficient: Tensor) -> Tensor:
    """coefficient * x + (1 - coefficient) * x[partner]: (b, ...), (b,), () -> (b, ...).

    The coefficient is a tensor on the device of the values, so that no step waits for the host.
    """
    return torch.lerp(values.index_select(0, partner), values, coefficient.to(values.dtype))


def augment_pair_reference(
    pixels: Tensor,
    rows: Tensor,
    index: Tensor,
    stream: Stream | Tensor,
    partner: Tensor,
    coefficient: Tensor,
    crop: Crop,
) -> tuple[Tensor, Tensor]:
    """`augment_pair` in plain torch, on any device, nothing checked: augmented in float32, mixed, then converted."""
    plain = augment_reference(pixels, rows, index, stream, replace(crop, dtype=torch.float32))
    return _with_mixture(plain, partner, coefficient, crop)


def augment_pair(
    pixels: Tensor,
    rows: Tensor,
    index: Tensor,
    stream: Stream | Tensor,
    partner: Tensor,
    coefficient: Tensor,
    crop: Crop,
) -> tuple[Tensor, Tensor]:
    """A batch augmented, and the same mixed: two tensors (B, 3, size, size), in one pass on a GPU.

    The first is that of `augment`; the second is coefficient * first + (1 - coefficient) * first[partner], computed in
    float32. `partner` int64 (B,), positions in the batch; `coefficient` float32 (); both on the device of the pixels,
    so that no step waits for the host. The other arguments, and errors, as `augment`.
    """
    stream = check_augment(pixels, rows, index, stream, crop)
    _check_mixture(rows, partner, coefficient)
    if choose("mixup", pixels.device.type) == "triton":
        from fastdrpl.kernels.gpu.mixup import augment_pair as twin

        words = words_on(stream, pixels.device)
        return twin(pixels, rows, index, words, partner, coefficient, *crop.unpacked())
    plain = augment(pixels, rows, index, stream, replace(crop, dtype=torch.float32))
    return _with_mixture(plain, partner, coefficient, crop)


def _with_mixture(plain: Tensor, partner: Tensor, coefficient: Tensor, crop: Crop) -> tuple[Tensor, Tensor]:
    """Both in the type of the crop, from what was augmented in float32."""
    mixed = mix(plain, partner, coefficient)
    return plain.to(crop.dtype), mixed.to(crop.dtype, memory_format=crop.memory_format)


def _check_mixture(rows: Tensor, partner: Tensor, coefficient: Tensor) -> None:
    if partner.dtype != torch.int64 or partner.shape != rows.shape:
        raise TypeError(
            f"partner: got {partner.dtype} {tuple(partner.shape)}, want int64 {tuple(rows.shape)}"
        )
    if coefficient.dtype != torch.float32 or coefficient.shape != ():
        raise TypeError(f"coefficient: got {coefficient.dtype} {tuple(coefficient.shape)}, want float32 ()")
    if partner.device != rows.device or coefficient.device != rows.device:
        raise ValueError(
            f"partner is on {partner.device}, coefficient on {coefficient.device}, rows on {rows.device}: "
            "want one device"
        )
    check_range("partner", partner, len(rows))
