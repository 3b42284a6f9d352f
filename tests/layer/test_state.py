"""FusedLoRALinear's state: copies, pickles, checkpoints, moves to another dtype."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from fastlora import FusedLoRALinear, LoRAConfig, apply_lora, initialize
from tests.models import trained_layer, with_update


def test_a_deep_copy_is_independent():
    layer = trained_layer()
    twin = copy.deepcopy(layer)
    x = torch.randn(4, 5)
    assert torch.equal(twin(x), layer(x))
    nn.init.zeros_(twin.lora_B)
    assert not torch.equal(twin(x), layer(x))


@pytest.mark.parametrize("merged", [False, True])
def test_it_pickles_with_its_state(merged):
    layer = trained_layer(alpha=3, rslora=True, bias=False)
    if merged:
        layer.merge()
    layer.enabled = False
    twin = pickle.loads(pickle.dumps(layer))
    x = torch.randn(4, 5)
    assert repr(twin) == repr(layer)
    assert torch.equal(twin(x), layer(x))
    for either in (twin, layer):
        either.enabled = True
        either.unmerge()
    assert torch.equal(twin(x), layer(x))
    assert torch.equal(twin.weight, layer.weight)


def test_its_state_dict_saves_and_loads_with_weights_only():
    layer, other = trained_layer(), trained_layer()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert list(state) == ["weight", "bias", "adapters.default.lora_A", "adapters.default.lora_B"]
    assert list(state) == [name for name, _ in layer.named_parameters()]
    other.load_state_dict(state)
    x = torch.randn(4, 5)
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("assign", [False, True])
def test_a_checkpoint_of_the_plain_layer_loads_strictly_and_leaves_the_update(assign):
    linear, layer = nn.Linear(5, 3), trained_layer()
    A, B = layer.lora_A.clone(), layer.lora_B.clone()
    layer.load_state_dict(linear.state_dict(), assign=assign)
    assert torch.equal(layer.weight, linear.weight)
    assert torch.equal(layer.bias, linear.bias)
    assert torch.equal(layer.lora_A, A)
    assert torch.equal(layer.lora_B, B)
    assert not layer.weight.requires_grad
    layer.enabled = False
    x = torch.randn(4, 5)
    assert torch.equal(layer(x), linear(x))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("init", ["gaussian", "orthogonal"])
def test_a_dora_that_is_not_trained_yet_follows_the_w_of_a_plain_layer(init, assign):
    linear, layer = nn.Linear(5, 3), FusedLoRALinear(5, 3, r=2, init=init, dora=True)
    layer.load_state_dict(linear.state_dict(), assign=assign)
    x = torch.randn(4, 5)
    torch.testing.assert_close(layer(x), linear(x))
    m = with_update(layer).lora_magnitude_vector.clone()
    layer.load_state_dict(nn.Linear(5, 3).state_dict(), assign=assign)
    assert torch.equal(layer.lora_magnitude_vector, m)


@pytest.mark.parametrize("assign", [False, True])
def test_a_start_taken_out_of_w_is_taken_out_of_a_plain_layers_too(assign):
    plain, x = nn.Linear(5, 3), torch.randn(4, 5)
    model = initialize_in(nn.Sequential(nn.Linear(5, 3)))
    W = plain.weight.clone()
    model.load_state_dict({"0.weight": plain.weight, "0.bias": plain.bias}, assign=assign)
    torch.testing.assert_close(model(x), plain(x))
    assert torch.equal(plain.weight, W)
    again = initialize_in(nn.Sequential(nn.Linear(5, 3)))
    again.load_state_dict(model.state_dict(), assign=assign)
    assert torch.equal(again(x), model(x))


def initialize_in(model):
    initialize(apply_lora(model, LoRAConfig(r=2)), "pissa")
    return model


def test_the_plain_layer_takes_a_lora_checkpoint_but_for_a_and_b():
    linear, layer = nn.Linear(5, 3), trained_layer()
    keys = linear.load_state_dict(layer.state_dict(), strict=False)
    assert keys.unexpected_keys == ["adapters.default.lora_A", "adapters.default.lora_B"]
    assert not keys.missing_keys
    assert torch.equal(linear.weight, layer.weight)


@pytest.mark.parametrize("lost", ["adapters.default.lora_A", "adapters.default.lora_B", "weight", "bias"])
def test_half_a_checkpoint_does_not_load_strictly(lost):
    layer = trained_layer()
    state = layer.state_dict()
    del state[lost]
    with pytest.raises(RuntimeError, match=f'Missing key.*"{lost}"'):
        layer.load_state_dict(state)


def test_it_moves_to_another_dtype_and_device():
    layer = trained_layer().to(torch.bfloat16)
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert layer(torch.randn(4, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert {p.dtype for p in layer.half().parameters()} == {torch.float16}
    assert {p.device.type for p in layer.to("meta").parameters()} == {"meta"}


def test_a_merged_layer_moved_to_another_dtype_unmerges_to_the_moved_weight():
    layer = trained_layer()
    W = layer.weight.clone()
    layer.merge()
    layer.bfloat16()
    layer.unmerge()
    assert torch.equal(layer.weight, W.bfloat16())


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_with_the_names_of_before_loads_strictly(assign):
    layer, other = trained_layer(), trained_layer()
    state = {name.rpartition(".")[2]: value for name, value in layer.state_dict().items()}
    assert list(state) == ["weight", "bias", "lora_A", "lora_B"]
    other.load_state_dict(state, assign=assign)
    assert list(state) == ["weight", "bias", "lora_A", "lora_B"]
    x = torch.randn(4, 5)
    assert torch.equal(other(x), layer(x))
    del state["lora_A"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"adapters\.default\.lora_A"'):
        other.load_state_dict(state)
