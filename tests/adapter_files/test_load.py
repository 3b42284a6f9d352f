"""Saving an adapter and loading it into another model, as a directory and as one file."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fastlora import (
    FusedLoRALinear,
    LoRAConfig,
    add_adapter,
    apply_lora,
    lora_layers,
    merge_lora,
    set_adapter,
    set_lora_enabled,
)
from tests.adapter_files.stored import content, twins
from tests.models import Block, Shared, TiedLM, adapted, mlp


@pytest.mark.parametrize("make", [mlp, Block, Shared])
@pytest.mark.parametrize("onto", ["plain", "adapted"])
def test_a_loaded_model_computes_what_the_saved_one_did(store, make, onto):
    model, other = twins(make)
    store.save(model)
    if onto == "adapted":
        apply_lora(other, LoRAConfig(r=2))
    assert store.load(other) is other
    x = torch.randn(5, 6 if make is mlp else 4)
    assert torch.equal(other.eval()(x), model(x))


def test_loading_onto_a_plain_model_makes_the_layers_of_the_file_and_freezes_the_rest(store):
    model, plain = twins()
    store.save(model)
    store.load(plain)
    for (name, ours), (other, theirs) in zip(lora_layers(plain), lora_layers(model), strict=True):
        assert name == other
        for option in ("r", "alpha", "rslora", "dropout", "init", "scaling", "training"):
            assert getattr(ours, option) == getattr(theirs, option)
    assert {name for name, p in plain.named_parameters() if p.requires_grad} == {
        f"{layer}.adapters.default.{letter}" for layer in ("0", "2") for letter in ("lora_A", "lora_B")
    }


def test_only_the_layers_of_the_file_are_made(store):
    model = adapted(TiedLM(), target_modules=["q_proj"], rank_pattern={r"layers\.1\..*": 3})
    store.save(model)
    plain = store.load(TiedLM())
    assert [(name, layer.r) for name, layer in lora_layers(plain)] == [
        ("layers.0.attn.q_proj", 2),
        ("layers.1.attn.q_proj", 3),
    ]


def test_loading_onto_lora_layers_takes_alpha_and_keeps_dropout_switches_and_what_is_trained(store):
    model, other = twins()
    store.save(model)
    apply_lora(other, LoRAConfig(r=2, dropout=0.5))
    set_lora_enabled(other, False)
    other[0].lora_A.requires_grad_(False)
    parameters = [id(p) for p in other.parameters()]
    store.load(other)
    layer = other[0]
    assert (layer.alpha, layer.rslora) == (3.0, True)
    assert (layer.dropout, layer.init, layer.enabled) == (0.5, "gaussian", False)
    assert not layer.lora_A.requires_grad
    assert [id(p) for p in other.parameters()] == parameters


@pytest.mark.parametrize(
    ("saved", "kept"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)]
)
def test_lora_layers_keep_their_dtype_and_new_ones_take_the_files(store, saved, kept):
    model = adapted(mlp(), adapter_dtype=saved)
    store.save(model)
    other = store.load(apply_lora(mlp(), LoRAConfig(r=2, adapter_dtype=kept)))
    new = store.load(mlp().bfloat16())
    for index in (0, 2):
        assert torch.equal(other[index].lora_B, model[index].lora_B.to(kept))
        assert torch.equal(new[index].lora_B, model[index].lora_B)
        assert new[index].weight.dtype == torch.bfloat16


@pytest.mark.parametrize("state", ["merged", "disabled"])
def test_what_is_saved_does_not_depend_on_the_state_of_the_layers(store, state):
    model, _ = twins()
    store.save(model)
    before = content(store.tensors)
    if state == "merged":
        merge_lora(model)
    else:
        set_lora_enabled(model, False)
    store.save(model)
    assert content(store.tensors) == before


def test_a_single_layer_is_saved_and_loaded_as_a_model(store):
    linear = nn.Linear(4, 3)
    layer = adapted(copy.deepcopy(linear))
    store.save(layer)
    assert sorted(load_file(store.tensors)) == [
        "base_model.model.lora_A.weight",
        "base_model.model.lora_B.weight",
    ]
    loaded = store.load(linear)
    assert isinstance(loaded, FusedLoRALinear)
    x = torch.randn(2, 4)
    assert torch.equal(loaded(x), layer(x))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_torch_compile_leaves_no_trace_in_the_file(store):
    model, plain = twins()
    store.save(model)
    before = content(store.tensors)
    store.save(torch.compile(model, backend="eager"))
    assert content(store.tensors) == before
    compiled = torch.compile(plain, backend="eager")
    assert store.load(compiled) is compiled
    x = torch.randn(2, 6)
    assert torch.equal(compiled(x), model(x))


def test_an_adapter_that_is_not_in_use_is_filled_with_its_alpha_too(store):
    model, plain = twins()
    store.save(model)
    other = add_adapter(adapted(plain, r=3), "fr", LoRAConfig(r=2))
    x = torch.randn(5, 6)
    before = other.eval()(x)
    store.load(other, name="fr")
    assert torch.equal(other(x), before)
    set_adapter(other, "fr")
    assert torch.equal(other(x), model(x))


def test_a_further_adapter_reaches_layers_that_were_plain(store):
    model, plain = twins()
    store.save(model)
    other = adapted(plain, target_modules=["0"])
    x = torch.randn(5, 6)
    before = other.eval()(x)
    store.load(other, name="fr")
    assert torch.equal(other(x), before)
    set_adapter(other, "fr")
    assert torch.equal(other(x), model(x))
