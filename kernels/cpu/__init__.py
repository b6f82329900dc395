"""The numba twin of each kernel; the reference stands in the module of the same name one level up."""
