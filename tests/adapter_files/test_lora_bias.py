"""lora_bias, a bias of B: computed, trained, merged and saved as PEFT's."""

import copy
import json
from types import SimpleNamespace

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fastlora import (
    AdapterError,
    LoRAConfig,
    adapter_batch,
    add_adapter,
    apply_lora,
    combine_adapters,
    group_projections,
    hot_swap,
    load_pretrained,
    lora_disabled,
    merge_lora,
    remove_lora,
    save_pretrained,
    set_adapter,
    unmerge_lora,
)
from fastlora.measuring.errors import assert_within_budget
from fastlora.parallel.tensor import _check_divisible
from tests.models import Block, moved
from tests.packed import net as packed_net

pytestmark = pytest.mark.filterwarnings("ignore:.*have invalid shape", "ignore:.*lora_bias=True. was passed")
X = torch.randn(7, 6)


def base(bias=True, dtype=torch.float64):
    net = nn.Sequential(nn.Linear(6, 5, bias), nn.ReLU(), nn.Linear(5, 3, bias)).to(dtype)
    return net.requires_grad_(False)


def ours(net, **options):
    options = {"r": 2, "alpha": 3.0, "lora_bias": True, **options}
    return moved(apply_lora(net, LoRAConfig(**options))).eval()


def theirs(net):
    config = peft.LoraConfig(r=2, lora_alpha=3, lora_bias=True, target_modules=["0", "2"])
    return moved(peft.get_peft_model(net, config)).eval()


def same(name, found, stock, truth):
    """Fail unless both are the truth, but for rounding."""
    if found.dtype == torch.float64:
        torch.testing.assert_close(found, stock)
    else:
        assert_within_budget(name, found, stock, truth)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_pefts_file_gives_pefts_outputs_and_gradients_and_comes_back(bias, dtype, tmp_path):
    net, x = base(bias, dtype), X.to(dtype)
    stock = theirs(copy.deepcopy(net))
    stock.save_pretrained(str(tmp_path))
    model = load_pretrained(copy.deepcopy(net), tmp_path)
    true = copy.deepcopy(stock).double()
    same("y", model(x).detach(), stock(x).detach(), true(x.double()).detach())
    for each in (model, stock, true):
        each(x.to(next(each.parameters()).dtype)).square().sum().backward()
    wanted = {name: p.grad for name, p in stock.named_parameters() if p.grad is not None}
    truth = {name: p.grad for name, p in true.named_parameters() if p.grad is not None}
    assert len(wanted) == 6
    for name, layer in (("0", model[0]), ("2", model[2])):
        found = {"lora_A": layer.lora_A, "lora_B": layer.lora_B, "lora_B.bias": layer.lora_B_bias}
        for slot, parameter in found.items():
            kind, _, end = slot.partition(".")
            key = f"base_model.model.{name}.{kind}.default.{end or 'weight'}"
            same(key, parameter.grad, wanted[key], truth[key])
    save_pretrained(model, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "adapter_config.json").read_text())["lora_bias"] is True
    again = peft.PeftModel.from_pretrained(copy.deepcopy(net), str(tmp_path / "ours"))
    torch.testing.assert_close(again(x), model(x))


@pytest.mark.parametrize("init", ["gaussian", "kaiming", "orthogonal"])
def test_peft_reads_it_however_it_was_started(init, tmp_path):
    net = base()
    model = ours(copy.deepcopy(net), init=init)
    save_pretrained(model, tmp_path)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(net), str(tmp_path))
    torch.testing.assert_close(again(X.double()), model(X.double()))


def test_a_new_one_is_zero_and_a_peft_config_is_taken():
    net = base()
    config = peft.LoraConfig(r=2, lora_bias=True, target_modules=["0"])
    model = apply_lora(copy.deepcopy(net), config)
    assert torch.equal(model(X.double()), net(X.double()))
    assert model[0].lora_bias
    assert model[0].lora_B_bias.requires_grad
    moved(model).eval()
    assert not torch.equal(model(X.double()), net(X.double()))
    model[0].reset_adapter()
    assert torch.equal(model(X.double()), net(X.double()))


@pytest.mark.parametrize("bias", [True, False])
def test_merging_and_switching_off(bias):
    net, x = base(bias), X.double()
    model = ours(copy.deepcopy(net))
    before, state = model(x), {key: value.clone() for key, value in model.state_dict().items()}
    merge_lora(model)
    torch.testing.assert_close(model(x), before)
    with lora_disabled(model):
        assert torch.equal(model(x), net(x))
    unmerge_lora(model)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    torch.testing.assert_close(model[0].to_linear()(x), model[0](x))
    assert torch.equal(model[0].to_linear(merge=False)(x), net[0](x))
    torch.testing.assert_close(remove_lora(copy.deepcopy(model), merge=True)(x), before)
    assert torch.equal(remove_lora(model)(x), net(x))
    assert model.state_dict().keys() == net.state_dict().keys()


def test_adapters_with_and_without_one_are_switched_filled_and_swapped(tmp_path):
    net, x = base(), X.double()
    model = ours(copy.deepcopy(net))
    save_pretrained(model, tmp_path)
    added = load_pretrained(apply_lora(copy.deepcopy(net), LoRAConfig(r=2)), tmp_path, name="biased")
    assert torch.equal(added(x), net(x))
    set_adapter(added, "biased")
    torch.testing.assert_close(added(x), model(x))
    torch.testing.assert_close(load_pretrained(ours(copy.deepcopy(net)), tmp_path)(x), model(x))
    swapped = ours(copy.deepcopy(net), alpha=5.0)
    hot_swap(swapped, tmp_path)
    torch.testing.assert_close(swapped(x), model(x))
    add_adapter(added, "third", LoRAConfig(r=2, lora_bias=True))
    with pytest.raises(AdapterError, match="lora_bias must be False"):
        load_pretrained(apply_lora(copy.deepcopy(net), LoRAConfig(r=2)), tmp_path)
    with pytest.raises(AdapterError, match="lora_bias must be False"):
        hot_swap(apply_lora(copy.deepcopy(net), LoRAConfig(r=2)), tmp_path)


def test_a_conv1d_and_a_group_take_it():
    layer = nn.Sequential(Conv1D(5, 6)).double().requires_grad_(False)
    model = ours(copy.deepcopy(layer), target_modules=["0"])
    torch.testing.assert_close(remove_lora(copy.deepcopy(model), merge=True)(X.double()), model(X.double()))
    block = Block().requires_grad_(False)
    adapted = ours(block, target_modules=["q_proj", "k_proj", "v_proj"])
    alone = adapted(X[:, :4])
    group_projections(adapted)
    torch.testing.assert_close(adapted(X[:, :4]), alone)


@pytest.mark.filterwarnings("ignore:merging")
def test_a_packed_base_takes_it():
    plain = packed_net()
    model = ours(plain)
    layer = next(each for each in model.modules() if getattr(each, "lora_bias", False))
    x = torch.randn(3, layer.in_features)
    y, b_B = layer(x), layer.lora_B_bias.detach().clone()
    with torch.no_grad():
        layer.lora_B_bias.zero_()
    torch.testing.assert_close(y, layer(x) + layer.scaling * b_B)
    with torch.no_grad():
        layer.lora_B_bias.copy_(b_B)
    torch.testing.assert_close(layer.to_linear()(x), y)


def test_half_precision_bases_keep_it_in_fp32_and_round_once():
    model = ours(base(dtype=torch.bfloat16))
    assert model[0].lora_B_bias.dtype == torch.float32
    assert model(X.bfloat16()).dtype == torch.bfloat16
    merged = model[0].to_linear().bias
    wide = model[0].bias.float() + model[0].scaling * model[0].lora_B_bias
    assert torch.equal(merged, wide.bfloat16())


def test_a_file_is_of_layers_that_all_have_one_or_none(tmp_path):
    model = apply_lora(ours(base(), target_modules=["0"]), LoRAConfig(r=2, target_modules=["2"]))
    with pytest.raises(ValueError, match=r"must have lora_bias all or none.* these have it: '0'"):
        save_pretrained(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_layer_with_one_is_not_divided_among_processes():
    layer = ours(base(), target_modules=["0"])[0]
    with pytest.raises(ValueError, match="adapter 'default' has a bias of B"):
        _check_divisible(layer, "out_features", SimpleNamespace(size=lambda: 1))


def test_what_it_does_not_go_with_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="lora_bias and dora must not both be True"):
        LoRAConfig(lora_bias=True, dora=True)
    embedding = nn.Sequential(nn.Embedding(5, 4))
    with pytest.raises(ValueError, match="lora_bias must be False for an embedding"):
        apply_lora(embedding, LoRAConfig(lora_bias=True, target_modules=["0"]))
    model = ours(base())
    with pytest.raises(ValueError, match="a bias of B, to be mixed"), adapter_batch(model, ["default"] * 7):
        pass
    with pytest.raises(ValueError, match="a bias of B, to be combined"):
        combine_adapters(model, {"default": 1.0}, "sum")
    save_pretrained(model, tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(file.read_text().replace('"lora_bias": true', '"lora_bias": false'))
    with (
        pytest.warns(UserWarning, match="was changed after"),
        pytest.raises(AdapterError, match=r"must have a lora_B.bias if lora_bias is True, else none"),
    ):
        load_pretrained(base(), tmp_path)
