"""Host side of the kernels: passes the operands, allocates outputs and scratch memory, launches once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from fastlora.formula.masks import dropout_constants
from fastlora.formula.operands import EVERYTHING, Needs, Operands
from fastlora.routes.architecture import architecture_of, fp32_precision, multiprocessors
from fastlora.routes.decide import is_aligned, problem_of
from fastlora.routes.launch import backward_outputs, on_device, readable, scratch_for, writable
from fastlora.routes.plan import Plan, p_alone_plan, plan_for
from fastlora.routes.relaunch import launch, on_16_bytes
from fastlora_kernels import masked_update as masked
from fastlora_kernels.backward import backward_kernel
from fastlora_kernels.configs import num_blocks
from fastlora_kernels.forward import forward_kernel
from fastlora_kernels.masked_update import masked_update_kernel


def forward(o: Operands, plan: Plan | None = None) -> tuple[Tensor, Tensor]:
    """y = x Wᵀ + s p Bᵀ + b and p = x_d Aᵀ in one launch.

    Args:
        o: Operands of fp16, bf16 or fp32, any strides, not empty; dropout is rounded to a multiple of 2^-16.
        plan: A launch plan for these very shapes and dropout; None means the one from the tile table.

    Returns:
        y [M, N] in x's dtype and p [M, r] in fp32.
    """
    y = o.x.new_empty(o.x.shape[0], o.base.N)
    return y, _launch_forward(o, plan, y)


def project(o: Operands, y: Tensor) -> Tensor:
    """p = x_d Aᵀ [M, r] in fp32 alone: those programs of the forward pass that draw the first tickets.

    Args:
        o: As in `forward`.
        y: [M, N] in x's dtype, which is not written.
    """
    (W,) = o.base.tensors
    aligned = is_aligned(o.x) and is_aligned(W)
    gpu, count = architecture_of(o.x.device), multiprocessors(o.x.device)
    plan = p_alone_plan(gpu, problem_of(o), dropout=o.dropout, aligned=aligned, multiprocessors=count)
    return _launch_forward(o, plan, y, "p")


def _launch_forward(
    o: Operands,
    plan: Plan | None,
    y: Tensor,
    only: str | None = None,
    *,
    c: Tensor | None = None,
    z: Tensor | None = None,
) -> Tensor:
    """Launch the programs, or `only` those of one kind of tile, which must come first; return p.

    c and z are DoRA's, as in `fused_dora.forward`.
    """
    x, (W,) = o.x, o.base.tensors
    aligned = is_aligned(x) and is_aligned(W)
    plan = plan or _plan("forward", o, EVERYTHING, aligned)
    tile = plan.tile
    p = torch.empty(x.shape[0], o.A.shape[0], device=x.device, dtype=torch.float32)
    tma, stored = plan.tma and aligned, (tile.block_m, plan.store_columns)
    arguments = {
        "x": readable(x, (tile.block_m, tile.block_k), tma),
        "W": readable(W, (tile.block_n, tile.block_k), tma),
        "c_ptr": c,
        "y": writable(y, stored, plan.tma),
        "z": None if z is None else writable(z, stored, plan.tma),
        "GROUP": tile.group,
        **forward_arguments(o, plan, p),
    }
    key = (*_key(o, plan, tma), on_16_bytes(c, arguments["b_ptr"]), z is None)
    with on_device(x):
        programs = plan.tasks[only] if only else plan.num_tasks
        launch(forward_kernel, programs, key, arguments, plan.options)
    return p


def backward(
    o: Operands,
    dy: Tensor,
    p: Tensor,
    needs: Needs,
    plan: Plan | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx = dy W + D * (q A), dA = qᵀ x_d and dB = s dyᵀ p, with q = s dy B, in one launch.

    Args:
        o: The operands of `forward`; their seed gives the same mask D again.
        dy: [M, N] in x's dtype, any strides, not empty.
        p: [M, r] as `forward` returned it.
        needs: Which gradients to compute.
        plan: As in `forward`.

    Returns:
        (dx [M, K] in x's dtype, dA [r, K] and dB [N, r] in A's dtype), each None if not needed.
    """
    if not any(needs):
        return None, None, None
    return _launch_backward(o, dy, p, needs, plan)[:3]


def gradients(
    o: Operands, dy: Tensor, p: Tensor, needs: Needs
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """dA and dB, None if not needed, and q = s dy B [M, r] in fp32, in one launch.

    Args:
        o: As in `backward`.
        dy: As in `backward`.
        p: As in `backward`.
        needs: Which gradients to compute; dx among them means that q is.
    """
    # q is computed for dx or dA. Where dA is not needed, it costs little.
    _, dA, dB, q = _launch_backward(o, dy, p, Needs(False, needs.dx or needs.dA, needs.dB), None)
    return dA if needs.dA else None, dB, q


def masked_update(o: Operands, q: Tensor) -> Tensor:
    """D * (q A) [M, K] in x's dtype, D the mask that `forward` drew and its scale, in one launch."""
    x, A = o.x, o.A
    M, K = x.shape
    threshold, kept_scale = dropout_constants(o.dropout)
    dx = torch.empty(M, K, device=x.device, dtype=x.dtype)
    blocks = num_blocks(M, masked.BLOCK_M) * num_blocks(K, masked.BLOCK_K)
    with on_device(x):
        masked_update_kernel[(blocks,)](
            q_ptr=q,
            A=readable(A),
            dx_ptr=dx,
            seed_ptr=o.seed,
            threshold=threshold,
            kept_scale=kept_scale,
            M=M,
            K=K,
            r=A.shape[0],
            BLOCK_M=masked.BLOCK_M,
            BLOCK_K=masked.BLOCK_K,
            PRECISION=fp32_precision(),
            num_warps=masked.WARPS,
        )
    return dx


def _launch_backward(
    o: Operands, dy: Tensor, p: Tensor, needs: Needs, plan: Plan | None, c: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor]:
    """dx, dA and dB, None if not needed, and q; c is DoRA's, as in `fused_dora.backward`."""
    x, (W,) = o.x, o.base.tensors
    aligned = is_aligned(dy) and is_aligned(x) and is_aligned(W)
    plan = plan or _plan("backward", o, needs, aligned)
    tile = plan.tile
    dx, dA, dB, q = backward_outputs(o, p, needs)
    tma = plan.tma and aligned
    arguments = {
        "dy": readable(dy, (tile.block_m, tile.block_n), tma),
        "x": readable(x, (tile.block_m, tile.block_k_dA), tma),
        "W": readable(W, (tile.block_n, tile.block_k), tma),
        "c_ptr": c,
        "q_ptr": q,
        "dx": None if dx is None else writable(dx, (tile.block_m, plan.store_columns), plan.tma),
        "dA_ptr": dA,
        "dB_ptr": dB,
        "scratch_ptrs": (
            scratch_for(plan, x, "q", otherwise=p),
            scratch_for(plan, x, "dx"),
            scratch_for(plan, x, "dB", "dA", otherwise=p),
        ),
        "split_q": plan.split_k["q"],
        "split_dx": plan.split_k["dx"],
        "split_gradients": plan.split_k["dA"],
        "BLOCK_K_DA": tile.block_k_dA,
        "GROUP": tile.group,
        **_shared(o, plan, p),
    }
    key = (*_key(o, plan, tma), needs, dy.stride(), on_16_bytes(c, dy, p))
    with on_device(x):
        launch(backward_kernel, plan.num_tasks, key, arguments, plan.options)
    return dx, dA, dB, q


def _key(o: Operands, plan: Plan, tma: bool) -> tuple[Hashable, ...]:
    """What decides on the code of a pass, which M does not; see `relaunch.launch`."""
    x, (W,), A, B = o.x, o.base.tensors, o.A, o.B
    is_split = [count > 1 for count in plan.split_k.values()]
    planned = (plan.tile, plan.block_r, plan.store_columns, plan.tma, plan.precision, *is_split)
    strides = (x.stride(), W.stride(), A.stride(), B.stride())
    pointers = on_16_bytes(x, W, A, B, o.seed if dropout_constants(o.dropout)[0] else None)
    return (x.device, problem_of(o)[1:], tma, planned, strides, pointers)


def forward_arguments(o: Operands, plan: Plan, p: Tensor) -> dict[str, Any]:
    """The arguments of a forward pass that do not depend on how W lies."""
    return {
        "b_ptr": None if o.b is None else o.b.contiguous(),
        "scratch_ptrs": (scratch_for(plan, o.x, "p", otherwise=p), scratch_for(plan, o.x, "y")),
        "split_p": plan.split_k["p"],
        "split_y": plan.split_k["y"],
        **_shared(o, plan, p),
    }


def _shared(o: Operands, plan: Plan, p: Tensor) -> dict[str, Any]:
    """The arguments that both passes have."""
    threshold, kept_scale = dropout_constants(o.dropout)
    return {
        "A": readable(o.A),
        "B": readable(o.B),
        "p_ptr": p,
        "workspace_ptr": torch.zeros(plan.workspace, device=o.x.device, dtype=torch.int32),
        "seed_ptr": o.seed if threshold else None,
        "threshold": threshold,
        "kept_scale": kept_scale,
        "s": float(o.s),
        "M": o.x.shape[0],
        "N": o.base.N,
        "K": o.base.K,
        "r": o.A.shape[0],
        "BLOCK_M": plan.tile.block_m,
        "BLOCK_N": plan.tile.block_n,
        "BLOCK_K": plan.tile.block_k,
        "BLOCK_R": plan.block_r,
        "PRECISION": plan.precision,
    }


def _plan(direction: str, o: Operands, needs: Needs, aligned: bool) -> Plan:
    device = o.x.device
    return plan_for(
        direction,
        architecture_of(device),
        problem_of(o),
        needs,
        dropout=o.dropout,
        aligned=aligned,
        multiprocessors=multiprocessors(device),
    )
