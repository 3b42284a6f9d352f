"""The hand-over of p and q within one launch: one program publishes its stores, others wait for them."""

import triton
import triton.language as tl


@triton.jit
def publish(flag_ptr):
    """Count one more tile of these rows as stored; call it after the stores."""
    # All threads store before the barrier, and one thread releases after it. So whoever sees the count sees
    # the complete tile.
    tl.debug_barrier()
    tl.atomic_add(flag_ptr, 1, sem="release")


@triton.jit
def wait_for(flag_ptr, count):
    """Return once `count` tiles of these rows are stored; then load them with cache_modifier=".cg"."""
    # An atomic add of 0 compiles to a plain load with acquire. L1 is not coherent, so loads must bypass it.
    ready = tl.atomic_add(flag_ptr, 0, sem="acquire")
    while ready < count:
        ready = tl.atomic_add(flag_ptr, 0, sem="acquire")
    tl.debug_barrier()
