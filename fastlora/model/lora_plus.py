"""LoRA+: a larger learning rate for B than for A."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from fastlora.arguments import shown
from fastlora.layer.adapter import SLOTS
from fastlora.model.find_layers import existing_layers


def lora_plus_groups(model: nn.Module, lr: float, ratio: float) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer: B gets the rate `ratio` * `lr`; A and the others get `lr`.

    Initially B is zero and A is not. With one rate for both, a wide layer hardly learns features from A. The
    paper uses a ratio of 16, and a smaller `lr` than plain LoRA.

    Args:
        model: A model with LoRA layers.
        lr: The learning rate of A, and of other trained parameters (modules to save, say).
        ratio: The learning rate of B divided by that of A.

    Returns:
        Groups named "lora_A", "lora_B" and "others", each with "params", "lr" and "name"; those without
        parameters are left out.

    Raises:
        TypeError: If `lr` or `ratio` is not a number.
        ValueError: If `lr` or `ratio` is not positive and finite, or there is no LoRA layer.

    Source: arXiv 2402.12354.
    """
    _check_positive("lr", lr)
    _check_positive("ratio", ratio)
    layers = existing_layers(model).values()
    updates = [each for layer in layers for each in layer.adapters.values()]
    # By name, as a parametrization of B has parameters of its own: "parametrizations.lora_B.original".
    side = {
        id(parameter): slot
        for each in updates
        for name, parameter in each.named_parameters()
        for slot in SLOTS
        if slot in name
    }
    groups: dict[str, dict[str, Any]] = {
        name: {"params": [], "lr": rate, "name": name}
        for name, rate in (("lora_A", lr), ("lora_B", lr * ratio), ("others", lr))
    }
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[side.get(id(parameter), "others")]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def _check_positive(name: str, value: object) -> None:
    wanted = f"{name} must be a positive, finite number; got {shown(value)}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(wanted)
    if not 0 < value <= sys.float_info.max:
        raise ValueError(wanted)
