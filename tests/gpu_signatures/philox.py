"""The device functions of `fastdrpl.kernels.gpu.philox`, by the kernel that its test calls them from."""

from gpu_philox_kernel import draw_kernel

SIGNATURES = [
    (
        draw_kernel,
        {"stream": "*i64", "index": "*i64", "out": "*i64", "units": "*fp32", "count": "i32", "n": "i32"},
        {"BLOCK": 128},
    )
]
