"""Tensor parallel for LoRA layers: torch's two styles for linear layers, that know of A and B."""

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
from fastlora.layer.commits import commit
from fastlora.layer.division import Split
from fastlora.layer.fused_lora_linear import FusedLoRALinear
from fastlora.layer.sharding import check_not_spread
from fastlora.layer.writable import check_own


class ColwiseParallel(torch_parallel.ColwiseParallel):
    """torch's ColwiseParallel, also for FusedLoRALinear: rows of W, b and B are divided, A is whole.

    Compared with a plain layer nothing more is sent but the sum of dA [r, K]. With dropout the processes must
    be seeded alike, so that all draw one mask.

    Args: torch's: `input_layouts` (default: whole), `output_layouts` (default: divided along the last
        dimension) and `use_local_output`.

    Raises:
        ValueError: When applied: if out_features cannot be divided evenly, or the layer is merged or was
            initialized from W.
        TypeError: When applied: if the layer's weight is spread over processes already.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if not isinstance(module, FusedLoRALinear):
            return super()._apply(module, device_mesh)
        _check_divisible(module, "out_features", device_mesh)
        dims = {"weight": 0, "bias": 0, "lora_A": None, "lora_B": 0}
        return _divide(self, module, device_mesh, Split.COLUMNS, dims)


class RowwiseParallel(torch_parallel.RowwiseParallel):
    """torch's RowwiseParallel, also for FusedLoRALinear: columns of W and A are divided, b and B are whole.

    Compared with a plain layer nothing more is sent but the sum of dB [N, r]: what each process has of p goes
    through its own product with B, and is summed with y. With dropout each process draws the mask of its own
    columns; processes seeded alike stay so.

    Args: torch's: `input_layouts` (default: divided along the last dimension), `output_layouts` (default:
        whole) and `use_local_output`.

    Raises:
        ValueError: When applied: if in_features cannot be divided evenly, or the layer is merged or was
            initialized from W.
        TypeError: When applied: if the layer's weight is spread over processes already.
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
    if layer.merged:
        raise ValueError("layer must be unmerged to be divided (unmerge_lora)")
    if layer.start_A is not None:
        raise ValueError("layer must have the W from before `initialize` to be divided; load it anew")
    check_not_spread(layer.weight, "weight")


def _divide(
    style: Any, layer: FusedLoRALinear, mesh: DeviceMesh, split: Split, dims: dict[str, int | None]
) -> nn.Module:
    """Divide each parameter along its dimension (None: whole everywhere), and give forward its layouts."""
    divided: list[tuple[nn.Module, str, nn.Parameter]] = []
    for module in (layer, *layer.adapters.values()):
        for slot, parameter in module.named_parameters(recurse=False):
            placement = Replicate() if (dim := dims[slot]) is None else Shard(dim)
            value = distribute_tensor(parameter, mesh, [placement], src_data_rank=style.src_data_rank)
            divided.append((module, slot, nn.Parameter(value, requires_grad=parameter.requires_grad)))

    # Any: what these return takes the place of x and y, but torch declares them to return None.
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
    """This process's part of x, from x as it comes."""
    x = inputs[0]
    if not isinstance(x, DTensor):
        x = DTensor.from_local(x, mesh, layouts, run_check=False)
    wanted, gradient = (
        (Replicate(), Partial()) if split is Split.COLUMNS else (Shard(x.dim() - 1), Shard(x.dim() - 1))
    )
    _draw_seeds(split, layer, x.device, mesh.get_local_rank())
    # Else layers that share x would each have their part of dx summed, and not once all have added theirs.
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
    """y in the layout that was asked for, from what this process computed."""
    _draw_seeds(split, layer, y.device, mesh.size() - 1 - mesh.get_local_rank())
    own = Shard(y.dim() - 1) if split is Split.COLUMNS else Partial()
    result = DTensor.from_local(y, mesh, [own], run_check=False).redistribute(placements=layouts)
    return result.to_local() if use_local else result


def _draw_seeds(split: Split, layer: FusedLoRALinear, device: torch.device, count: int) -> None:
    """Pass over seeds of other processes' masks, where each has columns of x of its own.

    One process draws the first, the next the second, and all go on from the same place. One at a time, as a
    GPU's generator moves on by launches and not by numbers.
    """
    if split is Split.ROWS and layer.training and layer.dropout:
        for _ in range(count):
            torch.randint(2**62, (1,), device=device)
