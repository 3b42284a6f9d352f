"""Host side of the kernels: describes the operands, allocates the workspace, launches once."""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastlora.backend import BackendError
from fastlora.masks import dropout_constants
from fastlora.plan import Needs, Plan, is_aligned, make_plan
from fastlora_kernels.backward import backward_kernel
from fastlora_kernels.forward import forward_kernel


def forward(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    A: Tensor,
    B: Tensor,
    s: float,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    plan: Plan | None = None,
) -> tuple[Tensor, Tensor]:
    """y = x Wᵀ + s p Bᵀ + b and p = x_d Aᵀ in one launch.

    Args:
        x: [M, K], fp16, bf16 or fp32, any strides, not empty.
        W: [N, K] in x's dtype.
        b: [N] in x's dtype, or None.
        A: [r, K], fp16, bf16 or fp32.
        B: [N, r] in A's dtype.
        s: The scaling.
        dropout: Probability of dropping an entry of x_d, to the nearest 2^-16.
        seed: [1] int64, the seed of the mask; needed where dropout > 0.
        plan: How to launch, instead of what the tile table says; of this very shape and dropout.

    Returns:
        y [M, N] in x's dtype and p [M, r] in fp32.
    """
    (M, K), N, r = x.shape, W.shape[0], A.shape[0]
    threshold, kept_scale = dropout_constants(dropout)
    aligned = is_aligned(x) and is_aligned(W)
    plan = plan or make_plan("forward", x, W, A, Needs(dropout=threshold > 0), aligned=aligned)
    tile = plan.tile
    y = torch.empty(M, N, device=x.device, dtype=x.dtype)
    p = torch.empty(M, r, device=x.device, dtype=torch.float32)
    num_rows = triton.cdiv(M, tile.rows)
    workspace = torch.zeros(1 + num_rows + plan.num_arrivals(), device=x.device, dtype=torch.int32)
    tma = plan.tma and aligned
    tma_store = plan.tma and is_aligned(y)
    with _on_device(x):
        forward_kernel[(plan.num_tasks,)](
            x=TensorDescriptor.from_tensor(x, [tile.rows, tile.inner]) if tma else x,
            W=TensorDescriptor.from_tensor(W, [tile.out, tile.inner]) if tma else W,
            b_ptr=None if b is None else b.contiguous(),
            A_ptr=A,
            B_ptr=B,
            y=TensorDescriptor.from_tensor(y, [tile.rows, plan.store_columns]) if tma_store else y,
            p_ptr=p,
            p_scratch_ptr=_scratch(plan, "p", instead=p),
            y_scratch_ptr=_scratch(plan, "y", instead=p),
            workspace_ptr=workspace,
            seed_ptr=seed,
            threshold=threshold,
            kept_scale=kept_scale,
            s=s,
            M=M,
            N=N,
            K=K,
            r=r,
            num_p_parts=plan.parts["p"],
            num_y_parts=plan.parts["y"],
            stride_xm=x.stride(0),
            stride_xk=x.stride(1),
            stride_wn=W.stride(0),
            stride_wk=W.stride(1),
            stride_ar=A.stride(0),
            stride_ak=A.stride(1),
            stride_bn=B.stride(0),
            stride_br=B.stride(1),
            BLOCK_M=tile.rows,
            BLOCK_N=tile.out,
            BLOCK_K=tile.inner,
            BLOCK_R=plan.block_r,
            GROUP=tile.group,
            HAS_BIAS=b is not None,
            DROPOUT=threshold > 0,
            CUT=plan.parts["y"] > 1,
            TMA=tma,
            TMA_STORE=tma_store,
            SPLIT=plan.split,
            PRECISION=plan.precision,
            **plan.options,
        )
    return y, p


def backward(
    dy: Tensor,
    x: Tensor,
    W: Tensor,
    A: Tensor,
    B: Tensor,
    p: Tensor,
    s: float,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    plan: Plan | None = None,
    *,
    need_dx: bool = True,
    need_dA: bool = True,
    need_dB: bool = True,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx = dy W + D * (q A), dA = qᵀ x_d and dB = s dyᵀ p with q = s dy B, those needed, in one launch.

    Args:
        dy: [M, N] in x's dtype, any strides, not empty.
        x: [M, K].
        W: [N, K].
        A: [r, K].
        B: [N, r].
        p: [M, r] as `forward` returned it.
        s: The scaling.
        dropout: As in `forward`.
        seed: As in `forward`; it gives the same mask D again.
        plan: As in `forward`.
        need_dx: Whether x needs its gradient.
        need_dA: Whether A needs its gradient.
        need_dB: Whether B needs its gradient.

    Returns:
        (dx [M, K] in x's dtype, dA [r, K] and dB [N, r] in A's dtype), None where not needed.
    """
    if not (need_dx or need_dA or need_dB):
        return None, None, None
    (M, K), N, r = x.shape, W.shape[0], A.shape[0]
    threshold, kept_scale = dropout_constants(dropout)
    aligned = is_aligned(dy) and is_aligned(x) and is_aligned(W)
    needs = Needs(threshold > 0, need_dx, need_dA, need_dB)
    plan = plan or make_plan("backward", x, W, A, needs, aligned=aligned)
    tile = plan.tile
    dx = torch.empty(M, K, device=x.device, dtype=x.dtype) if need_dx else None
    dA = torch.empty(r, K, device=x.device, dtype=A.dtype) if need_dA else None
    dB = torch.empty(N, r, device=x.device, dtype=B.dtype) if need_dB else None
    q = torch.empty(M, r, device=x.device, dtype=torch.float32) if need_dx or need_dA else p
    num_rows = triton.cdiv(M, tile.rows)
    workspace = torch.zeros(2 + num_rows + plan.num_arrivals(), device=x.device, dtype=torch.int32)
    tma = plan.tma and aligned
    tma_store = plan.tma and dx is not None and is_aligned(dx)
    with _on_device(x):
        backward_kernel[(plan.num_tasks,)](
            dy=TensorDescriptor.from_tensor(dy, [tile.rows, tile.inner]) if tma else dy,
            x=TensorDescriptor.from_tensor(x, [tile.rows, tile.inner]) if tma else x,
            W=TensorDescriptor.from_tensor(W, [tile.inner, tile.out]) if tma else W,
            A_ptr=A,
            B_ptr=B,
            p_ptr=p,
            q_ptr=q,
            dx=TensorDescriptor.from_tensor(dx, [tile.rows, plan.store_columns]) if tma_store else dx,
            dA_ptr=dA,
            dB_ptr=dB,
            q_scratch_ptr=_scratch(plan, "q", instead=p),
            dx_scratch_ptr=_scratch(plan, "dx", instead=p),
            gradient_scratch_ptr=_scratch(plan, "dB", "dA", instead=p),
            workspace_ptr=workspace,
            seed_ptr=seed,
            threshold=threshold,
            kept_scale=kept_scale,
            s=s,
            M=M,
            N=N,
            K=K,
            r=r,
            num_q_parts=plan.parts["q"],
            num_dx_parts=plan.parts["dx"],
            num_gradient_parts=plan.parts["dA"],
            stride_dym=dy.stride(0),
            stride_dyn=dy.stride(1),
            stride_xm=x.stride(0),
            stride_xk=x.stride(1),
            stride_wn=W.stride(0),
            stride_wk=W.stride(1),
            stride_ar=A.stride(0),
            stride_ak=A.stride(1),
            stride_bn=B.stride(0),
            stride_br=B.stride(1),
            BLOCK_M=tile.rows,
            BLOCK_N=tile.inner,
            BLOCK_K=tile.out,
            BLOCK_R=plan.block_r,
            GROUP=tile.group,
            NEED_DX=need_dx,
            NEED_DA=need_dA,
            NEED_DB=need_dB,
            DROPOUT=threshold > 0,
            CUT=plan.parts["dx"] > 1,
            TMA=tma,
            TMA_STORE=tma_store,
            SPLIT=plan.split,
            PRECISION=plan.precision,
            **plan.options,
        )
    return dx, dA, dB


def _scratch(plan: Plan, *names: str, instead: Tensor) -> Tensor:
    """Memory for the parts of these tiles; `instead`, which is then not touched, where they are whole."""
    size = plan.scratch_size(*names)
    return torch.empty(size, device=instead.device, dtype=torch.float32) if size else instead


def _on_device(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device; make it x's.

    Raises:
        BackendError: If the interpreter is asked for after Triton compiled its own functions.
    """
    if x.device.type == "cpu" and isinstance(tl.cdiv, triton.runtime.JITFunction):
        raise BackendError("TRITON_INTERPRET=1 must be set before triton is first imported")
    if x.device.type != "cuda" or x.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(x.device)
