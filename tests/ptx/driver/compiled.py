"""From a call of a kernel to its PTX, as Triton's JIT would make it, for a GPU that need not exist."""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile, make_backend
from triton.experimental.gluon._runtime import GluonASTSource
from triton.runtime.jit import JITFunction, create_function_from_signature


class Compiled(NamedTuple):
    """One kernel variant.

    Attributes:
        ptx: Its text.
        num_warps: Warps of a program, those of all partitions.
        shared: Bytes of shared memory of a program.
        descriptors: For each tensor descriptor among the arguments, its box, swizzle and element size.
        signature: The kind of each argument by its name.
    """

    ptx: str
    num_warps: int
    shared: int
    descriptors: list[dict[str, Any]]
    signature: dict[str, Any]


def compiled(
    kernel: JITFunction, capability: int, arguments: dict[str, Any]
) -> tuple[Compiled, dict[str, Any]]:
    """(the variant that a launch with these keyword arguments runs, its arguments in the kernel's order).

    Args:
        kernel: The kernel.
        capability: The target's, such as 90.
        arguments: As in `kernel[grid](**arguments)`, compiler options included.
    """
    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    arguments = arguments | {"debug": False}
    bound, specialization, options = create_function_from_signature(kernel.signature, kernel.params, backend)(
        **arguments
    )
    options, signature, constants, attributes = kernel._pack_args(
        backend, arguments, bound, specialization, options
    )
    key = repr((kernel.cache_key, capability, signature, constants, attributes, options))
    if key not in _MADE:
        source = GluonASTSource if kernel.is_gluon() else ASTSource
        _MADE[key] = _compile(source(kernel, signature, constants, attributes), target, options.__dict__)
    return _MADE[key], bound


_MADE: dict[str, Compiled] = {}


def _compile(source: ASTSource, target: GPUTarget, options: dict[str, Any]) -> Compiled:
    with knobs.runtime.scope():
        knobs.runtime.add_stages_inspection_hook = _without_ptxas
        made = compile(source, target=target, options=options)
    metadata = made.metadata
    return Compiled(
        ptx=made.asm["ptx"],
        num_warps=int(re.search(r"\.reqntid (\d+)", made.asm["ptx"])[1]) // 32,
        shared=metadata.shared,
        descriptors=list(getattr(metadata, "tensordesc_meta", None) or []),
        signature=source.signature,
    )


def _without_ptxas(
    backend: Any = None,
    stages: dict[str, Any] | None = None,
    options: Any = None,
    language: Any = None,
    capability: Any = None,
) -> tuple[str, str] | None:
    """Triton's hook into its stages: stop at PTX; without arguments, a key for Triton's cache."""
    if stages is None:
        return "no ptxas", "no ptxas"
    stages["cubin"] = lambda source, metadata: b""
    return None


@functools.cache
def triton_version() -> str:
    """The version of Triton that compiles here."""
    import triton

    return triton.__version__
