"""DoRA under PEFT: fused where that is PEFT's formula, as exact as PEFT's; its own files and merging."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from fastlora.integrations.peft import accelerate_peft, forward_counts, register
from fastlora.measuring.errors import assert_within_budget, dora_gradients, split_eps
from fastlora.measuring.inputs import random_inputs
from tests.integrations.peft_models import assert_stock, layer_of, mlp, results, run, twins
from tests.packed import packed, small_inputs


def move(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
    return model


def of_layer(layer, ops):
    magnitudes = layer.lora_magnitude_vector["default"]
    return {**results(layer, ops), "dm": magnitudes.weight.grad}


@pytest.mark.parametrize(
    ("dtype", "adapter_dtype", "bias"),
    [
        (torch.float32, torch.float32, True),
        (torch.bfloat16, torch.float32, False),
        pytest.param(torch.float16, torch.float32, True, marks=pytest.mark.exhaustive),
        pytest.param(torch.bfloat16, torch.bfloat16, True, marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_output_and_gradients_are_as_exact_as_pefts(dtype, adapter_dtype, bias):
    ops = random_inputs(37, 29, 43, 5, dtype=dtype, adapter_dtype=adapter_dtype, bias=bias)
    stock = layer_of(ops, use_dora=True)
    stock.lora_magnitude_vector.to(adapter_dtype)
    move(stock)
    fused = copy.deepcopy(stock)
    assert accelerate_peft(fused).fused == ("",)
    m = stock.lora_magnitude_vector["default"].weight.detach()
    theirs, ours = of_layer(stock, ops), of_layer(fused, ops)
    truth = dora_gradients(ops.to(torch.float64), m.double())
    assert set(forward_counts(fused)) == {"fused"}
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        # dm reads z, which is kept in x's dtype.
        extra = torch.finfo(dtype).eps if name == "dm" else split_eps(ops)
        assert_within_budget(name, value, theirs[name], truth[name], extra=extra)


def test_fp64_agrees_with_peft():
    ops = random_inputs(37, 29, 43, 5, dtype=torch.float64)
    stock = move(layer_of(ops, use_dora=True))
    fused = copy.deepcopy(stock)
    accelerate_peft(fused)
    torch.testing.assert_close(of_layer(fused, ops), of_layer(stock, ops))
    assert set(forward_counts(fused)) == {"fused"}


def test_a_layer_over_4_bits_is_fused():
    inputs = small_inputs()
    net = torch.nn.Sequential(packed(inputs, "bnb-4bit"))
    model = get_peft_model(net, LoraConfig(r=3, target_modules=["0"], use_dora=True, init_lora_weights=False))
    fused = copy.deepcopy(move(model))
    accelerate_peft(fused)
    ours, theirs = run(fused, inputs.x), run(model, inputs.x)
    assert set(forward_counts(fused)) == {"fused"}
    assert any("magnitude" in name for name in ours)
    for name, value in theirs.items():
        assert (ours[name] - value).norm() <= 1e-5 * value.norm(), name


def test_dropout_takes_pefts_own_forward_in_training_alone():
    stock, fused = twins(use_dora=True, lora_dropout=0.5)
    accelerate_peft(fused)
    x = torch.randn(4, 6)
    assert_stock(run(fused, x), run(stock, x), fused, "DoRA with dropout")
    fused.eval()
    stock.eval()
    torch.testing.assert_close(fused(x), stock(x))
    assert forward_counts(fused)["fused"] == 2


def test_register_makes_fused_layers_whose_merging_and_files_are_pefts(tmp_path):
    model = get_peft_model(
        mlp(), register(LoraConfig(r=2, target_modules=["0", "2"], use_dora=True, init_lora_weights=False))
    )
    move(model)
    x = torch.randn(4, 6)
    y = model(x)
    assert set(forward_counts(model)) == {"fused"}
    model.merge_adapter()
    torch.testing.assert_close(model(x), y)
    model.unmerge_adapter()
    torch.testing.assert_close(model(x), y)
    model.save_pretrained(str(tmp_path))
    model.load_adapter(str(tmp_path), "again")
    model.set_adapter("again")
    torch.testing.assert_close(model(x), y)


def test_other_magnitudes_take_pefts_own_forward():
    stock, fused = twins(use_dora=True)
    accelerate_peft(fused)
    for model in (stock, fused):
        for layer in model.modules():
            if hasattr(layer, "lora_magnitude_vector"):
                layer.lora_magnitude_vector["default"].register_forward_hook(lambda *_: None)
    x = torch.randn(4, 6)
    assert_stock(run(fused, x), run(stock, x), fused, "magnitudes are not a plain")
