"""A route: by which code, and why; and which one takes tensors of a device and dtype."""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Final, NamedTuple

import torch

from fastlora.arguments import check_choice
from fastlora.routes.backend import BACKENDS, BackendError, get_backend

KERNEL_DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32)

# The first compute capability with bf16 matrix units, and the oldest with a tile table.
_OLDEST_CUDA: Final = (8, 0)


class Route(NamedTuple):
    """The code that computes a pass.

    Attributes:
        name: "triton", "interpreter" (the same kernels on a CPU), "persistent" (those for sm_90),
            "vendor" (the vendor's base products beside kernels for what is low-rank) or "torch".
        why: The reason, as a phrase to show.
        unpacks_first: Whether it was measured to be faster for few rows over a packed W to unpack that
            beforehand, where else it is unpacked inside the product.
    """

    name: str
    why: str
    unpacks_first: bool = False

    @property
    def is_fused(self) -> bool:
        """Whether this code is the kernels of the tile tables."""
        return self.name in ("triton", "interpreter")


ASKED_FOR: Final = Route("torch", "the backend is set to torch")
# One wave waits for its own stores before it publishes; those of the others are ordered by a barrier alone.
_UNPROVEN_ON_ROCM: Final = Route(
    "torch",
    "on ROCm it is not proven that p and q are stored before other programs read them; "
    "the kernels run only where the backend is set to triton",
)


def route_on(
    device: torch.device,
    dtype: torch.dtype,
    setting: str | None = None,
    *,
    gpu: str | None = None,
    architecture: str = "",
) -> Route:
    """The code for tensors of this device and dtype; a call's shape may still change it (see `decide`).

    Args:
        device: Device of x.
        dtype: Dtype of x.
        setting: As in `decide`.
        gpu: As in `decide_for`.
        architecture: As in `decide_for`.

    Raises:
        ValueError: As in `decide`.
        BackendError: As in `decide`.
    """
    setting = get_backend() if setting is None else check_choice("backend", setting, BACKENDS)
    if setting == "torch":
        return ASKED_FOR
    if gpu is not None:
        route = Route("triton", f"as on an {gpu}") if dtype in KERNEL_DTYPES else _no_kernel_for(dtype)
    else:
        route = _kernels_on(device.type, device.index, dtype, os.environ.get("TRITON_INTERPRET") == "1")
    if setting == "triton":
        if not route.is_fused:
            raise BackendError(f"backend 'triton' cannot run {dtype} tensors on {gpu or device}: {route.why}")
        return route
    if route.name == "interpreter":
        return Route("torch", "on a CPU torch is faster than Triton's interpreter")
    is_rocm = architecture.startswith("gfx") if gpu is not None else torch.version.hip is not None
    return _UNPROVEN_ON_ROCM if is_rocm and route.is_fused else route


@functools.lru_cache(maxsize=256)
def _kernels_on(device: str, index: int | None, dtype: torch.dtype, interpret: bool) -> Route:
    if importlib.util.find_spec("triton") is None:
        return Route("torch", "triton is not installed")
    if dtype not in KERNEL_DTYPES:
        return _no_kernel_for(dtype)
    if device == "cuda":
        return _on_gpu(index)
    if device != "cpu":
        return Route("torch", f"the kernels run on CUDA and ROCm devices, not on {device!r}")
    if not interpret:
        return Route("torch", "a CPU runs the kernels only in Triton's interpreter (TRITON_INTERPRET=1)")
    if dtype == torch.bfloat16:
        return Route("torch", "Triton's interpreter multiplies bf16 wrongly; use fp16 or fp32 there")
    return Route("interpreter", "CPU tensors with TRITON_INTERPRET=1")


def _no_kernel_for(dtype: torch.dtype) -> Route:
    return Route("torch", f"the kernels take fp16, bf16 and fp32, not {dtype}")


def _on_gpu(index: int | None) -> Route:
    name = torch.cuda.get_device_name(index)
    if torch.version.hip is not None:
        return Route("triton", f"{name} is a ROCm device")
    capability = torch.cuda.get_device_capability(index)
    if capability < _OLDEST_CUDA:
        return Route("torch", f"{name} has compute capability {capability}, the kernels need 8.0")
    return Route("triton", f"{name} has compute capability {capability}")
