"""Tensor parallel for LoRA layers: torch's two styles for linear layers, extended to A and B."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)
from torch.distributed.tensor import parallel as torch_parallel

from fastlora.layer.adapter import SLOTS
from fastlora.layer.base_weights import packed_format
from fastlora.layer.commits import commit
from fastlora.layer.division import Split
from fastlora.layer.fused_lora_linear import FusedLoRALinear
from fastlora.layer.sharding import check_not_dtensor
from fastlora.layer.writable import check_own


class ColwiseParallel(torch_parallel.ColwiseParallel):
    """torch's ColwiseParallel, also for FusedLoRALinear: shards the rows of W, b and B, and replicates A.

    In addition to what a plain layer sends, only dA [r, K] is summed over the processes. With dropout, the
    processes must have the same seed, so that all draw the same mask.

    Args:
        input_layouts: As in torch's class; replicated by default.
        output_layouts: As in torch's class; sharded along the last dimension by default.
        use_local_output: As in torch's class.

    Raises:
        ValueError: When applied: if out_features cannot be divided evenly, or the layer is merged or was
            initialized from W.
        TypeError: When applied: if the layer's weight is a DTensor already.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if not isinstance(module, FusedLoRALinear):
            return super()._apply(module, device_mesh)
        _check_divisible(module, "out_features", device_mesh)
        dims = {"weight": 0, "bias": 0, "lora_A": None, "lora_B": 0}
        return _divide(self, module, device_mesh, Split.COLUMNS, dims)


class RowwiseParallel(torch_parallel.RowwiseParallel):
    """torch's RowwiseParallel, also for FusedLoRALinear: shards the columns of W and A, replicates b and B.

    In addition to what a plain layer sends, only dB [N, r] is summed over the processes: each one multiplies
    its partial p by B, and the result is summed together with y. With dropout, each process draws the mask of
    its own columns. Processes that start with the same seed keep the same generator state.

    Args:
        input_layouts: As in torch's class; sharded along the last dimension by default.
        output_layouts: As in torch's class; replicated by default.
        use_local_output: As in torch's class.

    Raises:
        ValueError: When applied: if in_features cannot be divided evenly, or the layer is merged or was
            initialized from W.
        TypeError: When applied: if the layer's weight is a DTensor already.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if not isinstance(module, FusedLoRALinear):
            return super()._apply(module, device_mesh)
        _check_divisible(module, "in_features", device_mesh)
        dims = {"weight": 1, "bias": None, "lora_A": 1, "lora_B": None}
        return _divide(self, module, device_mesh, Split.ROWS, dims)


def _check_divisible(layer: FusedLoRALinear, features: str, mesh: DeviceMesh) -> None:
    size = getattr(layer, features)
    if size % mesh.size():
        raise ValueError(f"{features} must be a multiple of the {mesh.size()} processes; got {size}")
    check_own(layer, ("weight", "bias"), "layer")
    for adapter in layer.adapters.values():
        check_own(adapter, SLOTS, "layer")
        if adapter.dora or adapter.lora_bias:
            kind = "is DoRA, whose norms are of whole rows" if adapter.dora else "has a bias of B"
            raise ValueError(f"layer must have plain LoRA to be divided; adapter {adapter.name!r} {kind}")
    if layer.holds_transposed:
        raise ValueError(
            "layer must be an nn.Linear's to be divided; it is a Conv1D's, whose weight is [K, N]"
        )
    if layer.merged:
        raise ValueError("layer must be unmerged to be divided (unmerge_lora)")
    if layer.start_A is not None:
        raise ValueError("layer must have the W from before `initialize` to be divided; load it anew")
    check_not_dtensor(layer.weight, "weight")
    if (format := packed_format(layer)) is not None:
        raise ValueError(f"layer must have a plain W to be divided; it is packed as {format.about}")


def _divide(
    style: Any, layer: FusedLoRALinear, mesh: DeviceMesh, split: Split, dims: dict[str, int | None]
) -> nn.Module:
    """Shard each parameter along its dimension (None: replicate); add hooks for the layouts of x and y."""
    divided: list[tuple[nn.Module, str, nn.Parameter]] = []
    for module in (layer, *layer.adapters.values()):
        for slot, parameter in module.named_parameters(recurse=False):
            placement = Replicate() if (dim := dims[slot]) is None else Shard(dim)
            value = distribute_tensor(parameter, mesh, [placement], src_data_rank=style.src_data_rank)
            divided.append((module, slot, nn.Parameter(value, requires_grad=parameter.requires_grad)))

    # Any: torch declares hooks that return None, while these return new x and y.
    own_input: Any = partial(_own_input, split, style.input_layouts)
    laid_out: Any = partial(_laid_out, split, style.output_layouts, style.use_local_output)
    with commit() as changing:
        for hooks in (layer._forward_pre_hooks, layer._forward_hooks):
            changing.keep(hooks)
        for module, slot, parameter in divided:
            changing.put(module._parameters, slot, parameter)
        changing.put(vars(layer), "split", split)
        return distribute_module(layer, mesh, None, own_input, laid_out)


def _own_input(
    split: Split, layouts: tuple[Placement, ...], layer: FusedLoRALinear, inputs: Any, mesh: DeviceMesh
) -> Tensor:
    """This process's part of x, from x in its input layout."""
    x = inputs[0]
    if not isinstance(x, DTensor):
        x = DTensor.from_local(x, mesh, layouts, run_check=False)
    wanted, gradient = (
        (Replicate(), Partial()) if split is Split.COLUMNS else (Shard(x.dim() - 1), Shard(x.dim() - 1))
    )
    _draw_seeds(split, layer, x.device, mesh.get_local_rank())
    # Only if needed. Otherwise, for layers that share x, dx would be summed over the processes once for each
    # layer, and not once for all of them.
    if x.placements != (wanted,):
        x = x.redistribute(placements=[wanted])
    return x.to_local(grad_placements=[gradient])


def _laid_out(
    split: Split,
    layouts: tuple[Placement, ...],
    use_local: bool,
    layer: FusedLoRALinear,
    y: Tensor,
    mesh: DeviceMesh,
) -> Tensor:
    """y in its output layout, from what this process computed."""
    _draw_seeds(split, layer, y.device, mesh.size() - 1 - mesh.get_local_rank())
    own = Shard(y.dim() - 1) if split is Split.COLUMNS else Partial()
    result = DTensor.from_local(y, mesh, [own], run_check=False).redistribute(placements=layouts)
    return result.to_local() if use_local else result


def _draw_seeds(split: Split, layer: FusedLoRALinear, device: torch.device, count: int) -> None:
    """Draw and discard seeds, so that under ROWS each process gets its own and all generators stay in step.

    The first process uses the first seed, the next one the second. They are drawn one by one, because a GPU's
    generator advances by launches, not by how many numbers are drawn.
    """
    active = layer.active
    if split is Split.ROWS and active is not None and active.dropout_now(layer.training):
        for _ in range(count):
            torch.randint(2**62, (1,), device=device)
