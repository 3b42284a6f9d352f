"""Benchmarks: every method in one process, in turn, checked before it is timed."""

import os

# Read when torch is loaded; below 6 the profiler writes two lines to stderr each time it is used.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
