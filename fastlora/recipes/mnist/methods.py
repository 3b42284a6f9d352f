"""The ways to fine-tune that the MNIST job compares: LoRA computed in three ways, and all weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from fastlora.config import LoRAConfig
from fastlora.layer.fused_lora_linear import FusedLoRALinear
from fastlora.model.apply import apply_lora
from fastlora.recipes.mlp import LAYERS, DigitsMLP
from fastlora.reference_layers import LoRAParametrization, ReferenceLoRALinear

_Layer: TypeAlias = FusedLoRALinear | ReferenceLoRALinear


class Operands(NamedTuple):
    """The operands of a layer's formula; the tensors are the layer's own.

    Attributes:
        W: [N, K], frozen.
        b: [N], frozen.
        A: [r, K].
        B: [N, r].
        s: The scaling, alpha / r.
    """

    W: Tensor
    b: Tensor
    A: nn.Parameter
    B: nn.Parameter
    s: float


class LoRAMethod(ABC):
    """One way to compute LoRA. "Layer" means what it turns one of the net's linear layers into.

    By default that is a layer of another class. The two classes used have the same attributes.
    """

    @abstractmethod
    def attach(self, net: DigitsMLP, r: int, alpha: float) -> None:
        """Give each linear layer of the net an update, in place, and freeze everything else."""

    def operands(self, layer: nn.Module) -> Operands:
        """W, b, A, B and s of a layer."""
        layer = cast(_Layer, layer)
        return Operands(layer.weight, layer.bias, layer.lora_A, layer.lora_B, layer.scaling)

    def enable(self, layer: nn.Module, on: bool) -> None:
        """Switch a layer's update on or off."""
        cast(_Layer, layer).enabled = on

    def effective_weight(self, layer: nn.Module) -> Tensor:
        """The [N, K] weight that a layer applies, as this method computes it."""
        return cast(_Layer, layer).effective_weight()

    def start(self, net: DigitsMLP, generator: torch.Generator) -> None:
        """Draw A from a Gaussian of std 1 / r (arXiv 2106.09685, section 4.1), for every method; set B to 0.

        Args:
            net: A net with updates.
            generator: A CPU generator. It draws fp64 values, so that fp32 starts at the same values, rounded.
        """
        with torch.no_grad():
            for layer in net.layers():
                A, B = self.operands(layer)[2:4]
                A.copy_(torch.randn(A.shape, generator=generator, dtype=torch.float64) / len(A))
                B.zero_()

    def enable_all(self, net: DigitsMLP, on: bool) -> None:
        """Switch every layer's update on or off."""
        for layer in net.layers():
            self.enable(layer, on)

    def trained(self, net: DigitsMLP) -> list[nn.Parameter]:
        """A and B of every layer; nothing else is trained."""
        return [tensor for layer in net.layers() for tensor in self.operands(layer)[2:4]]


class _Fused(LoRAMethod):
    """FusedLoRALinear, by `apply_lora`."""

    def attach(self, net: DigitsMLP, r: int, alpha: float) -> None:
        apply_lora(net, LoRAConfig(r=r, alpha=alpha, target_modules="all-linear"))


class _Reference(LoRAMethod):
    """ReferenceLoRALinear: two more linear layers and an addition, in plain torch."""

    def attach(self, net: DigitsMLP, r: int, alpha: float) -> None:
        for name in LAYERS:
            linear = cast(nn.Linear, net.get_submodule(name))
            layer = ReferenceLoRALinear(
                linear.in_features,
                linear.out_features,
                r=r,
                alpha=alpha,
                device=linear.weight.device,
                dtype=linear.weight.dtype,
            )
            layer.weight, layer.bias = linear.weight, linear.bias
            layer.weight.requires_grad_(False)
            layer.bias.requires_grad_(False)
            net.set_submodule(name, layer)


class _Parametrize(LoRAMethod):
    """LoRAParametrization: computes the full weight W + s B A anew in each forward pass."""

    def attach(self, net: DigitsMLP, r: int, alpha: float) -> None:
        for layer in net.layers():
            LoRAParametrization.register(cast(nn.Linear, layer), r=r, alpha=alpha)

    def operands(self, layer: nn.Module) -> Operands:
        weight, lora = self._parametrization(layer)
        return Operands(
            weight.original,
            cast(nn.Linear, layer).bias,
            lora.lora_A,
            lora.lora_B,
            lora.scaling,
        )

    def enable(self, layer: nn.Module, on: bool) -> None:
        self._parametrization(layer)[1].enabled = on

    def effective_weight(self, layer: nn.Module) -> Tensor:
        return cast(nn.Linear, layer).weight

    @staticmethod
    def _parametrization(layer: nn.Module) -> tuple[ParametrizationList, LoRAParametrization]:
        weight = cast(ParametrizationList, layer.get_submodule("parametrizations.weight"))
        return weight, cast(LoRAParametrization, weight[0])


LORA_METHODS: Final[dict[str, LoRAMethod]] = {
    "fused": _Fused(),
    "reference": _Reference(),
    "parametrize": _Parametrize(),
}

FULL: Final = "full"

METHODS: Final = (*LORA_METHODS, FULL)
