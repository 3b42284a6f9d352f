"""What Gluon calls differently in Triton 3.6 and 3.9."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma

_IS_NEW = hasattr(tma, "async_load")

load_async = tma.async_load if _IS_NEW else tma.async_copy_global_to_shared
store_async = tma.async_store if _IS_NEW else tma.async_copy_shared_to_global
meet = gl.barrier if _IS_NEW else gl.thread_barrier  # of the warps of one partition

if _IS_NEW:

    @gluon.jit
    def reinterpret(memory, shape: gl.constexpr, layout: gl.constexpr):
        """The same shared memory, seen as another block of the same elements."""
        return memory.reinterpret(memory.dtype, shape, layout)

else:

    @gluon.jit
    def reinterpret(memory, shape: gl.constexpr, layout: gl.constexpr):
        """The same shared memory, seen as another block of the same elements."""
        return memory._reinterpret(memory.dtype, shape, layout)
