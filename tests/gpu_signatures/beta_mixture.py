"""The kernels of `fastdrpl.kernels.gpu.beta_mixture`, for either type of losses, and for a single one of them."""

from fastdrpl.kernels.gpu import beta_mixture as twin
from gpu_signatures._variants import variants

COUNTING = {"histograms": "*i32", "shift": "i32"}
FITTING = {"parameters": "*fp64", "partials": "*fp64"}


SIGNATURES = [
    *variants(
        twin.iterate_kernel,
        {**FITTING, "held": "*fp64", "count": "i32", "programs": "i32", "iteration": "i32"},
        {"BLOCK": twin.BLOCK},
        ("count", "programs", "iteration"),
    ),
    *variants(
        twin.finish_kernel,
        {**FITTING, "results": "*fp64", "programs": "i32", "iterations": "i32"},
        {},
        ("programs", "iterations"),
    ),
]
for losses, double in (("*fp32", False), ("*fp64", True)):
    SIGNATURES += [
        *variants(
            twin.observe_kernel,
            {"losses": losses, **COUNTING, "observed": "*fp64", "places": "*fp64", "count": "i32"},
            {"BLOCK": twin.COUNTED},
            ("count",),
        ),
        *variants(
            twin.narrow_kernel,
            {"losses": losses, **COUNTING, "state": "*i64", "count": "i32", "step": "i32"},
            {"BLOCK": twin.COUNTED},
            ("count", "step"),
        ),
        *variants(
            twin.settle_kernel,
            {
                "observed": "*fp64",
                "parts": "i32",
                "histograms": "*i32",
                "state": "*i64",
                "places": "*fp64",
                "results": "*fp64",
                "count": "i32",
                "steps": "i32",
            },
            {"DOUBLE": double, "PARTS": twin.PARTS},
            ("count", "parts"),
        ),
        *variants(
            twin.normalise_kernel,
            {"losses": losses, "results": "*fp64", "held": "*fp64", "count": "i32"},
            {"BLOCK": twin.BLOCK},
            ("count",),
        ),
        *variants(
            twin.score_kernel,
            {"losses": losses, "odds": "*fp64", "out": "*fp64", "count": "i32"},
            {"BLOCK": twin.BLOCK},
            ("count",),
        ),
    ]
