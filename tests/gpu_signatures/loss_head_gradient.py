"""`gradient_kernel` of `fastdrpl.kernels.gpu.loss_head_gradient`: every branch at least once."""

from fastdrpl.kernels.gpu.loss_head_gradient import gradient_kernel
from gpu_signatures._loss_head import BLOCKS, INPUT, NO_PAIR, SIZES, tile, typed, without

GRADIENT = {
    **INPUT,
    **typed("*fp32", "grad_loss rows log_sums"),
    "gradient": "*bf16",
    **SIZES,
    **typed("fp32", "sample_weight entropy_weight prior_weight"),
}

SIGNATURES = [
    (gradient_kernel, {**GRADIENT, "logits": kind, "gradient": kind}, tile(4, 16))
    for kind in ("*fp32", "*bf16", "*fp16", "*fp64")
]
SIGNATURES += [(gradient_kernel, GRADIENT, tile(**block)) for block in BLOCKS]
for entropy in (True, False):
    types, absent = without({**GRADIENT, "target": "*i64"}, *NO_PAIR, "log_sums")
    SIGNATURES.append((gradient_kernel, types, {**absent, **tile(4, 16, labels=True, entropy=entropy)}))
