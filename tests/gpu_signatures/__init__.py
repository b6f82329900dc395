"""What `gpu_compile.py` compiles: in each module a list SIGNATURES of (kernel, types of arguments, constants)."""
