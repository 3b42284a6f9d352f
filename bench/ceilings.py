"""What the device reaches at best, measured in the same run: matrix products and copies."""

from __future__ import annotations

from typing import NamedTuple

import torch

from bench.cases import dtype_name
from bench.effort import Effort
from bench.settings import Setting
from bench.timing import interleaved, quartiles, timer_for, warm_up


class Ceilings(NamedTuple):
    """The two rates that bound every kernel.

    Attributes:
        matmul_flops: FLOP/s of a large square product in the dtype of the cases.
        matmul_dtype: That dtype.
        matmul_size: Its rows and columns.
        copy_bytes_per_s: Bytes read and written a second by a large copy on the device.
        copy_bytes: Size of the buffer.
    """

    matmul_flops: float
    matmul_dtype: str
    matmul_size: int
    copy_bytes_per_s: float
    copy_bytes: int

    def __str__(self) -> str:
        product = f"{self.matmul_dtype} product of {self.matmul_size} x {self.matmul_size}"
        copy = f"copy of {self.copy_bytes / 1e6:.0f} MB"
        return (
            f"{self.matmul_flops / 1e12:.4g} TFLOP/s ({product}), "
            f"{self.copy_bytes_per_s / 1e9:.4g} GB/s ({copy}, bytes read and written)"
        )


def measure_ceilings(setting: Setting | Effort, dtype: torch.dtype) -> Ceilings:
    """Time the library's product of random matrices in a dtype and a copy, medians of several."""
    device, size = setting.device, setting.matmul_size
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    source = torch.randn(setting.copy_bytes // 4, device=device)
    target = torch.empty_like(source)
    product = torch.empty_like(left)
    calls = {
        "matmul": lambda: torch.mm(left, right, out=product),
        "copy": lambda: target.copy_(source),
    }
    timer = timer_for(device)
    warm_up(calls, setting.warm_up_rounds, timer)
    times = interleaved(calls, setting.rounds, timer)
    matmul, copy = (1e-6 * quartiles(times[name]).median for name in ("matmul", "copy"))
    return Ceilings(
        matmul_flops=2 * size**3 / matmul,
        matmul_dtype=dtype_name(dtype),
        matmul_size=size,
        copy_bytes_per_s=2 * source.nbytes / copy,
        copy_bytes=source.nbytes,
    )
