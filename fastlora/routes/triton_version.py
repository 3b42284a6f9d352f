"""Which Triton is installed, and what it is known to leave out. Nothing here imports Triton."""

from __future__ import annotations

import functools
import re
from importlib import metadata
from typing import Final

# Triton's pull request 9610, which 3.7.1 has too. The PTX interpreter in tests/ptx finds the race in 3.6.0
# and 3.7.0, and none in 3.7.1, 3.8.0 and 3.9.0.
FIRST_WITH_FENCES: Final = (3, 7, 1)


@functools.cache
def triton_version() -> tuple[int, ...] | None:
    """Such as (3, 9, 0); None where Triton is not installed."""
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:
        return None
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def missing_fence(architecture: str) -> str | None:
    """What the installed Triton leaves out of an architecture's kernels, as a sentence; None if nothing.

    Args:
        architecture: The name of a tile table.
    """
    version = triton_version()
    if version is None or version >= FIRST_WITH_FENCES or architecture not in ("sm_90", "sm_100"):
        return None
    return (
        f"Triton {'.'.join(map(str, version))} leaves out a fence between copies into shared memory and the "
        "products that read them, which the PTX ISA asks for; Triton 3.7.1 and newer have it"
    )
