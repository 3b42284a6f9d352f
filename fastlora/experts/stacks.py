"""Finds the stacks of experts' weights: 3-D parameters of a module that takes Transformers' hook."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from torch import Tensor, nn

from fastlora.layer.linear_kinds import odd_tensor
from fastlora.layer.replacement import check_own_forward

# The projections of Transformers' modules of experts; without a gate, the first is called up_proj.
UP: Final = ("gate_up_proj", "up_proj")
DOWN: Final = "down_proj"
# The child in which a module of experts keeps its LoRA layers.
CHILD: Final = "lora"
# What `use_experts_implementation` sets on each module, and what our forward reads.
_MARKS: Final = ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm", "_is_expert_parallel")


class Stack(NamedTuple):
    """A 3-D parameter with a weight for each expert.

    Attributes:
        experts: The module that holds it.
        parameter: Its name there.
        transposed: Whether it is stored as [E, K, N].
    """

    experts: nn.Module
    parameter: str
    transposed: bool

    @property
    def weight(self) -> Tensor:
        """W [E, N, K], a view of the parameter."""
        W: Tensor = getattr(self.experts, self.parameter)
        return W.transpose(1, 2) if self.transposed else W


def takes_hook(module: nn.Module) -> bool:
    """Whether Transformers calls a registered function for a module of experts (`ALL_EXPERTS_FUNCTIONS`)."""
    return all(mark in vars(module) for mark in _MARKS) and hasattr(type(module).forward, "__wrapped__")


def up_of(experts: nn.Module) -> str:
    """The name of the first projection of a module that takes the hook."""
    return UP[0] if vars(experts)["has_gate"] else UP[1]


def stacks_of(module: nn.Module) -> list[Stack]:
    """The stacks of a module, in its parameters' order; none if it does not take the hook."""
    if not takes_hook(module):
        return []
    transposed = bool(vars(module)["is_transposed"])
    own: Any = module._parameters
    wanted = (up_of(module), DOWN)
    return [
        Stack(module, name, transposed)
        for name, parameter in own.items()
        if name in wanted and parameter is not None and parameter.dim() == 3
    ]


def check_stack(name: str, stack: Stack) -> None:
    """Raise TypeError, calling the stack `name`, unless LoRA can go beside it."""
    experts = stack.experts
    check_own_forward(name.rpartition(".")[0] or "the experts", experts)
    if hasattr(experts, CHILD) and not hasattr(type(experts._modules.get(CHILD)), "stands_for_parameters"):
        raise TypeError(f"{name} must lie in a module without an attribute of its own called {CHILD!r}")
    if vars(experts)["_is_expert_parallel"]:
        raise TypeError(
            f"{name} must hold all experts; expert parallelism has spread them over processes (apply LoRA "
            "to the model as a whole, and shard it by fully_shard)"
        )
    if why := odd_tensor(experts._parameters[stack.parameter]):  # type: ignore[arg-type]
        raise TypeError(f"{name} must hold its numbers as they are; it is {why}")
