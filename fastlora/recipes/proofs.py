"""What LoRA promises about the weights, checked on a net after fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fastlora.recipes.methods import LoRAMethod
from fastlora.recipes.mlp import LAYERS, DigitsMLP
from fastlora.recipes.training import Track, untracked


class WeightProofs(NamedTuple):
    """Which promises hold, over all layers.

    Attributes:
        frozen: W and b are the base's, bit for bit.
        enabled: Switched on, the effective weight is W + s B A within rounding, and not W.
        disabled: Switched off, the effective weight is the base's W, bit for bit.
    """

    frozen: bool
    enabled: bool
    disabled: bool


def clone_weights(net: DigitsMLP) -> dict[str, Tensor]:
    """A copy of every tensor of a plain net, by name."""
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


@torch.no_grad()
def prove_weights(
    net: DigitsMLP, method: LoRAMethod, base: Mapping[str, Tensor], track: Track = untracked
) -> WeightProofs:
    """Compare the layers of a fine-tuned net with the weights from before.

    Args:
        net: With `method`'s updates; it is left with them switched on.
        method: How the net computes LoRA.
        base: The plain net's weights, from `clone_weights`.
        track: Where progress is shown, a step for each layer.
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


def is_sum(weight: Tensor, W: Tensor, A: Tensor, B: Tensor, s: float) -> bool:
    """Whether `weight` is W + s B A up to its rounding.

    The sum is formed anew in fp64. Each entry takes r products and sums, one scaling and one addition, so its
    error is at most (r + 2) roundings of |W| + |s| |B| |A| (Higham, Accuracy and Stability of Numerical
    Algorithms, section 3.1); twice that is allowed, since in fp64 the sum to compare with is rounded too.
    """
    A, B, whole = A.double(), B.double(), W.double()
    exact, size = whole + s * (B @ A), whole.abs() + abs(s) * (B.abs() @ A.abs())
    error = (weight.double() - exact).abs()
    return bool((error <= (A.shape[0] + 2) * torch.finfo(weight.dtype).eps * size).all())
