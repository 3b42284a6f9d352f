"""What an optimizer holds, and which of that has gradients."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.optim import Optimizer

_with_closure: WeakSet[Optimizer] = WeakSet()


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """All parameters that it holds."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def held(optimizer: Optimizer) -> set[int]:
    """The ids of all parameters that it holds."""
    return set(map(id, parameters_of(optimizer)))


def lacks_gradient(parameter: nn.Parameter) -> bool:
    """Whether a parameter has no gradient."""
    # Megatron keeps gradients under another name.
    return parameter.grad is None and getattr(parameter, "main_grad", None) is None


def has_gradients(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a step trains, and has its gradients before it begins."""
    groups = optimizer.param_groups
    if all(not isinstance(lr := group.get("lr"), torch.Tensor) and lr == 0 for group in groups):
        return False  # checkpointing makes a step with made-up gradients to set up the state
    closure = any(argument is not None for argument in (*args[1:], kwargs.get("closure")))
    if closure and optimizer not in _with_closure:
        _with_closure.add(optimizer)
        return False  # a closure computes them in the step; at the second step those are still there
    return True
