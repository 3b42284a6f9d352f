"""Explains a layer's passes on a shape: code path, tiles, FLOPs and bytes, and the least time they imply."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastlora.accounting.explain_experts import ExpertsExplanation, explain_experts
from fastlora.accounting.explanation import Explanation, PassExplanation
from fastlora.accounting.gpus import GPUS, find_gpu, rate_of
from fastlora.arguments import check_choice, check_rank, check_size, shown
from fastlora.experts.layer import FusedLoRAExperts
from fastlora.formula.cost import Cost, Problem
from fastlora.layer.base_weights import like_weight
from fastlora.layer.fused_lora_embedding import FusedLoRAEmbedding
from fastlora.layer.lora_conv import LoRAConv
from fastlora.layer.packed_merging import bytes_of
from fastlora.layer.quantized import QuantizedLoRALinear
from fastlora.model.find_layers import LORA_LAYERS, LoRALayer
from fastlora.routes.decide import decide_for, is_aligned
from fastlora.routes.few_rows import takes
from fastlora.routes.route import route_on


def explain(
    x_shape: Sequence[int], layer: LoRALayer, *, gpu: str | None = None
) -> Explanation | ExpertsExplanation:
    """Explain a layer's passes on an x of this shape, contiguous and in the weight's dtype.

    It shows what the passes would do now: by the current backend setting, and with the layer's dropout if it
    is in training mode. The backward pass is assumed to need all three gradients.

    Args:
        x_shape: [..., K].
        layer: Its dtypes, device, rank, dropout and mode matter, and its weight's memory layout. For a layer
            of experts the floor of a mixture is told: x has a row for each token, or for each of its experts
            in the last projection.
        gpu: A GPU to explain for instead of the layer's device, such as "H200" (see `gpus.GPUS`).

    Raises:
        TypeError: If `layer` is not a LoRA layer, or one on an embedding or a convolution.
        ValueError: If the last dimension is not the layer's, the GPU is unknown, or the layer has no part in
            the adapter in use.
        BackendError: If the backend is set to "triton" and cannot run on the layer's device.
    """
    if not isinstance(layer, LORA_LAYERS):
        raise TypeError(f"layer must be a LoRA layer; got {type(layer).__name__}")
    if isinstance(layer, (FusedLoRAEmbedding, LoRAConv)):
        raise TypeError("layer must be linear; embeddings and convolutions are computed by torch")
    if layer.active is None:
        raise ValueError("layer must have a part in the adapter in use; it has none and is one plain product")
    M = math.prod(_rows_of(x_shape, layer.in_features))
    if isinstance(layer, FusedLoRAExperts):
        named = gpu is not None
        if gpu is not None:
            check_choice("gpu", gpu, GPUS)
        return explain_experts(M, layer, gpu or _gpu_of(layer.weight.device), named=named)
    W = like_weight(layer).detach()
    if isinstance(layer, QuantizedLoRALinear):
        dtype = layer.format.compute_dtype(layer, layer.base.dtype, None)
        W = torch.empty(layer.out_features, layer.in_features, dtype=dtype, device="meta")
    base = layer.format.name if isinstance(layer, QuantizedLoRALinear) else "plain"
    problem = Problem(M, layer.in_features, layer.out_features, layer.r, W.dtype, layer.lora_A.dtype, base)
    dropout = layer.active.dropout_now(layer.training)
    dora, device = bool(layer.dora), layer.weight.device
    explained = explain_problem(problem, device=device, gpu=gpu, dropout=dropout, W=W, alone=not dora)
    explained = replace(explained, dora=dora)
    if isinstance(layer, QuantizedLoRALinear):
        return _with_unpacking(explained, layer, dropout)
    return explained


def _with_unpacking(plain: Explanation, layer: QuantizedLoRALinear, dropout: float) -> Explanation:
    """The explanation of the same call over a packed W.

    Each pass reads it and writes W besides, but for a forward pass that reads it in W's place.
    """
    problem, packed = plain.problem, bytes_of(layer.base)
    whole = problem.dtype.itemsize * problem.N * problem.K
    base = layer.format.base_of(layer, problem.dtype)
    passes = []
    for one in plain.passes:
        plan, unpacks = one.plan, True
        inside = one.name == "forward" and not one.path.unpacks_first
        if inside and plan is not None and takes(base, problem.M):
            from fastlora.routes.architecture import architecture_of
            from fastlora.routes.plan import few_rows_plan

            gpu, device = plain.gpu, layer.weight.device
            architecture = architecture_of(device) if gpu is None else GPUS[gpu].architecture
            count = _multiprocessors_of(device, gpu)
            plan, unpacks = few_rows_plan(architecture, problem, dropout, count), False
        cost = one.cost._replace(moved=one.cost.moved + packed + (whole if unpacks else -whole))
        floor = None if plain.gpu is None else _floor(cost, problem.dtype, plain.gpu)
        passes.append(replace(one, plan=plan, cost=cost, floor_us=floor, unpacks=unpacks))
    return replace(plain, passes=tuple(passes), base=layer.format.about, packed_bytes=packed)


def _rows_of(x_shape: object, K: int) -> tuple[int, ...]:
    """The sizes before the last one, which is K."""
    wanted = f"x_shape must be [..., K={K}]; got {shown(x_shape)}"
    if not isinstance(x_shape, Sequence) or isinstance(x_shape, (str, bytes)):
        raise TypeError(wanted)
    sizes = tuple(check_size(f"x_shape[{at}]", size, least=1) for at, size in enumerate(x_shape))
    if not sizes or sizes[-1] != K:
        raise ValueError(wanted)
    return sizes[:-1]


def explain_problem(
    problem: Problem,
    *,
    device: torch.device | None = None,
    gpu: str | None = None,
    dropout: float = 0.0,
    W: Tensor | None = None,
    alone: bool = True,
) -> Explanation:
    """As `explain`, for a shape and dtypes instead of a layer.

    Args:
        problem: Shape and dtypes; every size at least 1.
        device: The device to explain for; None means the first GPU, or the CPU.
        gpu: As in `explain`.
        dropout: Probability of dropping an entry of x on the low-rank branch.
        W: [N, K], for its memory layout; None means contiguous.
        alone: As in `decide`.

    Raises:
        ValueError: If a size is below 1, or the GPU is unknown.
        BackendError: As in `explain`.
    """
    _check_problem(problem)
    if device is None:
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if gpu is not None:
        check_choice("gpu", gpu, GPUS)
    named = gpu is not None
    aligned = W is None or is_aligned(W)
    x, dy = (torch.empty(problem.M, C, dtype=problem.dtype, device="meta") for C in (problem.K, problem.N))
    architecture = "" if gpu is None else GPUS[gpu].architecture
    tma = aligned and is_aligned(x)
    decision = decide_for(
        problem, device, dropout=dropout, aligned=tma, alone=alone, gpu=gpu, architecture=architecture
    )
    gpu = gpu or _gpu_of(device)
    passes = []
    for name, route, rows in (("forward", decision.forward, (x,)), ("backward", decision.backward, (x, dy))):
        plan = None
        if route.is_fused:  # the tile table is read only if it is needed
            from fastlora.routes.plan import plan_for

            where, whole = architecture or _architecture_of(device), aligned and all(map(is_aligned, rows))
            plan = plan_for(
                name,
                where,
                problem,
                dropout=dropout,
                aligned=whole,
                measured=not named,
                multiprocessors=_multiprocessors_of(device, gpu),
            )
        cost: Cost = getattr(problem, name)()
        floor = None if gpu is None else _floor(cost, problem.dtype, gpu)
        passes.append(PassExplanation(name, route, plan, cost, floor))
    path = route_on(device, problem.dtype, gpu=gpu if named else None, architecture=architecture)
    persistent = None
    if path.name == "triton":
        from fastlora.routes.persistent import told_of

        where = architecture or _architecture_of(device)
        persistent = told_of(where, problem, dropout=dropout > 0, aligned=tma)
    return Explanation(problem, path, gpu, tuple(passes), persistent=persistent)


def _check_problem(problem: Problem) -> None:
    for name, size in (("M", problem.M), ("K", problem.K), ("N", problem.N)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1; got {size}")
    check_rank(problem.r)


def _gpu_of(device: torch.device) -> str | None:
    """The name of a device in `GPUS`, None where it is none of them."""
    return find_gpu(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def _architecture_of(device: torch.device) -> str:
    from fastlora.routes.architecture import architecture_of  # which needs Triton

    return architecture_of(device)


def _multiprocessors_of(device: torch.device, gpu: str | None) -> int | None:
    """How many the device has, if it is the GPU that is explained; None for another."""
    from fastlora.routes.architecture import multiprocessors

    return multiprocessors(device) if gpu == _gpu_of(device) else None


def _floor(cost: Cost, dtype: torch.dtype, gpu: str) -> float:
    return cost.floor_us(rate_of(GPUS[gpu], dtype), GPUS[gpu].bandwidth)
