"""peft.tuners.lora.Linear with a fused forward, used if it computes exactly what PEFT's would."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from fastlora.autograd.function import lora_linear
from fastlora.integrations.peft_package import Linear
from fastlora.integrations.peft_rules import operands_of, why_not_fused

FUSED = "fused"
# The only attribute that FastLinear adds to those of PEFT's layer.
COUNTS = "forward_counts"


class FastLinear(Linear):
    """PEFT's LoRA layer over an nn.Linear, with the same attributes, parameters and state_dict.

    `accelerate_peft` makes one by setting the class of PEFT's layer; `register` has PEFT construct it.
    Adding, switching, merging, deleting and saving adapters is still PEFT's own code.

    Attributes:
        forward_counts: The number of eager forwards: under "fused", or under why PEFT's own ran.
    """

    forward_counts: Counter[str]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x [..., K] -> [..., N]: fused if that is exactly the same, else by PEFT's own forward."""
        operands = operands_of(self)
        if isinstance(operands, str):
            return self._stock_forward(operands, x, *args, **kwargs)
        obstacle = why_not_fused(operands, x, args, kwargs)
        if obstacle is not None:
            return self._stock_forward(obstacle, x, *args, **kwargs)
        count(self, FUSED)
        W, b, A, B, s, dropout = operands
        if isinstance(s, Tensor):
            # s is a tensor and is multiplied into B. As a float it would need a device synchronization and
            # could get no gradient.
            B, s = B * s, 1.0
        return lora_linear(x, W, b, A, B, s, dropout=dropout)

    def _stock_forward(self, why: str, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        count(self, why)
        return super().forward(x, *args, **kwargs)


def count(layer: Any, way: str) -> None:
    """Count a forward of a layer, under "fused" or under why PEFT's own ran."""
    # Not when compiled: the counter would become a guard, and each count would cause a recompilation.
    if not torch.compiler.is_compiling():
        vars(layer).setdefault(COUNTS, Counter())[way] += 1
