"""The two merge kernels: arguments, compilation, launch."""
