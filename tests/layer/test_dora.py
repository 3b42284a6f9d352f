"""DoRA on a layer and on a model: start, merging, several adapters, states, packed layers, refusals."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastlora
from fastlora import FusedLoRALinear, LoRAConfig, add_adapter, apply_lora, set_adapter
from fastlora.analysis import update_report
from fastlora.formula import oracle
from fastlora.layer.base_weights import frozen_weight
from fastlora.layer.magnitude import row_norms
from fastlora.layer.quantized import QuantizedLoRALinear
from fastlora.measuring.errors import assert_within_budget, dora_gradients
from fastlora.measuring.inputs import Inputs
from fastlora.model.freezing import freeze
from tests.packed import MAKERS, packed, small_inputs


def moved(layer):
    """The layer with B and m away from their start."""
    for adapter in layer.adapters.values():
        with torch.no_grad():
            adapter.lora_B.normal_()
            adapter.lora_magnitude_vector.mul_(1 + 0.3 * torch.randn(layer.out_features))
    return layer


def net(**options):
    return apply_lora(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), LoRAConfig(r=2, **options))


def test_a_new_update_changes_nothing_but_rounding_and_m_starts_as_the_norms_of_w():
    linear = nn.Linear(7, 5)
    x = torch.randn(3, 7)
    before = linear(x)
    layer = FusedLoRALinear.from_linear(linear, dora=True, r=2)
    assert torch.equal(layer.lora_magnitude_vector, row_norms(layer))
    torch.testing.assert_close(layer(x), before)
    assert "dora" in repr(layer)
    moved(layer).reset_adapter()
    torch.testing.assert_close(layer(x), before)
    layer.reset_parameters()
    assert torch.equal(layer.lora_magnitude_vector, row_norms(layer))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_merging_gives_the_scaled_weight_and_unmerging_restores_w_bit_for_bit(dtype):
    layer = moved(FusedLoRALinear(7, 5, r=2, alpha=3, dora=True, dtype=dtype))
    W, x = layer.weight.clone(), torch.randn(4, 7, dtype=dtype)
    m = layer.lora_magnitude_vector.double()
    exact = oracle.dora_weight(W.double(), layer.lora_A.double(), layer.lora_B.double(), layer.scaling, m)
    before = layer(x)
    layer.merge()
    assert torch.equal(
        layer.weight, oracle.dora_weight(W, *layer.active()[:2], layer.scaling, layer.active()[2])
    )
    torch.testing.assert_close(layer.weight, exact.to(dtype))
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert torch.equal(layer.to_linear().weight, layer.weight)
    layer.unmerge()
    assert torch.equal(layer.weight, W)
    assert torch.equal(layer(x), before)
    layer.enabled = False
    assert torch.equal(layer(x), F.linear(x, W, layer.bias))


def test_a_model_trains_a_b_and_m_and_its_copies_and_states_keep_them():
    torch.manual_seed(0)
    model = net(dora=True, target_modules=["0"])
    freeze(model)
    moved(model[0])
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == [f"0.adapters.default.lora_{slot}" for slot in ("A", "B", "magnitude_vector")]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = [p.clone() for p in model.parameters() if p.requires_grad]
    x = torch.randn(4, 6)
    model(x).square().sum().backward()
    optimizer.step()
    assert not any(map(torch.equal, before, [p for p in model.parameters() if p.requires_grad]))
    other = net(dora=True, target_modules=["0"])
    other.load_state_dict(model.state_dict())
    for twin in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))


def test_plain_lora_and_dora_stand_side_by_side_and_switching_switches_m():
    torch.manual_seed(0)
    model = net(dora=True)
    add_adapter(model, "plain", LoRAConfig(r=3))
    add_adapter(model, "other", LoRAConfig(r=2, dora=True))
    layer = model[0]
    m = layer.adapters["default"].lora_magnitude_vector
    assert m.requires_grad
    set_adapter(model, "plain")
    assert layer.dora is False
    assert not m.requires_grad
    assert layer.lora_magnitude_vector is None
    set_adapter(model, "other")
    assert layer.lora_magnitude_vector.requires_grad
    assert torch.equal(layer.lora_magnitude_vector, row_norms(layer))
    set_adapter(model, "default")
    assert m.requires_grad


@pytest.mark.parametrize(
    "format",
    [
        format if at < 2 else pytest.param(format, marks=pytest.mark.exhaustive)
        for at, format in enumerate(MAKERS)
    ],
)
def test_a_packed_layer_gets_it_over_the_unpacked_weight(format):
    inputs = small_inputs(format=format)
    layer = QuantizedLoRALinear.from_linear(packed(inputs, format), r=3, alpha=inputs.s * 3, dora=True)
    W = frozen_weight(layer).float()
    assert_within_budget(
        "m", layer.lora_magnitude_vector.detach(), W.norm(dim=1), W.double().norm(dim=1), extra=2.0**-10
    )
    moved(layer)
    with torch.no_grad():
        layer.lora_A.copy_(inputs.A)
    m = layer.lora_magnitude_vector.detach().clone()
    whole = Inputs(
        inputs.x, W, inputs.b, layer.lora_A.detach(), layer.lora_B.detach(), layer.scaling, inputs.dy
    )
    truth, torchs = dora_gradients(whole.to(torch.float64), m.double()), dora_gradients(whole, m)
    x = inputs.x.clone().requires_grad_()
    y = layer(x)
    found = torch.autograd.grad(y, (x, *layer.active()), inputs.dy)
    for name, value in zip(("y", "dx", "dA", "dB", "dm"), (y.detach(), *found), strict=True):
        assert_within_budget(name, value, torchs[name], truth[name])
    plain = layer.to_linear(dtype=torch.float32)
    torch.testing.assert_close(plain(inputs.x), y.detach())


def test_what_dora_cannot_do_is_refused_by_name():
    model = net(dora=True)
    with (
        pytest.raises(ValueError, match=r"to be mixed in one batch; these are not: 0, 2"),
        fastlora.adapter_batch(model, ["default"]),
    ):
        pass
    with pytest.raises(ValueError, match="to be combined"):
        fastlora.combine_adapters(model, {"default": 1.0}, "sum")
    with pytest.raises(ValueError, match="to be started from W"):
        fastlora.initialize(model, "pissa")
    with pytest.raises(ValueError, match="to be analyzed"):
        update_report(model)
    with pytest.raises(TypeError, match="it is called dora here"):
        LoRAConfig(use_dora=True)
    with pytest.raises(TypeError, match="dora must be"):
        LoRAConfig(dora=1)
