"""A small attention whose projections share x, grouped, and what holds it to the layers alone."""

import torch
from torch import nn

from fastlora import LoRAConfig, apply_lora, group_projections
from fastlora.layer import sharing
from fastlora.measuring.errors import assert_within_budget
from tests.models import with_update

NAMES = ("q_proj", "k_proj", "v_proj")


class Attention(nn.Module):
    """Three projections of one x; `between` runs before the second."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(8, N) for N in (8, 4, 6))

    def forward(self, x, between=None):
        q = self.q_proj(x)
        other = None if between is None else between(x)
        x = x if other is None else other
        return torch.cat([q, self.k_proj(x), self.v_proj(x)], -1)


def attention(**options):
    model = with_update(apply_lora(Attention(), LoRAConfig(r=2, **options)))
    group_projections(model)
    return model


def hidden(rows=5):
    """An x as a model makes one: of an operation, so that nobody but its user holds it."""
    return torch.randn(rows, 8).requires_grad_() * 1


def gradients(model, x, run=None):
    model.zero_grad()
    y = (model if run is None else run)(x)
    y.square().sum().backward()
    return [y.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def assert_alike(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert_within_budget("grouped", one, other, other.double())


def assert_empty():
    assert sharing._slot.held is None or sharing._slot.held.group is None
