"""A small net of LoRA layers, and its gradients under a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastlora import FusedLoRALinear
from tests.models import with_update

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def net(dropout: float = 0.0, **options: Any) -> nn.Sequential:
    """7 -> 12 -> 5 with ReLU; both layers have LoRA."""
    options = {"dropout": dropout, "device": DEVICE, **options}
    layers = FusedLoRALinear(7, 12, r=2, **options), nn.ReLU(), FusedLoRALinear(12, 5, r=3, **options)
    return with_update(nn.Sequential(*layers))


def batch(rows: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    """x [rows, 7] that wants its gradient."""
    return torch.randn(rows, 7, device=DEVICE, dtype=dtype, requires_grad=True)


def gradients_of(model: nn.Module, x: Tensor, run: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """Gradients of x and of what is trained, through `run`, by default the model itself."""
    torch.manual_seed(3)
    model.zero_grad()
    x.grad = None
    # .backward(), as the reentrant kind of checkpointing takes no other.
    (run or model)(x).float().square().sum().backward()
    return [x.grad, *(parameter.grad for parameter in model.parameters() if parameter.requires_grad)]


def same_bits(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Whether two lists hold the same tensors, dtypes included."""
    pairs = zip(ours, theirs, strict=True)
    return all(one.dtype == other.dtype and torch.equal(one, other) for one, other in pairs)
