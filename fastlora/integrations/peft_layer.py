"""peft.tuners.lora.Linear with a fused forward where that computes exactly what PEFT's would."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from fastlora.autograd.function import lora_linear
from fastlora.integrations.peft_package import Linear
from fastlora.integrations.peft_rules import operands_of, why_not_fused

FUSED = "fused"
# What FastLinear keeps on a layer beyond PEFT's own attributes.
COUNTS = "forward_counts"


class FastLinear(Linear):
    """PEFT's LoRA layer over an nn.Linear: the same attributes, parameters and state_dict, another forward.

    Layers become one by `accelerate_peft`, which sets their class, or by `register`. What PEFT does with its
    layers (adding, switching, merging and deleting adapters, saving) is PEFT's own code still.

    Attributes:
        forward_counts: How many eager forwards went which way: "fused", or else why PEFT's own ran.
    """

    forward_counts: Counter[str]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x [..., K] -> [..., N]: fused where that is exactly right, else by PEFT's own forward."""
        operands = operands_of(self)
        if isinstance(operands, str):
            return self._stock_forward(operands, x, *args, **kwargs)
        obstacle = why_not_fused(operands, x, args, kwargs)
        if obstacle is not None:
            return self._stock_forward(obstacle, x, *args, **kwargs)
        self._count(FUSED)
        W, b, A, B, s, dropout = operands
        if isinstance(s, Tensor):
            # Into B, not into a float: reading it back would wait for the device, and it may want a gradient.
            B, s = B * s, 1.0
        return lora_linear(x, W, b, A, B, s, dropout=dropout)

    def _stock_forward(self, why: str, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self._count(why)
        return super().forward(x, *args, **kwargs)

    def _count(self, way: str) -> None:
        # A compiled forward is traced once and run often; its graph would be made anew for every count.
        if not torch.compiler.is_compiling():
            vars(self).setdefault(COUNTS, Counter())[way] += 1
