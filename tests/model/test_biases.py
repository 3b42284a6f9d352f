"""Biases that are trained beside LoRA: which, while which adapter is in use, and what is refused."""

import copy
import json
import warnings

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fastlora import (
    AdapterError,
    LoRAConfig,
    adapter_batch,
    add_adapter,
    apply_lora,
    delete_adapter,
    hot_swap,
    lora_disabled,
    merge_lora,
    remove_lora,
    save_pretrained,
    set_adapter,
    train_adapters,
    unmerge_lora,
    use_adapter,
)
from fastlora.model.freezing import freeze, unfreeze
from tests.models import adapted, mlp, moved, trainable, trained
from tests.packed import linear_hqq

X = torch.randn(7, 6)


def test_one_adapter_alone_trains_them_and_only_while_it_is_in_use(tmp_path):
    model = moved(adapted(mlp(), bias="lora_only"))
    before = model[0].bias.detach().clone()
    with pytest.raises(ValueError, match="adapter 'default' trains biases"):
        add_adapter(model, "fr", LoRAConfig(r=2, bias="all"))
    add_adapter(model, "fr", LoRAConfig(r=2))
    assert model[0].bias.requires_grad
    model(X).sum().backward()
    gradient = model[0].bias.grad
    with use_adapter(model, "fr"):
        assert not model[0].bias.requires_grad
    assert model[0].bias.requires_grad
    assert model[0].bias.grad is gradient
    trained(model, X)
    set_adapter(model, "fr")
    assert not torch.equal(model[0].bias, before)
    save_pretrained(model, tmp_path)
    read = [json.loads((tmp_path / each / "adapter_config.json").read_text())["bias"] for each in ("", "fr")]
    assert read == ["lora_only", "none"]
    assert not any("base_layer" in key for key in load_file(tmp_path / "fr" / "adapter_model.safetensors"))
    delete_adapter(model, "default")
    add_adapter(model, "de", LoRAConfig(r=2, bias="all"))
    assert not model[0].bias.requires_grad
    set_adapter(model, "de")
    assert model[0].bias.requires_grad


def test_several_trained_adapters_train_them_if_theirs_is_among_these():
    model = adapted(mlp(), bias="all")
    add_adapter(model, "fr", LoRAConfig(r=2))
    for names, trains in ((["fr"], False), (["fr", "default"], True), (["default"], True), (["fr"], False)):
        train_adapters(model, names)
        assert model[0].bias.requires_grad == trains
    train_adapters(model, ["fr", "default"])
    with adapter_batch(model, ["fr", "default", None] * 2):
        model(X[:6]).sum().backward()
    assert torch.equal(model[2].bias.grad, torch.full((3,), 6.0))


def test_a_layer_that_a_further_adapter_wraps_keeps_a_bias_that_is_trained():
    model = adapted(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), bias="all", target_modules=["0"])
    add_adapter(model, "fr", LoRAConfig(r=2, target_modules=["1"]))
    assert model[1].bias.requires_grad
    model(X).sum().backward()
    assert torch.equal(model[1].bias.grad, torch.full((3,), 7.0))


def test_switching_off_and_removing_say_that_biases_stay_trained():
    base = mlp()
    model = trained(moved(adapted(copy.deepcopy(base), bias="all")), X)
    plain = copy.deepcopy(base)
    for place in (0, 2):
        plain[place].bias.data.copy_(model[place].bias.data)
    with pytest.warns(UserWarning, match="switching LoRA off.*biases stay as trained"), lora_disabled(model):
        assert torch.equal(model(X), plain(X))
    y = model(X)
    merge_lora(model.eval())
    torch.testing.assert_close(model(X), y)
    unmerge_lora(model)
    assert torch.equal(model(X), y)
    with pytest.warns(UserWarning, match=r"remove_lora without merge.*biases stay as trained"):
        assert torch.equal(remove_lora(copy.deepcopy(model))(X), plain(X))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(remove_lora(model, merge=True)(X), y)


def test_freezing_and_unfreezing_follow_it():
    model = adapted(mlp(), bias="lora_only", target_modules=["0"])
    unfreeze(model)
    assert trainable(model) >= {"0.bias", "2.weight", "2.bias"}
    assert not model[0].weight.requires_grad
    freeze(model)
    assert trainable(model) == {"0.bias", "0.adapters.default.lora_A", "0.adapters.default.lora_B"}


def test_what_cannot_be_is_refused_by_name(tmp_path):
    base = mlp()
    model = adapted(copy.deepcopy(base), bias="all")
    save_pretrained(model, tmp_path)
    with pytest.raises(AdapterError, match="biases cannot be swapped in"):
        hot_swap(adapted(copy.deepcopy(base)), tmp_path)
    with pytest.raises(AdapterError, match="biases cannot be swapped in"):
        hot_swap(model, tmp_path)
    with pytest.raises(ValueError, match="bias must be one of none, lora_only, all; got 'some'"):
        LoRAConfig(bias="some")
    partly = adapted(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), bias="all", target_modules=["0"])
    with pytest.raises(ValueError, match="bias must be 'all', as adapter 'default' has it; got 'none'"):
        apply_lora(partly, LoRAConfig(r=2))
    bare = nn.Sequential(nn.Linear(6, 5, bias=False))
    with pytest.warns(UserWarning, match="bias='lora_only' trains no bias"):
        adapted(bare, bias="lora_only")


def test_biases_that_no_file_could_hold_are_refused(tmp_path):
    hqq = nn.Sequential(linear_hqq(torch.randn(8, 64), torch.randn(8)))
    with pytest.raises(ValueError, match="as that of layer '0' is no parameter"):
        adapted(hqq, bias="lora_only")
    assert not any("lora" in name for name, _ in hqq.named_modules())
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    with pytest.raises(ValueError, match="must not be 'all' beside trainable_token_indices of '1'"):
        adapted(model, bias="all", target_modules=["0"], trainable_token_indices={"1": [0]})
