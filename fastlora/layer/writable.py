"""Checks, before anything is changed, that tensors can be written in place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastlora.layer.linear_kinds import odd_tensor
from fastlora.layer.sharding import local


def check_own(layer: nn.Module, slots: Iterable[str], what: str) -> None:
    """Raise ValueError, calling the layer `what`, unless these are parameters that the layer itself holds.

    With a parametrization, pruning, a spectral norm or FSDP's flat parameter, the tensor of that name is
    computed anew for each use; with accelerate's offloading it is fetched anew. A write to it would be lost.
    """
    for slot in slots:
        if slot not in layer._parameters:
            raise ValueError(
                f"{slot} of {what} must be a parameter of its own for this; it is computed from others, as a "
                "parametrization, pruning or a flat parameter does (remove that first: torch.nn.utils."
                "parametrize.remove_parametrizations, torch.nn.utils.prune.remove)"
            )
        check_present(layer, layer._parameters[slot], f"{slot} of {what}")


def check_present(layer: nn.Module, parameter: Tensor | None, what: str) -> None:
    """Raise ValueError, calling the parameter `what`, if accelerate has offloaded its values."""
    if parameter is not None and parameter.is_meta and "_hf_hook" in vars(layer):
        raise ValueError(
            f"{what} must be here for this; accelerate offloaded it, bringing it for each forward pass alone "
            "(accelerate.hooks.remove_hook_from_submodules brings it back)"
        )


def check_own_writable(layer: nn.Module, slots: Iterable[str], what: str) -> None:
    """Raise ValueError, calling the layer `what`, unless it holds these parameters and they are writable."""
    for slot in slots:
        check_own(layer, (slot,), what)
        parameter = layer._parameters[slot]
        if parameter is not None:
            check_numbers(parameter, f"{slot} of {what}")
            check_writable(parameter, f"{slot} of {what}")


def check_numbers(tensor: Tensor, what: str) -> None:
    """Raise ValueError, calling the tensor `what`, if it was packed, as torchao's is."""
    if why := odd_tensor(tensor):
        raise ValueError(
            f"{what} must hold its numbers as they are to be changed; it is {why} (unmerge_lora makes one "
            "plain again that was packed while it was merged; pack a model before apply_lora, or after "
            "remove_lora with merge=True)"
        )


def check_writable(tensor: Tensor, what: str) -> None:
    """Raise ValueError, calling the tensor `what`, unless it can be written in place."""
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(
            f"{what} must be made outside torch.inference_mode to be changed; it is an inference tensor "
            "(copy.deepcopy of the model, outside that mode, makes ordinary ones)"
        )
    own = local(tensor)
    if _overlaps(own):
        raise ValueError(
            f"{what} must have memory of its own for each entry to be changed; its shape {list(own.shape)} "
            f"with strides {list(own.stride())} shares some, as after expand (clone or contiguous it first)"
        )


def check_trainable(tensor: Tensor, what: str) -> None:
    """Raise ValueError, calling the tensor `what`, unless it can require a gradient."""
    if tensor.is_inference():
        raise ValueError(
            f"{what} must be made outside torch.inference_mode to be trained; it is an inference tensor "
            "(copy.deepcopy of the model, outside that mode, makes ordinary ones)"
        )


def _overlaps(tensor: Any) -> bool:
    """Whether two entries share memory: some stride is no longer than the span of the shorter strides."""
    if tensor.layout is not torch.strided or tensor.numel() == 0:
        return False
    reach = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride < reach:
                return True
            reach += stride * (size - 1)
    return False
