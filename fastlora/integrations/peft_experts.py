"""PEFT's wrapper of experts' weights with the forward of `fastlora.experts`, where that computes the same.

PEFT wraps a module of experts once for each parameter, one wrapper inside the other. Its forward builds
W + s B A for the whole stack of experts; ours reads W as it is. The outermost wrapper decides for all.
The rules follow peft.tuners.lora.layer.ParamWrapper of PEFT 0.21.2 and the implementations of Transformers.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from fastlora import arguments
from fastlora.experts.forward import Update, experts_forward
from fastlora.experts.stacks import stacks_of, takes_hook
from fastlora.formula.operands import transforms_active
from fastlora.integrations.peft_arguments import HALVES
from fastlora.integrations.peft_layer import FUSED, count
from fastlora.integrations.peft_package import ParamWrapper
from fastlora.integrations.peft_rules import is_called_plainly

# On a wrapper around which there is another one, which decides for it.
INNER: Final = "is_inside_a_wrapper"
_INSIDE: Final = "the wrapper around it takes PEFT's own forward"


class FastParamWrapper(ParamWrapper):
    """PEFT's LoRA wrapper of a parameter, with the same attributes, parameters and state_dict.

    Attributes:
        forward_counts: The number of eager forwards: under "fused", or under why PEFT's own ran.
    """

    forward_counts: Counter[str]

    def __init__(self, base_layer: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(base_layer, *args, **kwargs)
        note_inner(self)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the module of experts: hidden states [T, K], experts and factors of each token -> [T, K]."""
        if vars(self).get(INNER):
            count(self, _INSIDE)
            return super().forward(x, *args, **kwargs)
        updates = updates_of(self)
        why = updates if isinstance(updates, str) else _argument_obstacle(self, x, args, kwargs)
        if isinstance(updates, str) or why is not None:
            count(self, str(why))
            return super().forward(x, *args, **kwargs)
        for wrapper in chain_of(self):
            count(wrapper, FUSED)
        return experts_forward(self.get_base_layer(), updates, x, *args)


# PEFT tells its wrappers, when it nests them or adds an adapter, by this name.
FastParamWrapper.__name__ = ParamWrapper.__name__


def note_inner(wrapper: Any) -> None:
    """Note on the wrapper inside this one, if there is one, that this one decides for it."""
    if isinstance(wrapper.base_layer, FastParamWrapper):
        vars(wrapper.base_layer)[INNER] = True


def chain_of(wrapper: Any) -> list[Any]:
    """The wrapper and those inside it, the outermost first."""
    found = [wrapper]
    while isinstance(found[-1].base_layer, ParamWrapper):
        found.append(found[-1].base_layer)
    return found


def why_experts_kept(wrapper: Any) -> str | None:
    """Why a wrapper of PEFT is not swapped; None if it can be."""
    experts = wrapper.get_base_layer()
    if wrapper.parameter_name not in {stack.parameter for stack in stacks_of(experts)}:
        return (
            f"its parameter is not a stack of experts that {type(experts).__name__} gives Transformers' hook"
        )
    if type(wrapper) is ParamWrapper and "forward" in vars(wrapper):
        return "its forward was replaced"
    return None


def updates_of(wrapper: Any) -> dict[str, Update] | str:
    """{parameter: its update} of a wrapper and those inside it, or why their state needs PEFT's forward."""
    experts, found = wrapper.get_base_layer(), {}
    for each in chain_of(wrapper):
        if type(each) is not FastParamWrapper:
            return f"a wrapper inside is a {type(each).__name__}"
        if each is not wrapper and not is_called_plainly(each):
            return "a wrapper inside has hooks or another forward"
        update = _update_of(each)
        if isinstance(update, str):
            return update
        found[each.parameter_name] = update
    return _experts_obstacle(experts, found) or found


def _update_of(wrapper: Any) -> Update | str:
    if wrapper.disable_adapters:
        return "adapters are disabled"
    if wrapper.merged:
        return "adapters are merged"
    active = [name for name in wrapper.active_adapters if name in wrapper.lora_A]
    if len(active) != 1:
        return f"{len(active)} adapters are active"
    (name,) = active
    lora_A, lora_B, E = wrapper.lora_A[name], wrapper.lora_B[name], wrapper.num_experts
    for role, module in (("lora_A", lora_A), ("lora_B", lora_B)):
        if type(module) is not nn.Linear or not is_called_plainly(module) or module.bias is not None:
            return f"{role} is not a plain nn.Linear without bias"
    if E < 2:
        return "there is one expert"
    s = wrapper.scaling[name]
    if not isinstance(s, (int, float)):
        return f"the scaling is a {type(s).__name__}"
    A, B = lora_A.weight, lora_B.weight
    for letter, tensor in (("A", A), ("B", B)):
        if type(tensor) not in (nn.Parameter, Tensor) or tensor.layout is not torch.strided:
            return f"{letter} is a {type(tensor).__name__}, or not dense"
    if A.dim() != 2 or B.dim() != 2 or A.shape[0] % E or B.shape[1] != A.shape[0]:
        return "the shapes do not make one update"
    # The expert is slowest in the rows of A, and fastest in the columns of B.
    stacked_B = B.reshape(B.shape[0], -1, E).permute(2, 0, 1)
    return Update(A.reshape(E, -1, A.shape[1]), stacked_B, float(s), 0.0)


def _experts_obstacle(experts: Any, updates: dict[str, Update]) -> str | None:
    if not takes_hook(experts) or not is_called_plainly(experts) or _has_any_global_hook():
        return "the experts have hooks or another forward"
    if "parametrizations" in experts._modules:
        return "the experts' weights are parametrized"
    if experts._is_expert_parallel:
        return "the experts are spread over processes"
    for name, parameter in experts._parameters.items():
        if type(parameter) is not nn.Parameter or parameter.layout is not torch.strided:
            return f"{name} is a {type(parameter).__name__}, or not dense"
        if parameter.requires_grad:
            return "the base layer is trained too"
    for stack in stacks_of(experts):
        W, update = stack.weight, updates.get(stack.parameter)
        if W.dtype not in arguments.DTYPES:
            return "the dtypes are not ones that are fused"
        if update is None:
            continue
        E, N, K = W.shape
        if update.A.shape[0] != E or update.A.shape[2] != K or update.B.shape[1] != N:
            return "the shapes do not make one update"
        if update.A.device != W.device or update.B.device != W.device:
            return "the tensors are on several devices"
        dtypes = {update.A.dtype, update.B.dtype}
        if dtypes != {W.dtype} and not (W.dtype in HALVES and dtypes == {torch.float32}):
            return "the dtypes are not ones that are fused"
    return None


def _argument_obstacle(wrapper: Any, x: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    if len(args) != 2 or any(value is not None for value in kwargs.values()):
        return "there are arguments beside hidden states, experts and factors"
    for tensor in (x, *args):
        if (
            type(tensor) not in (Tensor, nn.Parameter)
            or tensor.layout is not torch.strided
            or tensor.dim() != 2
        ):
            return "an argument is not a plain [tokens, ...] tensor"
    if transforms_active():
        return "a torch.func transform or forward-mode differentiation is at work"
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return "torch.jit.trace is at work"
    experts = wrapper.get_base_layer()
    W = stacks_of(experts)[0].weight
    if x.shape[1] != W.shape[2] or x.device != W.device:
        return "x does not fit the weight"
    if torch.is_autocast_enabled(x.device.type):
        # Others multiply in autocast's dtype; grouped_mm and we in W's.
        if experts.config._experts_implementation != "grouped_mm":
            return "autocast is at work on another implementation than grouped_mm"
    elif x.dtype != W.dtype:
        return "x does not have W's dtype"
    return None
