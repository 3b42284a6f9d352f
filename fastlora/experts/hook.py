"""Our forward for modules of experts, as Transformers' `ALL_EXPERTS_FUNCTIONS` calls it.

A module of experts looks its implementation up by a name in its config. With LoRA it has a copy of the config
with our name in it; the model's own config stays as it is. So `set_experts_implementation` still chooses what
runs without LoRA, and cannot take LoRA away by mistake.
"""

from __future__ import annotations

import copy
from typing import Any, Final

from torch import Tensor, nn

from fastlora.experts.forward import Update, experts_forward
from fastlora.experts.stacks import CHILD
from fastlora.layer.forward_pass import frozen

NAME: Final = "fastlora"


def config_with_lora(config: Any) -> Any:
    """A copy of a module's config that names our implementation, which Transformers knows from now on.

    Raises:
        TypeError: If the config does not name an implementation, as those of Transformers 5 do.
    """
    register()
    own = copy.copy(config)
    vars(own)["_experts_implementation_internal"] = NAME
    if getattr(own, "_experts_implementation", None) != NAME:
        raise TypeError(
            "config of a module of experts must name its implementation, as in Transformers 5; this "
            f"{type(config).__name__} does not"
        )
    return own


def register() -> None:
    """Make our implementation known to Transformers."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(NAME, forward_with_lora)


def forward_with_lora(experts: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    """The forward of a module of experts with LoRA: hidden states [T, K] -> [T, K].

    Where no layer applies an update, it is the model's own implementation, bit for bit.
    """
    updates: Any = experts._modules[CHILD]
    found: dict[str, Update] = {}
    for name, layer in updates.items():
        A, B, s, dropout = layer.operands()
        if A is not None:
            found[name] = Update(A, B, s, dropout)
    experts = _with_weights_now(experts, updates)
    if found:
        return experts_forward(experts, found, *args, **kwargs)
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    own: Any = type(experts).forward
    run = ALL_EXPERTS_FUNCTIONS.get_interface(updates.config._experts_implementation, own.__wrapped__)
    result: Tensor = run(experts, *args, **kwargs)
    return result


def _with_weights_now(experts: nn.Module, updates: Any) -> nn.Module:
    """The module itself, or one like it, where a layer is merged.

    Switched off, such a layer has the W from before. Nor is a sum trained, which unmerging would drop.
    """
    own: dict[str, Tensor] = {}
    for name, layer in updates.items():
        if layer._base_weight is not None and not layer.enabled:
            own[name] = layer._base_weight
        elif layer._base_weight is not None and layer.weight.requires_grad:
            own[name] = frozen(layer.weight, type(layer).__name__)
    if not own:
        return experts
    like = copy.copy(experts)
    frozen_ones = {name: nn.Parameter(W, requires_grad=False) for name, W in own.items()}
    vars(like)["_parameters"] = {**experts._parameters, **frozen_ones}
    return like
