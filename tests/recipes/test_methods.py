"""The ways to compute LoRA start alike and leave the base alone."""

import copy

import pytest
import torch

from fastlora.recipes.mlp import DigitsMLP
from fastlora.recipes.mnist.methods import LORA_METHODS


def attached(method, net, seed=5):
    net = copy.deepcopy(net)
    method.attach(net, 2, 3.0)
    method.start(net, torch.Generator().manual_seed(seed))
    return net


def test_they_start_from_the_same_a_and_from_b_zero():
    net = DigitsMLP(0)
    nets = {name: attached(method, net) for name, method in LORA_METHODS.items()}
    first = LORA_METHODS["fused"].trained(nets["fused"])
    assert [tuple(tensor.shape) for tensor in first] == [
        (2, 784), (1000, 2), (2, 1000), (2000, 2), (2, 2000), (10, 2)
    ]  # fmt: skip
    for name, method in LORA_METHODS.items():
        assert all(map(torch.equal, method.trained(nets[name]), first))
        assert not any(tensor.any() for tensor in first[1::2])
        assert {method.operands(layer).s for layer in nets[name].layers()} == {1.5}


def test_fp64_starts_at_the_values_that_fp32_rounds():
    method = LORA_METHODS["fused"]
    wide, narrow = (
        method.trained(attached(method, DigitsMLP(0).to(d))) for d in (torch.float64, torch.float32)
    )
    assert all(torch.equal(w.float(), n) for w, n in zip(wide, narrow, strict=True))
    assert not torch.equal(wide[0], narrow[0].double())


@pytest.mark.parametrize("name", LORA_METHODS)
def test_only_a_and_b_are_trained(name):
    method, net = LORA_METHODS[name], attached(LORA_METHODS[name], DigitsMLP(0))
    trained = {id(parameter) for parameter in net.parameters() if parameter.requires_grad}
    assert trained == {id(tensor) for tensor in method.trained(net)}
    assert len(trained) == 6


@pytest.mark.parametrize("name", LORA_METHODS)
def test_switched_off_the_net_computes_what_the_base_does_bit_for_bit(name):
    base, method = DigitsMLP(0), LORA_METHODS[name]
    net = attached(method, base)
    with torch.no_grad():
        for layer in net.layers():
            method.operands(layer).B.normal_()
    x = torch.randn(7, 784)
    assert not torch.allclose(net(x), base(x))
    method.enable_all(net, False)
    assert torch.equal(net(x), base(x))


def test_a_net_begins_at_its_seed_and_leaves_torchs_generator_alone():
    state = torch.get_rng_state()
    first, second, other = DigitsMLP(7), DigitsMLP(7), DigitsMLP(8)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.linear2.weight, second.linear2.weight)
    assert not torch.equal(first.linear2.weight, other.linear2.weight)
