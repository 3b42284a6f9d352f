"""Merging adds the update once, in fp32, and takes it out without a trace."""

import copy

import pytest
import torch
from torch import nn

from fastlora import (
    FusedLoRALinear,
    LoRAConfig,
    add_adapter,
    lora_layers,
    merge_lora,
    remove_lora,
    set_adapter,
    unmerge_lora,
)
from fastlora.measuring.inputs import random_inputs
from tests.models import adapted, layer_of, mlp, with_update

HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("adapter_dtype", [None, torch.float32])
def test_the_merged_weight_is_the_exact_sum_rounded_once(dtype, adapter_dtype):
    ops = random_inputs(1, 33, 17, 3, dtype=dtype, adapter_dtype=adapter_dtype)
    layer = layer_of(ops)
    layer.merge()
    wide = torch.addmm(ops.W.float(), ops.B.float(), ops.A.float(), alpha=ops.s)
    assert torch.equal(layer.weight, wide.to(dtype))
    # Rounding the update first, then the sum, is not the same.
    twice = ops.W + (ops.s * (ops.B.float() @ ops.A.float())).to(dtype)
    assert not torch.equal(layer.weight, twice)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_hundred_rounds_of_merging_leave_the_weight_bit_for_bit(dtype):
    model = adapted(mlp().to(dtype))
    before = {name: layer.weight.clone() for name, layer in lora_layers(model)}
    expected = {name: layer.effective_weight() for name, layer in lora_layers(model)}
    for _ in range(100):
        merge_lora(model)
        for name, layer in lora_layers(model):
            assert torch.equal(layer.weight, expected[name])
            assert not torch.equal(layer.weight, before[name])
        unmerge_lora(model)
        for name, layer in lora_layers(model):
            assert torch.equal(layer.weight, before[name])


def test_adapters_merged_in_turn_leave_the_weight_bit_for_bit():
    model = add_adapter(adapted(mlp().half()), "fr", LoRAConfig(r=3))
    before = model[0].weight.clone()
    for name in ("default", "fr", "default"):
        set_adapter(model, name)
        with_update(model)
        merge_lora(model)
        assert not torch.equal(model[0].weight, before)
        unmerge_lora(model)
        assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["lora_A", "lora_B"])
def test_an_update_that_is_not_finite_is_refused_and_no_weight_changes(dtype, value, where):
    model = adapted(mlp().to(dtype))
    nn.init.constant_(getattr(model[2], where), value)
    before = copy.deepcopy(model.state_dict())
    for merge in (merge_lora, lambda model: remove_lora(model, merge=True)):
        with pytest.raises(ValueError, match=r"A and B of layer '2' must be finite to be merged"):
            merge(model)
        assert [type(model[0]), type(model[2])] == [FusedLoRALinear] * 2
        assert not model[0].merged
        after = model.state_dict()
        assert all(torch.equal(after[name], before[name]) for name in ("0.weight", "2.weight"))


def test_a_sum_beyond_the_range_of_the_dtype_is_refused_and_no_weight_changes():
    model = adapted(mlp().half())
    nn.init.constant_(model[2].lora_A, 300.0)
    nn.init.constant_(model[2].lora_B, 300.0)
    before = [layer.weight.clone() for _, layer in lora_layers(model)]
    for merge in (merge_lora, lambda model: model[2].merge(), lambda model: model[2].to_linear()):
        with pytest.raises(ValueError, match=r"W \+ s B A must be finite in torch.float16"):
            merge(model)
        for (_, layer), weight in zip(lora_layers(model), before, strict=True):
            assert not layer.merged
            assert torch.equal(layer.weight, weight)
