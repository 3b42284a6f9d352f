"""The ways to run a net that people combine with LoRA: torch.compile and activation checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

import torch
from torch import nn

Dress = Callable[[nn.Module], nn.Module]


def as_it_is(model: nn.Module) -> nn.Module:
    """Eager."""
    return model


def checkpointed(model: nn.Module) -> nn.Module:
    """Activation checkpointing of a Transformers model's decoder layers, also through PEFT's wrapper.

    Raises:
        TypeError: If it is no Transformers model.
    """
    transformers = cast(Any, model)
    # The second is its name before version 5.
    for name in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):
        if hasattr(transformers, name):
            getattr(transformers, name)({"use_reentrant": False})
            return model
    raise TypeError(f"model must be a Transformers model to be checkpointed; got {type(model).__name__}")


def compiled(model: nn.Module) -> nn.Module:
    """torch.compile with its defaults."""
    return cast(nn.Module, torch.compile(model))


MODES: Final[dict[str, Dress]] = {
    "eager": as_it_is,
    "checkpoint": checkpointed,
    "compile": compiled,
    "checkpoint+compile": lambda model: compiled(checkpointed(model)),
}
