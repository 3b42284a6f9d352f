"""LoRA on convolutions: PEFT's values, gradients and files, merging, adapters, and what is refused."""

import copy
import json
import pickle

import peft
import pytest
import torch
from torch import nn

from fastlora import (
    AdapterError,
    LoRAConfig,
    adapter_batch,
    add_adapter,
    apply_lora,
    combine_adapters,
    hot_swap,
    initialize,
    load_pretrained,
    lora_disabled,
    merge_lora,
    parameter_report,
    remove_lora,
    save_pretrained,
    set_adapter,
    unmerge_lora,
    use_adapter,
)
from fastlora.accounting.explain import explain
from fastlora.layer.lora_conv import LoRAConv2d
from fastlora.measuring.errors import assert_within_budget
from tests.models import moved

KINDS = {
    1: (nn.Conv1d, {"kernel_size": 3, "stride": 2, "padding": 1}),
    2: (nn.Conv2d, {"kernel_size": (3, 1), "padding": (1, 0), "bias": False}),
    3: (nn.Conv3d, {"kernel_size": 3, "padding": "same"}),
}


class Net(nn.Module):
    """Two convolutions, the second 1 x 1, and a head."""

    def __init__(self, dims=2):
        super().__init__()
        kind, options = KINDS[dims]
        self.first = kind(3, 5, **options)
        self.last = kind(5, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.last(self.first(x).relu()).flatten(2).mean(-1))


def base(dims=2, dtype=torch.float64):
    return Net(dims).to(dtype).requires_grad_(False)


def inputs(dims=2, dtype=torch.float64):
    return torch.randn(2, 3, *(6, 5, 4)[:dims], dtype=dtype)


def ours(net, **options):
    config = {"r": 2, "alpha": 3.0, "target_modules": ["first", "last", "head"], **options}
    return moved(apply_lora(net, LoRAConfig(**config))).eval()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_pefts_file_gives_pefts_outputs_and_gradients_and_comes_back(dims, dtype, tmp_path):
    net, x = base(dims, dtype), inputs(dims, dtype)
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["first", "last", "head"])
    stock = moved(peft.get_peft_model(copy.deepcopy(net), config)).eval()
    stock.save_pretrained(str(tmp_path))
    model, true = load_pretrained(copy.deepcopy(net), tmp_path).eval(), copy.deepcopy(stock).double()
    results = []
    for each in (model, stock, true):
        xs = x.to(next(each.parameters()).dtype).clone().requires_grad_()
        y = each(xs)
        y.square().sum().backward()
        found = {"y": y.detach(), "dx": xs.grad}
        for name, p in each.named_parameters():
            if p.grad is not None:
                parts = [
                    part for part in name.split(".") if part in ("first", "last", "head", "lora_A", "lora_B")
                ]
                found[".".join(parts)] = p.grad.flatten(1)
        results.append(found)
    assert len(results[0]) == 8
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        if dtype == torch.float64:
            torch.testing.assert_close(value, results[1][name])
        else:
            assert_within_budget(name, value, results[1][name], results[2][name])
    save_pretrained(model, tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(net), str(tmp_path / "ours")).eval()
    torch.testing.assert_close(again(x), model(x))


def test_a_new_one_is_zero_and_dropout_falls_on_the_update_alone():
    net, x = base(), inputs()
    model = apply_lora(copy.deepcopy(net), LoRAConfig(r=2, target_modules=["first"], dropout=0.5))
    assert torch.equal(model(x), net(x))
    moved(model).eval()
    assert not torch.equal(model(x), net(x))
    model.train()
    assert not torch.equal(model(x), model(x))
    with lora_disabled(model):
        assert torch.equal(model(x), net(x))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_merging_and_removing(dims):
    net, x = base(dims), inputs(dims)
    model = ours(copy.deepcopy(net))
    before, state = model(x), {key: value.clone() for key, value in model.state_dict().items()}
    merge_lora(model)
    torch.testing.assert_close(model(x), before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with lora_disabled(model):
        assert torch.equal(model(x), net(x))
    unmerge_lora(model)
    assert torch.equal(model.first.weight, net.first.weight)
    torch.testing.assert_close(model.first.to_linear().weight, model.first.effective_weight())
    assert torch.equal(model.first.to_linear(merge=False).weight, net.first.weight)
    merged = remove_lora(copy.deepcopy(model), merge=True)
    torch.testing.assert_close(merged(x), before)
    plain = remove_lora(model)
    assert torch.equal(plain(x), net(x))
    assert [type(each.first) for each in (merged, plain)] == [KINDS[dims][0]] * 2
    assert plain.state_dict().keys() == net.state_dict().keys()


def test_adapters_copies_sums_and_swaps(tmp_path):
    net, x = base(), inputs()
    model = ours(copy.deepcopy(net))
    y = model(x)
    save_pretrained(model, tmp_path)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin.first) is LoRAConv2d
        assert torch.equal(twin(x), y)
    added = load_pretrained(ours(copy.deepcopy(net)), tmp_path, name="theirs")
    set_adapter(added, "theirs")
    torch.testing.assert_close(added(x), y)
    combine_adapters(added, {"theirs": 1.0}, "same")
    with use_adapter(added, "same"):
        torch.testing.assert_close(added(x), y)
    torch.testing.assert_close(load_pretrained(ours(copy.deepcopy(net)), tmp_path)(x), y)
    swapped = ours(copy.deepcopy(net), alpha=5.0)
    hot_swap(swapped, tmp_path)
    torch.testing.assert_close(swapped(x), y)
    add_adapter(added, "fr", LoRAConfig(r=3, target_modules=["first"]))
    with use_adapter(added, "fr"):
        assert torch.equal(added(x), net(x))
    counted = {layer.name: layer.lora for layer in parameter_report(model).layers}
    assert counted["first"] == 2 * (3 * 3 * 1) + 2 * 5


def test_half_precision_and_autocast_and_channels_last():
    net = base(dtype=torch.bfloat16)
    model = ours(net)
    assert model.first.lora_A.dtype == torch.float32
    assert model(inputs(dtype=torch.bfloat16)).dtype == torch.bfloat16
    wide = ours(base(dtype=torch.float32)).to(memory_format=torch.channels_last)
    x = inputs(dtype=torch.float32)
    y = wide(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert wide.first(x).dtype == torch.bfloat16
    merge_lora(wide)
    torch.testing.assert_close(wide(x), y)


def test_all_linear_means_no_convolution_and_names_mean_them():
    model = apply_lora(base(), LoRAConfig())
    assert type(model.first) is nn.Conv2d
    with pytest.raises(ValueError, match="has it already"):
        ours(ours(base(), target_modules=["first"]), target_modules=["first"])


@pytest.mark.parametrize(
    ("conv", "options", "message"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), {}, "must have groups=1"),
        (nn.Conv2d(4, 4, 3, dilation=2), {}, "must have dilation=1"),
        (nn.Conv2d(4, 4, 3, padding_mode="circular"), {}, "must have padding_mode='zeros'"),
        (nn.ConvTranspose2d(4, 4, 3), {}, "must be exactly an nn.Linear"),
        (type("Own", (nn.Conv2d,), {})(4, 4, 3), {}, "must be exactly an nn.Conv1d, Conv2d or Conv3d"),
        (nn.Conv2d(4, 4, 3), {"dora": True}, "dora must be False for a convolution"),
        (nn.Conv2d(4, 4, 3), {"lora_bias": True}, "lora_bias must be False for a convolution"),
    ],
)
def test_what_it_cannot_be_on_is_refused_and_changes_nothing(conv, options, message):
    net = nn.Sequential(conv)
    with pytest.raises((TypeError, ValueError), match=message):
        apply_lora(net, LoRAConfig(target_modules=["0"], **options))
    assert net[0] is conv


def test_what_it_does_not_go_with_is_refused(tmp_path):
    model = ours(base())
    with pytest.raises(ValueError, match="no embeddings or convolutions"), adapter_batch(model, [None, None]):
        pass
    with pytest.raises(ValueError, match="a convolution"):
        initialize(model, "pissa")
    with pytest.raises(TypeError, match="must be linear"):
        explain((2, 3, 6, 5), model.first)
    model.first.lora_B.data.fill_(torch.inf)
    with pytest.raises(ValueError, match="must be finite"):
        merge_lora(model)


def test_files_of_another_kernel_are_refused(tmp_path):
    model = ours(base(), target_modules=["first"])
    save_pretrained(model, tmp_path)
    other = nn.Module()
    other.first = nn.Conv2d(3, 5, (1, 3))
    with pytest.raises(AdapterError, match=r"must have \[in_channels, \*kernel\] = \[3, 1, 3\]"):
        load_pretrained(other, tmp_path)
    other.first = nn.Linear(9, 5)
    with pytest.raises(AdapterError, match=r"must have \[in_channels, \*kernel\] = \[\]"):
        load_pretrained(other, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == ["first"]


def test_what_it_wraps_is_frozen():
    conv = nn.Conv2d(3, 5, 3)
    layer = apply_lora(nn.Sequential(conv), LoRAConfig(r=2, target_modules=["0"]))[0]
    assert layer.weight is conv.weight
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == {
        "adapters.default.lora_A",
        "adapters.default.lora_B",
    }
