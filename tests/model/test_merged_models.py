"""Removing LoRA from a whole model, and merging it into the weights."""

import copy

import pytest
import torch
from torch import nn

from fastlora import (
    FusedLoRALinear,
    LoRAConfig,
    apply_lora,
    lora_layers,
    merge_lora,
    remove_lora,
    set_lora_enabled,
    unfreeze,
    unmerge_lora,
)
from tests.failures import InjectedError, failing_at, snapshot
from tests.models import Block, Shared, TiedLM, adapted, mlp, trainable


@pytest.mark.parametrize("merge", [False, True])
def test_remove_puts_plain_layers_with_the_same_parameters_back(merge):
    model = adapted(Block())
    model.eval()
    W = {name: layer.weight.clone() for name, layer in lora_layers(model)}
    effective = {name: layer.effective_weight() for name, layer in lora_layers(model)}
    parameters = {name: id(layer.weight) for name, layer in lora_layers(model)}
    assert remove_lora(model, merge=merge) is model
    plain = {name: module for name, module in model.named_modules() if name in W}
    for name, module in plain.items():
        assert type(module) is nn.Linear
        assert torch.equal(module.weight, (effective if merge else W)[name])
        assert id(module.weight) == parameters[name]
        assert not module.training
    assert not trainable(model)
    unfreeze(model)
    assert trainable(model) == set(dict(model.named_parameters()))


@pytest.mark.parametrize("merge", [False, True])
def test_remove_gives_the_same_whether_merged_or_disabled_before(merge):
    model = adapted(mlp())
    expected = remove_lora(copy.deepcopy(model), merge=merge).state_dict()
    weight = model[0].weight
    merge_lora(model)
    set_lora_enabled(model, False)
    remove_lora(model, merge=merge)
    assert model[0].weight is weight
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_remove_from_a_single_layer_gives_the_plain_layer():
    layer = apply_lora(nn.Linear(4, 3), LoRAConfig(r=2))
    assert type(remove_lora(layer)) is nn.Linear


def test_a_layer_with_a_replaced_forward_is_named_before_anything_is_removed():
    model = adapted(mlp())
    merge_lora(model)
    model[2].forward = lambda x: x
    before = snapshot(model)
    with pytest.raises(TypeError, match=r"layer '2' must keep its class's forward"):
        remove_lora(model)
    assert snapshot(model) == before


@pytest.mark.parametrize("call", [1, 2])
def test_a_merge_that_fails_while_removing_leaves_the_model_as_it_was(monkeypatch, call):
    model = adapted(mlp())
    before, values = snapshot(model), copy.deepcopy(model.state_dict())
    monkeypatch.setattr(FusedLoRALinear, "_sum", failing_at(call, FusedLoRALinear._sum))
    with pytest.raises(InjectedError):
        remove_lora(model, merge=True)
    assert snapshot(model) == before
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("call", [3, 4])
def test_a_merge_that_fails_once_when_it_has_begun_is_gone_through_with(monkeypatch, call):
    model = adapted(mlp())
    expected = remove_lora(copy.deepcopy(model), merge=True).state_dict()
    monkeypatch.setattr(FusedLoRALinear, "_sum", failing_at(call, FusedLoRALinear._sum))
    with pytest.raises(InjectedError):
        remove_lora(model, merge=True)
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_merge_and_unmerge_go_over_all_layers():
    model = adapted(Block())
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(3, 4)
    merge_lora(model)
    assert all(layer.merged for _, layer in lora_layers(model))
    assert torch.equal(model(x), remove_lora(copy.deepcopy(model), merge=True)(x))
    unmerge_lora(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_merge_that_fails_leaves_every_weight_as_it_was(monkeypatch):
    model = adapted(mlp())
    weights = [layer.weight.clone() for _, layer in lora_layers(model)]
    monkeypatch.setattr(FusedLoRALinear, "_merge", failing_at(2, FusedLoRALinear._merge))
    with pytest.raises(InjectedError):
        merge_lora(model)
    for weight, (_, layer) in zip(weights, lora_layers(model), strict=True):
        assert torch.equal(layer.weight, weight)
        assert not layer.merged


@pytest.mark.parametrize("change", [merge_lora, lambda model: remove_lora(model, merge=True)])
@pytest.mark.parametrize("by", ["parameter", "data"])
def test_merging_a_tied_weight_is_refused_by_name(change, by):
    model = TiedLM()
    if by == "data":
        model.lm_head.weight = nn.Parameter(torch.empty(7, 4))
        model.lm_head.weight.data = model.embed.weight.data
    adapted(model, target_modules=["q_proj", "lm_head"])
    before, values = snapshot(model), [p.clone() for p in model.parameters()]
    message = r"lm_head.weight must belong to this layer alone.* shared by embed.weight, lm_head.weight"
    with pytest.raises(ValueError, match=message):
        change(model)
    assert snapshot(model) == before
    assert all(torch.equal(p, value) for p, value in zip(model.parameters(), values, strict=True))


def test_a_tied_weight_stays_tied_with_lora_on_top_of_it():
    model = adapted(TiedLM(), target_modules=["lm_head"])
    assert model.lm_head.weight is model.embed.weight
    model(torch.arange(5)).sum().backward()
    assert model.lm_head.lora_B.grad is not None
    unfreeze(model)
    assert not model.embed.weight.requires_grad
    remove_lora(model)
    assert model.lm_head.weight is model.embed.weight


def test_two_layers_with_one_weight_are_not_merged():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    adapted(model)
    with pytest.raises(ValueError, match=r"0.weight must belong .* shared by 0.weight, 1.weight"):
        merge_lora(model)


def test_a_shared_module_has_a_weight_of_its_own_and_merges():
    model = adapted(Shared())
    effective = model.first.effective_weight()
    merge_lora(model)
    assert torch.equal(model.again[0].weight, effective)
