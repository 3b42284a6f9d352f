"""Projections that share x over several processes: together under DDP, alone where each is sharded apart."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from fastlora import LoRAConfig, apply_lora, group_counts, group_projections
from fastlora.measuring.errors import assert_within_budget
from tests.distributed.processes import Processes, device
from tests.models import with_update

two = Processes(2)
pytestmark = pytest.mark.exhaustive


class Gated(nn.Module):
    """gate * up, then down."""

    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x):
        return self.down_proj(self.gate_proj(x) * self.up_proj(x))


def pair():
    """The same net grouped and not, in fp64, and a batch that is the same on every rank."""
    torch.manual_seed(1)
    model = with_update(apply_lora(nn.Sequential(Gated(), Gated()), LoRAConfig(r=2))).double().to(device())
    apart = copy.deepcopy(model)
    group_projections(model)
    return model, apart, torch.randn(6, 8, dtype=torch.float64, device=device())


def gradients(model, x):
    model(x * 1).square().sum().backward()
    found = (p.grad for p in model.parameters() if p.grad is not None)
    return [g.full_tensor() if hasattr(g, "full_tensor") else g for g in found]


def assert_alike(ours, theirs):
    """Equal in fp64 to fp32's rounding."""
    for one, other in zip(ours, theirs, strict=True):
        assert_within_budget("gradient", one.float(), other.float(), other)


@two.test
def test_under_ddp(folder):
    model, apart, x = pair()
    assert_alike(gradients(DistributedDataParallel(model), x), gradients(apart, x))
    assert (group_counts(model).rounds, group_counts(model).hits) == (2, 2)


@two.test
def test_fsdp_units_of_whole_blocks_are_grouped(folder):
    model, apart, x = pair()
    for block in model:
        fully_shard(block)
    fully_shard(model)
    assert_alike(gradients(model, x), gradients(apart, x))
    assert group_counts(model).hits == 2


@two.test
def test_fsdp_units_of_single_projections_compute_alone(folder):
    model, apart, x = pair()
    for block in model:
        for layer in block.children():
            fully_shard(layer)
    fully_shard(model)
    assert_alike(gradients(model, x), gradients(apart, x))
    counts = group_counts(model)
    assert counts.rounds == 0
    assert all("not a plain parameter" in why for why in counts.alone)
