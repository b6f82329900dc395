"""The kernels of `fastdrpl.kernels.gpu.pseudo_label`, for either type of ring, both uses of it, and a single sample."""

from fastdrpl.kernels.gpu import pseudo_label as twin
from gpu_signatures._variants import variants

RING = {"prediction": "*fp32", "mean": "*fp32", "samples": "i32", "classes": "i32"}
RING |= {"length": "i32", "slot": "i32", "filled": "i32"}
CHOSEN = {"labelled": "*u8", "keys": "*i64", "count": "*i64"}
SELECTION = {"count": "*i64", "histograms": "*i32", "state": "*i64"}
TARGETS = {"target": "*fp32", "prediction": "*fp32", "uniform": "fp32", "samples": "i32", "classes": "i32"}
TILE = {"ROWS": 64, "COLUMNS": 16}

SIGNATURES = [
    (twin._draw_keys, {"keys": "*i64", "stream": "*i64", "samples": "i32"}, {"BLOCK": twin.KEYS_AT_ONCE}),
    (twin._settle, {**SELECTION, "steps": "i32"}, {}),
    *variants(twin._renew, {**CHOSEN, **TARGETS, "last_chosen": "*i64"}, TILE, ("samples", "classes")),
    *variants(
        twin._narrow,
        {**CHOSEN, **SELECTION, "samples": "i32", "step": "i32", "shift": "i32"},
        {"BLOCK": twin.BLOCK},
        ("samples", "step"),
    ),
]
for ring in ("*fp32", "*fp16"):
    for average in (False, True):
        types, constants = {"ring": ring, **RING}, {"AVERAGE": average, **TILE}
        ones = ("samples", "length", "classes", "slot", "filled")
        SIGNATURES += variants(twin._pass_ring, types, constants, ones)
        SIGNATURES.append((twin._pass_ring, types, {**constants, "ROWS": 1, "COLUMNS": 1024}))
