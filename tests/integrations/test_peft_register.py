"""Layers that are ours from the start, by a registered config."""

import copy

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import nn
from transformers.pytorch_utils import Conv1D

from fastlora.integrations.peft import FastLinear, forward_counts, register, undo
from tests.integrations.peft_models import Mixed, lora_layers, mlp


@pytest.mark.parametrize("first", ["ours", "the user's"])
def test_a_class_that_the_user_registers_for_a_layer_is_made(first):
    class Own(Linear):
        pass

    config = LoraConfig(r=2, target_modules=["0", "2"])
    if first == "ours":
        register(config, group=True)
    config._register_custom_module({nn.Linear: Own})
    if first != "ours":
        register(config)
    assert [type(layer) for layer in lora_layers(get_peft_model(mlp(), config))] == [Own, Own]


def test_register_makes_fused_layers_from_the_start():
    config = LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False)
    torch.manual_seed(1)
    stock = get_peft_model(mlp(), copy.deepcopy(config))
    torch.manual_seed(1)
    model = get_peft_model(mlp(), register(config))
    assert [type(layer) for layer in lora_layers(model)] == [FastLinear, FastLinear]
    x = torch.randn(4, 6)
    torch.testing.assert_close(model(x), stock(x))
    assert forward_counts(model) == {"fused": 2}
    undo(model)
    assert torch.equal(model(x), stock(x))


def test_register_leaves_what_it_does_not_know_to_peft():
    targets = ["plain", "table", "subclass"]
    config = LoraConfig(r=2, target_modules=targets, target_parameters=["untouched.weight"])
    model = get_peft_model(Mixed(), register(config)).base_model.model
    kinds = {name: type(module).__name__ for name, module in model.named_children()}
    assert kinds == {
        "plain": "FastLinear",
        "subclass": "Linear",
        "transposed": "Conv1D",
        "table": "Embedding",
        "replaced": "Linear",
        "untouched": "ParamWrapper",
    }
    assert type(model.subclass) is Linear


def test_register_lets_peft_set_fan_in_fan_out_right():
    for module, said in ((mlp(), True), (nn.Sequential(Conv1D(5, 6)), False)):
        config = LoraConfig(target_modules=["0"], fan_in_fan_out=said)
        with pytest.warns(UserWarning, match="fan_in_fan_out"):
            model = get_peft_model(module, register(config))
        assert type(lora_layers(model)[0]) is FastLinear
        assert config.fan_in_fan_out is not said
        model(torch.randn(4, 6))
        assert forward_counts(model) == {"fused": 1}


def test_register_leaves_quantized_weights_to_peft():
    class Quantized(torch.Tensor):
        pass

    net = mlp()
    net[0].weight = nn.Parameter(net[0].weight.detach().as_subclass(Quantized), False)
    with pytest.warns(UserWarning, match="a layer over a Quantized takes PEFT's own forward"):
        model = get_peft_model(net, register(LoraConfig(target_modules=["0"])))
    assert type(lora_layers(model)[0]) is Linear


def test_register_takes_a_config_alone():
    with pytest.raises(TypeError, match=r"config must be a peft\.LoraConfig; got IA3Config"):
        register(IA3Config())
