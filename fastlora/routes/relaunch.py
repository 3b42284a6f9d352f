"""Launches kernels; what was compiled for such a call before is launched without Triton's search for it.

Triton looks at every argument of every launch to find what it has compiled: about as much Python as all the
rest of a pass. The hosts know what decides on the code, and keep the compiled kernel under that.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from operator import itemgetter
from typing import Any, Final

from torch import Tensor
from triton.compiler import CompiledKernel

# Of calls whose kernels are kept: many models' worth. Beyond that all are forgotten.
_MOST: Final = 4096

# What was compiled of a kernel, and what picks its parameters in order from the arguments. The kernel is kept
# beside them, so that no other one comes to have its id. Its hash is Triton's, which takes a while.
_compiled: dict[Hashable, tuple[CompiledKernel, Callable[[dict[str, Any]], Any], Any]] = {}


def launch(
    kernel: Any, programs: int, key: tuple[Hashable, ...], arguments: dict[str, Any], options: dict[str, Any]
) -> None:
    """`kernel[(programs,)](**arguments, **options)`.

    Args:
        kernel: A function of Triton's or Gluon's.
        programs: Of the launch.
        key: Equal for two calls only if Triton compiles both alike: the device, dtypes, block shapes, every
            integer that is specialized, options, which arguments are None, and which pointers lie on 16 bytes
            (see `on_16_bytes`).
        arguments: Every parameter by its name.
        options: The compiler's, such as num_warps.
    """
    key = (id(kernel), *key)
    if (found := _compiled.get(key)) is not None:
        compiled, ordered, _ = found
        compiled[(programs, 1, 1)](*ordered(arguments))
        return
    compiled = kernel[(programs,)](**arguments, **options)
    # In the interpreter there is none.
    if isinstance(compiled, CompiledKernel):
        if len(_compiled) >= _MOST:
            _compiled.clear()
        _compiled[key] = compiled, itemgetter(*kernel.arg_names), kernel


def on_16_bytes(*tensors: Tensor | None) -> tuple[bool | None, ...]:
    """For each tensor whether its memory begins on 16 bytes, by which Triton compiles loads; None of None."""
    return tuple([None if tensor is None else tensor.data_ptr() % 16 == 0 for tensor in tensors])
