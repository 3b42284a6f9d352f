"""Peak rates of GPUs by their vendors' datasheets: dense, without sparsity."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch


class Gpu(NamedTuple):
    """The peak rates of a GPU.

    Attributes:
        architecture: Its entry in the tile table.
        half: FLOP/s of fp16 and bf16 products that accumulate in fp32.
        tf32: FLOP/s of TF32 products.
        ieee: FLOP/s of exact fp32 arithmetic.
        bandwidth: Bytes/s of its memory.
    """

    architecture: str
    half: float
    tf32: float
    ieee: float
    bandwidth: float


GPUS: Final = {
    "A100": Gpu("sm_80", 312e12, 156e12, 19.5e12, 2.039e12),  # SXM, 80 GB
    "RTX 4090": Gpu("sm_86", 165.2e12, 82.6e12, 82.6e12, 1.008e12),
    "L40S": Gpu("sm_86", 362e12, 183e12, 91.6e12, 0.864e12),
    "H100": Gpu("sm_90", 989e12, 494e12, 67e12, 3.35e12),  # SXM
    "H200": Gpu("sm_90", 989e12, 494e12, 67e12, 4.8e12),  # SXM
    "B200": Gpu("sm_100", 2250e12, 1125e12, 75e12, 8e12),
    "MI300X": Gpu("gfx942", 1307e12, 653e12, 163.4e12, 5.3e12),
}


def rate_of(gpu: Gpu, dtype: torch.dtype) -> float:
    """FLOP/s of a GPU's products in a dtype, by torch's setting for fp32."""
    if dtype.itemsize == 2:
        return gpu.half
    return gpu.ieee if torch.get_float32_matmul_precision() == "highest" else gpu.tf32


def find_gpu(name: str) -> str | None:
    """The key of GPUS that a device's name holds, such as "H200" for "NVIDIA H200"; None if there is none."""
    wanted = name.replace("-", " ").lower()
    found = [key for key in GPUS if key.lower() in wanted]
    return max(found, key=len) if found else None
