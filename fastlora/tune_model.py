"""`fastlora.tune`: which code is the fastest for a model's layers on this GPU, measured and kept."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from fastlora.accounting.gpus import GPUS, find_gpu, rate_of
from fastlora.arguments import check_path, check_rank, shown
from fastlora.formula.cost import Problem
from fastlora.layer.adapter import Adapter
from fastlora.layer.base_weights import packed_format
from fastlora.layer.conv1d import is_conv1d
from fastlora.layer.fused_lora_linear import FusedLoRALinear
from fastlora.model.find_layers import check_model, existing_layers, lora_layers
from fastlora.routes.route import KERNEL_DTYPES, route_on
from fastlora.tuning.machine import Machine
from fastlora.tuning.packed_weights import BASES
from fastlora.tuning.report import Progress, Request, TuneReport

ROWS: Final = (512, 2048, 8192)

# M, K, N and r of a dry run.
_DRY_SIZES: Final = (24, 24, 16, 4)


def tune(
    model: nn.Module,
    *,
    rows: Sequence[int] = ROWS,
    dtype: torch.dtype | None = None,
    minutes: float = 5.0,
    path: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> TuneReport:
    """Measure which code is the fastest for a model's LoRA layers on its GPU, and take that from now on.

    Each kind of layer, forward and backward, is a contest between tiles of the kernels and the vendor's
    matrix products, over a packed W with its unpacking. A candidate is first proven, in a process of its own:
    its results against fp64, 200 runs with the same bits, in buffers filled with NaN. One that fails or hangs
    is never used. Then all are timed in turn, on inputs that miss the cache. The choices go into one file for
    this kind of GPU, which this process and later ones read; see docs/tuning.md.

    Args:
        model: A model with LoRA layers, ours or PEFT's, on the GPU or not: only their shapes are read.
        rows: Numbers of rows M that x has: tokens of a batch.
        dtype: What the layers compute in, where it is not the dtype of W: autocast's.
        minutes: No contest begins later.
        path: The file; None means the user's cache folder, or FASTLORA_TUNE_FILE. A dry run writes only a
            file that is named.
        dry_run: Whether to take every step on the CPU at tiny sizes; its choices mean nothing.
        progress: Is called with the contests done, all contests, and what comes next.

    Returns:
        What was measured; its `str()` is a table. After Ctrl-C it holds what had been measured.

    Raises:
        OSError: If the file cannot be written.
        TypeError: If `model` is not an nn.Module.
        ValueError: If it has no LoRA layers that the kernels can compute, there is no GPU that runs them, or
            rows or minutes are not positive.
    """
    requests = requests_of(model, rows, dtype)
    report = tune_requests(requests, minutes=minutes, path=path, dry_run=dry_run, progress=progress)
    report.untuned = untuned(model)
    return report


def requests_of(model: nn.Module, rows: Sequence[int], dtype: torch.dtype | None = None) -> list[Request]:
    """Each kind of LoRA layer with each number of rows; experts take other code and are left out.

    Args:
        model: A model with LoRA layers, ours or PEFT's.
        rows: Numbers of rows of x.
        dtype: What the layers compute in; None means the dtype of W.

    Raises:
        ValueError: If there is no LoRA layer, or a number of rows is not positive.
    """
    check_model(model)
    kinds = list(dict.fromkeys(_pefts_kinds(model))) or list(dict.fromkeys(_own_kinds(model)))
    return [
        Request(Problem(M, K, N, r, dtype or of_W, adapter, base), dropout)
        for M, (K, N, r, of_W, base, adapter, dropout) in product(
            [check_rank(M, "rows") for M in rows], kinds
        )
    ]


def untuned(model: nn.Module) -> list[str]:
    """The LoRA layers that `requests_of` leaves out, each class of them with its number and first name."""
    others = [(name, layer) for name, layer in lora_layers(model) if not isinstance(layer, FusedLoRALinear)]
    pefts = [(name, layer) for name, layer in model.named_modules() if _is_pefts(layer)]
    others += [(name, layer) for name, layer in pefts if not _is_pefts_linear(layer)]
    names: dict[str, list[str]] = {}
    for name, layer in others:
        names.setdefault(type(layer).__name__, []).append(name)
    return [f"{len(found)} {kind}: {found[0]}{', ...' * (len(found) > 1)}" for kind, found in names.items()]


# K, N, r, W's dtype and format, the dtype of A, and whether there is dropout.
_Kind = tuple[int, int, int, torch.dtype, str, torch.dtype, bool]


def _own_kinds(model: nn.Module) -> Iterator[_Kind]:
    for layer in existing_layers(model).values():
        if isinstance(layer, FusedLoRALinear):
            for adapter in cast(Iterable[Adapter], layer.adapters.values()):
                sizes = layer.in_features, layer.out_features, adapter.r
                yield *sizes, *_weight_of(layer), adapter.lora_A.dtype, adapter.dropout > 0


def _pefts_kinds(model: nn.Module) -> Iterator[_Kind]:
    """Those of a PEFT model's linear layers, fused by `accelerate_peft` or `register`; read without PEFT."""
    for layer in model.modules():
        if not _is_pefts_linear(layer):
            continue
        parts: Mapping[str, Any] = layer._modules
        base = parts["base_layer"]
        for name in parts["lora_A"]:
            A: Tensor = parts["lora_A"][name].weight
            B: Tensor = parts["lora_B"][name].weight
            dropout = getattr(parts["lora_dropout"][name], "p", 0.0) > 0
            yield A.shape[1], B.shape[0], A.shape[0], *_weight_of(base), A.dtype, dropout


def _is_pefts(layer: nn.Module) -> bool:
    return isinstance(layer._modules.get("lora_A"), nn.ModuleDict) and "base_layer" in layer._modules


def _is_pefts_linear(layer: nn.Module) -> bool:
    base = layer._modules.get("base_layer")
    return _is_pefts(layer) and (is_conv1d(base) or hasattr(base, "in_features"))


def tune_requests(
    requests: Iterable[Request],
    *,
    minutes: float = 5.0,
    path: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
    in_order: bool = False,
) -> TuneReport:
    """As `tune`, for layers and batches given by their shapes.

    They are taken in their order with `in_order`, else the largest first.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If no shape is one that the kernels compute, no GPU runs them, or minutes is not positive.
    """
    if not minutes > 0:
        raise ValueError(f"minutes must be above 0; got {shown(minutes)}")
    if path is not None:
        check_path("path", path)
    wanted = [one for one in requests if one.problem.dtype in KERNEL_DTYPES]
    if not wanted:
        raise ValueError("there must be a layer in fp16, bf16 or fp32, and a number of rows; there is none")
    from fastlora.tuning.tuner import tune_for  # `import fastlora` reads no tile table

    if not in_order:
        wanted.sort(key=lambda one: one.problem.forward().flops, reverse=True)
    return tune_for(
        [_dry(one) for one in wanted] if dry_run else wanted,
        Machine(torch.device("cpu"), "dry run") if dry_run else _this_machine(),
        minutes=minutes,
        path=None if path is None else Path(path),
        dry=dry_run,
        progress=progress or (lambda done, total, text: None),
    )


def _weight_of(layer: Any) -> tuple[torch.dtype, str]:
    """The dtype that W is multiplied in, and its format; "plain" where a plain one's choices are taken."""
    format = packed_format(layer)
    if format is None:
        return layer.weight.dtype, "plain"
    dtype = format.compute_dtype(layer, format.values_dtype(layer), None)
    return dtype, format.name if format.name in BASES.values() else "plain"


def _dry(request: Request) -> Request:
    """Tiny, and in dtypes that the interpreter multiplies rightly."""
    rows, _, _, _, dtype, adapter, base = request.problem
    dtype, adapter = (torch.float16 if one == torch.bfloat16 else one for one in (dtype, adapter))
    M, K, N, r = _DRY_SIZES
    return Request(Problem(min(M, rows), K, N, r, dtype, adapter, base), request.dropout)


def _this_machine() -> Machine:
    if not torch.cuda.is_available():
        raise ValueError("tuning needs a GPU, and torch sees none; a dry run takes every step without one")
    device = torch.device("cuda", torch.cuda.current_device())
    route = route_on(device, torch.float16, "auto")
    if not route.is_fused:
        raise ValueError(f"tuning needs a GPU that runs the kernels: {route.why}")
    name = torch.cuda.get_device_name(device)
    known = find_gpu(name)
    if known is None:
        return Machine(device, name)
    rates = {dtype: rate_of(GPUS[known], dtype) for dtype in KERNEL_DTYPES}
    return Machine(device, name, (rates, GPUS[known].bandwidth))
