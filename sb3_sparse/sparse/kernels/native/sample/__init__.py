"""Kernels for one sample: products of one layer, and programs that run a whole network in one call."""
