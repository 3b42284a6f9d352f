"""Nothing is trained; gradients run back to the first layer that LoRA would adapt: the least there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from bench.nets.tuner import Tuned, Tuner, Update


def _with_gradient(layer: nn.Module, inputs: Any, y: Tensor) -> Tensor:
    return y if y.requires_grad else y.requires_grad_()


def tune(model: nn.Module, names: Sequence[str], update: Update) -> Tuned:
    """Freeze it, and ask for the gradients that the adapters would ask for."""
    model.requires_grad_(False)
    for name in names:
        model.get_submodule(name).register_forward_hook(_with_gradient)
    return Tuned(model, {})


FROZEN = Tuner(
    name="frozen",
    about="frozen net: forward, and dx alone backward; no optimizer",
    adapts=False,
    tune=tune,
)
