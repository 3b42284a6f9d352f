"""What a method is: a way to fine-tune linear layers, one alone or those of a whole net."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn


class Update(NamedTuple):
    """The LoRA update that every layer gets; it is scaled by alpha / r."""

    r: int
    alpha: float
    dropout: float
    adapter_dtype: torch.dtype


class Tuned(NamedTuple):
    """A net made ready for training.

    Attributes:
        model: To be called as the net was.
        trained: What the optimizer moves; of LoRA "NAME.A" [r, K] and "NAME.B" [N, r] for each layer's name,
            in their order.
    """

    model: nn.Module
    trained: Mapping[str, nn.Parameter]


Tune = Callable[[nn.Module, Sequence[str], Update], Tuned]
WhyAbsent = Callable[[torch.device, torch.dtype], str | None]
WhyNot = Callable[[tuple[int, int], torch.dtype, Update], str | None]


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    Attributes:
        name: In tables and results.
        about: What it does, in a line.
        tune: Takes a net, the names of its linear layers to adapt, and the update; changes the net in place.
        trains: "AB" where its formula is LoRA's, "W" where all is trained, "" where nothing is.
        why_absent: Of a device and the net's dtype: why it cannot run there, None where it can.
        why_not: Of a layer (K, N), the net's dtype and an update: why it is left out, None where it takes it.
        drops: Whether the update's dropout changes what it computes.
        external: Whether the code is another library's. What fails in it is a reason to leave it out, not a
            failure of the run.
    """

    name: str
    about: str
    tune: Tune
    trains: str = "AB"
    why_absent: WhyAbsent = lambda device, dtype: None
    why_not: WhyNot = lambda layer, dtype, update: None
    drops: bool = True
    external: bool = False


Pair = tuple[nn.Parameter, nn.Parameter]


def replacing(layer_around: Callable[[nn.Linear, Update], nn.Module], A: str = "A", B: str = "B") -> Tune:
    """The `tune` that freezes the net and puts a layer, whose A and B are called so, in each one's place."""

    def tune(model: nn.Module, names: Sequence[str], update: Update) -> Tuned:
        model.requires_grad_(False)
        pairs = {}
        for name in names:
            layer = layer_around(cast(nn.Linear, model.get_submodule(name)), update)
            model.set_submodule(name, layer)
            pairs[name] = (layer.get_parameter(A), layer.get_parameter(B))
        return Tuned(model, named(pairs))

    return tune


def named(pairs: Mapping[str, Pair]) -> dict[str, nn.Parameter]:
    """`Tuned.trained` of each layer's A and B."""
    return {
        f"{name}.{letter}": t for name, pair in pairs.items() for letter, t in zip("AB", pair, strict=True)
    }


def fresh_pair(linear: nn.Linear, r: int, dtype: torch.dtype) -> Pair:
    """A random and B zero, beside the layer's weight."""
    (N, K), device = linear.weight.shape, linear.weight.device
    A = nn.Parameter(torch.randn(r, K, device=device, dtype=dtype) / r)
    return A, nn.Parameter(torch.zeros(N, r, device=device, dtype=dtype))


class Bare(nn.Module):
    """A function of x [..., K], W, b, A, B and s, and of the dropout where there is one, as a layer."""

    def __init__(self, linear: nn.Linear, update: Update, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.A, self.B = fresh_pair(linear, update.r, update.adapter_dtype)
        self.s, self.dropout, self.function = update.alpha / update.r, update.dropout, function

    def bound(self) -> Callable[[Tensor], Tensor]:
        """The function of x alone, past the module's call and its look-ups."""
        function, W, b, A, B, s = self.function, self.weight, self.bias, self.A, self.B, self.s
        if self.dropout:
            dropout = self.dropout
            return lambda x: function(x, W, b, A, B, s, dropout=dropout, training=True)
        return lambda x: function(x, W, b, A, B, s)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        return self.bound()(x)


def bare(function: Callable[..., Tensor]) -> Tune:
    """The `tune` of a function of tensors."""
    return replacing(lambda linear, update: Bare(linear, update, function))


def refusing(*, dropout: str = "", wider: str = "") -> WhyNot:
    """The `why_not` of a method that takes no dropout, or no wider adapters, each with its reason."""

    def why_not(layer: tuple[int, int], dtype: torch.dtype, update: Update) -> str | None:
        other = update.adapter_dtype != dtype
        return (dropout if update.dropout else "") or (wider if other else "") or None

    return why_not


def importable(importing: Callable[[], object]) -> str | None:
    """Why a library cannot be imported; None where it can."""
    try:
        importing()
    except Exception as error:  # an import of another library may fail in any way
        return f"{type(error).__name__}: {error}"
    return None
