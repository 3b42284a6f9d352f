"""Full fine-tuning: every parameter is trained."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from bench.nets.tuner import Tuned, Tuner, Update


def tune(model: nn.Module, names: Sequence[str], update: Update) -> Tuned:
    """Train all of it."""
    model.requires_grad_(True)
    return Tuned(model, dict(model.named_parameters()))


FULL = Tuner(
    name="full",
    about="full fine-tuning of every parameter",
    adapts=False,
    tune=tune,
    moves_weights=True,
)
