"""The kernels of `fastdrpl.kernels.gpu.loss_head`: every type of logits, and each part on and off."""

from typing import Any

from fastdrpl.kernels.gpu.loss_head import (
    FOLD,
    FOLD_BLOCK,
    fold_kernel,
    gradient_kernel,
    rows_kernel,
    value_kernel,
)


def typed(kind: str, names: str) -> dict[str, str]:
    """Arguments of one type."""
    return dict.fromkeys(names.split(), kind)


SIZES = typed("i32", "batch classes stride_row stride_column")
INPUT = {**typed("*i64", "index partner"), "coefficient": "*fp32", "target": "*fp32", "logits": "*bf16"}
GROUPS = typed("*fp32", "sums peaks totals")
ROWS = {
    **INPUT,
    **typed("*i64", "given predicted wanted"),
    **typed("*fp32", "store prediction label_loss rows"),
    **GROUPS,
    **SIZES,
    "entropy_weight": "fp32",
}
GRADIENT = {
    **INPUT,
    **typed("*fp32", "grad_loss rows log_sums"),
    "gradient": "*bf16",
    **SIZES,
    **typed("fp32", "sample_weight entropy_weight prior_weight"),
}
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


def without(types: dict[str, str], *names: str) -> tuple[dict[str, str], dict[str, Any]]:
    """A signature in which some arguments do not come, and their constants."""
    return {name: kind for name, kind in types.items() if name not in names}, dict.fromkeys(names)


def tile(
    rows: int, block: int, *, labels: bool = False, entropy: bool = True, one: bool = True
) -> dict[str, Any]:
    """Constants of the two kernels that walk over rows."""
    return {"LABELS": labels, "ENTROPY": entropy, "ONE_BLOCK": one, "ROWS": rows, "BLOCK": block}


def signatures() -> list[tuple[Any, dict[str, str], dict[str, Any]]]:
    """Every branch of every kernel at least once."""
    found = []
    for kind in ("*fp32", "*bf16", "*fp16", "*fp64"):
        found.append((rows_kernel, {**ROWS, "logits": kind}, {"STEPS": 1, **tile(4, 16)}))
        found.append((gradient_kernel, {**GRADIENT, "logits": kind, "gradient": kind}, tile(4, 16)))
    for size in (tile(2, 1024), tile(16, 128, one=False), tile(1, 2048, one=False), tile(4, 1)):
        found.append((rows_kernel, ROWS, {"STEPS": 16 if size["ONE_BLOCK"] else 1, **size}))
        found.append((gradient_kernel, GRADIENT, size))
    no_pair, no_prior = ("partner", "coefficient"), ("peaks", "totals")
    for entropy in (True, False):
        types, absent = without({**ROWS, "target": "*i64"}, *no_pair, *no_prior, "store", "prediction")
        found.append(
            (rows_kernel, types, {**absent, "STEPS": 2, **tile(4, 16, labels=True, entropy=entropy)})
        )
        types, absent = without({**GRADIENT, "target": "*i64"}, *no_pair, "log_sums")
        found.append((gradient_kernel, types, {**absent, **tile(4, 16, labels=True, entropy=entropy)}))
    nothing = ("target", *no_pair, *no_prior, "given", "label_loss")
    for more in (("store", "index"), ("prediction",)):
        types, absent = without(ROWS, *nothing, *more)
        found.append((rows_kernel, types, {**absent, "STEPS": 2, **tile(4, 16, entropy=False)}))
    types, absent = without(FOLDING, *no_prior, "fewer_peaks", "fewer_totals")
    constants = {"FOLD": FOLD, "BLOCK": FOLD_BLOCK}
    found += [(fold_kernel, FOLDING, constants), (fold_kernel, types, {**absent, **constants})]
    types, absent = without(VALUE, *no_prior)
    for groups, block in ((32, 256), (1, 8192), (2, 1)):
        constants = {"GROUPS": groups, "BLOCK": block}
        found += [(value_kernel, VALUE, constants), (value_kernel, types, {**absent, **constants})]
    return found


SIGNATURES = signatures()
