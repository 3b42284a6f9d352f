"""Merging FusedLoRALinear's update into its weight, taking it out, and switching it off."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models import trained_layer

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_merging_makes_it_the_effective_weight_and_unmerging_restores_w_bit_for_bit(dtype):
    layer = trained_layer(alpha=3, dtype=dtype)
    W, effective = layer.weight.clone(), layer.effective_weight()
    x = torch.randn(4, 5, dtype=dtype)
    before = layer(x)
    for _ in range(2):
        layer.merge()
        assert layer.merged
        assert torch.equal(layer.weight, effective)
        assert torch.equal(layer.effective_weight(), effective)
        assert torch.equal(layer(x), F.linear(x, effective, layer.bias))
    for _ in range(2):
        layer.unmerge()
        assert not layer.merged
        assert torch.equal(layer.weight, W)
        assert torch.equal(layer(x), before)


def test_merging_rounds_once():
    layer = trained_layer(dtype=torch.bfloat16)
    W, A, B = (t.detach().double() for t in (layer.weight, layer.lora_A, layer.lora_B))
    layer.merge()
    assert torch.equal(layer.weight, (W + layer.scaling * B @ A).bfloat16())


def test_merging_keeps_the_parameter_object():
    layer = trained_layer()
    weight = layer.weight
    layer.merge()
    layer.unmerge()
    assert layer.weight is weight


def test_the_state_dict_of_a_merged_layer_holds_w():
    layer = trained_layer()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.merge()
    state = layer.state_dict()
    assert list(state) == list(before)
    assert all(torch.equal(state[name], value) for name, value in before.items())


@pytest.mark.parametrize("keys", [["weight", "bias"], ["adapters.default.lora_A", "adapters.default.lora_B"]])
def test_loading_into_a_merged_layer_unmerges_it(keys):
    layer, other = trained_layer(), trained_layer()
    expected = {**layer.state_dict(), **{key: other.state_dict()[key] for key in keys}}
    layer.merge()
    layer.load_state_dict({key: other.state_dict()[key] for key in keys}, strict=False)
    assert not layer.merged
    assert all(torch.equal(value, expected[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("merged", [False, True])
def test_disabled_it_is_exactly_the_plain_layer(merged, dtype):
    layer = trained_layer(dtype=dtype)
    linear = nn.Linear(5, 3, dtype=dtype)
    linear.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    if merged:
        layer.merge()
    layer.enabled = False
    x = torch.randn(4, 5, dtype=dtype)
    assert torch.equal(layer(x), linear(x))
    assert torch.equal(layer.effective_weight(), linear.weight)
    layer.enabled = True
    assert not torch.equal(layer(x), linear(x))


@pytest.mark.parametrize("merged", [False, True])
def test_to_linear_gives_the_sum_or_w_and_leaves_the_layer_as_it_is(merged):
    layer = trained_layer()
    W, effective = layer.weight.clone(), layer.effective_weight()
    if merged:
        layer.merge()
    weight = layer.weight.clone()
    total, base = layer.to_linear(), layer.to_linear(merge=False)
    assert torch.equal(total.weight, effective)
    assert torch.equal(base.weight, W)
    assert (base.weight is layer.weight) == (not merged)
    assert total.bias is base.bias is layer.bias
    assert layer.merged == merged
    assert torch.equal(layer.weight, weight)
    nn.init.zeros_(total.weight)
    assert torch.equal(layer.weight, weight)
    if merged:
        nn.init.zeros_(base.weight)
        layer.unmerge()
        assert torch.equal(layer.weight, W)
