"""What LoRA is measured by: the frozen layer, the least there is, and full fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from bench.methods.method import Method, Tuned, Update


def _with_gradient(layer: nn.Module, inputs: Any, y: Tensor) -> Tensor:
    return y if y.requires_grad else y.requires_grad_()


def freeze(model: nn.Module, names: Sequence[str], update: Update) -> Tuned:
    """Nothing is trained; gradients run back to the first layer that LoRA would adapt."""
    model.requires_grad_(False)
    for name in names if len(names) > 1 else ():  # a layer alone gets an x that takes a gradient
        model.get_submodule(name).register_forward_hook(_with_gradient)
    return Tuned(model, {})


def train_all(model: nn.Module, names: Sequence[str], update: Update) -> Tuned:
    """Every parameter that takes a gradient: of a layer alone the weight, its bias stays frozen."""
    return Tuned(model, {name: p for name, p in model.named_parameters() if p.requires_grad})


FROZEN = Method("frozen", "frozen: forward, and dx alone backward", freeze, trains="", drops=False)
FULL = Method("full", "full fine-tuning: forward, dx and dW", train_all, trains="W", drops=False)
