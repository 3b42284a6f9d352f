"""Warnings show the line that called the library."""

import pytest
import torch
from torch import nn

import fastlora
from fastlora.layer.fused_lora_linear import FusedLoRALinear


def of_a_save(net, folder):
    net[1].adapters["default"].dropout = 0.25
    fastlora.save_pretrained(net, folder)


def of_a_step(net, folder):
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    with fastlora.lora_disabled(net):
        net(torch.randn(3, 6))
        optimizer.step()


def of_a_subclass(net, folder):
    net.append(type("Odd", (nn.Linear,), {})(4, 4))
    fastlora.remove_lora(net)
    fastlora.apply_lora(net, fastlora.LoRAConfig(r=2))


@pytest.mark.parametrize(
    ("warned", "text"),
    [
        (of_a_save, "different dropout"),
        (of_a_step, "have no gradient"),
        (of_a_subclass, "leaves out"),
    ],
)
def test_a_warning_shows_the_line_that_called_the_library(warned, text, tmp_path):
    net = nn.Sequential(FusedLoRALinear(6, 5, r=2, alpha=4.0), FusedLoRALinear(5, 4, r=2, alpha=4.0))
    with pytest.warns(UserWarning, match=text) as told:
        warned(net, tmp_path)
    assert {each.filename for each in told} == {__file__}
