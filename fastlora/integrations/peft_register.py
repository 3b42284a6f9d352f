"""Has PEFT itself make layers with the fused forward, by a config that it is given."""

from __future__ import annotations

import copy
from typing import Any, cast

from torch import nn

from fastlora.arguments import check_bool
from fastlora.experts.stacks import stacks_of
from fastlora.formats.registry import format_of
from fastlora.integrations.peft_classes import why_kept
from fastlora.integrations.peft_experts import FastParamWrapper
from fastlora.integrations.peft_groups import Grouping
from fastlora.integrations.peft_layer import FastLinear, fast_class
from fastlora.integrations.peft_package import BaseTunerLayer, LoraConfig, LoraModel
from fastlora.layer.conv1d import is_conv1d
from fastlora.layer.fused_lora_linear import FusedLoRALinear
from fastlora.layer.linear_kinds import is_left_out_by_all
from fastlora.warning import warn


def register(config: LoraConfig, *, group: bool = False) -> LoraConfig:
    """Have PEFT make a fast layer wherever, by this config, it adapts exactly an nn.Linear or a packed layer.

    And a `FastParamWrapper` around experts' weights, if their module takes Transformers' hook for experts.

    A warning names the layers of nn.Linear's kind that it leaves to PEFT, and why. This includes layers that
    PEFT makes later by this config. PEFT does not save the choice with the config, so call `accelerate_peft`
    on a model that is loaded from files.

    Args:
        config: What get_peft_model takes.
        group: As of `accelerate_peft`.

    Returns:
        The same config: `get_peft_model(model, register(LoraConfig(...)))`.

    Raises:
        TypeError: If `config` is not a peft.LoraConfig.
    """
    if not isinstance(config, LoraConfig):
        raise TypeError(f"config must be a peft.LoraConfig; got {type(config).__name__}")
    make = Grouping(make_layer) if check_bool(group, "group") else make_layer
    # PEFT asks for the first class alone, so one stands for all.
    config._register_custom_module({nn.Module: make})  # type: ignore[dict-item]
    return config


def make_layer(
    target: nn.Module,
    adapter_name: str,
    *,
    config: LoraConfig,
    parameter_name: str | None = None,
    **options: Any,
) -> nn.Module | None:
    """A layer for PEFT to use; None, for PEFT to make its own, if that could not take the fused forward.

    Where a class of the user's is registered for the target, it is made, as it would be without ours.
    """
    base: Any = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    for known, custom in (config._custom_modules or {}).items():
        if known is not nn.Module and isinstance(base, known):
            return custom(target, adapter_name, config=config, **options)
    if parameter_name is not None:
        if parameter_name not in {stack.parameter for stack in stacks_of(base)}:
            return None
        return FastParamWrapper(target, adapter_name, parameter_name, config=config, **options)
    # A weight in an unknown format may also be in a plain nn.Linear; PEFT has a special layer for it.
    plain = type(target) is nn.Linear and type(target.weight) is nn.Parameter
    # PEFT sets a wrong fan_in_fan_out right, with a warning.
    if format_of(target) is not None or is_conv1d(target) or (plain and config.fan_in_fan_out):
        return _pefts_layer(target, adapter_name, config, options)
    if plain:
        return FastLinear(target, adapter_name, config=config, **options)
    ours = isinstance(target, FusedLoRALinear)  # which refuses PEFT by name
    if isinstance(target, nn.Linear) and not ours and not is_left_out_by_all(target):
        kind = type(target.weight if type(target) is nn.Linear else target).__name__
        warn(
            f"a layer over a {kind} takes PEFT's own forward (docs/quantized.md says which are fused)",
        )
    return None


def _pefts_layer(
    target: nn.Module, adapter_name: str, config: LoraConfig, options: dict[str, Any]
) -> nn.Module:
    """The layer that PEFT itself makes, with the fused forward."""
    without, maker = copy.copy(config), cast(Any, LoraModel)
    without._custom_modules = None
    made: nn.Module = maker._create_new_module(without, adapter_name, target, **options)
    config.fan_in_fan_out = without.fan_in_fan_out
    fast = None if why_kept(made) is not None else fast_class(type(made))
    if fast is not None:
        made.__class__ = fast
    return made
