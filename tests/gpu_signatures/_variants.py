"""Variants of a signature: an argument that is 1 is compiled as a constant, so a single sample is another kernel."""


def variants(kernel, types, constants, single):
    """The kernel as it is, and with the arguments `single` equal to 1."""
    fixed = {**constants, **dict.fromkeys(single, 1)}
    rest = {name: kind for name, kind in types.items() if name not in single}
    return [(kernel, types, constants), (kernel, rest, fixed)]
