"""Compile the kernels of gpu_signatures/NAME.py for a GPU that need not be there: `python gpu_compile.py NAME ...`.

The interpreter lets pass what the compiler refuses: values that change their type in a loop, blocks that are no power
of two, operations that a GPU does not have. One line for each kernel: name, constants, bytes of machine code.
"""

import importlib
import sys
from typing import Any, NamedTuple

CAPABILITIES = (80, 90)  # A100; H100 and H200
WARP = 32


class Signature(NamedTuple):
    """A kernel, the type of each argument ("*u8", "i64", "fp32", ... as Triton writes them) and its constants."""

    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]


def compile_kernel(signature: Signature, capability: int) -> int:
    """Bytes of machine code; raises what Triton raises."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, types, constants = signature
    names = {**types, **dict.fromkeys(constants, "constexpr")}
    missing = set(kernel.arg_names) ^ set(names)
    if missing:
        raise ValueError(f"{kernel.__name__}: the signature and the arguments differ in {sorted(missing)}")
    source = ASTSource(
        kernel, signature={name: names[name] for name in kernel.arg_names}, constexprs=constants
    )
    return len(triton.compile(source, target=GPUTarget("cuda", capability, WARP)).asm["cubin"])


def main() -> None:
    """All kernels of the named modules."""
    for name in sys.argv[1:]:
        for signature in importlib.import_module(f"gpu_signatures.{name}").SIGNATURES:
            for capability in CAPABILITIES:
                size = compile_kernel(Signature(*signature), capability)
                print(signature[0].__name__, capability, signature[2], size)


if __name__ == "__main__":
    main()
