"""A proof is worth something only if it can fail."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastlora.recipes.mlp import DigitsMLP
from fastlora.recipes.mnist.methods import LORA_METHODS
from fastlora.recipes.mnist.proofs import WeightProofs, prove_weights
from fastlora.recipes.proofs import cloned, is_sum


@pytest.fixture(params=LORA_METHODS)
def method(request):
    return LORA_METHODS[request.param]


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def case(request, method):
    """A net with an update that is not zero, and the weights from before."""
    net = DigitsMLP(0).to(request.param)
    before = cloned(net.state_dict())
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


class Steps(TorchDispatchMode):
    """Counts what torch is asked to compute."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_high_rank_takes_no_more_passes_over_the_weight_than_a_low_one():
    """Rank 5,000 took 15 minutes: a pass over [N, K] for each."""
    counts = []
    for r in (1, 50):
        W, A, B = torch.randn(6, 5), torch.randn(r, 5), torch.randn(6, r)
        with Steps() as steps:
            assert is_sum(W + 0.5 * (B @ A), W, A, B, 0.5)
        counts.append(steps.count)
    assert counts[0] == counts[1]


def test_the_proof_shows_how_far_it_is(case, method):
    shown = []

    def track(items, what, total):
        for item in items:
            shown.append((what, total))
            yield item

    prove_weights(case[0], method, case[1], track)
    assert shown == [("Prove", 3)] * 3
