"""What this machine is to the kernels: a device's tile table, and how fp32 products are computed."""

from __future__ import annotations

import functools

import torch

from fastlora_kernels import configs


@functools.lru_cache(maxsize=64)
def architecture_of(device: torch.device) -> str:
    """The name of the tile table for a device; "interpreter" for the CPU."""
    if device.type == "cpu":
        return "interpreter"
    properties = torch.cuda.get_device_properties(device)
    return configs.nearest_architecture(
        backend="hip" if torch.version.hip else "cuda",
        capability=(properties.major, properties.minor),
        shared_memory=getattr(properties, "shared_memory_per_block_optin", 0),
    )


@functools.lru_cache(maxsize=64)
def multiprocessors(device: torch.device) -> int | None:
    """How many a GPU, or the slice of one that MIG gives, has; None for the CPU."""
    if device.type == "cpu":
        return None
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def fp32_precision() -> str:
    """Of fp32 products, by torch's setting: "ieee" or "tf32"."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def kind_of(dtype: torch.dtype) -> str:
    """The element kind of tile tables: "half" for 16 bits, else "ieee" or "tf32"."""
    return configs.element_kind(torch.finfo(dtype).bits, fp32_precision())
