"""LoRA on modules of experts in separate torch operations; and what libraries are told of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench.methods.method import Method, Pair, Tuned, Update, named
from fastlora.segments.oracle import unfused

PARAMETERS = ("gate_up_proj", "down_proj")


def holds_experts(model: nn.Module, names: Sequence[str]) -> bool:
    """Whether the names are of modules of experts, and not of linear layers."""
    return not any(isinstance(model.get_submodule(name), nn.Linear) for name in names)


def parameters_of(names: Sequence[str]) -> list[str]:
    """The names of the stacks of modules of experts."""
    return [f"{name}.{parameter}" for name in names for parameter in PARAMETERS]


class UnfusedExperts(nn.Module):
    """A module of experts with LoRA by separate torch operations, one expert after the other."""

    def __init__(self, experts: Any, update: Update) -> None:
        super().__init__()
        self.experts, self.s = experts, update.alpha / update.r
        self.pairs = nn.ParameterDict()
        for name in PARAMETERS:
            E, N, K = getattr(experts, name).shape
            like: dict[str, Any] = {"device": experts.down_proj.device, "dtype": update.adapter_dtype}
            self.pairs[f"{name}_A"] = nn.Parameter(torch.zeros(E, update.r, K, **like))
            self.pairs[f"{name}_B"] = nn.Parameter(torch.zeros(E, N, update.r, **like))

    def forward(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """Hidden states [T, K], and the experts of each token and their factors -> [T, K]."""
        h = self.experts._apply_gate(self._linear("gate_up_proj", x, index))
        return self._linear("down_proj", h, index, weights.to(x.dtype))

    def _linear(self, name: str, x: Tensor, index: Tensor, weights: Tensor | None = None) -> Tensor:
        A, B = self.pairs[f"{name}_A"], self.pairs[f"{name}_B"]
        return unfused(x, getattr(self.experts, name), None, A, B, self.s, index, weights)


def tune_unfused_experts(model: nn.Module, names: Sequence[str], update: Update) -> Tuned:
    """The formula as it is written."""
    model.requires_grad_(False)
    pairs: dict[str, Pair] = {}
    for name in names:
        layer = UnfusedExperts(model.get_submodule(name), update)
        model.set_submodule(name, layer)
        for parameter in PARAMETERS:
            pairs[f"{name}.{parameter}"] = (layer.pairs[f"{parameter}_A"], layer.pairs[f"{parameter}_B"])
    return Tuned(model, named(pairs))


UNFUSED_EXPERTS = Method(
    "unfused-experts", "LoRA on experts in separate torch ops, one expert at a time", tune_unfused_experts
)
