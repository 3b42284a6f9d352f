"""Updates that a conversion of the model to 16 bits took along are named."""

import copy

import pytest
import torch
from torch import nn

from fastlora import (
    LoRAConfig,
    apply_lora,
)
from tests.layer.stepped import optimizer_of, step
from tests.models import adapted, mlp


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16, lambda m: m.half().bfloat16()])
def test_updates_that_a_conversion_of_the_model_narrowed_are_named_once(convert):
    model = convert(adapted(mlp()))
    optimizer = optimizer_of(model)
    x = torch.ones(2, model[0].in_features, dtype=model[0].weight.dtype)
    with pytest.warns(UserWarning, match=r"A and B of '0', '2' were made in torch.float32") as met:
        step(model, optimizer, x)
    assert len(met) == 1
    step(model, optimizer, x.detach())  # warnings are errors here


def test_updates_that_were_meant_to_be_narrow_or_are_wide_again_are_not_named():
    model = apply_lora(mlp(), LoRAConfig(r=2, alpha=4, adapter_dtype=torch.bfloat16))
    step(model, optimizer_of(model))
    model = adapted(mlp()).half().float()
    step(model, optimizer_of(model))
    copied = copy.deepcopy(adapted(mlp()).half()).eval()
    copied(torch.ones(2, copied[0].in_features, dtype=torch.float16))


def test_updates_narrowed_to_32_bits_are_not_named():
    model = adapted(mlp().double()).float()
    step(model, optimizer_of(model))


def test_updates_that_are_narrowed_between_two_steps_are_named_too():
    model = adapted(mlp())
    optimizer = optimizer_of(model)
    step(model, optimizer)
    optimizer.zero_grad()
    model.half()
    with pytest.warns(UserWarning, match=r"A and B of '0', '2' were made in torch.float32"):
        step(model, optimizer, torch.ones(2, model[0].in_features, dtype=torch.float16))
