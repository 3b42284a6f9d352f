"""Replacing one linear layer by another: which layers can be replaced, and what the new one takes over."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from types import MethodType
from typing import Any, TypeVar, cast

from torch import nn
from torch.nn.modules.module import _WrappedHook

from fastlora.layer.base_weights import packed_format
from fastlora.layer.conv1d import is_conv1d
from fastlora.layer.linear_kinds import odd_tensor

# The new module has its own of these; every other attribute is taken over.
_CONTAINERS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "forward")
# Buffers of a LoRA layer itself; a packed layer's hold a part of its W.
_LORA_BUFFERS = ("_base_weight", "start_A", "start_B")

_Linear = TypeVar("_Linear", bound=nn.Linear)


def check_plain_linear(name: str, module: object) -> None:
    """Raise TypeError, calling the module `name`, unless it computes exactly what nn.Linear computes.

    Refused are a subclass, a parametrization, a weight that a hook computes (weight_norm), and a replaced or
    compiled forward. A layer that replaced such a module would not do the same, or would not be called.
    """
    if isinstance(module, nn.Module) and (format := packed_format(module)) is not None:
        raise TypeError(
            f"{name} must be exactly an nn.Linear; this {type(module).__name__} is packed as {format.about} "
            "(apply_lora takes it)"
        )
    if type(module) is not nn.Linear:
        raise TypeError(f"{name} must be exactly an nn.Linear; got {type(module).__name__}")
    _check_parts(name, module, "[N, K]")


def check_plain_conv1d(name: str, module: object) -> None:
    """Raise TypeError, calling the module `name`, unless it computes what Transformers' Conv1D computes."""
    if not isinstance(module, nn.Module) or not is_conv1d(module):
        raise TypeError(f"{name} must be exactly a Conv1D of Transformers; got {type(module).__name__}")
    _check_parts(name, module, "[K, N]")


def _check_parts(name: str, module: nn.Module, shape: str) -> None:
    tensors = {**module._parameters, **module._buffers, **module._modules}
    if set(tensors) != {"weight", "bias"}:
        raise TypeError(f"{name} must hold a weight and a bias and nothing else; it has {', '.join(tensors)}")
    check_own_forward(name, module)
    weight: Any = module.weight
    if weight is None or weight.dim() != 2:
        raise TypeError(
            f"{name}.weight must be {shape}; got {None if weight is None else list(weight.shape)}"
        )
    for own, tensor in (("weight", weight), ("bias", cast(Any, module.bias))):
        if tensor is not None and (why := odd_tensor(tensor)):
            raise TypeError(f"{name}.{own} must hold its numbers as they are; it is {why}")


def check_own_forward(name: str, module: nn.Module) -> None:
    """Raise TypeError if calling the module runs anything but its class's forward."""
    if "_hf_hook" in vars(module) or "_old_forward" in vars(module):
        raise TypeError(
            f"{name} must keep its class's forward; accelerate replaced this module's (apply LoRA first and "
            "dispatch the model afterwards, or take its hooks off by "
            "accelerate.hooks.remove_hook_from_submodules)"
        )
    # Where accelerate took its hooks off, it leaves the class's own as an attribute.
    if vars(module).get("forward", own := MethodType(type(module).forward, module)) != own:
        raise TypeError(f"{name} must keep its class's forward; this module's was replaced")
    if module._compiled_call_impl is not None:
        raise TypeError(f"{name} must be compiled afterwards; this module was compiled already")


def linear_as(source: nn.Linear, cls: type[_Linear], *, without: Collection[str] = ()) -> _Linear:
    """A `cls` with the parameters and buffers of `source`, its mode, hooks, and every other attribute.

    The two share their dicts of hooks, so that a handle from earlier still removes its hook. Hooks before
    load_state_dict are the exception, as torch binds them to their module.

    Args:
        source: The layer to replace.
        cls: nn.Linear or a subclass; its constructor is not called.
        without: Names of attributes to leave behind.
    """
    new = cls.__new__(cls)
    nn.Module.__init__(new)
    left = {*_CONTAINERS, *without}
    vars(new).update({name: value for name, value in vars(source).items() if name not in left})
    new._parameters.update(source._parameters)
    new._buffers.update({own: kept for own, kept in source._buffers.items() if own not in _LORA_BUFFERS})
    new._non_persistent_buffers_set.update(source._non_persistent_buffers_set - {*_LORA_BUFFERS})
    # torch binds these to their module by a weak reference, so they are bound anew.
    new._load_state_dict_pre_hooks = OrderedDict(
        (key, _WrappedHook(hook.hook, new if hook.with_module else None))
        for key, hook in source._load_state_dict_pre_hooks.items()
        if isinstance(hook, _WrappedHook)
    )
    return new
