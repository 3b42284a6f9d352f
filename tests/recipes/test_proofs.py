"""A proof is worth something only if it can fail."""

import pytest
import torch

from fastlora.recipes.methods import LORA_METHODS
from fastlora.recipes.mlp import DigitsMLP
from fastlora.recipes.proofs import WeightProofs, clone_weights, prove_weights


@pytest.fixture(params=LORA_METHODS)
def method(request):
    return LORA_METHODS[request.param]


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def case(request, method):
    """A net with an update that is not zero, and the weights from before."""
    net = DigitsMLP(0).to(request.param)
    before = clone_weights(net)
    method.attach(net, 3, 5.0)
    method.start(net, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for layer in net.layers():
            method.operands(layer).B.normal_()
    return net, before


def test_all_hold_for_a_sound_net(case, method):
    assert prove_weights(case[0], method, case[1]) == WeightProofs(frozen=True, enabled=True, disabled=True)


def test_a_weight_one_bit_off_is_seen(case, method):
    net, before = case
    entry = before["linear2.weight"][7, 5]
    entry.copy_(torch.nextafter(entry, torch.tensor(9.0, dtype=entry.dtype)))
    proofs = prove_weights(net, method, before)
    assert not proofs.frozen
    assert not proofs.disabled


def test_a_bias_one_bit_off_is_seen(case, method):
    net, before = case
    entry = before["linear3.bias"][3]
    entry.copy_(torch.nextafter(entry, torch.tensor(9.0, dtype=entry.dtype)))
    assert not prove_weights(net, method, before).frozen


def test_an_effective_weight_further_off_than_rounding_is_seen(case, method, monkeypatch):
    net, before = case
    right = method.effective_weight
    monkeypatch.setattr(
        type(method),
        "effective_weight",
        lambda self, layer: right(layer) * (1 + 16 * torch.finfo(right(layer).dtype).eps),
    )
    assert not prove_weights(net, method, before).enabled


def test_an_update_of_zero_proves_nothing(case, method):
    net, before = case
    with torch.no_grad():
        method.operands(net.linear1).B.zero_()
    assert not prove_weights(net, method, before).enabled


def test_a_switch_that_does_nothing_is_seen(case, method, monkeypatch):
    net, before = case
    monkeypatch.setattr(type(method), "enable", lambda self, layer, on: None)
    assert not prove_weights(net, method, before).disabled
