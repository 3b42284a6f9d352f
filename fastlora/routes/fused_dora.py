"""Host side of what DoRA launches: the kernels with columns that are scaled, the norms, and dm's sums."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlora.formula.operands import Needs, Operands
from fastlora.routes import fused
from fastlora.routes.launch import on_device, readable
from fastlora.routes.plan import Plan
from fastlora_kernels import magnitudes
from fastlora_kernels.configs import num_blocks
from fastlora_kernels.magnitudes import column_sums_kernel, row_norms_kernel


def forward(
    o: Operands, c: Tensor, keeps_z: bool, plan: Plan | None = None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """y = c z + b, z = x Wᵀ + s p Bᵀ where it is kept, and p = x_d Aᵀ, in one launch.

    Args:
        o: As `fused.forward`'s.
        c: [N] fp32, contiguous.
        keeps_z: Whether z is stored too.
        plan: As in `fused.forward`.

    Returns:
        y [M, N] and z [M, N], or None, in x's dtype, and p [M, r] in fp32.
    """
    y = o.x.new_empty(o.x.shape[0], o.base.N)
    z = torch.empty_like(y) if keeps_z else None
    return y, z, fused._launch_forward(o, plan, y, c=c, z=z)


def backward(
    o: Operands, dy: Tensor, p: Tensor, c: Tensor, needs: Needs, plan: Plan | None = None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx, dA and dB of `fused.backward` for c dy in the place of dy, in one launch.

    c dy is rounded to dy's dtype for dx alone; q = s dy (c B), and c scales dB.

    Args:
        o: As in `fused.backward`.
        dy: As in `fused.backward`.
        p: As `forward` returned it.
        c: [N] fp32, contiguous.
        needs: Which gradients to compute.
        plan: As in `fused.backward`.
    """
    if not any(needs):
        return None, None, None
    return fused._launch_backward(o, dy, p, needs, plan, c)[:3]


def row_norms(W: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
    """‖W + s B A‖ by rows [N] in fp32, in one launch that reads W once.

    Args:
        W: [N, K] in fp16, bf16 or fp32, any strides, not empty.
        A: [r, K].
        B: [N, r], in A's dtype.
        s: The scaling.
    """
    (N, K), r = W.shape, A.shape[0]
    n = torch.empty(N, device=W.device, dtype=torch.float32)
    with on_device(W):
        row_norms_kernel[(num_blocks(N, magnitudes.NORM_ROWS),)](
            W=readable(W),
            A=readable(A),
            B=readable(B),
            n_ptr=n,
            s=s,
            N=N,
            K=K,
            r=r,
            BLOCK_N=magnitudes.NORM_ROWS,
            BLOCK_K=magnitudes.NORM_COLUMNS,
            BLOCK_R=16 if r <= 16 else magnitudes.NORM_RANKS,
            num_warps=magnitudes.WARPS,
        )
    return n


def column_sums(dy: Tensor, z: Tensor) -> Tensor:
    """Σ dy z by columns [N] in fp32: a launch that sums strips of rows, and torch's sum of those.

    Args:
        dy: [M, N] in fp16, bf16 or fp32, any strides, not empty.
        z: [M, N], as dy.
    """
    M, N = dy.shape
    strips = num_blocks(M, magnitudes.SUM_STRIP)
    sums = torch.empty(strips, N, device=dy.device, dtype=torch.float32)
    with on_device(dy):
        column_sums_kernel[(strips * num_blocks(N, magnitudes.SUM_COLUMNS),)](
            dy=readable(dy),
            z=readable(z),
            sums_ptr=sums,
            M=M,
            N=N,
            BLOCK_M=magnitudes.SUM_ROWS,
            BLOCK_N=magnitudes.SUM_COLUMNS,
            STRIP=magnitudes.SUM_STRIP,
            num_warps=magnitudes.WARPS,
        )
    return sums.sum(0)
