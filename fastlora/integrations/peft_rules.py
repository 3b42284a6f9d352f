"""When PEFT's LoRA layer computes exactly y = x Wᵀ + s (x_d Aᵀ) Bᵀ + b, so that fused code may replace it.

Or DoRA's y = c (x Wᵀ + s (x Aᵀ) Bᵀ) + b with c = m / ‖W + s B A‖ by rows (PEFT's `use_dora`). A bias of B
(`lora_bias`), s b_B, is added to that.

Here are the rules for a layer's state, with the operands that it gives; `peft_arguments` has those for what a
layer is called with. Both follow peft.tuners.lora.layer.Linear.forward of PEFT 0.21.2, line by line. A rule
that fails gives its reason as a phrase to show. No rule depends on whether gradients are recorded: activation
checkpointing runs a forward first without and then with them, and both must draw the same dropout mask.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from fastlora.formats.format import Format
from fastlora.formats.registry import format_of
from fastlora.formula.operands import BaseWeight, autocasts
from fastlora.integrations.peft_package import DoraLinearLayer, DoraLinearVariant
from fastlora.layer.conv1d import is_conv1d, turned


class Operands(NamedTuple):
    """The formula's operands from a PEFT layer.

    Attributes:
        W: [N, K]; a packed one in the dtype that the base layer computes in.
        b: [N] or None.
        A: [r, K]. The r of this shape counts, as PEFT's hot-swapping pads A and B but leaves `layer.r` alone.
        B: [N, r].
        s: The scaling; a 0-dimensional tensor if hot-swapping made it one.
        dropout: The probability that applies now; 0 outside training.
        m: [N], the magnitudes of DoRA; None of plain LoRA.
        b_B: [N], the bias of B (`lora_bias`), or None; it is scaled by s.
    """

    W: Tensor | BaseWeight
    b: Tensor | None
    A: Tensor
    B: Tensor
    s: float | Tensor
    dropout: float
    m: Tensor | None = None
    b_B: Tensor | None = None

    @property
    def trains_biases(self) -> bool:
        """Whether a bias, of the base layer or of B, takes a gradient."""
        return self.b_B is not None or (self.b is not None and self.b.requires_grad)


def operands_of(layer: Any, x: Tensor | None = None) -> Operands | str:
    """The operands of a PEFT layer, or why its state needs PEFT's own forward.

    Args:
        layer: A peft.tuners.lora.Linear, or PEFT's class for a packed layer.
        x: What it is called with; only for the dtype that a packed base computes in.
    """
    if (obstacle := _state_obstacle(layer)) is not None:
        return obstacle
    active = [name for name in layer.active_adapters if name in layer._modules["lora_A"]]
    if len(active) != 1:
        return f"{len(active)} adapters are active"
    return _of_adapter(layer, active[0], x)


def mixed_operands_of(layer: Any, names: Iterable[str], x: Tensor) -> dict[str, Operands] | str:
    """The operands of each of these adapters that a PEFT layer has, or why the mix needs PEFT's forward.

    Args:
        layer: As in `operands_of`.
        names: Adapters, or "__base__" for none.
        x: As in `operands_of`.
    """
    if (obstacle := _state_obstacle(layer)) is not None:
        return obstacle
    found = {}
    for name in names:
        if name in layer._modules["lora_A"]:
            operands = _of_adapter(layer, name, x)
            if isinstance(operands, str):
                return operands
            if operands.m is not None:
                return "an adapter of the batch is DoRA's"
            if operands.b_B is not None:
                return "an adapter of the batch has a bias of B"
            if isinstance(operands.s, Tensor):
                operands = operands._replace(B=operands.B * operands.s, s=1.0)
            found[name] = operands
    return found or "the layer has none of the batch's adapters"


def _state_obstacle(layer: Any) -> str | None:
    if layer.disable_adapters:
        return "adapters are disabled"
    return "adapters are merged" if layer.merged else None


def _of_adapter(layer: Any, name: str, x: Tensor | None) -> Operands | str:
    modules = layer._modules
    variant = layer.lora_variant.get(name)
    if variant is not None and type(variant) is not DoraLinearVariant:
        return f"the adapter is a variant of LoRA ({type(variant).__name__})"
    if not layer.cast_input_dtype_enabled:
        return "casting of inputs is switched off"
    base, lora_A, lora_B = modules["base_layer"], modules["lora_A"][name], modules["lora_B"][name]
    format = format_of(base)
    for role, module in (("base_layer", base), ("lora_A", lora_A), ("lora_B", lora_B)):
        known = module is base and (format is not None or is_conv1d(base))
        if type(module) is not nn.Linear and not known:
            return f"{role} is a {type(module).__name__}"
        if not is_called_plainly(module):
            return f"{role} has hooks or another forward"
    if _has_any_global_hook():
        return "hooks are registered for all modules"
    if lora_A.bias is not None or (lora_B.bias is not None and variant is not None):
        return "the adapter has a bias"
    p = _dropout_of(modules["lora_dropout"][name])
    if isinstance(p, str):
        return p
    s = layer.scaling[name]
    if not isinstance(s, (int, float)) and not (isinstance(s, Tensor) and s.dim() == 0):
        return f"the scaling is a {type(s).__name__} with dimensions"
    W = turned(base, base.weight) if format is None else _packed(format, base, x)
    if isinstance(W, str):
        return W
    m = None if variant is None else _magnitude(layer, name, p)
    if isinstance(m, str):
        return m
    operands = Operands(W, _bias_of(base), lora_A.weight, lora_B.weight, s, p, m, lora_B.bias)
    return _tensor_obstacle(operands) or operands


def _bias_of(base: Any) -> Tensor | None:
    """The bias; HQQ's is no parameter, and may hang on that of the layer it was made from."""
    b: Tensor | None = base.bias
    return b if b is None or isinstance(b, nn.Parameter) else b.detach()


def _packed(format: Format, base: Any, x: Tensor | None) -> BaseWeight | str:
    """W in the dtype that the base layer computes in, or why it cannot be read."""
    try:
        dtype = format.values_dtype(base)
        if x is not None:
            autocast = torch.get_autocast_dtype(x.device.type) if autocasts(x) else None
            dtype = format.compute_dtype(base, x.dtype, autocast)
        return format.base_of(base, dtype)
    except ValueError as error:
        return str(error)


def _magnitude(layer: Any, name: str, dropout: float) -> Tensor | str:
    """DoRA's m of an adapter, or why it needs PEFT's own forward."""
    module = layer._modules["lora_magnitude_vector"][name]
    if type(module) is not DoraLinearLayer or not is_called_plainly(module):
        return "the magnitudes are not a plain DoraLinearLayer"
    if dropout > 0:
        return "DoRA with dropout, which PEFT lets fall on the product with W as well"
    m: Tensor = module.weight
    return m


def shape_of(W: Tensor | BaseWeight) -> tuple[int, int, torch.device]:
    """N, K and the device."""
    if isinstance(W, BaseWeight):
        return W.N, W.K, W.tensors[0].device
    return *W.shape, W.device


def is_called_plainly(module: nn.Module) -> bool:
    """Whether calling the module runs its class's forward and nothing else."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
        or "forward" in module.__dict__
    )


def _dropout_of(module: nn.Module) -> float | str:
    """The probability that PEFT's dropout module applies now, or why it cannot be fused."""
    # Exact types: a subclass may do something else.
    if type(module) not in (nn.Identity, nn.Dropout) or not is_called_plainly(module):
        return "the dropout is not a plain nn.Dropout"
    if not isinstance(module, nn.Dropout) or not module.training:
        return 0.0
    if module.inplace or module.p >= 1:
        return "the dropout works in place or drops everything"
    return module.p


def _tensor_obstacle(operands: Operands) -> str | None:
    W, b, A, B, _, _, m, b_B = operands
    whole = None if isinstance(W, BaseWeight) else W
    # A shard, or the placeholder for a parameter that a sharding library has moved away, has another shape.
    if whole is not None and whole.dim() != 2:
        return "the shapes do not make one update"
    N, K, device = shape_of(W)
    # Exact types: a DTensor, a quantized or a fake tensor is a subclass.
    for letter, tensor in (("W", whole), ("b", b), ("A", A), ("B", B), ("m", m), ("b_B", b_B)):
        if tensor is None:
            continue
        if type(tensor) not in (nn.Parameter, Tensor) or tensor.layout is not torch.strided:
            return f"{letter} is a {type(tensor).__name__}, or not dense"
        if tensor.device != device:
            return "the tensors are on several devices"
    if whole is not None and whole.requires_grad:
        return "the base layer is trained too"
    if A.dim() != 2 or A.shape[1] != K or B.shape != (N, A.shape[0]) or (m is not None and m.shape != (N,)):
        return "the shapes do not make one update"
    return None
