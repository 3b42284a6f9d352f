"""Replacing modules in every place, and torch's fast path that would not see the new ones."""

import warnings

import pytest
import torch
from torch import nn

from fastlora import FusedLoRALinear, LoRAConfig, apply_lora, remove_lora
from fastlora.measuring.errors import assert_within_budget
from fastlora.model.replace import replace_modules
from tests.models import Shared, adapted, with_update


def test_a_module_is_replaced_in_every_place_once():
    model, new = Shared(), nn.Linear(4, 4)
    assert replace_modules(model, [(model.first, new)]) is model
    assert model.first is new
    assert model.again[0] is new


def test_a_model_that_is_itself_replaced_gives_the_new_one():
    old, new = nn.Linear(4, 4), nn.Linear(4, 4)
    assert replace_modules(old, [(old, new)]) is new


def encoder_layer():
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)


def encoder():
    return nn.TransformerEncoder(encoder_layer(), 2)


def batch():
    """[3, 5, 8] and a mask that pads the first row's last two steps."""
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[0, 3:] = True
    return torch.randn(3, 5, 8), padding


def parts(model):
    return [module for module in model.modules() if isinstance(module, nn.TransformerEncoderLayer)]


@pytest.mark.parametrize("make", [encoder_layer, encoder])
@pytest.mark.parametrize("padded", [False, True])
def test_a_transformer_encoder_in_eval_mode_sees_the_update(make, padded):
    model = adapted(make())
    x, padding = batch()
    options = {"src_key_padding_mask": padding if padded else None}
    with torch.no_grad():
        evaluated = model.eval()(x, **options)
        trained = model.train()(x, **options)
        truth = model.double()(x.double(), **options)
    # Where rows are padded, the two modes need not agree.
    assert_within_budget("y", *(y[~padding] for y in (evaluated, trained, truth)))


def test_an_encoder_adapted_layer_by_layer_sees_the_update_too():
    model = encoder()
    for part in parts(model):
        with_update(apply_lora(part, LoRAConfig(r=2)))
    x, padding = batch()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the nested tensors that it makes itself a prototype
        evaluated = model.eval()(x, src_key_padding_mask=padding)
        trained = model.train()(x, src_key_padding_mask=padding)
        truth = model.double()(x.double(), src_key_padding_mask=padding)
    assert_within_budget("y", *(y[~padding] for y in (evaluated, trained, truth)))


def test_removing_lora_turns_the_fast_path_on_again():
    model = encoder()
    before = [dict(vars(module)) for module in model.modules()]
    apply_lora(model, LoRAConfig(r=2))
    assert not model.use_nested_tensor
    assert not any(part.activation_relu_or_gelu for part in parts(model))
    remove_lora(model)
    assert model.use_nested_tensor
    assert all(part.activation_relu_or_gelu == 1 for part in parts(model))
    assert [vars(module).keys() for module in model.modules()] == [state.keys() for state in before]


def test_an_encoder_without_lora_keeps_its_fast_path():
    model = nn.ModuleDict({"encoder": encoder(), "head": nn.Linear(8, 2)})
    apply_lora(model, LoRAConfig(target_modules=["head"]))
    assert isinstance(model["head"], FusedLoRALinear)
    assert model["encoder"].use_nested_tensor
    assert all(part.activation_relu_or_gelu for part in parts(model))
