"""What stands in for a fence that Triton before 3.7.1 leaves out."""

import re
from typing import Any

import triton
import triton.language as tl

_VERSION = tuple(map(int, re.findall(r"\d+", triton.__version__)[:3]))
_HAS_FENCES = tl.constexpr(_VERSION >= (3, 7, 1))


@tl.core.builtin
def _reads_through_a_proxy(_semantic: Any = None) -> tl.constexpr:
    """Whether products read their operands from shared memory as Hopper's and Blackwell's do."""
    return tl.constexpr(str(_semantic.builder.options.arch).startswith(("sm9", "sm10")))


@triton.jit
def fenced(tile):
    """A tile that was loaded by pointers, fit to be an operand of a product.

    From Hopper on a product reads shared memory through another proxy than the copies that wrote it, so that
    a fence must stand between them (PTX ISA, "Async proxy"). Triton before 3.7.1 puts none behind an
    asynchronous copy (its pull request 9610), but does behind a store from registers. Adding 0 takes the tile
    through registers, and changes nothing but the sign of a zero.
    """
    if not _HAS_FENCES and _reads_through_a_proxy():
        tile += 0.0
    return tile
