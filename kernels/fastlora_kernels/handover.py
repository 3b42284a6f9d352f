"""The hand-over of p and q between programs of one launch: stores that one publishes and others wait for."""

import triton
import triton.language as tl


@triton.jit
def publish(flag_ptr):
    """Count one tile of these rows as stored; call it after its stores."""
    # Every thread's stores come before the barrier, one thread's release after it: together they order the
    # whole tile before the count.
    tl.debug_barrier()
    tl.atomic_add(flag_ptr, 1, sem="release")


@triton.jit
def wait_for(flag_ptr, count):
    """Return once `count` tiles of these rows are stored; read them with cache_modifier=".cg"."""
    # An atomic add of 0 compiles to a plain acquiring load. L1 is not coherent, hence ".cg" at the readers.
    ready = tl.atomic_add(flag_ptr, 0, sem="acquire")
    while ready < count:
        ready = tl.atomic_add(flag_ptr, 0, sem="acquire")
    tl.debug_barrier()
