"""Host side of the kernels for rows that choose their operands: one launch a pass, and one for its tiles."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastlora.formula.masks import dropout_constants
from fastlora.formula.operands import EVERYTHING, Needs
from fastlora.routes.architecture import architecture_of, multiprocessors
from fastlora.routes.decide import is_aligned
from fastlora.routes.launch import on_device, readable, scratch_for
from fastlora.routes.plan import Plan
from fastlora.routes.plan_runs import most_tiles, run_plan, tile_for
from fastlora.routes.run_tables import Tables, adapter_tables, tables_of
from fastlora.routes.runs_call import RunsCall
from fastlora_kernels.segment_backward import segment_backward_kernel
from fastlora_kernels.segment_forward import segment_forward_kernel
from fastlora_kernels.segment_plan import segment_plan_kernel


class Launch(NamedTuple):
    """How a pass of a call is launched: its plan and its tables."""

    plan: Plan
    tables: Tables


def forward(o: RunsCall, launch: Launch | None = None) -> tuple[Tensor, Tensor]:
    """y = x W_eᵀ + s p B_eᵀ + b_e and p = x_d A_eᵀ, in one launch.

    Sorted rows behind the last run get 0. Rows without an adapter get W alone.

    Args:
        o: Operands of fp16, bf16 or fp32, not empty; dropout is rounded to a multiple of 2^-16.
        launch: As `launch_of` makes it for this very call; None means the one from the tile table.

    Returns:
        y [S, N] in x's dtype and p [S, r] in fp32, as the kernels lay it out.
    """
    x, N = o.x, o.W.shape[1]
    plan, tables = launch or launch_of("forward", o)
    tile = plan.tile
    y = torch.empty(x.shape[0], N, device=x.device, dtype=x.dtype)
    p = torch.empty(x.shape[0], o.r, device=x.device, dtype=torch.float32)
    with on_device(x):
        segment_forward_kernel[(plan.num_tasks,)](
            x=readable(x, (tile.block_m, tile.block_k), plan.tma),
            W=_weights(o.W, (tile.block_n, tile.block_k), plan.tma),
            b_ptr=None if o.b is None else o.b.contiguous(),
            y_ptr=y,
            p_ptr=p,
            scratch_ptrs=(scratch_for(plan, x, "p", otherwise=p), scratch_for(plan, x, "y")),
            split_p=plan.split_k["p"],
            split_y=plan.split_k["y"],
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k,
            **_shared(o, plan, tables),
        )
    return y, p


def backward(
    o: RunsCall,
    dy: Tensor,
    p: Tensor,
    needs: Needs,
    weights: Tensor | None = None,
    launch: Launch | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx = dy W_e + D * (q A_e), dA_e = (w q)ᵀ x_d and dB_e = s dyᵀ (w p), with q = s dy B_e, in one launch.

    Args:
        o: The operands of `forward`; their seed gives the same mask D again.
        dy: [S, N] in x's dtype, any strides.
        p: As `forward` returned it.
        needs: Which gradients to compute.
        weights: [S] fp32, the factors w of the rows; None for 1.
        launch: As in `forward`.

    Returns:
        (dx [S, K] in x's dtype, dA and dB in the shape and dtype of o.A and o.B), each None if not needed.
    """
    if not any(needs):
        return None, None, None
    x, K = o.x, o.W.shape[2]
    plan, tables = launch or launch_of("backward", o, needs, dy)
    tile = plan.tile
    dx = torch.empty(x.shape[0], K, device=x.device, dtype=x.dtype) if needs.dx else None
    dA = torch.empty_like(o.A) if needs.dA else None
    dB = torch.empty_like(o.B) if needs.dB else None
    q = torch.empty_like(p) if needs.dx or needs.dA else p
    with on_device(x):
        segment_backward_kernel[(plan.num_tasks,)](
            dy=readable(dy, (tile.block_m, tile.block_n), plan.tma),
            dy_rows=readable(dy),
            x=readable(x),
            W=_weights(o.W, (tile.block_n, tile.block_k), plan.tma),
            p_ptr=p,
            q_ptr=q,
            dx_ptr=dx,
            dA_ptr=dA,
            dB_ptr=dB,
            weights_ptr=weights,
            runs_ptr=tables.runs,
            firsts_ptr=tables.firsts,
            scratch_ptrs=(scratch_for(plan, x, "q", otherwise=p), scratch_for(plan, x, "dx")),
            split_q=plan.split_k["q"],
            split_dx=plan.split_k["dx"],
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k,
            BLOCK_K_DA=tile.block_k_dA,
            **_shared(o, plan, tables),
        )
    return dx, dA, dB


def launch_of(
    direction: str,
    o: RunsCall,
    needs: Needs = EVERYTHING,
    dy: Tensor | None = None,
    *,
    architecture: str | None = None,
    tile: Any = None,
    split_k: tuple[int, int] | None = None,
) -> Launch:
    """The plan and the tables of a pass.

    Args:
        direction: "forward" or "backward".
        o: The operands.
        needs: Which gradients a backward pass computes.
        dy: Of a backward pass.
        architecture: The tile table's name; None means this device's.
        tile: A tile to use; None means the table's.
        split_k: As in `run_plan`.
    """
    x, (E, N, _) = o.x, o.W.shape
    count = multiprocessors(x.device) if architecture is None else None
    architecture = architecture or architecture_of(x.device)
    sorted_runs = E + 1 if isinstance(o.runs, Tensor) else 1
    aligned = is_aligned(x) and _is_one_matrix(o.W) and (dy is None or is_aligned(dy))
    found = tile_for(direction, architecture, o.problem, sorted_runs, aligned=aligned)
    found = (found[0], tile or found[1], found[2])
    # A tile of dx sums over W's rows, so a block of them must not reach into the next W.
    if direction == "backward" and found[2] and E > 1 and N % found[1].block_n:
        found = tile_for(direction, architecture, o.problem, sorted_runs, aligned=False)
        found = (found[0], tile or found[1], False)
    tables = _tables(o, found[1].block_m)
    counts = (tables.num_tiles, tables.num_segments, tables.num_operands)
    plan = run_plan(direction, architecture, o.problem, *counts, needs, found, split_k, multiprocessors=count)
    return Launch(plan, tables)


def _tables(o: RunsCall, block_m: int) -> Tables:
    S, E = o.x.shape[0], o.W.shape[0]
    if not isinstance(o.runs, Tensor):
        adapters = 0 if o.adapters is None else len(o.adapters.ranks)
        return tables_of(o.runs, S, block_m, adapters, o.x.device)
    tiles = most_tiles(S, E + 1, block_m)
    made = torch.empty(tiles, 5, device=o.x.device, dtype=torch.int32)
    with on_device(o.x):
        segment_plan_kernel[(E + 2,)](
            offsets_ptr=o.runs,
            tiles_ptr=made,
            S=S,
            num_tiles=tiles,
            num_operands=E,
            BLOCK_M=block_m,
            OPERANDS=triton.next_power_of_2(E + 2),
        )
    return Tables(made, None, o.runs, None, tiles, tiles, E)


def _shared(o: RunsCall, plan: Plan, tables: Tables) -> dict[str, Any]:
    """The arguments that both kernels have."""
    (_, N, K), device = o.W.shape, o.x.device
    threshold, kept_scale = dropout_constants(o.dropout)
    ranks, scales = (None, None) if o.adapters is None else adapter_tables(o.adapters, device)
    return {
        "A_ptr": o.A,
        "B_ptr": o.B,
        "tiles_ptr": tables.tiles,
        "segments_ptr": tables.segments,
        "ranks_ptr": ranks,
        "scales_ptr": scales,
        "workspace_ptr": torch.zeros(plan.workspace, device=device, dtype=torch.int32),
        "seed_ptr": o.seed,
        "threshold": threshold,
        "kept_scale": kept_scale,
        "s": o.s,
        "N": N,
        "K": K,
        "r": o.r,
        "num_tiles": tables.num_tiles,
        "num_segments": tables.num_segments,
        "num_operands": tables.num_operands,
        "BLOCK_R": plan.block_r,
        "GROUP": plan.tile.group,
        "PRECISION": plan.precision,
        **plan.options,
    }


def _is_one_matrix(W: Tensor) -> bool:
    """Whether TMA can address W [E, N, K] as one matrix [E * N, K]."""
    return is_aligned(W[0]) and (W.shape[0] == 1 or W.stride(0) == W.shape[1] * W.stride(1))


def _weights(W: Tensor, block: tuple[int, int], tma: bool) -> Any:
    """W [E, N, K] for a kernel to read: a descriptor of [E * N, K], or (pointer, strides)."""
    return TensorDescriptor.from_tensor(W.flatten(0, 1), list(block)) if tma else (W, *W.stride())
