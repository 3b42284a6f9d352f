"""Compiles the kernels of every tile table entry, for any GPU on any machine, and checks the result."""
