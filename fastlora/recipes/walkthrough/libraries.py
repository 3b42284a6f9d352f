"""The two libraries that the walk-through can use, each with its own calls for the same steps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor, nn

from fastlora.adapter_files import load_pretrained, save_pretrained
from fastlora.config import LoRAConfig
from fastlora.model.apply import apply_lora
from fastlora.model.find_layers import lora_layers
from fastlora.model.remove import remove_lora
from fastlora.recipes.walkthrough.tasks import ADAPTED, SumMLP


class Update(NamedTuple):
    """A layer's update, s B A; the tensors are the layer's own.

    Attributes:
        A: [r, K].
        B: [N, r].
        s: The scaling, alpha / r.
    """

    A: nn.Parameter
    B: nn.Parameter
    s: float


class Counts(NamedTuple):
    """The number of parameters of a net with updates.

    Attributes:
        trainable: Trained parameters.
        total: Parameters of the original net, plus trained parameters. A layer that is trained in full counts
            twice, since it is kept both as it was and as trained.
        percent: `trainable` in percent of `total`.
    """

    trainable: int
    total: int
    percent: float


class Library(ABC):
    """How a library does each step. All nets and models are on one device."""

    @abstractmethod
    def attach(self, net: SumMLP, r: int, alpha: float, full: tuple[str, ...] = ()) -> nn.Module:
        """Give the net updates, in place, and freeze everything else except the layers named in `full`."""

    @abstractmethod
    def updates(self, model: nn.Module) -> dict[str, Update]:
        """The update of each adapted layer, by the layer's name in the net."""

    @abstractmethod
    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """{name: tensor} with the names in the net, and with A and B as NAME.lora_A and NAME.lora_B."""

    @abstractmethod
    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the adapter in PEFT's format."""

    @abstractmethod
    def load(self, net: SumMLP, folder: Path) -> nn.Module:
        """Load an adapter that `save` wrote into a plain net, in place."""

    @abstractmethod
    def merge_and_unload(self, model: nn.Module) -> nn.Module:
        """Merge the updates into the weights and return the plain net, changed in place."""

    @torch.no_grad()
    def start(self, model: nn.Module, generator: torch.Generator) -> None:
        """Draw A as nn.Linear draws its weight (PEFT's default), in every library; set B to 0.

        Args:
            model: A model with updates.
            generator: A CPU generator.
        """
        for A, B, _ in self.updates(model).values():
            bound = 1 / math.sqrt(A.shape[1])
            A.copy_(torch.empty(A.shape).uniform_(-bound, bound, generator=generator))
            B.zero_()

    def count(self, model: nn.Module, base: int) -> Counts:
        """Count the parameters of a model; `base` is the number of parameters of the original net."""
        trainable = sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad)
        return Counts(trainable, base + trainable, 100 * trainable / (base + trainable))


class _Fastlora(Library):
    def attach(self, net: SumMLP, r: int, alpha: float, full: tuple[str, ...] = ()) -> nn.Module:
        config = LoRAConfig(r=r, alpha=alpha, target_modules=ADAPTED, modules_to_save=full or None)
        return apply_lora(net, config)

    def updates(self, model: nn.Module) -> dict[str, Update]:
        return {name: Update(layer.lora_A, layer.lora_B, layer.scaling) for name, layer in lora_layers(model)}

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        return {name.replace(".adapters.default.", "."): each for name, each in model.named_parameters()}

    def save(self, model: nn.Module, folder: Path) -> None:
        save_pretrained(model, folder)

    def load(self, net: SumMLP, folder: Path) -> nn.Module:
        return load_pretrained(net, folder)

    def merge_and_unload(self, model: nn.Module) -> nn.Module:
        return remove_lora(model, merge=True)


class _Peft(Library):
    """PEFT, with its own forward. It is imported only where it is used, because it is an extra."""

    def attach(self, net: SumMLP, r: int, alpha: float, full: tuple[str, ...] = ()) -> nn.Module:
        import peft

        config = peft.LoraConfig(
            r=r,
            lora_alpha=cast(int, alpha),
            target_modules=list(ADAPTED),
            modules_to_save=list(full) or None,
        )
        return peft.get_peft_model(cast(Any, net), config)

    def updates(self, model: nn.Module) -> dict[str, Update]:
        return {name: self._update(model, name) for name in ADAPTED}

    @staticmethod
    def _update(model: nn.Module, name: str) -> Update:
        layer = cast(Any, model.get_submodule(f"base_model.model.{name}"))
        return Update(
            layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]
        )

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        return {
            name.removeprefix("base_model.model.")
            .replace(".base_layer", "")
            .replace(".default.weight", ""): tensor
            for name, tensor in model.named_parameters()
        }

    def save(self, model: nn.Module, folder: Path) -> None:
        cast(Any, model).save_pretrained(str(folder))

    def load(self, net: SumMLP, folder: Path) -> nn.Module:
        import peft

        return peft.PeftModel.from_pretrained(cast(Any, net), str(folder))

    def merge_and_unload(self, model: nn.Module) -> nn.Module:
        plain: nn.Module = cast(Any, model).merge_and_unload()
        return plain


FASTLORA: Final[Library] = _Fastlora()
PEFT: Final[Library] = _Peft()
