"""Host side of the kernels: describes the operands, allocates the workspace, launches once."""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastlora.formula.masks import dropout_constants
from fastlora.formula.operands import EVERYTHING, Needs, Operands
from fastlora.routes.backend import BackendError
from fastlora.routes.decide import is_aligned, problem_of
from fastlora.routes.plan import Plan, architecture_of, plan_for
from fastlora_kernels.backward import backward_kernel
from fastlora_kernels.forward import forward_kernel


def forward(o: Operands, plan: Plan | None = None) -> tuple[Tensor, Tensor]:
    """y = x Wᵀ + s p Bᵀ + b and p = x_d Aᵀ in one launch.

    Args:
        o: Of fp16, bf16 or fp32, any strides, not empty; the mask's probability is rounded to 2^-16.
        plan: How to launch, instead of what the tile table says; of this very shape and dropout.

    Returns:
        y [M, N] in x's dtype and p [M, r] in fp32.
    """
    x, (W,), b, A, B, s, seed = o.x, o.base.tensors, o.b, o.A, o.B, o.s, o.seed
    M, K, N, r = x.shape[0], o.base.K, o.base.N, A.shape[0]
    threshold, kept_scale = dropout_constants(o.dropout)
    aligned = is_aligned(x) and is_aligned(W)
    plan = plan or _plan("forward", o, EVERYTHING, aligned)
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
    o: Operands,
    dy: Tensor,
    p: Tensor,
    needs: Needs,
    plan: Plan | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx = dy W + D * (q A), dA = qᵀ x_d and dB = s dyᵀ p with q = s dy B, those needed, in one launch.

    Args:
        o: As `forward` was given them; the seed gives the same mask D again.
        dy: [M, N] in x's dtype, any strides, not empty.
        p: [M, r] as `forward` returned it.
        needs: What is computed.
        plan: As in `forward`.

    Returns:
        (dx [M, K] in x's dtype, dA [r, K] and dB [N, r] in A's dtype), None where not needed.
    """
    if not any(needs):
        return None, None, None
    x, (W,), A, B, s, seed = o.x, o.base.tensors, o.A, o.B, o.s, o.seed
    M, K, N, r = x.shape[0], o.base.K, o.base.N, A.shape[0]
    threshold, kept_scale = dropout_constants(o.dropout)
    aligned = is_aligned(dy) and is_aligned(x) and is_aligned(W)
    plan = plan or _plan("backward", o, needs, aligned)
    tile = plan.tile
    dx = torch.empty(M, K, device=x.device, dtype=x.dtype) if needs.dx else None
    dA = torch.empty(r, K, device=x.device, dtype=A.dtype) if needs.dA else None
    dB = torch.empty(N, r, device=x.device, dtype=B.dtype) if needs.dB else None
    q = torch.empty(M, r, device=x.device, dtype=torch.float32) if needs.dx or needs.dA else p
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
            NEED_DX=needs.dx,
            NEED_DA=needs.dA,
            NEED_DB=needs.dB,
            DROPOUT=threshold > 0,
            CUT=plan.parts["dx"] > 1,
            TMA=tma,
            TMA_STORE=tma_store,
            SPLIT=plan.split,
            PRECISION=plan.precision,
            **plan.options,
        )
    return dx, dA, dB


def _plan(direction: str, o: Operands, needs: Needs, aligned: bool) -> Plan:
    architecture = architecture_of(o.x.device)
    return plan_for(direction, architecture, problem_of(o), needs, dropout=o.dropout, aligned=aligned)


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
