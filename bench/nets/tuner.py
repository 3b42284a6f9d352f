"""What a tuner is: a way to fine-tune a whole net, put on its linear layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn


class Update(NamedTuple):
    """The LoRA update that every layer gets.

    Attributes:
        r: Its rank.
        alpha: It is scaled by alpha / r.
        dropout: On the input of the low-rank branch.
        adapter_dtype: Of A and B.
    """

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


def _present(base: torch.dtype, update: Update) -> str | None:
    return None


@dataclass(frozen=True)
class Tuner:
    """A way to fine-tune a net.

    Attributes:
        name: In tables and results; the same as the method's on one layer.
        about: What it does, in a line.
        adapts: Whether it trains A and B; what it computes is then LoRA's formula, else the plain net's.
        tune: Takes a net, the names of its linear layers to adapt, and the update; changes the net in place.
        why_absent: Of the net's dtype and an update: why the tuner cannot run, None where it can.
        moves_weights: Whether it trains the net's own weights, so that it cannot share them with others.
    """

    name: str
    about: str
    adapts: bool
    tune: Callable[[nn.Module, Sequence[str], Update], Tuned]
    why_absent: Callable[[torch.dtype, Update], str | None] = _present
    moves_weights: bool = False


def pairs(tensors: Mapping[str, tuple[nn.Parameter, nn.Parameter]]) -> dict[str, nn.Parameter]:
    """`Tuned.trained` of each layer's A and B."""
    return {
        f"{name}.{letter}": tensor
        for name, pair in tensors.items()
        for letter, tensor in zip("AB", pair, strict=True)
    }
