"""HQQ: the same bits as the library, for every layout; on the kernel's path too."""

import pytest
import torch
from torch import nn

from fastlora import LoRAConfig, apply_lora, remove_lora, set_backend
from fastlora.formats.hqq import HQQ
from fastlora.formula.operands import BaseWeight
from fastlora.integrations.peft_rules import operands_of
from fastlora.layer.quantized import QuantizedLoRALinear
from fastlora.routes.dequantize import dequantize
from tests.packed import linear_hqq, small_inputs

exhaustive = pytest.mark.exhaustive
FORMAT = HQQ()


def held_to_the_library(layer, dtype):
    """The host's W and the kernel's are the library's, bit for bit, and so is W converted to fp32."""
    base, theirs = FORMAT.base_of(layer, dtype), layer.dequantize()
    assert theirs.dtype == dtype
    assert torch.equal(dequantize(base), theirs)
    assert torch.equal(dequantize(base._replace(dtype=torch.float32)), theirs.float())
    if dtype != torch.bfloat16:  # which the interpreter cuts off
        with set_backend("triton"):
            assert torch.equal(dequantize(base), theirs)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, pytest.param(torch.float32, marks=exhaustive)]
)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_w_has_the_librarys_bits(bits, axis, dtype):
    W = torch.randn(24, 40, dtype=dtype)
    held_to_the_library(linear_hqq(W, nbits=bits, axis=axis, group_size=8), dtype)


@exhaustive
@pytest.mark.parametrize(
    "options",
    [
        {"nbits": 4, "channel_wise": False},
        {"nbits": 4, "axis": 0, "group_size": None},
        {"nbits": 4, "group_size": 8, "round_zero": True, "optimize": True},
        {"nbits": 3, "group_size": 24},
        {"nbits": 3, "axis": 0, "group_size": 15, "view_as_float": True},
        {"nbits": 4, "group_size": 8, "view_as_float": True},
        {"nbits": 6, "group_size": 8},
        {"nbits": 1.58, "group_size": 8},
    ],
    ids=str,
)
def test_other_options_of_the_library_do_not_move_a_bit(options):
    for dtype in (torch.float16, torch.float32):
        held_to_the_library(linear_hqq(torch.randn(24, 40, dtype=dtype), **options), dtype)


def with_packed_scales(W, axis, **zeros):
    """An HQQLinear whose scales and zeros are packed too, as its constructor does not make any more."""
    like = linear_hqq(W, group_size=8, nbits=4, axis=axis)
    config = {**like.quant_config, "scale_quant_params": {"nbits": 8, "group_size": 20, "optimize": False}}
    config["zero_quant_params"] = {"nbits": 8, "optimize": False, **zeros}
    layer = type(like)(None, {**config, "offload_meta": False}, compute_dtype=W.dtype, device="cpu")
    layer.quantize(W, **config)
    return layer


@pytest.mark.parametrize("axis", [0, 1])
def test_scales_that_are_packed_too_are_unpacked_as_the_library_does(axis):
    W = torch.randn(24, 40, dtype=torch.float16)
    layer = with_packed_scales(W, axis, channel_wise=False, group_size=None)
    held_to_the_library(layer, torch.float16)
    held_to_the_library(with_packed_scales(W, axis, group_size=20), torch.float16)
    assert len(FORMAT.base_of(layer, torch.float16).tensors) == 7


def by_hand(bits, fields, word, dtype=torch.float16):
    """A W [6, 40] of random words, without the library: groups of eight entries."""
    parts = -(-30 // fields)
    info = torch.iinfo(word)
    words = torch.randint(max(info.min, -(2**31)), info.max, (parts, 8)).to(word)
    scale, zero = torch.rand(30, 1, dtype=dtype) + 0.5, torch.randn(30, 1, dtype=dtype)
    return BaseWeight("hqq", (words, scale, zero), 6, 40, dtype, (bits, 30, 8, *[0] * 6))


@pytest.mark.parametrize(("bits", "fields", "word"), [(4, 2, torch.uint8), (3, 10, torch.int32)])
def test_the_kernel_gives_the_hosts_bits_without_the_library(bits, fields, word):
    base = by_hand(bits, fields, word)
    words, scale, zero = base.tensors
    q = [(words.long() >> bits * field) % 2**bits for field in range(fields)][::-1]
    wanted = ((torch.cat(q)[:30].half() - zero) * scale).view(6, 40)
    assert torch.equal(dequantize(base), wanted)
    with set_backend("triton"):
        assert torch.equal(dequantize(base), wanted)


def test_a_state_dict_of_the_library_loads_and_one_with_lora_too():
    inputs = small_inputs()
    layer, other = (QuantizedLoRALinear.from_linear(linear_hqq(inputs.W + i, inputs.b), r=3) for i in (0, 1))
    nn.init.normal_(layer.lora_B)
    model, twin = nn.Sequential(layer), nn.Sequential(other)
    assert "0.adapters.default.lora_A" in model.state_dict()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(inputs.x), model(inputs.x))
    fresh = linear_hqq(inputs.W - 1, inputs.b)
    update = twin[0].lora_B.clone()
    twin.load_state_dict(nn.Sequential(fresh).state_dict())
    assert torch.equal(twin[0].lora_B, update)
    twin[0].enabled = False
    assert torch.equal(twin(inputs.x), fresh(inputs.x))
    state = layer.state_dict()
    other.load_state_dict(state)
    assert torch.equal(other.lora_B, layer.lora_B)
    assert state.keys() == layer.state_dict().keys()


def test_a_model_of_hqqs_takes_lora_gives_its_layers_back_and_merges():
    inputs = small_inputs()
    theirs = linear_hqq(inputs.W, inputs.b, nbits=8)
    model = nn.Sequential(theirs, nn.Linear(37, 5))
    apply_lora(model, LoRAConfig(r=2))
    nn.init.normal_(model[0].lora_B)
    assert type(model[0]).__name__ == "FusedLoRAHQQLinear"
    assert isinstance(model[0], type(theirs))
    wanted, W = model(inputs.x), model[0].effective_weight()
    with pytest.warns(UserWarning, match="merging 1 packed layers"):
        remove_lora(model, merge=True)
    assert type(model[0]) is nn.Linear
    assert torch.equal(model[0].weight, W)
    torch.testing.assert_close(model(inputs.x), wanted)
    model[0] = theirs
    model = remove_lora(apply_lora(model, LoRAConfig(r=2)))
    assert type(model[0]) is type(theirs)
    assert model[0].state_dict().keys() == theirs.state_dict().keys()
    assert torch.equal(model[0](inputs.x), theirs(inputs.x))


def test_a_bias_that_hangs_on_another_layers_is_cut_off():
    inputs = small_inputs()
    layer = linear_hqq(inputs.W, inputs.b)
    origin = nn.Parameter(inputs.b.clone())
    layer.bias = origin.clone()
    model = apply_lora(nn.Sequential(layer), LoRAConfig(r=2))
    model(inputs.x).sum().backward()
    assert origin.grad is None
    assert remove_lora(model)[0].bias.requires_grad is False


def test_choosing_the_librarys_forward_leaves_ours_alone():
    inputs = small_inputs()
    layer = QuantizedLoRALinear.from_linear(linear_hqq(inputs.W, inputs.b), r=3)
    nn.init.normal_(layer.lora_B)
    wanted = layer(inputs.x)
    before = type(layer).backend
    layer.set_backend(before)
    assert "forward" not in vars(type(layer))
    assert torch.equal(layer(inputs.x), wanted)


def spoiled(change):
    layer = linear_hqq(torch.randn(24, 40), nbits=4, group_size=8)
    change(layer)
    return layer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layer: setattr(layer, "ready", False), "W_q of a HQQLinear must be quantized"),
        (lambda layer: setattr(layer, "offload_meta", True), "must be where W_q is.*offload_meta=False"),
        (lambda layer: layer.add_module("linear_layer", nn.Linear(2, 2)), "must not keep the layer"),
        (lambda layer: layer.meta.update(packing="5bit"), "must name one of the packings 8bit_u8.*'5bit'"),
        (lambda layer: layer.meta.update(view_as_float=True), "W_q of a HQQLinear must be in torch.float32"),
        (lambda layer: setattr(layer.W_q, "data", layer.W_q.data[:3]), r"must hold \[24, 40\] in 4 bits"),
        (lambda layer: setattr(layer, "in_features", 41), r"must say \[N, K\] = \[24, 41\]"),
        (lambda layer: setattr(layer, "compute_dtype", torch.float16), "scale and zero.*compute_dtype"),
    ],
)
def test_a_state_that_does_not_hold_w_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        apply_lora(nn.Sequential(spoiled(change)), LoRAConfig(r=2))


def test_pefts_layer_over_it_is_fused_though_its_bias_is_no_parameter():
    peft = pytest.importorskip("peft")
    inputs = small_inputs()
    layer = linear_hqq(inputs.W, inputs.b)
    layer.bias = nn.Parameter(inputs.b.clone()).clone()
    model = peft.get_peft_model(nn.Sequential(layer), peft.LoraConfig(r=2, target_modules=["0"]))
    made = model.base_model.model[0]
    assert type(made).__name__ == "HqqLoraLinear"
    assert operands_of(made).b.requires_grad is False
