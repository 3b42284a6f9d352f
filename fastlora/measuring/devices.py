"""A device's name and sizes, and how many input sets make a call miss its caches."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any, Final

import torch

_CPUS: Final = Path("/sys/devices/system/cpu")
_UNITS: Final = {"K": 2**10, "M": 2**20}

# Together, input sets that a call goes through in turn are this many times the cache. There are at most 16: a
# layer so small that it would need more finds its inputs in the cache in training too.
_TIMES_CACHE: Final = 4
_FEWEST_SETS: Final = 2
_MOST_SETS: Final = 16


def describe_device(device: torch.device) -> dict[str, Any]:
    """What a reader wants to know of a device, and the bytes of its cache that size the inputs."""
    if device.type == "cpu":
        name = f"{platform.machine()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
        return {"kind": "cpu", "name": name, "l2_bytes": 0}
    properties = torch.cuda.get_device_properties(device)
    return {
        "kind": "cuda",
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
    }


def number_of_sets(base_bytes: int, cache_bytes: int) -> int:
    """How many input sets of so many bytes each make a call that goes through them miss the cache."""
    return min(_MOST_SETS, max(_FEWEST_SETS, -(-_TIMES_CACHE * cache_bytes // max(base_bytes, 1))))


def private_cache_bytes(cpus: Path = _CPUS) -> int:
    """Bytes of all second-level caches of a CPU; 0 where the system does not say.

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
