"""What LoRA promises about the weights, checked on a net after fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fastlora.recipes.mlp import LAYERS, DigitsMLP
from fastlora.recipes.mnist.methods import LoRAMethod
from fastlora.recipes.proofs import is_sum
from fastlora.recipes.training import Track, untracked


class WeightProofs(NamedTuple):
    """Which promises hold in all layers.

    Attributes:
        frozen: W and b are the base's, bit for bit.
        enabled: With LoRA on, the effective weight is W + s B A within rounding, and not W.
        disabled: With LoRA off, the effective weight is the base's W, bit for bit.
    """

    frozen: bool
    enabled: bool
    disabled: bool


@torch.no_grad()
def prove_weights(
    net: DigitsMLP, method: LoRAMethod, base: Mapping[str, Tensor], track: Track = untracked
) -> WeightProofs:
    """Compare the layers of a fine-tuned net with the weights from before.

    Args:
        net: A net with `method`'s updates, which are on afterwards.
        method: How the net computes LoRA.
        base: The plain net's weights, by name.
        track: Shows progress, a step for each layer.
    """
    frozen = enabled = disabled = True
    layers = list(zip(LAYERS, net.layers(), strict=True))
    for name, layer in track(layers, "Prove", len(layers)):
        W = base[f"{name}.weight"]
        own, b, A, B, s = method.operands(layer)
        frozen &= torch.equal(own, W) and torch.equal(b, base[f"{name}.bias"])
        method.enable(layer, False)
        disabled &= torch.equal(method.effective_weight(layer), W)
        method.enable(layer, True)
        weight = method.effective_weight(layer)
        enabled &= is_sum(weight, W, A, B, s) and not torch.equal(weight, W)
    return WeightProofs(frozen, enabled, disabled)
