"""The warning that a layer's A and B get no gradient, once for each layer."""

from __future__ import annotations

import warnings
from typing import Final
from weakref import WeakSet

import torch
from torch import nn

# Kept here and not on the layers, so that neither copies nor files of them hold it.
_named: Final[WeakSet[nn.Module]] = WeakSet()


def name_merged(layer: nn.Module) -> None:
    """Warn where a merged layer's forward is a step of training.

    The text is the same for every layer, so that Python's default filter shows it once.
    """
    if torch.compiler.is_compiling() or torch._C._get_tracing_state():
        return
    if layer.training and torch.is_grad_enabled() and layer not in _named:
        _named.add(layer)
        warnings.warn(
            "a merged FusedLoRALinear is one plain linear, in training too: its A and B get no gradient; "
            "call unmerge_lora (or layer.unmerge) before training, or model.eval() where none is meant",
            stacklevel=3,
        )
