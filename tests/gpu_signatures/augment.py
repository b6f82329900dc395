"""`augment_kernel` in each crop, type and layout."""

from itertools import product

from fastdrpl.kernels.gpu.augment import CROPS, augment_kernel

TYPES = {
    "pixels": "*u8",
    "rows": "*i64",
    "index": "*i64",
    "stream": "*i64",
    **dict.fromkeys(("stride_image", "stride_x", "height", "width", "pad"), "i32"),
    **dict.fromkeys(("scale0", "scale1", "scale2", "shift0", "shift1", "shift2"), "fp32"),
}
# (crop, type of the output, channels last, size, rows and columns of a block)
CASES = [
    *product(("pad",), ("*fp32", "*bf16", "*fp16", "*u8"), (True,), (32,), (32,), (32,)),
    ("pad", "*bf16", False, 64, 8, 128),
    ("pad", "*bf16", True, 7, 8, 32),
    ("pad", "*bf16", True, 1, 1, 128),
    ("centre", "*bf16", True, 224, 32, 32),
    *product(("resized",), ("*fp32", "*bf16"), (True, False), (224,), (8,), (32,)),
    ("resized", "*fp16", True, 299, 8, 32),
]

SIGNATURES = [
    (
        augment_kernel,
        {**TYPES, "out": out},
        {
            "stride_c": 1,
            "SIZE": size,
            "CROP": CROPS[crop],
            "FLIP": crop != "centre",
            "NORMALISE": out != "*u8",
            "CHANNELS_LAST": channels_last,
            "STRIDE_Y": 3 * (size + 4),
            "BLOCK_Y": rows,
            "BLOCK_COLUMNS": columns,
        },
    )
    for crop, out, channels_last, size, rows, columns in CASES
]
# Layouts that need other strides, and a data set of more than 2**31 bytes an image.
SIGNATURES.append(
    (
        augment_kernel,
        {
            **TYPES,
            "out": "*fp32",
            **dict.fromkeys(("stride_image", "stride_x", "stride_c"), "i64"),
        },
        {key: value for key, value in SIGNATURES[0][2].items() if key != "stride_c"},
    )
)
