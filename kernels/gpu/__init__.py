"""The Triton twin of each kernel; the reference stands in the module of the same name one level up.

A module here has, in this order: the kernel, its launcher (which checks nothing and runs on whatever the kernel can
run on: a GPU, or CPU tensors in Triton's interpreter), and the registered operation `fastdrpl::NAME`, which
torch.compile and CUDA graphs can capture. Imported only where a GPU runs it, and by tests.
"""
