"""A packed W unpacked: by a Triton kernel where the fused kernels run, else by torch, to the same bits."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlora.formats.registry import FORMATS
from fastlora.formula.operands import BaseWeight
from fastlora.routes.backend import BackendError, get_backend
from fastlora.routes.route import KERNEL_DTYPES, route_on


def dequantize(base: BaseWeight) -> Tensor:
    """W [N, K] in `base.dtype`: a new tensor at each call, which the caching allocator of a GPU reuses."""
    if not _kernel_runs(base):
        return FORMATS[base.format].dequantize(base)
    from fastlora.routes import fused_packed

    W = torch.empty(base.N, base.K, device=base.tensors[0].device, dtype=base.dtype)
    fused_packed.unpack(base, W)
    return W


def _kernel_runs(base: BaseWeight) -> bool:
    packed, setting = base.tensors[0], get_backend()
    if setting == "torch" or (packed.is_cpu and setting != "triton") or base.dtype not in KERNEL_DTYPES:
        return False
    try:
        return route_on(packed.device, base.dtype, setting).is_fused
    except BackendError:  # the passes say so; unpacking alone need not
        return False
