"""Counts the parameters of a model, those of LoRA, and those that are trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from fastlora.layer.base_weights import like_weight, packed_format, stored_weight
from fastlora.model.find_layers import lora_layers
from fastlora.model.versions import idle_versions
from fastlora.tables import Part, Shown, Table


@dataclass(frozen=True)
class LayerParameters:
    """The counts of one LoRA layer.

    Attributes:
        name: Its name in the model.
        in_features: K.
        out_features: N.
        r: Rank of its update, of each expert's; 0 if it has no part in the adapter in use.
        base: Parameters in W and b.
        lora: Parameters in A and B of the adapter in use.
        experts: Number of experts with a weight and an update each; 0 for a linear layer.
    """

    name: str
    in_features: int
    out_features: int
    r: int
    base: int
    lora: int
    experts: int = 0


@dataclass(frozen=True)
class ParameterReport(Shown):
    """Counts of parameters; one that several modules share is counted once. `str()` of it is a table.

    Attributes:
        base: Parameters that are not LoRA's; of a packed W, the entries that are packed.
        lora: Parameters in A and B of all LoRA layers, including adapters that are not in use.
        trainable: Parameters that require a gradient.
        layers: One entry for each LoRA layer; layers that share a weight each count it.
    """

    base: int
    lora: int
    trainable: int
    layers: tuple[LayerParameters, ...]

    @property
    def total(self) -> int:
        """All parameters, LoRA's included."""
        return self.base + self.lora

    @property
    def percent(self) -> float:
        """Trainable parameters in percent of the total: PEFT's "trainable%"."""
        return 100 * self.trainable / self.total if self.total else 0.0

    @property
    def percent_of_base(self) -> float:
        """LoRA's parameters in percent of those of the model without LoRA."""
        return 100 * self.lora / self.base if self.base else 0.0

    def parts(self) -> Iterator[Part]:
        """A table of the layers, then the totals."""
        if self.layers:
            yield Table(
                ("layer", "shape", "r", "base", "LoRA"),
                [
                    (
                        layer.name or "(the model)",
                        (f"{layer.experts} x " if layer.experts else "")
                        + f"{layer.in_features} -> {layer.out_features}",
                        str(layer.r),
                        f"{layer.base:,}",
                        f"{layer.lora:,}",
                    )
                    for layer in self.layers
                ],
            )
        yield f"{self.base:,} base + {self.lora:,} LoRA = {self.total:,} parameters"
        yield f"LoRA is {self.percent_of_base:.3f}% of the base"
        yield f"{self.trainable:,} trainable, {self.percent:.3f}% of the total"


def parameter_report(model: nn.Module) -> ParameterReport:
    """Count the parameters of a model, with or without LoRA layers.

    Raises:
        TypeError: If `model` is not an nn.Module.
    """
    layers = list(lora_layers(model))
    own = {id(tensor) for _, layer in layers for tensor in layer.adapters.parameters()}
    idle = {id(tensor) for tensor in idle_versions(model)}
    parameters = [parameter for parameter in model.parameters() if id(parameter) not in idle]
    modules = [module for module in model.modules() if packed_format(module) is not None]
    packed = {id(stored_weight(module)): like_weight(module).numel() for module in modules}
    return ParameterReport(
        base=sum(packed.get(id(p), p.numel()) for p in parameters if id(p) not in own),
        lora=sum(p.numel() for p in parameters if id(p) in own),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        layers=tuple(
            LayerParameters(
                name=name,
                in_features=layer.in_features,
                out_features=layer.out_features,
                r=layer.r or 0,
                base=like_weight(layer).numel() + (0 if layer.bias is None else layer.bias.numel()),
                lora=0 if layer.active is None else sum(p.numel() for p in layer.active.parameters()),
                experts=getattr(layer, "num_experts", 0),
            )
            for name, layer in layers
        ),
    )
