"""The kernels of `fastdrpl.kernels.gpu.loss_head_groups`, with and without the prior term."""

from fastdrpl.kernels.gpu.loss_head_groups import FOLD_BLOCK, fold_kernel, value_kernel
from fastdrpl.kernels.gpu.loss_head_tiles import FOLD
from gpu_signatures._loss_head import GROUPS, NO_PRIOR, typed, without

FOLDING = {
    **GROUPS,
    **typed("*fp32", "fewer_sums fewer_peaks fewer_totals"),
    **typed("i32", "groups classes"),
}
VALUE = {
    **GROUPS,
    **typed("*fp32", "loss log_sums"),
    **typed("i32", "groups classes"),
    **typed("fp32", "sample_weight prior_weight log_count"),
}

types, absent = without(FOLDING, *NO_PRIOR, "fewer_peaks", "fewer_totals")
constants = {"FOLD": FOLD, "BLOCK": FOLD_BLOCK}
SIGNATURES = [(fold_kernel, FOLDING, constants), (fold_kernel, types, {**absent, **constants})]
types, absent = without(VALUE, *NO_PRIOR)
for groups, block in ((32, 256), (1, 8192), (2, 1)):
    constants = {"GROUPS": groups, "BLOCK": block}
    SIGNATURES += [(value_kernel, VALUE, constants), (value_kernel, types, {**absent, **constants})]
