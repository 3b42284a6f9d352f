"""What is no operand of the formula is named, by its argument and what would be right."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import fastlora
from fastlora import FusedLoRALinear, lora_linear
from fastlora.measuring.inputs import random_inputs


@pytest.mark.parametrize("wrong", [np.ones((6, 7), np.float32), [[1.0] * 7], None, 3.0], ids=repr)
@pytest.mark.parametrize("state", ["plain", "merged", "disabled"])
def test_what_is_no_tensor_is_refused_by_a_layer_in_every_state(wrong, state):
    layer = FusedLoRALinear(7, 5, r=2)
    if state == "merged":
        layer.merge()
    layer.enabled = state != "disabled"
    with pytest.raises(TypeError, match=f"x must be a Tensor; got {type(wrong).__name__}"):
        layer(wrong)


@pytest.mark.parametrize("name", ["x", "W", "b", "A", "B"])
def test_what_is_no_tensor_is_refused_by_the_formula(name):
    o = random_inputs(6, 7, 5, 2)
    setattr(o, name, getattr(o, name).numpy())
    with pytest.raises(TypeError, match=f"{name} must be a Tensor.*got ndarray"):
        lora_linear(o.x, o.W, o.b, o.A, o.B, o.s)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"s": "2"}, TypeError, "s must be a number; got str"),
        ({"s": None}, TypeError, "s must be a number; got NoneType"),
        ({"s": torch.tensor(2.0)}, TypeError, "s must be a number; got Tensor"),
        ({"s": True}, TypeError, "s must be a number; got bool"),
        ({"s": float("nan")}, ValueError, "s must be finite; got nan"),
        ({"s": float("inf")}, ValueError, "s must be finite; got inf"),
        ({"dropout": "0.1"}, TypeError, "dropout must be a probability"),
        ({"dropout": None}, TypeError, "dropout must be a probability"),
        ({"dropout": torch.tensor(0.1)}, TypeError, "dropout must be a probability"),
    ],
    ids=str,
)
def test_a_number_that_is_none_is_named(options, error, message):
    o = random_inputs(6, 7, 5, 2)
    with pytest.raises(error, match=message):
        lora_linear(o.x, o.W, o.b, o.A, o.B, **{"s": o.s, **options})


@pytest.mark.parametrize("s", [2, np.float32(2), np.int64(2)])
def test_every_real_number_is_a_scaling(s):
    o = random_inputs(6, 7, 5, 2)
    assert torch.equal(lora_linear(o.x, o.W, o.b, o.A, o.B, s), lora_linear(o.x, o.W, o.b, o.A, o.B, 2.0))


def test_training_while_merged_is_named_once_for_each_layer():
    layer = FusedLoRALinear(7, 5, r=2)
    nn.init.normal_(layer.lora_B)
    layer.merge()
    x = torch.randn(6, 7, requires_grad=True)
    with pytest.warns(UserWarning, match="A and B get no gradient; call unmerge_lora"):
        layer(x).sum().backward()
    assert layer.lora_A.grad is None
    layer(x)
    again = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
    with pytest.warns(UserWarning, match="A and B get no gradient"):
        again(x)


def test_a_merged_layer_that_trains_nothing_is_not_named():
    layer = FusedLoRALinear(7, 5, r=2)
    layer.merge()
    x = torch.randn(6, 7)
    with torch.no_grad():
        layer(x)
    layer.eval()(x)
    layer.train().requires_grad_(False)
    layer(x)
    layer.lora_A.requires_grad_()
    layer.enabled = False
    layer(x)


def test_a_whole_model_is_named_in_one_text():
    net = fastlora.apply_lora(nn.Sequential(nn.Linear(7, 12), nn.Linear(12, 5)), fastlora.LoRAConfig(r=2))
    fastlora.merge_lora(net)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        net(torch.randn(6, 7))
        net(torch.randn(6, 7))
    assert len({str(one.message) for one in seen}) == len(seen) == 1
