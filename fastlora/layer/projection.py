"""What one layer computes now, as a member of a group; or why it must compute alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastlora import arguments
from fastlora.formula.grouped import Projection
from fastlora.formula.operands import BaseWeight
from fastlora.layer import training_warnings
from fastlora.layer.groups import Group

_PLAIN = (nn.Parameter, Tensor)


def projection_of(layer: Any, packed: BaseWeight | None = None) -> Projection | str:
    """The operands of a FusedLoRALinear in its present state, W alone where it is merged or switched off.

    Whatever its forward pass treats apart is a reason to compute alone.

    Args:
        layer: The layer.
        packed: Its W, where that is packed.
    """
    own, buffers, active = layer._parameters, layer._buffers, layer._active
    W: Any = own.get("weight") if packed is None else packed
    b = own.get("bias")
    if "bias" not in own:  # HQQ's is no parameter
        b = layer.bias
    if layer._batch is not None:
        return "in an adapter_batch, or just after one"
    if layer.holds_transposed:
        return "a Conv1D's weight is [K, N]"
    if layer.split is not None:
        return "divided among processes"
    if (packed is None and type(W) not in _PLAIN) or not (b is None or type(b) in _PLAIN):
        return f"W is a {type(W).__name__}, not a plain parameter"
    if (packed is None and W.requires_grad) or (b is not None and b.requires_grad):
        return "W or b requires a gradient"
    kept = buffers["_base_weight"]
    if active is None or kept is not None or not layer.enabled:
        if not layer.enabled and buffers["start_A"] is not None:
            return "switched off, over a W that initialize has changed"
        training_warnings.suspect(layer)
        return Projection(W if kept is None or layer.enabled else kept, b)
    if active.dora:
        return "DoRA scales its columns"
    if active.lora_bias:
        return "B has a bias"
    if active._forward_pre_hooks or "forward" in active.__dict__:
        return "hooks fetch A and B"
    A, B = active._parameters.get("lora_A"), active._parameters.get("lora_B")
    if type(A) not in _PLAIN or type(B) not in _PLAIN:
        return f"A is a {type(A).__name__}, not a plain parameter"
    s = arguments.scaling(active.r, active.alpha, active.rslora)
    return Projection(W, b, A, B, s, active.dropout_now(layer.training))


def projections_of(
    group: Group, place: int, layer: Any, x: Tensor, own: Projection
) -> list[Projection] | str:
    """What every member of a group computes now, for x; or why they cannot be computed together.

    Args:
        group: The group.
        place: The place in it of the layer that is called.
        layer: That layer.
        x: What it is called with.
        own: What it computes itself.
    """
    members = group.members
    if members[place] is not layer:
        return "the layer is a copy of a member"
    found = []
    for at, member in enumerate(members):
        if member is None:
            return f"{group.names[at]} is gone"
        one = own if at == place else member._projection(x)
        if isinstance(one, str):
            return f"{group.names[at]}: {one}"
        found.append(one)
    return found
