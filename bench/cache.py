"""How much of the last call's data a CPU may still hold close to its cores."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_CPUS: Final = Path("/sys/devices/system/cpu")

_UNITS: Final = {"K": 2**10, "M": 2**20}


def private_cache_bytes(cpus: Path = _CPUS) -> int:
    """Bytes of all second-level caches; 0 where the system does not say.

    A last-level cache is left out: on a shared machine other programs take most of it.

    Args:
        cpus: The folder in which Linux describes processors.
    """
    sizes: dict[tuple[str, str], int] = {}
    for cache in cpus.glob("cpu[0-9]*/cache/index*"):
        if _read(cache / "level") == "2":
            sizes[_read(cache / "shared_cpu_list"), _read(cache / "type")] = _bytes(_read(cache / "size"))
    return sum(sizes.values())


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()


def _bytes(size: str) -> int:
    """Such as 2097152 for "2048K"."""
    unit = _UNITS.get(size[-1:])
    return int(size) if unit is None else int(size[:-1]) * unit
