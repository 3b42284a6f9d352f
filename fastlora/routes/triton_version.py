"""Which Triton is installed. Nothing here imports it."""

from __future__ import annotations

import functools
import re
from importlib import metadata


@functools.cache
def triton_version() -> tuple[int, ...] | None:
    """Such as (3, 9, 0); None where Triton is not installed."""
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:
        return None
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
