"""The device functions of `fastdrpl.kernels.gpu.selection`, by the kernel that calls them all."""

from fastdrpl.kernels.gpu import pseudo_label
from gpu_signatures.pseudo_label import SIGNATURES as SELECTING

SIGNATURES = [signature for signature in SELECTING if signature[0] is pseudo_label._narrow]
