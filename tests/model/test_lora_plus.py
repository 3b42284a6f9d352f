"""Learning rates of A and B."""

import math

import pytest
import torch
from torch import nn

from fastlora import LoRAConfig, add_adapter, apply_lora, lora_plus_groups
from tests.models import Block, adapted, mlp


def test_b_learns_faster_and_each_trained_parameter_is_in_one_group():
    model = apply_lora(Block(), LoRAConfig(r=2, target_modules=["mlp.0", "q_proj"], modules_to_save=["norm"]))
    groups = {group["name"]: group for group in lora_plus_groups(model, 1e-4, 16)}
    assert {name: group["lr"] for name, group in groups.items()} == {
        "lora_A": 1e-4, "lora_B": 1e-4 * 16, "others": 1e-4
    }  # fmt: skip
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    members = {name: {names[id(p)] for p in group["params"]} for name, group in groups.items()}
    assert members == {
        "lora_A": {"mlp.0.adapters.default.lora_A", "attn.q_proj.adapters.default.lora_A"},
        "lora_B": {"mlp.0.adapters.default.lora_B", "attn.q_proj.adapters.default.lora_B"},
        "others": {"norm.weight", "norm.bias"},
    }


def test_an_optimizer_steps_by_these_rates():
    model = adapted(nn.Linear(4, 3))
    before = model.lora_A.clone(), model.lora_B.clone()
    model(torch.randn(5, 4)).square().sum().backward()
    torch.optim.SGD(lora_plus_groups(model, 0.5, 4)).step()
    assert torch.equal(model.lora_A, torch.add(before[0], model.lora_A.grad, alpha=-0.5))
    assert torch.equal(model.lora_B, torch.add(before[1], model.lora_B.grad, alpha=-2.0))


def test_what_is_frozen_or_not_in_use_is_left_out():
    model = adapted(mlp())
    add_adapter(model, "fr", LoRAConfig(r=2))
    model[0].lora_A.requires_grad_(False)
    groups = lora_plus_groups(model, 1.0, 2.0)
    assert [group["name"] for group in groups] == ["lora_A", "lora_B"]
    assert groups[0]["params"] == [model[2].lora_A]
    assert len(groups[1]["params"]) == 2


@pytest.mark.parametrize(
    ("lr", "ratio", "error", "message"),
    [
        (0.0, 2, ValueError, "lr must be a positive, finite number; got 0.0"),
        (1e-3, math.inf, ValueError, "ratio must be a positive, finite number; got inf"),
        (1e-3, True, TypeError, "ratio must be a positive, finite number; got True"),
        ("1e-3", 2, TypeError, "lr must be a positive, finite number; got '1e-3'"),
    ],
)
def test_a_wrong_rate_is_named(lr, ratio, error, message):
    with pytest.raises(error, match=message):
        lora_plus_groups(adapted(mlp()), lr, ratio)


def test_a_model_without_lora_has_no_groups():
    with pytest.raises(ValueError, match="model must have LoRA layers"):
        lora_plus_groups(mlp(), 1e-3, 16)
