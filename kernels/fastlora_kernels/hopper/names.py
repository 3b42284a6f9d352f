"""What Gluon calls differently in Triton 3.6 to 3.9, name by name: 3.7 has some of the new ones."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma

_HAS_LOAD = hasattr(tma, "async_load")

load_async = tma.async_load if _HAS_LOAD else tma.async_copy_global_to_shared
store_async = tma.async_store if _HAS_LOAD else tma.async_copy_shared_to_global
meet = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier  # of the warps of one partition

if hasattr(gl.shared_memory_descriptor, "reinterpret"):

    @gluon.jit
    def reinterpret(memory, shape: gl.constexpr, layout: gl.constexpr):
        """The same shared memory, seen as another block of the same elements."""
        return memory.reinterpret(memory.dtype, shape, layout)

else:

    @gluon.jit
    def reinterpret(memory, shape: gl.constexpr, layout: gl.constexpr):
        """The same shared memory, seen as another block of the same elements."""
        return memory._reinterpret(memory.dtype, shape, layout)
