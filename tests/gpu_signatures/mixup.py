"""`augment_pair_kernel` in each crop and type."""

from fastdrpl.kernels.gpu.augment import CROPS
from fastdrpl.kernels.gpu.mixup import augment_pair_kernel
from gpu_signatures.augment import TYPES

SIGNATURES = [
    (
        augment_pair_kernel,
        {**TYPES, "partner": "*i64", "coefficient": "*fp32", "plain": out, "mixed": out},
        {
            "stride_c": 1,
            "SIZE": size,
            "CROP": CROPS[crop],
            "FLIP": True,
            "CHANNELS_LAST": channels_last,
            "STRIDE_Y": 3 * size,
            "BLOCK_Y": rows,
            "BLOCK_COLUMNS": columns,
        },
    )
    for crop, out, size, rows, columns, channels_last in (
        ("pad", "*fp32", 32, 16, 32, True),
        ("pad", "*bf16", 32, 8, 64, True),
        ("pad", "*fp16", 7, 8, 32, False),
        ("resized", "*fp32", 224, 4, 32, True),
        ("resized", "*bf16", 299, 4, 32, False),
    )
]
