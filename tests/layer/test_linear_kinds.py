"""Telling linear maps that are no nn.Linear; tests/integrations has Transformers' own."""

import pytest
import torch
from torch import nn

from fastlora import LoRAConfig, apply_lora
from fastlora.layer.linear_kinds import other_linear_kind


class Stack(nn.Module):
    """Four linear maps 3 -> 2 in one parameter, beside a bias."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(4, 2, 3))
        self.bias = nn.Parameter(torch.zeros(4, 2))


class StackedExperts(Stack):
    pass


def test_experts_are_told_by_their_class_or_by_their_name():
    kind = "Stack, whose experts are 3-D parameters (up [4, 2, 3])"
    assert other_linear_kind("mlp.experts", Stack()) == kind
    assert other_linear_kind("mlp.ffn", StackedExperts()) == kind.replace("Stack,", "StackedExperts,")


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("positions", Stack()),
        ("experts.positions", Stack()),
        ("experts", nn.ModuleList([nn.Linear(3, 2)])),
        ("expert", nn.Linear(3, 2)),
        ("conv", nn.Conv1d(3, 2, 4)),
    ],
    ids=str,
)
def test_other_modules_are_no_concern(name, module):
    assert other_linear_kind(name, module) is None


def model():
    return nn.ModuleDict({"attn": nn.Linear(3, 3), "experts": Stack()})


def test_all_linear_leaves_no_experts_out_in_silence():
    net = model()
    with pytest.raises(TypeError, match=r"Stack, whose experts are 3-D parameters .*: 'experts' \(name the"):
        apply_lora(net, LoRAConfig())
    assert type(net["attn"]) is nn.Linear
    apply_lora(net, LoRAConfig(exclude_modules=["experts"]))
    assert type(net["attn"]) is not nn.Linear


def test_naming_what_is_not_a_module_says_what_it_is():
    with pytest.raises(TypeError, match=r"it is the parameter 'up' \[4, 2, 3\] of 'experts', a Stack"):
        apply_lora(model(), LoRAConfig(target_modules=["attn", "up"]))
    with pytest.raises(
        TypeError, match=r"target 'experts' must be exactly an nn.Linear; it is a Stack, whose"
    ):
        apply_lora(model(), LoRAConfig(target_modules=["experts"]))
