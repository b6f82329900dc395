"""Types of arguments that the signatures of the loss head share: every type of logits, and each part on and off."""

from typing import Any


def typed(kind: str, names: str) -> dict[str, str]:
    """Arguments of one type."""
    return dict.fromkeys(names.split(), kind)


SIZES = typed("i32", "batch classes stride_row stride_column")
INPUT = {**typed("*i64", "index partner"), "coefficient": "*fp32", "target": "*fp32", "logits": "*bf16"}
GROUPS = typed("*fp32", "sums peaks totals")
NO_PAIR, NO_PRIOR = ("partner", "coefficient"), ("peaks", "totals")
BLOCKS = ({"rows": 2, "block": 1024}, {"rows": 16, "block": 128, "one": False})
BLOCKS += ({"rows": 1, "block": 2048, "one": False}, {"rows": 4, "block": 1})


def without(types: dict[str, str], *names: str) -> tuple[dict[str, str], dict[str, Any]]:
    """A signature in which some arguments do not come, and their constants."""
    return {name: kind for name, kind in types.items() if name not in names}, dict.fromkeys(names)


def tile(
    rows: int, block: int, *, labels: bool = False, entropy: bool = True, one: bool = True
) -> dict[str, Any]:
    """Constants of the two kernels that walk over rows."""
    return {"LABELS": labels, "ENTROPY": entropy, "ONE_BLOCK": one, "ROWS": rows, "BLOCK": block}
