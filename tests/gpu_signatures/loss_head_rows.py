"""`rows_kernel` of `fastdrpl.kernels.gpu.loss_head_rows`: every branch at least once."""

from fastdrpl.kernels.gpu.loss_head_rows import rows_kernel
from gpu_signatures._loss_head import BLOCKS, GROUPS, INPUT, NO_PAIR, NO_PRIOR, SIZES, tile, typed, without

ROWS = {
    **INPUT,
    **typed("*i64", "given predicted wanted"),
    **typed("*fp32", "store prediction label_loss rows"),
    **GROUPS,
    **SIZES,
    "entropy_weight": "fp32",
}
NOTHING = ("target", *NO_PAIR, *NO_PRIOR, "given", "label_loss")

SIGNATURES = [
    (rows_kernel, {**ROWS, "logits": kind}, {"STEPS": 1, **tile(4, 16)})
    for kind in ("*fp32", "*bf16", "*fp16", "*fp64")
]
for block in BLOCKS:
    SIGNATURES.append((rows_kernel, ROWS, {"STEPS": 16 if block.get("one", True) else 1, **tile(**block)}))
for entropy in (True, False):
    types, absent = without({**ROWS, "target": "*i64"}, *NO_PAIR, *NO_PRIOR, "store", "prediction")
    SIGNATURES.append(
        (rows_kernel, types, {**absent, "STEPS": 2, **tile(4, 16, labels=True, entropy=entropy)})
    )
for more in (("store", "index"), ("prediction",)):
    types, absent = without(ROWS, *NOTHING, *more)
    SIGNATURES.append((rows_kernel, types, {**absent, "STEPS": 2, **tile(4, 16, entropy=False)}))
