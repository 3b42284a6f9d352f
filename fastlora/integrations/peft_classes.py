"""Which of PEFT's layers can have the fused forward: our class for each of PEFT's, and over which bases."""

from __future__ import annotations

from typing import Any, Final

from torch import nn

from fastlora.formats.registry import format_of
from fastlora.integrations.peft_experts import FastParamWrapper, why_experts_kept
from fastlora.integrations.peft_layer import Fused, fast_class, pefts_class
from fastlora.integrations.peft_package import ParamWrapper
from fastlora.layer.conv1d import is_conv1d

# The classes with our forward, each with its subclasses.
FAST: Final = (Fused, FastParamWrapper)


def ours(cls: type) -> type | None:
    """Our class for one of PEFT's own, or for itself; None if there is none."""
    return FastParamWrapper if cls in (ParamWrapper, FastParamWrapper) else fast_class(cls)


def theirs(cls: type) -> type:
    """PEFT's own class that one of ours is made from."""
    return ParamWrapper if cls is FastParamWrapper else pefts_class(cls)


def why_kept(layer: Any) -> str | None:
    """Why a layer of PEFT is not swapped; None if it can be."""
    if type(layer) in (ParamWrapper, FastParamWrapper):
        return why_experts_kept(layer)
    if fast_class(type(layer)) is None:
        return f"it is a {type(layer).__module__}.{type(layer).__qualname__}, not a peft.tuners.lora.Linear"
    base = layer.base_layer
    if type(base) is not nn.Linear and not is_conv1d(base) and format_of(base) is None:
        kind = type(base).__name__
        return f"its base layer is a {kind}, neither an nn.Linear nor a Conv1D nor a known packed layer"
    if not isinstance(layer, Fused) and "forward" in vars(layer):
        return "its forward was replaced"
    return None
