"""Host side of the persistent kernels in plain Triton (`fastlora_kernels.flattened`): one launch a pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlora.formula.operands import EVERYTHING, Needs, Operands
from fastlora.routes import fused as plain
from fastlora.routes.architecture import multiprocessors
from fastlora.routes.decide import is_aligned
from fastlora.routes.launch import backward_outputs, on_device, readable, scales, writable
from fastlora_kernels.configs import launch_options, num_blocks
from fastlora_kernels.flattened import flattened_backward_kernel, flattened_forward_kernel
from fastlora_kernels.flattened_blocks import TILES, block_of_ranks, counters, rows_a_ticket
from fastlora_kernels.tables import Tile


def forward(o: Operands, tile: Tile | None = None, programs: int | None = None) -> tuple[Tensor, Tensor]:
    """y = x Wᵀ + s p Bᵀ + b [M, N] in x's dtype and p = x Aᵀ [M, r] in fp32.

    Args:
        o: Operands that `persistent.refusal` lets through.
        tile: None means the one that the compile check holds to its rules.
        programs: Of the launch; None means one for each multiprocessor.
    """
    x, (W,) = o.x, o.base.tensors
    M, N, r = x.shape[0], o.base.N, o.A.shape[0]
    tile, programs = tile or TILES["forward"], programs or multiprocessors(x.device) or 1
    y = x.new_empty(M, N)
    p = torch.empty(M, r, device=x.device, dtype=torch.float32)
    s, power, inverse = scales(float(o.s), x.dtype)
    with on_device(x):
        flattened_forward_kernel[(programs,)](
            x=readable(x, (tile.block_m, tile.block_k), True),
            W=readable(W, (tile.block_n, tile.block_k), True),
            b_ptr=None if o.b is None else o.b.contiguous(),
            y=writable(y, (tile.block_m, tile.block_n), True),
            p_ptr=p,
            s=s,
            power=power,
            inverse=inverse,
            **_arguments(o, tile, num_blocks(N, tile.block_n), programs),
        )
    return y, p


def backward_of_all(
    o: Operands, dy: Tensor, p: Tensor, tile: Tile | None = None, programs: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """dx = dy W + q A, dA = qᵀ x and dB = s dyᵀ p, with q = s dy B.

    Args:
        o: As in `forward`.
        dy: [M, N] in x's dtype, rows on 16 bytes.
        p: [M, r] as `forward` returned it.
        tile: As in `forward`.
        programs: As in `forward`.

    Returns:
        dx [M, K] in x's dtype, dA [r, K] and dB [N, r] in A's dtype.
    """
    x, (W,), K = o.x, o.base.tensors, o.base.K
    tile, programs = tile or TILES["backward"], programs or multiprocessors(x.device) or 1
    dx, dA, dB, q = backward_outputs(o, p, EVERYTHING)
    with on_device(x):
        flattened_backward_kernel[(programs,)](
            dy=readable(dy, (tile.block_m, tile.block_n), True),
            x=readable(x, (tile.block_m, tile.block_n), True),
            W=readable(W, (tile.block_n, tile.block_k), True),
            p_ptr=p,
            q_ptr=q,
            dx=writable(dx, (tile.block_m, tile.block_k), True),
            dA_ptr=dA,
            dB_ptr=dB,
            s=float(o.s),
            **_arguments(o, tile, num_blocks(K, tile.block_k), programs),
        )
    return dx, dA, dB


def backward(
    o: Operands, dy: Tensor, p: Tensor, needs: Needs
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As `backward_of_all`; by the plain kernel where a gradient is not needed, or TMA cannot address dy."""
    if needs == EVERYTHING and is_aligned(dy):
        return backward_of_all(o, dy, p)
    return plain.backward(o, dy, p, needs)


def _arguments(o: Operands, tile: Tile, columns: int, programs: int) -> dict[str, Any]:
    """The arguments that both passes have; `columns` are blocks of columns of y or dx."""
    (M, K), r = o.x.shape, o.A.shape[0]
    rows = num_blocks(M, tile.block_m)
    together = rows_a_ticket(rows, rows * columns, programs)
    return {
        "A": readable(o.A),
        "B": readable(o.B),
        "workspace_ptr": torch.zeros(counters(rows), device=o.x.device, dtype=torch.int32),
        "M": M,
        "N": o.base.N,
        "K": K,
        "r": r,
        "num_tickets": num_blocks(rows, together),
        "rows_a_ticket": together,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "BLOCK_R": block_of_ranks(r),
        "GROUP": tile.group,
        **launch_options(tile, "cuda"),
    }
