"""The two merge kernels, their arguments, compilation and launch."""
